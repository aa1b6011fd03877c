"""Drills: the running server fails on purpose, for a bounded time, and reports what clients made of it.

A drill is a row of the database, so that every worker obeys, a command needs no signal, and all of it ends by itself
(`ends_at`), also where nobody is left to end it. Only the faults named here exist.

refuse  cuts every WebSocket once, and refuses new ones (403)
close   cuts every WebSocket, again every 10 s
mute    WebSockets stay open, and nothing passes; at the end they are cut, for what was swallowed is lost
delay   polls, posts, upgrades and what comes by WebSocket reach the server `amount_s` late
429     polls, posts and upgrades are answered 429, with a Retry-After of `amount_s`
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from threading import Event, Thread
from typing import Protocol

from chatapp.bus import ACCESS, Bus
from chatapp.config import DrillSlot
from chatapp.store import ConnectionEvent, Drill, DrillRunning, Store

CLOSE_EVERY_S = 10.0
LOOK_EVERY_S = 0.1  # during a drill: how late a new WebSocket falls mute
LOOK_SELDOM_S = 1.0  # without one: how late a scheduled one begins
SETTLE_MS = 60_000  # how long after its end a client that comes back still counts
AMOUNTS_S = {"delay": 2.0, "429": 5.0}  # where none is asked for

log = logging.getLogger("chatapp.drill")


class Faulty(Protocol):
    """A WebSocket's bytes, as a drill can spoil them."""

    is_mute: bool
    delay_s: float

    def cut(self) -> None:
        """Cut it."""

    def announce_drill(self, ms: int) -> None:
        """Say that a drill runs for so long."""


Sockets = Callable[[int | None], Iterable[Faulty]]


class Drills:
    """This worker's part in drills. `sockets(person)` are its WebSockets, those of all where nobody is named."""

    def __init__(self, store: Store, bus: Bus, sockets: Sockets, schedule: tuple[DrillSlot, ...]) -> None:
        self._store = store
        self._bus = bus
        self._sockets = sockets
        self._schedule = schedule
        self._running: Drill | None = None
        self._ends_at = 0.0  # of the running one, by the monotonic clock: the wall clock may be set back meanwhile
        self._ended = ""  # the last one, which the wall clock may take for running still
        self._cut_at = -math.inf  # monotonic, s
        self._minute = ""
        self._must_read = True
        self._wake = Event()
        self._is_over = False

    def start(self) -> None:
        """Obey drills until `stop`. Under gevent this is a greenlet."""
        self._bus.subscribe(ACCESS, self._on_change)
        Thread(target=self._watch, name="chatapp-drill", daemon=True).start()

    def stop(self) -> None:
        """Obey no more."""
        self._is_over = True
        self._wake.set()

    @property
    def is_running(self) -> bool:
        """Whether there is any drill."""
        return self._running is not None

    def on(self, person: int) -> Drill | None:
        """The drill that this person is part of now."""
        drill = self._running
        if drill is None or self._ends_at <= time.monotonic() or drill.person_id not in (None, person):
            return None
        return drill

    def left_ms(self, person: int) -> int:
        """How long this person's drill still runs; 0 where there is none."""
        return round((self._ends_at - time.monotonic()) * 1000) if self.on(person) else 0

    def step(self) -> None:
        """Look at clock and database, and do what is to be done now."""
        self._begin_scheduled(datetime.now())
        if self._must_read:
            self._must_read = False
            found = self._store.drills.running()
            self._change(None if found and found.uuid == self._ended else found)
        if self._running and self._ends_at <= time.monotonic():
            self._change(None)
        if self._running:
            self._apply(self._running)

    def _on_change(self, _topic: int) -> None:
        self._must_read = True
        self._wake.set()

    def _watch(self) -> None:
        while not self._is_over:
            try:
                self.step()
            except Exception:  # the outermost line of a loop that must see to the drill's end
                log.exception("a drill's step failed")
            self._wake.wait(LOOK_EVERY_S if self._running else LOOK_SELDOM_S)
            self._wake.clear()
        self._change(None)

    def _begin_scheduled(self, now: datetime) -> None:
        minute = now.strftime("%Y-%m-%d %H:%M")
        if minute == self._minute:
            return
        self._minute = minute
        for slot in self._schedule:
            if slot.is_at(now):
                amount = AMOUNTS_S.get(slot.fault, 0.0)
                try:
                    self._store.drills.start(slot.fault, slot.seconds, amount, slot=f"{minute} {slot.fault}")
                except DrillRunning:
                    pass  # another worker began it, or a drill is running already

    def _change(self, drill: Drill | None) -> None:
        before = self._running
        if drill == before or (drill and before and drill.uuid == before.uuid and drill.ends_at == before.ends_at):
            return
        self._running = drill
        if before is not None and (drill is None or drill.uuid != before.uuid):
            self._ended = before.uuid
            log.warning("drill %s ended: %s", before.uuid, before.fault)
            self._heal(before)
        if drill is not None and (before is None or drill.uuid != before.uuid):
            self._cut_at, seconds = -math.inf, drill.left_s()
            self._ends_at = time.monotonic() + seconds
            whom = "everybody" if drill.person_id is None else f"person {drill.person_id}"
            log.warning("drill %s begins: %s for %.0f s, %s", drill.uuid, drill.fault, seconds, whom)
            for socket in self._sockets(drill.person_id):
                socket.announce_drill(round(seconds * 1000))

    def _apply(self, drill: Drill) -> None:
        cuts = drill.fault == "close" or (drill.fault == "refuse" and self._cut_at < 0)
        if cuts and time.monotonic() - self._cut_at >= CLOSE_EVERY_S:
            self._cut_at = time.monotonic()
            for socket in self._sockets(drill.person_id):
                socket.cut()
        elif drill.fault == "mute":
            for socket in self._sockets(drill.person_id):
                socket.is_mute = True
        elif drill.fault == "delay":
            for socket in self._sockets(drill.person_id):
                socket.delay_s = drill.amount_s

    def _heal(self, drill: Drill) -> None:
        for socket in self._sockets(drill.person_id):
            socket.delay_s = 0.0
            if socket.is_mute:
                socket.cut()


@dataclass(frozen=True)
class DrillReport:
    """What clients did. Milliseconds by the clocks of clients and server; None where nobody did it."""

    pages: int  # of people, that reported a change of state from the drill's start on
    fell_back: int  # pages that went over to polling
    fell_back_ms: int | None  # median, from the drill's start
    fell_back_slowest_ms: int | None
    longest_gap_ms: int | None  # the longest time that a page had neither transport
    still_without: int  # pages without either at the end
    back: int  # of those that fell back: on WebSocket again after the end
    back_ms: int | None  # median, from the drill's end
    back_slowest_ms: int | None
    sockets_ended: int  # by the server's own account, during the drill


def report(drill: Drill, events: Iterable[ConnectionEvent]) -> DrillReport:
    """What happened from the start of a drill until its clients had settled (`SETTLE_MS` after the end)."""
    pages: dict[str, list[ConnectionEvent]] = {}
    ended = 0
    for event in events:
        if event.type == "state":
            pages.setdefault(event.client, []).append(event)
        ended += event.type == "server-close" and event.happened_at < drill.ends_at
    fell = {
        page: at for page, changes in pages.items() if (at := _first(changes, "polling", drill.starts_at)) is not None
    }
    back = [at for page in fell if (at := _first(pages[page], "connected", drill.ends_at)) is not None]
    gaps = [gap for changes in pages.values() for gap in _gaps(changes)]
    without = sum(changes[-1].state_to not in ("connected", "polling") for changes in pages.values())
    return DrillReport(
        pages=len(pages),
        fell_back=len(fell),
        fell_back_ms=_median(fell.values()),
        fell_back_slowest_ms=max(fell.values(), default=None),
        longest_gap_ms=max(gaps, default=None),
        still_without=without,
        back=len(back),
        back_ms=_median(back),
        back_slowest_ms=max(back, default=None),
        sockets_ended=ended,
    )


def _first(changes: list[ConnectionEvent], state: str, since: int) -> int | None:
    """When a page first came into a state, in ms after `since`."""
    return next((c.happened_at - since for c in changes if c.state_to == state and c.happened_at >= since), None)


def _gaps(changes: list[ConnectionEvent]) -> list[int]:
    """How long a page had neither transport, each time that it lost both and got one again."""
    gaps, lost_at = [], None
    for change in changes:
        works = change.state_to in ("connected", "polling")
        if lost_at is None and not works and change.state_from in ("connected", "polling"):
            lost_at = change.happened_at
        elif lost_at is not None and works:
            gaps.append(change.happened_at - lost_at)
            lost_at = None
    return gaps


def _median(values: Iterable[int]) -> int | None:
    found = list(values)
    return round(statistics.median(found)) if found else None
