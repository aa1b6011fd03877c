"""Drills: faults injected into the running server for a bounded time, and a report on the clients' reactions.

A drill is a row of the database, so that every worker applies it, the command needs no signal, and it ends at `ends_at`
even if nobody ends it. The faults:

refuse  cuts every WebSocket once, and refuses new ones (403)
close   cuts every WebSocket, again every 10 s
mute    WebSockets stay open, and nothing passes; they are cut at the end, since data was lost
delay   polls, posts, upgrades and frames from the client reach the server `amount_s` late
429     polls, posts and upgrades are answered 429, with a Retry-After of `amount_s`
"""

import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime
from threading import Event, Thread
from typing import Any

from flask import Flask, Response, request

from chatapp.accounts.auth import Auth
from chatapp.bus import ACCESS, Bus
from chatapp.config import DrillSlot
from chatapp.connection_states import is_connected
from chatapp.store import ConnectionEvent, Drill, DrillRunning, Store
from chatapp.transports.websocket import WebSockets

CLOSE_EVERY_S = 10.0
LOOK_EVERY_S = 0.1  # during a drill: the longest delay until a new WebSocket is mute
LOOK_SELDOM_S = 1.0  # without one: the longest delay of a scheduled start
SETTLE_MS = 60_000  # after the end: until then the report counts returning clients
AMOUNTS_S = {"delay": 2.0, "429": 5.0}  # defaults

UPGRADE = "websocket_route"
# The endpoints of transports and posts; pages and connection tests keep working.
AFFECTED = {UPGRADE, "changes.show", "conversations.post", "conversations.create"}

log = logging.getLogger("chatapp.drill")


class Drills:
    """This worker's part in drills."""

    def __init__(self, store: Store, bus: Bus, websockets: WebSockets, schedule: tuple[DrillSlot, ...]) -> None:
        self._store = store
        self._bus = bus
        self._websockets = websockets
        self._schedule = schedule
        self._running: Drill | None = None
        self._ends_at = 0.0  # of the running one, monotonic: the wall clock may be set back meanwhile
        self._ended_uuid = ""  # id of the last one, which may still be running by the wall clock
        self._cut_at = -math.inf  # monotonic, s
        self._minute = ""
        self._must_reload = True
        self._wake = Event()
        self._is_stopped = False

    def start(self) -> None:
        """Apply drills until `stop`, in a thread or, under gevent, a greenlet."""
        self._bus.subscribe(ACCESS, self._on_change)
        Thread(target=self._watch, name="chatapp-drill", daemon=True).start()

    def stop(self) -> None:
        """Stop applying drills."""
        self._is_stopped = True
        self._wake.set()

    @property
    def is_running(self) -> bool:
        """True during a drill of any person."""
        return self._running is not None

    def on(self, person: int) -> Drill | None:
        """Return the drill that now affects this person, or None."""
        drill = self._running
        if drill is None or self._ends_at <= time.monotonic() or drill.person_id not in (None, person):
            return None
        return drill

    def left_ms(self, person: int) -> int:
        """Return the ms left of this person's drill; 0 if there is none."""
        return round((self._ends_at - time.monotonic()) * 1000) if self.on(person) else 0

    def step(self) -> None:
        """Start, end and apply drills as due by the clock and the database."""
        self._start_scheduled(datetime.now())
        if self._must_reload:
            self._must_reload = False
            found = self._store.drills.running()
            self._switch_to(None if found and found.uuid == self._ended_uuid else found)
        if self._running and self._ends_at <= time.monotonic():
            self._switch_to(None)
        if self._running:
            self._apply_fault(self._running)

    def _on_change(self, _topic: int) -> None:
        self._must_reload = True
        self._wake.set()

    def _watch(self) -> None:
        while not self._is_stopped:
            try:
                self.step()
            except Exception:  # the outermost handler of the loop, which must go on to end the drill
                log.exception("a drill's step failed")
            self._wake.wait(LOOK_EVERY_S if self._running else LOOK_SELDOM_S)
            self._wake.clear()
        self._switch_to(None)

    def _start_scheduled(self, now: datetime) -> None:
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
                    pass  # started by another worker, or another drill is running

    def _switch_to(self, drill: Drill | None) -> None:
        before, self._running = self._running, drill
        if drill == before:
            return
        if before is not None:
            self._ended_uuid = before.uuid
            log.warning("drill %s ended: %s", before.uuid, before.fault)
            self._remove_faults(before)
        if drill is not None:
            self._cut_at, seconds = -math.inf, drill.left_s()
            self._ends_at = time.monotonic() + seconds
            affected = "everybody" if drill.person_id is None else f"person {drill.person_id}"
            log.warning("drill %s begins: %s for %.0f s, %s", drill.uuid, drill.fault, seconds, affected)
            for socket in self._websockets.of(drill.person_id):
                socket.announce_drill(round(seconds * 1000))

    def _apply_fault(self, drill: Drill) -> None:
        cuts = drill.fault == "close" or (drill.fault == "refuse" and self._cut_at < 0)
        if cuts and time.monotonic() - self._cut_at >= CLOSE_EVERY_S:
            self._cut_at = time.monotonic()
            for socket in self._websockets.of(drill.person_id):
                socket.cut()
        elif drill.fault == "mute":
            for socket in self._websockets.of(drill.person_id):
                socket.is_mute = True
        elif drill.fault == "delay":
            for socket in self._websockets.of(drill.person_id):
                socket.delay_s = drill.amount_s

    def _remove_faults(self, drill: Drill) -> None:
        for socket in self._websockets.of(drill.person_id):
            socket.delay_s = 0.0
            if socket.is_mute:
                socket.cut()


def init_faults(app: Flask, drills: Drills, auth: Auth) -> None:
    """Inject faults into requests, by a `before_request` hook: one comparison without a drill.

    Call it before the hooks of the transports are added.
    """

    @app.before_request
    def inject() -> Any:
        if not drills.is_running or request.endpoint not in AFFECTED:
            return None
        session = auth.current()
        drill = drills.on(session.person.id) if session else None
        return _fault(drill, str(request.endpoint)) if drill else None


def _fault(drill: Drill, endpoint: str) -> Any:
    if drill.fault == "refuse" and endpoint == UPGRADE:
        return Response("A drill refuses WebSockets at the moment.\n", 403, content_type="text/plain")
    if drill.fault == "delay":
        time.sleep(drill.amount_s)
    if drill.fault != "429":
        return None
    retry_s = max(1, math.ceil(min(drill.amount_s, drill.left_s())))
    return {"error": {"code": "drill", "message": "A drill asks for a pause."}}, 429, {"Retry-After": str(retry_s)}


def report(drill: Drill, events: Iterable[ConnectionEvent]) -> dict[str, int | None]:
    """Summarise the clients' reactions by the events from the start of a drill until `SETTLE_MS` after its end.

    Times are ms, by the clocks of clients and server, None if there was none; a gap is a time without either transport.
    """
    pages: defaultdict[str, list[ConnectionEvent]] = defaultdict(list)
    ended = 0
    for event in events:
        if event.type == "state":
            pages[event.client].append(event)
        ended += event.type == "server-close" and event.happened_at < drill.ends_at
    fell = {
        page: at for page, changes in pages.items() if (at := _reached(changes, "polling", drill.starts_at)) is not None
    }
    back = [at for page in fell if (at := _reached(pages[page], "connected", drill.ends_at)) is not None]
    return {
        "pages": len(pages),  # that reported a change of state since the drill's start
        "fell_back": len(fell),  # pages that changed to polling
        "fell_back_ms": _median(fell.values()),  # from the drill's start
        "fell_back_slowest_ms": max(fell.values(), default=None),
        "longest_gap_ms": max((gap for changes in pages.values() for gap in _gaps(changes)), default=None),
        "still_without": sum(not is_connected(changes[-1].state_to) for changes in pages.values()),  # at the end
        "back": len(back),  # pages that fell back and returned to WebSocket after the end
        "back_ms": _median(back),  # from the drill's end
        "back_slowest_ms": max(back, default=None),
        "sockets_ended": ended,  # during the drill, as recorded by the server
    }


def _reached(changes: list[ConnectionEvent], state: str, since: int) -> int | None:
    """Return the first change to a state, in ms after `since`, or None."""
    return next((c.happened_at - since for c in changes if c.state_to == state and c.happened_at >= since), None)


def _gaps(changes: list[ConnectionEvent]) -> list[int]:
    """Return each time without either transport, in ms, from the loss of both to the return of one."""
    gaps, lost_at = [], None
    for change in changes:
        works = is_connected(change.state_to)
        if lost_at is None and not works and is_connected(change.state_from):
            lost_at = change.happened_at
        elif lost_at is not None and works:
            gaps.append(change.happened_at - lost_at)
            lost_at = None
    return gaps


def _median(values: Collection[int]) -> int | None:
    return round(statistics.median(values)) if values else None
