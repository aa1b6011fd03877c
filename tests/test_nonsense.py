"""Nonsense is answered with a refusal in words and one short line of log, never with 500, and ends nobody's service.

The examples stand by name; hypothesis looks for the rest: a few hundred in `make test`, 100,000 by `make fuzz`.
"""

import gc
import os
import re
import socket
import warnings
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import nonsense
from lab.http import Client
from lab.nonsense import Wire, documents, dumped, hosts, line, raw, request, values, words
from lab.server import Server

FUZZ = int(os.environ.get("FUZZ", "900"))  # examples in all
SHARE = {"hosts": 0.2, "headers": 0.2, "targets": 0.2, "bodies": 0.3, "frames": 0.1}
LONGEST_LINE = 600  # characters of log for one request: what is refused, and its line of access
FORM = b"application/x-www-form-urlencoded"


def fuzzed(kind: str) -> settings:
    """So many examples of a kind; in the short form the same ones every time."""
    return settings(
        max_examples=max(20, round(FUZZ * SHARE[kind])),
        deadline=None,
        database=None,
        derandomize="FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("nonsense"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(autouse=True, scope="module")
def others_garbage() -> None:
    """Sockets that tests of this process left to the collector: hypothesis collects, and they would be ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Site:
    """The server as a stranger and as a person who is signed in, and what it wrote into its log since."""

    def __init__(self, server: Server, me: Client) -> None:
        self.server, self.me = server, me
        self.wire = Wire(server.port)
        self.own = ((b"Cookie", me.cookie_header.encode()), (b"X-CSRFToken", me.token.encode()))
        self.conversation = me.create("hello").json["conversation"].encode()
        self._read = self.server.log.stat().st_size

    def said(self) -> str:
        """What the log has more than last time."""
        with self.server.log.open("rb") as log:
            log.seek(self._read)
            found = log.read()
        self._read += len(found)
        return found.decode(errors="replace")

    def ask(self, sent: bytes, is_ended: bool = False) -> tuple[int, bytes]:
        """Ask, and look whether the server was surprised."""
        status, body = self.wire.ask(sent, is_ended)
        said = self.said()
        assert status != 500 and "Traceback" not in said, f"{status} for {sent[:2000]!r}\n{said[-4000:]}"
        assert all(len(found) <= LONGEST_LINE for found in said.splitlines()), f"long lines for {sent[:500]!r}\n{said}"
        return status, body


@pytest.fixture(scope="module")
def site(shared: Server, me: Client) -> Iterator[Site]:
    site = Site(shared, me)
    yield site
    site.wire.close()
    assert Client(shared.url).get("/healthz").status == 200


# By name


@pytest.mark.parametrize(
    "host", ["a..b", ".", "a" * 64, "[::1", "a b", "127.0.0.1:65536", "", ".".join(["a" * 60] * 5)]
)
def test_a_host_that_is_none_is_400_in_words(site: Site, host: str) -> None:
    for target in (b"/", b"/sign-in", b"/changes?c=list:0", b"/static/x", b"/healthz"):
        status, body = site.ask(request(host=host.encode(), target=target))
        assert (status, b"Host" in body) == (400, True), target


@pytest.mark.parametrize(
    "host", ["localhost", "chat_app:8000", "a.example.org.", "127.0.0.1:80", "[::1]:8000", "xn--bcher-kva.example"]
)
def test_hosts_of_every_honest_kind_are_served(site: Site, host: str) -> None:
    assert site.ask(request(host=host.encode(), target=b"/sign-in", headers=site.own[:0]))[0] == 200


@pytest.mark.parametrize("size", [9_000, 64_000])
@pytest.mark.parametrize("parts", [1, 12])
def test_too_many_cookies_are_answered_with_the_reason(site: Site, size: int, parts: int) -> None:
    """As one header, and as several that gunicorn joins."""
    cookies = tuple((b"Cookie", f"sso{number}={'x' * (size // parts)}".encode()) for number in range(parts))
    status, body = site.ask(request(target=b"/sign-in", headers=(*cookies, site.own[0])))
    assert status == 431
    assert b"8 kB of cookies" in body and b"single sign-on" in body


def test_cookies_of_others_in_any_letters_change_nothing(site: Site) -> None:
    path = f"/changes?epoch={site.me.epoch}&c=list:0".encode()
    cookie = b"theirs=\xff\xfe\xe9; " + site.own[0][1]
    assert site.ask(request(target=path, headers=((b"Cookie", cookie),)))[0] == 200
    assert site.ask(request(target=b"/connection", headers=((b"Cookie", cookie),)))[0] == 200


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b'{"a":' * 50_000, b"1" * 5000, b'{"body": "\\ud800"}', b"NaN", b"\xff"]
)
def test_json_that_is_none_is_400(site: Site, body: bytes) -> None:
    kind = ((b"Content-Type", b"application/json"), (b"Accept", b"application/json"))
    target = b"/c/" + site.conversation + b"/messages"
    assert site.ask(request(b"POST", target, headers=(*site.own, *kind), body=body))[0] in (400, 422)
    assert site.ask(request(b"POST", target, headers=kind, body=body))[0] in (400, 401)


def test_what_gunicorn_refuses_is_said_in_words_on_one_line(site: Site) -> None:
    for sent, wanted in (
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"NONSENSE " * 300 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x" * 8000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: " + b"x" * 5000 + b"\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(150)) + b"\r\n", 431),
    ):
        status, body = site.ask(sent, is_ended=True)
        assert status == wanted and b"<html" not in body and len(body) > 30, sent[:60]


# By chance


def test_hosts_by_chance(site: Site) -> None:
    targets = st.sampled_from([b"/", b"/sign-in", b"/changes?c=list:0", b"/ws", b"/connection", b"/nothing"])

    @fuzzed("hosts")
    @given(hosts, targets, st.booleans())
    def check(host: bytes, target: bytes, is_signed_in: bool) -> None:
        host = host.translate(None, b"\r\n\x00")
        site.ask(request(target=target, host=host, headers=site.own if is_signed_in else ()))

    check()


@pytest.mark.parametrize("kind", [FORM, b"multipart/form-data; boundary=x"])
@pytest.mark.parametrize(
    "sent", [b"zz\r\n\r\n", b"2\r\nabcd\r\n0\r\n\r\n", b"-1\r\nab\r\n", b"0\r\n" + b"x: y\r\n" * 400]
)
def test_a_body_in_chunks_that_are_none_is_400_in_words_and_the_last_request(
    site: Site, kind: bytes, sent: bytes
) -> None:
    headers = (*site.own, (b"Content-Type", kind), (b"Transfer-Encoding", b"chunked"))
    for target in (b"/sign-in", b"/c", b"/connection/events"):
        begun = request(b"POST", target, headers=headers).replace(b"Content-Length: 0\r\n", b"")
        with socket.create_connection(("127.0.0.1", site.server.port), timeout=20) as wire:
            wire.sendall(begun + sent + request(b"GET", b"/healthz"))
            wire.shutdown(socket.SHUT_WR)
            answers = b"".join(iter(lambda: wire.recv(65536), b""))
        assert answers.count(b"HTTP/1.1 ") == 1, (target, answers[-300:])
        assert answers.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 422 ")), (target, answers[:300])  # read, or not at all
        said = site.said()
        assert "Traceback" not in said, said
        assert all(len(found) <= LONGEST_LINE for found in said.splitlines()), said


HEADERS = ["Accept", "Accept-Language", "Accept-Encoding", "Authorization", "Content-Type", "Content-Length", "Cookie"]
HEADERS += ["Expect", "Forwarded", "HX-Request", "If-Modified-Since", "If-None-Match", "Origin", "Range", "Referer"]
HEADERS += [
    "Sec-WebSocket-Extensions",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Connection",
    "Upgrade",
    "User-Agent",
]
HEADERS += ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-CSRFToken", "Transfer-Encoding", "Host"]
MEANT = [
    "application/json",
    "text/html;q=x",
    "gzip;q=9",
    "bytes=0-",
    "bytes=-1-",
    "websocket",
    "Upgrade",
    "13",
    "chunked",
]
MEANT += [
    "permessage-deflate; client_max_window_bits=99",
    "Thu, 99 Foo 0000 00:00:00 GMT",
    'W/"x',
    "multipart/form-data; boundary=",
]


def test_headers_by_chance(site: Site) -> None:
    header = st.tuples(
        st.sampled_from(HEADERS).map(str.encode), st.one_of(line, st.sampled_from(MEANT).map(str.encode))
    )
    targets = st.sampled_from(
        [b"/", b"/sign-in", b"/changes?c=list:0", b"/ws", b"/static/x/app.js", b"/connection/test/mark"]
    )

    @fuzzed("headers")
    @given(
        st.lists(header, min_size=1, max_size=4), targets, st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"X"])
    )
    def check(headers: list[tuple[bytes, bytes]], target: bytes, method: bytes) -> None:
        site.ask(request(method, target, headers=(*site.own, *headers)), is_ended=True)

    check()


ROUTES = [
    "/",
    "/c/{}",
    "/c/{}/messages?before={}",
    "/changes?epoch={}&c={}:{}&wait={}",
    "/sign-in?next={}",
    "/knowledge/{}",
]
ROUTES += [
    "/connection/test/mark?origin={}&nonce={}",
    "/static/{}/{}",
    "/{}",
    "/first-run?{}",
]
ROUTES += ["/ws?replaces={}", "http://{}/", "*", "{}"]


def test_targets_by_chance(site: Site) -> None:
    piece = st.one_of(raw.map(quote_from_bytes), words.filter(str.isascii).map(lambda text: re.sub(r"\s", "+", text)))

    @fuzzed("targets")
    @given(st.sampled_from(ROUTES), st.lists(piece, min_size=4, max_size=4), st.booleans())
    def check(route: str, pieces: list[str], is_signed_in: bool) -> None:
        target = route.format(*pieces).replace("wait=", "wait=-").encode()
        site.ask(request(target=target, headers=site.own if is_signed_in else ()), is_ended=b"/ws" in target)

    check()


FORMS = ["/c", "/c/{}/messages", "/c/{}/title", "/c/{}/stop", "/c/{}/again", "/connection/events", "/first-run"]
FORMS += ["/c/{}/messages/{}/delete", "/sign-in", "/account", "/people", "/session/renew", "/audit"]
FIELDS = ["client_id", "body", "id", "title", "events", "next", "code", "name", "csrf_token", "email"]
EVENT = ["client", "number", "at", "type", "from", "to", "reason", "transport", "data"]


def test_bodies_by_chance(site: Site) -> None:
    """Forms, JSON, parts, and what calls itself one of them and is another."""
    field = st.tuples(
        st.sampled_from(FIELDS), st.one_of(words, documents.map(lambda text: text.decode(errors="replace")))
    )
    form = st.lists(field, max_size=4).map(
        lambda pairs: "&".join(f"{name}={quote_of(value)}" for name, value in pairs).encode()
    )
    event = st.dictionaries(
        st.sampled_from(EVENT), st.one_of(values, st.just("0" * 32), st.integers(0, 1 << 60)), max_size=9
    )
    events = st.lists(event, max_size=3).map(lambda found: b"events=" + quote_from_bytes(dumped(found)).encode())
    message = st.dictionaries(st.sampled_from(FIELDS), values, max_size=4).map(dumped)
    kinds = st.sampled_from(
        [FORM, FORM, b"application/json", b"multipart/form-data; boundary=x", b"text/plain", b"\xff", b""]
    )

    @fuzzed("bodies")
    @given(st.sampled_from(FORMS), kinds, st.one_of(form, events, message, documents), st.booleans())
    def check(route: str, kind: bytes, body: bytes, wants_json: bool) -> None:
        target = route.format(site.conversation.decode(), site.me.epoch).encode()
        accept = b"application/json" if wants_json else b"text/html"
        headers = (*site.own, (b"Content-Type", kind), (b"Accept", accept))
        site.ask(request(b"POST", target, headers=headers, body=body))

    check()


def quote_of(value: str) -> str:
    """A form's value, halves of characters included."""
    return quote_from_bytes(value.encode("utf-8", "surrogatepass"))


def test_frames_by_chance(site: Site) -> None:
    """Whatever a person's client writes into a WebSocket: it is answered or closed, and the server goes on."""
    said = st.dictionaries(
        st.sampled_from(["type", "feeds", "id", "body", "conversation", "cursor", "t"]), values, max_size=5
    )
    kinds = st.sampled_from(["subscribe", "unsubscribe", "send", "echo", "hello", "nothing", ""])
    frame = st.one_of(
        st.builds(lambda kind, fields: dumped({**fields, "type": kind}), kinds, said),
        documents.map(lambda text: text[:500]),
        raw,
    )
    heads = st.one_of(st.just(0x81), st.integers(0, 255))

    @fuzzed("frames")
    @given(st.lists(st.tuples(heads, frame), min_size=1, max_size=4))
    def check(frames: list[tuple[int, bytes]]) -> None:
        nonsense.speak(site.server.port, site.me.cookie_header, frames)
        said = site.said()
        assert "Traceback" not in said, f"{frames!r}\n{said[-4000:]}"
        assert site.ask(request(target=b"/healthz"))[0] == 200

    check()
