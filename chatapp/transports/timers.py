"""A timing wheel: the time-outs of many connections with one timer."""

from __future__ import annotations

import logging
import time
from typing import Protocol

import gevent

log = logging.getLogger("chatapp.websocket")


class Timed(Protocol):
    """A connection with time-outs."""

    slot: Slot  # set by the timer

    @property
    def is_closed(self) -> bool:
        """True after it has closed."""

    def check(self, now: float) -> float:
        """Handle expired time-outs; returns the time of the next check (monotonic clock, s)."""

    def cut(self) -> None:
        """Close now."""


Slot = dict[Timed, None]  # connections due within one tick
NO_SLOT: Slot = {}  # of a connection without a timer; always empty


class Timer:
    """A timer that calls `check` of each connection when it is due, up to one tick late."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._slots: dict[int, Slot] = {}
        self._is_running = False

    def set(self, connection: Timed, at: float) -> None:
        """Check a connection at `at` (monotonic clock, s); replaces an earlier call."""
        self.clear(connection)
        # Rounded up: never early.
        number = int(max(at, time.monotonic()) / self._tick_s) + 1
        connection.slot = self._slots.setdefault(number, {})
        connection.slot[connection] = None
        if not self._is_running:
            self._is_running = True
            gevent.spawn(self._run)

    def clear(self, connection: Timed) -> None:
        """Cancel the check of a connection."""
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
        except Exception:  # one connection must not stop the timer of all
            log.exception("checking a WebSocket failed")
            connection.cut()
        else:
            if not connection.is_closed:
                self.set(connection, at)
