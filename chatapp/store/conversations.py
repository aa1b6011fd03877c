"""Conversations, their messages, and `changes`: everything newer than a cursor, in its current state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, and_, bindparam, exists, func, or_, select, update

from chatapp.bus import ACCESS
from chatapp.cache import Cache
from chatapp.store.database import REVISION, Database, Write, bump_statement, new_id, now_ms
from chatapp.store.prepared import Prepared
from chatapp.store.records import (
    Block,
    ChangedMessage,
    Changes,
    ConversationRef,
    Entry,
    EntryPlace,
    Posted,
    Waiting,
    utc_datetime,
)
from chatapp.store.tables import blocks, conversations, feeds, memberships, messages, people, runs

PAGE = 40  # messages in the first page, and in each older one
AFTER_ALL = 1 << 62  # a position after all messages
MOST_PLACES, MOST_PLACES_BYTES = 10_000, 6 << 20  # of the cache of memberships
PLACE_BYTES = 500  # of one entry, without its title
MOST_CHANGES = 200  # in one result; the next one continues from its end

# Built once: building a statement costs more than running it.
PLACE = Prepared(
    select(conversations.c.id, conversations.c.feed_id, conversations.c.uuid, conversations.c.title)
    .join(memberships)
    .where(
        conversations.c.uuid == bindparam("uuid"),
        conversations.c.deleted_at.is_(None),
        memberships.c.person_id == bindparam("person"),
        memberships.c.left_at.is_(None),
    )
)
POSTED = Prepared(
    select(
        conversations.c.id,
        conversations.c.feed_id,
        conversations.c.title,
        messages.c.uuid,
        messages.c.position,
        messages.c.revision,
        messages.c.body,
    )
    .join(memberships, memberships.c.conversation_id == conversations.c.id)
    .outerjoin(
        messages,
        and_(
            messages.c.conversation_id == conversations.c.id,
            messages.c.author_id == memberships.c.person_id,
            messages.c.client_id == bindparam("client"),
        ),
    )
    .where(
        conversations.c.uuid == bindparam("uuid"),
        conversations.c.deleted_at.is_(None),
        memberships.c.person_id == bindparam("person"),
        memberships.c.left_at.is_(None),
    )
)
_member_feeds = select(people.c.feed_id).join(memberships)
BUMP_WITH_LISTS = bump_statement(
    or_(
        feeds.c.id == bindparam("feed"),
        feeds.c.id.in_(_member_feeds.where(memberships.c.conversation_id == bindparam("conversation"))),
    )
)
TOUCH_ENTRIES = Prepared(
    update(memberships)
    .where(memberships.c.conversation_id == bindparam("conversation"))
    .values(
        list_revision=select(feeds.c.revision)
        .join(people, people.c.feed_id == feeds.c.id)
        .where(people.c.id == memberships.c.person_id)
        .scalar_subquery()
    )
)
TOUCH = Prepared(
    update(conversations).where(conversations.c.id == bindparam("conversation")).values(updated_at=bindparam("now"))
)
NEW = {"uuid", "conversation_id", "author_id", "client_id", "position", "revision", "state", "state_revision", "body"}
INSERT_MESSAGE = Prepared(messages.insert(), sorted(NEW | {"created_at"}))
BLOCKS = select(blocks).where(blocks.c.message_id.in_(bindparam("ids", expanding=True))).order_by(blocks.c.ordinal)
MESSAGES = (
    select(messages, people.c.kind)
    .join(people, people.c.id == messages.c.author_id)
    .where(messages.c.conversation_id == bindparam("conversation"))
)
CHANGED = Prepared(
    MESSAGES.where(messages.c.revision > bindparam("cursor")).order_by(messages.c.revision).limit(bindparam("most"))
)
NEWEST_ANSWER = Prepared(
    MESSAGES.where(people.c.kind == "assistant", messages.c.position <= bindparam("end"))
    .order_by(messages.c.position.desc())
    .limit(1)
)
BEFORE = Prepared(
    MESSAGES.where(messages.c.position < bindparam("before"))
    .order_by(messages.c.position.desc())
    .limit(bindparam("most"))
)
# Queued answers, and those stopped before they started; a started answer is a message.
WAITING = Prepared(
    select(runs.c.uuid, runs.c.revision, runs.c.ahead, runs.c.state).where(
        runs.c.conversation_id == bindparam("conversation"),
        or_(runs.c.state == "queued", runs.c.state == "stopped"),
        runs.c.message_id.is_(None),
        runs.c.revision > bindparam("cursor"),
    )
)
_ENTRIES = (
    select(
        conversations.c.uuid,
        memberships.c.list_revision,
        conversations.c.title,
        conversations.c.updated_at,
        or_(conversations.c.deleted_at.is_not(None), memberships.c.left_at.is_not(None)),
    )
    .join(memberships)
    .where(memberships.c.person_id == bindparam("person"))
)
ENTRIES = Prepared(
    _ENTRIES.where(conversations.c.deleted_at.is_(None), memberships.c.left_at.is_(None))
    .order_by(conversations.c.updated_at.desc(), conversations.c.uuid.desc())
    .limit(MOST_CHANGES)
)
OLDER_ENTRIES = Prepared(
    _ENTRIES.where(
        conversations.c.deleted_at.is_(None),
        memberships.c.left_at.is_(None),
        or_(
            conversations.c.updated_at < bindparam("at"),
            and_(conversations.c.updated_at == bindparam("at"), conversations.c.uuid < bindparam("uuid")),
        ),
    )
    .order_by(conversations.c.updated_at.desc(), conversations.c.uuid.desc())
    .limit(MOST_CHANGES + 1)
)
CHANGED_ENTRIES = Prepared(
    _ENTRIES.where(memberships.c.list_revision > bindparam("cursor"))
    .order_by(memberships.c.list_revision)
    .limit(bindparam("most"))
)
Messages = tuple[ChangedMessage, ...]


class Conversations:
    """Queries about conversations. Each runs in the given transaction `tx`, else in a new one."""

    most_changes = MOST_CHANGES

    def __init__(self, database: Database) -> None:
        self.database = database
        self._list_feeds: dict[int, int] = {}  # by person; never changes
        self._touched_at = 0  # the newest `updated_at` of all conversations, ms; 0: not read yet
        # Cleared whenever anybody's access changes.
        self._places: Cache[tuple[int, str], ConversationRef] = Cache(MOST_PLACES, MOST_PLACES_BYTES)
        database.on_access_change(self._places.clear)

    # Lookups, always through the person's membership

    def place(self, person: int, uuid: str) -> ConversationRef | None:
        """Return the conversation, or None if it is deleted or the person is no member."""
        key = (person, uuid)
        place = self._places.get(key)
        if place is None:
            with self.database.read() as connection:
                place = self._place(connection, person, uuid)
            if place is not None:
                self._places.put(key, place, PLACE_BYTES + 4 * len(place.title or ""))
        return place

    def newest(self, person: int) -> str | None:
        """Return the UUID of the conversation with the newest activity."""
        query = (
            select(conversations.c.uuid)
            .join(memberships)
            .where(memberships.c.person_id == person, memberships.c.left_at.is_(None))
            .where(conversations.c.deleted_at.is_(None))
            .order_by(conversations.c.updated_at.desc(), conversations.c.id.desc())
            .limit(1)
        )
        with self.database.read() as connection:
            return connection.execute(query).scalar_one_or_none()

    def _place(self, connection: Connection, person: int, uuid: str) -> ConversationRef | None:
        row = PLACE.first(connection, uuid=uuid, person=person)
        return ConversationRef(row.id, row.feed_id, uuid, row.title, person) if row else None

    # Reading

    def changes(self, place: ConversationRef, cursor: int) -> Changes[ChangedMessage]:
        """Return the changes after `cursor`; for 0 the newest page, with `reset`."""
        recent = self.database.recent(place.feed, cursor) if cursor > 0 else None
        if recent is not None:
            return recent
        with self.database.read() as connection:
            end, change = self._revision(connection, place.feed)
            if cursor >= end:
                return Changes(cursor, cursor, ())
            if cursor <= 0:
                newest = self._page(connection, place, AFTER_ALL, PAGE)
                return Changes(0, end, newest, reset=True, waiting=self._waiting(connection, place, 0), change=change)
            which = {"conversation": place.conversation, "cursor": cursor, "most": self.most_changes + 1}
            found = self._messages(connection, CHANGED, which)
            if len(found) > self.most_changes:
                return self._first_part(connection, place, cursor, found[: self.most_changes], change)
            waiting = self._waiting(connection, place, cursor)
        return Changes(cursor, end, found, waiting=waiting, change=change)

    def _first_part(
        self, connection: Connection, place: ConversationRef, cursor: int, found: Messages, change: int
    ) -> Changes[ChangedMessage]:
        """Return the first part of the changes. Later patches assume that the reader has every answer begun by its end:
        so each is included in its current state, even if it changed later."""
        end = found[-1].revision
        # Only the newest answer of a conversation can still change (`Runs.claim_run`).
        newest = self._messages(connection, NEWEST_ANSWER, {"conversation": place.conversation, "end": end})
        going_on = tuple(answer for answer in newest if answer.revision > end)
        waiting = tuple(each for each in self._waiting(connection, place, cursor) if each.revision <= end)
        return Changes(cursor, end, found + going_on, more=True, waiting=waiting, change=change)

    def _waiting(self, connection: Connection, place: ConversationRef, cursor: int) -> tuple[Waiting, ...]:
        """Return the changes of answers that have not started; for cursor 0 only those still queued."""
        rows = WAITING.all(connection, conversation=place.conversation, cursor=cursor)
        found = tuple(Waiting(row.uuid, row.revision, row.ahead, row.state != "queued") for row in rows)
        return found if cursor > 0 else tuple(each for each in found if not each.is_over)

    def older(self, place: ConversationRef, before: int) -> Changes[ChangedMessage]:
        """Return the page before a position, oldest first; its `end` is the feed's current revision."""
        with self.database.read() as connection:
            end, change = self._revision(connection, place.feed)
            found = self._page(connection, place, before, PAGE + 1)
            waiting = self._waiting(connection, place, 0) if before > end else ()  # they follow the newest message
        return Changes(before, end, found[-PAGE:], more=len(found) > PAGE, waiting=waiting, change=change)

    def entries(self, person: int, cursor: int) -> Changes[Entry]:
        """Return the changes in a person's list of conversations; for cursor 0 its first page, with `reset`."""
        feed = self.list_feed(person)
        with self.database.read() as connection:
            end, change = self._revision(connection, feed)
            if cursor >= end:
                return Changes(cursor, cursor, ())
            if cursor <= 0:
                return Changes(0, end, _entries(ENTRIES.all(connection, person=person)), reset=True, change=change)
            most = self.most_changes + 1
            found = _entries(CHANGED_ENTRIES.all(connection, person=person, cursor=cursor, most=most))
        if len(found) > self.most_changes:
            found = found[: self.most_changes]
            return Changes(cursor, found[-1].revision, found, more=True, change=change)
        return Changes(cursor, end, found, change=change)

    def older_entries(self, person: int, before: EntryPlace) -> tuple[tuple[Entry, ...], bool]:
        """Return the page of a person's list after `before`, and True if there are more."""
        with self.database.read() as connection:
            rows = OLDER_ENTRIES.all(connection, person=person, at=before.updated_at, uuid=before.uuid)
        return _entries(rows[:MOST_CHANGES]), len(rows) > MOST_CHANGES

    def list_feed(self, person: int) -> int:
        """Return the id of the feed of a person's list."""
        if person not in self._list_feeds:
            with self.database.read() as connection:
                query = select(people.c.feed_id).where(people.c.id == person)
                self._list_feeds[person] = int(connection.execute(query).scalar_one())
        return self._list_feeds[person]

    def _revision(self, connection: Connection, feed: int) -> tuple[int, int]:
        row = REVISION.first(connection, feed=feed)
        return (row.revision, row.change) if row else (0, 0)

    def _page(self, connection: Connection, place: ConversationRef, before: int, most: int) -> Messages:
        which = {"conversation": place.conversation, "before": before, "most": most}
        return self._messages(connection, BEFORE, which)[::-1]

    def _messages(self, connection: Connection, query: Prepared, parameters: dict[str, int]) -> Messages:
        rows = query.all(connection, **parameters)
        answers = [row.id for row in rows if row.kind == "assistant"]
        by_message = self._blocks(connection, answers) if answers else {}
        return tuple(_message(row, tuple(by_message.get(row.id, ()))) for row in rows)

    def _blocks(self, connection: Connection, ids: Sequence[int]) -> dict[int, list[Block]]:
        by_message: dict[int, list[Block]] = {}
        for row in connection.execute(BLOCKS, {"ids": ids}):
            steps = tuple((a, b, c) for a, b, c in json.loads(row.steps))
            by_message.setdefault(row.message_id, []).append(Block(row.ordinal, row.html, row.revision, steps))
        return by_message

    # Changing

    def add(self, tx: Write, person: int, uuid: str) -> ConversationRef:
        """Add an empty conversation. Its feed starts at revision 1: cursor 0 always means "nothing"."""
        now = self._next_time(tx)
        feed = tx.new_feed()
        row = {"uuid": uuid, "feed_id": feed, "title": "", "created_by": person, "created_at": now}
        result = tx.connection.execute(conversations.insert().values(**row, updated_at=now))
        conversation = new_id(result)
        tx.bump(feed)
        entry = {"conversation_id": conversation, "person_id": person, "role": "owner", "joined_at": now}
        revision = tx.bump(tx.connection.execute(select(people.c.feed_id).where(people.c.id == person)).scalar_one())
        tx.connection.execute(memberships.insert().values(**entry, list_revision=revision))
        return ConversationRef(conversation, feed, uuid, "", person)

    def empty(self, tx: Write, person: int) -> ConversationRef | None:
        """Return the newest conversation of the person's that has no title and no message, or None."""
        query = (
            select(conversations.c.uuid)
            .join(memberships)
            .where(
                conversations.c.created_by == person,
                conversations.c.title == "",
                conversations.c.deleted_at.is_(None),
                memberships.c.person_id == person,
                memberships.c.left_at.is_(None),
                ~exists().where(messages.c.conversation_id == conversations.c.id),
            )
            .order_by(conversations.c.updated_at.desc())
            .limit(1)
        )
        uuid = tx.connection.execute(query).scalar_one_or_none()
        return self._place(tx.connection, person, uuid) if uuid else None

    def find(self, tx: Write, person: int, uuid: str) -> ConversationRef | None:
        """Return the conversation as `place` does, in a write transaction."""
        return self._place(tx.connection, person, uuid)

    def is_taken(self, tx: Write, uuid: str) -> bool:
        """Return True if any conversation, also a deleted or a foreign one, has this UUID."""
        query = select(conversations.c.id).where(conversations.c.uuid == uuid)
        return tx.connection.execute(query).first() is not None

    def posted(self, tx: Write, person: int, uuid: str, client_id: str) -> tuple[ConversationRef, Posted | None] | None:
        """Return the conversation as `find` does, and the person's message with this client id, or None."""
        row = POSTED.first(tx.connection, person=person, uuid=uuid, client=client_id)
        if row is None:
            return None
        place = ConversationRef(row.id, row.feed_id, uuid, row.title, person)
        if row.position is None:
            return place, None
        return place, Posted(row.uuid, client_id, uuid, row.position, row.revision, row.body, created=False)

    def post(self, tx: Write, place: ConversationRef, client_id: str, body: str) -> Posted:
        """Append the person's message, and move the conversation to the top of its members' lists."""
        revision = self.touch(tx, place.conversation, place.feed)
        message = self._insert(tx, place, place.person, client_id, body, "sent", revision)
        return Posted(message.uuid, client_id, place.uuid, revision, revision, body, created=True)

    def add_answer(self, tx: Write, place: ConversationRef, author: int, uuid: str) -> int:
        """Append a running, empty answer. Return its id."""
        return self._insert(tx, place, author, uuid, "", "running", tx.bump(place.feed)).id

    def _insert(
        self, tx: Write, place: ConversationRef, author: int, client_id: str, body: str, state: str, revision: int
    ) -> ChangedMessage:
        now, uuid = now_ms(), str(uuid4())
        values: dict[str, Any] = {"state": state, "position": revision, "revision": revision, "body": body}
        cursor = INSERT_MESSAGE.run(
            tx.connection,
            uuid=uuid,
            conversation_id=place.conversation,
            author_id=author,
            client_id=client_id,
            state_revision=revision,
            created_at=now,
            **values,
        )
        message = ChangedMessage(
            id=int(cursor.lastrowid),
            uuid=uuid,
            client_id=client_id,
            author="user" if author == place.person else "assistant",
            error=None,
            deleted=False,
            edited=False,
            created_at=utc_datetime(now),
            blocks=(),
            state_revision=revision,
            **values,
        )
        tx.keep_recent(place.feed, message)
        return message

    def set_title(self, tx: Write, place: ConversationRef, title: str) -> None:
        """Set the title, also in every member's list."""
        is_this = conversations.c.id == place.conversation
        tx.connection.execute(update(conversations).where(is_this).values(title=title))
        tx.bump(ACCESS)  # the title is in the cache of memberships
        self._bump_with_lists(tx, place.conversation, place.feed)

    def delete(self, tx: Write, place: ConversationRef) -> None:
        """Mark the conversation as deleted for all members; its rows stay."""
        is_this = conversations.c.id == place.conversation
        tx.connection.execute(update(conversations).where(is_this).values(deleted_at=now_ms()))
        tx.bump(ACCESS)
        self._bump_with_lists(tx, place.conversation, place.feed)

    def delete_message(self, tx: Write, place: ConversationRef, uuid: str) -> bool:
        """Turn the person's own message into a tombstone. Return False if there is none."""
        own = and_(
            messages.c.conversation_id == place.conversation,
            messages.c.uuid == uuid,
            messages.c.author_id == place.person,
        )
        row = tx.connection.execute(select(messages.c.id, messages.c.deleted_at).where(own)).first()
        if row is None:
            return False
        if row.deleted_at is None:
            revision = tx.bump(place.feed)
            change = {"revision": revision, "state_revision": revision, "deleted_at": now_ms()}
            tx.connection.execute(update(messages).where(messages.c.id == row.id).values(**change))
        return True

    def touch(self, tx: Write, conversation: int, feed: int) -> int:
        """Move the conversation to the top of its members' lists. Return the feed's new revision."""
        self._bump_with_lists(tx, conversation, feed)
        TOUCH.run(tx.connection, conversation=conversation, now=self._next_time(tx))
        return tx.revisions[feed]

    def _next_time(self, tx: Write) -> int:
        """Return a time after every `updated_at` (the order of lists), even if the clock was set back."""
        if not self._touched_at:
            self._touched_at = tx.connection.execute(select(func.max(conversations.c.updated_at))).scalar_one() or 0
        self._touched_at = max(now_ms(), self._touched_at + 1)
        return self._touched_at

    def _bump_with_lists(self, tx: Write, conversation: int, feed: int) -> None:
        tx.bump_all(BUMP_WITH_LISTS, conversation=conversation, feed=feed)
        TOUCH_ENTRIES.run(tx.connection, conversation=conversation)

    def last_message(self, tx: Write, place: ConversationRef) -> tuple[str, str] | None:
        """Return author kind and state of the newest message, or None."""
        query = (
            select(people.c.kind, messages.c.state)
            .join(people, people.c.id == messages.c.author_id)
            .where(messages.c.conversation_id == place.conversation)
            .order_by(messages.c.position.desc())
            .limit(1)
        )
        row = tx.connection.execute(query).first()
        return (row[0], row[1]) if row else None


def _message(row: Any, parts: tuple[Block, ...]) -> ChangedMessage:
    deleted = row.deleted_at is not None
    return ChangedMessage(
        id=row.id,
        uuid=row.uuid,
        client_id=row.client_id,
        position=row.position,
        revision=row.revision,
        author="assistant" if row.kind == "assistant" else "user",
        state=row.state,
        state_revision=row.state_revision,
        body="" if deleted else row.body,
        error=row.error,
        deleted=deleted,
        edited=row.edited_at is not None,
        created_at=utc_datetime(row.created_at),
        blocks=() if deleted else parts,
    )


def _entries(rows: Sequence[Any]) -> tuple[Entry, ...]:
    return tuple(Entry(row[0], row[1], row[2], utc_datetime(row[3]), bool(row[4])) for row in rows)
