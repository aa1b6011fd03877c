"""Quotas on stored data of each person: leaky buckets in the memory of each worker.

They stop a script in a loop before it fills the disk; people stay far below them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from chatapp.cache import Cache

MOST_PEOPLE, PERSON_BYTES = 10_000, 400
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
        # (since when, monotonic; the level of each bucket then) by person.
        self._used: Cache[Hashable, tuple[float, list[float]]] = Cache(MOST_PEOPLE, MOST_PEOPLE * PERSON_BYTES)

    def consume(self, person: Hashable, *amounts: float) -> float:
        """Consume an amount of each rate. Return 0, or if one is exceeded consume nothing and return the wait in s."""
        now = self._clock()
        before, used = self._used.get(person) or (now, [0.0] * len(self._rates))
        left = [max(0.0, one - (now - before) * rate.per_s) for one, rate in zip(used, self._rates, strict=True)]
        wanted = [one + amount for one, amount in zip(left, amounts, strict=True)]
        # Within 1 ms is rounding: a client that waited as long as requested must pass.
        wait_s = max((one - rate.burst) / rate.per_s for one, rate in zip(wanted, self._rates, strict=True))
        is_possible = wait_s <= 0.001
        self._used.put(person, (now, wanted if is_possible else left), PERSON_BYTES)
        return 0.0 if is_possible else wait_s


class Quotas:
    """The quotas of each person."""

    def __init__(self) -> None:
        # Connection events (number, bytes): the burst is an hour of a network that flaps each second.
        self.events = Quota(Rate(3600, 0.5), Rate(1 << 20, 512))
        self.conversations = Quota(Rate(300, 0.25))  # created
