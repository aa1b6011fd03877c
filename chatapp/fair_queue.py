"""A bounded queue that is fair between addresses, for unauthenticated requests.

The address with the fewest recent attempts is next, and the one with the most loses its place when the queue is full.
Behind an undeclared proxy, all clients count as one address.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Network, ip_address
from operator import attrgetter

import gevent
from gevent.event import AsyncResult

MOST_ADDRESSES = 4096  # with counted attempts; the least recent is dropped first
HALF_LIFE_S = 60.0  # of an attempt's weight
REFUSE_AFTER_S = 1.0
MOST_REFUSED = 200  # waiting; each holds a request
GONE_PENALTY = 1e9  # attempts added for a client that has disconnected
PREFIX_BITS = 64  # of IPv6, as assigned; the owner chooses the rest


class Full(Exception):
    """The queue is full of addresses with fewer attempts."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A waiting request."""

    rank: tuple[float, int]  # attempts and number; the lowest is next
    result: AsyncResult  # True: admitted; False: displaced
    has_left: Callable[[], bool]


RANK = attrgetter("rank")


class Attempts:
    """Recent attempts by address, decaying."""

    def __init__(self) -> None:
        self._attempts: dict[str, tuple[float, float]] = {}  # number, and its time

    def count(self, address: str, more: float = 1.0) -> float:
        """Count an attempt, or take one back with -1; returns the address's new number."""
        address, now = prefix(address), time.monotonic()
        attempts, since = self._attempts.pop(address, (0.0, now))
        attempts = max(0.0, attempts * float(0.5 ** ((now - since) / HALF_LIFE_S)) + more)
        if len(self._attempts) >= MOST_ADDRESSES:
            del self._attempts[next(iter(self._attempts))]
        self._attempts[address] = (attempts, now)
        return attempts


class FairQueue:
    """Waiting requests; `attempts` may be shared by several queues."""

    def __init__(self, most_waiting: int, attempts: Attempts | None = None) -> None:
        self._most_waiting = most_waiting
        self.attempts = attempts or Attempts()
        self._waiting: dict[Waiter, None] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(
        self,
        attempts: float,
        on_cancelled: Callable[[], object] | None = None,
        has_left: Callable[[], bool] = lambda: False,
    ) -> None:
        """Return when admitted by `let_next`. Raises Full.

        on_cancelled: passes the turn on, instead of `let_next`, if the greenlet is killed once admitted. has_left: True
        for a disconnected client, which is admitted after all others."""
        self._number += 1
        waiter = Waiter((attempts, self._number), AsyncResult(), has_left)
        self._waiting[waiter] = None
        if len(self._waiting) > self._most_waiting:
            last = max(self._waiting, key=RANK)
            del self._waiting[last]
            last.result.set(False)
        is_mine = False
        try:
            is_mine = waiter.result.get()
        finally:
            if waiter in self._waiting:
                del self._waiting[waiter]
            elif not is_mine and waiter.result.value:
                (on_cancelled or self.let_next)()
        if not is_mine:
            raise Full

    def let_next(self) -> bool:
        """Admit the next request; returns False if the queue is empty."""
        if not self._waiting:
            return False
        waiter = min(self._waiting, key=RANK)
        while waiter.rank[0] < GONE_PENALTY and waiter.has_left():
            waiter.rank = (waiter.rank[0] + GONE_PENALTY, waiter.rank[1])
            waiter = min(self._waiting, key=RANK)
        del self._waiting[waiter]
        waiter.result.set(True)
        return True


class Refusals:
    """Delayed refusals: an immediate one would only bring the next request sooner. At most MOST_REFUSED wait."""

    def __init__(self) -> None:
        self._waiting = 0

    def wait(self) -> None:
        """Return after a random delay around REFUSE_AFTER_S, so that refusals do not end together."""
        if self._waiting >= MOST_REFUSED:
            return
        self._waiting += 1
        try:
            gevent.sleep(REFUSE_AFTER_S * (0.5 + random.random()))
        finally:
            self._waiting -= 1


@lru_cache(MOST_ADDRESSES)
def prefix(address: str) -> str:
    """Return the address itself, or of IPv6 its network of PREFIX_BITS."""
    try:
        found = ip_address(address)
    except ValueError:  # a unix socket has none
        return address
    if found.version == 4 or found.ipv4_mapped:
        return str(found)
    return str(IPv6Network((found, PREFIX_BITS), strict=False))
