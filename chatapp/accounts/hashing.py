"""Password hashing on behalf of unauthenticated clients: one at a time, from a bounded, fair queue.

One hash takes some 0.1 s and 32 MB.
"""

from __future__ import annotations

import fcntl
import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from werkzeug.security import check_password_hash, generate_password_hash

from chatapp.concurrency import SingleThread, has_loop, lower_priority
from chatapp.fair_queue import Attempts, FairQueue, Full, Refusals

MOST_WAITING = 16  # some 2 s of hashing
SIGN_IN_ATTEMPTS = 3  # attempts: the page, the form and the password
NICENESS = 10  # of the thread: on a shared core the event loop goes first

R = TypeVar("R")


class Busy(Exception):
    """The queue is full. `retry_s`: the value of Retry-After."""

    def __init__(self, retry_s: int) -> None:
        super().__init__("too many passwords wait to be checked")
        self.retry_s = retry_s


class Hashing:
    """The hashing queue of one process. `lock`: a file that serialises hashing among the processes of one host."""

    def __init__(self, lock: Path | None = None, attempts: Attempts | None = None) -> None:
        self._lock = lock
        self._thread = SingleThread()
        self._queue = FairQueue(MOST_WAITING, attempts)
        self._is_busy = False
        self._refusals = Refusals()
        self._average_s = 0.1

    def check(
        self, address: str, password_hash: str | None, password: str, has_left: Callable[[], bool] = lambda: False
    ) -> bool:
        """Return True if the password is right. Without a hash: False, after the same time. Raises Busy."""
        is_right = self._run(address, has_left, partial(_matches, password_hash, password))
        if is_right:
            self._queue.attempts.count(address, -SIGN_IN_ATTEMPTS)
        return is_right

    def make(self, address: str, password: str) -> str:
        """Return the hash of a password. Raises Busy."""
        return self._run(address, lambda: False, partial(generate_password_hash, password))

    def _run(self, address: str, has_left: Callable[[], bool], function: Callable[[], R]) -> R:
        if not has_loop():
            return function()
        with self._turn(address, has_left):
            started = time.monotonic()
            result = self._thread.run(partial(self._run_exclusively, function))
            self._average_s = 0.8 * self._average_s + 0.2 * (time.monotonic() - started)
            return result

    def _run_exclusively(self, function: Callable[[], R]) -> R:
        """Run in the thread, under the lock: the memory of concurrent hashes adds up."""
        lower_priority(NICENESS)
        if self._lock is None:
            return function()
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return function()

    @contextmanager
    def _turn(self, address: str, has_left: Callable[[], bool]) -> Iterator[None]:
        attempts = self._queue.attempts.count(address)
        try:
            if self._is_busy:
                self._queue.wait(attempts, self._let_next, has_left)
        except Full:
            retry_s = math.ceil(self._average_s * (MOST_WAITING + 1))
            self._refusals.wait()
            raise Busy(retry_s) from None
        self._is_busy = True
        try:
            yield
        finally:
            self._let_next()

    def _let_next(self) -> None:
        self._is_busy = self._queue.let_next()


def _matches(password_hash: str | None, password: str) -> bool:
    is_right = check_password_hash(password_hash or _dummy_hash(), password)
    return is_right and password_hash is not None


@cache
def _dummy_hash() -> str:
    """Return a hash for unknown addresses, so that they take as long as a wrong password."""
    return generate_password_hash(secrets.token_hex(8))
