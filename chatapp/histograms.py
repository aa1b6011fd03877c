"""Histograms of durations: four bins to each doubling from 1 ms, so a percentile is within 9.1 % of the true one.

They merge by addition: percentiles of any range are those of all its values. `static/js/connection/measures.js` has
the same bins, up to a minute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

BINS = 112  # the last one begins after two days
PER_DOUBLING = 4

Histogram = dict[str, int]  # values by bin; keys are texts, as in JSON


def bin_of(ms: float) -> int:
    """Return the bin of a duration."""
    return min(BINS - 1, max(0, round(PER_DOUBLING * math.log2(max(1.0, ms)))))


def middle_ms(number: int) -> float:
    """Return the duration in the middle of a bin."""
    return float(2 ** (number / PER_DOUBLING))


def add(histogram: Histogram, ms: float, count: int = 1) -> None:
    """Count a duration."""
    key = str(bin_of(ms))
    histogram[key] = histogram.get(key, 0) + count


def merge(histogram: Histogram, other: Mapping[str, int]) -> None:
    """Add the counts of another histogram. Raises ValueError for keys that are no bins."""
    for key, count in other.items():
        if not 0 <= int(key) < BINS or not 0 <= count < 1 << 31:
            raise ValueError(key)
        histogram[str(int(key))] = histogram.get(str(int(key)), 0) + count


def total(histogram: Mapping[str, int]) -> int:
    """Return the number of values."""
    return sum(histogram.values())


def percentile_ms(histogram: Mapping[str, int], share: float) -> float | None:
    """Return the duration (ms) that this share of the values does not exceed; None without values."""
    wanted, seen = share * total(histogram), 0
    for number in sorted(map(int, histogram)):
        seen += histogram[str(number)]
        if seen and seen >= wanted:
            return middle_ms(number)
    return None
