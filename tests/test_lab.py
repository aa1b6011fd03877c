"""The lab itself: the fault proxy and nginx do what they say, shown against a small server of the tests' own."""

import http.client
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from lab.elements import parse
from lab.faultproxy import FaultProxy
from lab.nginx import Nginx
from lab.peer import Applied
from lab.processes import wait_for
from lab.wire import FrameReader
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect


class Scratch(BaseHTTPRequestHandler):
    """Answers with the path and the names of the headers it got; /slow after half a second; /ws echoes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A page, or an upgrade."""
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self._echo()
        if self.path.startswith("/slow"):
            time.sleep(0.5)
        body = f"{self.path} {','.join(sorted(name.lower() for name in self.headers))}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def do_POST(self) -> None:
        """Takes the body, answers like GET."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _echo(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", b64encode(sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        reader = FrameReader(0, True)
        while data := self.connection.recv(65536):
            for frame in reader.feed(data, 0):
                self.connection.sendall(bytes([0x80 | frame.opcode, len(frame.payload)]) + frame.payload)
                if frame.opcode == 8:
                    return

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Other(Scratch):
    """Another server: says that it is."""

    def do_GET(self) -> None:
        """Always the same."""
        self.send_response(200)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"the other")


class ScratchServer(ThreadingHTTPServer):
    """Takes broken connections as they come."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A reset is what these tests are about."""


@pytest.fixture
def scratch() -> Iterator[int]:
    """The port of a small HTTP and WebSocket echo server."""
    with ScratchServer(("127.0.0.1", 0), Scratch) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(5)


@pytest.fixture
def proxy(scratch: int) -> Iterator[FaultProxy]:
    """A fault proxy in front of it."""
    with FaultProxy(scratch) as running:
        yield running


@contextmanager
def opened(proxy: FaultProxy | Nginx, **options: object) -> Iterator[ClientConnection]:
    address = f"ws://127.0.0.1:{proxy.port}/ws"
    with connect(address, proxy=None, ping_interval=None, close_timeout=0.2, **options) as ws:  # type: ignore[arg-type]
        yield ws


def get(port: int, path: str = "/", timeout: float = 3) -> tuple[int, str]:
    """Status and body of one GET."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_passes_http_and_frames_and_keeps_a_record(proxy: FaultProxy) -> None:
    """Nothing is changed, all of it is written down."""
    assert get(proxy.port, "/changes?x=1")[0] == 200
    with opened(proxy) as ws:
        ws.send("hello")
        assert ws.recv(timeout=2) == "hello"
        assert proxy.sockets == 1
    assert [seen.path for seen in proxy.requests] == ["/changes", "/ws"]
    assert proxy.requests[0].answer_body.startswith(b"/changes")
    assert proxy.requests[1].status == 101
    texts = [(frame.up, frame.text) for frame in proxy.frames if frame.opcode == 1]
    assert texts == [(True, "hello"), (False, "hello")]


def test_refused_and_stripped_upgrades(proxy: FaultProxy) -> None:
    """Refused at once; stripped: the server sees a plain GET; ordinary requests pass meanwhile."""
    proxy.upgrade = "refuse"
    with pytest.raises(InvalidStatus) as refused, opened(proxy):
        pass
    assert refused.value.response.status_code == 403
    proxy.upgrade = "strip"
    with pytest.raises(InvalidStatus) as stripped, opened(proxy):
        pass
    assert stripped.value.response.status_code == 200
    assert b"upgrade" not in proxy.requests[-1].answer_body
    assert get(proxy.port)[0] == 200


def test_hanging_mute_and_cut_upgrades(proxy: FaultProxy) -> None:
    """No 101; a 101 and silence; a 101 and the end 300 ms later."""
    proxy.upgrade = "hang"
    with pytest.raises((TimeoutError, WebSocketException)), opened(proxy, open_timeout=0.4):
        pass
    assert get(proxy.port)[0] == 200
    proxy.upgrade = "mute"
    with opened(proxy) as ws:
        ws.send("into the void")
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0.4)
    proxy.upgrade = "cut"
    with opened(proxy) as ws:
        start = time.monotonic()
        with pytest.raises(ConnectionClosed):
            ws.recv(timeout=2)
        assert 0.2 < time.monotonic() - start < 0.8


def test_sockets_reset_and_blackholed(proxy: FaultProxy) -> None:
    """A reset ends them at once; a blackhole leaves them open and silent, for good."""
    with opened(proxy) as ws:
        assert proxy.reset_sockets() == 1
        with pytest.raises(ConnectionClosed):
            ws.recv(timeout=1)
    with opened(proxy) as ws:
        assert proxy.blackhole_sockets() == 1
        ws.send("lost")
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0.4)
        assert proxy.sockets == 0
    assert get(proxy.port)[0] == 200


def test_whole_network(proxy: FaultProxy) -> None:
    """Blackholed: connections are taken and nothing comes. Refused: nobody home. Healed: all is well."""
    proxy.blackhole_all = True
    with pytest.raises(TimeoutError):
        get(proxy.port, timeout=0.4)
    proxy.heal()
    assert get(proxy.port)[0] == 200
    proxy.network_down()
    with pytest.raises(ConnectionRefusedError):
        get(proxy.port)
    proxy.heal()
    assert get(proxy.port)[0] == 200


def test_errors_hangs_and_lost_replies(proxy: FaultProxy) -> None:
    """An error of its own for polls, a poll that never answers, an answer that gets lost on its way."""
    proxy.http_error = (503, {"Retry-After": "2"})
    assert get(proxy.port, "/changes")[0] == 503
    assert get(proxy.port, "/other")[0] == 200
    proxy.heal()
    proxy.hang_paths = ("/changes",)
    with pytest.raises(TimeoutError):
        get(proxy.port, "/changes", timeout=0.3)
    proxy.heal()
    proxy.lose_replies = 1
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=2)) as connection:
        connection.request("POST", "/c", "body=x", {"Connection": "close"})
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.getresponse()
    assert proxy.requests[-1].done_to_it == "reply lost"


def test_one_direction_vanishes(proxy: FaultProxy) -> None:
    """Up: the server hears nothing. Down: it hears, and its answer vanishes. A new connection is good."""
    for direction, heard in (("up", []), ("down", ["lost"])):
        with opened(proxy) as ws:
            assert proxy.blackhole_sockets(direction) == 1
            before = len(proxy.frames)
            ws.send("lost")
            with pytest.raises(TimeoutError):
                ws.recv(timeout=0.3)
            assert [frame.text for frame in proxy.frames[before:]] == heard
            with opened(proxy) as other:
                other.send("there")
                assert other.recv(timeout=2) == "there"


def test_everything_vanishes_in_one_direction(proxy: FaultProxy) -> None:
    """A swallowed request is in the record, with what became of it."""
    for direction in ("up", "down", True):
        proxy.blackhole_all = direction
        assert proxy.blackhole_all == direction
        with pytest.raises(TimeoutError):
            get(proxy.port, f"/{direction}", timeout=0.3)
        wait_for(lambda: proxy.requests[-1].ended_at, 2, "the proxy sees the client go")
        assert (proxy.requests[-1].done_to_it, proxy.requests[-1].status) == ("swallowed", 0)
    proxy.heal()
    assert get(proxy.port)[0] == 200


def test_living_connections_vanish_and_new_ones_pass(proxy: FaultProxy) -> None:
    """Also a request that waits for its answer, and a connection that is kept open between two."""
    with (
        closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=1)) as waiting,
        closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=1)) as kept,
    ):
        kept.request("GET", "/")
        kept.getresponse().read()
        waiting.request("GET", "/slow")
        wait_for(lambda: len(proxy.requests) == 2, 2, "both are there")
        assert proxy.blackhole_connections() == 2
        kept.request("GET", "/again")
        for one in (waiting, kept):
            with pytest.raises(TimeoutError):
                one.getresponse()
        assert get(proxy.port)[0] == 200


def test_cut_in_the_middle_of_a_frame(proxy: FaultProxy) -> None:
    """Half of it arrives, then the end."""
    with opened(proxy) as ws:
        assert proxy.cut_in_frame() == 1
        ws.send("a frame of some length")
        with pytest.raises(ConnectionClosed):
            ws.recv(timeout=2)


def test_the_server_hears_and_its_answer_is_lost(proxy: FaultProxy) -> None:
    """Then the connection is reset."""
    with opened(proxy) as ws:
        assert proxy.lose_acks() == 1
        ws.send("heard")
        with pytest.raises(ConnectionClosed):
            ws.recv(timeout=2)
    assert [frame.text for frame in proxy.frames if frame.opcode == 1] == ["heard"]


def test_a_connection_lives_only_so_long(proxy: FaultProxy) -> None:
    """Whatever goes on in it; those that began before are left alone."""
    with opened(proxy) as old:
        proxy.longest_life = 0.4
        with opened(proxy) as ws, pytest.raises(ConnectionClosed):
            for _ in range(20):
                ws.send("still here")
                ws.recv(timeout=2)
                time.sleep(0.1)
        old.send("still here")
        assert old.recv(timeout=2) == "still here"


def test_what_the_server_says_is_buffered(proxy: FaultProxy) -> None:
    """Frames until there are enough; an answer passes when it is complete."""
    proxy.buffer_bytes = 200
    assert get(proxy.port)[0] == 200
    with opened(proxy) as ws:
        for _ in range(2):
            ws.send("x" * 90)
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0.3)
        ws.send("x" * 90)
        assert [len(ws.recv(timeout=2)) for _ in range(3)] == [90] * 3


def test_polls_are_cached_or_hang(proxy: FaultProxy) -> None:
    """The same URL gets the same answer; polls of either protocol hang, and nothing else does."""
    proxy.cache_polls = True
    first, answers = get(proxy.port, "/changes?c=1")[1], []
    assert [seen.done_to_it for seen in proxy.requests] == [""]

    def is_cached() -> bool:  # the proxy keeps an answer when it is complete: a moment after the client has it
        answers.append(get(proxy.port, "/changes?c=1")[1])
        return proxy.requests[-1].done_to_it == "cached"

    wait_for(is_cached, 2, "the answer is kept")
    assert set(answers) == {first}
    proxy.heal()
    proxy.hang_polls = True
    for poll in ("/changes?c=1", "/socket.io/x/?EIO=4&transport=polling"):
        with pytest.raises(TimeoutError):
            get(proxy.port, poll, timeout=0.3)
    assert get(proxy.port, "/other")[0] == 200
    with opened(proxy) as ws:
        ws.send("passes")
        assert ws.recv(timeout=2) == "passes"


def test_paths_lead_to_their_servers(scratch: int) -> None:
    """One proxy before two servers: the same faults for both, also where one connection asks both."""
    with ScratchServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        with (
            FaultProxy(scratch, routes={"/other/": other.server_port}) as proxy,
            closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=3)) as kept,
        ):
            for path in ("/other/x", "/x", "/other/y"):
                kept.request("GET", path)
                assert kept.getresponse().read().startswith(b"the other" if "other" in path else path.encode())
        other.shutdown()
        thread.join(5)


def test_a_client_that_leaves_a_held_poll_is_noticed(proxy: FaultProxy) -> None:
    """Its request ends in the record, too."""
    with closing(socket.create_connection(("127.0.0.1", proxy.port))) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: proxy.requests, 2, "the request arrives")
    wait_for(lambda: proxy.requests[0].ended_at, 0.4, "the proxy noticed", every=0.02)


@pytest.mark.parametrize(("kind", "passes"), [("good", True), ("strip", False), ("headers", False)])
def test_nginx(scratch: int, kind: str, passes: bool) -> None:
    """The three configurations: what gets through and what does not."""
    with Nginx(kind, scratch) as nginx:
        with closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=3)) as connection:
            connection.request("GET", "/x", headers={"X-CSRFToken": "t", "Accept": "text/html", "HX-Request": "1"})
            answer = connection.getresponse()
            assert answer.status == 200
            names = answer.read().decode()
        assert ("x-csrftoken" in names) == (kind != "headers")
        assert "accept" in names
        if passes:
            with opened(nginx) as ws:
                ws.send("through nginx")
                assert ws.recv(timeout=2) == "through nginx"
        else:
            with pytest.raises(InvalidStatus), opened(nginx):
                pass


def test_the_reader_applies_by_revision() -> None:
    """Articles, patches with offsets, gaps, repeats and a reset."""
    article = (
        '<article class="message" data-id="a" data-client-id="" data-position="1" data-revision="2" '
        'data-author="assistant" data-state="running"><div class="body"><div class="block" data-index="0" '
        'data-source="&lt;p&gt;one &amp;amp; &lt;/p&gt;"><p>one &amp; </p></div></div></article>'
    )
    patch = '<chat-patch position="1" revision="3" state="completed"><chat-block index="0" offset="13">two&lt;/p&gt;'
    patch += '</chat-block><chat-block index="1" offset="0">&lt;p&gt;new&lt;/p&gt;</chat-block></chat-patch>'
    applied = Applied()
    for markup in (
        f'<chat-feed feed="F" from="0" to="2" reset>{article}</chat-feed>',
        f'<chat-feed feed="F" from="2" to="3">{patch}</chat-feed>',
        f'<chat-feed feed="F" from="1" to="3">{article}{patch}</chat-feed>',
    ):
        applied.apply(parse(markup).elements[0])
    shown = applied.feeds["F"].messages["a"]
    assert (shown.state, shown.blocks) == ("completed", ["<p>one &amp; two</p>", "<p>new</p>"])
    assert (applied.feeds["F"].cursor, applied.ignored, applied.must_resubscribe) == (3, 1, {})
    applied.apply(parse('<chat-feed feed="F" from="7" to="8"></chat-feed>').elements[0])
    assert applied.must_resubscribe == {"F": 3}
