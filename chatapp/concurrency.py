"""Run what takes over 10 ms beside the event loop, in a real thread, so that nobody else waits for it."""

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
    """Whether an event loop serves this process, as gunicorn's worker does."""
    return bool(monkey.is_module_patched("threading"))


class SingleThread:
    """One real thread beside the event loop, made at its first use. What is given to it runs in turn, so each kind of
    work has one of its own: what people wait for must not stand behind what strangers ask for."""

    def __init__(self) -> None:
        self._pool: ThreadPool | None = None

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Wait for the disk or for C code in the thread, and let others run meanwhile.

        Without an event loop: call it here. The function must not touch locks, sockets or anything else of gevent's.
        """
        if not has_loop():
            return function(*args, **kwargs)
        if self._pool is None:
            self._pool = ThreadPool(1)
        result: R = self._pool.apply(function, args, kwargs)
        return result


def lower_priority(niceness: int) -> None:
    """Have this thread stand back for all others. Linux has that for each thread; elsewhere nothing changes."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, _thread.get_native_id(), niceness)


_computing = SingleThread()


def compute_in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Compute in Python beside the event loop: one thing at a time, or the loop would wait its turn behind all."""
    return _computing.run(function, *args, **kwargs)


class ParkedWorker:
    """A function and the greenlet that it runs in whenever it is asked for: to make one each time costs more than
    many a thing that it is made for."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._greenlet: gevent.Greenlet | None = None
        self._is_asked = False
        self._is_idle = False

    def ask(self) -> None:
        """Have it run soon, once for all who ask until it begins. It has to deal with its own errors."""
        self._is_asked = True
        if self._greenlet is None or self._greenlet.dead:  # the latter was ended before it began
            self._greenlet = gevent.spawn(self._run)
        elif self._is_idle:  # else it waits for something, and only that may wake it
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
        finally:  # it was ended, or failed: the next one starts over
            self._greenlet, self._is_idle = None, False
            if self._is_asked:
                self.ask()


def soon(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Have it done without waiting for it; at once without an event loop. It has to deal with its own errors."""
    if has_loop():
        gevent.spawn(function, *args, **kwargs)
    else:
        function(*args, **kwargs)
