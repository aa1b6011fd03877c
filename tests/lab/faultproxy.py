"""A TCP proxy in front of the server that does harm on demand, and keeps a record of what went by.

Set an attribute and the next request obeys; call a method and the connections that live now are hit. One thread a
connection, looking at its orders every 20 ms.
"""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lab.processes import free_port
from lab.wire import HEAD_LIMIT, Body, Frame, FrameReader, Head

TICK = 0.02
CUT_AFTER = 0.3
KEPT = 1_000_000
UPGRADE_MODES = ("pass", "refuse", "hang", "strip", "mute", "cut")
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Seen:
    """One request and its answer; times are time.time(), so that a page's Date.now() compares."""

    at: float
    connection: int
    head: Head
    body: bytes = b""
    status: int = 0
    answer: Head | None = None
    answer_body: bytes = b""
    answered_at: float = 0.0
    ended_at: float = 0.0
    done_to_it: str = ""

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.head.target.split("?")[0]

    @property
    def is_upgrade(self) -> bool:
        """Whether it asked for a WebSocket."""
        return self.head.is_upgrade


@dataclass(eq=False)
class Connection:
    """One TCP connection from the client and, once needed, its other half to the server."""

    number: int
    client: socket.socket
    server: socket.socket | None = None
    websocket: bool = False
    swallow: bool = False
    reset: bool = False
    close: bool = False
    rest: bytes = field(default=b"", repr=False)


class Ended(Exception):
    """This connection is over."""


class FaultProxy:
    """Listens on a port of its own and passes everything to `target` until told otherwise.

    upgrade: pass; refuse (403 and close); hang (never answered); strip (the server sees a plain GET);
    mute (101 passes, then nothing does); cut (101 passes, closed 300 ms later).
    hang_paths: requests to paths that begin so are never answered. http_error: (status, headers) instead of the
    server's answer for paths that begin with http_error_on. lose_replies: how many answers to POSTs get lost after
    the server gave them. filter_for: requests whose body holds this get a filter's page with 403. blackhole_all:
    every connection swallows bytes, and one that did never recovers.
    readable: takes permessage-deflate out of the handshake so that frames can be read here.
    """

    def __init__(self, target: int, *, port: int | None = None, readable: bool = True) -> None:
        self.target = target
        self.port = port or free_port()
        self.readable = readable
        self.upgrade = "pass"
        self.hang_paths: tuple[str, ...] = ()
        self.http_error: tuple[int, dict[str, str]] | None = None
        self.http_error_on = "/changes"
        self.lose_replies = 0
        self.filter_for = b""
        self.blackhole_all = False
        self.requests: list[Seen] = []
        self.frames: list[Frame] = []
        self.accepted = 0
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._ending = False
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """Where clients reach the server through it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "FaultProxy":
        """Begins to listen."""
        self.accept_connections()
        return self

    def stop(self) -> None:
        """Ends everything; its threads are gone afterwards."""
        self._ending = True
        self.refuse_connections()
        for thread in self._threads:
            thread.join(5)
        alive = [thread for thread in self._threads if thread.is_alive()]
        assert not alive, f"threads of the fault proxy still run: {alive}"

    # --- what a test can do to it

    def refuse_connections(self) -> None:
        """New connections are refused from now on; living ones are left alone."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def accept_connections(self) -> None:
        """Listens (again) on the same port."""
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(128)
            self._listener = listener
            self._spawn(lambda: self._accept(listener))

    def reset_sockets(self) -> int:
        """RST to both ends of every live WebSocket; how many there were."""
        return self._order("reset", lambda connection: connection.websocket)

    def blackhole_sockets(self) -> int:
        """Every live WebSocket swallows its bytes in both directions for good, and stays open."""
        return self._order("swallow", lambda connection: connection.websocket)

    def reset_all(self) -> int:
        """RST to both ends of every live connection."""
        return self._order("reset", lambda connection: True)

    def network_down(self) -> None:
        """Nobody home: living connections are reset, new ones refused."""
        self.refuse_connections()
        self.reset_all()

    def heal(self) -> None:
        """Everything passes again; connections that were swallowed stay so."""
        self.upgrade, self.hang_paths, self.http_error = "pass", (), None
        self.lose_replies, self.filter_for, self.blackhole_all = 0, b"", False
        self.accept_connections()

    def _order(self, order: str, which: Callable[[Connection], bool]) -> int:
        with self._lock:
            hit = [connection for connection in self._connections if which(connection)]
        for connection in hit:
            setattr(connection, order, True)
        return len(hit)

    # --- what a test can ask it

    @property
    def sockets(self) -> int:
        """How many WebSockets live and pass bytes."""
        with self._lock:
            return sum(c.websocket and not c.swallow for c in self._connections)

    def seen(self, path: str, *, method: str = "", since: float = 0.0) -> list[Seen]:
        """The requests to one path."""
        return [
            seen
            for seen in list(self.requests)
            if seen.path == path and method in ("", seen.head.method) and seen.at >= since
        ]

    def upgrades(self, since: float = 0.0) -> list[Seen]:
        """The requests that asked for a WebSocket."""
        return [seen for seen in list(self.requests) if seen.is_upgrade and seen.at >= since]

    # --- one connection

    def _spawn(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="faultproxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._ending:
            try:
                client, _ = listener.accept()
            except OSError:  # closed: connections are refused from now on
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                connection = Connection(self.accepted, client)
                self._connections.add(connection)
            self._spawn(lambda c=connection: self._serve(c))  # type: ignore[misc]

    def _serve(self, connection: Connection) -> None:
        try:
            while True:
                self._one_request(connection)
        except (Ended, OSError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            for end in (connection.client, connection.server):
                if end is not None:
                    if connection.reset:
                        with contextlib.suppress(OSError):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    end.close()

    def _one_request(self, connection: Connection) -> None:
        head = Head.of(self._read_head(connection))
        seen = Seen(time.time(), connection.number, head)
        seen.body = self._read_body(connection, int(head.headers.get("content-length", "0")))
        self.requests.append(seen)
        try:
            if head.is_upgrade and self.upgrade in ("refuse", "hang"):
                seen.done_to_it = self.upgrade
                self._refuse(connection, seen) if self.upgrade == "refuse" else self._hang(connection)
            elif not head.is_upgrade and self.hang_paths and head.target.startswith(self.hang_paths):
                seen.done_to_it = "hang"
                self._hang(connection)
            elif self.filter_for and self.filter_for in seen.body:
                self._answer(connection, seen, 403, {})
            elif self.http_error and head.target.startswith(self.http_error_on):
                self._answer(connection, seen, *self.http_error)
            else:
                self._pass(connection, seen)
        finally:
            seen.ended_at = time.time()

    def _pass(self, connection: Connection, seen: Seen) -> None:
        mode = self.upgrade if seen.is_upgrade else "pass"
        seen.done_to_it = mode if mode != "pass" else ""
        names = ("upgrade", "connection", "sec-websocket-key", "sec-websocket-version") if mode == "strip" else ()
        if seen.is_upgrade and self.readable:
            names += ("sec-websocket-extensions",)
        server = self._server(connection)
        server.sendall((seen.head.without(*names) if names else seen.head.raw) + seen.body)
        head, rest = self._read_answer_head(connection, server)
        seen.answer, seen.status, seen.answered_at = head, head.status, time.time()
        if head.status == 101:
            connection.websocket = True  # before the client knows: its next order may come at once
            connection.client.sendall(head.raw)
            self._tunnel(connection, server, rest, mode)
        else:
            self._relay_answer(connection, server, seen, rest)
        if "close" in head.headers.get("connection", "").lower():
            raise Ended

    def _relay_answer(self, connection: Connection, server: socket.socket, seen: Seen, rest: bytes) -> None:
        assert seen.answer is not None
        losing = seen.head.method == "POST" and self.lose_replies > 0
        body = Body(seen.answer, seen.head.method)
        waiting = seen.answer.raw + rest
        seen.answer_body = rest
        body.feed(rest)
        while True:
            if not losing:
                connection.client.sendall(waiting)
            if body.done:
                break
            self._wait(connection, server, also_client=True)
            waiting = server.recv(65536)
            if not waiting:
                raise Ended
            seen.answer_body = (seen.answer_body + waiting)[:KEPT]
            body.feed(waiting)
        if losing:
            self.lose_replies -= 1
            seen.done_to_it, connection.reset = "reply lost", True
            raise Ended

    def _tunnel(self, connection: Connection, server: socket.socket, first: bytes, mode: str) -> None:
        began, client = time.monotonic(), connection.client
        readers = {client: FrameReader(connection.number, True), server: FrameReader(connection.number, False)}
        if mode == "mute":
            connection.swallow = True
        if first and not connection.swallow:
            self.frames += readers[server].feed(first, time.time())
            client.sendall(first)
        while True:
            for end in self._ready(connection, client, server):
                data = end.recv(65536)
                if not data:
                    raise Ended
                if not connection.swallow:
                    self.frames += readers[end].feed(data, time.time())
                    (server if end is client else client).sendall(data)
            if mode == "cut" and time.monotonic() - began > CUT_AFTER:
                raise Ended

    def _refuse(self, connection: Connection, seen: Seen) -> None:
        self._answer(connection, seen, 403, {"Connection": "close"})
        raise Ended

    def _answer(self, connection: Connection, seen: Seen, status: int, headers: dict[str, str]) -> None:
        body = b"<html><body>from the fault proxy</body></html>"
        lines = {"Content-Type": "text/html", "Content-Length": str(len(body))} | headers
        head = f"HTTP/1.1 {status} Fault\r\n" + "".join(f"{n}: {v}\r\n" for n, v in lines.items()) + "\r\n"
        seen.status, seen.answered_at, seen.done_to_it = status, time.time(), f"http {status}"
        connection.client.sendall(head.encode() + body)

    def _hang(self, connection: Connection) -> None:
        while True:
            for end in self._ready(connection, connection.client):
                if not end.recv(65536):
                    raise Ended

    def _server(self, connection: Connection) -> socket.socket:
        if connection.server is None:
            connection.server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            connection.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.server.settimeout(None)
        return connection.server

    # --- reading under orders

    def _ready(self, connection: Connection, *ends: socket.socket) -> list[socket.socket]:
        """The ends with something to read, after at most a tick; Ended when told to end."""
        if connection.reset or connection.close or self._ending:
            raise Ended
        if self.blackhole_all:
            connection.swallow = True
        ready, _, _ = select.select(ends, (), (), TICK)
        if not connection.swallow or connection.websocket:
            return ready
        for end in ready:  # a swallowed HTTP connection: bytes vanish, nothing is answered
            if not end.recv(65536):
                raise Ended
        return []

    def _wait(self, connection: Connection, end: socket.socket, *, also_client: bool = False) -> None:
        """Until `end` has something; a client that leaves meanwhile ends it, as the server must learn of that."""
        ends = (end, connection.client) if also_client else (end,)
        while True:
            ready = self._ready(connection, *ends)
            if end in ready:
                return
            if connection.client in ready:
                if not connection.client.recv(65536, socket.MSG_PEEK):
                    raise Ended
                time.sleep(TICK)  # a pipelined request: it waits its turn

    def _read_head(self, connection: Connection) -> bytes:
        while b"\r\n\r\n" not in connection.rest:
            self._more(connection)
            if len(connection.rest) > HEAD_LIMIT:
                raise Ended
        head, _, connection.rest = connection.rest.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def _read_body(self, connection: Connection, length: int) -> bytes:
        while len(connection.rest) < length:
            self._more(connection)
        body, connection.rest = connection.rest[:length], connection.rest[length:]
        return body

    def _more(self, connection: Connection) -> None:
        self._wait(connection, connection.client)
        data = connection.client.recv(65536)
        if not data:
            raise Ended
        connection.rest += data

    def _read_answer_head(self, connection: Connection, server: socket.socket) -> tuple[Head, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            self._wait(connection, server, also_client=True)
            more = server.recv(65536)
            if not more:
                raise Ended
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        return Head.of(head + b"\r\n\r\n"), rest

    def __enter__(self) -> "FaultProxy":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
