"""Everything that depends on gunicorn's internals: deadlines for its connections, and detaching them.

If a connection were detached before its request's last byte and reattached later, these bytes would be parsed as the
next request: another person's, behind a proxy that shares its connections (request smuggling). So a connection is
detached only after a complete request with nothing behind it, and never reattached.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct
import sys
import termios
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from gevent import sleep, socket
from gevent.server import StreamServer
from gunicorn.http import wsgi
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import LimitRequestHeaders, ParseException
from gunicorn.http.message import Request
from gunicorn.util import write_nonblock
from gunicorn.workers.ggevent import GeventWorker

from chatapp.strangers import Guest, Strangers
from chatapp.wellformed import PLAIN, answer_nonsense, shown

LEAST_RATE = 1000  # bytes a second: of a body, and of a response, after their first seconds
LONGEST_HEAD = 64 << 10  # bytes of a request's line and headers
MOST_DRAINED = 64 << 10  # bytes of an unread body, to keep the connection
LINGER_S = 2.0  # for reading such a body, or for the response to arrive before the connection closes
LONGEST_PAUSE_S = 0.5  # between two looks at the send queue before a connection closes
TCP_CLOSE, TCP_CLOSE_WAIT = b"\x07", b"\x08"  # tcpi_state: reset or closed by the client; it has closed its half
DEFER_ACCEPT_S = 1  # at most: the kernel holds new connections until their first bytes
MOST_ACCEPTED = 4  # per turn of the event loop: accepting is quicker than serving, and would starve it


def has_body(environ: dict[str, Any]) -> bool:
    """Return True if the request announces a body."""
    return environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ


def is_short(environ: dict[str, Any]) -> bool:
    """Return True if the request's body may stay unread without closing the connection."""
    length = environ.get("CONTENT_LENGTH", "")
    return length.isdecimal() and int(length) <= MOST_DRAINED and "HTTP_TRANSFER_ENCODING" not in environ


def is_plain(environ: dict[str, Any]) -> bool:
    """Return True for a gunicorn connection without TLS (its sockets have another type)."""
    connection = environ.get("gunicorn.socket")
    return type(getattr(connection, "plain", connection)) is socket.socket


def can_detach(environ: dict[str, Any]) -> bool:
    """Return True if the connection may be detached: no TLS, HTTP/1.1, and no bytes beyond the request's head."""
    is_bare = not has_body(environ) and "HTTP_EXPECT" not in environ and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    return is_bare and is_plain(environ) and _is_buffer_empty(environ)


def detach(environ: dict[str, Any]) -> int:
    """Return the connection's descriptor, now the caller's to close; gunicorn keeps an empty object."""
    return int(environ["gunicorn.socket"].detach())


def header_lines(headers: Iterable[tuple[str, str]]) -> str:
    """Return headers as lines of HTTP, for responses without gunicorn."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def end_request() -> NoReturn:
    """Make gunicorn drop the request and its connection without a response."""
    raise StopIteration


def _is_buffer_empty(environ: dict[str, Any]) -> bool:
    """Return True if gunicorn has read nothing beyond the request; False if that is unknown (another server)."""
    unreader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    return unreader is not None and not unreader.buf.getvalue()


class Connection(Guest):
    """A socket for gunicorn's worker, with a deadline for each wait.

    A head must arrive within `Limits.seconds` of the connection's start, or of a later request's first byte. A body,
    and the client's reading of a response, have as long, plus a second for each `LEAST_RATE` bytes. Between requests
    the connection may be idle for `Limits.idle_s`.
    """

    __slots__ = (
        "_began",
        "_deadline",
        "_limits",
        "_request",
        "is_broken",
        "is_failed",
        "plain",
    )

    def __init__(self, sock: Any, limits: Limits, address: str) -> None:
        self.plain, self._limits = sock, limits  # the socket itself
        self._request: Any = None
        self.is_failed = False
        self.is_broken = False  # a malformed body: the start of the next request is unknown
        self._began = time.monotonic()
        self._deadline = self._began + limits.seconds
        super().__init__(limits.strangers, address)

    @property
    def is_idle(self) -> bool:
        """True from one request to the next."""
        return self._request is None

    # Requests

    def begin_request(self, request: Any) -> None:
        """Start the deadline of a body: the head is complete."""
        self._request, self._is_signed_in, self._forwarder = request, False, ""
        self._deadline = time.monotonic() + self._limits.seconds

    def end_request(self) -> None:
        """Start the idle time after a response."""
        if not self._is_signed_in and self not in self._strangers:
            self._strangers.add(self)
        self.count(-self.unread)
        self._request, self._began = None, 0.0
        self._deadline = time.monotonic() + self._limits.idle_s

    def count(self, size: int) -> None:
        """Add to the bytes of the request in memory; a negative size subtracts."""
        self._strangers.has_read(self, size)

    def skip_body(self) -> None:
        """Close after the response instead of reading the body."""
        if self._request is not None:
            self._request.force_close()

    # The socket's interface, for gunicorn

    def recv(self, size: int) -> bytes:
        """Return the next bytes; none after a head's deadline. Raises ConnectionError for an incomplete body."""
        try:
            data = self._recv(size)
        except OSError:  # late, or closed by either side
            data = b""
        if data:
            self.count(len(data))
            self._extend_deadline(len(data))
        elif not self.is_idle:
            self.is_failed = True
            raise ConnectionResetError(errno.ECONNRESET, "the body did not come")
        return data

    def _recv(self, size: int) -> bytes:
        left = max(0.001, self._deadline - time.monotonic())
        unsent = 0 if self._began or not self.is_idle else self._unsent()
        while unsent and left > self._limits.seconds:  # idle, but the client must go on reading the last response
            try:
                self.plain.settimeout(self._limits.seconds)
                return bytes(self.plain.recv(size))
            except TimeoutError:
                unsent = self._check_rate(unsent)
                left -= self._limits.seconds
        self.plain.settimeout(left)
        return bytes(self.plain.recv(size))

    def _extend_deadline(self, size: int) -> None:
        if not self.is_idle:
            self._deadline += size / LEAST_RATE
        elif not self._began:
            self._began = time.monotonic()
            self._deadline = self._began + self._limits.seconds
        if self.is_idle and self.unread > LONGEST_HEAD:
            raise LimitRequestHeaders("the whole head")

    def sendall(self, data: bytes) -> None:
        """Write everything. Raises ConnectionError if the client reads too slowly."""
        try:
            self.plain.settimeout(self._limits.seconds)
            sent = self.plain.send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])
        except OSError:
            self.cut()
            raise ConnectionResetError(errno.ECONNRESET, "the answer was not taken") from None

    def _send_rest(self, rest: memoryview) -> None:
        """Send the rest. `send` waits until a third of the kernel's buffer is free: its queue shows progress."""
        unsent = self._unsent()
        while rest:
            try:
                rest = rest[self.plain.send(rest) :]
                unsent = self._unsent()
            except TimeoutError:
                unsent = self._check_rate(unsent)

    def _check_rate(self, before: int) -> int:
        """Return the unsent bytes, given those `Limits.seconds` ago. Cuts and raises TimeoutError below the rate."""
        unsent = self._unsent()
        if unsent and before - unsent < LEAST_RATE * self._limits.seconds:
            self.cut()
            raise TimeoutError
        return unsent

    def _unsent(self) -> int:
        """Return the bytes of responses that the client has not acknowledged."""
        number = self.plain.fileno()
        if number < 0:  # closed or detached
            return 0
        return int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)

    send = sendall

    def setblocking(self, _: object) -> None:
        """Ignore gunicorn's timeouts: the deadlines replace them."""

    settimeout = setblocking

    def gettimeout(self) -> None:
        """Return None, for no timeout."""

    def fileno(self) -> int:
        return int(self.plain.fileno())

    def shutdown(self, how: int) -> None:
        self.plain.shutdown(how)

    def detach(self) -> int:
        """Return the descriptor, now the caller's to close."""
        self._strangers.remove(self)
        return int(self.plain.detach())

    def close(self) -> None:
        """Close after the client has read the response, or failed to."""
        try:
            with contextlib.suppress(OSError):  # failed or cut already
                self._wait_until_sent()
        finally:
            self._strangers.remove(self)
            self.plain.close()

    def _wait_until_sent(self) -> None:
        """Wait for the client's acknowledgements. (TCP_USER_TIMEOUT would also cut slow but steady readers.)"""
        unsent, since, pause = self._unsent(), time.monotonic(), 0.01
        if unsent:
            self.plain.shutdown(socket.SHUT_WR)
        while self._unsent() and self.plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_CLOSE:
            if time.monotonic() - since >= self._limits.seconds:
                unsent, since = self._check_rate(unsent), time.monotonic()
            sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)

    def cut(self) -> None:
        """Close with RST, which also drops unsent bytes."""
        self.is_failed = True
        self._strangers.remove(self)
        with contextlib.suppress(OSError):  # closed already
            self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.plain.close()

    def drain(self, body: Any) -> bool:
        """Read the rest of a body. Returns False if it is too long or malformed, so that the connection must close."""
        if not _has_rest(body):
            return not self.is_broken
        self._deadline, read = time.monotonic() + LINGER_S, 0
        try:
            while read < MOST_DRAINED and (data := body.read(8192)):
                read += len(data)
                self.count(-len(data))
        except (OSError, ParseException):
            return False
        return not _has_rest(body) and not self.is_broken

    def linger(self) -> None:
        """Read until the client closes (2 s at most): closing with unread bytes would drop the response."""
        with contextlib.suppress(OSError):
            self.plain.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER_S
            while (left := until - time.monotonic()) > 0:
                self.plain.settimeout(left)
                if not self.plain.recv(65536):
                    break


def _has_rest(body: Any) -> bool:
    reader = body.reader
    return bool(reader.parser) if isinstance(reader, ChunkedReader) else getattr(reader, "length", 0) > 0


@dataclass(frozen=True)
class Limits:
    """The limits of a worker's connections."""

    strangers: Strangers
    seconds: float  # for a head, for the start of a body, for the reading of a response
    idle_s: float  # between requests


class Worker(GeventWorker):  # type: ignore[misc]
    """Gunicorn's gevent worker, with deadlines for its connections."""

    limits: Limits
    _no_timeout = contextlib.nullcontext()

    def run(self) -> None:
        self._connections: set[Connection] = set()
        StreamServer.max_accept = MOST_ACCEPTED
        self._cache_constants()
        for listener in self.sockets:
            # As in Apache and nginx: the greenlets of new connections need not wait for the first bytes.
            if hasattr(socket, "TCP_DEFER_ACCEPT") and listener.family in (socket.AF_INET, socket.AF_INET6):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S)
        super().run()

    def _cache_constants(self) -> None:
        """Cache everything that gunicorn computes for each request although it is constant."""
        # Settings as plain attributes: gunicorn looks them up forty times a request, a tenth of a poll's cost.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        # Gunicorn would parse each peer's address to trust its forwarding headers, and trust every peer of a unix
        # socket. ProxyMiddleware alone decides that.
        Request._peer_trusted_for_forwarded = lambda _request: ({}, [])
        errors = wsgi.WSGIErrorsWrapper(self.cfg)  # without state of a request
        wsgi.WSGIErrorsWrapper = lambda _config: errors

    def timeout_ctx(self) -> Any:
        """Return no timeout for the next request: `Connection` has a deadline."""
        return self._no_timeout

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        peer = addr[0] if isinstance(addr, tuple) else ""
        connection = Connection(client, self.limits, self.limits.strangers.budget_of(peer))
        self._connections.add(connection)
        try:
            super().handle(listener, connection, addr)
        finally:
            self._connections.discard(connection)

    def close_idle(self) -> None:
        """End the connections between requests: else the worker's end would wait for the graceful timeout.

        A request that has arrived is still read and answered."""
        for connection in tuple(self._connections):
            if connection.is_idle:
                with contextlib.suppress(OSError):  # closed by the client
                    connection.shutdown(socket.SHUT_RD)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a malformed request with a sentence and one line of log; leave other errors to gunicorn."""
        self._connections.discard(client)  # no longer idle
        refusal = answer_nonsense(exc)
        if refusal is None:
            super().handle_error(req, client, addr, exc)
            return
        status, name, text = refusal
        self.log.warning("refused a request from %s: %s", (addr or ("-",))[0], shown(str(exc)))
        headers = header_lines([("Connection", "close"), *PLAIN, ("Content-Length", str(len(text.encode())))])
        try:
            write_nonblock(client, f"HTTP/1.1 {status} {name}\r\n{headers}\r\n{text}".encode())
            client.linger()
        except OSError:
            self.log.debug("the client has gone")

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve a request. Raises StopIteration if the connection must close after it."""
        sock.begin_request(req)
        try:
            super().handle_request(listener_name, req, sock, addr)
            if sock.is_failed or not sock.drain(req.body):
                raise StopIteration
        except StopIteration:
            if not sock.is_failed and _has_rest(req.body):
                sock.linger()
            raise
        sock.end_request()


def _connection(environ: dict[str, Any]) -> Connection | None:
    found = environ.get("gunicorn.socket")
    return found if isinstance(found, Connection) else None


def note_session(environ: dict[str, Any]) -> None:
    """Count the request's connection no longer as a stranger's: the request has a session."""
    if connection := _connection(environ):
        connection.mark_signed_in()


def skip_body(environ: dict[str, Any]) -> None:
    """Close the connection after the response instead of reading the request's body."""
    if connection := _connection(environ):
        connection.skip_body()


def reject_body(environ: dict[str, Any]) -> None:
    """Close the connection after the response: after a malformed body, the start of the next request is unknown."""
    if connection := _connection(environ):
        connection.is_broken = True
        connection.skip_body()


def is_cut(environ: dict[str, Any]) -> bool:
    """Return True if the connection is closed or has failed: no response can be sent."""
    connection = _connection(environ)
    return connection is not None and connection.is_failed


def has_left(environ: dict[str, Any]) -> bool:
    """Return True if the client has closed the connection, or its half: most likely it does not wait any more."""
    connection = _connection(environ)
    if connection is None or connection.is_failed:
        return is_cut(environ)
    try:
        return connection.plain.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 1) in (TCP_CLOSE, TCP_CLOSE_WAIT)
    except OSError:  # a unix socket's
        return False


def assign_connection(environ: dict[str, Any], peer: str) -> None:
    """Count the connection in the client's budget; `peer` is its TCP peer, REMOTE_ADDR the address behind proxies."""
    connection = _connection(environ)
    if connection is None:
        return
    address = environ.get("REMOTE_ADDR", "")
    if address != peer:  # named by a declared proxy
        connection.assign(address)
    elif "HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ:
        connection.assign_forwarder(peer)
