"""SQLite's log is carried into its file beside the event loop, and starts over all the while."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from lab.http import Client
from lab.peer import WebSocketPeer
from lab.server import Server
from sqlalchemy import create_engine

from chatapp.store import sqlite
from chatapp.store.sqlite import MOST_PAGES

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


def test_a_log_that_somebody_keeps_from_ending_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A backup, or a shell that was forgotten, reads on: what is written meanwhile cannot be carried over."""
    monkeypatch.setattr(sqlite, "MOST_PAGES", 20)
    engine = create_engine(f"sqlite:///{tmp_path / 'chat.db'}")
    sqlite.configure(engine, "FULL")
    engine.connect().close()  # puts it into WAL mode
    made = sqlite.Checkpoints(engine, threading.Lock())
    with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as writer:
        writer.execute("CREATE TABLE notes (text)")
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as reader:
            for command in ("BEGIN", "SELECT count(*) FROM notes"):
                reader.execute(command).fetchall()
            for _ in range(60):
                writer.execute("INSERT INTO notes VALUES (?)", ("word " * 1000,))
            made._make()
            made._make()
            assert caplog.text.count("chat.db-wal has grown to") == 1
            assert "some program has been reading the database for long" in caplog.text
    engine.dispose()
