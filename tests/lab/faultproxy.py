"""A TCP proxy in front of the server that does harm on demand, and keeps a record of what went by.

Set an attribute and the next request obeys; call a method and the connections that live now are hit, at once. One
thread a connection, which sleeps until there is something to pass on or to obey.
"""

import contextlib
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lab.processes import free_port
from lab.wire import HEAD_LIMIT, Body, Frame, FrameReader, Head

CUT_AFTER = 0.3
LOST_ACK_S = 0.2
CACHED_S = 60.0
PIPELINED_S = 0.02
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
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.head.target.split("?")[0]

    @property
    def is_upgrade(self) -> bool:
        """Whether it asked for a WebSocket."""
        return self.head.is_upgrade

    @property
    def is_poll(self) -> bool:
        """Whether it belongs to the polling transport, ours or Engine.IO's."""
        return not self.is_upgrade and (self.path.endswith("/changes") or "transport=polling" in self.head.target)


@dataclass(eq=False)
class Connection:
    """One TCP connection from the client and, once needed, its other half to the server."""

    number: int
    client: socket.socket
    server: socket.socket | None = None
    server_port: int = 0
    websocket: bool = False
    swallow_up: bool = False
    swallow_down: bool = False
    reset: bool = False
    lose_ack: bool = False
    cut_in_frame: bool = False
    ends_at: float = math.inf
    rest: bytes = field(default=b"", repr=False)
    held: bytes = field(default=b"", repr=False)
    wake: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def swallow(self, direction: str) -> None:
        """Bytes of this direction (up, down, both) vanish from now on."""
        self.swallow_up = self.swallow_up or direction != "down"
        self.swallow_down = self.swallow_down or direction != "up"

    def abort(self) -> None:
        """RST to both ends, at once."""
        self.reset, self.ends_at = True, 0.0


class Ended(Exception):
    """This connection is over."""


class Swallowed(Exception):
    """Bytes to be passed on vanish: their reader waits for ever."""


class FaultProxy:
    """Listens on a port of its own and passes everything to `target` until told otherwise.

    routes: other servers, by the beginning of the path. upgrade: pass; refuse (403 and close); hang (never answered);
    strip (the server sees a plain GET); mute (101 passes, then nothing does); cut (101 passes, closed 300 ms later).
    hang_paths: requests to paths that begin so are never answered; hang_polls: nor are those of a polling transport.
    spoil: what becomes of a request, by a test's word: "" passes; "429" (any status) is the answer; "cut": half of it.
    http_error: (status, headers) instead of the server's answer for paths that begin with http_error_on.
    host: what the Host header becomes on the way.
    filter_for: requests whose body holds this get a filter's page with 403. lose_replies: how many answers to POSTs
    get lost after the server gave them. blackhole_all: every connection
    swallows bytes (True: of both directions; "up" or "down": of one), and one that did never recovers. longest_life:
    connections that begin now are cut after so many seconds. buffer_bytes: what the server says is held until so much
    has come or an answer is complete. rewrite: what is done to the body of each HTML answer, and to each text frame of
    a server. cut_news: of each poll with news only this share arrives, as from a proxy that
    says no length and ends. cache_polls: a poll is answered with what the same URL got in the last minute.
    readable: takes permessage-deflate out of the handshake so that frames can be read here; keep_frames: whether they
    are, which costs.
    """

    def __init__(
        self,
        target: int,
        *,
        port: int | None = None,
        routes: Mapping[str, int] | None = None,
        readable: bool = True,
        keep_frames: bool = True,
    ) -> None:
        self.target = target
        self.port = port or free_port()
        self.routes = dict(routes or {})
        self.readable = readable
        self.keep_frames = keep_frames
        self.upgrade = "pass"
        self.hang_paths: tuple[str, ...] = ()
        self.hang_polls = False
        self.spoil: Callable[[Seen], str] = lambda _: ""
        self.http_error: tuple[int, dict[str, str]] | None = None
        self.http_error_on = "/changes"
        self.lose_replies = 0
        self.longest_life = 0.0
        self.buffer_bytes = 0
        self.cut_news: list[float] = []
        self.cache_polls = False
        self.rewrite: Callable[[bytes], bytes] | None = None
        self.filter_for = b""
        self.host = ""
        self.requests: list[Seen] = []
        self.frames: list[Frame] = []
        self.accepted = 0
        self._blackhole = ""
        self._cache: dict[str, tuple[float, bytes]] = {}
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._ending = False
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def __setattr__(self, name: str, value: object) -> None:
        if "_threads" in self.__dict__ and not hasattr(self, name):
            raise AttributeError(f"there is no fault {name}: a test would try nothing")
        super().__setattr__(name, value)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "FaultProxy":
        """Begins to listen."""
        self.accept_connections()
        return self

    def stop(self) -> None:
        """Ends everything; its threads are gone afterwards."""
        self._ending = True
        self.refuse_connections()
        self._order(lambda connection: None)
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
            listener.listen(512)
            self._listener = listener
            self._spawn(lambda: self._accept(listener))

    @property
    def blackhole_all(self) -> bool | str:
        """Which directions of every connection vanish: True for both."""
        return True if self._blackhole == "both" else self._blackhole or False

    @blackhole_all.setter
    def blackhole_all(self, value: bool | str) -> None:
        direction = value if isinstance(value, str) else "both" if value else ""
        with self._lock:  # so that no connection that begins now is forgotten
            self._blackhole = direction
        if direction:
            self._order(lambda connection: connection.swallow(direction))

    def reset_sockets(self) -> int:
        """RST to both ends of every live WebSocket; how many there were."""
        return self._order(Connection.abort, sockets_only=True)

    def blackhole_sockets(self, direction: str = "both") -> int:
        """Every live WebSocket swallows its bytes (up, down or both) for good, and stays open."""
        return self._order(lambda connection: connection.swallow(direction), sockets_only=True)

    def blackhole_connections(self, direction: str = "both") -> int:
        """The same for every live connection, HTTP or WebSocket; new ones pass: another address, another route."""
        return self._order(lambda connection: connection.swallow(direction))

    def cut_in_frame(self) -> int:
        """Every live WebSocket ends in the middle of the next thing that the server says."""
        return self._order(lambda connection: setattr(connection, "cut_in_frame", True), sockets_only=True)

    def lose_acks(self) -> int:
        """Every live WebSocket passes the client's next word on, loses the answer, and is reset 200 ms later."""
        return self._order(lambda connection: setattr(connection, "lose_ack", True), sockets_only=True)

    def reset_all(self) -> int:
        """RST to both ends of every live connection."""
        return self._order(Connection.abort)

    def network_down(self) -> None:
        """Nobody home: living connections are reset, new ones refused."""
        self.refuse_connections()
        self.reset_all()

    def heal(self) -> None:
        """Everything passes again; connections that were swallowed stay so."""
        self.upgrade, self.hang_paths, self.http_error = "pass", (), None
        self.lose_replies, self.blackhole_all, self.hang_polls = 0, False, False
        self.filter_for, self.host, self.rewrite = b"", "", None
        self.longest_life, self.buffer_bytes, self.cache_polls, self.cut_news = 0.0, 0, False, []
        self.accept_connections()

    def _order(self, act: Callable[[Connection], None], *, sockets_only: bool = False) -> int:
        with self._lock:
            hit = [connection for connection in self._connections if connection.websocket or not sockets_only]
            for connection in hit:
                act(connection)
                os.eventfd_write(connection.wake, 1)
        return len(hit)

    # --- what a test can ask it

    @property
    def sockets(self) -> int:
        """How many WebSockets live and pass bytes."""
        with self._lock:
            return sum(c.websocket and not (c.swallow_up or c.swallow_down) for c in self._connections)

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
                if self._blackhole:
                    connection.swallow(self._blackhole)
                if self.longest_life:
                    connection.ends_at = time.monotonic() + self.longest_life
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
                os.close(connection.wake)
            for end in (connection.client, connection.server):
                if end is not None:
                    if connection.reset:
                        with contextlib.suppress(OSError):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    end.close()

    def _one_request(self, connection: Connection) -> None:
        head = Head.of(self._read_head(connection))
        seen = Seen(time.time(), connection.number, head)
        body = self._read_body(connection, int(head.headers.get("content-length", "0")))
        seen.body, seen.bytes_up = body, len(head.raw) + len(body)
        self.requests.append(seen)
        try:
            self._treat(connection, seen, body)
        except Swallowed:
            seen.done_to_it = "swallowed"
            self._hang(connection)
        finally:
            seen.ended_at = time.time()

    def _treat(self, connection: Connection, seen: Seen, body: bytes) -> None:
        """Pass a request on, or do to it what the orders say."""
        if connection.swallow_up:
            raise Swallowed
        if seen.is_upgrade and self.upgrade in ("refuse", "hang"):
            seen.done_to_it = self.upgrade
            self._refuse(connection, seen) if self.upgrade == "refuse" else self._hang(connection)
        elif self._is_to_hang(seen):
            seen.done_to_it = "hang"
            self._hang(connection)
        elif self.filter_for and self.filter_for in body:
            self._answer(connection, seen, 403, {})
        elif (how := self.spoil(seen)).isdigit():
            self._answer(connection, seen, int(how), {})
        elif how == "cut":
            self._cut(connection, seen)
        elif self.http_error and seen.head.target.startswith(self.http_error_on):
            self._answer(connection, seen, *self.http_error)
        elif self.cache_polls and (cached := self._cached(seen)):
            seen.done_to_it, seen.status = "cached", Head.of(cached.partition(b"\r\n\r\n")[0]).status
            self._to_client(connection, seen, cached)
            raise Ended
        else:
            self._pass(connection, seen, body)

    def _cut(self, connection: Connection, seen: Seen) -> None:
        """Half of the server's answer, and the end."""
        server = self._server(connection, seen.path)
        server.sendall(seen.head.raw)
        seen.answer, rest = self._read_answer_head(connection, server)
        seen.status, seen.done_to_it = seen.answer.status, "cut"
        half = int(seen.answer.headers.get("content-length", "0")) // 2
        while len(rest) < half:
            rest += self._from_server(connection, server)
        self._to_client(connection, seen, seen.answer.raw + rest[:half])
        raise Ended

    def _is_to_hang(self, seen: Seen) -> bool:
        by_path = self.hang_paths and seen.head.target.startswith(self.hang_paths)
        return not seen.is_upgrade and bool(by_path or (self.hang_polls and seen.is_poll))

    def _cached(self, seen: Seen) -> bytes:
        until, answer = self._cache.get(seen.head.target, (0.0, b""))
        return answer if _may_cache(seen) and time.monotonic() < until else b""

    def _pass(self, connection: Connection, seen: Seen, body: bytes) -> None:
        mode = self.upgrade if seen.is_upgrade else "pass"
        seen.done_to_it = mode if mode != "pass" else ""
        names = ("upgrade", "connection", "sec-websocket-key", "sec-websocket-version") if mode == "strip" else ()
        if seen.is_upgrade and self.readable:
            names += ("sec-websocket-extensions",)
        server = self._server(connection, seen.path)
        raw = seen.head.without(*names) if names else seen.head.raw
        if self.host:
            raw = Head.of(raw).without("host")[:-2] + f"Host: {self.host}\r\n\r\n".encode()
        server.sendall(raw + body)
        head, rest = self._read_answer_head(connection, server)
        seen.answer, seen.status, seen.answered_at = head, head.status, time.time()
        if head.status == 101:
            connection.websocket = True  # before the client knows: its next order may come at once
            self._to_client(connection, seen, head.raw)
            self._tunnel(connection, server, seen, rest, mode)
        else:
            self._relay_answer(connection, server, seen, rest)
        if "close" in head.headers.get("connection", "").lower():
            raise Ended

    def _to_client(self, connection: Connection, seen: Seen, data: bytes) -> None:
        if connection.swallow_down:
            raise Swallowed
        connection.client.sendall(data)
        seen.bytes_down += len(data)

    def _relay_answer(self, connection: Connection, server: socket.socket, seen: Seen, rest: bytes) -> None:
        assert seen.answer is not None
        losing = seen.head.method == "POST" and self.lose_replies > 0
        cutting = seen.is_poll and seen.status == 200 and bool(self.cut_news)
        rewriting = self.rewrite if "html" in seen.answer.headers.get("content-type", "") else None
        body = Body(seen.answer, seen.head.method)
        whole = waiting = seen.answer.raw + rest
        seen.answer_body = rest
        body.feed(rest)
        while True:
            if not losing and not cutting and not rewriting and (body.done or len(waiting) >= self.buffer_bytes):
                self._to_client(connection, seen, waiting)
                waiting = b""
            if body.done:
                break
            more = self._from_server(connection, server)
            waiting += more
            whole = (whole + more)[:KEPT]
            seen.answer_body = (seen.answer_body + more)[:KEPT]
            body.feed(more)
        if self.cache_polls and _may_cache(seen) and len(whole) < KEPT:
            self._cache[seen.head.target] = (time.monotonic() + CACHED_S, whole)
        if rewriting and not losing:
            said = rewriting(whole[len(seen.answer.raw) :])
            head = seen.answer.without("content-length")[:-2] + b"Content-Length: %d\r\n\r\n" % len(said)
            seen.done_to_it = "rewritten" if whole[len(seen.answer.raw) :] != said else ""
            self._to_client(connection, seen, head + said)
        if cutting:
            seen.done_to_it, said = "cut", whole[len(seen.answer.raw) :]
            said = said[: int(len(said) * self.cut_news.pop(0))]
            self._to_client(connection, seen, seen.answer.without("content-length") + said)
            raise Ended
        if losing:
            self.lose_replies -= 1
            seen.done_to_it, connection.reset = "reply lost", True
            raise Ended

    def _tunnel(self, connection: Connection, server: socket.socket, seen: Seen, first: bytes, mode: str) -> None:
        client = connection.client
        readers = {client: FrameReader(connection.number, True), server: FrameReader(connection.number, False)}
        if mode == "mute":
            connection.swallow("both")
        if mode == "cut":
            connection.ends_at = min(connection.ends_at, time.monotonic() + CUT_AFTER)
        if first:
            self._down(connection, seen, readers[server], first)
        while True:
            for end in self._ready(connection, client, server):
                data = end.recv(65536)
                if not data:
                    raise Ended
                if end is client:
                    self._up(connection, seen, readers[client], data)
                else:
                    self._down(connection, seen, readers[server], data)

    def _up(self, connection: Connection, seen: Seen, reader: FrameReader, data: bytes) -> None:
        """What the client says on a WebSocket."""
        seen.bytes_up += len(data)
        if connection.lose_ack and not connection.swallow_down:
            connection.swallow_down = True
            connection.ends_at, connection.reset = time.monotonic() + LOST_ACK_S, True
        if connection.swallow_up or connection.server is None:
            return
        if self.keep_frames:
            self.frames += reader.feed(data, time.time())
        connection.server.sendall(data)

    def _down(self, connection: Connection, seen: Seen, reader: FrameReader, data: bytes) -> None:
        """What the server says on a WebSocket."""
        if connection.swallow_down:
            return
        connection.held += data
        if len(connection.held) < self.buffer_bytes:
            return
        data, connection.held = connection.held, b""
        if connection.cut_in_frame:
            connection.client.sendall(data[: len(data) // 2])
            raise Ended
        if self.keep_frames or self.rewrite:
            found = reader.feed(data, time.time())
            self.frames += found
            data = b"".join(frame.rewritten(self.rewrite) for frame in found) if self.rewrite else data
        connection.client.sendall(data)
        seen.bytes_down += len(data)

    def _refuse(self, connection: Connection, seen: Seen) -> None:
        self._answer(connection, seen, 403, {"Connection": "close"})
        raise Ended

    def _answer(self, connection: Connection, seen: Seen, status: int, headers: dict[str, str]) -> None:
        body = b"<html><body>from the fault proxy</body></html>"
        lines = {"Content-Type": "text/html", "Content-Length": str(len(body))} | headers
        head = f"HTTP/1.1 {status} Fault\r\n" + "".join(f"{n}: {v}\r\n" for n, v in lines.items()) + "\r\n"
        seen.status, seen.answered_at, seen.done_to_it = status, time.time(), f"http {status}"
        self._to_client(connection, seen, head.encode() + body)

    def _hang(self, connection: Connection) -> None:
        while True:
            for end in self._ready(connection, connection.client):
                if not end.recv(65536):
                    raise Ended

    def _server(self, connection: Connection, path: str) -> socket.socket:
        port = next((port for start, port in self.routes.items() if path.startswith(start)), self.target)
        if connection.server is not None and connection.server_port != port:  # a proxy before this one shares it
            connection.server.close()
            connection.server = None
        if connection.server is None:
            connection.server, connection.server_port = socket.create_connection(("127.0.0.1", port), timeout=5), port
            connection.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.server.settimeout(None)
        return connection.server

    # --- reading under orders

    def _ready(self, connection: Connection, *ends: socket.socket) -> list[socket.socket]:
        """The ends with something to read, none where an order came instead; Ended when it is over."""
        left = connection.ends_at - time.monotonic()
        if left <= 0 or self._ending:
            raise Ended
        waiting = select.poll()
        for end in (connection.wake, *ends):
            waiting.register(end, select.POLLIN)
        found = {number for number, _ in waiting.poll(None if left == math.inf else math.ceil(left * 1000))}
        if connection.wake in found:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(connection.wake)
            return []
        return [end for end in ends if end.fileno() in found]

    def _from_server(self, connection: Connection, server: socket.socket) -> bytes:
        """The next bytes of an answer."""
        self._wait(connection, server, also_client=True)
        data = server.recv(65536)
        if connection.swallow_down:
            raise Swallowed
        if not data:
            raise Ended
        return data

    def _wait(self, connection: Connection, end: socket.socket, *, also_client: bool = False) -> None:
        """Until `end` has something; a client that leaves meanwhile ends it, as the server must learn of that."""
        ends = (end, connection.client) if also_client else (end,)
        while True:
            ready = self._ready(connection, *ends)
            if also_client and connection.swallow_up and connection.swallow_down:
                raise Swallowed
            if end in ready:
                return
            if connection.client in ready:
                if not connection.client.recv(65536, socket.MSG_PEEK):
                    raise Ended
                time.sleep(PIPELINED_S)  # a pipelined request: it waits its turn

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
            data += self._from_server(connection, server)
        head, _, rest = data.partition(b"\r\n\r\n")
        return Head.of(head + b"\r\n\r\n"), rest

    def __enter__(self) -> "FaultProxy":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _may_cache(seen: Seen) -> bool:
    return seen.head.method == "GET" and seen.is_poll
