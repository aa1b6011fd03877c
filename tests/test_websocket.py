"""The WebSocket of the stack, repaired: hostile frames, origins, slow readers, floods, the drain, its own log line."""

import json
import os
import re
import signal
import socket
import sqlite3
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from lab.http import JSON, Client
from lab.peer import PollingPeer, WebSocketPeer
from lab.processes import wait_for
from lab.server import Server
from lab.wire import Frame, FrameReader, Head

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class RawWebSocket:
    """A WebSocket without manners: says only what it is told to, reads only when asked, answers no ping."""

    def __init__(self, client: Client, *, receive_buffer: int = 0, without: str = "", **headers: str) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect((client.host, client.port))
        self.frames: list[Frame] = []
        self.is_ended = False
        self._reader = FrameReader(1, up=False)
        self.socket.sendall(self._request(client, without, headers))
        raw = b""
        while b"\r\n\r\n" not in raw:
            data = self.socket.recv(65536)
            assert data, f"no head: {raw!r}"
            raw += data
        head, _, rest = raw.partition(b"\r\n\r\n")
        self.head, self.body = Head.of(head + b"\r\n\r\n"), rest
        if self.head.status == 101:
            self.frames += self._reader.feed(rest, time.monotonic())

    def _request(self, client: Client, without: str, headers: dict[str, str]) -> bytes:
        sent = {"Host": f"{client.host}:{client.port}", "Upgrade": "websocket", "Connection": "Upgrade"}
        sent |= {"Sec-WebSocket-Key": KEY, "Sec-WebSocket-Version": "13"}
        sent |= {"Origin": client.url, "Cookie": client.cookie_header}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in sent.items() if name.lower() != without.lower()]
        return "\r\n".join(["GET /ws HTTP/1.1", *lines, "", ""]).encode()

    def frame(self, payload: str | bytes, opcode: int = TEXT, first: int = 0x80) -> None:
        """One frame; `first` holds the FIN bit and the reserved ones."""
        data = payload.encode() if isinstance(payload, str) else payload
        size = len(data)
        if size < 126:
            length = bytes([0x80 | size])
        else:
            length = bytes([0xFE]) + struct.pack("!H", size) if size < 1 << 16 else b"\xff" + struct.pack("!Q", size)
        self.socket.sendall(bytes([first | opcode]) + length + b"\0\0\0\0" + data)  # a mask of zeros

    def say(self, **message: Any) -> None:
        """A frame of the protocol."""
        self.frame(json.dumps(message, ensure_ascii=False, separators=(",", ":")))

    def read(self, timeout: float) -> list[Frame]:
        """What comes within `timeout` s, at the latest with the next bytes; notes the end of the stream."""
        self.socket.settimeout(max(timeout, 0.001))
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            return []
        except ConnectionError:
            data = b""
        self.is_ended = not data
        found = self._reader.feed(data, time.monotonic())
        self.frames += found
        return found

    def until(self, condition: Callable[[Frame], bool], timeout: float = 10.0) -> Frame:
        """The first frame, also of those read before, for which the condition holds."""
        end, seen = time.monotonic() + timeout, 0
        while True:
            for frame in self.frames[seen:]:
                if condition(frame):
                    return frame
            seen = len(self.frames)
            assert not self.is_ended, f"ended before; last came {[f.text[:200] for f in self.frames[-3:]]}"
            assert time.monotonic() < end, f"not within {timeout:g} s"
            self.read(end - time.monotonic())

    def closed(self, timeout: float = 10.0) -> tuple[int, str]:
        """Code and reason of the close frame."""
        frame = self.until(lambda frame: frame.opcode == CLOSE, timeout)
        return frame.close_code, frame.payload[2:].decode()

    @property
    def connection(self) -> str:
        """The server's name of this connection."""
        hello = self.until(lambda frame: frame.opcode == TEXT).text
        return hello.partition('connection="')[2].partition('"')[0]

    def reset(self) -> None:
        """Ends it with a TCP reset, as a network that breaks."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> "RawWebSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def closings(server: Server, connection: str) -> list[dict[str, Any]]:
    """The server-close events of a connection."""
    with closing(sqlite3.connect(f"file:{server.data}/metrics.db?mode=ro", uri=True)) as database:
        query = "select data, transport, person from connection_events where client = ? and type = 'server-close'"
        rows = database.execute(query, [connection]).fetchall()
    return [json.loads(data) | {"transport": transport, "person": person} for data, transport, person in rows]


def closing_of(server: Server, connection: str, timeout: float = 5.0) -> dict[str, Any]:
    """The one server-close event, once it is stored."""
    wait_for(lambda: closings(server, connection), timeout, "the close is stored")
    (event,) = closings(server, connection)
    return event


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the defaults for most tests of this file; nobody answers."""
    with Server(tmp_path_factory.mktemp("websocket"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture
def raw(me: Client) -> Iterator[RawWebSocket]:
    """A connection that is open."""
    with RawWebSocket(me) as socket_:
        assert socket_.head.status == 101
        assert socket_.until(lambda frame: True).text.startswith("<chat-hello ")
        yield socket_


@pytest.fixture
def no_traceback(shared: Server) -> Iterator[None]:
    """Whatever a client sends, the server's log has no traceback for it."""
    before = shared.log.stat().st_size
    yield
    time.sleep(0.1)
    new = shared.log.read_bytes()[before:].decode(errors="replace")
    assert "Traceback" not in new, new[-3000:]


# Hostile frames

NESTED = "[" * 250 + "]" * 250
BAD_FRAMES = {
    "no JSON": "{",
    "deep JSON": NESTED,
    "deep object": '{"a":' * 80 + "1" + "}" * 80,
    "an array": "[1,2]",
    "a number": "7",
    "null": "null",
    "not a number": '{"type":"echo","n":NaN}',
    "infinity": '{"type":"subscribe","epoch":"x","feeds":{"list":Infinity}}',
    "unknown type": '{"type":"dance"}',
    "type of another type": '{"type":{"a":1}}',
    "surrogate type": '{"type":"\\ud800"}',
    "no type": '{"n":1}',
    "send without a body": '{"type":"send","conversation":"x","client_id":"y"}',
    "send with a number": '{"type":"send","conversation":"x","client_id":"y","body":7}',
    "echo of a truth value": '{"type":"echo","n":true}',
    "echo of a text": '{"type":"echo","n":"1"}',
    "huge cursor": '{"type":"subscribe","epoch":"x","feeds":{"list":' + "9" * 200 + "}}",
    "negative cursor": '{"type":"subscribe","epoch":"x","feeds":{"list":-1}}',
    "feeds as a list": '{"type":"subscribe","epoch":"x","feeds":["list"]}',
    "unsubscribe of numbers": '{"type":"unsubscribe","feeds":[1]}',
}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("text", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_frame_that_is_no_frame_gets_an_error_and_the_connection_goes_on(raw: RawWebSocket, text: str) -> None:
    raw.frame(text)
    assert raw.until(lambda frame: "<chat-error" in frame.text).text.startswith('<chat-error code="bad-frame">')
    raw.say(type="echo", n=7)
    assert raw.until(lambda frame: "<chat-echo" in frame.text).text == '<chat-echo n="7"></chat-echo>'


LONE_SURROGATES = {
    "client id": '{"type":"send","conversation":"CONVERSATION","client_id":"\\ud800","body":"x"}',
    "body": '{"type":"send","conversation":"CONVERSATION","client_id":"0b7c7c52-0000-4000-8000-000000000001",'
    '"body":"\\udfff"}',
    "conversation": '{"type":"send","conversation":"\\ud800","client_id":"x","body":"x"}',
    "feed": '{"type":"subscribe","epoch":"EPOCH","feeds":{"\\ud800":0}}',
    "feed of another epoch": '{"type":"subscribe","epoch":"x","feeds":{"\\ud800":0}}',
    "epoch": '{"type":"subscribe","epoch":"\\ud800","feeds":{"list":0}}',
    "unsubscribe": '{"type":"unsubscribe","feeds":["\\ud800"]}',
    "feed with a nul": '{"type":"subscribe","epoch":"EPOCH","feeds":{"\\u0000":0}}',
}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("text", LONE_SURROGATES.values(), ids=LONE_SURROGATES.keys())
def test_half_a_character_harms_nobody(me: Client, raw: RawWebSocket, text: str) -> None:
    conversation = me.create("hello").json["conversation"]
    raw.frame(text.replace("EPOCH", me.epoch).replace("CONVERSATION", conversation))
    raw.say(type="echo", n=7)
    raw.until(lambda frame: "<chat-echo" in frame.text)
    assert all(frame.opcode == TEXT for frame in raw.frames)


@pytest.mark.usefixtures("no_traceback")
def test_a_huge_number_is_echoed_or_refused_but_never_harms(raw: RawWebSocket) -> None:
    raw.frame('{"type":"echo","n":' + "9" * 400 + "}")
    raw.say(type="echo", n=7)
    raw.until(lambda frame: '<chat-echo n="7">' in frame.text)


CLOSING_FRAMES: dict[str, tuple[tuple[bytes, int, int], int]] = {
    "a binary frame": ((b"\x00\x01", BINARY, 0x80), 1003),
    "text that is no UTF-8": ((b"\xff\xfe", TEXT, 0x80), 1007),
    "a reserved opcode": ((b"x", 3, 0x80), 1002),
    "a reserved bit": ((b"x", TEXT, 0xC0), 1002),
    "a continuation of nothing": ((b"x", 0, 0x80), 1002),
    "a ping that is too long": ((b"x" * 126, PING, 0x80), 1002),
    "a ping in fragments": ((b"x", PING, 0), 1002),
}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize(("frame", "code"), CLOSING_FRAMES.values(), ids=CLOSING_FRAMES.keys())
def test_a_frame_against_the_rules_closes_with_its_code(
    shared: Server, raw: RawWebSocket, frame: tuple[bytes, int, int], code: int
) -> None:
    raw.frame(*frame)
    assert raw.closed()[0] == code
    assert all(b"<html" not in frame.payload.lower() for frame in raw.frames)
    assert shared.status("/healthz") == 200


def test_ten_bad_frames_are_enough(raw: RawWebSocket) -> None:
    for _ in range(10):
        raw.frame("{")
    assert raw.closed()[0] == 1008


def test_a_message_in_fragments_is_one_message(raw: RawWebSocket) -> None:
    raw.frame('{"type":"ec', TEXT, 0)
    raw.frame("", PING)
    raw.frame('ho","n":3}', 0)
    raw.until(lambda frame: frame.text == '<chat-echo n="3"></chat-echo>')
    assert raw.until(lambda frame: frame.opcode == PONG)


@pytest.mark.parametrize("unit", ["x", "ä", "👍"])
def test_fragments_count_together_towards_the_limit(raw: RawWebSocket, unit: str) -> None:
    raw.frame(unit * (240 // len(unit.encode())), TEXT, 0)
    raw.frame(unit * (240 // len(unit.encode())), 0, 0)
    raw.frame(unit * (240 // len(unit.encode())), 0)
    assert raw.closed()[0] == 1009


def test_a_megabyte_in_one_frame_is_closed_as_too_big(raw: RawWebSocket) -> None:
    try:
        raw.frame("x" * (1 << 20))
    except ConnectionError:
        pass  # the server need not read it all
    assert raw.closed()[0] == 1009


@pytest.mark.parametrize("size", [600, 4000])
def test_the_close_of_a_message_that_is_too_big_is_stored_as_such(shared: Server, raw: RawWebSocket, size: int) -> None:
    raw.frame("x" * size)
    assert raw.closed()[0] == 1009
    assert closing_of(shared, raw.connection)["code"] == 1009


def test_a_connection_that_broke_is_stored_as_1006(shared: Server, raw: RawWebSocket) -> None:
    raw.reset()
    assert closing_of(shared, raw.connection)["code"] == 1006


def test_a_mistake_of_the_server_closes_with_1011_and_no_page(tmp_path, start_server) -> None:
    server = start_server(assistant="off")
    me = Client(server.url).sign_in()
    conversation = me.create("hello").json["conversation"]
    with RawWebSocket(me) as raw:
        raw.until(lambda frame: True)
        with closing(sqlite3.connect(server.data / "chat.db")) as database:
            database.execute("alter table messages rename to hidden")
            database.commit()
        raw.say(type="send", conversation=conversation, client_id=str(uuid.uuid4()), body="x")
        assert raw.closed()[0] == 1011
        assert not any("<html" in frame.text.lower() for frame in raw.frames)
        assert closing_of(server, raw.connection)["code"] == 1011
    assert server.status("/healthz") == 200


HOSTILE_EVENTS = {
    "infinity": '[{"client":"0b7c7c52-0000-4000-8000-000000000001","number":Infinity,"at":1,"type":"x"}]',
    "a surrogate": '[{"client":"0b7c7c52-0000-4000-8000-000000000001","number":1,"at":1,"type":"\\ud800"}]',
    "an object": '{"client":1}',
    "numbers": "[1]",
    "no JSON": "[",
    "deep": "[" * 5000,
    "no client": '[{"number":1,"at":1}]',
    "a client that is no text": '[{"client":7,"number":1,"at":1}]',
    "huge number": '[{"client":"0b7c7c52-0000-4000-8000-000000000001","number":' + "9" * 30 + ',"at":1}]',
}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("events", HOSTILE_EVENTS.values(), ids=HOSTILE_EVENTS.keys())
def test_a_hostile_report_of_events_is_refused(me: Client, events: str) -> None:
    assert me.post("/connection/events", JSON, events=events).status in (204, 400)


# The door: before the 101


HANDSHAKES = {
    "no key": "Sec-WebSocket-Key",
    "no version": "Sec-WebSocket-Version",
    "no upgrade": "Upgrade",
    "no connection": "Connection",
}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("without", HANDSHAKES.values(), ids=HANDSHAKES.keys())
def test_a_handshake_that_is_none_is_the_clients_mistake(me: Client, without: str) -> None:
    with RawWebSocket(me, without=without) as raw:
        assert raw.head.status in (400, 404, 426)


@pytest.mark.usefixtures("no_traceback")
def test_a_handshake_of_an_old_version_is_the_clients_mistake(me: Client) -> None:
    with RawWebSocket(me, Sec_WebSocket_Version="8") as raw:
        assert raw.head.status in (400, 426)


def test_the_own_origin_is_let_in(me: Client) -> None:
    with RawWebSocket(me) as raw:
        assert raw.head.status == 101
        assert "sec-websocket-extensions" not in raw.head.headers, "nobody asked for compression"
        assert raw.head.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert not raw.until(lambda frame: True).compressed


FOREIGN = {
    "foreign": "http://evil.example",
    "null": "null",
    "ours at the end": "http://evil.example/127.0.0.1:PORT",
    "ours at the start": "http://127.0.0.1:PORT.evil.example",
    "ours as a user": "http://127.0.0.1:PORT@evil.example",
    "another port": "http://127.0.0.1:1",
    "no port": "http://127.0.0.1",
    "another scheme": "https://127.0.0.1:PORT",
    "another name": "http://localhost:PORT",
    "two": "http://127.0.0.1:PORT http://evil.example",
    "empty": "",
}


@pytest.mark.parametrize("origin", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_origin_is_refused_before_the_101(me: Client, origin: str) -> None:
    with RawWebSocket(me, Origin=origin.replace("PORT", str(me.port))) as raw:
        assert raw.head.status == 403


def test_a_missing_origin_is_refused_before_the_101(me: Client) -> None:
    with RawWebSocket(me, without="Origin") as raw:
        assert raw.head.status == 403


UNDECLARED = {
    "host": {"Origin": "http://evil.example", "X_Forwarded_Host": "evil.example"},
    "scheme": {"Origin": "https://127.0.0.1:PORT", "X_Forwarded_Proto": "https"},
    "scheme by another name": {"Origin": "https://127.0.0.1:PORT", "X_Forwarded_Ssl": "on"},
}


@pytest.mark.parametrize("headers", UNDECLARED.values(), ids=UNDECLARED.keys())
def test_an_undeclared_proxy_has_no_say_in_what_is_the_own_origin(me: Client, headers: dict[str, str]) -> None:
    said = {name: value.replace("PORT", str(me.port)) for name, value in headers.items()}
    with RawWebSocket(me, **said) as raw:
        assert raw.head.status == 403


def test_an_undeclared_proxy_has_no_say_in_the_prefix(me: Client) -> None:
    answer = me.request("GET", "/healthz", headers={"SCRIPT_NAME": "/elsewhere"})
    assert answer.status == 200


@pytest.mark.parametrize("headers", [{"without": "Cookie"}, {"Cookie": "chatapp_x=y"}])
def test_who_is_signed_out_is_refused_before_the_101(me: Client, headers: dict[str, str]) -> None:
    with RawWebSocket(me, **headers) as raw:
        assert raw.head.status == 401


def test_public_url_and_allowed_origins_are_let_in(start_server: Callable[..., Server]) -> None:
    server = start_server(
        assistant="off",
        public_url="https://chat.example.org",
        allowed_origins="https://a.example.org, https://b.example.org:8443/",
    )
    me = Client(server.url)
    # A Secure cookie: the client of the lab sends it anyway.
    me.sign_in()
    allowed = ["https://chat.example.org", "https://a.example.org", "https://b.example.org:8443", server.url]
    for origin in allowed:
        with RawWebSocket(me, Origin=origin) as raw:
            assert raw.head.status == 101, origin
    for origin in ("http://chat.example.org", "https://b.example.org", "https://example.org", "https://c.example.org"):
        with RawWebSocket(me, Origin=origin) as raw:
            assert raw.head.status == 403, origin


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_declared_proxy_says_what_is_the_own_origin(start_server: Callable[..., Server], host: str) -> None:
    server = start_server(assistant="off", trusted_proxies="127.0.0.1", host=host)
    me = Client(server.url).sign_in()
    word = {"X_Forwarded_Host": "chat.example.org", "X_Forwarded_Proto": "https"}
    with RawWebSocket(me, Origin="https://chat.example.org", **word) as raw:
        assert raw.head.status == 101
    with RawWebSocket(me, Origin="http://chat.example.org", **word) as raw:
        assert raw.head.status == 403


def test_where_only_polling_is_offered_there_is_no_socket(start_server: Callable[..., Server]) -> None:
    server = start_server(assistant="off", transports="polling")
    with RawWebSocket(Client(server.url).sign_in()) as raw:
        assert raw.head.status in (403, 404)


# Order, slow readers, floods


def test_a_flood_of_echoes_is_answered_in_order(raw: RawWebSocket) -> None:
    count = 3000
    thread = threading.Thread(target=lambda: [raw.say(type="echo", n=n) for n in range(count)])
    thread.start()
    raw.until(lambda frame: frame.text == f'<chat-echo n="{count - 1}"></chat-echo>', timeout=30)
    thread.join(10)
    echoes = [frame.text for frame in raw.frames if frame.text.startswith("<chat-echo")]
    assert echoes == [f'<chat-echo n="{n}"></chat-echo>' for n in range(count)]


def heavy_conversations(client: Client, count: int, messages: int = 40) -> list[str]:
    """Conversations of long messages, each answered from cursor 0 with some 100 kB a message."""
    found = []
    for _ in range(count):
        conversation = client.create("heavy").json["conversation"]
        for number in range(messages):
            assert client.post_message(conversation, f"{number} " + '"' * 19_990).status == 201
        found.append(conversation)
    return found


def test_the_stream_of_a_slow_reader_stays_whole(shared: Server, me: Client) -> None:
    heavy = heavy_conversations(me, 2, 20)
    with RawWebSocket(me, receive_buffer=16_384) as raw:
        raw.until(lambda frame: True)
        for turn in range(5):
            raw.say(type="subscribe", epoch=me.epoch, feeds=dict.fromkeys(heavy, 0))
            raw.say(type="echo", n=turn)
            time.sleep(0.4)  # meanwhile the server writes against full buffers
            raw.until(lambda frame, turn=turn: frame.text == f'<chat-echo n="{turn}"></chat-echo>', timeout=20)
            wanted = 2 * (turn + 1)
            while sum(frame.text.startswith("<chat-feed") for frame in raw.frames) < wanted:
                raw.read(5)
    feeds = [frame for frame in raw.frames if frame.text.startswith("<chat-feed")]
    assert sum(frame.size for frame in feeds) > 15e6
    for conversation in heavy:
        whole = me.poll({conversation: 0}).page.one("chat-answer").source.strip()
        texts = {frame.payload.decode().strip() for frame in feeds if conversation in frame.text[:200]}
        assert texts == {whole}, "each frame is whole and what a poll brings"
    assert {frame.opcode for frame in raw.frames} == {TEXT}


def test_a_flood_waits_in_the_kernel_and_not_in_memory(shared: Server, me: Client) -> None:
    """A client that sends without reading is not read either, once the kernel's buffer is full of what it asked for.

    Each 400 bytes ask for 30: the kernel's some 4 MB of answers stand for some 50 MB of questions, none of them kept.
    """
    taken, most, rest = 0, 128 << 20, b""
    head = bytes([0x81, 0xFE]) + struct.pack("!H", 400) + b"\0\0\0\0"
    echo = '{"type":"echo","n":1}'
    chunk = (head + echo.ljust(400).encode()) * 256
    with RawWebSocket(me, receive_buffer=4096) as raw:
        raw.socket.settimeout(1.5)
        try:
            while taken < most:
                rest = rest or chunk
                sent = raw.socket.send(rest)
                taken, rest = taken + sent, rest[sent:]
        except (TimeoutError, ConnectionError):
            pass
        raw.reset()
    assert taken < most, "the server took a flood of 128 MB from a client that reads nothing"
    assert shared.status("/healthz") == 200


# The end: its log line, its event, the drain


def test_a_socket_that_ends_has_its_line_in_the_access_log_and_its_event(shared: Server, me: Client) -> None:
    with WebSocketPeer(me) as peer:
        peer.echo()
        name, person = peer.hello.get("connection"), me.get("/").page.one("body").get("data-person")
    event = closing_of(shared, name)
    assert (event["code"], event["transport"], event["person"]) == (1000, "websocket", person)
    assert 0 < event["seconds"] < 5
    assert event["in"] > 0 and event["out"] > 100
    line = re.compile(rf'127\.0\.0\.1 - {person} "WEBSOCKET /ws" 1000 in=(\d+) out=(\d+) [\d.]+s')
    assert line.search(shared.log_text())


def held_polls(server: Server, client: Client, count: int) -> tuple[list[threading.Thread], list[tuple[int, float]]]:
    """Polls that are held; their status and when they ended."""
    ended: list[tuple[int, float]] = []

    def poll() -> None:
        peer = PollingPeer(client)
        peer.subscribe({"list": 0})
        peer.poll(0)
        ended.append((peer.poll(20).status, time.monotonic()))

    threads = [threading.Thread(target=poll) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, ended


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["HUP", "TERM"])
def test_a_drain_closes_every_socket_with_advice_and_lets_the_polls_go(
    start_server: Callable[..., Server], number: signal.Signals
) -> None:
    server = start_server(assistant="off")
    me = Client(server.url).sign_in()
    peers = [WebSocketPeer(me) for _ in range(12)]
    names = [peer.hello.get("connection") for peer in peers]
    threads, ended = held_polls(server, Client(server.url).sign_in(), 2)
    time.sleep(0.5)
    assert server.process is not None
    start = time.monotonic()
    os.kill(server.process.pid, number)
    closings_ = [peer.wait_closed(5) for peer in peers]
    seconds = time.monotonic() - start
    for peer in peers:
        peer.close()
    for thread in threads:
        thread.join(5)
    assert seconds < 2
    assert {code for code, _ in closings_} == {1012}
    waits = [float(reason.removeprefix("retry=")) for _, reason in closings_]
    assert len(set(waits)) == len(waits), "spread over the connections"
    assert all(0 < wait < 10 for wait in waits)
    assert len(ended) == 2
    assert all(status in (204, 503) and at - start < 2 for status, at in ended), ended
    for name in names:
        assert closing_of(server, name)["code"] == 1012
    if number == signal.SIGHUP:
        wait_for(lambda: server.status("/readyz") == 200, 10, "the new worker serves")
        wait_for(lambda: can_echo(me), 10, "a WebSocket opens again")


def can_echo(client: Client) -> bool:
    """Whether a new WebSocket lives; one that meets the old worker is sent on."""
    try:
        with WebSocketPeer(client) as peer:
            peer.echo(timeout=1)
    except Exception:
        return False
    return True
