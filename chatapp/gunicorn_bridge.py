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

from gevent import getcurrent, sleep, socket
from gevent.server import StreamServer
from gunicorn.http import wsgi
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import LimitRequestHeaders, ParseException
from gunicorn.http.message import Request
from gunicorn.util import write_nonblock
from gunicorn.workers.ggevent import GeventWorker

from chatapp.strangers import Strangers, stands_for_many
from chatapp.wellformed import PLAIN, answer_nonsense, shown

LEAST_RATE = 1000  # bytes a second: of a body, and of a response, after their first seconds
LONGEST_HEAD = 64 << 10  # bytes of a request's line and headers
MOST_DRAINED = 64 << 10  # bytes of an unread body, to keep the connection
LINGER_S = 2.0  # for reading such a body, or for the response to arrive before the connection closes
LONGEST_PAUSE_S = 0.5  # between two looks at the send queue before a connection closes
TCP_CLOSE, TCP_CLOSE_WAIT = b"\x07", b"\x08"  # tcpi_state: reset or closed by the client; it has closed its half
DEFER_ACCEPT_S = 1
MOST_ACCEPTED = 4  # per turn of the event loop: accepting is quicker than serving, and would starve it


def tune_worker(worker: Any) -> None:
    """Cache everything that gunicorn computes for each request although it is constant. Call before it serves."""
    _cache_settings(worker.cfg)
    _defer_accept(worker.sockets)
    # Gunicorn would parse each peer's address to trust its forwarding headers, and trust every peer of a unix socket.
    # ProxyMiddleware alone decides that.
    Request._peer_trusted_for_forwarded = lambda _request: ({}, [])
    errors = wsgi.WSGIErrorsWrapper(worker.cfg)  # without state of a request
    wsgi.WSGIErrorsWrapper = lambda _config: errors


def _cache_settings(config: Any) -> None:
    """Make them plain attributes: gunicorn looks them up forty times a request, a tenth of a poll's cost."""
    vars(config).update({name: setting.get() for name, setting in config.settings.items()})


def _defer_accept(sockets: Iterable[Any]) -> None:
    """Let the kernel hold new connections until their first bytes (at most 1 s), as Apache and nginx do: their
    greenlets need not wait for these."""
    for listener in sockets:
        if hasattr(socket, "TCP_DEFER_ACCEPT") and listener.family in (socket.AF_INET, socket.AF_INET6):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S)


def has_body(environ: dict[str, Any]) -> bool:
    """Return True if the request announces a body."""
    return environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ


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


def end_request() -> NoReturn:
    """Make gunicorn drop the request and its connection without a response."""
    raise StopIteration


def _is_buffer_empty(environ: dict[str, Any]) -> bool:
    """Return True if gunicorn has read nothing beyond the request; False if that is unknown (another server)."""
    unreader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    return unreader is not None and not unreader.buf.getvalue()


class Connection:
    """A socket for gunicorn's worker, with a deadline for each wait.

    A head must arrive within `Limits.seconds` of the connection's start, or of a later request's first byte. A body,
    and the client's reading of a response, have as long, plus a second for each `LEAST_RATE` bytes. Between requests
    the connection may be idle for `Limits.idle_s`.
    """

    __slots__ = (
        "_began",
        "_deadline",
        "_forwarder",
        "_is_body",
        "_is_guest",
        "_is_signed_in",
        "_limits",
        "_request",
        "_sock",
        "address",
        "is_broken",
        "is_failed",
        "unread",
    )

    def __init__(self, sock: Any, limits: Limits, address: str) -> None:
        self._sock, self._limits, self.address = sock, limits, address
        self.unread = 0
        self._request: Any = None
        self._is_signed_in = self._is_body = self.is_failed = False
        self.is_broken = False  # a malformed body: the start of the next request is unknown
        self._began = time.monotonic()
        self._deadline = self._began + limits.seconds
        self._is_guest = True
        self._forwarder = ""
        limits.strangers.add(self)

    @property
    def plain(self) -> Any:
        """The socket itself."""
        return self._sock

    # Budgets of connections without a session (strangers.py)

    def mark_signed_in(self) -> None:
        """Count the connection no longer as a stranger's: a request on it has a session."""
        self._is_signed_in = True
        self._leave_budget()
        if self._forwarder:
            self._limits.strangers.share(self._forwarder)
            self.assign(self._forwarder)

    def assign(self, peer: str) -> None:
        """Count the connection in the budget of this peer."""
        address = self._limits.strangers.budget_of(peer)
        if address != self.address:
            was_guest = self._is_guest
            self._leave_budget()
            self.address = address
            if was_guest:
                self._enter_budget()

    def assign_forwarder(self, peer: str) -> None:
        """Count the connection of a peer that claims to be a proxy. A session must confirm it: anybody can claim it."""
        self._forwarder = peer
        if stands_for_many(peer):
            self._limits.strangers.share(peer)
        self.assign(peer)

    def _enter_budget(self) -> None:
        self._is_guest = True
        self._limits.strangers.add(self)

    def _leave_budget(self) -> None:
        if self._is_guest:
            self._is_guest = False
            self._limits.strangers.remove(self)

    # Requests

    def begin_request(self, request: Any) -> None:
        """Start the deadline of a body: the head is complete."""
        self._request, self._is_body, self._is_signed_in = request, True, False
        self._forwarder = ""
        self._deadline = time.monotonic() + self._limits.seconds

    def end_request(self) -> None:
        """Start the idle time after a response."""
        if not self._is_guest and not self._is_signed_in:
            self._enter_budget()
        self.count(-self.unread)
        self._request, self._is_body, self._began = None, False, 0.0
        self._deadline = time.monotonic() + self._limits.idle_s

    def count(self, size: int) -> None:
        """Add to the bytes of the request in memory; a negative size subtracts."""
        if self._is_guest:
            self._limits.strangers.has_read(self, size)
        else:
            self.unread += size

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
        elif self._is_body:
            self.is_failed = True
            raise ConnectionResetError(errno.ECONNRESET, "the body did not come")
        return data

    def _recv(self, size: int) -> bytes:
        left = max(0.001, self._deadline - time.monotonic())
        unsent = 0 if self._began or self._is_body else self._unsent()
        while unsent and left > self._limits.seconds:  # idle, but the client must go on reading the last response
            try:
                self._sock.settimeout(self._limits.seconds)
                return bytes(self._sock.recv(size))
            except TimeoutError:
                unsent = self._check_rate(unsent)
                left -= self._limits.seconds
        self._sock.settimeout(left)
        return bytes(self._sock.recv(size))

    def _extend_deadline(self, size: int) -> None:
        if self._is_body:
            self._deadline += size / LEAST_RATE
        elif not self._began:
            self._began = time.monotonic()
            self._deadline = self._began + self._limits.seconds
        if not self._is_body and self.unread > LONGEST_HEAD:
            raise LimitRequestHeaders("the whole head")

    def sendall(self, data: bytes) -> None:
        """Write everything. Raises ConnectionError if the client reads too slowly."""
        try:
            self._sock.settimeout(self._limits.seconds)
            sent = self._sock.send(data)
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
                rest = rest[self._sock.send(rest) :]
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
        number = self._sock.fileno()
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
        return int(self._sock.fileno())

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def detach(self) -> int:
        """Return the descriptor, now the caller's to close."""
        self._leave_budget()
        return int(self._sock.detach())

    def close(self) -> None:
        """Close after the client has read the response, or failed to."""
        try:
            with contextlib.suppress(OSError):  # failed or cut already
                self._wait_until_sent()
        finally:
            self._leave_budget()
            self._sock.close()

    def _wait_until_sent(self) -> None:
        """Wait for the client's acknowledgements. (TCP_USER_TIMEOUT would also cut slow but steady readers.)"""
        unsent, since, pause = self._unsent(), time.monotonic(), 0.01
        if unsent:
            self._sock.shutdown(socket.SHUT_WR)
        while self._unsent() and self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_CLOSE:
            if time.monotonic() - since >= self._limits.seconds:
                unsent, since = self._check_rate(unsent), time.monotonic()
            sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)

    def cut(self) -> None:
        """Close with RST, which also drops unsent bytes."""
        self.is_failed = True
        self._leave_budget()
        with contextlib.suppress(OSError):  # closed already
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

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
            self._sock.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER_S
            while (left := until - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(65536):
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


class _Listener:
    """A listening socket with a cached name: gunicorn asks for it with each connection."""

    def __init__(self, sock: Any) -> None:
        self._sock, self._name = sock, sock.getsockname()

    def getsockname(self) -> Any:
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Worker(GeventWorker):  # type: ignore[misc]
    """Gunicorn's gevent worker, with deadlines for its connections."""

    limits: Limits
    _no_timeout = contextlib.nullcontext()

    def run(self) -> None:
        StreamServer.max_accept = MOST_ACCEPTED
        self._listeners = {id(sock): _Listener(sock) for sock in self.sockets}
        super().run()

    def timeout_ctx(self) -> Any:
        """Return no timeout for the next request: `Connection` has a deadline."""
        return self._no_timeout

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        peer = addr[0] if isinstance(addr, tuple) else ""
        listener = self._listeners.get(id(listener), listener)
        super().handle(listener, Connection(client, self.limits, self.limits.strangers.budget_of(peer)), addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a malformed request with a sentence and one line of log; leave other errors to gunicorn."""
        refusal = answer_nonsense(exc)
        if refusal is None:
            super().handle_error(req, client, addr, exc)
            return
        status, name, text = refusal
        self.log.warning("refused a request from %s: %s", (addr or ("-",))[0], shown(str(exc)))
        body = text.encode()
        headers = [("Connection", "close"), *PLAIN, ("Content-Length", str(len(body)))]
        lines = [f"HTTP/1.1 {status} {name}", *(f"{header}: {value}" for header, value in headers), "", ""]
        try:
            write_nonblock(client, "\r\n".join(lines).encode() + body)
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


def note_session(environ: dict[str, Any]) -> None:
    """Count the request's connection no longer as a stranger's: the request has a session."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, Connection):
        connection.mark_signed_in()


def reject_body(environ: dict[str, Any]) -> None:
    """Close the connection after the response: after a malformed body, the start of the next request is unknown."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, Connection):
        connection.is_broken = True
        connection.skip_body()


def has_left(environ: dict[str, Any]) -> bool:
    """Return True if the client has closed the connection, or its half: most likely it does not wait any more."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, Connection) or connection.is_failed:
        return is_cut(environ)
    try:
        return connection.plain.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 1) in (TCP_CLOSE, TCP_CLOSE_WAIT)
    except OSError:  # a unix socket's
        return False


def is_cut(environ: dict[str, Any]) -> bool:
    """Return True if the connection is closed or has failed: no response can be sent."""
    connection = environ.get("gunicorn.socket")
    return isinstance(connection, Connection) and connection.is_failed


def skip_body(environ: dict[str, Any]) -> None:
    """Close the connection after the response instead of reading the request's body."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, Connection):
        connection.skip_body()


def assign_connection(environ: dict[str, Any], peer: str) -> None:
    """Count the connection in the client's budget; `peer` is its TCP peer, REMOTE_ADDR the address behind proxies."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, Connection):
        return
    address = environ.get("REMOTE_ADDR", "")
    if address != peer:  # named by a declared proxy
        connection.assign(address)
    elif "HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ:
        connection.assign_forwarder(peer)


class IdleConnections:
    """A worker's idle keep-alive connections, to close: else its end would wait for the graceful timeout."""

    def __init__(self, worker: Any) -> None:
        self._serve, self._timeout = worker.handle, worker.timeout_ctx
        self._sockets: dict[Any, Any] = {}  # by greenlet
        self._idle: set[Any] = set()
        worker.handle, worker.timeout_ctx = self._handle, lambda: _IdleTimeout(self._idle, self._timeout())

    def _handle(self, listener: Any, client: Any, address: Any) -> None:
        greenlet = getcurrent()
        self._sockets[greenlet] = client
        try:
            self._serve(listener, client, address)
        finally:
            del self._sockets[greenlet]

    def close(self) -> None:
        """End the idle connections. A request that has arrived is still read and answered."""
        for greenlet in tuple(self._idle):
            with contextlib.suppress(OSError):  # closed by the client
                self._sockets[greenlet].shutdown(socket.SHUT_RD)


class _IdleTimeout:
    """Gunicorn's timeout for the next request; meanwhile the greenlet is in the set of idle ones."""

    __slots__ = ("_idle", "_timeout")

    def __init__(self, idle: set[Any], timeout: Any) -> None:
        self._idle, self._timeout = idle, timeout

    def __enter__(self) -> None:
        self._idle.add(getcurrent())
        self._timeout.__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._idle.discard(getcurrent())
        return self._timeout.__exit__(*error)
