"""What is made once for all readers: a post is neither looked up nor drawn anew for those who wait for it."""

import dataclasses
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event

from chatapp.parts import Parts
from chatapp.store import ChangedMessage, ConversationRef
from chatapp.transports.rendering import SAMPLE

MOST_STATEMENTS = 8  # of one post: two for the transaction, one for its connection, one query, four changes


SETTINGS = {"assistant": "off"}


@pytest.fixture
def person(parts: Parts) -> int:
    return parts.store.people.add_first_admin("Ada", "ada@example.org", "x").id


@pytest.fixture
def place(parts: Parts, person: int) -> ConversationRef:
    """A conversation that has its title already."""
    name = str(uuid.uuid4())
    parts.chat.create(person, name)
    parts.chat.post(person, name, str(uuid.uuid4()), "the first one names it")
    return parts.chat.place(person, name)


def say(parts: Parts, place: ConversationRef, *texts: str) -> None:
    for text in texts:
        parts.chat.post(place.person, place.uuid, str(uuid.uuid4()), text)


def traced(parts: Parts) -> list[str]:
    """The statements that SQLite runs from now on."""
    found: list[str] = []
    parts.store.database.close()  # what is kept for posts is not checked out again

    @event.listens_for(parts.store.database.engine, "checkout")
    def begin(connection: Any, *_: object) -> None:
        connection.set_trace_callback(found.append)

    return found


def test_a_post_is_few_statements_and_its_readers_need_none(parts: Parts, place: ConversationRef) -> None:
    cursor = parts.store.database.revision(place.feed)
    statements = traced(parts)
    say(parts, place, "hello")
    assert 0 < len(statements) <= MOST_STATEMENTS, statements
    statements.clear()
    news = parts.reader.read(place.person, place.uuid, cursor)
    assert news.frame is not None and "hello" in news.frame
    assert statements == []


@pytest.mark.parametrize("behind", range(1, 9))
def test_what_is_at_hand_is_what_the_database_says(parts: Parts, place: ConversationRef, behind: int) -> None:
    say(parts, place, *(f"message {number}" for number in range(8)))
    database, head = parts.store.database, parts.store.database.revision(place.feed)
    fresh = database.recent(place.feed, head - behind)
    database._recent.clear()
    stored = parts.chat.changes(place, head - behind)
    assert len(stored.items) == behind
    assert fresh == stored if behind <= 5 else fresh is None


def test_what_changed_after_it_was_written_is_not_at_hand(parts: Parts, place: ConversationRef) -> None:
    cursor = parts.store.database.revision(place.feed)
    say(parts, place, "to be deleted")
    message = parts.chat.changes(place, cursor).items[0]
    parts.chat.delete_message(place.person, place.uuid, message.uuid)
    found = parts.chat.changes(place, cursor)
    assert [item.deleted for item in found.items] == [True]
    assert parts.store.database.recent(place.feed, cursor) is None


def test_another_process_counts_more(parts: Parts, place: ConversationRef) -> None:
    """What it wrote is not known here; that it did is."""
    cursor = parts.store.database.revision(place.feed)
    say(parts, place, "ours")
    head = parts.store.database.revision(place.feed)
    parts.store.database.note_revisions({place.feed: head + 1})
    assert parts.store.database.recent(place.feed, cursor) is None


ODD = [
    "<b>&amp;</b> \"quoted\" & 'so'",
    "two\nlines  and\ttabs",
    "😀 \u2028 \ue000body\ue001",
    SAMPLE.body,
    "%s {x} {{ x }}",
]


@pytest.mark.parametrize("body", [*ODD, "9000000000000001 9999-12-31T23:59:58Z"])
def test_a_form_draws_what_the_template_draws(parts: Parts, body: str) -> None:
    message = dataclasses.replace(
        SAMPLE,
        id=7,
        uuid=str(uuid.uuid4()),
        client_id=str(uuid.uuid4()),
        position=12,
        revision=34,
        created_at=datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC),
        body=body,
    )
    renderer = parts.renderer
    drawn = renderer._draw("_message.html", "message", message)
    assert str(renderer.message(message)) == drawn
    assert message.uuid in drawn and "2026-11-24T01:02:03Z" in drawn


@pytest.mark.parametrize("change", [{"deleted": True}, {"edited": True}, {"state": "failed", "error": "no"}])
def test_what_is_not_plain_is_drawn_by_the_template(parts: Parts, change: dict[str, Any]) -> None:
    message: ChangedMessage = dataclasses.replace(SAMPLE, uuid=str(uuid.uuid4()), **change)
    drawn = parts.renderer._draw("_message.html", "message", message)
    assert str(parts.renderer.message(message)) == drawn
