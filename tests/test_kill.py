"""`kill -9` under load, again and again: what was acknowledged to people who stay in touch is there, once, in order.

Three kills with every test run; LAB_KILLS=200 for the whole show (`make failover`).
"""

import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab.http import Client
from lab.peer import Steady
from lab.server import Server

KILLS = int(os.environ.get("LAB_KILLS", "3"))
WAYS = [("websocket", "polling"), ("polling",), ("websocket", "polling")]
MESSAGES_AT_ONCE = 3


@dataclass
class Writer(threading.Thread):
    """Keeps a few messages under way in a conversation of its own, and watches that nothing shown ever goes."""

    client: Steady
    stopping: threading.Event
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        while not self.stopping.is_set():
            if self.client.unsent < MESSAGES_AT_ONCE:
                self.sent.append(self.client.send(f"message {len(self.sent)} 😀"))
            time.sleep(0.02)


@pytest.mark.timeout(120 + 60 * KILLS)
def test_kills_under_load_lose_nothing_repeat_nothing_and_keep_the_order(tmp_path: Path) -> None:
    chance, stopping, began = random.Random(11), threading.Event(), time.monotonic()
    with Server(tmp_path / "server", assistant="off") as server:
        me = Client(server.url).sign_in()
        writers = [Writer(Steady(me, ways), stopping) for ways in WAYS]
        try:
            for writer in writers:
                writer.client.start()
                writer.start()
            for number in range(4 * KILLS):
                if number >= KILLS and any(writer.client.repeats for writer in writers):
                    break  # else more, until one meets a message under way
                time.sleep(0.2 + 0.8 * chance.random())
                before = [len(writer.sent) for writer in writers]
                server.kill9()
                server.start()
                for writer, count in zip(writers, before, strict=True):  # load again, before the next kill
                    writer.client.wait(lambda w=writer, n=count: len(w.sent) > n + 2, 60, "it goes on")  # type: ignore[misc]
            stopping.set()
            for writer in writers:
                writer.join(10)
                writer.client.wait(lambda w=writer: not w.client.unsent, 60, "all is sent")  # type: ignore[misc]
            for writer in writers:
                check(writer, me)
        finally:
            stopping.set()
            for writer in writers:
                writer.client.close()
    total = sum(len(writer.sent) for writer in writers)
    print(f"{KILLS} kills, {total} messages, {time.monotonic() - began:.0f} s: 0 missing, 0 twice, 0 reordered")
    assert total > 10 * KILLS
    assert any(writer.client.repeats for writer in writers), "the kills met messages under way"


def check(writer: Writer, reader: Client) -> None:
    """The history is what was sent, each message once, in its order and at its acknowledged place."""
    articles = reader.history(writer.client.conversation)[1:]  # the first made the conversation
    there = [article.get("data-client-id") for article in articles]
    assert set(writer.client.acknowledged) == set(writer.sent), "all is acknowledged"
    acks = [writer.client.acknowledged[client_id] for client_id in writer.sent]
    missing = set(writer.sent) - set(there)
    assert not missing, f"{len(missing)} acknowledged messages are missing"
    assert len(there) == len(set(there)), "some are there twice"
    assert there == writer.sent, "some are out of order"
    places = [(article.get("data-id"), article.number("data-position")) for article in articles]
    assert places == [(ack.id, ack.position) for ack in acks]

    def shows_the_end() -> bool:
        return [message.client_id for message in writer.client.shown()][-20:] == there[-20:]

    writer.client.wait(shows_the_end, 20, "the client shows the same end")
