"""The rules of the chat on a real store, without a server: posting, order, permissions, changes, blocks."""

import uuid
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text

from chatapp import create_app
from chatapp.chat import LONGEST_MESSAGE, LONGEST_TITLE, BadMessage, Chat, Conflict, Gone, title_of
from chatapp.config import Settings
from chatapp.parts import Parts
from chatapp.store import Actor, Block, ChangedMessage, Changes, ClaimedRun, ConversationRef, Store


def house_of(app: Flask) -> Parts:
    """The parts of an app."""
    found: Parts = app.extensions["chatapp"]
    return found


@pytest.fixture
def chat(parts: Parts) -> Chat:
    """The verbs."""
    return parts.chat


@pytest.fixture
def store(parts: Parts) -> Store:
    """The queries."""
    return parts.store


@pytest.fixture
def ada(store: Store) -> int:
    """A person."""
    return store.people.add_admin("Ada", "ada@example.org", "x").id


@pytest.fixture
def bob(store: Store, ada: int) -> int:
    """Another person."""
    return store.people.add_admin("Bob", "bob@example.org", "x").id


def new_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def place(chat: Chat, ada: int) -> ConversationRef:
    """A conversation of Ada's."""
    return chat.create(ada, new_id())


def post(chat: Chat, place: ConversationRef, body: str) -> int:
    """The position of a new message."""
    return chat.post(place.person, place.uuid, new_id(), body).position


def bodies(changes: Changes[ChangedMessage]) -> list[str]:
    return [message.body for message in changes.items]


def end_of(chat: Chat, place: ConversationRef) -> int:
    """The feed's newest revision."""
    return chat.changes(place, 0).end


# Posting


def test_a_message_is_posted_once_however_often_it_is_sent(chat: Chat, place: ConversationRef, ada: int) -> None:
    client_id = new_id()
    first = chat.post(ada, place.uuid, client_id, "hello")
    again = chat.post(ada, place.uuid, client_id, "hello")
    assert first.created and not again.created
    assert (again.id, again.position, again.client_id) == (first.id, first.position, client_id)
    assert bodies(chat.changes(place, 0)) == ["hello"]


def test_the_same_id_is_known_in_whatever_form_it_is_written(chat: Chat, place: ConversationRef, ada: int) -> None:
    client_id = new_id()
    chat.post(ada, place.uuid, client_id, "hello")
    assert not chat.post(ada, place.uuid.upper(), client_id.upper(), "hello").created
    assert not chat.post(ada, place.uuid, client_id.replace("-", ""), "hello\r\n").created


def test_a_known_id_with_another_text_is_a_conflict_and_changes_nothing(
    chat: Chat, place: ConversationRef, ada: int
) -> None:
    client_id = new_id()
    chat.post(ada, place.uuid, client_id, "hello")
    before = end_of(chat, place)
    with pytest.raises(Conflict) as caught:
        chat.post(ada, place.uuid, client_id, "goodbye")
    assert caught.value.code == "conflict"
    assert end_of(chat, place) == before


def test_a_repeated_send_of_a_message_that_was_deleted_does_not_bring_it_back(
    chat: Chat, place: ConversationRef, ada: int
) -> None:
    client_id = new_id()
    posted = chat.post(ada, place.uuid, client_id, "hello")
    chat.delete_message(ada, place.uuid, posted.id)
    assert chat.post(ada, place.uuid, client_id, "hello").id == posted.id
    assert chat.changes(place, 0).items[0].deleted


def test_messages_keep_the_order_of_posting(chat: Chat, place: ConversationRef) -> None:
    positions = [post(chat, place, f"message {number}") for number in range(30)]
    assert positions == sorted(set(positions))
    assert bodies(chat.changes(place, 0)) == [f"message {number}" for number in range(30)]


def test_posting_may_create_the_conversation_under_the_clients_own_id(chat: Chat, ada: int) -> None:
    conversation, client_id = new_id(), new_id()
    first = chat.post(ada, conversation, client_id, "hello", create=True)
    again = chat.post(ada, conversation, client_id, "hello", create=True)
    assert (first.id, first.conversation) == (again.id, conversation)
    assert len(chat.entries(ada, 0).items) == 1
    assert chat.create(ada, conversation).uuid == conversation


@pytest.mark.parametrize("body", ["", " ", "\n\t \r\n", "\x00", "\x00 \x00"])
def test_a_message_without_content_is_refused(chat: Chat, place: ConversationRef, ada: int, body: str) -> None:
    with pytest.raises(BadMessage) as caught:
        chat.post(ada, place.uuid, new_id(), body)
    assert caught.value.code == "empty"


@pytest.mark.parametrize("unit", ["x", "ä", "👍"])
def test_a_message_may_have_just_so_many_characters(chat: Chat, place: ConversationRef, ada: int, unit: str) -> None:
    assert post(chat, place, unit * LONGEST_MESSAGE)
    with pytest.raises(BadMessage) as caught:
        chat.post(ada, place.uuid, new_id(), unit * (LONGEST_MESSAGE + 1))
    assert caught.value.code == "too-long"


@pytest.mark.parametrize("bad", ["", "x", "1", "\ud800", "0" * 31])
def test_an_id_must_be_a_uuid(chat: Chat, place: ConversationRef, ada: int, bad: str) -> None:
    for arguments in ((place.uuid, bad), (bad, new_id())):
        with pytest.raises(BadMessage) as caught:
            chat.post(ada, *arguments, "hello")
        assert caught.value.code == "bad-id"


def test_half_a_character_is_refused(chat: Chat, place: ConversationRef, ada: int) -> None:
    with pytest.raises(BadMessage):
        chat.post(ada, place.uuid, new_id(), "x\ud800")


def test_line_ends_are_made_equal_and_the_rest_is_kept(chat: Chat, place: ConversationRef) -> None:
    post(chat, place, "  a\r\nb\rc\n\n d  e \n")
    assert bodies(chat.changes(place, 0)) == ["a\nb\nc\n\n d  e"]


# Permissions


def test_a_foreign_conversation_is_as_gone_as_one_that_never_was(
    chat: Chat, store: Store, place: ConversationRef, bob: int
) -> None:
    mine = post(chat, place, "a secret")
    message = chat.changes(place, 0).items[0].uuid
    for conversation in (place.uuid, new_id()):
        for act in (
            lambda c: chat.place(bob, c),
            lambda c: chat.post(bob, c, new_id(), "hello"),
            lambda c: chat.rename(bob, c, "mine now"),
            lambda c: chat.delete(Actor(bob, ""), c),
            lambda c: chat.delete_message(bob, c, message),
            lambda c: chat.stop(bob, c),
            lambda c: chat.again(bob, c),
        ):
            with pytest.raises(Gone) as caught:
                act(conversation)
            assert caught.value.message == Gone().message
    with pytest.raises(Gone):
        chat.create(bob, place.uuid)
    with pytest.raises(Gone):
        chat.post(bob, place.uuid, new_id(), "hello", create=True)
    assert chat.changes(place, 0).items[0].position == mine
    assert chat.entries(bob, 0).items == ()
    assert store.conversations.newest(bob) is None


def test_nobody_deletes_what_another_wrote(chat: Chat, store: Store, place: ConversationRef, ada: int) -> None:
    post(chat, place, "a question")
    run = store.runs.claim_run("lease")
    assert run is not None
    answer = chat.changes(place, 0).items[-1]
    assert answer.author == "assistant"
    with pytest.raises(Gone):
        chat.delete_message(ada, place.uuid, answer.uuid)


def test_a_deleted_conversation_is_gone_also_for_who_had_it_in_a_cache(
    chat: Chat, place: ConversationRef, ada: int
) -> None:
    post(chat, place, "hello")
    assert chat.place(ada, place.uuid) is chat.place(ada, place.uuid), "it is cached"
    chat.delete(Actor(ada, ""), place.uuid)
    for act in (lambda: chat.place(ada, place.uuid), lambda: chat.post(ada, place.uuid, new_id(), "x")):
        with pytest.raises(Gone):
            act()
    with pytest.raises(Gone):
        chat.delete(Actor(ada, ""), place.uuid)
    with pytest.raises(Gone):
        chat.create(ada, place.uuid)


def test_a_renamed_conversation_is_not_read_from_the_cache(chat: Chat, place: ConversationRef, ada: int) -> None:
    chat.place(ada, place.uuid)
    chat.rename(ada, place.uuid, "Backups")
    assert chat.place(ada, place.uuid).title == "Backups"


# Titles, deletion, the list


@pytest.mark.parametrize(
    ("body", "title"),
    [
        ("Where are the backups?", "Where are the backups?"),
        ("  first line \n second", "first line"),
        ("a\tb   c", "a b c"),
        ("x" * LONGEST_TITLE, "x" * LONGEST_TITLE),
        ("word " * 40, "word " * 14 + "word…"),
    ],
)
def test_a_title_is_the_first_line_cut_at_a_word(body: str, title: str) -> None:
    assert title_of(body) == title
    assert len(title_of(body)) <= LONGEST_TITLE


def test_only_the_first_message_names_the_conversation(chat: Chat, place: ConversationRef, ada: int) -> None:
    post(chat, place, "first words")
    post(chat, place, "other words")
    assert chat.place(ada, place.uuid).title == "first words"
    chat.rename(ada, place.uuid, "  my \n title  ")
    post(chat, place, "third words")
    assert chat.place(ada, place.uuid).title == "my title"
    with pytest.raises(BadMessage):
        chat.rename(ada, place.uuid, " \n")
    chat.rename(ada, place.uuid, "y" * 500)
    assert chat.place(ada, place.uuid).title == "y" * LONGEST_TITLE


def test_a_deleted_message_is_a_tombstone_in_its_place(chat: Chat, place: ConversationRef, ada: int) -> None:
    positions = [post(chat, place, word) for word in ("one", "two", "three")]
    cursor = end_of(chat, place)
    message = chat.changes(place, 0).items[1]
    chat.delete_message(ada, place.uuid, message.uuid)
    changes = chat.changes(place, cursor)
    (stone,) = changes.items
    assert (stone.uuid, stone.position, stone.deleted, stone.body) == (message.uuid, positions[1], True, "")
    assert stone.revision == changes.end > cursor
    chat.delete_message(ada, place.uuid, message.uuid)
    assert end_of(chat, place) == changes.end, "deleting it again changes nothing"
    assert [m.position for m in chat.changes(place, 0).items] == positions


def test_the_list_tells_of_new_renamed_and_deleted_conversations(chat: Chat, ada: int) -> None:
    first, second = chat.create(ada, new_id()), chat.create(ada, new_id())
    start = chat.entries(ada, 0)
    assert start.reset and {entry.uuid for entry in start.items} == {first.uuid, second.uuid}
    post(chat, first, "hello")
    changes = chat.entries(ada, start.end)
    assert [(entry.uuid, entry.title) for entry in changes.items] == [(first.uuid, "hello")]
    chat.rename(ada, second.uuid, "other")
    chat.delete(Actor(ada, ""), first.uuid)
    after = {entry.uuid: entry for entry in chat.entries(ada, changes.end).items}
    assert after[first.uuid].deleted and not after[second.uuid].deleted
    assert after[second.uuid].title == "other"
    assert [entry.uuid for entry in chat.entries(ada, 0).items] == [second.uuid]
    assert chat.entries(ada, chat.entries(ada, 0).end).items == ()


# Changes


def test_nothing_new_is_nothing(chat: Chat, place: ConversationRef) -> None:
    post(chat, place, "hello")
    end = end_of(chat, place)
    changes = chat.changes(place, end)
    assert (changes.start, changes.end, changes.items, changes.more, changes.reset) == (end, end, (), False, False)


def test_from_zero_come_the_newest_forty_and_older_ones_page_by_page(chat: Chat, place: ConversationRef) -> None:
    positions = [post(chat, place, f"{number}") for number in range(95)]
    newest = chat.changes(place, 0)
    assert newest.reset and not newest.more
    assert bodies(newest) == [f"{number}" for number in range(55, 95)]
    middle = chat.older(place, newest.items[0].position)
    assert bodies(middle) == [f"{number}" for number in range(15, 55)] and middle.more
    oldest = chat.older(place, middle.items[0].position)
    assert bodies(oldest) == [f"{number}" for number in range(15)] and not oldest.more
    assert chat.older(place, positions[0]).items == ()
    assert newest.end == middle.end == oldest.end


def test_exactly_forty_older_ones_are_the_last_page(chat: Chat, place: ConversationRef) -> None:
    for number in range(80):
        post(chat, place, f"{number}")
    page = chat.older(place, chat.changes(place, 0).items[0].position)
    assert len(page.items) == 40 and not page.more


def test_a_reader_far_behind_gets_its_changes_in_pages(chat: Chat, place: ConversationRef) -> None:
    post(chat, place, "start")
    cursor = end_of(chat, place)
    for number in range(450):
        post(chat, place, f"{number}")
    found: list[str] = []
    pages = []
    while True:
        changes = chat.changes(place, cursor)
        assert changes.start == cursor and not changes.reset
        found += bodies(changes)
        pages.append(len(changes.items))
        cursor = changes.end
        if not changes.more:
            break
    assert found == [f"{number}" for number in range(450)]
    assert pages == [200, 200, 50]
    assert cursor == end_of(chat, place)


def test_what_changes_between_two_pages_is_not_missed(chat: Chat, place: ConversationRef, ada: int) -> None:
    post(chat, place, "start")
    cursor = end_of(chat, place)
    for number in range(250):
        post(chat, place, f"{number}")
    first = chat.changes(place, cursor)
    chat.delete_message(ada, place.uuid, first.items[3].uuid)
    rest = chat.changes(place, first.end)
    assert len(rest.items) == 51 and not rest.more
    assert rest.items[-1].uuid == first.items[3].uuid and rest.items[-1].deleted


def test_exactly_two_hundred_changes_are_one_page(chat: Chat, place: ConversationRef) -> None:
    post(chat, place, "start")
    cursor = end_of(chat, place)
    for number in range(200):
        post(chat, place, f"{number}")
    changes = chat.changes(place, cursor)
    assert len(changes.items) == 200 and not changes.more and changes.end == end_of(chat, place)


def test_the_list_of_many_conversations_pages_too(chat: Chat, ada: int) -> None:
    chat.create(ada, new_id())
    cursor = chat.entries(ada, 0).end
    for _ in range(210):
        chat.create(ada, new_id())
    first = chat.entries(ada, cursor)
    rest = chat.entries(ada, first.end)
    assert (len(first.items), first.more, len(rest.items), rest.more) == (200, True, 10, False)


def test_revisions_have_no_gap_and_only_what_is_committed_together_shares_a_change_number(
    chat: Chat, store: Store, place: ConversationRef, ada: int
) -> None:
    other = chat.create(ada, new_id())
    seen = []
    for number in range(20):
        posted = chat.post(ada, (place, other)[number % 2].uuid, new_id(), f"{number}")
        seen.append((posted.conversation, posted.position))
    chat.rename(ada, place.uuid, "renamed")
    for conversation in (place, other):
        mine = [position for uuid_, position in seen if uuid_ == conversation.uuid]
        assert mine == [mine[0], *range(mine[0] + 2, mine[0] + 11)], "the first one also takes one for the title"
    with store.database.read() as connection:
        changed = connection.execute(text("select id, change from feeds")).all()
        changes = [row[1] for row in changed]
        revisions = dict(connection.execute(text("select id, revision from feeds")).all())  # type: ignore[arg-type]
    mine_and_the_list = {place.feed, store.conversations.list_feed(ada)}  # what the last change touched, by its number
    twins = {row[0] for row in changed if row[1] == max(changes)}
    assert twins == mine_and_the_list
    others = [row[1] for row in changed if row[1] and row[0] not in twins]
    assert len(others) == len(set(others))
    assert revisions[place.feed] == end_of(chat, place)
    assert store.database.revision(place.feed) == end_of(chat, place)


def test_a_change_that_fails_takes_no_revision_and_wakes_nobody(
    chat: Chat, parts: Parts, place: ConversationRef, ada: int
) -> None:
    post(chat, place, "hello")
    woken: list[int] = []
    parts.bus.subscribe(place.feed, woken.append)
    before, head = end_of(chat, place), parts.store.database.revision(place.feed)
    with pytest.raises(RuntimeError), parts.store.database.write() as tx:
        tx.bump(place.feed)
        raise RuntimeError
    assert (end_of(chat, place), parts.store.database.revision(place.feed), woken) == (before, head, [])
    post(chat, place, "again")
    assert woken


# Blocks and runs


def answer(store: Store, chat: Chat, place: ConversationRef) -> ClaimedRun:
    """A run that has begun."""
    post(chat, place, "a question")
    run = store.runs.claim_run("lease")
    assert run is not None
    return run


def block(chat: Chat, place: ConversationRef) -> Block:
    """The first block of the newest message."""
    return chat.changes(place, 0).items[-1].blocks[0]


def test_a_reader_at_any_cursor_gets_just_the_rest_of_a_block(chat: Chat, store: Store, place: ConversationRef) -> None:
    run = answer(store, chat, place)
    versions: dict[int, str] = {}
    for html in ("<p>a</p>", "<p>ab</p>", "<p>ab<b>c</b></p>", "<p>ab<b>c</b>d</p>", "<p>ab<i>c</i>d</p>"):
        assert store.runs.write_answer(run, "x", [(0, html)]) == "go"
        versions[end_of(chat, place)] = html
    now = block(chat, place)
    for cursor, html in versions.items():
        offset = now.offset(cursor)
        assert html[:offset] == now.html[:offset]
        assert html[:offset] + now.html[offset:] == now.html
    cursors = list(versions)
    assert now.offset(cursors[0]) == len("<p>a")
    assert now.offset(cursors[3]) == len("<p>ab<")
    assert now.offset(cursors[4]) == 0 or now.revision <= cursors[4]
    assert now.offset(cursors[0] - 1) == 0, "who never had the block gets it whole"


def test_a_reader_too_far_behind_gets_the_block_whole(chat: Chat, store: Store, place: ConversationRef) -> None:
    run = answer(store, chat, place)
    cursors = []
    for number in range(1, 40):
        store.runs.write_answer(run, "x", [(0, "<p>" + "x" * number)])
        cursors.append(end_of(chat, place))
    now = block(chat, place)
    assert now.offset(cursors[0]) == 0
    assert now.offset(cursors[-2]) == len("<p>") + 38
    for number, cursor in enumerate(cursors, 1):
        offset = now.offset(cursor)
        assert offset <= len("<p>") + number and ("<p>" + "x" * number)[:offset] == now.html[:offset]


def test_a_block_that_did_not_change_keeps_its_revision(chat: Chat, store: Store, place: ConversationRef) -> None:
    run = answer(store, chat, place)
    store.runs.write_answer(run, "x", [(0, "<p>done</p>"), (1, "<p>op")])
    first = block(chat, place).revision
    store.runs.write_answer(run, "x", [(0, "<p>done</p>"), (1, "<p>open")])
    assert block(chat, place).revision == first
    assert chat.changes(place, 0).items[-1].blocks[1].revision > first


def test_one_run_goes_and_one_waits_however_much_is_posted(chat: Chat, store: Store, place: ConversationRef) -> None:
    run = answer(store, chat, place)
    for number in range(5):
        post(chat, place, f"{number}")
    assert store.runs.claim_run("other") is None
    store.runs.end_run(run, "completed", "done", [(0, "<p>done</p>")], None)
    second = store.runs.claim_run("other")
    assert second is not None
    assert [turn.body for turn in second.history][-5:] == ["0", "1", "2", "3", "4"]
    assert store.runs.claim_run("third") is None


def test_whose_lease_is_lost_writes_no_more(chat: Chat, store: Store, place: ConversationRef) -> None:
    run = answer(store, chat, place)
    store.runs.write_answer(run, "kept", [(0, "<p>kept</p>")])
    assert store.runs.reap_runs(lambda _run, _lease: True, "other", 1) == (1, [])
    assert store.runs.write_answer(run, "late", [(0, "<p>late</p>")]) == "lost"
    store.runs.end_run(run, "completed", "late", [(0, "<p>late</p>")], None)
    last = chat.changes(place, 0).items[-1]
    assert (last.state, last.body, last.blocks[0].html) == ("interrupted", "kept", "<p>kept</p>")
    assert store.runs.reap_runs(lambda _run, _lease: True, "other", 1) == (0, [])


def test_stop_ends_what_is_written_and_the_next_one_starts(
    chat: Chat, store: Store, place: ConversationRef, ada: int
) -> None:
    run = answer(store, chat, place)
    post(chat, place, "another")
    chat.stop(ada, place.uuid)
    assert store.runs.write_answer(run, "x", []) == "stop"
    store.runs.end_run(run, "stopped", "x", [], None)
    second = store.runs.claim_run("other")
    assert second is not None and second.history[-1].body == "another"
    store.runs.end_run(second, "completed", "y", [], None)
    assert store.runs.claim_run("other") is None


def test_stop_ends_what_waits_where_nothing_is_written(
    chat: Chat, store: Store, place: ConversationRef, ada: int
) -> None:
    post(chat, place, "hello")
    chat.stop(ada, place.uuid)
    assert store.runs.claim_run("lease") is None
    chat.again(ada, place.uuid)
    assert store.runs.claim_run("lease") is not None


def test_stop_ends_the_answer_that_it_names(chat: Chat, store: Store, place: ConversationRef, ada: int) -> None:
    run = answer(store, chat, place)
    first = chat.changes(place, 0).items[-1].client_id
    post(chat, place, "another")
    store.runs.end_run(run, "completed", "x", [], None)
    second = store.runs.claim_run("lease")
    assert second is not None
    chat.stop(ada, place.uuid, first)  # it had ended before the click arrived
    assert store.runs.write_answer(second, "y", []) == "go"
    with pytest.raises(BadMessage):
        chat.stop(ada, place.uuid, "x")


def test_a_deleted_conversation_is_answered_no_more(chat: Chat, store: Store, place: ConversationRef, ada: int) -> None:
    run = answer(store, chat, place)
    post(chat, place, "another")
    chat.delete(Actor(ada, ""), place.uuid)
    assert store.runs.write_answer(run, "x", []) == "stop"
    store.runs.end_run(run, "stopped", "x", [], None)
    assert store.runs.claim_run("other") is None


# The database


def test_what_was_posted_is_there_after_the_app_is_made_anew(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    first = house_of(create_app(settings))
    ada = first.store.people.add_admin("Ada", "ada@example.org", "x").id
    place = first.chat.create(ada, new_id())
    post(first.chat, place, "hello")
    first.store.close()
    second = house_of(create_app(settings))
    assert (second.epoch, second.instance) == (first.epoch, first.instance)
    assert bodies(second.chat.changes(second.chat.place(ada, place.uuid), 0)) == ["hello"]
    second.store.close()
