"""WebSockets of the network test, opened by a ticket instead of a session: hello and echoes, and nothing else."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent

from chatapp.accounts.tickets import Ticket, Tickets
from chatapp.config import Settings
from chatapp.store import STORAGE_ERRORS
from chatapp.transports import protocol, rfc6455
from chatapp.transports.connections import Connections
from chatapp.transports.event_socket import LINGER_S, EventSocket
from chatapp.transports.rfc6455 import CloseCode, Opcode, Violation

MOST_OF_A_TICKET, MOST = 4, 64  # WebSockets in a worker
LONGEST_S = 300.0  # a test takes some 40 s, the longer one 100 s
MOST_ECHOES = 100
# A WebSocket is proved by echoes one after another, and one more behind a silence (static/js/check/testing.js).
ECHOES, SILENCE_S = 5, 5.0

log = logging.getLogger("chatapp.mending")


class VisitorSocket(EventSocket):
    """The server's side of a test's WebSocket."""

    __slots__ = (
        "_address",
        "_code",
        "_echoes",
        "_heard_at",
        "_is_proved",
        "_next_ping",
        "_opened_at",
        "_parser",
        "_visitors",
        "ticket",
    )

    def __init__(self, fd: int, visitors: Visitors, ticket: Ticket, address: str, deflates: bool) -> None:
        super().__init__(fd)
        self.ticket = ticket
        self._visitors, self._address = visitors, address
        self._parser = rfc6455.Parser(visitors.settings.ws_max_message_size, deflates)
        self._echoes, self._is_proved, self._code = 0, False, 0
        self._opened_at = self._heard_at = self.received_at
        self._next_ping = self.received_at + visitors.settings.ws_ping_interval

    def start(self, answer: bytes) -> None:
        """Write the handshake's answer and the hello, and start reading."""
        settings = self._visitors.settings
        limits = {"max_message": settings.ws_max_message_size, "ping": f"{settings.ws_ping_interval:g}"}
        hello = protocol.element("chat-hello", "", **limits, protocol=protocol.REVISION)
        self._visitors.add(self)
        self.resume_reading()
        self.write(answer + rfc6455.frame(hello.encode()))
        if not self.is_closed:
            self._visitors.connections.timer.set(self, self._due())

    def on_bytes(self, data: bytes) -> None:
        """Answer pings and echoes; close after anything else."""
        try:
            self._parser.feed(data)
            while self.ended_at is None and (message := self._parser.next()) is not None:
                self._on_message(*message)
        except Violation as violation:
            self._close(violation.code, violation.reason)
        except protocol.BadFrame as error:
            self._close(CloseCode.POLICY, str(error))

    def _on_message(self, opcode: int, payload: Any) -> None:
        if opcode == Opcode.PING:
            self._say(rfc6455.frame(payload, Opcode.PONG))
        elif opcode == Opcode.CLOSE:
            self._close(rfc6455.close_code(payload))
        elif opcode == Opcode.TEXT:
            frame = protocol.decode(payload)
            if not isinstance(frame, protocol.Echo) or self._echoes >= MOST_ECHOES:
                self._close(CloseCode.POLICY, "only the test")
            else:
                self._on_echo(frame.n)
        elif opcode != Opcode.PONG:
            self._close(CloseCode.UNSUPPORTED_DATA, "text only")

    def _on_echo(self, n: int) -> None:
        now = time.monotonic()
        silent_s, self._heard_at = now - self._heard_at, now
        self._echoes += 1
        self._say(rfc6455.frame(protocol.echo(n).encode()))
        if self._echoes > ECHOES and silent_s >= SILENCE_S and not self._is_proved:
            self._is_proved = True
            gevent.spawn(self._prove)

    def _prove(self) -> None:
        try:
            is_there = self._visitors.on_proved(self.ticket, self._address)
        except STORAGE_ERRORS as error:
            log.warning("a network test could not be noted: %s", error)
            return
        if not self.is_closed and self.ended_at is None:
            self._say(rfc6455.frame(protocol.mended(is_there).encode()))

    def _say(self, data: bytes) -> None:
        """Write; a reader that leaves no room for some small frames is cut."""
        if self.is_blocked:
            self.cut()
        elif not self.is_closed:
            self.write(data)

    def _close(self, code: int, reason: str = "") -> None:
        self._code = code
        if self.is_blocked:
            return self.cut()
        self.end(rfc6455.close_frame(code, reason))
        if not self.is_closed:
            self._visitors.connections.timer.set(self, time.monotonic() + LINGER_S)
        return None

    def on_blocked(self) -> None:
        """Do nothing: the next write cuts."""

    def _due(self) -> float:
        return min(self._next_ping, self._opened_at + LONGEST_S)

    def check(self, now: float) -> float:
        """Ping; end the test that takes too long; returns the time of the next check."""
        self._cut_if_late(now, self._visitors.settings.ws_write_timeout)
        if self.is_closed or self.ended_at is not None:
            return now + LINGER_S / 4
        if now >= self._opened_at + LONGEST_S:
            self._close(CloseCode.POLICY, "the test is over")
            return now + LINGER_S / 4
        if now >= self._next_ping:
            self._next_ping = now + self._visitors.settings.ws_ping_interval
            self._say(rfc6455.frame(b"", Opcode.PING))
        return self._due()

    def on_end(self) -> None:
        """Unregister, and write the line of the access log."""
        self._visitors.remove(self)
        seconds = time.monotonic() - self._opened_at
        sizes = f"in={self.bytes_in} out={self.bytes_out}"
        line = (
            f'{self._address} - - "WEBSOCKET /ws?inside=1" {self._code or CloseCode.ABNORMAL} {sizes} {seconds:.1f}s -'
        )
        self._visitors.connections.log_access(line)


class Visitors:
    """The WebSockets of tickets in this worker."""

    def __init__(
        self,
        tickets: Tickets,
        connections: Connections,
        settings: Settings,
        on_proved: Callable[[Ticket, str], bool],
    ) -> None:
        """`on_proved`: told of a ticket and the address whose WebSocket works; returns True if that is its network."""
        self.tickets, self.connections, self.settings = tickets, connections, settings
        self.on_proved = on_proved
        self._open: set[VisitorSocket] = set()
        self._of_tickets: Counter[str] = Counter()

    def find(self, environ: dict[str, Any]) -> Ticket | None:
        """Return the ticket of a request, or None."""
        return self.tickets.find(environ)

    def wait_s(self, ticket: Ticket) -> float:
        """Count an upgrade. Return 0, or if there are too many the wait in s."""
        if self._of_tickets[ticket.id] >= MOST_OF_A_TICKET or len(self._open) >= MOST:
            return 60.0
        return self.tickets.take(ticket, "upgrade")

    def accept(self, fd: int, ticket: Ticket, address: str, answer: bytes, deflates: bool) -> None:
        """Move a ticket's socket to the event loop."""
        VisitorSocket(fd, self, ticket, address, deflates).start(answer)

    def add(self, one: VisitorSocket) -> None:
        """Register a WebSocket."""
        self._open.add(one)
        self._of_tickets[one.ticket.id] += 1

    def remove(self, one: VisitorSocket) -> None:
        """Unregister a WebSocket."""
        self.connections.timer.clear(one)
        if one in self._open:
            self._open.discard(one)
            self._of_tickets[one.ticket.id] -= 1
            if not self._of_tickets[one.ticket.id]:
                del self._of_tickets[one.ticket.id]
