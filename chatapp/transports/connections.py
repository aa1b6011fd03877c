"""All that the connections of a worker share: write scheduler, timer, event log, file descriptors."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import gevent

from chatapp import descriptors
from chatapp.bus import Wake
from chatapp.concurrency import ParkedWorker
from chatapp.config import Settings
from chatapp.store import ConnectionEvent, Store
from chatapp.transports.subscriptions import broadcast
from chatapp.transports.timers import Timer

SLICE_S = 0.004  # of writing before the event loop gets its turn
YIELD_S = 1e-6  # a timer, however short, lets the loop poll its sockets; sleep(0) does so every 50th time only
BATCH_SIZE = 16  # writes between two looks at the clock, some 0.1 ms
MOST_SWEEPS = 8  # concurrent; all but one are blocked
WATCHDOG_S = 0.005  # without a flush: the sweep is blocked, and another one starts
STORE_AFTER_S = 0.1  # collects events for one transaction, which costs more than a row
MOST_STORED = 200  # events in one transaction: it holds the event loop for some 5 ms


class Connections:
    """The WebSockets and long polls of this worker: their writes, time-outs, events and number."""

    def __init__(self, shortest_timeout_s: float, store: Callable[..., None]) -> None:
        self.is_draining = False
        self.timer = Timer(min(0.5, shortest_timeout_s / 20))
        self._store = store
        self._queue: deque[Callable[[], object]] = deque()
        self._sweeps = 0
        self._sweeper = ParkedWorker(self._sweep)
        self._watchdog: Any = None  # a timer of the event loop
        self._flushed = self._last_flushed = 0  # flushes so far; and at the watchdog's last look
        self._events: list[ConnectionEvent] = []
        self.websocket_count = self.long_poll_count = 0
        self.log_access: Callable[[str], object] = logging.getLogger("gunicorn.access").info  # a line; must not block
        self.is_storing = False
        self._most = descriptors.for_connections(descriptors.allowed())

    def is_full(self) -> bool:
        """Return True if the file descriptors reserved for connections are in use."""
        return self.websocket_count + self.long_poll_count >= self._most

    # Writing. A change may have thousands of readers: one greenlet sweeps over all of them.

    def broadcast(self, topic: int, wakes: Iterator[Wake]) -> None:
        """Schedule the fan-out of a topic."""
        self.wake(partial(self._broadcast_slice, topic, wakes))

    def _broadcast_slice(self, topic: int, wakes: Iterator[Wake]) -> None:
        """Serve the next subscribers; queue the rest when the slice is over."""
        until = time.monotonic() + SLICE_S
        while several := tuple(islice(wakes, BATCH_SIZE)):
            broadcast(topic, several)
            if time.monotonic() > until:
                self.broadcast(topic, wakes)
                return

    def wake(self, flush: Callable[[], object]) -> None:
        """Schedule a flush in the next sweep."""
        self._queue.append(flush)
        if not self._sweeps:
            self._start_sweep()

    def _start_sweep(self) -> None:
        self._sweeps += 1
        if self._sweeps == 1:
            self._sweeper.ask()
        else:
            gevent.spawn(self._sweep)
        self._watchdog = self._watchdog or gevent.get_hub().loop.timer(0.0, WATCHDOG_S)
        if not self._watchdog.active:
            self._watchdog.again(self._check_sweeps, update=True)

    def _check_sweeps(self) -> None:
        """Start another sweep if the running ones wait for a long rendering or the disk."""
        is_blocked, self._last_flushed = self._flushed == self._last_flushed, self._flushed
        if not self._sweeps:
            self._watchdog.stop()
        elif self._queue and is_blocked and self._sweeps < MOST_SWEEPS:
            self._start_sweep()

    def _sweep(self) -> None:
        until = time.monotonic() + SLICE_S
        try:
            while self._queue:
                self._queue.popleft()()
                self._flushed += 1
                if time.monotonic() > until:
                    gevent.sleep(YIELD_S)
                    until = time.monotonic() + SLICE_S
        finally:
            self._sweeps -= 1
            if self._queue and not self._sweeps:  # this greenlet was killed
                self._start_sweep()

    # Events, stored in batches

    def record(self, event: ConnectionEvent) -> None:
        """Schedule storing an event. Does not block: the event loop calls it."""
        self._events.append(event)
        if not self.is_storing:
            self.is_storing = True
            gevent.spawn_later(STORE_AFTER_S, self._store_events)

    def _store_events(self) -> None:
        try:
            while self._events:
                batch, self._events = self._events[:MOST_STORED], self._events[MOST_STORED:]
                self._store(*batch)
                gevent.sleep(0)
        finally:
            self.is_storing = False


def make_connections(settings: Settings, store: Store) -> Connections:
    """Return what connections share; the timer is as fine as the shortest configured timeout needs."""
    shortest = min(settings.ws_ping_interval, settings.ws_pong_timeout, settings.ws_read_timeout)
    return Connections(min(shortest, settings.ws_write_timeout), store.events.record)
