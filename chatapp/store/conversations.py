"""Conversations, their messages, and the one read: what changed after a cursor, as it is now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, and_, bindparam, exists, func, or_, select, update

from chatapp.bus import ACCESS
from chatapp.cache import Cache
from chatapp.store.database import REVISION, Database, Write, bumping, new_id, now_ms
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
    moment,
)
from chatapp.store.tables import blocks, conversations, feeds, memberships, messages, people, runs

PAGE = 40  # messages on a page as it loads, and in each step back
END = 1 << 62  # after every position
MOST_PLACES, MOST_PLACES_BYTES = 10_000, 6 << 20  # cached permissions
PLACE_BYTES = 500  # of one, without its title
MOST_CHANGES = 200  # in one answer; the rest follows from the new cursor


# Statements that run with every message or read are built once: building one costs more than running it.
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
SAID = Prepared(
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
BUMP_WITH_LISTS = bumping(
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
# What waits, and what was stopped before it began; an answer that began is a message.
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
    """Queries about conversations. Each is a transaction of its own, or takes part in the one given."""

    most_changes = MOST_CHANGES

    def __init__(self, database: Database) -> None:
        self.database = database
        self._list_feeds: dict[int, int] = {}  # never changes for a person
        self._touched_at = 0  # the newest time in the list of anybody, ms; 0: not known yet
        # Forgotten whole when anybody's access changes.
        self._places: Cache[tuple[int, str], ConversationRef] = Cache(MOST_PLACES, MOST_PLACES_BYTES)
        database.on_access_change(self._places.clear)

    # Finding: always through the person's membership

    def place(self, person: int, uuid: str) -> ConversationRef | None:
        """The conversation, if the person is a member of it and it is not deleted."""
        key = (person, uuid)
        place = self._places.get(key)
        if place is None:
            with self.database.read() as connection:
                place = self._place(connection, person, uuid)
            if place is not None:
                self._places.put(key, place, PLACE_BYTES + 4 * len(place.title or ""))
        return place

    def newest(self, person: int) -> str | None:
        """UUID of the conversation with the newest activity."""
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
        """What changed after `cursor`; from 0 the newest page, which replaces what is shown."""
        fresh = self.database.recent(place.feed, cursor) if cursor > 0 else None
        if fresh is not None:
            return fresh
        with self.database.read() as connection:
            end, change = self._revision(connection, place.feed)
            if cursor >= end:
                return Changes(cursor, cursor, ())
            if cursor <= 0:
                newest = self._page(connection, place, END, PAGE)
                return Changes(0, end, newest, reset=True, waiting=self._waiting(connection, place, 0), change=change)
            which = {"conversation": place.conversation, "cursor": cursor, "most": self.most_changes + 1}
            found = self._messages(connection, CHANGED, which)
            if len(found) > self.most_changes:
                return self._cut(connection, place, cursor, found[: self.most_changes], change)
            waiting = self._waiting(connection, place, cursor)
        return Changes(cursor, end, found, waiting=waiting, change=change)

    def _cut(
        self, connection: Connection, place: ConversationRef, cursor: int, found: Messages, change: int
    ) -> Changes[ChangedMessage]:
        """A first part of what changed. From its end on a reader counts as one who shows each answer as it was there,
        and gets patches of it: an answer that goes on after the end comes with this part, as it is now."""
        end = found[-1].revision
        # Answers of a conversation follow one another (`Runs.claim_run`): no older one can go on.
        newest = self._messages(connection, NEWEST_ANSWER, {"conversation": place.conversation, "end": end})
        going_on = tuple(answer for answer in newest if answer.revision > end)
        waiting = tuple(each for each in self._waiting(connection, place, cursor) if each.revision <= end)
        return Changes(cursor, end, found + going_on, more=True, waiting=waiting, change=change)

    def _waiting(self, connection: Connection, place: ConversationRef, cursor: int) -> tuple[Waiting, ...]:
        """What changed of answers that have not begun; from 0 only what waits now."""
        rows = WAITING.all(connection, conversation=place.conversation, cursor=cursor)
        found = tuple(Waiting(row.uuid, row.revision, row.ahead, row.state != "queued") for row in rows)
        return found if cursor > 0 else tuple(each for each in found if not each.is_over)

    def older(self, place: ConversationRef, before: int) -> Changes[ChangedMessage]:
        """The page before a position, oldest first. `end` is the feed's revision at this read."""
        with self.database.read() as connection:
            end, change = self._revision(connection, place.feed)
            found = self._page(connection, place, before, PAGE + 1)
            waiting = self._waiting(connection, place, 0) if before > end else ()  # it stands behind the newest
        return Changes(before, end, found[-PAGE:], more=len(found) > PAGE, waiting=waiting, change=change)

    def entries(self, person: int, cursor: int) -> Changes[Entry]:
        """What changed in a person's list of conversations."""
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
        """The page of a person's list after a place, and whether there are more."""
        with self.database.read() as connection:
            rows = OLDER_ENTRIES.all(connection, person=person, at=before.updated_at, uuid=before.uuid)
        return _entries(rows[:MOST_CHANGES]), len(rows) > MOST_CHANGES

    def list_feed(self, person: int) -> int:
        """The number of a person's list feed."""
        if person not in self._list_feeds:
            with self.database.read() as connection:
                query = select(people.c.feed_id).where(people.c.id == person)
                self._list_feeds[person] = int(connection.execute(query).scalar_one())
        return self._list_feeds[person]

    def _revision(self, connection: Connection, feed: int) -> tuple[int, int]:
        row = REVISION.first(connection, feed=feed)
        return (row.revision, row.change) if row else (0, 0)

    def _page(self, connection: Connection, place: ConversationRef, before: int, most: int) -> Messages:
        """Messages before a position, oldest first."""
        which = {"conversation": place.conversation, "before": before, "most": most}
        return self._messages(connection, BEFORE, which)[::-1]

    def _messages(self, connection: Connection, query: Prepared, parameters: dict[str, int]) -> Messages:
        rows = query.all(connection, **parameters)
        answers = [row.id for row in rows if row.kind == "assistant"]
        parts = self._blocks(connection, answers) if answers else {}
        return tuple(_message(row, tuple(parts.get(row.id, ()))) for row in rows)

    def _blocks(self, connection: Connection, ids: Sequence[int]) -> dict[int, list[Block]]:
        parts: dict[int, list[Block]] = {}
        for row in connection.execute(BLOCKS, {"ids": ids}):
            steps = tuple((a, b, c) for a, b, c in json.loads(row.steps))
            parts.setdefault(row.message_id, []).append(Block(row.ordinal, row.html, row.revision, steps))
        return parts

    # Changing

    def add(self, tx: Write, person: int, uuid: str) -> ConversationRef:
        """A new, empty conversation. Its feed begins at revision 1, so that cursor 0 always means "nothing"."""
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
        """The newest conversation that the person made and in which nothing was ever said, if there is one."""
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
        """As `place`, inside a write."""
        return self._place(tx.connection, person, uuid)

    def is_taken(self, tx: Write, uuid: str) -> bool:
        """Whether any conversation, also a deleted or a foreign one, has this UUID."""
        query = select(conversations.c.id).where(conversations.c.uuid == uuid)
        return tx.connection.execute(query).first() is not None

    def said(self, tx: Write, person: int, uuid: str, client_id: str) -> tuple[ConversationRef, Posted | None] | None:
        """As `find`, and the message that the person named so, if it is there."""
        row = SAID.first(tx.connection, person=person, uuid=uuid, client=client_id)
        if row is None:
            return None
        place = ConversationRef(row.id, row.feed_id, uuid, row.title, person)
        if row.position is None:
            return place, None
        return place, Posted(row.uuid, client_id, uuid, row.position, row.revision, row.body, created=False)

    def post(self, tx: Write, place: ConversationRef, client_id: str, body: str) -> Posted:
        """Append a message of the person's own; the conversation moves to the top of its members' lists."""
        revision = self.touch(tx, place.conversation, place.feed)
        message = self._insert(tx, place, place.person, client_id, body, "sent", revision)
        return Posted(message.uuid, client_id, place.uuid, revision, revision, body, created=True)

    def add_answer(self, tx: Write, place: ConversationRef, author: int, uuid: str) -> int:
        """Append an answer that is to be written; returns its number."""
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
            created_at=moment(now),
            blocks=(),
            state_revision=revision,
            **values,
        )
        tx.keep_recent(place.feed, message)
        return message

    def set_title(self, tx: Write, place: ConversationRef, title: str) -> None:
        """Name the conversation; shows in its page and in every member's list."""
        mine = conversations.c.id == place.conversation
        tx.connection.execute(update(conversations).where(mine).values(title=title))
        tx.bump(ACCESS)  # a cached place knows the title
        self._bump_with_lists(tx, place.conversation, place.feed)

    def delete(self, tx: Write, place: ConversationRef) -> None:
        """Take the conversation away from everybody; the rows stay."""
        mine = conversations.c.id == place.conversation
        tx.connection.execute(update(conversations).where(mine).values(deleted_at=now_ms()))
        tx.bump(ACCESS)
        self._bump_with_lists(tx, place.conversation, place.feed)

    def delete_message(self, tx: Write, place: ConversationRef, uuid: str) -> bool:
        """Leave a tombstone in place of the person's own message. False: no such message of theirs."""
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
        """Something was said: the conversation moves to the top of its members' lists. Returns the feed's revision."""
        self._bump_with_lists(tx, conversation, feed)
        TOUCH.run(tx.connection, conversation=conversation, now=self._next_time(tx))
        return tx.revisions[feed]

    def _next_time(self, tx: Write) -> int:
        """Now, but after whatever was touched before: lists are in this order, also when the clock is set back."""
        if not self._touched_at:
            self._touched_at = tx.connection.execute(select(func.max(conversations.c.updated_at))).scalar_one() or 0
        self._touched_at = max(now_ms(), self._touched_at + 1)
        return self._touched_at

    def _bump_with_lists(self, tx: Write, conversation: int, feed: int) -> None:
        """The conversation changed, and its entry in every member's list."""
        tx.bump_all(BUMP_WITH_LISTS, conversation=conversation, feed=feed)
        TOUCH_ENTRIES.run(tx.connection, conversation=conversation)

    def last_message(self, tx: Write, place: ConversationRef) -> tuple[str, str] | None:
        """Author kind and state of the newest message."""
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
        created_at=moment(row.created_at),
        blocks=() if deleted else parts,
    )


def _entries(rows: Sequence[Any]) -> tuple[Entry, ...]:
    return tuple(Entry(row[0], row[1], row[2], moment(row[3]), bool(row[4])) for row in rows)
