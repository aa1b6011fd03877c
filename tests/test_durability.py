"""What was acknowledged is on disk: kill -9 in the middle of everything, and the system calls before each word."""

import random
import re
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab.elements import Element, parse
from lab.http import Client
from lab.peer import PEERS, Shown, Steady
from lab.server import Server
from sqlalchemy import text

from chatapp import create_app
from chatapp.config import Settings

KILLS = 10
QUESTION = "How do I let WebSocket through nginx? ({})"


class Sender(threading.Thread):
    """Has one message after the other sent, each as soon as the one before is acknowledged; the next one waits."""

    def __init__(self, client: Client, transport: str, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self.steady = Steady(client, (transport,))
        self.stopping = stopping
        self.wanted: list[tuple[str, str]] = []

    def run(self) -> None:
        with self.steady as steady:
            while not self.stopping.is_set():
                if steady.unsent < 2:
                    body = QUESTION.format(len(self.wanted))
                    self.wanted.append((steady.send(body), body))
                time.sleep(0.01)
            steady.wait(lambda: not steady.unsent, 60, "all is acknowledged")


class Watcher(Steady):
    """Reads a conversation, over any number of connections, and keeps what it saw of each answer."""

    def __init__(self, client: Client, transport: str, conversation: str) -> None:
        super().__init__(client, (transport,), conversation)
        self.seen: dict[str, list[str]] = {}
        self.last: dict[str, Shown] = {}

    def heard(self) -> None:
        for message in self.shown():
            if message.author == "assistant" and message.text:
                texts = self.seen.setdefault(message.id, [])
                if not texts or texts[-1] != flat(message.text):
                    texts.append(flat(message.text))
            self.last[message.id] = message


def flat(markup_text: str) -> str:
    """Text with each run of white space as one blank."""
    return " ".join(markup_text.split())


def text_of(article: Element) -> str:
    """The text of an answer, as a reader sees it."""
    blocks = [block.get("data-source", block.source) for block in article.all("div", css_class="block")]
    return flat("\n".join(parse(block).text for block in blocks))


@pytest.mark.timeout(180)
def test_kill_9_ten_times_loses_nothing_repeats_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    chance = random.Random(5)
    sending = threading.Event()
    with Server(tmp_path / "server", assistant_pace=250) as server:
        me = Client(server.url).sign_in()
        senders = {name: Sender(me, name, sending) for name in PEERS}
        conversations = {name: sender.steady.conversation for name, sender in senders.items()}
        # Each transport is read over the other one.
        others = dict(zip(PEERS, reversed(PEERS), strict=True))
        watchers = [Watcher(me, others[name], conversation) for name, conversation in conversations.items()]
        for thread in (*senders.values(), *watchers):
            thread.start()
        try:
            for _ in range(KILLS):
                time.sleep(0.3 + 0.7 * chance.random())
                server.kill9()
                server.start()
            time.sleep(0.5)
        finally:
            sending.set()
            for sender in senders.values():
                sender.join(70)
        articles = {name: ended_history(me, conversation) for name, conversation in conversations.items()}
        time.sleep(1)  # what the watchers have not read yet
        for watcher in watchers:
            watcher.close()
    for name, sender in senders.items():
        check_messages(sender, articles[name])
    states = [
        state
        for watcher, history in zip(watchers, articles.values(), strict=True)
        for state in check_answers(watcher, history)
    ]
    assert states.count("interrupted") >= 3 and "completed" in states, f"the kills missed the answers: {states}"
    assert sum(sender.steady.broken for sender in senders.values()) >= KILLS


def ended_history(client: Client, conversation: str) -> list[Element]:
    """The history once every answer in it has ended; what a killed writer left is found after 6 s."""
    end = time.monotonic() + 25
    while True:
        history = client.history(conversation)
        live = [a for a in history if a.get("data-state") in ("queued", "running")]
        if not live and history[-1].get("data-author") == "assistant":
            return history
        assert time.monotonic() < end, f"still {live[:3]} after 25 s"
        time.sleep(0.3)


def check_messages(sender: Sender, history: list[Element]) -> None:
    """Nothing that was acknowledged is missing or moved, nothing is there twice, all is in the order of sending."""
    shown = [article for article in history if article.get("data-author") == "user"][1:]  # the first made it
    assert len(sender.wanted) > 20
    assert set(sender.steady.acknowledged) == {client_id for client_id, _ in sender.wanted}
    assert [article.get("data-client-id") for article in shown] == [client_id for client_id, _ in sender.wanted]
    assert [article.one("div", css_class="body").text.strip() for article in shown] == [b for _, b in sender.wanted]
    for article in shown:
        sent = sender.steady.acknowledged[article.get("data-client-id")]
        assert (article.get("data-id"), article.number("data-position")) == (sent.id, sent.position)
    positions = [article.number("data-position") for article in history]
    assert positions == sorted(set(positions))


def check_answers(watcher: Watcher, history: list[Element]) -> list[str]:
    """Every answer has ended, and all that a reader ever saw of it is the beginning of what remains."""
    answers = {a.get("data-id"): a for a in history if a.get("data-author") == "assistant"}
    states = [article.get("data-state") for article in answers.values()]
    assert set(states) <= {"completed", "interrupted"}
    assert len(watcher.seen) > 3
    assert set(watcher.seen) <= set(answers), "an answer that was seen is gone"
    for name, texts in watcher.seen.items():
        remains = text_of(answers[name])
        for seen in texts:
            assert remains.startswith(seen), f"seen {seen[-200:]!r}, remains {remains[-200:]!r}"
    for name, message in watcher.last.items():
        if message.author == "assistant":
            assert message.state == answers[name].get("data-state"), "the reader has the end"
            assert flat(message.text) == text_of(answers[name])
    return states


def test_an_answer_that_was_cut_off_can_be_asked_for_again(tmp_path: Path) -> None:
    with Server(tmp_path / "server", assistant_pace=60) as server:
        me = Client(server.url).sign_in()
        conversation = me.create(QUESTION.format(1)).json["conversation"]
        peer = PEERS["polling"](me)
        peer.subscribe({conversation: 0})
        peer.wait_until(lambda: any(m.author == "assistant" and m.text for m in peer.shown(conversation)))
        server.kill9()
        server.settings["CHATAPP_ASSISTANT_PACE"] = "100000"
        server.start()
        history = ended_history(me, conversation)
        assert history[-1].get("data-state") == "interrupted"
        assert text_of(history[-1]).startswith(flat(peer.shown(conversation)[-1].text))
        assert me.post(f"/c/{conversation}/again").status in (204, 303)
        last = history[-1].number("data-position")
        assert peer.wait_for_answer(conversation, after=last).state == "completed"


# What the kernel is asked for


@dataclass(frozen=True)
class Call:
    """One finished system call: its name, what it was asked, on which file."""

    name: str
    rest: str
    file: str


def traced(path: Path) -> list[Call]:
    """The calls in the order in which they ended; a failed or unfinished one does not count."""
    found, begun = [], {}
    for line in path.read_text(errors="replace").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip().partition(" ")[2]
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
            continue
        if rest.startswith("<... "):
            rest = begun.pop(pid, "") + rest.partition("resumed>")[2]
        name, _, arguments = rest.partition("(")
        if not name.isidentifier() or re.search(r"= -1 E\w+", arguments):
            continue
        file = re.match(r"\d+<([^>]*(?:->[^>]*)?)>", arguments)
        found.append(Call(name, arguments, file.group(1) if file else ""))
    return found


TRACE = "fsync,fdatasync,sendto,write,writev,sendmsg,recvfrom,recvmsg,read,pwrite64"
SYNCS, SENDS = ("fsync", "fdatasync"), ("sendto", "write", "writev", "sendmsg")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], dict[str, list[str]]]:
    """The system calls of a server that took sends over both transports, and the client ids of those."""
    directory = tmp_path_factory.mktemp("trace")
    file = directory / "calls"
    prefix = ["strace", "-f", "-tt", "-y", "-s", "600", "-e", f"trace={TRACE}", "-e", "signal=none", "-o", str(file)]
    sent: dict[str, list[str]] = {}
    server = Server(directory / "server", prefix=prefix, assistant="off")
    server.start(timeout=90)
    try:
        me = Client(server.url).sign_in()
        for name, kind in PEERS.items():
            conversation = me.create("hello").json["conversation"]
            with kind(me) as peer:
                sent[name] = [peer.send(conversation, f"durable {number}").client_id for number in range(10)]
    finally:
        server.kill9()
    return traced(file), sent


@pytest.mark.parametrize("transport", sorted(PEERS))
def test_the_disk_has_each_message_before_its_acknowledgement(
    trace: tuple[list[Call], dict[str, list[str]]], transport: str
) -> None:
    calls, sent = trace
    for client_id in sent[transport]:
        acknowledged = next(
            number
            for number, call in enumerate(calls)
            if call.name in SENDS and client_id in call.rest and call.file.startswith(("socket:", "TCP"))
        )
        asked = max(
            number
            for number, call in enumerate(calls[:acknowledged])
            if call.name in ("recvfrom", "recvmsg", "read") and call.file == calls[acknowledged].file
        )
        between = calls[asked:acknowledged]
        written = [n for n, call in enumerate(between) if call.name == "pwrite64" and call.file.endswith("chat.db-wal")]
        synced = [n for n, call in enumerate(between) if call.name in SYNCS and call.file.endswith("chat.db-wal")]
        assert written and synced, f"{client_id}: {[call.name for call in between]}"
        assert max(synced) > max(written), "what was written last is synced, too"


def test_the_products_own_connections_are_durable_and_check_foreign_keys(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path / "data", assistant="off"))
    database = app.extensions["chatapp"].store.database
    with database.read() as first, database.read() as second, database.write() as third:
        for connection in (first, second, third.connection):
            assert pragma(connection, "synchronous") == 2, "FULL"
            assert pragma(connection, "journal_mode") == "wal"
            assert pragma(connection, "foreign_keys") == 1
            # A writer waits for its turn in Python (`begin_write`): SQLite's wait would block the event loop.
            assert pragma(connection, "busy_timeout") == (0 if connection is third.connection else 5000)
    database.engine.dispose()
    with closing(sqlite3.connect(tmp_path / "data" / "chat.db")) as plain:
        assert plain.execute("pragma foreign_key_check").fetchall() == []


def pragma(connection: object, name: str) -> object:
    """The value of a pragma on this connection."""
    return connection.execute(text(f"PRAGMA {name}")).scalar_one()  # type: ignore[attr-defined]
