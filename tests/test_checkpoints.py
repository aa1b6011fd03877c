"""SQLite's log is carried into its file beside the event loop, and begins anew all the while."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from lab.http import Client
from lab.peer import WebSocketPeer
from lab.server import Server

from chatapp.store.checkpoints import MOST_PAGES

POSTS = 1500  # some 40 kB of log each, together more than would be left to pile up
PAGE_BYTES = 4096


@pytest.mark.timeout(120)
def test_the_log_begins_anew_under_load(start_server: Callable[..., Server]) -> None:
    server = start_server(assistant="off")
    client = Client(server.url).sign_in()
    conversation = client.create("hello").json["conversation"]
    with WebSocketPeer(client) as peer:
        for number in range(POSTS):
            assert peer.send(conversation, f"message {number}").position
    size = (server.data / "chat.db-wal").stat().st_size
    print(f"{size:,} bytes of log after {POSTS} posts")
    assert size < PAGE_BYTES * MOST_PAGES / 2
    with closing(sqlite3.connect(server.data / "chat.db")) as database:
        assert database.execute("SELECT count(*) FROM messages").fetchone()[0] == POSTS + 1
