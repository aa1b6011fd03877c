"""What an idle WebSocket holds in memory, and what opening one takes: counted, not timed."""

import gc
import io
import json
import socket
import sys
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from chatapp import create_app
from chatapp.accounts.auth import TOKEN, hash_token
from chatapp.bus import Bus
from chatapp.config import Settings
from chatapp.parts import Parts
from chatapp.store import Lives
from chatapp.transports.connections import STORE_AFTER_S
from chatapp.transports.subscriptions import Subscriber, Subscription
from chatapp.transports.websocket import WebSocketConnection

SOCKETS = 200
MOST_BYTES = 2700  # of Python's memory for one, with a feed of its own and what caches keep of both: 2,300, with room
MOST_CALLS = 420  # of Python functions, from the request to the feed's first answer: 350, with room
HOST = "127.0.0.1:8000"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = create_app(Settings(data_dir=tmp_path))
    parts: Parts = app.extensions["chatapp"]
    yield app
    gevent.sleep(2 * STORE_AFTER_S)
    parts.store.close()


class Visitor:
    """Somebody who is signed in, with a conversation, and opens WebSockets as gunicorn would hand them on."""

    def __init__(self, app: Flask, number: int, sockets: int = 1) -> None:
        self.app = app
        self.parts: Parts = app.extensions["chatapp"]
        people = self.parts.store.people
        self.person = people.add_admin(f"Ada {number}", f"ada-{number}@example.org", "x").id
        self.token = f"token-{number}"
        people.add_session(self.person, hash_token(self.token), Lives(3600, 3600, 3600), "127.0.0.1", "")
        self.feed = str(uuid.uuid4())
        self.parts.chat.create(self.person, self.feed)
        self.pairs = [socket.socketpair() for _ in range(sockets)]  # before anything is counted

    def request(self, ours: Any) -> dict[str, Any]:
        """The request's environment."""
        interface = self.app.session_interface
        assert isinstance(interface, SecureCookieSessionInterface)
        serializer = interface.get_signing_serializer(self.app)
        assert serializer is not None
        cookie = f"{interface.get_cookie_name(self.app)}={serializer.dumps({TOKEN: self.token})}"
        headers = {"CONNECTION": "Upgrade", "UPGRADE": "websocket", "COOKIE": cookie, "HOST": HOST}
        headers |= {"SEC_WEBSOCKET_VERSION": "13", "SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ=="}
        environ = {f"HTTP_{name}": value for name, value in headers.items()}
        environ |= {"HTTP_ORIGIN": f"http://{HOST}", "SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": "GET"}
        environ |= {"PATH_INFO": "/ws", "SCRIPT_NAME": "", "QUERY_STRING": "", "REMOTE_ADDR": "127.0.0.1"}
        server = {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "wsgi.url_scheme": "http"}
        return {
            **environ,
            **server,
            "wsgi.input": nothing_read_ahead(),
            "wsgi.errors": sys.stderr,
            "gunicorn.socket": ours,
        }

    def open(self) -> socket.socket:
        """A connection that follows the conversation; what it was told is read. The other end of its socket."""
        ours, theirs = self.pairs.pop()
        request = self.request(taken(ours))
        with pytest.raises(StopIteration):
            self.app.wsgi_app(request, lambda *_: None)
        assert theirs.recv(4096).startswith(b"HTTP/1.1 101 ")
        frame = {"type": "subscribe", "epoch": self.parts.epoch, "feeds": {self.feed: 1}}
        payload = json.dumps(frame).ljust(200).encode()  # long enough for a length of two bytes
        theirs.sendall(bytes((0x81, 0x80 | 126)) + len(payload).to_bytes(2, "big") + bytes(4) + payload)
        theirs.setblocking(False)
        for _ in range(100):
            gevent.sleep(0.001)
            try:
                assert b"<chat-feed" in theirs.recv(4096)
                return theirs
            except BlockingIOError:
                continue
        raise AssertionError("no answer")


def taken(ours: socket.socket) -> Any:
    """A socket as gunicorn's worker has it."""
    return gevent.socket.socket(ours.family, ours.type, fileno=ours.detach())


def nothing_read_ahead() -> Any:
    """A request's input as gunicorn makes it, with nothing behind the request."""
    unreader = SimpleNamespace(buf=io.BytesIO())
    return SimpleNamespace(reader=SimpleNamespace(unreader=unreader))


def counted(do: Callable[[], object]) -> int:
    """How many Python functions are called while it is done."""
    calls = [0]

    def count(_frame: object, event: str, _argument: object) -> None:
        calls[0] += event == "call"

    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(None)
    return calls[0]


@pytest.mark.timeout(60)
def test_an_idle_socket_holds_little(app: Flask) -> None:
    visitors = [Visitor(app, number) for number in range(SOCKETS + 20)]
    open_ = [visitor.open() for visitor in visitors[:20]]  # what is made once
    app.extensions["chatapp"].bus.publish([-1])  # permissions changed: who was seen lately is forgotten
    gc.collect()
    tracemalloc.start()
    try:
        open_ += [visitor.open() for visitor in visitors[20:]]
        gevent.sleep(2 * STORE_AFTER_S)
        app.extensions["chatapp"].bus.publish([-1])
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / SOCKETS
    finally:
        tracemalloc.stop()
        for theirs in open_:
            theirs.close()
    print(f"{each:.0f} bytes a socket")
    assert len(app.extensions["chatapp"].websockets) == SOCKETS + 20
    assert each < MOST_BYTES


def ours() -> list[object]:
    """What is in memory of any connection."""
    return [one for one in gc.get_objects() if isinstance(one, (WebSocketConnection, Subscriber, Subscription))]


@pytest.mark.timeout(60)
def test_one_that_ended_is_gone_at_once(app: Flask) -> None:
    """Not with the next full collection of garbage, which a worker with thousands of others seldom makes."""
    visitors = [Visitor(app, number) for number in range(8)]
    gc.collect()
    earlier = {id(one) for one in ours()}  # other tests of this process may keep some
    gc.disable()
    try:
        for visitor in visitors:
            visitor.open().close()
        connections = app.extensions["chatapp"].websockets
        for _ in range(100):
            gevent.sleep(STORE_AFTER_S / 10)
            if not len(connections):
                break
        gevent.sleep(2 * STORE_AFTER_S)
        assert [one for one in ours() if id(one) not in earlier] == []
    finally:
        gc.enable()


@pytest.mark.timeout(60)
def test_opening_one_takes_few_calls(app: Flask) -> None:
    visitor = Visitor(app, 1, sockets=4)
    open_ = [visitor.open()]
    each = []
    for _ in range(3):
        gevent.sleep(2 * STORE_AFTER_S)  # the events of the last one are stored
        each.append(counted(lambda: open_.append(visitor.open())))
    calls = min(each)  # on a slow machine events are stored while one opens
    print(calls, "calls")
    for theirs in open_:
        theirs.close()
    assert calls < MOST_CALLS


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"REQUEST_METHOD": "POST"}, "405"),
        ({"REQUEST_METHOD": "HEAD"}, "400"),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, "400"),
        ({"HTTP_CONNECTION": "keep-alive"}, "400"),
        ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, "426"),
        ({"HTTP_SEC_WEBSOCKET_KEY": "short"}, "400"),
        ({"HTTP_COOKIE": ""}, "401"),
        ({"HTTP_ORIGIN": "http://evil.example"}, "403"),
    ],
)
def test_what_the_door_does_not_let_in_flask_refuses(app: Flask, change: dict[str, str], status: str) -> None:
    visitor = Visitor(app, 1)
    ours, theirs = visitor.pairs.pop()
    said: list[str] = []
    mine = taken(ours)
    with mine, theirs:
        answer = app.wsgi_app({**visitor.request(mine), **change}, lambda line, *_: said.append(line))
        b"".join(answer)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    assert said[0].startswith(status)
    assert not len(app.extensions["chatapp"].websockets)


def test_a_topic_with_one_subscriber_and_with_several() -> None:
    bus, heard = Bus(), []
    one, two = heard.append, lambda topic: heard.append(-topic)
    bus.subscribe(1, one)
    bus.subscribe(1, one)
    bus.publish([1])
    assert heard == [1], "once however often it subscribes"
    bus.subscribe(1, two)
    bus.publish([1])
    assert heard == [1, 1, -1]
    bus.unsubscribe(1, two)
    bus.unsubscribe(1, two)
    bus.publish([1])
    assert heard == [1, 1, -1, 1]
    bus.unsubscribe(1, one)
    bus.publish([1, 2])
    assert len(heard) == 4 and bus.topics() == 0
