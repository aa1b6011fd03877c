"""Readers that stop reading, under load: whole again or closed, and nobody else notices."""

import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from lab.http import Client
from lab.peer import PollingPeer, WebSocketPeer
from lab.server import Server
from test_websocket import TEXT, RawWebSocket, closing_of

SHORT_PAUSE_S, LONG_PAUSE_S = 5.0, 30.0  # below and beyond the write timeout of 10 s
MESSAGE = "x" * 19_000
MOST_GROWTH_KB = 48 * 1024  # what the worker's memory may grow by; the load alone is hundreds of MB in frames


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, assistant="off") as server:
        yield server


def worker_memory_kb(server: Server) -> int:
    """Resident memory of the newest of the server's processes: the worker."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    status = Path(f"/proc/{children[-1]}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_stopped_readers_are_whole_or_closed_and_others_unaffected(server: Server) -> None:
    client = Client(server.url).sign_in()
    conversation = str(uuid.uuid4())
    client.create("", conversation)
    stop = threading.Event()

    def load() -> None:
        poster = Client(server.url).sign_in()
        while not stop.is_set():
            assert poster.post_message(conversation, f"{time.monotonic()} {MESSAGE}").status == 201
            stop.wait(0.02)

    subscribe = {"type": "subscribe", "epoch": client.epoch, "feeds": {conversation: 1}}
    with RawWebSocket(client, receive_buffer=16_384) as short, RawWebSocket(client, receive_buffer=16_384) as long:
        for reader in (short, long):
            reader.say(**subscribe)
        name = long.connection
        other = WebSocketPeer(client)
        other.subscribe({conversation: 1})
        alone = [other.echo(n) for n in range(50)]
        poster = threading.Thread(target=load)
        before, started = worker_memory_kb(server), time.monotonic()
        poster.start()
        echoes: list[float] = []
        try:
            wait_and_echo(other, echoes, started + SHORT_PAUSE_S)
            catching_up = threading.Thread(target=read_on, args=(short, 5.0))
            catching_up.start()
            wait_and_echo(other, echoes, started + LONG_PAUSE_S)
            catching_up.join(timeout=30)
        finally:
            stop.set()
            poster.join(timeout=10)
        growth = worker_memory_kb(server) - before
        other.close()
    feeds = [frame.text for frame in short.frames if frame.opcode == TEXT and frame.text.startswith("<chat-feed")]
    assert cursors_join(feeds), "the short pause: every frame whole, none missing"
    event = closing_of(server, name)
    assert event["code"] == 1006, "the long pause: cut after the write timeout"
    assert 10 <= event["seconds"] <= LONG_PAUSE_S
    assert growth < MOST_GROWTH_KB, f"{growth} kB"
    print("echo ms: alone", ms(alone), "beside stopped readers", ms(echoes), "growth kB", growth)
    assert statistics.median(echoes) < 0.05


def wait_and_echo(peer: WebSocketPeer, echoes: list[float], until: float) -> None:
    while time.monotonic() < until:
        echoes.append(peer.echo(len(echoes)))
        time.sleep(0.05)


def read_on(reader: RawWebSocket, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not reader.is_ended:
        reader.read(0.2)


def cursors_join(feeds: list[str]) -> bool:
    """Whether each frame begins where the one before ended."""
    ranges = [tuple(int(feed.partition(f'{name}="')[2].partition('"')[0]) for name in ("from", "to")) for feed in feeds]
    return len(ranges) > 3 and all(one[1] == next_[0] for one, next_ in pairwise(ranges))


def ms(seconds: list[float]) -> list[float]:
    """Median and 99th percentile, milliseconds."""
    ordered = sorted(seconds)
    return [round(1000 * ordered[len(ordered) // 2], 1), round(1000 * ordered[int(len(ordered) * 0.99)], 1)]


def test_a_busy_conversation_starves_none_of_ten(server: Server) -> None:
    client = Client(server.url).sign_in()
    conversations = [str(uuid.uuid4()) for _ in range(10)]
    for conversation in conversations:
        client.create("", conversation)
    busy, quiet = conversations[0], conversations[1:]
    stop, poster = threading.Event(), client.clone()

    def keep_busy() -> None:
        while not stop.is_set():
            poster.post_message(busy, MESSAGE)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for peer in (WebSocketPeer(client), PollingPeer(client)):
            with peer:
                peer.subscribe(dict.fromkeys(conversations, 1))
                peer.wait_until(lambda p=peer: p.shown(busy))
                at_first, delays = len(peer.shown(busy)), []
                for number, conversation in enumerate(quiet * 3):
                    body = f"quiet {peer.transport} {number}"
                    started = time.monotonic()
                    client.post_message(conversation, body)
                    peer.wait_until(lambda c=conversation, b=body, p=peer: b in [m.text for m in p.shown(c)])
                    delays.append(time.monotonic() - started)
                assert max(delays) < 1.0, sorted(delays)[-3:]
                assert len(peer.shown(busy)) > at_first, "the busy one is not starved either"
    finally:
        stop.set()
        thread.join(timeout=10)
