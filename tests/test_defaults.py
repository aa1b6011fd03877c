"""Each default that the server owns, observed on the wire: as it is, and changed."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab.http import Client
from lab.peer import WebSocketPeer
from lab.processes import wait_for
from lab.server import Server
from test_websocket import CLOSE, PING, PONG, TEXT, RawWebSocket, closings

LONG = '"' * 19_990  # each character is five bytes of HTML
QUICK: dict[str, Any] = {"ws_ping_interval": 0.5, "ws_pong_timeout": 1.2, "ws_write_timeout": 1.0}
QUICK |= {"ws_max_message_size": 300, "poll_longest_hold": 1}
OF_THE_BROWSER = {"heartbeat_interval": 12, "reconnect_interval": 2.5, "max_reconnect_attempts": 4}
OF_THE_BROWSER |= {"poll_interval": 1.25, "poll_max_retries": 7, "poll_backoff": 2}


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared servers outlive each test; they end with the module."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with all defaults; nobody answers."""
    with Server(tmp_path_factory.mktemp("plain"), assistant="off") as server:
        yield server


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with each timeout but that of reading changed."""
    with Server(tmp_path_factory.mktemp("quick"), assistant="off", **QUICK, **OF_THE_BROWSER) as server:
        yield server


def opened(client: Client, **options: Any) -> RawWebSocket:
    """A connection past its hello."""
    raw = RawWebSocket(client, **options)
    raw.until(lambda frame: frame.opcode == TEXT)
    return raw


def watch(raw: RawWebSocket, seconds: float, says: dict[str, Any] | None = None, pongs: bool = False) -> list[float]:
    """For so long, or until it ends: read, say something now and then; when each ping came after the hello."""
    start, said, seen = raw.frames[0].at, 0.0, 0
    while not raw.is_ended and time.monotonic() - start < seconds:
        if says and time.monotonic() - said > min(5.0, seconds / 12):
            raw.say(**says)
            said = time.monotonic()
        raw.read(0.05 if seconds < 10 else 0.5)
        for frame in raw.frames[seen:]:
            if frame.opcode == PING and pongs:
                raw.frame(frame.payload, PONG)
            if frame.opcode == CLOSE:
                return [f.at - start for f in raw.frames if f.opcode == PING]
        seen = len(raw.frames)
    return [frame.at - start for frame in raw.frames if frame.opcode == PING]


def lasted(raw: RawWebSocket) -> float:
    """From the hello to the close frame."""
    return raw.until(lambda frame: frame.opcode == CLOSE, 1).at - raw.frames[0].at


# Ping, pong and read timeouts


def test_a_changed_ping_interval_is_kept_and_announced(quick: Server) -> None:
    with opened(Client(quick.url).sign_in()) as raw:
        assert ' ping="0.5"' in raw.frames[0].text
        pings = watch(raw, 2.3, pongs=True)
    assert len(pings) == 4
    gaps = [later - earlier for earlier, later in zip([0.0, *pings], pings, strict=False)]
    assert all(0.4 <= gap <= 0.7 for gap in gaps), gaps


def test_who_answers_pings_stays_and_who_only_talks_goes_after_the_changed_pong_timeout(quick: Server) -> None:
    me = Client(quick.url).sign_in()
    with opened(me) as good, opened(me) as mute:
        thread = threading.Thread(target=watch, args=(good, 2.5), kwargs={"pongs": True})
        thread.start()
        watch(mute, 4, says={"type": "echo", "n": 1})
        thread.join(10)
        assert mute.closed(1) == (1008, "no pong")
        assert 1.6 <= lasted(mute) <= 2.3, "0.5 s to the ping, 1.2 s for the pong"
        good.say(type="echo", n=9)
        good.until(lambda frame: '<chat-echo n="9">' in frame.text)


def test_who_says_nothing_at_all_goes_after_the_changed_read_timeout(start_server: Callable[..., Server]) -> None:
    server = start_server(assistant="off", ws_read_timeout=1)
    me = Client(server.url).sign_in()
    with opened(me) as silent, opened(me) as talking:
        thread = threading.Thread(target=watch, args=(talking, 2.5, {"type": "echo", "n": 1}))
        thread.start()
        watch(silent, 4)
        thread.join(10)
        assert silent.closed(1) == (1008, "nothing received")
        assert 0.9 <= lasted(silent) <= 1.5
        talking.say(type="echo", n=9)
        talking.until(lambda frame: '<chat-echo n="9">' in frame.text)


# Write timeout


def heavy_conversation(client: Client) -> str:
    """A conversation that costs 4 MB to read from its start."""
    conversation = client.create("heavy").json["conversation"]
    for number in range(40):
        assert client.post_message(conversation, f"{number} {LONG}").status == 201
    return str(conversation)


def stop_reading(client: Client, conversations: list[str]) -> tuple[RawWebSocket, float]:
    """A reader that asks for megabytes, reads nothing from then on but keeps talking; and when it stopped."""
    raw = opened(client, receive_buffer=4096)
    for conversation in conversations:
        raw.say(type="subscribe", epoch=client.epoch, feeds={conversation: 0})
    return raw, time.monotonic()


def cut_after(server: Server, raw: RawWebSocket, start: float, timeout: float) -> float:
    """When the server gave up a reader that does not read."""
    name = raw.connection
    wait_for(lambda: closings(server, name), timeout, "the server gives up")
    return time.monotonic() - start


def test_a_reader_that_takes_nothing_goes_after_the_changed_write_timeout(quick: Server) -> None:
    me = Client(quick.url).sign_in()
    heavy = [heavy_conversation(me) for _ in range(2)]
    raw, start = stop_reading(me, heavy)
    with raw:
        assert 0.9 <= cut_after(quick, raw, start, 6) <= 2.5
    assert quick.status("/healthz") == 200


def test_a_reader_that_takes_a_little_in_time_stays(quick: Server) -> None:
    """The timeout is for one write, not for the connection: an untroubled reader is never cut."""
    me = Client(quick.url).sign_in()
    with WebSocketPeer(me) as peer:
        time.sleep(1)
        assert peer.echo() < 1


# Message size


def padded_echo(size: int, unit: str) -> str:
    """An echo frame of exactly `size` bytes, filled with `unit`."""
    frame = '{"type":"echo","n":5,"x":"'
    room = size - len(frame) - 2
    width = len(unit.encode())
    text = frame + unit * (room // width) + "x" * (room % width) + '"}'
    assert len(text.encode()) == size
    return text


@pytest.mark.parametrize("unit", ["x", "ä", "日", "👍"])
@pytest.mark.parametrize("which", ["plain", "quick"])
def test_a_message_of_exactly_the_limit_passes_and_one_byte_more_does_not(
    request: pytest.FixtureRequest, which: str, unit: str
) -> None:
    server: Server = request.getfixturevalue(which)
    limit = {"plain": 512, "quick": 300}[which]
    me = Client(server.url).sign_in()
    with opened(me) as raw:
        assert f'max-message="{limit}"' in raw.frames[0].text
        raw.frame(padded_echo(limit, unit))
        raw.until(lambda frame: frame.text == '<chat-echo n="5"></chat-echo>')
        raw.frame(padded_echo(limit + 1, unit))
        assert raw.closed()[0] == 1009


def test_what_is_too_long_for_the_socket_goes_by_post(plain: Server) -> None:
    me = Client(plain.url).sign_in()
    conversation = me.create("hello").json["conversation"]
    with WebSocketPeer(me) as peer:
        peer.subscribe({conversation: 0})
        assert me.post_message(conversation, "日" * 1000).status == 201
        peer.wait_until(lambda: any(m.text == "日" * 1000 for m in peer.shown(conversation)))


# Polls


def held_for(client: Client, wait: float) -> tuple[int, float]:
    """Status of a poll with nothing new, and how long it took."""
    cursor = int(client.poll({"list": 0}).page.one("chat-feed").get("to"))
    start = time.monotonic()
    status = client.poll({"list": cursor}, wait).status
    return status, time.monotonic() - start


def test_a_poll_is_held_for_the_changed_time_at_most_and_for_less_on_request(quick: Server) -> None:
    me = Client(quick.url).sign_in()
    for wait, least, most in ((25, 0.95, 1.5), (1e9, 0.95, 1.5), (0.3, 0.28, 0.8), (0, 0, 0.3)):
        status, seconds = held_for(me, wait)
        assert status == 204
        assert least <= seconds <= most, (wait, seconds)


def test_where_polls_are_never_held_each_answers_at_once(start_server: Callable[..., Server]) -> None:
    server = start_server(assistant="off", poll_longest_hold=0)
    status, seconds = held_for(Client(server.url).sign_in(), 25)
    assert (status, seconds < 0.5) == (204, True)


def test_a_held_poll_ends_as_soon_as_there_is_news(plain: Server) -> None:
    me, other = Client(plain.url).sign_in(), Client(plain.url).sign_in()
    conversation = other.create("hello").json["conversation"]
    cursor = int(me.poll({conversation: 0}).page.one("chat-feed").get("to"))
    timer = threading.Timer(0.5, other.post_message, (conversation, "news"))
    timer.start()
    start = time.monotonic()
    answer = me.poll({conversation: cursor}, 25)
    seconds = time.monotonic() - start
    timer.join(5)
    assert answer.status == 200 and "news" in answer.text
    assert 0.4 < seconds < 1.5


# What the page tells the browser


DEFAULTS = {
    "transports": ["websocket", "polling"],
    "heartbeat_ms": 30_000,
    "reconnect_ms": 5000,
    "max_attempts": 10,
    "poll_ms": 3000,
    "poll_retries": 3,
    "poll_backoff": 1.5,
    "poll_hold_ms": 25_000,
    "ws_max_message": 512,
}
CHANGED = {
    "transports": ["websocket", "polling"],
    "heartbeat_ms": 12_000,
    "reconnect_ms": 2500,
    "max_attempts": 4,
    "poll_ms": 1250,
    "poll_retries": 7,
    "poll_backoff": 2,
    "poll_hold_ms": 1000,
    "ws_max_message": 300,
}


@pytest.mark.parametrize(("which", "wanted"), [("plain", DEFAULTS), ("quick", CHANGED)], ids=["plain", "quick"])
@pytest.mark.parametrize("path", ["/", f"/c/{uuid.uuid4()}", "/connection"], ids=["home", "conversation", "connection"])
def test_the_page_tells_the_browser_its_settings(
    request: pytest.FixtureRequest, which: str, wanted: dict[str, Any], path: str
) -> None:
    server: Server = request.getfixturevalue(which)
    me = Client(server.url).sign_in()
    if path.startswith("/c/"):
        path = f"/c/{me.create('hello').json['conversation']}"
    config = json.loads(me.get(path).page.one("meta", name="chat-config").get("content"))
    assert {name: config[name] for name in wanted} == wanted


# As they are: minutes of patience, all at once


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_defaults_as_they_are(plain: Server) -> None:
    """Ping 30 s, silent 60 s, mute 60 s after its ping, a write 10 s, a poll 25 s: together, within 100 s."""
    me = Client(plain.url).sign_in()
    heavy = [heavy_conversation(me) for _ in range(2)]
    problems: list[str] = []

    def check(name: str, low: float, value: float, high: float) -> None:
        if not low <= value <= high:
            problems.append(f"{name}: {value:.2f} s is not from {low} to {high}")

    def silent() -> None:
        with opened(me.clone()) as raw:
            pings = watch(raw, 70)
            check("the first ping", 29.5, pings[0], 31)
            check("silent", 59, lasted(raw), 62)
            problems.extend([] if raw.closed(1) == (1008, "nothing received") else [f"silent: {raw.closed(1)}"])

    def mute() -> None:
        with opened(me.clone()) as raw:
            pings = watch(raw, 97, says={"type": "echo", "n": 1})
            check("a second ping", 59.5, pings[1], 61.5)
            check("mute, after its ping", 59, lasted(raw) - pings[0], 62)
            problems.extend([] if raw.closed(1) == (1008, "no pong") else [f"mute: {raw.closed(1)}"])

    def good() -> None:
        with opened(me.clone()) as raw:
            pings = watch(raw, 93, pongs=True)
            for number, at in enumerate(pings, 1):
                check(f"ping {number}", 30 * number - 0.5, at, 30 * number + 1)
            problems.extend([] if len(pings) == 3 else [f"{len(pings)} pings in 93 s"])

    def unread() -> None:
        raw, start = stop_reading(me.clone(), heavy)
        with raw:
            check("a write", 9.5, cut_after(plain, raw, start, 20), 12.5)

    def held() -> None:
        status, seconds = held_for(me.clone(), 60)
        check("a held poll", 24.8, seconds, 26)
        problems.extend([] if status == 204 else [f"the poll answered {status}"])

    run_together(problems, silent, mute, good, unread, held)
    assert problems == []


def run_together(problems: list[str], *parts: Callable[[], None]) -> None:
    """Each part in a thread; what one raises is a problem."""

    def guarded(part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:
            problems.append(f"{part.__name__}: {error!r}")

    threads = [threading.Thread(target=guarded, args=(part,), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
