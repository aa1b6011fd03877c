"""Several people in a conversation: who reads and writes there, who answers for what, and what others learn of it."""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from lab.http import JSON, Answer, Client
from lab.peer import WebSocketPeer
from lab.people import add_people, signed_in, value
from lab.processes import wait_for
from lab.server import EMAIL, Server

from chatapp.assistant.questions import questions
from chatapp.assistant.window import Window
from chatapp.chat import Forbidden, Gone
from chatapp.parts import Parts
from chatapp.store import Actor, ConversationRef, Store, Turn
from chatapp.transports import protocol

WITHIN_S = 2.0  # a second, and what a busy machine adds
SOCKETS = 4  # so that both workers have some
SETTINGS = {"assistant": "builtin"}


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("members"), workers=2, assistant_pace=4000) as server:
        add_people(server, "grace@example.org", "linus@example.org")
        yield server


@pytest.fixture(scope="module")
def grace(shared: Server) -> Client:
    return signed_in(shared, "grace@example.org")


@pytest.fixture(scope="module")
def linus(shared: Server) -> Client:
    return signed_in(shared, "linus@example.org")


def uuid_of(server: Server, email: str) -> str:
    return str(value(server, "SELECT uuid FROM people WHERE email = ?", email))


def share(owner: Client, conversation: str, *emails: str) -> None:
    for email in emails:
        assert owner.post(f"/c/{conversation}/people", JSON, email=email).status == 204


def articles(client: Client, conversation: str) -> list[tuple[str, str, str]]:
    """Each message of a person's: its author's UUID, the name, the text."""
    found = client.poll({conversation: 0}).page.all("article", data_author="user")
    return [(one.get("data-author-id"), one.one("header").text, one.one("div").text.strip()) for one in found]


def test_who_is_added_reads_and_writes_and_everybody_sees_who_wrote_what(
    shared: Server, me: Client, grace: Client
) -> None:
    conversation = me.create("Is polling worse?").json["conversation"]
    assert grace.get(f"/c/{conversation}").status == 404
    cursor = grace.poll({"list": 0}).page.one("chat-feed").number("to")
    share(me, conversation, "Grace@example.org", "grace@example.org")
    # By another worker, which learns of it within some 20 ms.
    [entry] = wait_for(lambda: grace.poll({"list": cursor}).page.all("li"), 5, "it is in the list")  # type: ignore[misc]
    assert (entry.get("data-id"), entry.get("data-people")) == (conversation, "2")
    assert grace.post_message(conversation, "Hardly.").status == 201
    for reader in (me, grace):
        found = articles(reader, conversation)
        assert [text for _, _, text in found] == ["Is polling worse?", "Hardly."]
        assert [author for author, _, _ in found] == [uuid_of(shared, EMAIL), uuid_of(shared, "grace@example.org")]
        assert found[1][1] == "Grace" and found[0][1] not in ("", "Grace", "You")
    page = grace.open(conversation)
    mine = [one.get("data-author-id") for one in page.all("article") if one.has("data-mine")]
    assert mine == [uuid_of(shared, "grace@example.org")]


def test_a_message_with_anothers_client_id_is_a_message_of_its_own(me: Client, grace: Client) -> None:
    chosen = str(uuid.uuid4())
    conversation = me.create("mine", client_id=chosen).json["conversation"]
    share(me, conversation, "grace@example.org")
    assert grace.post_message(conversation, "theirs", client_id=chosen).status == 201
    assert [text for _, _, text in articles(me, conversation)] == ["mine", "theirs"]


def left(owner: Client, member: Client, conversation: str, number: str) -> Answer:
    return member.post(f"/c/{conversation}/leave", JSON)


def removed(owner: Client, member: Client, conversation: str, number: str) -> Answer:
    return owner.post(f"/c/{conversation}/people/{number}/remove", JSON)


def deleted(owner: Client, member: Client, conversation: str, number: str) -> Answer:
    return owner.post(f"/c/{conversation}/delete", JSON)


@pytest.mark.parametrize("act", [left, removed, deleted], ids=lambda act: act.__name__)
def test_an_end_of_membership_reaches_every_way_on_every_worker(
    shared: Server, me: Client, linus: Client, act: Callable[[Client, Client, str, str], Answer]
) -> None:
    conversation = me.create("a secret").json["conversation"]
    share(me, conversation, "linus@example.org")
    peers = [WebSocketPeer(linus) for _ in range(SOCKETS)]
    for peer in peers:
        peer.subscribe({conversation: 0, "list": 0})
        peer.echo()
    cursor = linus.poll({conversation: 0}).page.one("chat-feed").number("to")
    assert act(me, linus, conversation, uuid_of(shared, "linus@example.org")).status == 204
    done = time.monotonic()
    for peer in peers:
        peer.wait_until(lambda p=peer: conversation in p.applied.gone, WITHIN_S, "the socket says so")  # type: ignore[misc]
    assert time.monotonic() - done < WITHIN_S
    me.post_message(conversation, "after that")
    for _ in range(6):  # at either worker
        again = linus.clone()
        polled = again.poll({conversation: cursor}, wait=1).page
        assert polled.all("chat-gone") and not polled.all("article")
        assert again.post_message(conversation, "too late").status == 404
        assert again.get(f"/c/{conversation}").status == 404
        assert again.get(f"/c/{conversation}/messages?before=99").status == 404
        assert conversation not in again.poll({"list": 0}).text
    for peer in peers:
        peer.echo()
        assert "after that" not in [one.text for one in peer.shown(conversation)]
        assert peer.send(conversation, "too late").refused == "gone"
        peer.close()
    assert value(shared, "SELECT count(*) FROM messages WHERE body = 'too late'") == 0


@pytest.mark.parametrize("act", [left, removed], ids=lambda act: act.__name__)
def test_a_held_poll_is_answered_when_its_person_is_in_it_no_longer(
    shared: Server, me: Client, linus: Client, act: Callable[[Client, Client, str, str], Answer]
) -> None:
    conversation = me.create("a secret").json["conversation"]
    share(me, conversation, "linus@example.org")
    cursors = {"list": 0, conversation: 0}
    wait_for(
        lambda: value(shared, "SELECT count(*) FROM runs WHERE state IN ('queued', 'running')") == 0, 10, "answers"
    )
    cursors = {one.get("feed"): one.number("to") for one in linus.poll(cursors).page.all("chat-feed")}
    found: list[tuple[float, str]] = []

    def hold(client: Client) -> None:
        answer = client.poll({conversation: cursors[conversation]}, wait=20)
        found.append((time.monotonic(), answer.text))

    threads = [threading.Thread(target=hold, args=(linus.clone(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    act(me, linus, conversation, uuid_of(shared, "linus@example.org"))
    for thread in threads:
        thread.join(20)
    assert all(at - began < WITHIN_S and "chat-gone" in text and "<article" not in text for at, text in found)
    assert len(found) == 4


def test_who_left_may_come_back_and_reads_it_all(shared: Server, me: Client, grace: Client) -> None:
    conversation = me.create("before").json["conversation"]
    share(me, conversation, "grace@example.org")
    assert left(me, grace, conversation, "").status == 204
    me.post_message(conversation, "meanwhile")
    share(me, conversation, "grace@example.org")
    assert [text for _, _, text in articles(grace, conversation)] == ["before", "meanwhile"]


def test_only_the_owner_manages_and_an_owner_who_leaves_hands_over(shared: Server, me: Client, grace: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    share(me, conversation, "grace@example.org", "linus@example.org")
    theirs = uuid_of(shared, "linus@example.org")
    refused = [
        grace.post(f"/c/{conversation}/people", JSON, email="linus@example.org"),
        grace.post(f"/c/{conversation}/people/{theirs}/remove", JSON),
        grace.post(f"/c/{conversation}/answers", JSON, answers="addressed"),
        grace.post(f"/c/{conversation}/delete", JSON),
    ]
    assert [(one.status, one.json["error"]["code"]) for one in refused] == [(403, "not-owner")] * 4
    assert left(me, me, conversation, "").status == 204
    people = grace.get(f"/c/{conversation}/people", JSON).json["people"]
    assert [(one["name"], one["role"]) for one in people] == [("Grace", "owner"), ("Linus", "member")]
    assert removed(grace, grace, conversation, theirs).status == 204
    alone = left(grace, grace, conversation, "")
    assert (alone.status, alone.json["error"]["code"]) == (403, "alone")
    assert grace.post(f"/c/{conversation}/delete", JSON).status == 204


@pytest.mark.parametrize("email", ["nobody@example.org", "", "no address", "off@example.org", "a" * 5000])
def test_nobody_is_added_who_cannot_sign_in(shared: Server, me: Client, email: str) -> None:
    if email == "off@example.org":
        (number,) = add_people(shared, email)
        assert me.post(f"/people/{number}/disable").status == 303
    conversation = me.create("hello").json["conversation"]
    answer = me.post(f"/c/{conversation}/people", JSON, email=email)
    assert (answer.status, answer.json["error"]["code"]) == (403, "nobody")
    page = me.post(f"/c/{conversation}/people", email=email)
    assert page.status == 422 and "Nobody here has this address" in page.text


ROUTES = [
    ("GET", "", {}),
    ("GET", "/messages?before=9", {}),
    ("GET", "/people", {}),
    ("POST", "/messages", {"body": "x", "client_id": str(uuid.uuid4())}),
    ("POST", "/people", {"email": "linus@example.org"}),
    ("POST", f"/people/{uuid.uuid4()}/remove", {}),
    ("POST", "/leave", {}),
    ("POST", "/answers", {"answers": "always"}),
    ("POST", "/title", {"title": "x"}),
    ("POST", "/delete", {}),
    ("POST", f"/messages/{uuid.uuid4()}/delete", {}),
    ("POST", "/stop", {}),
    ("POST", "/again", {}),
]


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_a_foreign_conversation_answers_like_none_on_every_route(me: Client, linus: Client, accept: str) -> None:
    """Status and body; what of it names the conversation, or is new in each answer, apart."""
    theirs = me.create("a secret").json["conversation"]
    for method, path, fields in ROUTES:
        answers = []
        for conversation in (theirs, str(uuid.uuid4())):
            url = f"/c/{conversation}{path}"
            headers = {"Accept": accept}
            asked = linus.get(url, headers) if method == "GET" else linus.post(url, headers, **fields)
            headers_seen = sorted(name for name in asked.headers if name != "Date")
            text = re.sub(r'[\w.-]{60,}|value="[^"]*"', "", asked.text.replace(conversation, "ID"))
            answers.append((asked.status, headers_seen, text))
        assert answers[0] == answers[1] and answers[0][0] == 404, (path, answers)
    for feed in (theirs, str(uuid.uuid4())):
        assert (
            linus.poll({feed: 0}).text.replace(feed, "ID")
            == '<chat-answer><chat-gone feed="ID"></chat-gone></chat-answer>'
        )
    frames = []
    for feed in (theirs, str(uuid.uuid4())):
        with WebSocketPeer(linus) as peer:
            peer.subscribe({feed: 0})
            refused = peer.send(feed, "hello?").refused
            peer.wait_until(lambda p=peer, f=feed: f in p.applied.gone, WITHIN_S, "it says so")  # type: ignore[misc]
            tags = sorted(element.tag for _, element in peer.arrived)
            frames.append((refused, tags))
    assert frames[0] == frames[1] and frames[0][0] == "gone"


def test_a_foreign_conversation_costs_the_same_statements_as_none(parts: Parts) -> None:
    store, chat = parts.store, parts.chat
    ada, bob = (store.people.add_admin(name, f"{name}@example.org", "x").id for name in ("ada", "bob"))
    theirs = chat.create(ada, str(uuid.uuid4())).uuid
    by = Actor(bob, "")
    acts: list[Callable[[str], object]] = [
        lambda c: chat.place(bob, c),
        lambda c: chat.post(bob, c, str(uuid.uuid4()), "hello"),
        lambda c: chat.rename(bob, c, "x"),
        lambda c: chat.delete(by, c),
        lambda c: chat.delete_message(bob, c, str(uuid.uuid4())),
        lambda c: chat.stop(bob, c),
        lambda c: chat.again(bob, c),
        lambda c: chat.share(by, c, "ada@example.org"),
        lambda c: chat.remove(by, c, str(uuid.uuid4())),
        lambda c: chat.leave(by, c),
        lambda c: chat.set_answers(by, c, "always"),
    ]
    for number, act in enumerate(acts):
        run = [statements(store, act, conversation) for conversation in (theirs, str(uuid.uuid4()))]
        assert run[0] == run[1] and run[0], number


def statements(store: Store, act: Callable[[str], object], conversation: str) -> list[str]:
    """What SQLite runs, without the values."""
    seen: list[str] = []
    with store.database.write() as tx, store.database.engine.connect() as connection:
        for one in (tx.connection, connection):
            one.connection.driver_connection.set_trace_callback(seen.append)  # type: ignore[union-attr]
    seen.clear()
    with pytest.raises(Gone):
        act(conversation)
    return [re.sub(r"'[^']*'", "?", statement) for statement in seen]


def test_an_empty_conversation_that_is_shared_is_not_the_next_new_one(parts: Parts) -> None:
    ada, _ = (parts.store.people.add_admin(name, f"{name}@example.org", "x").id for name in ("ada", "bob"))
    place = parts.chat.create(ada, str(uuid.uuid4()))
    assert parts.chat.get_or_create_empty(ada).uuid == place.uuid
    parts.chat.share(Actor(ada, ""), place.uuid, "bob@example.org")
    assert parts.chat.get_or_create_empty(ada).uuid != place.uuid


def test_an_entry_that_left_the_list_says_nothing_of_what_goes_on(shared: Server, me: Client, grace: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    share(me, conversation, "grace@example.org", "linus@example.org")
    removed(me, grace, conversation, uuid_of(shared, "grace@example.org"))
    me.post(f"/c/{conversation}/answers", JSON, answers="addressed")
    me.post_message(conversation, "later")
    [entry] = [one for one in grace.poll({"list": 1}).page.all("li") if one.get("data-id") == conversation]
    assert set(entry.attributes) == {"class", "data-id", "data-revision", "data-deleted"} and not entry.text


def test_an_owner_who_leaves_is_followed_by_somebody_who_can_sign_in(parts: Parts) -> None:
    store, chat = parts.store, parts.chat
    ada, bob, cat = (store.people.add_admin(name, f"{name}@example.org", "x").id for name in ("ada", "bob", "cat"))
    place = chat.create(ada, str(uuid.uuid4()))
    for name in ("bob", "cat"):
        chat.share(Actor(ada, ""), place.uuid, f"{name}@example.org")
    with store.database.write() as tx:
        store.directory.disable(tx, bob)
    chat.leave(Actor(ada, ""), place.uuid)
    assert chat.place(cat, place.uuid).role == "owner"
    chat.leave(Actor(cat, ""), place.uuid)
    assert chat.place(bob, place.uuid).role == "owner", "an operator can enable them"


def test_changes_of_members_have_a_bound(start_server: Callable[..., Server]) -> None:
    """Each is a row of the audit for ever."""
    client = Client(start_server(assistant="off").url).sign_in()
    conversation = client.create("hello").json["conversation"]
    found = [client.post(f"/c/{conversation}/answers", JSON, answers="always") for _ in range(101)]
    assert [one.status for one in found] == [204] * 100 + [429]
    assert int(found[-1].headers["Retry-After"]) > 0


# The assistant


def test_the_assistant_answers_always_or_only_where_it_is_addressed(shared: Server, me: Client, grace: Client) -> None:
    conversation = me.create("").json["conversation"]
    share(me, conversation, "grace@example.org")
    assert me.post(f"/c/{conversation}/answers", JSON, answers="addressed").status == 204
    assert me.post(f"/c/{conversation}/answers", JSON, answers="sometimes").status == 422
    quiet = ["Lunch?", "mail me: linus@assistant.example.org", "the assistant is slow", "@assistants", "@assistant-2"]
    for text in [*quiet, "@assistant.example.org is down"]:
        assert me.post_message(conversation, text).status == 201
    assert runs(shared, conversation) == 0
    assert 'data-answers="addressed"' in grace.poll({"list": 0}).text
    assert 'data-answers="addressed"' in grace.get(f"/c/{conversation}").text
    assert grace.post_message(conversation, "@Assistant, how is a backup made?").status == 201
    assert runs(shared, conversation) == 1
    wait_for(lambda: 'data-state="completed"' in me.poll({conversation: 0}).text, 10, "the answer")
    assert "ackup" in me.poll({conversation: 0}).page.all("article", data_author="assistant")[0].text
    assert me.post(f"/c/{conversation}/answers", JSON, answers="always").status == 204
    assert me.post_message(conversation, "Thanks").status == 201
    assert runs(shared, conversation) == 2


def test_the_built_in_assistant_finds_the_question_beside_its_name() -> None:
    def asked(*turns: Turn) -> str:
        return questions(turns)[0]

    backup, call = "How is a backup made?", "@assistant"
    assert asked(Turn("user", backup, "Bob", False), Turn("user", call, "Ada")) == backup
    assert asked(Turn("user", "Lunch?", "Bob", False), Turn("user", f"@Assistant: {backup}", "Ada")) == backup
    assert asked(Turn("user", backup, "Bob"), Turn("user", f"{call} please", "Ada")) == f"{backup}\nplease"
    assert asked(Turn("user", "Lunch?", "", False)) == "Lunch?", "answer again"


def test_nobody_speaks_in_anothers_name_to_a_model() -> None:
    turns = [Turn("user", "hi\n\nBob writes:\n> I agree", "Ada"), Turn("user", "no", "Bob")]
    [said] = Window().fit("", turns).messages
    assert said["content"] == "Ada writes:\n> hi\n> \n> Bob writes:\n> > I agree\n\nBob writes:\n> no"
    assert Window().fit("", [Turn("user", "hi")]).messages == [{"role": "user", "content": "hi"}]


def runs(server: Server, conversation: str) -> object:
    query = "SELECT count(*) FROM runs WHERE conversation_id = (SELECT id FROM conversations WHERE uuid = ?)"
    return value(server, query, conversation)


def test_a_model_is_told_who_wrote_what_where_several_write(parts: Parts) -> None:
    store, chat = parts.store, parts.chat
    ada, bob = (store.people.add_admin(name, f"{name}@example.org", "x").id for name in ("Ada", "Bob"))
    place = chat.create(ada, str(uuid.uuid4()))
    chat.post(ada, place.uuid, str(uuid.uuid4()), "first")
    assert [turn.name for turn in history(store)] == [""]
    chat.share(Actor(ada, ""), place.uuid, "bob@example.org")
    chat.post(bob, place.uuid, str(uuid.uuid4()), "second")
    assert [(turn.name, turn.body) for turn in history(store) if turn.body] == [("Ada", "first"), ("Bob", "second")]


def history(store: Store) -> tuple:  # type: ignore[type-arg]
    run = store.runs.claim_run("lease")
    assert run is not None
    store.runs.end_run(run, "completed", "", [], None)
    return run.history


def test_the_revision_of_the_protocol_is_said_everywhere(me: Client) -> None:
    peer = WebSocketPeer(me)
    peer.echo()
    [hello] = [element for _, element in peer.arrived if element.tag == "chat-hello"]
    peer.close()
    [config] = me.get("/").page.all("meta", name="chat-config")
    said = [int(hello.get("protocol")), json.loads(config.get("content"))["protocol"]]
    said.append(me.post("/session/renew", JSON).json["protocol"])
    assert said == [protocol.REVISION] * 3


# Deletion of a person


def test_a_deleted_persons_shared_conversations_go_on_without_their_words(parts: Parts) -> None:
    store, chat = parts.store, parts.chat
    ada, bob = (store.people.add_admin(name, f"{name}@example.org", "x") for name in ("Ada", "Bob"))
    mine, own = (chat.create(ada.id, str(uuid.uuid4())) for _ in range(2))
    chat.share(Actor(ada.id, ""), mine.uuid, "bob@example.org")
    chat.post(ada.id, mine.uuid, str(uuid.uuid4()), "a word of Ada's")
    chat.post(ada.id, own.uuid, str(uuid.uuid4()), "alone")
    chat.post(bob.id, mine.uuid, str(uuid.uuid4()), "a word of Bob's")
    with store.database.write() as tx:
        store.directory.bury(tx, ada.id)
    while (run := store.runs.claim_run("lease")) is not None:
        store.runs.end_run(run, "completed", "", [], None)
    store.erasure.run()
    place = chat.place(bob.id, mine.uuid)
    assert place.role == "owner" and [one.name for one in chat.members(place)] == ["Bob"]
    texts = [(one.author_name, one.body) for one in chat.changes(place, 0).items if one.author == "user"]
    assert texts == [("", ""), ("Bob", "a word of Bob's")]
    assert [entry.title for entry in chat.entries(bob.id, 0).items] == [""], "it was Ada's first message"
    with pytest.raises(Gone):
        chat.place(ada.id, mine.uuid)
    with pytest.raises(Gone):
        chat.place(ada.id, own.uuid)


def test_a_conversation_has_a_bounded_number_of_people(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatapp.chat.MOST_MEMBERS", 2)
    store, chat = parts.store, parts.chat
    ada, *_ = (store.people.add_admin(name, f"{name}@example.org", "x").id for name in ("a", "b", "c"))
    place: ConversationRef = chat.create(ada, str(uuid.uuid4()))
    chat.share(Actor(ada, ""), place.uuid, "b@example.org")
    with pytest.raises(Forbidden, match="at most 2"):
        chat.share(Actor(ada, ""), place.uuid, "c@example.org")


def test_the_audit_says_who_let_whom_in(shared: Server, me: Client, grace: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    share(me, conversation, "grace@example.org")
    left(me, grace, conversation, "")
    query = "SELECT group_concat(action) FROM audit WHERE detail = ?"
    assert value(shared, query, conversation) == "shared,left"
    assert "left a conversation" in me.get("/audit").text
    share(me, conversation, "grace@example.org")
    me.post(f"/c/{conversation}/answers", JSON, answers="addressed")
    left(me, me, conversation, "")
    grace.post(f"/c/{conversation}/people", JSON, email="linus@example.org")
    grace.post(f"/c/{conversation}/delete", JSON)
    query = "SELECT group_concat(action, ' ') FROM audit WHERE detail LIKE '%' || ?"
    wanted = "shared left shared answers owner left shared conversation-deleted"
    assert value(shared, query, conversation) == wanted
    assert {action for action in wanted.split()} <= set(action_words_of(me))


def action_words_of(client: Client) -> list[str]:
    """The actions that the audit can be filtered by."""
    return [one.get("value") for one in client.get("/audit").page.all("option")]
