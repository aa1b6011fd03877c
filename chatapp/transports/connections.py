"""What all WebSockets of a worker share: a timer for their time-outs, a sweep that writes, the drain."""

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

RECONNECTS_PER_S = 100  # how densely a draining server asks its clients to come back
FIRST_RETRY_S = 0.2  # the successor needs a moment to listen
SLICE_S = 0.004  # of writing before others get a turn
A_TURN_S = 1e-6  # a timer, however short, lets the loop look at its sockets; sleep(0) does so every 50th time only
AT_ONCE = 16  # writes, some 0.1 ms, before the clock is looked at
MOST_SWEEPS = 8  # at once; each but the last waits for something
RELIEF_S = 0.005  # without a flush: then a sweep waits for something, and the next one takes over
STORE_AFTER_S = 0.1  # events that come together are stored together: a transaction costs more than a row
MOST_STORED = 200  # events in one transaction: it holds the event loop for some 5 ms
FINISH_S = 5.0  # how long a worker that closes waits for its goodbyes

access = logging.getLogger("gunicorn.access")
log = logging.getLogger("chatapp.websocket")


class Flushed(Protocol):
    """What the sweep writes."""

    def flush(self) -> None:
        """Write what there is to write."""


class Connection(Flushed, Timed, Protocol):
    """A WebSocket."""

    name: str  # as the hello says it
    is_mute: bool  # for drills
    delay_s: float

    @property
    def person(self) -> int:
        """Whose it is."""

    def restart(self, advice: str) -> None:
        """Close, and say when to come back."""

    def cut(self) -> None:
        """Close without a word: a drill."""

    def announce_drill(self, ms: int) -> None:
        """Say that a drill runs for so long."""

    def replace(self) -> None:
        """Close: the browser has opened another one."""


class Broadcast:
    """All who wait for the news of one feed: the sweep brings it to one after the other, and gives way between."""

    def __init__(self, topic: int, wakes: Iterator[Wake], again: Callable[[Broadcast], None]) -> None:
        self._topic = topic
        self._wakes = wakes
        self._again = again

    def flush(self) -> None:
        """Bring it to the next ones."""
        until = time.monotonic() + SLICE_S
        while several := tuple(islice(self._wakes, AT_ONCE)):
            broadcast(self._topic, several)
            if time.monotonic() > until:
                self._again(self)
                return


class Connections:
    """This worker's WebSockets."""

    def __init__(self, shortest_timeout_s: float, store: Callable[..., None]) -> None:
        self.is_draining = False
        self.timer = Timer(min(0.5, shortest_timeout_s / 20))
        self._store = store
        self._connections: dict[str, Connection] = {}  # by name
        self._awake: deque[Flushed] = deque()
        self._sweeps = 0
        self._sweeper = ParkedWorker(self._sweep)
        self._relief: Any = None  # the event loop's timer, once there is one
        self._is_watched = False  # whether it runs
        self._flushed = self._seen = 0  # how many were flushed; and how many when the timer looked
        self._events: list[ConnectionEvent] = []
        self.lent = 0  # sockets of held polls
        self._lines: list[str] = []
        self._is_storing = False
        self._most = descriptors.for_connections(descriptors.allowed())

    def __len__(self) -> int:
        return len(self._connections)

    def replace(self, name: str, person: int) -> None:
        """Close this person's connection of that name, if it lives here: its browser has opened another one."""
        connection = self._connections.get(name)
        if connection is not None and connection.person == person:
            connection.replace()

    def sockets(self, person: int | None) -> list[Connection]:
        """For drills: a person's, or all."""
        return [one for one in self._connections.values() if person in (None, one.person)]

    def is_full(self) -> bool:
        """Whether another one would leave too few descriptors for anything else."""
        return len(self._connections) + self.lent >= self._most

    def add(self, connection: Connection) -> None:
        """Note a connection; one that comes during a drain is sent on at once."""
        self._connections[connection.name] = connection
        if self.is_draining:
            connection.restart(_advice(0))

    def remove(self, connection: Connection) -> None:
        """Forget it."""
        self._connections.pop(connection.name, None)
        self.timer.clear(connection)

    # Writing: a change is news for thousands at once, hence no greenlet for each

    def broadcast(self, topic: int, wakes: Iterator[Wake]) -> None:
        """Have the news of a topic brought to all of these."""
        self.wake(Broadcast(topic, wakes, self.wake))

    def wake(self, one: Flushed) -> None:
        """Have it flushed by the next sweep."""
        self._awake.append(one)
        if not self._sweeps:
            self._begin_sweep()

    def _begin_sweep(self) -> None:
        self._sweeps += 1
        if self._sweeps == 1:
            self._sweeper.ask()
        else:
            gevent.spawn(self._sweep)
        self._watch()

    def _watch(self) -> None:
        if not self._is_watched:
            self._relief = self._relief or gevent.get_hub().loop.timer(0.0, RELIEF_S)
            self._relief.again(self._relieve, update=True)
            self._is_watched = True

    def _relieve(self) -> None:
        """A sweep that waits, for a long rendering or the disk, must not hold up everybody behind it."""
        waits, self._seen = self._flushed == self._seen, self._flushed
        if not self._sweeps:
            self._relief.stop()
            self._is_watched = False
        elif self._awake and waits and self._sweeps < MOST_SWEEPS:
            self._begin_sweep()

    def _sweep(self) -> None:
        until = time.monotonic() + SLICE_S
        try:
            while self._awake:
                self._awake.popleft().flush()
                self._flushed += 1
                if time.monotonic() > until:
                    gevent.sleep(A_TURN_S)
                    until = time.monotonic() + SLICE_S
        finally:
            self._sweeps -= 1
            if self._awake and not self._sweeps:  # this one was ended: others wait for it
                self._begin_sweep()

    # Events: stored together, beside what they are about

    def note(self, event: ConnectionEvent | None, line: str = "") -> None:
        """Have an event stored soon, and a line written to the access log. Never waits: the event loop calls it."""
        if event is not None:
            self._events.append(event)
        if line:
            self._lines.append(line)
        if not self._is_storing:
            self._is_storing = True
            gevent.spawn_later(STORE_AFTER_S, self._store_events)

    def _store_events(self) -> None:
        try:
            while self._events or self._lines:
                lines, self._lines = self._lines, []
                if lines:
                    access.info("%s", "\n".join(lines))
                batch, self._events = self._events[:MOST_STORED], self._events[MOST_STORED:]
                if batch:
                    self._store(*batch)
                gevent.sleep(0)
        finally:
            self._is_storing = False

    # The end

    def drain(self) -> None:
        """Close all with 1012 and say when to come back, spread so that they do not come at once."""
        self.is_draining = True
        for number, connection in enumerate(tuple(self._connections.values())):
            connection.restart(_advice(number))

    def finish(self) -> None:
        """Wait until all have said goodbye; cut those that take too long. Gunicorn does not know of these sockets."""
        end = time.monotonic() + FINISH_S
        while self._connections and time.monotonic() < end:
            gevent.sleep(0.02)
        for connection in tuple(self._connections.values()):
            connection.cut()
        while self._is_storing and time.monotonic() < end + FINISH_S:
            gevent.sleep(0.01)


def make_connections(settings: Settings, store: Store) -> Connections:
    """What all connections share, with a timer fine enough for the time-outs as they are set."""
    shortest = min(settings.ws_ping_interval, settings.ws_pong_timeout, settings.ws_read_timeout)
    return Connections(min(shortest, settings.ws_write_timeout), store.events.record)


def _advice(number: int) -> str:
    return f"retry={FIRST_RETRY_S + number / RECONNECTS_PER_S:.3f}"
