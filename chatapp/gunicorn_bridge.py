"""What reaches into gunicorn's inside: whether a connection may leave it, the way out, and the end of its request.

A connection that left while bytes of its request were still to come, and came back later, had these bytes read as the
next request: as another person's, where a proxy shares its connections. So only those leave whose request is all there
is, and none comes back.
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

LEAST_RATE = 1000  # bytes a second: what a body and the taking of an answer must reach after their first seconds
LONGEST_HEAD = 64 << 10  # bytes of a request's line and headers
MOST_DRAINED = 64 << 10  # bytes of a body that nobody wanted, so that the connection can be kept
LONGEST_PAUSE_S = 0.5  # between two looks at whether an answer is taken, after which the connection ends
TCP_CLOSE = b"\x07"  # the state of a connection that the other side has reset
TCP_ENDED = TCP_CLOSE, b"\x08"  # or has closed
DEFERRED_S = 1  # how long the kernel keeps a connection that says nothing
MOST_ACCEPTED = 4  # connections in a turn of the event loop: to accept is quicker than to serve, and all else waits
LINGER_S = 2.0  # for that, and for an answer to arrive at one who still sends


def tune(worker: Any) -> None:
    """Before a worker serves: what gunicorn finds out for each request, and is the same for all."""
    _read_settings_once(worker.cfg)
    _defer_accept(worker.sockets)
    # No header says anything about where a request comes from: `proxies` alone knows who is declared. Gunicorn would
    # parse each peer's address for that, and believe whoever comes by a unix socket.
    Request._peer_trusted_for_forwarded = lambda _request: ({}, [])
    errors = wsgi.WSGIErrorsWrapper(worker.cfg)  # it only knows where errors are written
    wsgi.WSGIErrorsWrapper = lambda _config: errors


def _read_settings_once(config: Any) -> None:
    """As plain attributes: gunicorn looks them up forty times a request, a tenth of a poll's cost."""
    vars(config).update({name: setting.get() for name, setting in config.settings.items()})


def _defer_accept(sockets: Iterable[Any]) -> None:
    """Have the kernel keep a new connection until its first bytes are there, or for a second, where it can. Its
    greenlet finds them at once; one that says nothing costs none meanwhile. Apache and nginx do the same."""
    for listener in sockets:
        if hasattr(socket, "TCP_DEFER_ACCEPT") and listener.family in (socket.AF_INET, socket.AF_INET6):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFERRED_S)


def has_body(environ: dict[str, Any]) -> bool:
    """Whether bytes follow the request's head."""
    return environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ


def is_plain(environ: dict[str, Any]) -> bool:
    """Whether gunicorn is there and the connection is TCP as it came: what gunicorn encrypts is of another type."""
    connection = environ.get("gunicorn.socket")
    return type(getattr(connection, "plain", connection)) is socket.socket


def can_detach(environ: dict[str, Any]) -> bool:
    """Whether this request's connection may leave gunicorn: plain, HTTP/1.1, and the request is all there is."""
    is_alone = not has_body(environ) and "HTTP_EXPECT" not in environ and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    return is_alone and is_plain(environ) and _nothing_is_buffered(environ)


def detach(environ: dict[str, Any]) -> int:
    """The connection's descriptor, which is the caller's from now on; gunicorn keeps an empty object to close."""
    return int(environ["gunicorn.socket"].detach())


def end_request() -> NoReturn:
    """Tell gunicorn that there is nothing to answer, and no next request."""
    raise StopIteration


def _nothing_is_buffered(environ: dict[str, Any]) -> bool:
    """False also where it cannot be known: another gunicorn, or another server."""
    unreader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    return unreader is not None and not unreader.buf.getvalue()


class Connection:
    """A connection as gunicorn's worker uses one: its socket, with a deadline for each thing that it waits for.

    A head has `HEAD_S`, from the connection's first moment or from a later request's first byte. A body, and the taking
    of an answer, have as long and more for each `LEAST_RATE` bytes that went by. Between requests it may be idle.
    """

    __slots__ = (
        "_began",
        "_forwarder",
        "_is_body",
        "_is_guest",
        "_is_seen",
        "_limits",
        "_request",
        "_sock",
        "_until",
        "address",
        "is_broken",
        "is_failed",
        "unread",
    )

    def __init__(self, sock: Any, limits: Limits, address: str) -> None:
        self._sock, self._limits, self.address = sock, limits, address
        self.unread = 0
        self._request: Any = None
        self._is_seen = self._is_body = self.is_failed = False
        self.is_broken = False  # what came of a body is no HTTP: nothing after it can be believed
        self._began = time.monotonic()
        self._until = self._began + limits.seconds
        self._is_guest = True
        self._forwarder = ""
        limits.strangers.add(self)

    @property
    def plain(self) -> Any:
        """The socket itself."""
        return self._sock

    # Whose it is

    def know(self) -> None:
        """A request on it brought a live session."""
        self._is_seen = True
        self._leave()
        if self._forwarder:
            self._limits.strangers.share(self._forwarder)
            self.belongs_to(self._forwarder)

    def belongs_to(self, peer: str) -> None:
        """Count it in this peer's budget."""
        address = self._limits.strangers.budget_of(peer)
        if address != self.address:
            was_guest = self._is_guest
            self._leave()
            self.address = address
            if was_guest:
                self._enter()

    def forwards(self, peer: str) -> None:
        """It says that it is a proxy's. Anybody can: so what it gains by that, it gets with a live session."""
        self._forwarder = peer
        if stands_for_many(peer):
            self._limits.strangers.share(peer)
        self.belongs_to(peer)

    def _enter(self) -> None:
        self._is_guest = True
        self._limits.strangers.add(self)

    def _leave(self) -> None:
        if self._is_guest:
            self._is_guest = False
            self._limits.strangers.remove(self)

    # Requests

    def begin_request(self, request: Any) -> None:
        """Its head is read: what comes now is its body."""
        self._request, self._is_body, self._is_seen = request, True, False
        self._forwarder = ""
        self._until = time.monotonic() + self._limits.seconds

    def end_request(self) -> None:
        """It is answered: the next one may come, in a while."""
        if not self._is_guest and not self._is_seen:
            self._enter()
        self.count(-self.unread)
        self._request, self._is_body, self._began = None, False, 0.0
        self._until = time.monotonic() + self._limits.idle_s

    def count(self, size: int) -> None:
        """So many bytes of the request are in memory, or are not any more."""
        if self._is_guest:
            self._limits.strangers.has_read(self, size)
        else:
            self.unread += size

    def leave_body(self) -> None:
        """Do not wait for its body: the answer is the last one here."""
        if self._request is not None:
            self._request.force_close()

    # The socket, for gunicorn

    def recv(self, size: int) -> bytes:
        """The next bytes; none where a head was late. Raises ConnectionError for a body that is late or cut."""
        try:
            data = self._recv(size)
        except OSError:  # late, or cut by us or the other side
            data = b""
        if data:
            self.count(len(data))
            self._extend(len(data))
        elif self._is_body:
            self.is_failed = True
            raise ConnectionResetError(errno.ECONNRESET, "the body did not come")
        return data

    def _recv(self, size: int) -> bytes:
        left = max(0.001, self._until - time.monotonic())
        waits = 0 if self._began or self._is_body else self._untaken()
        while waits and left > self._limits.seconds:  # idle, but the answer before must go on being taken
            try:
                self._sock.settimeout(self._limits.seconds)
                return bytes(self._sock.recv(size))
            except TimeoutError:
                waits = self._still_taken(waits)
                left -= self._limits.seconds
        self._sock.settimeout(left)
        return bytes(self._sock.recv(size))

    def _extend(self, size: int) -> None:
        if self._is_body:
            self._until += size / LEAST_RATE
        elif not self._began:
            self._began = time.monotonic()
            self._until = self._began + self._limits.seconds
        if not self._is_body and self.unread > LONGEST_HEAD:
            raise LimitRequestHeaders("the whole head")

    def sendall(self, data: bytes) -> None:
        """Write all, as quickly as it must be taken. Raises ConnectionError where it is not."""
        try:
            self._sock.settimeout(self._limits.seconds)
            sent = self._sock.send(data)
            if sent < len(data):
                self._send_on(memoryview(data)[sent:])
        except OSError:
            self.cut()
            raise ConnectionResetError(errno.ECONNRESET, "the answer was not taken") from None

    def _send_on(self, rest: memoryview) -> None:
        """The kernel has room once a third of its buffer, often a megabyte, is taken: so ask it how much that was."""
        waits = self._untaken()
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
                waits = self._untaken()
            except TimeoutError:
                waits = self._still_taken(waits)

    def _still_taken(self, before: int) -> int:
        """What waits now, where so much did `seconds` ago. Cuts and raises TimeoutError where it goes too slowly."""
        waits = self._untaken()
        if waits and before - waits < LEAST_RATE * self._limits.seconds:
            self.cut()
            raise TimeoutError
        return waits

    def _untaken(self) -> int:
        """Bytes of answers that the other side has not taken yet."""
        number = self._sock.fileno()
        if number < 0:  # closed, or somebody else's
            return 0
        return int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)

    send = sendall

    def setblocking(self, _: object) -> None:
        """It has deadlines instead."""

    settimeout = setblocking

    def gettimeout(self) -> None:
        """None that were gunicorn's."""

    def fileno(self) -> int:
        """The descriptor."""
        return int(self._sock.fileno())

    def shutdown(self, how: int) -> None:
        """Say that no more comes."""
        self._sock.shutdown(how)

    def detach(self) -> int:
        """The descriptor, which is somebody else's from now on."""
        self._leave()
        return int(self._sock.detach())

    def close(self) -> None:
        """The end, once what is written is taken."""
        try:
            with contextlib.suppress(OSError):  # it has failed already, or is cut
                self._see_off()
        finally:
            self._leave()
            self._sock.close()

    def _see_off(self) -> None:
        """Wait while the answer is taken. The kernel's own time-out looks at the window alone, and cuts who is slow."""
        waits, since, pause = self._untaken(), time.monotonic(), 0.01
        if waits:
            self._sock.shutdown(socket.SHUT_WR)
        while self._untaken() and self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_CLOSE:
            if time.monotonic() - since >= self._limits.seconds:
                waits, since = self._still_taken(waits), time.monotonic()
            sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)

    def cut(self) -> None:
        """Close now, whatever the kernel still has of an answer."""
        self.is_failed = True
        self._leave()
        with contextlib.suppress(OSError):  # it is closed already
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def drain(self, body: Any) -> bool:
        """Read what is left of a body; False where that is too much, so that the connection must end."""
        if not _is_left(body):
            return not self.is_broken
        self._until, read = time.monotonic() + LINGER_S, 0
        try:
            while read < MOST_DRAINED and (data := body.read(8192)):
                read += len(data)
                self.count(-len(data))
        except (OSError, ParseException):
            return False
        return not _is_left(body) and not self.is_broken

    def linger(self) -> None:
        """Have the answer arrive although more is being sent: else the kernel forgets it with what is unread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER_S
            while (left := until - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(65536):
                    break


def _is_left(body: Any) -> bool:
    reader = body.reader
    return bool(reader.parser) if isinstance(reader, ChunkedReader) else getattr(reader, "length", 0) > 0


@dataclass(frozen=True)
class Limits:
    """What connections of a worker may do."""

    strangers: Strangers
    seconds: float  # for a head, for the beginning of a body, for the taking of an answer
    idle_s: float  # between requests


class _Listener:
    """A listening socket that is asked for its name once, and not for each connection."""

    def __init__(self, sock: Any) -> None:
        self._sock, self._name = sock, sock.getsockname()

    def getsockname(self) -> Any:
        """Its address."""
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Worker(GeventWorker):  # type: ignore[misc]
    """Gunicorn's gevent worker, whose connections have deadlines."""

    limits: Limits
    _no_timeout = contextlib.nullcontext()

    def run(self) -> None:
        """Serve until the end."""
        StreamServer.max_accept = MOST_ACCEPTED
        self._listeners = {id(sock): _Listener(sock) for sock in self.sockets}
        super().run()

    def timeout_ctx(self) -> Any:
        """Gunicorn's own one for the next request is ours (`Connection`)."""
        return self._no_timeout

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection."""
        peer = addr[0] if isinstance(addr, tuple) else ""
        listener = self._listeners.get(id(listener), listener)
        super().handle(listener, Connection(client, self.limits, self.limits.strangers.budget_of(peer)), addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn could not understand in words, with one short line of log; the rest as gunicorn does."""
        found = answer_nonsense(exc)
        if found is None:
            super().handle_error(req, client, addr, exc)
            return
        status, name, words = found
        self.log.warning("refused a request from %s: %s", (addr or ("-",))[0], shown(str(exc)))
        body = words.encode()
        headers = [("Connection", "close"), *PLAIN, ("Content-Length", str(len(body)))]
        lines = [f"HTTP/1.1 {status} {name}", *(f"{header}: {value}" for header, value in headers), "", ""]
        try:
            write_nonblock(client, "\r\n".join(lines).encode() + body)
            client.linger()
        except OSError:
            self.log.debug("nobody was there for the answer")

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve a request. Raises StopIteration where none may follow it."""
        sock.begin_request(req)
        try:
            super().handle_request(listener_name, req, sock, addr)
            if sock.is_failed or not sock.drain(req.body):
                raise StopIteration
        except StopIteration:
            if not sock.is_failed and _is_left(req.body):
                sock.linger()
            raise
        sock.end_request()


def note_session(environ: dict[str, Any]) -> None:
    """Note that this request brought a live session."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, Connection):
        connection.know()


def break_off(environ: dict[str, Any]) -> None:
    """Have the connection end with this answer: its body is no HTTP, so that nothing after it can be believed."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, Connection):
        connection.is_broken = True
        connection.leave_body()


def has_left(environ: dict[str, Any]) -> bool:
    """Whether the other side has closed the connection, or its half of it: most likely nobody reads the answer."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, Connection) or connection.is_failed:
        return is_cut(environ)
    try:
        return bool(connection.plain.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 1) in TCP_ENDED)
    except OSError:  # a unix socket's
        return False


def is_cut(environ: dict[str, Any]) -> bool:
    """Whether the connection has ended meanwhile: nobody can be answered."""
    connection = environ.get("gunicorn.socket")
    return isinstance(connection, Connection) and connection.is_failed


def leave_body(environ: dict[str, Any]) -> None:
    """Have the connection end with this answer, and not wait for the request's body."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, Connection):
        connection.leave_body()


def note_address(environ: dict[str, Any], peer: str) -> None:
    """Count the connection where it belongs: `peer` is connected, the environment says for whom it asks."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, Connection):
        return
    address = environ.get("REMOTE_ADDR", "")
    if address != peer:  # a declared proxy says so
        connection.belongs_to(address)
    elif "HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ:
        connection.forwards(peer)


class IdleConnections:
    """A worker's connections that wait for a request: its end would wait for them, up to the graceful timeout."""

    def __init__(self, worker: Any) -> None:
        self._serve, self._patience = worker.handle, worker.timeout_ctx
        self._sockets: dict[Any, Any] = {}  # by the greenlet that serves it
        self._waiting: set[Any] = set()
        worker.handle, worker.timeout_ctx = self._handle, lambda: _Wait(self._waiting, self._patience())

    def _handle(self, listener: Any, client: Any, address: Any) -> None:
        me = getcurrent()
        self._sockets[me] = client
        try:
            self._serve(listener, client, address)
        finally:
            del self._sockets[me]

    def close(self) -> None:
        """End those that wait. A request that has arrived is read and answered all the same."""
        for greenlet in tuple(self._waiting):
            with contextlib.suppress(OSError):  # the other side was quicker
                self._sockets[greenlet].shutdown(socket.SHUT_RD)


class _Wait:
    """While gunicorn waits for a connection's next request, as long as it likes."""

    __slots__ = ("_patience", "_waiting")

    def __init__(self, waiting: set[Any], patience: Any) -> None:
        self._waiting, self._patience = waiting, patience

    def __enter__(self) -> None:
        self._waiting.add(getcurrent())
        self._patience.__enter__()

    def __exit__(self, *problem: Any) -> Any:
        self._waiting.discard(getcurrent())
        return self._patience.__exit__(*problem)
