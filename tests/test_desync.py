"""A request's body is never read as a request, and nobody's request becomes part of another's: directly and by proxies.

Some requests that are answered before Flask leave gunicorn with their connection. Behind a proxy that shares its
connections, what is left of one person's request would be in front of another's.
"""

import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from lab.h2 import Stream
from lab.haproxy import HAProxy
from lab.http import Client
from lab.nginx import Nginx
from lab.processes import wait_for
from lab.server import Server
from lab.squid import Squid

FRONTS: dict[str, Callable[[int], HAProxy | Nginx | Squid]] = {
    "nginx": lambda port: Nginx("good", port),
    "haproxy": lambda port: HAProxy("shares", port),
    "haproxy-h2": lambda port: HAProxy("shares-h2", port),
    "squid": lambda port: Squid("good", port),
}
HTTP2 = ("haproxy-h2",)
REQUESTS = ("nothing-new", "news", "held", "upgrade")
ANSWERS = {"nothing-new": 204, "news": 200, "held": 204, "upgrade": 101}  # without a body
BODIES = ("none", "length", "chunked", "late", "pipelined")
HOLD_S = 0.4  # of a held poll; the server's timer makes up to a second of it
ANSWER_S = 1.8  # by then it is answered, or a proxy waits for a body
VICTIMS = 16  # requests of others afterwards: enough to meet each connection that a proxy keeps
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass
class Field:
    """A server, the proxies in front of it, and the two people."""

    server: Server
    ports: dict[str, int]
    me: Client
    conversation: str
    cursor: int

    def headers(self, request: str) -> dict[str, str]:
        """Of one of REQUESTS, without what belongs to a connection."""
        if request != "upgrade":
            return {"Cookie": self.me.cookie_header}
        origin = {"Origin": "http://chat.example.org"}
        return {"Cookie": self.me.cookie_header, "Sec-WebSocket-Version": "13"} | origin

    def path(self, request: str) -> str:
        """Of one of REQUESTS."""
        if request == "upgrade":
            return "/ws"
        cursor, wait = (0 if request == "news" else self.cursor), (HOLD_S if request == "held" else 0)
        return f"/changes?epoch={self.me.epoch}&c={self.conversation}:{cursor}&wait={wait:g}"

    def executed(self, marker: str) -> int:
        """How many requests the product has served whose path has this in it, once all so far are in the log."""
        last = f"/last-{uuid.uuid4()}"
        self.me.request("GET", last)
        wait_for(lambda: last in self.server.log.read_text(), 5, "the log is written")
        return self.server.log.read_text().count(marker)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with ExitStack() as stack:
        settings = {"assistant": "off", "allowed_origins": "http://chat.example.org"}
        server = stack.enter_context(Server(tmp_path_factory.mktemp("desync"), **settings))
        ports = {name: stack.enter_context(make(server.port)).port for name, make in FRONTS.items()}
        me = Client(server.url).sign_in()
        conversation = str(me.create("hello").json["conversation"])
        cursor = int(me.poll({conversation: 0}).page.one("chat-feed").get("to"))
        yield Field(server, ports | {"direct": server.port}, me, conversation, cursor)


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared servers outlive each test; they end with the module."""


class Plain:
    """One HTTP/1.1 connection on which somebody asks with a body that is another request."""

    def __init__(self, field: Field, port: int) -> None:
        self._field = field
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_S)

    def attack(self, request: str, kind: str, smuggled: bytes) -> list[int]:
        """Send it, and the statuses of the answers that come back on this connection."""
        head, body = self._written(request, kind, smuggled)
        if kind == "pipelined":
            self._socket.sendall(head + body)
            return self._statuses(2)
        self._socket.sendall(head)
        # In a segment of its own: else gunicorn has read it together with the head. Late: after the answer.
        found = self._statuses(1) if kind == "late" else []
        if kind != "late":
            time.sleep(0.02)
        try:
            self._socket.sendall(body)
        except OSError:
            return found
        return found or self._statuses(1)

    def _written(self, request: str, kind: str, smuggled: bytes) -> tuple[bytes, bytes]:
        lines = [f"GET {self._field.path(request)} HTTP/1.1", "Host: chat.example.org"]
        lines += [f"{name}: {value}" for name, value in self._field.headers(request).items()]
        if request == "upgrade":
            lines += ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}"]
        body = b"" if kind == "none" else smuggled
        if kind in ("length", "late"):
            lines.append(f"Content-Length: {len(smuggled)}")
        elif kind == "chunked":
            lines.append("Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
        return "\r\n".join([*lines, "", ""]).encode(), body

    def _statuses(self, count: int) -> list[int]:
        """Of so many answers, or of those that came by when the last is due."""
        text, found = b"", []
        try:
            while len(found) < count and (data := self._socket.recv(65536)):
                text += data
                found = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", text)]
        except (TimeoutError, ConnectionError):
            pass
        return found

    def close(self) -> None:
        """Gone without a word."""
        self._socket.close()


class ByHttp2:
    """The same on a stream of HTTP/2, where an upgrade is an extended CONNECT (RFC 8441)."""

    def __init__(self, field: Field, port: int) -> None:
        self._field = field
        self._stream = Stream("127.0.0.1", port, ANSWER_S)

    def attack(self, request: str, kind: str, smuggled: bytes) -> list[int]:
        """Send it, and the status of the answer."""
        is_upgrade = request == "upgrade"
        pseudo = {":method": "CONNECT" if is_upgrade else "GET", ":scheme": "http", ":path": self._field.path(request)}
        pseudo |= {":authority": "chat.example.org"} | ({":protocol": "websocket"} if is_upgrade else {})
        length = {"content-length": str(len(smuggled))} if kind in ("length", "late") else {}
        own = {name.lower(): value for name, value in self._field.headers(request).items()}
        self._stream.ask([*(pseudo | own | length).items()], ends=kind in ("none", "pipelined") and not is_upgrade)
        found = [self._stream.answer()] if kind == "late" else []
        if kind not in ("none", "pipelined"):
            try:
                self._stream.body(smuggled)
            except OSError:
                return found
        found = found or [self._stream.answer()]
        return [101] if is_upgrade and found == [200] else found

    def close(self) -> None:
        """Gone without a word."""
        self._stream.close()


def others_are_well(port: int, is_http2: bool) -> None:
    """Others, at the same time, get their own answers, on whichever connections the proxy has kept."""
    with ThreadPoolExecutor(VICTIMS) as pool:
        for status, text in pool.map(lambda _: asked(port, is_http2), range(VICTIMS)):
            assert (status, text) == (200, "ok\n")


def asked(port: int, is_http2: bool) -> tuple[int, str]:
    """Somebody's request at this port."""
    if not is_http2:
        answer = Client(f"http://127.0.0.1:{port}", ANSWER_S).request("GET", "/healthz")
        return answer.status, answer.text
    one = Stream("127.0.0.1", port, ANSWER_S)
    pseudo = {":method": "GET", ":scheme": "http", ":path": "/healthz", ":authority": "chat.example.org"}
    one.ask([*pseudo.items()], ends=True)
    status = one.answer()
    one.close()
    return status, one.text


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("front", ["direct", *FRONTS])
def test_a_body_is_never_executed(field: Field, front: str, request_: str) -> None:
    with ThreadPoolExecutor(len(BODIES)) as pool:
        for outcome in pool.map(lambda kind: one_attack(field, front, request_, kind), BODIES):
            assert outcome == ""


def one_attack(field: Field, front: str, request: str, kind: str) -> str:
    """What went wrong."""
    marker = f"executed-{uuid.uuid4()}"
    smuggled = f"GET /{marker} HTTP/1.1\r\nHost: chat.example.org\r\n\r\n".encode()
    one = (ByHttp2 if front in HTTP2 else Plain)(field, field.ports[front])
    try:
        found = one.attack(request, kind, smuggled)
        others_are_well(field.ports[front], front in HTTP2)
        # Two requests one after the other are two: the second is answered on its own connection, or not done.
        allowed = found.count(404) if kind == "pipelined" else 0
        executed = field.executed(marker)
    finally:
        one.close()
    is_well = executed == allowed and (kind != "none" or found == [ANSWERS[request]])
    return "" if is_well else f"{kind}: answered {found}, executed {executed} times"


@pytest.mark.parametrize("front", ["direct", *FRONTS])
def test_nobodys_request_becomes_anothers_message(field: Field, front: str) -> None:
    """The beginning of a post, whose body would be the next person's request with their cookie."""
    form = f"csrf_token={quote(field.me.token)}&client_id={uuid.uuid4()}&body=stolen"
    head = [f"POST /c/{field.conversation}/messages HTTP/1.1", "Host: chat.example.org", "Accept: application/json"]
    head += [f"Cookie: {field.me.cookie_header}", "Content-Type: application/x-www-form-urlencoded"]
    post = "\r\n".join([*head, f"Content-Length: {len(form) + 40}", "", form]).encode()
    posts = f'"POST /c/{field.conversation}/messages"'
    before = field.executed(posts)
    with ExitStack() as stack:
        # A proxy that keeps few other connections yet.
        port = stack.enter_context(FRONTS[front](field.server.port)).port if front in FRONTS else field.server.port
        for kind in ("length", "chunked", "late"):
            one = (ByHttp2 if front in HTTP2 else Plain)(field, port)
            stack.callback(one.close)
            one.attack("held", kind, post)
            others_are_well(port, front in HTTP2)
            assert field.executed(posts) == before, kind


def test_an_upgrade_with_a_body_is_refused_in_words(field: Field) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": KEY}
    answer = field.me.request("GET", "/ws", "a body", field.headers("upgrade") | headers)
    assert answer.status == 400 and "no body" in answer.text
