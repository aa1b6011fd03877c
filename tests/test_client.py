"""The shipped client against a real server: both transports, the way down and back, restarts, many conversations."""

import json
import time
from collections.abc import Callable

import pytest
from headless.client import Client, Loop, NotSignedIn
from headless.core import Message, Page
from lab.faultproxy import FaultProxy
from lab.http import Client as Person
from lab.server import EMAIL, Server

StartProxy = Callable[[Server], FaultProxy]
StartClient = Callable[..., Client]
StartServer = Callable[..., Server]
WAYS = {"websocket": ("websocket", "polling"), "polling": ("polling",)}
STATE = {"websocket": "connected", "polling": "polling"}
QUESTION = "Is polling worse?"


def answered(client: Client, conversation: str) -> bool:
    """Whether the newest message is an answer that has ended."""
    messages = client.messages(conversation)
    return bool(messages) and messages[-1].author == "assistant" and not messages[-1].is_live


@pytest.mark.parametrize("transport", sorted(WAYS))
def test_a_conversation(start_server: StartServer, start_client: StartClient, transport: str) -> None:
    server = start_server(assistant_pace=3000)
    seen: list[str] = []
    client = start_client(server.url, *WAYS[transport], on_record=lambda record: seen.append(record["status"]))
    client.reach(STATE[transport])
    assert client.record["connectionType"] == transport
    conversation = client.create(QUESTION)
    client.wait(lambda: answered(client, conversation), 20, "the answer")
    question, answer = client.messages(conversation)
    assert (question.text, question.state, question.author) == (QUESTION, "sent", "user")
    assert answer.state == "completed" and "polling" in answer.text.lower()
    ack = client.wait_sent(client.send(conversation, "Thanks 😀 <b>&amp;</b>\nand more"))
    client.wait(lambda: any(m.id == ack["id"] for m in client.messages(conversation)), 10)
    [thanks] = [m for m in client.messages(conversation) if m.id == ack["id"]]
    assert (thanks.text, thanks.position) == ("Thanks 😀 <b>&amp;</b>\nand more", int(ack["position"]))
    client.wait(lambda: client.titles() == {conversation: QUESTION}, 10)
    assert seen[0] == "connecting" and STATE[transport] in seen


def test_both_clients_show_the_same_text_while_it_grows(start_server: StartServer, start_client: StartClient) -> None:
    server = start_server(assistant_pace=600)
    one, two = start_client(server.url), start_client(server.url, "polling")
    conversation = one.create(QUESTION)
    two.follow(conversation)
    one.wait(lambda: answered(one, conversation), 30)
    two.wait(lambda: answered(two, conversation), 30)
    assert one.messages(conversation)[-1].blocks == two.messages(conversation)[-1].blocks


def test_what_is_refused_for_good_says_so_and_lets_the_others_pass(
    start_server: StartServer, start_client: StartClient
) -> None:
    server = start_server(assistant="off")
    client = start_client(server.url)
    conversation = client.create("hello")
    bad, good = client.send(conversation, "x" * 20_001), client.send(conversation, "short")
    client.wait_sent(good)
    with pytest.raises(ValueError, match="too-long"):
        client.wait_sent(bad)


def test_a_wrong_password_is_told(server: Server, loop: Loop) -> None:
    with pytest.raises(NotSignedIn):
        Client(loop, server.url, EMAIL, "wrong").start()


def place(client: Client, client_id: str) -> int:
    """The position of a message, once it is sent."""
    return int(client.wait_sent(client_id)["position"])


@pytest.mark.parametrize("fault", ["refuse", "hang", "mute", "strip"])
def test_it_polls_where_the_upgrade_fails_and_returns_when_it_works(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient, fault: str
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    proxy.upgrade = fault
    client = start_client(proxy.url)
    client.reach("polling", within=5)
    conversation = client.create("hello")
    sent = [place(client, client.send(conversation, f"polled {n}")) for n in range(3)]
    proxy.upgrade = "pass"
    client.reach("connected", within=25)
    assert client.record["reason"] is None
    sent += [place(client, client.send(conversation, f"live {n}")) for n in range(3)]
    assert sent == sorted(sent)
    client.wait(lambda: len(client.messages(conversation)) == 7, 10)


def test_a_cut_socket_loses_nothing(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    client = start_client(proxy.url)
    client.reach("connected")
    conversation = client.create("hello")
    bodies = []
    for number in range(30):
        bodies.append(f"message {number}")
        client.send(conversation, bodies[-1])
        if number % 7 == 3:
            proxy.lose_replies = 1
            proxy.reset_all()
        time.sleep(0.05)
    client.wait(lambda: not client.state["waiting"], 30, "all is sent")
    client.wait(lambda: len(client.messages(conversation)) >= 31, 15, "all is shown")
    assert [m.text for m in client.messages(conversation)] == ["hello", *bodies]


def test_an_answer_that_was_cut_is_no_answer(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    """In the middle, and within its first tag: nothing of it is applied, and the client polls on."""
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    writer, reader = start_client(server.url), start_client(proxy.url, "polling")
    conversation = writer.create("hello")
    sent = [writer.wait_sent(writer.send(conversation, f"message {n}"))["id"] for n in range(6)]
    reader.reach("polling")
    proxy.cut_news = [0.6, 0.01]
    reader.follow(conversation)
    reader.wait(lambda: len(reader.messages(conversation)) == 7, 20, "all is shown")
    assert [m.id for m in reader.messages(conversation)[1:]] == sent
    assert sum(seen.done_to_it == "cut" for seen in proxy.requests) == 2


def test_a_restart_and_a_kill_of_the_server(start_server: StartServer, start_client: StartClient) -> None:
    server = start_server(assistant="off")
    client = start_client(server.url)
    client.reach("connected")
    conversation = client.create("hello")
    for end in (server.stop, server.kill9):
        end()
        waiting = client.send(conversation, f"while it is down after {end.__name__}")
        server.start()
        client.wait_sent(waiting, 20)
        client.reach("connected", within=20)
    client.wait(lambda: len(client.messages(conversation)) == 3, 10)


def test_ten_conversations_on_one_connection(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    client, other = start_client(proxy.url), start_client(server.url, "polling")
    client.reach("connected")
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


CONFIG = {"transports": ["polling"], "reconnect_ms": 5000, "max_attempts": 10, "poll_ms": 3000, "poll_retries": 3}
CONFIG |= {"poll_backoff": 1.5, "poll_hold_ms": 25_000, "heartbeat_ms": 30_000, "predict": [], "ws_max_message": 65_536}
CONFIG |= {"changes_url": "/changes", "create_url": "/c", "messages_url": "/c/{id}/messages", "network": ""}


@pytest.mark.parametrize("text", ["<html>Blocked by policy</html>", json.dumps({"error": {"code": "blocked"}}), "{}"])
def test_a_poll_that_is_forbidden_is_asked_again(text: str) -> None:
    """The server never answers a poll so: a filter does."""
    page = Page(CONFIG, {"epoch": "", "mark": "", "person": ""}, 1, 0.0)
    page.happen(0.0, "follow", "list")
    page.happen(0.0, "start")
    now, first = next_poll(page, 0.0)
    page.happen(now, "answered", first, {"status": 403, "text": text, "headers": {}})
    _, second = next_poll(page, now)
    record = page.seen()["record"]
    page.close()
    assert second != first and (record["status"], record["reason"]) == ("reconnecting", "foreign-page")


def test_a_socket_over_which_the_machine_slept_before_it_was_ready_is_watched() -> None:
    """Found by seed 99325 of the simulator: the timer that found out about the sleep was the detector's last."""
    page = Page(
        CONFIG | {"transports": ["websocket"], "predict": ["echo"]}, {"epoch": "", "mark": "", "person": ""}, 1, 0.0
    )
    page.happen(0.0, "follow", "f")
    page.happen(0.0, "start")
    [number] = [number for name, number, *_ in page.take() if name == "open"]
    page.happen(40.0, "frame", number, '<chat-hello epoch="" connection="s" max-message="9999" ping="30"></chat-hello>')
    page.happen(40.0, "frame", number, '<chat-feed feed="f" from="0" to="1" reset></chat-feed>')
    while page.due is not None and page.due <= 900:
        page.happen(page.due, "tick")
    now = 6440.0  # it slept: first one timer finds that out, then the answer is there, before the attempt is given up
    page.happen(now, "tick")
    for n in (1, 2, 3, 4):
        page.happen(now, "frame", number, f'<chat-echo n="{n}"></chat-echo>')
        now += 30
    assert page.seen()["record"]["status"] == "connected"
    end = now + 15_000  # from here on nothing is answered
    while page.seen()["record"]["status"] == "connected" and page.due is not None and page.due <= end:
        now = max(now, page.due)
        page.happen(now, "tick")
    assert page.seen()["record"]["status"] != "connected", "its silence was never noticed"
    page.close()


def next_poll(page: Page, now: float) -> tuple[float, int]:
    """When a page wants to poll next, within 10 s, and the poll's number."""
    end = now + 10_000
    while now <= end:
        if asked := [number for name, number, *_ in page.take() if name == "ask"]:
            return now, asked[0]
        assert page.due is not None, "it waits for nothing"
        now = max(now, page.due)
        page.happen(now, "tick")
    raise AssertionError("it polls no more")


FIRST = (
    '<chat-feed feed="f" from="0" to="2" reset><article data-id="m" data-client-id="c" data-position="2" '
    'data-revision="2" data-author="assistant" data-state="running"><div class="body"><div class="block" '
    'data-index="0" data-source="&lt;p&gt;😀 a&lt;/p&gt;"><p>😀 a</p></div></div></article></chat-feed>'
)
MORE = (
    '<chat-feed feed="f" from="2" to="3"><chat-patch position="2" revision="3"><chat-block index="0" offset="{}">'
    "b&amp;amp;&lt;/p&gt;</chat-block></chat-patch></chat-feed>"
)


def test_growing_text_is_appended_where_it_fits_and_else_asked_for_again() -> None:
    """Offsets count UTF-16 units, as the server does; twice is once; what comes from beyond changes nothing."""
    page = Page(CONFIG, {"epoch": "", "mark": "", "person": ""}, 1, 0.0)
    page.happen(0.0, "follow", "f")
    for markup in (FIRST, MORE.format(7), MORE.format(7), MORE.format(7).replace('from="2" to="3"', 'from="7" to="8"')):
        page.happen(0.0, "late", markup)
    [answer] = [Message.of(row) for row in page.rows("f")]
    assert answer.blocks == {0: "<p>😀 ab&amp;</p>"} and answer.text == "😀 ab&"
    assert page.seen()["cursors"] == {"f": 3}
    page.happen(0.0, "late", MORE.format(99).replace('to="3"', 'to="4"').replace('revision="3"', 'revision="4"'))
    assert page.seen()["cursors"] == {"f": 0}, "it does not fit: the whole is asked for"
    page.close()


@pytest.fixture
def proxy(server: Server, start_proxy: StartProxy) -> FaultProxy:
    """Between the server and a client."""
    return start_proxy(server)


def test_a_conversation_that_was_not_made_says_so(server: Server, proxy: FaultProxy, start_client: StartClient) -> None:
    client = start_client(proxy.url)
    client.reach("connected")
    proxy.http_error, proxy.http_error_on = (502, {}), "/c"
    with pytest.raises(OSError, match="502"):
        client.create()
    proxy.http_error = None
    gone = client.create()
    Person(server.url).sign_in().post(f"/c/{gone}/delete")
    with pytest.raises(ValueError, match="gone"):
        client.wait_sent(client.send(gone, "too late", create=True))
    with pytest.raises(ValueError, match="too-long"):
        client.create("x" * 20_001)


def test_sockets_that_ended_are_forgotten(proxy: FaultProxy, start_client: StartClient) -> None:
    client = start_client(proxy.url)
    client.reach("connected")
    proxy.reset_sockets()
    client.wait(lambda: len(proxy.upgrades()) > 1, 15, "it dials again")
    client.reach("connected", within=20)
    client.wait(lambda: proxy.sockets == 1, 5, "one is left")
