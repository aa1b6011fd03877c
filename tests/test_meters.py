"""Durations in bins, and what a worker measures itself."""

import random

import pytest

from chatapp import histograms
from chatapp.meters import Meters


def test_percentiles_are_within_their_bin() -> None:
    chance = random.Random(1)
    values = [chance.lognormvariate(4, 1.5) for _ in range(20_000)]
    whole: histograms.Histogram = {}
    for value in values:
        histograms.add(whole, value)
    values.sort()
    for share in (0.01, 0.5, 0.9, 0.95, 0.99):
        exact = max(1.0, values[int(share * len(values)) - 1])
        assert histograms.percentile_ms(whole, share) == pytest.approx(exact, rel=0.1)
    assert histograms.total(whole) == len(values)


def test_histograms_add_up() -> None:
    one, other, both = {}, {}, {}  # type: ignore[var-annotated]
    for number in range(1000):
        histograms.add(one if number % 3 else other, number)
        histograms.add(both, number)
    histograms.merge(one, other)
    assert one == both
    assert (
        histograms.percentile_ms({}, 0.5) is None
        and histograms.bin_of(0) == 0
        and histograms.bin_of(1e12) == histograms.BINS - 1
    )
    for wrong in ({str(histograms.BINS): 1}, {"-1": 1}, {"x": 1}, {"1": -1}):
        with pytest.raises(ValueError):
            histograms.merge({}, wrong)


def test_a_worker_knows_its_last_minutes_and_all() -> None:
    now = [0.0]
    meters = Meters(clock=lambda: now[0])
    for minute in range(20):
        now[0] = 60.0 * minute
        for _ in range(minute + 1):
            meters.observe("post", 0.02)
    assert histograms.total(meters.totals()["post"]) == sum(range(1, 21))
    assert histograms.total(meters.recent()["post"]) == 16 + 17 + 18 + 19 + 20
    now[0] += 3600
    assert meters.recent() == {} and histograms.total(meters.totals()["post"]) == sum(range(1, 21))
    meters.count("errors")
    meters.count("errors", 2)
    assert meters.counts == {"errors": 3}
