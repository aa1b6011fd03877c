"""The present: the live pages of this moment, and how the server is."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from chatapp import histograms
from chatapp.concurrency import SingleThread
from chatapp.monitoring.figures import Figures
from chatapp.monitoring.rollups import READ_AT_ONCE, minute_of
from chatapp.monitoring.timeline import GRACE_MS, PLANNED, DrillTime, Page, Timeline, best_pages, drill_times
from chatapp.monitoring.worker_rows import FRESH_MS, merged
from chatapp.store import ConnectionEvent, Store
from chatapp.store.measures import MINUTE_MS

LEAST_FREE, LEAST_FREE_BYTES = 0.1, 2 << 30  # of the disk; less than both is trouble
SLOW_COMMIT_MS = 250
PROVIDER_MS = 300_000  # in which answers that failed count
OLD_MS = 3 * MINUTE_MS  # roll-ups that are older say nothing of now


@dataclass(frozen=True)
class ServerState:
    """How the server is. `trouble`: the cause of `causes`, or "slow-disk", "disk", "no-worker"; "" for none."""

    trouble: str
    free_share: float  # of the disk of the data
    free_bytes: int
    commit_p95_ms: float | None
    post_p95_ms: float | None  # from a message's last byte to its acknowledgement
    workers: int
    rss_mb: int
    up_since: int  # ms
    sockets: int
    polls: int
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of the live workers, by their name


@dataclass(frozen=True)
class Present:
    """Live pages, running drills and the server at a moment (ms)."""

    at: int
    pages: dict[str, Page]
    drills: list[DrillTime]
    server: ServerState
    is_current: bool  # roll-ups are kept up to date
    begin: int = 0  # the end of the roll-ups
    figures: Figures = field(default_factory=Figures)  # the counts since `begin`

    @cached_property
    def by_person(self) -> dict[str, Page]:
        """The best page of each person with a live one."""
        return best_pages(self.pages.values())

    @property
    def undrilled(self) -> dict[str, Page]:
        """The page of each person outside drills."""
        return {one: page for one, page in self.by_person.items() if not self.is_drilled(one)}

    def is_drilled(self, person: str) -> bool:
        """Return True if a drill may affect this person now."""
        return any(one.covers(person, self.at) for one in self.drills)


def polling(everybody: Mapping[str, Page]) -> dict[str, Page]:
    """Return the people that poll although nobody planned it."""
    return {one: page for one, page in everybody.items() if page.state == "polling" and page.reason not in PLANNED}


def read_present(store: Store, data_dir: Path, now: int) -> Present:
    """Return the present, from the rows of all workers."""
    newest = store.measures.newest("m")
    begin = newest + MINUTE_MS if newest is not None else minute_of(now) - MINUTE_MS
    is_current = newest is not None and now - begin < OLD_MS
    begin = max(begin, minute_of(now) - OLD_MS) if begin <= now else minute_of(now)
    drills = drill_times(store.drills, now - GRACE_MS)
    events: list[ConnectionEvent] = []
    for batch in store.events.scan(begin, now, READ_AT_ONCE):
        events += batch
        time.sleep(0)  # the event loop's turn
    pages, figures = _thread.run(_move_on, store.measures.live_page_texts(), begin, events, now, drills)
    return Present(now, pages, drills, _server(store, data_dir, now), is_current, begin, figures)


_thread = SingleThread()  # some 100 ms for thousands of pages


def _move_on(
    texts: list[tuple[str, str]], begin: int, events: list[ConnectionEvent], now: int, drills: list[DrillTime]
) -> tuple[dict[str, Page], Figures]:
    timeline = Timeline(begin, {name: Page.load(json.loads(text)) for name, text in texts})
    figures = timeline.run(events, now, drills)
    return timeline.pages, figures


def _server(store: Store, data_dir: Path, now: int) -> ServerState:
    rows = store.measures.workers(now - FRESH_MS)
    disk = shutil.disk_usage(data_dir)
    is_low = disk.free < min(LEAST_FREE * disk.total, LEAST_FREE_BYTES)
    commit = histograms.percentile_ms(merged(rows, "recent", "commit"), 0.95)
    return ServerState(
        trouble=_trouble(store, is_low, commit, len(rows)),
        free_share=disk.free / disk.total,
        free_bytes=disk.free,
        commit_p95_ms=commit,
        post_p95_ms=histograms.percentile_ms(merged(rows, "recent", "post"), 0.95),
        workers=len(rows),
        rss_mb=round(sum(row.get("rss_kib", 0) for row in rows.values()) / 1024),
        up_since=min((row.get("started_at", now) for row in rows.values()), default=now),
        sockets=sum(row.get("sockets", 0) for row in rows.values()),
        polls=sum(row.get("polls", 0) for row in rows.values()),
        rows=rows,
    )


def _trouble(store: Store, is_disk_low: bool, commit: float | None, workers: int) -> str:
    if store.database.failing:
        return "disk-full" if store.database.failing == "full" else "server-storage"
    if not workers:
        return "no-worker"
    if is_disk_low:
        return "disk"
    if store.runs.is_failing(PROVIDER_MS):
        return "provider"
    if commit is not None and commit > SLOW_COMMIT_MS:
        return "slow-disk"
    return ""
