"""The thread that keeps minutes, hours and live pages up to date: one worker's, by a lock that its death releases.

Each minute it goes over the events of the last quarter of an hour or two again, so that late reports are absorbed; for
those that are later still, over the day before them. The figures of a minute depend on the events alone, not on when or
how often they came.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread

from chatapp.concurrency import SingleThread
from chatapp.monitoring.figures import Figures, add_up
from chatapp.monitoring.loops import repeat
from chatapp.monitoring.timeline import DrillTime, Page, Timeline
from chatapp.store import ConnectionEvent, now_ms
from chatapp.store.events import Events
from chatapp.store.measures import HOUR_MS, MINUTE_MS, Measures

LOOK_EVERY_S = 2.0
SETTLE_MS = 3_000  # after a minute's end: reports of its last seconds are under way
ABSORBED_MS = 15 * MINUTE_MS  # gone over again each minute
LOOKBACK_MS = 24 * HOUR_MS  # for what a page was before: a connection without an event for longer is unknown
LATE_EVERY_S = 300.0  # between two passes over a day
READ_AT_ONCE = 2000  # events: some 10 ms
PAUSE_S = 0.01


def minute_of(at: int) -> int:
    """Return the start of the minute of a time (ms)."""
    return at - at % MINUTE_MS


def fold(
    base: Timeline, events: Sequence[ConnectionEvent], until: int, drills: Sequence[DrillTime] = (), kept_at: int = 0
) -> tuple[dict[int, Figures], Timeline, Timeline]:
    """Go over the minutes from `base` to `until`. Return their figures, the pages then, and those at `kept_at`."""
    by_minute: dict[int, list[ConnectionEvent]] = defaultdict(list)
    for event in events:
        by_minute[minute_of(event.at)].append(event)
    timeline, kept, rows = base.copy(), base, {}
    for minute in range(base.at, until, MINUTE_MS):
        if minute == kept_at:
            kept = timeline.copy()
        rows[minute] = timeline.run(by_minute[minute], minute + MINUTE_MS, drills)
    return rows, timeline, kept


class Rollups:
    """Thread that rolls up. Without the lock it waits for it."""

    def __init__(
        self, events: Events, measures: Measures, drills_since: Callable[[int], list[DrillTime]], folder: Path
    ) -> None:
        self._events, self._measures = events, measures
        self._drills_since = drills_since
        self._lock_path, self._lock = folder / "rollups.lock", -1
        self._stopped = Event()
        self._thread = SingleThread()
        self._base = Timeline()
        self._started_at = 0  # 0: not begun
        self._last_received = 0
        self._late_at = -LATE_EVERY_S
        self._written: dict[int, Figures] = {}
        self._pages: dict[str, Page] = {}  # as stored
        self.on_minute: list[Callable[[int], None]] = []  # called after each, with its end

    def start(self) -> None:
        """Start the thread (under gevent, a greenlet)."""
        Thread(target=self._run, name="chatapp-rollups", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread, and let another worker go on."""
        self._stopped.set()
        self._unlock()

    def _run(self) -> None:
        repeat(self._look, LOOK_EVERY_S, self._stopped, "rolling up", self._begin_anew)

    def _look(self) -> None:
        if self.is_leader():
            self.step(now_ms())

    def _begin_anew(self) -> None:
        self._started_at = 0

    def is_leader(self) -> bool:
        """Return True in the one worker that rolls up."""
        if self._lock < 0:
            found = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(found)
                return False
            self._lock = found
        return True

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def step(self, now: int) -> None:
        """Roll up the minutes that have ended."""
        until = minute_of(now - SETTLE_MS)
        if not self._started_at or until < self._base.at:  # or the clock was set back
            self._begin(until)
        if until <= self._base.at or until - MINUTE_MS in self._written:
            return
        received, self._last_received = self._last_received, now
        self._absorb_late(received)
        drills = self._drills_since(self._base.at)
        kept_at = until - ABSORBED_MS if until - self._base.at >= 2 * ABSORBED_MS else 0
        events = self._read(self._base.at, until)
        rows, timeline, kept = self._thread.run(fold, self._base, events, until, drills, kept_at)
        self._store(rows, {minute_of(event.at) for event in events})
        self._store_pages(timeline)
        self._base = kept
        self._written = {minute: row for minute, row in self._written.items() if minute >= kept.at}
        for call in self.on_minute:
            call(until)

    def _begin(self, until: int) -> None:
        """Continue after the last leader, or begin."""
        self._started_at, self._written = until, {}
        newest = self._measures.newest("m")
        self._pages = {name: Page.load(values) for name, values in self._measures.live_pages().items()}
        begin = max(until - LOOKBACK_MS, newest + MINUTE_MS) if newest is not None else until - MINUTE_MS
        if begin > until or begin == until - LOOKBACK_MS:  # the clock was set back, or the server was off for long
            self._pages, begin = {}, min(begin, until - MINUTE_MS)
        self._base = Timeline(begin, dict(self._pages))
        self._last_received = now_ms() - LOOKBACK_MS if newest is None else newest

    def _absorb_late(self, received: int) -> None:
        """Count reports of before the base, which came since the last look: of clients that were offline for long."""
        if time.monotonic() - self._late_at < LATE_EVERY_S:
            self._last_received = min(self._last_received, received)
            return
        self._late_at = time.monotonic()
        earliest = self._events.late_since(received, self._base.at)
        if earliest is None:
            return
        begin = max(minute_of(earliest), self._base.at - 14 * LOOKBACK_MS)
        raw = Timeline(begin - LOOKBACK_MS)
        events = self._read(raw.at, self._base.at)
        rows, timeline, _ = self._thread.run(fold, raw, events, self._base.at, self._drills_since(raw.at))
        self._store({at: row for at, row in rows.items() if at >= begin}, {minute_of(event.at) for event in events})
        for event in events:
            if event.at >= begin and event.page:
                if event.page in timeline.pages:
                    self._base.pages[event.page] = timeline.pages[event.page]
                else:
                    self._base.pages.pop(event.page, None)

    def _read(self, start: int, end: int) -> list[ConnectionEvent]:
        found: list[ConnectionEvent] = []
        for batch in self._events.scan(start, end, READ_AT_ONCE):
            found += batch
            self._stopped.wait(PAUSE_S)
        return found

    def _store(self, rows: dict[int, Figures], busy: set[int]) -> None:
        """Store minutes that have changed, and their hours; none in which the server did not run."""
        known = self._measures.between("m", min(rows), max(rows) + 1) if rows else {}
        new = {
            minute: row.dump()
            for minute, row in rows.items()
            if row != self._written.get(minute)
            and (minute >= self._started_at - MINUTE_MS or minute in busy or minute in known)
        }
        self._measures.put("m", {minute: row for minute, row in new.items() if known.get(minute) != row})
        self._written |= rows
        hours = {minute - minute % HOUR_MS for minute in new}
        sums = {hour: self._measures.between("m", hour, hour + HOUR_MS) for hour in hours}
        self._measures.put("h", {hour: add_up(map(Figures.load, rows.values())).dump() for hour, rows in sums.items()})

    def _store_pages(self, timeline: Timeline) -> None:
        changed = {name: page.dump() for name, page in timeline.pages.items() if page != self._pages.get(name)}
        gone = self._pages.keys() - timeline.pages.keys()
        self._measures.keep_pages(changed, gone)
        self._pages = timeline.copy().pages
