"""Real threads for calls that would block the event loop for over 10 ms, and parked worker greenlets."""

from __future__ import annotations

import _thread
import contextlib
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import gevent
from gevent import monkey
from gevent.threadpool import ThreadPool

P = ParamSpec("P")
R = TypeVar("R")


def has_loop() -> bool:
    """Return True in a process patched by gevent, such as a gunicorn worker."""
    return bool(monkey.is_module_patched("threading"))


class SingleThread:
    """A real thread, started at its first use, that runs calls one after another.

    Each kind of work needs its own: users' calls must not queue behind unauthenticated clients'."""

    def __init__(self) -> None:
        self._pool: ThreadPool | None = None

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function in the thread and return its result; other greenlets run meanwhile.

        The function must not use gevent's locks or sockets. Without an event loop it is called directly.
        """
        if not has_loop():
            return function(*args, **kwargs)
        if self._pool is None:
            self._pool = ThreadPool(1)
        result: R = self._pool.apply(function, args, kwargs)
        return result


def lower_priority(niceness: int) -> None:
    """Lower the priority of the current thread. Linux only; elsewhere nothing changes."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, _thread.get_native_id(), niceness)


# Runs Python code in a thread. One call at a time: more threads would compete with the event loop for the GIL.
compute_in_thread = SingleThread().run


class ParkedWorker:
    """A function with a greenlet that is parked between calls: spawning one often costs more than the call."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._greenlet: gevent.Greenlet | None = None
        self._is_asked = False
        self._is_idle = False

    def ask(self) -> None:
        """Schedule one call of the function, for all requests before it starts. It must handle its own errors."""
        self._is_asked = True
        if self._greenlet is None or self._greenlet.dead:  # dead: killed before its start
            self._greenlet = gevent.spawn(self._run)
        elif self._is_idle:  # else the function is blocked, and only its own event may switch to it
            self._is_idle = False
            gevent.get_hub().loop.run_callback(self._greenlet.switch)

    def _run(self) -> None:
        try:
            while True:
                while self._is_asked:
                    self._is_asked = False
                    self._function()
                self._is_idle = True
                gevent.get_hub().switch()
        finally:  # killed, or failed: the next request spawns another
            self._greenlet, self._is_idle = None, False
            if self._is_asked:
                self.ask()


def soon(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Spawn a call; without an event loop, call directly. The function must handle its own errors."""
    if has_loop():
        gevent.spawn(function, *args, **kwargs)
    else:
        function(*args, **kwargs)
