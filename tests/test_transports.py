"""Every delivery promise, over WebSocket and over polling: the same tests, the same results."""

import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
from lab.http import Client
from lab.peer import PEERS, Peer
from lab.server import Server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this file: each uses conversations of its own."""
    with Server(tmp_path_factory.mktemp("transports"), assistant_pace=100_000) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(params=sorted(PEERS))
def connect(request: pytest.FixtureRequest, shared: Server) -> Iterator[Callable[[], Peer]]:
    """Opens peers of one transport, each a signed-in client of its own."""
    peers: list[Peer] = []

    def open_peer() -> Peer:
        peer = PEERS[request.param](Client(shared.url).sign_in())
        peers.append(peer)
        return peer

    yield open_peer
    for peer in peers:
        peer.close()


def new_conversation(peer: Peer, body: str = "") -> str:
    conversation = str(uuid.uuid4())
    peer.client.create(body, conversation)
    return conversation


def texts(peer: Peer, conversation: str, author: str = "user") -> list[str]:
    return [message.text for message in peer.shown(conversation) if message.author == author]


def test_a_message_is_acknowledged_and_shown(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation = new_conversation(peer)
    peer.subscribe({conversation: 0})
    sent = peer.send(conversation, "good morning")
    peer.wait_until(lambda: texts(peer, conversation) == ["good morning"])
    shown = peer.shown(conversation)[0]
    assert (shown.id, shown.position, shown.client_id) == (sent.id, sent.position, sent.client_id)


def test_the_same_send_again_is_the_same_message(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation, client_id = new_conversation(peer), str(uuid.uuid4())
    first = peer.send(conversation, "once", client_id)
    again = peer.send(conversation, "once", client_id)
    assert (again.id, again.position) == (first.id, first.position)
    peer.subscribe({conversation: 0})
    peer.wait_for_answer(conversation)
    assert texts(peer, conversation) == ["once"]


def test_a_known_id_with_another_text_is_refused(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation, client_id = new_conversation(peer), str(uuid.uuid4())
    peer.send(conversation, "once", client_id)
    assert peer.send(conversation, "twice", client_id).refused == "conflict"


@pytest.mark.parametrize(("body", "code"), [("", "empty"), (" \n ", "empty")])
def test_a_message_that_cannot_be_accepted_is_named(connect: Callable[[], Peer], body: str, code: str) -> None:
    peer = connect()
    conversation = new_conversation(peer)
    assert peer.send(conversation, body).refused == code


def test_a_foreign_or_unknown_conversation_does_not_exist(connect: Callable[[], Peer]) -> None:
    peer = connect()
    unknown = str(uuid.uuid4())
    assert peer.send(unknown, "hello?").refused == "gone"
    peer.subscribe({unknown: 0})
    peer.wait_until(lambda: unknown in peer.applied.gone)


def test_an_answer_streams_and_ends_complete(connect: Callable[[], Peer], shared: Server) -> None:
    peer = connect()
    conversation = new_conversation(peer)
    peer.subscribe({conversation: 0})
    peer.send(conversation, "How do I let WebSocket through nginx?")
    answer = peer.wait_for_answer(conversation)
    assert answer.state == "completed"
    article = next(a for a in peer.client.history(conversation) if a.get("data-id") == answer.id)
    served = [block.source for block in article.all("div", css_class="block")]
    assert answer.blocks == served, "what arrived in pieces is what the page shows"


def test_every_reader_sees_the_same_in_the_same_order(connect: Callable[[], Peer]) -> None:
    writer, reader = connect(), connect()
    conversation = new_conversation(writer)
    for peer in (writer, reader):
        peer.subscribe({conversation: 0})
    for number in range(10):
        writer.send(conversation, f"message {number}")
    for peer in (writer, reader):
        peer.wait_until(lambda peer=peer: len(texts(peer, conversation)) == 10)
        peer.wait_for_answer(conversation)
    assert [m.id for m in reader.shown(conversation)] == [m.id for m in writer.shown(conversation)]
    assert texts(reader, conversation) == [f"message {number}" for number in range(10)]
    assert [m.revision for m in reader.shown(conversation)] == [m.revision for m in writer.shown(conversation)]


def test_fifty_senders_at_once_leave_no_hole_and_no_twin(connect: Callable[[], Peer]) -> None:
    reader = connect()
    conversation = new_conversation(reader)
    peers = [connect() for _ in range(5)]

    def send_ten(peer: Peer) -> None:
        for number in range(10):
            peer.send(conversation, f"{id(peer)} {number}", timeout=30)

    threads = [threading.Thread(target=send_ten, args=(peer,)) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    cursor_zero = connect()
    cursor_zero.subscribe({conversation: 0})
    cursor_zero.wait_for_answer(conversation)
    shown = {int(a.get("data-position")): a for a in all_articles(reader.client, conversation)}
    mine = [a for a in shown.values() if a.get("data-author") == "user"]
    assert len(mine) == 50
    for peer in peers:
        bodies = [a.one("div", css_class="body").text for _, a in sorted(shown.items())]
        own = [body for body in bodies if body.startswith(f"{id(peer)} ")]
        assert own == [f"{id(peer)} {number}" for number in range(10)]


def all_articles(client: Client, conversation: str) -> list:
    """The whole history, page by page."""
    found = client.history(conversation)
    while True:
        before = min(int(a.get("data-position")) for a in found)
        page = client.get(f"/c/{conversation}/messages?before={before}").page
        older = page.all("article")
        if not older:
            return found
        found = older + found


def test_a_reader_resumes_from_its_cursor_with_what_it_lacks(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation = new_conversation(peer)
    peer.subscribe({conversation: 0})
    peer.send(conversation, "first")
    peer.wait_for_answer(conversation)
    cursor = peer.cursor(conversation)
    late = connect()
    late.applied.feeds[conversation] = peer.applied.feeds[conversation]
    peer.send(conversation, "second")
    late.subscribe({conversation: cursor})
    late.wait_until(lambda: texts(late, conversation) == ["first", "second"])
    assert late.applied.gaps == 0


def test_a_cursor_of_another_database_or_beyond_the_end_means_reload(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation = new_conversation(peer, "hello")
    peer.subscribe({conversation: 99_999})
    peer.wait_until(lambda: texts(peer, conversation) == ["hello"], what="it begins again from 0")
    peer.client.epoch = str(uuid.uuid4())
    peer.subscribe({conversation: 1})
    # The answer to "hello" may still come in between.
    peer.wait_until(lambda: any(e.tag == "chat-reload" and e.get("reason") == "epoch" for _, e in peer.arrived))


def test_the_list_of_conversations_updates_itself(connect: Callable[[], Peer]) -> None:
    peer = connect()
    peer.subscribe({"list": 0})
    conversation = new_conversation(peer, "Where are the backups?")

    def title() -> str:
        row = peer.applied.feeds["list"].conversations.get(conversation)
        return row.text if row else ""

    peer.wait_until(lambda: title() == "Where are the backups?")
    peer.client.post(f"/c/{conversation}/title", title="Backups")
    peer.wait_until(lambda: title() == "Backups")
    peer.client.post(f"/c/{conversation}/delete")
    peer.wait_until(lambda: title() == "")


def test_a_deleted_conversation_goes_from_its_readers(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation = new_conversation(peer, "soon gone")
    peer.subscribe({conversation: 0})
    peer.wait_until(lambda: texts(peer, conversation) == ["soon gone"])
    peer.client.post(f"/c/{conversation}/delete")
    peer.wait_until(lambda: conversation in peer.applied.gone)
    assert peer.send(conversation, "anybody?").refused == "gone"


def test_a_deleted_message_leaves_a_tombstone(connect: Callable[[], Peer]) -> None:
    peer = connect()
    conversation = new_conversation(peer, "a secret")
    peer.subscribe({conversation: 0})
    peer.wait_for_answer(conversation)
    message = peer.shown(conversation)[0]
    peer.client.post(f"/c/{conversation}/messages/{message.id}/delete")
    peer.wait_until(lambda: peer.shown(conversation)[0].deleted)
    assert "a secret" not in peer.shown(conversation)[0].text
    assert peer.shown(conversation)[0].position == message.position


def test_an_answer_that_is_stopped_keeps_what_was_written(tmp_path, connect: Callable[[], Peer]) -> None:
    with Server(tmp_path / "slow", assistant_pace=60) as server:
        peer = PEERS[connect().transport](Client(server.url).sign_in())
        conversation = new_conversation(peer)
        peer.subscribe({conversation: 0})
        peer.send(conversation, "How do I let WebSocket through nginx?")
        peer.wait_until(lambda: any(m.text for m in peer.shown(conversation) if m.author == "assistant"))
        peer.client.post(f"/c/{conversation}/stop")
        answer = peer.wait_for_answer(conversation)
        peer.close()
    assert answer.state == "stopped"
    assert answer.text


def test_stop_ends_the_running_answer_and_the_next_one_starts(tmp_path, connect: Callable[[], Peer]) -> None:
    """What was said to be sent is answered, also where it waited behind the answer that somebody stopped."""
    with Server(tmp_path / "slow", assistant_pace=60) as server:
        peer = PEERS[connect().transport](Client(server.url).sign_in())
        conversation = new_conversation(peer)
        peer.subscribe({conversation: 0})
        peer.send(conversation, "How do I let WebSocket through nginx?")
        peer.wait_until(lambda: any(m.text for m in peer.shown(conversation) if m.author == "assistant"))
        asked = peer.send(conversation, "And through HAProxy?")
        peer.client.post(f"/c/{conversation}/stop")
        peer.wait_until(lambda: [m for m in peer.shown(conversation) if m.position > asked.position and m.text])
        peer.close()
        states = [message.state for message in peer.shown(conversation) if message.author == "assistant"]
    assert states == ["stopped", "running"]


@pytest.mark.parametrize("text", ["Grüße, 日本語, 👩‍👩‍👧 and 👍", "<b>&amp; \"quotes\" 'n' </article>", "a\r\nb\nc"])
def test_text_arrives_as_it_was_written(connect: Callable[[], Peer], text: str) -> None:
    peer = connect()
    conversation = new_conversation(peer)
    peer.subscribe({conversation: 0})
    peer.send(conversation, text)
    peer.wait_until(lambda: texts(peer, conversation) == [text.replace("\r\n", "\n")])


def test_payload_of_a_streamed_answer_is_proportional_to_it(tmp_path, connect: Callable[[], Peer]) -> None:
    transport = connect().transport
    knowledge = tmp_path / "long" / "data" / "knowledge"
    knowledge.mkdir(parents=True)
    paragraph = "The zeppelin hangar is heated **carefully** with `steam` before each start, twice in winter. "
    (knowledge / "zeppelin.md").write_text(
        f"# Zeppelin\n\n## Hangar of the zeppelin\n\n{(paragraph * 5 + chr(10) * 2) * 8}"
    )
    with Server(tmp_path / "long") as server:
        peer = PEERS[transport](Client(server.url).sign_in())
        peer.is_short = True
        conversation = new_conversation(peer)
        peer.subscribe({conversation: 0})
        peer.send(conversation, "How is the zeppelin hangar heated?")
        before, frames_before = peer.bytes_in, len(peer.arrived)
        answer = peer.wait_for_answer(conversation, timeout=60)
        spent, updates = peer.bytes_in - before, len(peer.arrived) - frames_before
        peer.close()
    html = sum(len(block.encode()) for block in answer.blocks)
    assert html > 3500, "the answer is about 4 kB"
    assert updates > 10, "it was streamed"
    articles = 2500  # the question, its acknowledgement, and the answer before its first word
    assert spent <= 1.3 * html + 120 * updates + articles, (spent, html, updates)
