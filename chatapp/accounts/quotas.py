"""How much one person may have stored in a while: leaky buckets, in memory, in each worker.

What a person does stays far below; what a script does in a loop meets the edge, and the disk does not fill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from chatapp.cache import Cache

MOST_PEOPLE, PERSON_BYTES = 10_000, 400
EVENT_BYTES = 300  # of a stored connection event, without its free part


@dataclass(frozen=True)
class Rate:
    """So much at once, and so much more each second."""

    burst: float
    per_s: float


class Quota:
    """What each person has left of something, by one or more rates that hold together."""

    def __init__(self, *rates: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        # What was taken and has not come back, and as of when.
        self._taken: Cache[Hashable, tuple[float, list[float]]] = Cache(MOST_PEOPLE, MOST_PEOPLE * PERSON_BYTES)

    def take(self, person: Hashable, *amounts: float) -> float:
        """Take an amount of each rate: 0 where that was possible; else nothing is taken, and it is so many seconds."""
        now = self._clock()
        before, taken = self._taken.get(person) or (now, [0.0] * len(self._rates))
        left = [max(0.0, one - (now - before) * rate.per_s) for one, rate in zip(taken, self._rates, strict=True)]
        wanted = [one + amount for one, amount in zip(left, amounts, strict=True)]
        # Less than a thousandth is the clock's rounding; who waited as long as was said must not wait again.
        wait_s = max((one - rate.burst) / rate.per_s for one, rate in zip(wanted, self._rates, strict=True))
        is_possible = wait_s <= 0.001
        self._taken.put(person, (now, wanted if is_possible else left), PERSON_BYTES)
        return 0.0 if is_possible else wait_s


class Quotas:
    """What is limited for each person."""

    def __init__(self) -> None:
        # Of connection events (their number and bytes): an hour of a network that comes and goes each second at once.
        self.events = Quota(Rate(3600, 0.5), Rate(1 << 20, 512))
        self.conversations = Quota(Rate(300, 0.25))  # begun
