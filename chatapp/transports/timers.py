"""Time-outs of many connections by one timer: a wheel of slots, so that waiting costs nothing."""

from __future__ import annotations

import logging
import time
from typing import Protocol

import gevent

log = logging.getLogger("chatapp.websocket")


class Timed(Protocol):
    """What the timer looks after."""

    slot: Slot  # where the timer keeps it

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""

    def check(self, now: float) -> float:
        """Look at the time-outs; returns when to look again (monotonic clock, s)."""

    def cut(self) -> None:
        """Close now."""


Slot = dict[Timed, None]  # those that are due within one tick
NO_SLOT: Slot = {}  # of one that the timer does not keep; always empty


class Timer:
    """Calls `check` of each connection when it is due, within one tick. A wheel of slots: waiting costs nothing."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._slots: dict[int, Slot] = {}
        self._is_running = False

    def set(self, connection: Timed, at: float) -> None:
        """Check this connection at `at` and not before; a second call replaces the first."""
        self.clear(connection)
        # Rounded up: a time-out may be late by a tick, never early.
        number = int(max(at, time.monotonic()) / self._tick_s) + 1
        connection.slot = self._slots.setdefault(number, {})
        connection.slot[connection] = None
        if not self._is_running:
            self._is_running = True
            gevent.spawn(self._run)

    def clear(self, connection: Timed) -> None:
        """Check it no more."""
        connection.slot.pop(connection, None)

    def _run(self) -> None:
        done = int(time.monotonic() / self._tick_s) - 1
        while self._slots:
            now = time.monotonic()
            for number in range(done + 1, int(now / self._tick_s) + 1):
                for connection in tuple(self._slots.pop(number, ())):
                    self._check(connection, now)
                done = number
            gevent.sleep(self._tick_s)
        self._is_running = False

    def _check(self, connection: Timed, now: float) -> None:
        try:
            at = connection.check(now)
        except Exception:  # one connection must not stop the clock of all
            log.exception("checking a WebSocket failed")
            connection.cut()
        else:
            if not connection.is_over:
                self.set(connection, at)
