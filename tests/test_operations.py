"""The Operations conversation: messages of the assistant that answer nobody, for exactly the operators, once each."""

import uuid

from chatapp.chat import title_of
from chatapp.parts import Parts
from chatapp.store import Actor, ChangedMessage
from chatapp.store.conversations import ConversationRef

HTML = ["<p>Since 14:02</p>", "<p>What to do</p>"]


def add_operator(parts: Parts, name: str) -> int:
    person = parts.store.people.add_admin(name, f"{name}@example.org", "x")
    with parts.store.database.write() as tx:
        parts.store.directory.change(tx, person.id, is_operator=True)
    return person.id


def tell(parts: Parts, text: str = "Since 14:02\n\nWhat to do", key: str = "") -> str | None:
    return parts.store.operations.post(key or str(uuid.uuid4()), "Operations", text, HTML)


def shown(parts: Parts, person: int, conversation: str) -> tuple[ConversationRef, tuple[ChangedMessage, ...]]:
    place = parts.chat.place(person, conversation)
    return place, parts.chat.changes(place, 0).items


def test_without_operators_there_is_nobody_to_tell(parts: Parts) -> None:
    assert tell(parts) is None


def test_a_message_comes_once_and_whole_from_memory_and_from_disk(parts: Parts) -> None:
    ada, key = add_operator(parts, "ada"), str(uuid.uuid4())
    conversation = tell(parts)
    assert conversation is not None
    place, (first,) = shown(parts, ada, conversation)
    assert tell(parts, key=key) == tell(parts, key=key) == conversation
    kept = parts.chat.changes(place, first.revision).items  # from memory
    assert kept == shown(parts, ada, conversation)[1][1:]  # from disk
    (message,) = kept
    assert [block.html for block in message.blocks] == HTML
    assert (message.author, message.state, message.author_name) == ("assistant", "completed", "")
    assert place.title == "Operations" and place.answers == "addressed"
    assert not parts.store.runs.is_answering(place.conversation)


def test_its_people_are_the_operators(parts: Parts) -> None:
    ada, olga = add_operator(parts, "ada"), add_operator(parts, "olga")
    grace = parts.store.people.add_admin("Grace", "grace@example.org", "x").id
    conversation = tell(parts)
    assert conversation is not None
    place = parts.chat.place(ada, conversation)
    parts.chat.share(Actor(ada, ""), conversation, "grace@example.org")
    ivan = add_operator(parts, "ivan")
    with parts.store.database.write() as tx:
        parts.store.directory.change(tx, ada, is_operator=False)  # its owner
    parts.chat.leave(Actor(olga, ""), conversation)
    assert tell(parts) == conversation
    found = {member.id: member.role for member in parts.store.members.list(place.conversation)}
    assert set(found) == {olga, ivan} and sorted(found.values()) == ["member", "owner"]
    assert parts.store.conversations.place(grace, conversation) is None


def test_who_deletes_it_has_another_one(parts: Parts) -> None:
    ada = add_operator(parts, "ada")
    conversation = tell(parts)
    assert conversation is not None
    parts.chat.delete(Actor(ada, ""), conversation)
    other = tell(parts)
    assert other is not None and other != conversation and len(shown(parts, ada, other)[1]) == 1


def test_a_running_answer_is_read_although_a_message_came_after_it(parts: Parts) -> None:
    """A reader of a part of the changes gets the answer that is still being written (Conversations._first_part)."""
    ada = add_operator(parts, "ada")
    conversation = tell(parts)
    assert conversation is not None
    place, (first,) = shown(parts, ada, conversation)
    question = "@assistant which network?"
    parts.chat.post(ada, conversation, str(uuid.uuid4()), question)
    run = parts.store.runs.claim_run("lease")
    assert run is not None and title_of(question) and parts.store.runs.count_running() == 1
    tell(parts)
    for number in range(4):
        parts.chat.post(ada, conversation, str(uuid.uuid4()), f"word {number}")
    parts.store.runs.write_answer(run, "text", [(0, "<p>text</p>")])
    parts.store.conversations.most_changes = 3
    part = parts.store.conversations.changes(place, first.revision)
    assert part.more and run.message_id in [message.id for message in part.items]
