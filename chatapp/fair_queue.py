"""A bounded queue that is fair between addresses, for what strangers may ask for.

Who asked least lately is next (fair queuing by attempts): an address that asks again and again waits behind one that
asks for the first time, and loses its place to it where the queue is full. Behind a proxy that is not declared, all are
one address, and wait for one another.
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

MOST_ADDRESSES = 4096  # whose attempts are counted; the one counted longest ago is forgotten first
HALF_LIFE_S = 60.0  # after which an attempt counts half
REFUSE_AFTER_S = 1.0
MOST_REFUSED = 200  # that wait: each holds a request
LEFT = 1e9  # attempts that one counts as who does not wait for the answer any more
PREFIX_BITS = 64  # of an IPv6 address that its owner was given; the rest they choose themselves


class Full(Exception):
    """All places are taken by others who asked less often."""


@dataclass(eq=False, slots=True)
class Turn:
    """One that waits."""

    place: tuple[float, int]  # attempts, and which came first
    result: AsyncResult  # True: it is this one's turn
    has_left: Callable[[], bool]


PLACE = attrgetter("place")


class Attempts:
    """How often each address asked lately."""

    def __init__(self) -> None:
        self._attempts: dict[str, tuple[float, float]] = {}  # how often, as of when

    def count(self, address: str, more: float = 1.0) -> float:
        """Count an attempt, or take one back; returns how many there are now."""
        address, now = prefix(address), time.monotonic()
        attempts, since = self._attempts.pop(address, (0.0, now))
        attempts = max(0.0, attempts * float(0.5 ** ((now - since) / HALF_LIFE_S)) + more)
        if len(self._attempts) >= MOST_ADDRESSES:
            del self._attempts[next(iter(self._attempts))]
        self._attempts[address] = (attempts, now)
        return attempts


class FairQueue:
    """Who waits; `attempts` may be shared by several queues."""

    def __init__(self, most_waiting: int, attempts: Attempts | None = None) -> None:
        self._most_waiting = most_waiting
        self.attempts = attempts or Attempts()
        self._waiting: dict[Turn, None] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(
        self,
        attempts: float,
        pass_on: Callable[[], object] | None = None,
        has_left: Callable[[], bool] = lambda: False,
    ) -> None:
        """Return when `let_next` says so. Raises Full. One that is ended meanwhile passes its turn on, by `pass_on`
        where somebody must know that there may be nobody to take it. One who `has_left` comes after all others."""
        self._number += 1
        turn = Turn((attempts, self._number), AsyncResult(), has_left)
        self._waiting[turn] = None
        if len(self._waiting) > self._most_waiting:
            last = max(self._waiting, key=PLACE)
            del self._waiting[last]
            last.result.set(False)
        is_mine = False
        try:
            is_mine = turn.result.get()
        finally:
            if turn in self._waiting:
                del self._waiting[turn]
            elif not is_mine and turn.result.value:
                (pass_on or self.let_next)()
        if not is_mine:
            raise Full

    def let_next(self) -> bool:
        """It is the next one's turn; False where nobody waits."""
        if not self._waiting:
            return False
        turn = min(self._waiting, key=PLACE)
        while turn.place[0] < LEFT and turn.has_left():
            turn.place = (turn.place[0] + LEFT, turn.place[1])
            turn = min(self._waiting, key=PLACE)
        del self._waiting[turn]
        turn.result.set(True)
        return True


class Refusals:
    """Those that are refused: at once, an answer would only bring the next request sooner. So they wait a while, and
    not all for the same time, or they would end together; where many wait already, the next ones do not."""

    def __init__(self) -> None:
        self._waiting = 0

    def wait(self) -> None:
        """Return when this one may be answered."""
        if self._waiting >= MOST_REFUSED:
            return
        self._waiting += 1
        try:
            gevent.sleep(REFUSE_AFTER_S * (0.5 + random.random()))
        finally:
            self._waiting -= 1


@lru_cache(MOST_ADDRESSES)
def prefix(address: str) -> str:
    """Whom an address stands for: one of IPv6 for all that its owner may choose from."""
    try:
        found = ip_address(address)
    except ValueError:  # a unix socket has none
        return address
    if found.version == 4 or found.ipv4_mapped:
        return str(found)
    return str(IPv6Network((found, PREFIX_BITS), strict=False))
