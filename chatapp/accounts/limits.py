"""Limits of each person, on what they ask and on what they have stored: leaky buckets.

They stop a script in a loop; people stay far below them. A refusal says when to come again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from chatapp.cache import Cache
from chatapp.config import RateLimit, Settings
from chatapp.store import StorageUnavailable
from chatapp.store.leases import LeaseTable

MOST_PEOPLE, PERSON_BYTES = 10_000, 400
ROUNDING_S = 0.001  # a client that waited as long as requested must pass
EVENT_BYTES = 300  # of a stored connection event, without its `data`


@dataclass(frozen=True)
class Rate:
    """Burst and refill rate of a bucket."""

    burst: float
    per_s: float


class Quota:
    """Buckets of each person, one for each rate; all must allow a use."""

    def __init__(self, *rates: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        # [since when, monotonic; the level of each bucket then] by person; changed in place, at each message.
        self._used: Cache[Hashable, list[float]] = Cache(MOST_PEOPLE, MOST_PEOPLE * PERSON_BYTES)

    def consume(self, person: Hashable, *amounts: float) -> float:
        """Consume an amount of each rate. Return 0, or if one is exceeded consume nothing and return the wait in s."""
        used = self._used.get(person)
        if used is None:
            used = [self._clock(), *[0.0] * len(self._rates)]
            self._used.put(person, used, PERSON_BYTES)
        now = self._clock()
        passed, used[0], wait_s, number = now - used[0], now, 0.0, 1
        for rate, amount in zip(self._rates, amounts, strict=True):  # without calls: for each message
            left = used[number] - passed * rate.per_s
            left = used[number] = left if left > 0.0 else 0.0
            if left + amount > rate.burst:
                wait_s = max(wait_s, (left + amount - rate.burst) / rate.per_s)
            number += 1
        if wait_s > ROUNDING_S:
            return wait_s
        for number, amount in enumerate(amounts, 1):
            used[number] += amount
        return 0.0

    def wait_s(self, person: Hashable, *amounts: float) -> float:
        """Return what `consume` would, and consume nothing."""
        passed = self._clock() - (used := self._used.get(person) or [0.0, *[0.0] * len(self._rates)])[0]
        wait_s = max(
            (max(0.0, level - passed * rate.per_s) + amount - rate.burst) / rate.per_s
            for rate, level, amount in zip(self._rates, used[1:], amounts, strict=True)
        )
        return wait_s if wait_s > ROUNDING_S else 0.0


class Budget:
    """What each person may do in a time, over all transports and in all workers."""

    def __init__(self, kind: str, limit: RateLimit, leases: LeaseTable | None = None) -> None:
        """`leases`: for a budget that several workers share; else no database is asked."""
        self._kind, self._limit, self._leases = kind, limit, leases
        self._own = Quota(Rate(limit.number, limit.per_s)) if limit.number else None
        self._leased: Cache[int, float] = Cache(MOST_PEOPLE, MOST_PEOPLE * PERSON_BYTES)
        self._refused: Cache[int, float] = Cache(MOST_PEOPLE, MOST_PEOPLE * PERSON_BYTES)  # until when, monotonic

    def must_ask(self, person: int) -> bool:
        """Return True if the next use asks the database, which may block."""
        return self._own is not None and self._leases is not None and (self._leased.get(person) or 0.0) < 1

    def take(self, person: int) -> float:
        """Count a use. Return 0, or if the budget is spent count nothing and return the wait in s."""
        if self._own is None:
            return 0.0
        if self._leases is None:
            return self._own.consume(person, 1)
        if (self._leased.get(person) or 0.0) < 1:
            wait_s = self._refused_until(person) - time.monotonic()
            if wait_s > 0 or (wait_s := self._lease(person, self._leases)) > 0:
                return wait_s
        # Read again: while this one asked, others may have been granted some, too.
        self._leased.put(person, (self._leased.get(person) or 0.0) - 1, PERSON_BYTES)
        return 0.0

    def spent_s(self, person: int) -> float:
        """Return the wait in s until a use may be granted. Counts nothing, and asks no database."""
        if self._own is None:
            return 0.0
        if self._leases is None:
            return self._own.wait_s(person, 1)
        return (
            0.0 if (self._leased.get(person) or 0.0) >= 1 else max(0.0, self._refused_until(person) - time.monotonic())
        )

    def _refused_until(self, person: int) -> float:
        return self._refused.get(person) or 0.0

    def _lease(self, person: int, leases: LeaseTable) -> float:
        """Take a second's worth. Return 0, or the wait in s, which is kept: a refusal asks the database once."""
        number, per_s = self._limit.number, self._limit.per_s
        most = max(1.0, per_s)
        try:
            granted, wait_s = leases.take(self._kind, person, number, per_s, most)
        except StorageUnavailable:  # what it is for will fail by itself, and say why
            granted, wait_s = most, 0.0
        if wait_s:
            self._refused.put(person, time.monotonic() + wait_s, PERSON_BYTES)
        self._leased.put(person, (self._leased.get(person) or 0.0) + granted, PERSON_BYTES)
        return wait_s


class Limits:
    """The limits of each person."""

    def __init__(self, settings: Settings, leases: LeaseTable) -> None:
        # Connection events (number, bytes): the burst is an hour of a network that flaps each second.
        self.events = Quota(Rate(3600, 0.5), Rate(1 << 20, 512))
        self.conversations = Quota(Rate(300, 0.25))  # created
        self.members = Quota(Rate(100, 0.1))  # people added, removed, and the like
        self.stored = Quota(Rate(100_000_000, 20_000))  # characters of messages: no person gets there
        workers = settings.workers
        self.sends = Budget("sends", settings.rate_limit_sends, leases if workers > 1 else None)
        # Each worker has its share of these: a poll must wait for no database, which may be locked.
        self.connects = Budget("connects", settings.rate_limit_connects.among(workers))
        self.polls = Budget("polls", settings.rate_limit_polls.among(workers))
        self.pages = Budget("pages", settings.rate_limit_pages.among(workers))

    def send(self, person: int, body: object) -> float:
        """Count a message. Return 0, or the wait in s."""
        return self.sends.take(person) or self.stored.consume(person, len(body) if isinstance(body, str) else 0)
