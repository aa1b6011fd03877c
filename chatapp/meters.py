"""Counts and durations of this worker, by name. Cheap enough for every message."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from chatapp import histograms
from chatapp.histograms import Histogram

RECENT_MINUTES = 5


class Meters:
    """Counts and histograms of this worker, by name. Cheap enough for every message."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.counts: dict[str, int] = {}
        self._older: dict[str, Histogram] = {}  # of minutes that are over
        self._minutes: deque[tuple[int, dict[str, Histogram]]] = deque()

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to a histogram."""
        minute = int(self._clock() // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._begin(minute)
        some = self._minutes[-1][1]
        histograms.add(some.get(name) or some.setdefault(name, {}), 1000 * seconds)

    def _begin(self, minute: int) -> None:
        self._minutes.append((minute, {}))
        while len(self._minutes) > RECENT_MINUTES:
            _merge_all(self._older, self._minutes.popleft()[1])

    def totals(self) -> dict[str, Histogram]:
        """Return the histograms since the start."""
        whole = {name: dict(histogram) for name, histogram in self._older.items()}
        for _minute, some in self._minutes:
            _merge_all(whole, some)
        return whole

    def recent(self) -> dict[str, Histogram]:
        """Return the histograms of the last minutes."""
        oldest = self._clock() // 60 - RECENT_MINUTES
        whole: dict[str, Histogram] = {}
        for minute, some in self._minutes:
            if minute > oldest:
                _merge_all(whole, some)
        return whole


def _merge_all(whole: dict[str, Histogram], some: dict[str, Histogram]) -> None:
    for name, histogram in some.items():
        histograms.merge(whole.setdefault(name, {}), histogram)
