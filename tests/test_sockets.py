"""Sockets that the event loop watches: what they cost while idle, and that nothing of them is lost at either end."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.http import Client
from lab.processes import wait_for
from lab.server import Server
from test_websocket import CLOSE, TEXT, RawWebSocket, closing_of

IDLE_SOCKETS = 1000
MOST_KIB = 4  # for an idle socket with one feed; some 2 are needed, a greenlet and a request would be 40
IDLE_S, MOST_WAKES_S = 4, 11  # 2 for deadlines, and 4 that look once a second, at times a millisecond early: twice
LONG = '"' * 19_990  # each character is five bytes of HTML


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, assistant="off") as server:
        yield server


@pytest.fixture
def me(server: Server) -> Client:
    return Client(server.url).sign_in()


def worker(server: Server) -> Path:
    """The worker's directory in /proc."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return Path("/proc") / children[-1]


def memory_kib(server: Server) -> int:
    return int((worker(server) / "status").read_text().partition("VmRSS:")[2].split()[0])


def descriptors(server: Server) -> int:
    return len(list((worker(server) / "fd").iterdir()))


def opened(client: Client, feed: str = "", **options: int) -> RawWebSocket:
    """A connection past its hello, and past the answer for a feed."""
    raw = RawWebSocket(client, **options)
    raw.until(lambda frame: frame.opcode == TEXT)
    if feed:
        raw.say(type="subscribe", epoch=client.epoch, feeds={feed: 0})
        raw.until(lambda frame: frame.text.startswith("<chat-feed"))
    return raw


POOLED = 6  # descriptors of the databases' pools: what works in the background may open two more connections


def test_an_idle_socket_costs_little_and_leaves_nothing_behind(server: Server, me: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    sockets = [opened(me, conversation) for _ in range(50)]  # what is made once
    time.sleep(0.5)  # their events are stored, too
    before, files = memory_kib(server), descriptors(server)
    try:
        sockets += [opened(me, conversation) for _ in range(IDLE_SOCKETS)]
        time.sleep(0.5)
        assert 0 <= descriptors(server) - files - IDLE_SOCKETS <= POOLED, "one descriptor a socket"
        grown = (memory_kib(server) - before) / IDLE_SOCKETS
        print(f"{grown:.2f} KiB a socket")
        assert grown < MOST_KIB
    finally:
        for raw in sockets:
            raw.socket.close()
    wait_for(lambda: descriptors(server) <= files - 50 + POOLED, 10, "all descriptors are closed")


def test_what_was_sent_just_before_the_end_is_kept(server: Server, me: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    for goodbye in (True, False):
        raw = opened(me)
        client_id = str(uuid.uuid4())
        raw.say(type="send", conversation=conversation, client_id=client_id, body="my last words")
        if goodbye:
            raw.frame(b"\x03\xe8", CLOSE)
        raw.socket.close()
        wait_for(lambda wanted=client_id: is_stored(me, conversation, wanted), 5, "it is stored")


def is_stored(client: Client, conversation: str, client_id: str) -> bool:
    return client_id in [article.get("data-client-id") for article in client.history(conversation)]


def heavy_conversation(client: Client) -> str:
    """A conversation that costs some 4 MB to read from its start."""
    conversation = client.create("heavy").json["conversation"]
    for number in range(40):
        assert client.post_message(conversation, f"{number} {LONG}").status == 201
    return str(conversation)


def test_a_worker_with_nothing_to_do_sleeps(server: Server, me: Client) -> None:
    """It looks at the database, at drills and at gunicorn's parent about once a second each, and at nothing oftener."""
    raw = opened(me)
    time.sleep(1.5)  # what was begun is done, the events are stored

    def wakes() -> int:
        return int((worker(server) / "status").read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    before = wakes()
    time.sleep(IDLE_S)
    found = (wakes() - before) / IDLE_S
    raw.socket.close()
    print(f"{found:.1f} wakes/s")
    assert 0 < found < MOST_WAKES_S


def test_a_reader_in_mid_frame_gets_the_rest_and_the_advice(server: Server, me: Client) -> None:
    """The worker waits for it, although gunicorn knows nothing of this socket."""
    heavy = [heavy_conversation(me) for _ in range(2)]
    raw = opened(me, receive_buffer=4096)
    raw.say(type="subscribe", epoch=me.epoch, feeds=dict.fromkeys(heavy, 0))
    time.sleep(0.5)
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGTERM)
    time.sleep(1)
    code, reason = raw.closed(10)
    assert (code, reason.partition("=")[0]) == (1012, "retry")
    feeds = [frame.text for frame in raw.frames if frame.text.startswith("<chat-feed")]
    assert feeds and all(text.endswith("</chat-feed>") for text in feeds)
    name = raw.connection
    raw.socket.close()
    assert server.process.wait(15) == 0
    assert closing_of(server, name)["code"] == 1012


def test_a_reader_that_reads_again_gets_the_newest_state_once(server: Server, me: Client) -> None:
    conversation = heavy_conversation(me)
    raw = opened(me, receive_buffer=4096)
    raw.say(type="subscribe", epoch=me.epoch, feeds={conversation: 0})
    time.sleep(0.3)
    for number in range(30):
        assert me.post_message(conversation, f"late {number}").status == 201
    end = int(me.poll({conversation: 0}).page.one("chat-feed").get("to"))
    raw.until(lambda frame: f'to="{end}"' in frame.text[:200])
    feeds = [frame.text for frame in raw.frames if frame.text.startswith("<chat-feed")]
    assert len(feeds) <= 3, "not one frame for each change"
    raw.socket.close()
