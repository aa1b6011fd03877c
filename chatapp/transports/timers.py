"""A timing wheel: the time-outs of many connections with one timer."""

from __future__ import annotations

import logging
import time

import gevent

from chatapp.transports.event_socket import EventSocket, Slot

log = logging.getLogger("chatapp.websocket")


class Timer:
    """A timer that calls `check` of each connection when it is due, up to one tick late."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._slots: dict[int, Slot] = {}
        self._is_running = False

    def set(self, connection: EventSocket, at: float) -> None:
        """Check a connection at `at` (monotonic clock, s); replaces an earlier call."""
        self.clear(connection)
        # Rounded up: never early.
        number = int(max(at, time.monotonic()) / self._tick_s) + 1
        connection.slot = self._slots.setdefault(number, {})
        connection.slot[connection] = None
        if not self._is_running:
            self._is_running = True
            gevent.spawn(self._run)

    def clear(self, connection: EventSocket) -> None:
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

    def _check(self, connection: EventSocket, now: float) -> None:
        try:
            at = connection.check(now)
        except Exception:  # one connection must not stop the timer of all
            log.exception("checking a WebSocket failed", extra={"connection": getattr(connection, "name", "-")})
            connection.cut()
        else:
            if not connection.is_closed:
                self.set(connection, at)
