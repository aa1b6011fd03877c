"""Figures of a day that is over: events are stored and rolled up by a clock of their own, then a server shows them."""

import sqlite3
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from chatapp.bus import Bus
from chatapp.monitoring import rollups as rollups_module
from chatapp.monitoring.rollups import Rollups
from chatapp.store import ConnectionEvent, Store
from chatapp.store import events as events_module
from lab.elements import Element
from lab.http import Client
from lab.server import Server, furnish

MINUTE = 60_000
LATE_EVERY = 5 * MINUTE  # between two looks at what came late, as in the server
NEVER_S = 1e9
FRESH_S = 2.1  # a server shows the present at most so old

Arrivals = list[tuple[int, ConnectionEvent]]  # with the time (ms) at which the server gets them


def roll_up(data: Path, locks: Path, arrivals: Arrivals, start: int, end: int, every: int = MINUTE) -> None:
    """From `start` to `end` (ms): each minute, or more rarely, what has come is stored and rolled up; by the lock in
    another folder where a server must not do it."""
    waiting = sorted(arrivals, key=lambda item: item[0])
    now = start
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(events_module, "now_ms", lambda: now)
        patch.setattr(rollups_module, "now_ms", lambda: now)
        store = Store(Flask("test"), data, Bus())
        stack.callback(store.close)
        rollups = Rollups(store.events, store.measures, lambda since: [], locks)
        stack.callback(rollups.stop)
        done = 0
        while now < end:
            before, now = now, min(end, now + every)
            last = done
            while last < len(waiting) and waiting[last][0] <= now:
                last += 1
            store.events.add([event for _, event in waiting[done:last]])
            done = last
            is_due = now // LATE_EVERY > before // LATE_EVERY or now == end
            patch.setattr(rollups_module, "LATE_EVERY_S", 0.0 if is_due else NEVER_S)
            rollups.step(now)


@dataclass
class Shown:
    """What the monitor shows: the tiles by name, the tables by heading and row."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    affected: list[int] = field(default_factory=list)  # who poll, all people, who are not connected
    level: str = ""
    planned: int = 0
    came_back: int = 0
    page: Element | None = None


def numbers(text: str) -> list[int]:
    """The whole numbers in a text."""
    return [int(word) for word in "".join(c if c.isdigit() else " " for c in text).split()]


def read(page: Element) -> Shown:
    """The page of the monitor."""
    found = Shown(page=page, level=page.one(id="verdict").get("data-level"))
    for tile in page.walk():
        if tile.has("data-metric"):
            text = tile.get("data-value")
            found.metrics[tile.get("data-metric")] = float(text) if text else None
    for section in page.all("section"):
        heading = ""
        for part in section.elements:
            if part.tag == "h2":
                words = [child for child in part.children if isinstance(child, str)]
                heading = "".join(words).strip()
                if heading == "Changes to polling":
                    found.planned, found.came_back = numbers(part.one("span").text)
            elif part.tag == "table":
                rows = [[cell.text.strip() for cell in row.all("td")] for row in part.all("tr")]
                table = found.tables.setdefault(heading, {})
                if heading == "Who is affected":
                    shares = [numbers(row[1])[:2] + numbers(row[2]) for row in rows if len(row) > 2]
                    found.affected = [sum(column) for column in zip(*shares, strict=True)] or [0, 0, 0]
                for *key, number in (row for row in rows if len(row) > 1):
                    name = " | ".join(key)
                    table[name] = table.get(name, 0) + (numbers(number) or [-1])[0]
    return found


def look(operator: Client, span: str = "24h") -> Shown:
    """The monitor's page of a range."""
    answer = operator.get(f"/monitor?range={span}")
    assert answer.status == 200, answer.text[:500]
    return read(answer.page)


class Showing:
    """A server that shows what was rolled up elsewhere: its own lock is taken."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder, assistant="off")
        self.locks = folder / "locks"
        self.locks.mkdir(parents=True)
        self.server.data.mkdir()
        furnish(self.server.data)
        self._store = Store(Flask("test"), self.server.data, Bus())
        self._leader = Rollups(self._store.events, self._store.measures, lambda since: [], self.server.data)
        assert self._leader.is_leader()

    def __enter__(self) -> "Showing":
        self.server.start()
        self._operator = Client(self.server.url).sign_in()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.server.__exit__(*problem)
        self._leader.stop()
        self._store.close()

    def shown(self, arrivals: Arrivals, start: int, end: int, *, now: bool = False) -> Shown:
        """What it shows of these events alone; `now`: of the people who are here, too."""
        with closing(sqlite3.connect(self.server.data / "metrics.db", timeout=20)) as database, database:
            for table in ("connection_events", "rollups", "live_pages"):
                database.execute(f"DELETE FROM {table}")
        roll_up(self.server.data, self.locks, arrivals, start, end, LATE_EVERY)
        time.sleep(FRESH_S if now else 0)
        return look(self._operator)
