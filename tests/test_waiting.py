"""An answer that waits is seen: last, without a position, with how many are before it, until it starts or ends."""

import uuid
from collections.abc import Callable, Iterator

import pytest
from lab.elements import Element
from lab.http import Client
from lab.peer import PEERS, Peer
from lab.server import Server

QUESTION = "How do I let WebSocket through nginx?"
AT_ONCE = 16


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server whose assistant takes its time."""
    with Server(tmp_path_factory.mktemp("waiting"), assistant_pace=40) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test."""


@pytest.fixture(params=sorted(PEERS))
def connect(request: pytest.FixtureRequest, me: Client) -> Iterator[Callable[[], Peer]]:
    """Opens peers of one transport."""
    peers: list[Peer] = []

    def open_peer() -> Peer:
        peers.append(PEERS[request.param](me.clone()))
        return peers[-1]

    yield open_peer
    for peer in peers:
        peer.close()


def asked_twice(peer: Peer) -> str:
    """A conversation in which one answer is being written and one waits."""
    conversation = str(uuid.uuid4())
    peer.client.create(QUESTION, conversation)
    peer.subscribe({conversation: 0})
    peer.wait_until(lambda: [m for m in peer.shown(conversation) if m.author == "assistant" and m.text])
    assert not peer.waiting(conversation), "what is written waits no more"
    peer.send(conversation, "And through HAProxy?")
    peer.wait_until(lambda: peer.waiting(conversation), what="what waits is seen")
    return conversation


def is_waiting(article: Element, ahead: int) -> bool:
    """Whether this is the article of an answer that waits."""
    assert article.get("data-author") == "assistant" and article.get("data-state") == "queued"
    assert not article.has("data-position") and "waiting" in article.classes
    assert article.one("button", data_action="stop")
    return article.number("data-ahead") == ahead and f"{ahead} answer" in article.text


def test_a_second_question_is_seen_waiting_by_every_reader_and_then_answered(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation = asked_twice(peer)
    (article,) = peer.waiting(conversation)
    assert is_waiting(article, 1)
    late = connect()
    late.subscribe({conversation: 0})
    late.wait_until(lambda: late.waiting(conversation), what="a late reader")
    assert is_waiting(late.waiting(conversation)[0], 1)
    page = peer.client.open(conversation).one(id="messages").all("article")
    assert is_waiting(page[-1], 1) and all(other.has("data-position") for other in page[:-1])
    peer.client.post(f"/c/{conversation}/stop")
    for each in (peer, late):
        each.wait_until(lambda each=each: not each.waiting(conversation), what="its start takes it away")
        last = each.shown(conversation)[-1]
        assert (last.client_id, last.author) == (article.get("data-client-id"), "assistant")
    peer.client.post(f"/c/{conversation}/stop")


def test_stop_takes_a_waiting_answer_away_for_everybody(connect: Callable[[], Peer]) -> None:
    peer, other = connect(), connect()
    conversation = asked_twice(peer)
    other.subscribe({conversation: 0})
    other.wait_until(lambda: other.waiting(conversation))
    peer.client.post(f"/c/{conversation}/stop", answer=peer.waiting(conversation)[0].get("data-client-id"))
    for each in (peer, other):
        each.wait_until(lambda each=each: not each.waiting(conversation), what="it is taken away")
    assert [m.state for m in peer.shown(conversation) if m.author == "assistant"] == ["running"], "the other goes on"
    late = connect()
    late.subscribe({conversation: 0})
    late.wait_until(lambda: late.shown(conversation))
    assert not late.waiting(conversation)
    peer.client.post(f"/c/{conversation}/stop")
    peer.wait_until(lambda: [m.state for m in peer.shown(conversation) if m.author == "assistant"] == ["stopped"])


def test_the_seventeenth_answer_at_once_says_how_many_are_before_it(me: Client) -> None:
    conversations = [str(uuid.uuid4()) for _ in range(AT_ONCE + 3)]
    with PEERS["websocket"](me.clone()) as peer:
        for conversation in conversations:
            peer.client.create(QUESTION, conversation)
            peer.subscribe({conversation: 0})
        last = conversations[-3:]
        peer.wait_until(lambda: all(peer.waiting(one) for one in last), what="three wait")
        peer.wait_until(lambda: [peer.waiting(one)[0].number("data-ahead") for one in last] == [16, 17, 18])
        me.post(f"/c/{conversations[0]}/stop")
        peer.wait_until(lambda: not peer.waiting(last[0]), what="the first of them starts")
        peer.wait_until(lambda: [peer.waiting(one)[0].number("data-ahead") for one in last[1:]] == [16, 17])
        for conversation in conversations:
            me.post(f"/c/{conversation}/delete")
