"""A database that was rolled back under its name: whoever shows what it lost is told to read again, and nobody else."""

import shutil
from pathlib import Path

import pytest
from flask import Flask
from lab.elements import parse
from lab.http import Client
from lab.peer import WebSocketPeer
from lab.server import Server

from chatapp.bus import Bus
from chatapp.store import Store, migrate


@pytest.fixture
def talk(tmp_path: Path) -> "tuple[Server, Client, str]":
    server = Server(tmp_path / "server", assistant="off").start()
    client = Client(server.url).sign_in()
    return server, client, str(client.create("number 0").json["conversation"])


def copy(source: Path, target: Path) -> None:
    """The whole data directory, as a machine's snapshot has it."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("workers"))


def mark_of(client: Client, conversation: str) -> str:
    """The mark that a page is served with."""
    return client.open(conversation) and str(client.get(f"/c/{conversation}").page.all("body")[0].get("data-mark"))


def poll(client: Client, conversation: str, cursor: int, mark: str) -> str:
    answer = client.get(f"/changes?epoch={client.epoch}&mark={mark}&c={conversation}:{cursor}&c=list:{cursor}&wait=0")
    assert answer.status in (200, 204)
    return answer.text


@pytest.mark.parametrize("what", ["chat.db", "everything"])
def test_a_reader_from_a_lost_future_reads_anew(talk: tuple[Server, Client, str], tmp_path: Path, what: str) -> None:
    """Ten messages lost, fifteen written: the cursor is within the feed, and the epoch is the same."""
    server, client, conversation = talk
    early = client.poll({conversation: 0}).page.one("chat-feed")
    server.stop()
    copy(server.data, tmp_path / "copy")
    server.start()
    for number in range(10):
        client.post_message(conversation, f"lost {number}")
    late = client.poll({conversation: 0}).page.one("chat-feed")
    page_mark = mark_of(client, conversation)
    epoch = client.epoch
    server.stop()
    if what == "everything":
        copy(tmp_path / "copy", server.data)
    else:
        for name in ("chat.db", "chat.db-wal", "chat.db-shm"):
            (server.data / name).unlink(missing_ok=True)
        for path in (tmp_path / "copy").glob("chat.db*"):
            if path.name != "chat.db-change":
                shutil.copy(path, server.data)
    server.start()
    for number in range(15):
        assert client.post_message(conversation, f"new {number}").status == 201
    try:
        if what == "everything":  # nothing on this machine can know
            assert client.open(conversation) and client.epoch == epoch
            told = parse(poll(client, conversation, late.number("to"), late.get("mark"))).all("chat-reload")
            assert [(one.get("feed"), one.get("reason")) for one in told] == [
                (conversation, "history"),
                ("list", "history"),
            ]
            assert "chat-reload" in poll(client, conversation, late.number("to"), page_mark)
            fresh = told[0].get("mark")
            assert "lost" not in poll(client, conversation, 0, fresh) and "new 14" in poll(
                client, conversation, 0, fresh
            )
            # What was there before the copy is of this past: only what came since is told.
            assert "reset" not in poll(client, conversation, early.number("to"), early.get("mark"))
            assert "new 0" in poll(client, conversation, early.number("to"), early.get("mark"))
        else:
            assert client.open(conversation) and client.epoch != epoch
            assert "chat.db ends at change" in server.log_text()
    finally:
        server.stop()


def test_a_start_without_the_log_says_that_messages_are_lost(talk: tuple[Server, Client, str]) -> None:
    """`chat.db-wal` was deleted after a crash: what it held was acknowledged."""
    server, client, conversation = talk
    epoch = client.epoch
    for number in range(5):
        assert client.post_message(conversation, f"acknowledged {number}").status == 201
    server.kill9()
    (server.data / "chat.db-wal").unlink()
    server.start()
    try:
        assert "chat.db ends at change" in server.log_text() and "acknowledged since is lost" in server.log_text()
        assert Client(server.url).sign_in().epoch != epoch
    finally:
        server.stop()


def test_restarts_crashes_and_backups_cost_nobody_anything(talk: tuple[Server, Client, str]) -> None:
    server, client, conversation = talk
    seen = client.poll({conversation: 0}).page.one("chat-feed")
    epoch = client.epoch
    for end in (server.stop, server.kill9, server.stop):
        client.post_message(conversation, "between")
        end()
        server.start()
    try:
        text = poll(client, conversation, seen.number("to"), seen.get("mark"))
        assert text.count("between") >= 3 and "reload" not in text and "reset" not in text.split('feed="list"')[0]
        assert Client(server.url).sign_in().epoch == epoch
        assert "chat.db ends" not in server.log_text()
        for nonsense in (
            "x",
            "x.1",
            f"{seen.get('mark')[:8]}.",
            f"{seen.get('mark')[:8]}.99999999999999999999",
            ".",
            "½.½",
        ):
            assert "chat-reload" in poll(
                client, conversation, 1, nonsense.encode().hex() if "½" in nonsense else nonsense
            )
    finally:
        server.stop()


def test_the_same_over_a_websocket(talk: tuple[Server, Client, str]) -> None:
    server, client, conversation = talk
    try:
        with WebSocketPeer(client) as peer:
            for mark, tag in ((mark_of(client, conversation), "chat-feed"), ("00000000.5", "chat-reload")):
                peer.say(type="subscribe", epoch=client.epoch, mark=mark, feeds={conversation: 1})
                element = next(one for _ in range(20) for one in peer.next() if one.tag == tag)
                assert element.get("mark")
                assert tag == "chat-feed" or element.get("reason") == "history"
    finally:
        server.stop()


def test_two_processes_that_overlap_give_marks_that_hold_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a takeover the old one names what came after the new one began, before its watcher has looked."""
    migrate.migrate(tmp_path)
    old, new = (Store(Flask(name), tmp_path, Bus()) for name in ("old", "new"))
    person = old.people.add_first_admin("Ada", "ada@example.org", "x").id

    def posted(store: Store, name: str) -> int:
        with store.database.write() as tx:
            store.conversations.post(tx, place, f"m-{name}", name)
        return store.conversations.changes(place, 0).change

    with old.database.write() as tx:
        place = old.conversations.add(tx, person, "c")
    old.histories.add()
    before = old.histories.mark(posted(old, "before"))
    new.histories.add()
    mark = old.histories.mark(posted(old, "after"))
    assert new.histories.holds(mark) and old.histories.holds(mark) and new.histories.holds(before)
    new.histories.add()
    mark = new.histories.mark(posted(new, "by the new one"))
    assert old.histories.holds(mark), "a reader comes back from the new one to the old one"
    change = posted(old, "seen")
    mark = old.histories.mark(change)
    monkeypatch.setattr(old.database, "read", None)
    assert old.histories.mark(change) == mark, "where nothing is new the database is not asked"
    old.histories._record_commit(change + 1, change + 2)
    assert old.histories.mark(change + 2), "nor for what this process has just committed"
    for store in (old, new):
        store.database.engine.dispose()
