"""The Python client against a real server: both transports, the way down and back, restarts, many conversations."""

import ast
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.faultproxy import FaultProxy
from lab.http import Client as Person
from lab.server import EMAIL, PASSWORD, Server

from chatapp.client import Client, Feed, NotSignedIn
from chatapp.client.actions import Answer
from chatapp.client.core import MOST_OUTCOMES, Core, Settings
from chatapp.client.feeds import cut_utf16, parse
from chatapp.client.outbox import Ack
from chatapp.client.polling import Urls, failure

StartServer = Callable[..., Server]
WAYS = {"websocket": ("websocket", "polling"), "polling": ("polling",)}
STATE = {"websocket": "connected", "polling": "polling"}
QUESTION = "Is polling worse?"


@contextmanager
def client_of(url: str, *transports: str, **options: Any) -> Iterator[Client]:
    """A started client; it is closed, and its threads end."""
    before = ours()
    client = Client(url, EMAIL, PASSWORD, transports or WAYS["websocket"], **options)
    try:
        yield client.start()
    finally:
        client.close()
        end = time.monotonic() + 10
        while ours() > before and time.monotonic() < end:
            time.sleep(0.02)
    assert ours() <= before, threading.enumerate()


def ours() -> int:
    """How many threads of clients run."""
    return sum(thread.name == "chatapp client" for thread in threading.enumerate())


def states(client: Client, *wanted: str, within: float = 15.0) -> None:
    """Wait for one of these states."""
    client.wait(lambda: client.record["status"] in wanted, within, f"one of {wanted}")


def answered(client: Client, conversation: str) -> bool:
    """Whether the newest message is an answer that has ended."""
    messages = client.messages(conversation)
    return bool(messages) and messages[-1].author == "assistant" and not messages[-1].is_live


@pytest.mark.parametrize("transport", sorted(WAYS))
def test_a_conversation(start_server: StartServer, transport: str) -> None:
    server = start_server(assistant_pace=3000)
    seen: list[str] = []
    with client_of(server.url, *WAYS[transport], on_change=lambda record: seen.append(record["status"])) as client:
        states(client, STATE[transport])
        assert client.record["connectionType"] == transport
        conversation = client.create(QUESTION)
        client.wait(lambda: answered(client, conversation), 20, "the answer")
        question, answer = client.messages(conversation)
        assert (question.text, question.state, question.author) == (QUESTION, "sent", "user")
        assert answer.state == "completed" and "polling" in answer.text.lower()
        ack = client.wait_sent(client.send(conversation, "Thanks 😀 <b>&amp;</b>\nand more"))
        client.wait(lambda: any(m.id == ack.id for m in client.messages(conversation)), 10)
        [thanks] = [m for m in client.messages(conversation) if m.id == ack.id]
        assert (thanks.text, thanks.position) == ("Thanks 😀 <b>&amp;</b>\nand more", ack.position)
        client.wait(lambda: [entry.id for entry in client.conversations()] == [conversation], 10)
        assert client.conversations()[0].title == QUESTION
    assert seen[0] == "connecting" and STATE[transport] in seen


def test_both_clients_show_the_same_text_while_it_grows(start_server: StartServer) -> None:
    server = start_server(assistant_pace=600)
    with client_of(server.url) as one, client_of(server.url, "polling") as two:
        conversation = one.create(QUESTION)
        two.follow(conversation)
        one.wait(lambda: answered(one, conversation), 30)
        two.wait(lambda: answered(two, conversation), 30)
        assert one.messages(conversation)[-1].blocks == two.messages(conversation)[-1].blocks


def test_what_is_refused_for_good_says_so_and_lets_the_others_pass(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    with client_of(server.url) as client:
        conversation = client.create("hello")
        bad, good = client.send(conversation, "x" * 20_001), client.send(conversation, "short")
        client.wait_sent(good)
        refusal = client.refused(bad)
        assert refusal is not None and refusal.code == "too-long"
        with pytest.raises(ValueError, match="too-long"):
            client.wait_sent(bad)


def test_a_wrong_password_is_told(server: Server) -> None:
    with pytest.raises(NotSignedIn):
        Client(server.url, EMAIL, "wrong").start()


@pytest.mark.parametrize("fault", ["refuse", "hang", "mute", "strip"])
def test_it_polls_where_the_upgrade_fails_and_returns_when_it_works(
    start_server: StartServer, start_proxy: Callable[[Server], FaultProxy], fault: str
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    proxy.upgrade = fault
    with client_of(proxy.url) as client:
        states(client, "polling", within=5)
        conversation = client.create("hello")
        sent = [client.wait_sent(client.send(conversation, f"polled {n}")).position for n in range(3)]
        proxy.upgrade = "pass"
        states(client, "connected", within=25)
        assert client.record["reason"] is None
        sent += [client.wait_sent(client.send(conversation, f"live {n}")).position for n in range(3)]
        assert sent == sorted(sent)
        client.wait(lambda: len(client.messages(conversation)) == 7, 10)


def test_a_cut_socket_loses_nothing(start_server: StartServer, start_proxy: Callable[[Server], FaultProxy]) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    with client_of(proxy.url) as client:
        states(client, "connected")
        conversation = client.create("hello")
        bodies = []
        for number in range(30):
            bodies.append(f"message {number}")
            client.send(conversation, bodies[-1])
            if number % 7 == 3:
                proxy.lose_replies = 1
                proxy.reset_all()
            time.sleep(0.05)
        client.wait(lambda: not client.unsent(), 30, "all is sent")
        client.wait(lambda: len(client.messages(conversation)) >= 31, 15, "all is shown")
        assert [m.text for m in client.messages(conversation)] == ["hello", *bodies]


def test_an_answer_that_was_cut_is_no_answer(
    start_server: StartServer, start_proxy: Callable[[Server], FaultProxy]
) -> None:
    """In the middle, and within its first tag: nothing of it is applied, and the client polls on."""
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    with client_of(server.url) as writer, client_of(proxy.url, "polling") as reader:
        conversation = writer.create("hello")
        sent = [writer.wait_sent(writer.send(conversation, f"message {n}")).id for n in range(6)]
        states(reader, "polling")
        proxy.cut_news = [0.6, 0.01]
        reader.follow(conversation)
        reader.wait(lambda: len(reader.messages(conversation)) == 7, 20, "all is shown")
        assert [m.id for m in reader.messages(conversation)[1:]] == sent
        assert sum(seen.done_to_it == "cut" for seen in proxy.requests) == 2


def test_a_restart_and_a_kill_of_the_server(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    with client_of(server.url) as client:
        states(client, "connected")
        conversation = client.create("hello")
        for end in (server.stop, server.kill9):
            end()
            waiting = client.send(conversation, f"while it is down after {end.__name__}")
            server.start()
            client.wait_sent(waiting, 20)
            states(client, "connected", within=20)
        client.wait(lambda: len(client.messages(conversation)) == 3, 10)


def test_ten_conversations_on_one_connection(
    start_server: StartServer, start_proxy: Callable[[Server], FaultProxy]
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    with client_of(proxy.url) as client, client_of(server.url, "polling") as other:
        states(client, "connected")
        conversations = [client.create(f"conversation {n}") for n in range(10)]
        for conversation in conversations:
            other.follow(conversation)
        sent = [other.send(c, f"{c[:8]} {n}") for n in range(3) for c in conversations]
        for client_id in sent:
            other.wait_sent(client_id, 30)
        for conversation in conversations:
            client.wait(lambda c=conversation: len(client.messages(c)) == 4, 10)  # type: ignore[misc]
            assert [m.text for m in client.messages(conversation)[1:]] == [f"{conversation[:8]} {n}" for n in range(3)]
        assert sum(seen.is_upgrade for seen in proxy.requests) == 1


def test_the_client_knows_nothing_of_the_server() -> None:
    folder = Path(__file__).parents[1] / "chatapp" / "client"
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("flask", "gevent", "sqlalchemy")), f"{file.name}: {name}"
                assert not name.startswith("chatapp.") or name.startswith(("chatapp.client", "chatapp.connection"))


def test_offsets_count_utf16_units() -> None:
    assert cut_utf16("a😀b", 3) == "a😀"
    assert cut_utf16("abc", 4) is None and cut_utf16("a😀b", 5) is None
    feed = Feed()
    first = '<chat-feed feed="f" from="0" to="2" reset><article data-id="m" data-client-id="c" data-position="2" '
    first += 'data-revision="2" data-author="assistant" data-state="running"><div class="body"><div class="block" '
    first += 'data-index="0" data-source="&lt;p&gt;😀 a&lt;/p&gt;"><p>😀 a</p></div></div></article></chat-feed>'
    more = '<chat-feed feed="f" from="2" to="3"><chat-patch position="2" revision="3"><chat-block index="0" offset="7">'
    more += "b&amp;amp;&lt;/p&gt;</chat-block></chat-patch></chat-feed>"
    assert [feed.apply(parse(markup)[0]) for markup in (first, more, more)] == ["applied", "applied", "known"]
    assert feed.ordered()[0].blocks == {0: "<p>😀 ab&amp;</p>"} and feed.ordered()[0].text == "😀 ab&"
    assert feed.apply(parse(more.replace('from="2" to="3"', 'from="7" to="8"'))[0]) == "gap"


def make_core() -> Core:
    machine = {"transports": ["polling"], "reconnect_ms": 5000, "max_attempts": 10, "poll_ms": 3000}
    machine |= {"poll_retries": 3, "poll_backoff": 1.5, "latency_ms": 0}
    return Core(Settings(machine=machine, urls=Urls("/changes", "/c", "/c/{id}/messages")), random.random)


@pytest.mark.parametrize("text", ["<html>Blocked by policy</html>", json.dumps({"error": {"code": "blocked"}}), "{}"])
def test_a_poll_that_is_forbidden_is_asked_again(text: str) -> None:
    """The server never answers a poll so: a filter does."""
    assert failure(Answer(403, text)) == {"type": "poll_failed", "reason": "foreign-page"}


def test_outcomes_are_remembered_in_bounds() -> None:
    core = make_core()
    for number in range(MOST_OUTCOMES + 5):
        markup = f'<chat-ack client-id="{number}" conversation="c" id="i" position="1" revision="1"></chat-ack>'
        core.receive(parse(markup)[0], "websocket")
    assert len(core.acks) == MOST_OUTCOMES
    assert "4" not in core.acks and core.acks["5"] == Ack("i", 1, 1)


@pytest.fixture
def reached(server: Server, start_proxy: Callable[[Server], FaultProxy]) -> Iterator[tuple[Client, FaultProxy, Server]]:
    """A client behind a proxy."""
    proxy = start_proxy(server)
    with Client(proxy.url, EMAIL, PASSWORD) as client:
        client.wait(lambda: client.record["status"] == "connected", 10)
        yield client, proxy, server


def test_a_conversation_that_was_not_made_says_so(reached: tuple[Client, FaultProxy, Server]) -> None:
    client, proxy, server = reached
    proxy.http_error, proxy.http_error_on = (502, {}), "/c"
    with pytest.raises(OSError, match="502"):
        client.create()
    proxy.http_error = None
    gone = client.create()
    Person(server.url).sign_in().post(f"/c/{gone}/delete")
    with pytest.raises(ValueError, match="gone"):
        client.create(conversation=gone)
    with pytest.raises(ValueError, match="too-long"):
        client.create("x" * 20_001)


def test_sockets_that_ended_are_forgotten(reached: tuple[Client, FaultProxy, Server]) -> None:
    client, proxy, _ = reached
    proxy.reset_sockets()
    client.wait(lambda: len(proxy.upgrades()) > 1, 15, "it dials again")
    client.wait(lambda: client.record["status"] == "connected", 20)
    client.wait(lambda: len(client._sockets) == 1, 5, "one is left")
