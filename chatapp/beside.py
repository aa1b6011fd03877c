"""Run what takes over 10 ms beside the event loop, in a real thread, so that nobody else waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gevent
from gevent import monkey
from gevent.threadpool import ThreadPool

P = ParamSpec("P")
R = TypeVar("R")

_computing: list[Any] = []  # this process's one thread for computing, made at its first use


def beside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Wait for the disk or for C code in gevent's thread pool, and let others run meanwhile.

    Without an event loop: call it here. The function must not touch locks, sockets or anything else of gevent's.
    """
    if not monkey.is_module_patched("threading"):
        return function(*args, **kwargs)
    result: R = gevent.get_hub().threadpool.apply(function, args, kwargs)
    return result


def computed_beside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Compute in Python beside the event loop: one thing at a time, or the loop would wait its turn behind all."""
    if not monkey.is_module_patched("threading"):
        return function(*args, **kwargs)
    if not _computing:
        _computing.append(ThreadPool(1))
    result: R = _computing[0].apply(function, args, kwargs)
    return result


def soon(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Have it done without waiting for it; at once without an event loop. It has to deal with its own errors."""
    if monkey.is_module_patched("threading"):
        gevent.spawn(function, *args, **kwargs)
    else:
        function(*args, **kwargs)
