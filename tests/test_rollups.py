"""Minutes and hours from events as they are stored: late, doubled, in any order, over restarts of who rolls up."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from flask import Flask
from test_timeline import MINUTE, T0, wild, worked

from chatapp.bus import Bus
from chatapp.monitoring import rollups as rollups_module
from chatapp.monitoring.figures import Figures, add_up
from chatapp.monitoring.rollups import Rollups, fold
from chatapp.monitoring.timeline import DrillTime, Timeline
from chatapp.store import Kept, Store, now_ms
from chatapp.store import events as events_module
from chatapp.store.measures import HOUR_MS
from chatapp.store.migrate import migrate
from chatapp.store.retention import Retention


class World:
    """A store, a clock, and who rolls up."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        migrate(folder)
        self.now, self.folder = T0, folder
        self.store = Store(Flask("test"), folder, Bus())
        self.drills: list[DrillTime] = []
        monkeypatch.setattr(events_module, "now_ms", lambda: self.now)
        monkeypatch.setattr(rollups_module, "now_ms", lambda: self.now)
        monkeypatch.setattr(rollups_module, "LATE_EVERY_S", 0.0)
        self.rollups = self.another()

    def another(self) -> Rollups:
        """Another worker takes over, or the server starts again."""
        return Rollups(self.store.events, self.store.measures, lambda since: self.drills, self.folder)

    def minutes(self) -> dict[int, Figures]:
        rows = self.store.measures.between("m", 0, 1 << 60)
        return {at: Figures.load(row) for at, row in rows.items()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.store.close()


@pytest.mark.parametrize("seed", range(6))
def test_however_events_come_the_minutes_are_those_of_the_events(world: World, seed: int) -> None:
    chance = random.Random(seed)
    events = wild(chance).events
    # Most reports are quick, some come minutes later, some an hour; some twice.
    delays = [1500, 2500, 240_000, 3_600_000]
    arrivals = [(one.at + round(chance.choice(delays) * chance.random()), one) for one in events]
    arrivals += [(at + chance.randrange(600_000), one) for at, one in arrivals if chance.random() < 0.2]
    arrivals.sort(key=lambda item: item[0])
    world.now = T0 - 2 * MINUTE
    world.rollups.step(world.now)
    while world.now < T0 + 100 * MINUTE:
        world.now += chance.choice([2_000, 30_000, MINUTE])
        while arrivals and arrivals[0][0] <= world.now:
            world.store.events.add([arrivals.pop(0)[1]])
        if chance.random() < 0.02:
            world.rollups = world.another()
        world.rollups.step(world.now)
    expected, *_ = fold(Timeline(T0 - 2 * MINUTE), events, T0 + 30 * MINUTE)
    begin, end = T0 - 2 * MINUTE, T0 + 30 * MINUTE
    found = {at: row for at, row in world.minutes().items() if begin <= at < end}
    assert found == {at: row for at, row in expected.items() if at in found}
    assert not {at for at, row in expected.items() if row != Figures()} - found.keys()
    for hour, row in world.store.measures.between("h", 0, 1 << 60).items():
        minutes = [one for at, one in world.minutes().items() if hour <= at < hour + HOUR_MS]
        assert Figures.load(row) == add_up(minutes)


def test_a_quiet_minute_is_there_and_one_without_a_server_is_not(world: World) -> None:
    for _ in range(5):
        world.now += MINUTE
        world.rollups.step(world.now)
    quiet = world.minutes()
    assert len(quiet) >= 4 and set(map(repr, quiet.values())) == {repr(Figures())}
    world.now += 30 * MINUTE  # off
    world.rollups = world.another()
    for _ in range(3):
        world.now += MINUTE
        world.rollups.step(world.now)
    times = sorted(world.minutes())
    gaps = [after - before for before, after in pairwise(times) if after - before > MINUTE]
    assert len(gaps) == 1 and 29 * MINUTE <= gaps[0] <= 32 * MINUTE


def test_only_one_worker_rolls_up_and_its_end_frees_the_lock(world: World) -> None:
    other = world.another()
    assert world.rollups.is_leader() and not other.is_leader()
    world.rollups.stop()
    assert other.is_leader()
    other.stop()


def test_a_clock_set_back_does_no_harm(world: World) -> None:
    world.store.events.add(worked().events)
    world.now = T0 + 20 * MINUTE
    world.rollups.step(world.now)
    world.now = T0 + 5 * MINUTE
    world.rollups.step(world.now)
    world.now = T0 + 25 * MINUTE
    world.rollups.step(world.now)
    assert world.minutes()


def test_a_drill_is_left_out(world: World) -> None:
    story = worked()
    world.drills = [DrillTime(None, T0 - MINUTE, T0 + 30 * MINUTE)]
    world.store.events.add(story.events)
    world.rollups.step(T0 - MINUTE + 3000)
    world.now = T0 + 21 * MINUTE
    world.rollups.step(world.now)
    whole = add_up(world.minutes().values())
    assert whole.sessions == [0, 0] and not whole.fallbacks and not whole.state_ms


def test_old_figures_go_and_a_large_database_loses_its_oldest_events(world: World) -> None:
    day = 24 * HOUR_MS
    now = now_ms()
    world.store.measures.put("m", {now - 40 * day: {}, now - 20 * day: {}})
    world.store.measures.put("h", {now - 800 * day: {}, now - 40 * day: {}})
    world.store.events.add([replace(one, data="x" * 2000) for one in wild(random.Random(1)).events])
    Retention(
        world.store.events,
        world.store.measures,
        world.store.alerts,
        world.store.questions,
        Kept(events=1e6),
        world.store.erasure,
    ).purge()
    assert sum(map(len, world.store.events.scan(0, 1 << 60, 1000))) > 50
    assert len(world.store.measures.between("m", 0, 1 << 60)) == 1
    assert len(world.store.measures.between("h", 0, 1 << 60)) == 1
    small = Kept(events=1e6, most_mb=0)
    store = world.store
    Retention(store.events, store.measures, store.alerts, store.questions, small, store.erasure).purge()
    assert not list(world.store.events.scan(0, 1 << 60, 1000)), "as many as needed, here all"
