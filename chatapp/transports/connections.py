"""A worker's WebSockets: registry, write scheduler, event log, drain."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import gevent

from chatapp import descriptors
from chatapp.bus import Wake
from chatapp.concurrency import ParkedWorker
from chatapp.config import Settings
from chatapp.store import ConnectionEvent, Store
from chatapp.transports.subscriptions import broadcast
from chatapp.transports.timers import Timed, Timer

RECONNECTS_PER_S = 100  # advised by a draining server
FIRST_RETRY_S = 0.2  # until the next server listens
SLICE_S = 0.004  # of writing before the event loop gets its turn
YIELD_S = 1e-6  # a timer, however short, lets the loop poll its sockets; sleep(0) does so every 50th time only
BATCH_SIZE = 16  # writes between two looks at the clock, some 0.1 ms
MOST_SWEEPS = 8  # concurrent; all but one are blocked
WATCHDOG_S = 0.005  # without a flush: the sweep is blocked, and another one starts
STORE_AFTER_S = 0.1  # collects events for one transaction, which costs more than a row
MOST_STORED = 200  # events in one transaction: it holds the event loop for some 5 ms
FINISH_S = 5.0  # for the closing handshakes of a worker that exits

access = logging.getLogger("gunicorn.access")
log = logging.getLogger("chatapp.websocket")


class Flushable(Protocol):
    """An object with pending output."""

    def flush(self) -> None:
        """Write the pending output."""


class Connection(Flushable, Timed, Protocol):
    """A WebSocket."""

    name: str  # sent in the hello
    is_mute: bool  # for drills
    delay_s: float  # for drills

    @property
    def person(self) -> int:
        """The person's number."""

    def restart(self, advice: str) -> None:
        """Close with 1012 and a retry time."""

    def cut(self) -> None:
        """Close the socket without a close frame."""

    def announce_drill(self, ms: int) -> None:
        """Send that a drill runs for `ms`."""

    def replace(self) -> None:
        """Close in favour of the same browser's newer connection."""


class Broadcast:
    """A fan-out to the subscribers of one feed, in slices."""

    def __init__(self, topic: int, wakes: Iterator[Wake], requeue: Callable[[Broadcast], None]) -> None:
        self._topic = topic
        self._wakes = wakes
        self._requeue = requeue

    def flush(self) -> None:
        """Serve the next subscribers; queue the rest when the slice is over."""
        until = time.monotonic() + SLICE_S
        while several := tuple(islice(self._wakes, BATCH_SIZE)):
            broadcast(self._topic, several)
            if time.monotonic() > until:
                self._requeue(self)
                return


class Connections:
    """The WebSockets of this worker."""

    def __init__(self, shortest_timeout_s: float, store: Callable[..., None]) -> None:
        self.is_draining = False
        self.timer = Timer(min(0.5, shortest_timeout_s / 20))
        self._store = store
        self._connections: dict[str, Connection] = {}  # by name
        self._queue: deque[Flushable] = deque()
        self._sweeps = 0
        self._sweeper = ParkedWorker(self._sweep)
        self._watchdog: Any = None  # a timer of the event loop
        self._is_watchdog_running = False
        self._flushed = self._last_flushed = 0  # flushes so far; and at the watchdog's last look
        self._events: list[ConnectionEvent] = []
        self.long_poll_count = 0
        self._access_lines: list[str] = []
        self._is_storing = False
        self._most = descriptors.for_connections(descriptors.allowed())

    def __len__(self) -> int:
        return len(self._connections)

    def replace(self, name: str, person: int) -> None:
        """Close this person's connection of that name, if it is in this worker: its browser has opened another one."""
        connection = self._connections.get(name)
        if connection is not None and connection.person == person:
            connection.replace()

    def sockets(self, person: int | None) -> list[Connection]:
        """Return the connections of a person, or all, for drills."""
        return [one for one in self._connections.values() if person in (None, one.person)]

    def is_full(self) -> bool:
        """Return True if the file descriptors reserved for connections are in use."""
        return len(self._connections) + self.long_poll_count >= self._most

    def add(self, connection: Connection) -> None:
        """Register a connection; during a drain, close it with 1012."""
        self._connections[connection.name] = connection
        if self.is_draining:
            connection.restart(_advice(0))

    def remove(self, connection: Connection) -> None:
        """Unregister a connection."""
        self._connections.pop(connection.name, None)
        self.timer.clear(connection)

    # Writing. A change may have thousands of readers: one greenlet sweeps over all of them.

    def broadcast(self, topic: int, wakes: Iterator[Wake]) -> None:
        """Schedule the fan-out of a topic."""
        self.wake(Broadcast(topic, wakes, self.wake))

    def wake(self, flushable: Flushable) -> None:
        """Schedule a flush in the next sweep."""
        self._queue.append(flushable)
        if not self._sweeps:
            self._start_sweep()

    def _start_sweep(self) -> None:
        self._sweeps += 1
        if self._sweeps == 1:
            self._sweeper.ask()
        else:
            gevent.spawn(self._sweep)
        self._start_watchdog()

    def _start_watchdog(self) -> None:
        if not self._is_watchdog_running:
            self._watchdog = self._watchdog or gevent.get_hub().loop.timer(0.0, WATCHDOG_S)
            self._watchdog.again(self._check_sweeps, update=True)
            self._is_watchdog_running = True

    def _check_sweeps(self) -> None:
        """Start another sweep if the running ones wait for a long rendering or the disk."""
        is_blocked, self._last_flushed = self._flushed == self._last_flushed, self._flushed
        if not self._sweeps:
            self._watchdog.stop()
            self._is_watchdog_running = False
        elif self._queue and is_blocked and self._sweeps < MOST_SWEEPS:
            self._start_sweep()

    def _sweep(self) -> None:
        until = time.monotonic() + SLICE_S
        try:
            while self._queue:
                self._queue.popleft().flush()
                self._flushed += 1
                if time.monotonic() > until:
                    gevent.sleep(YIELD_S)
                    until = time.monotonic() + SLICE_S
        finally:
            self._sweeps -= 1
            if self._queue and not self._sweeps:  # this greenlet was killed
                self._start_sweep()

    # Events and access log, written in batches

    def record(self, event: ConnectionEvent | None, line: str = "") -> None:
        """Schedule storing an event and writing a line of the access log. Does not block: the event loop calls it."""
        if event is not None:
            self._events.append(event)
        if line:
            self._access_lines.append(line)
        if not self._is_storing:
            self._is_storing = True
            gevent.spawn_later(STORE_AFTER_S, self._store_events)

    def _store_events(self) -> None:
        try:
            while self._events or self._access_lines:
                lines, self._access_lines = self._access_lines, []
                if lines:
                    access.info("%s", "\n".join(lines))
                batch, self._events = self._events[:MOST_STORED], self._events[MOST_STORED:]
                if batch:
                    self._store(*batch)
                gevent.sleep(0)
        finally:
            self._is_storing = False

    # Closing

    def drain(self) -> None:
        """Close all connections with 1012, each with its own retry time."""
        self.is_draining = True
        for number, connection in enumerate(tuple(self._connections.values())):
            connection.restart(_advice(number))

    def finish(self) -> None:
        """Wait for the closing handshakes, then cut the rest. Gunicorn does not know these sockets."""
        end = time.monotonic() + FINISH_S
        while self._connections and time.monotonic() < end:
            gevent.sleep(0.02)
        for connection in tuple(self._connections.values()):
            connection.cut()
        while self._is_storing and time.monotonic() < end + FINISH_S:
            gevent.sleep(0.01)


def make_connections(settings: Settings, store: Store) -> Connections:
    """Return a registry; its timer is as fine as the shortest configured timeout needs."""
    shortest = min(settings.ws_ping_interval, settings.ws_pong_timeout, settings.ws_read_timeout)
    return Connections(min(shortest, settings.ws_write_timeout), store.events.record)


def _advice(number: int) -> str:
    return f"retry={FIRST_RETRY_S + number / RECONNECTS_PER_S:.3f}"
