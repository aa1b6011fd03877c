"""Conversations, their messages, and `changes`: everything newer than a cursor, in its current state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from sys import intern
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, insert, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from chatapp.bus import ACCESS
from chatapp.cache import Cache
from chatapp.store import models
from chatapp.store.database import REVISION, Database, Write, bump_statement, new_id, now_ms
from chatapp.store.models import Attachment, Conversation, Feed, Membership, Message, Person, Run
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

PAGE = 40  # messages in the first page, and in each older one
AFTER_ALL = 1 << 62  # a position after all messages
MOST_PLACES, MOST_PLACES_BYTES = 10_000, 6 << 20  # of the cache of memberships
PLACE_BYTES = 500  # of one entry, without its title
MOST_CHANGES = 200  # in one result; the next one continues from its end

# Built once: building a statement costs more than running it.
_AUTHOR = (Person.uuid.label("person_uuid"), Person.name.label("person_name"))
_MEMBER = (Membership.role, Conversation.answers)
_PLACE = (
    select(Conversation.id, Conversation.feed_id, Conversation.title, *_MEMBER)
    .join(Membership, Membership.conversation_id == Conversation.id)
    .where(
        Conversation.uuid == bindparam("uuid"),
        Conversation.deleted_at.is_(None),
        Membership.person_id == bindparam("person"),
        Membership.left_at.is_(None),
    )
)
PLACE = Prepared(_PLACE)
PLACE_WITH_AUTHOR = Prepared(_PLACE.add_columns(*_AUTHOR).join(Person, Person.id == Membership.person_id))
POSTED = Prepared(
    select(
        Conversation.id,
        Conversation.feed_id,
        Conversation.title,
        Message.uuid,
        Message.position,
        Message.revision,
        Message.body,
        *_MEMBER,
        *_AUTHOR,
    )
    .join(Membership, Membership.conversation_id == Conversation.id)
    .join(Person, Person.id == Membership.person_id)
    .outerjoin(
        Message,
        and_(
            Message.conversation_id == Conversation.id,
            Message.author_id == Membership.person_id,
            Message.client_id == bindparam("client"),
        ),
    )
    .where(
        Conversation.uuid == bindparam("uuid"),
        Conversation.deleted_at.is_(None),
        Membership.person_id == bindparam("person"),
        Membership.left_at.is_(None),
    )
)
_member_feeds = select(Person.feed_id).join(Membership).where(Membership.left_at.is_(None))
BUMP_WITH_LISTS = bump_statement(
    or_(
        Feed.id == bindparam("feed"),
        Feed.id.in_(_member_feeds.where(Membership.conversation_id == bindparam("conversation"))),
    )
)
TOUCH_ENTRIES = Prepared(
    update(Membership)
    .where(Membership.conversation_id == bindparam("conversation"), Membership.left_at.is_(None))
    .values(
        list_revision=select(Feed.revision)
        .join(Person, Person.feed_id == Feed.id)
        .where(Person.id == Membership.person_id)
        .scalar_subquery()
    )
)
TOUCH = Prepared(
    update(Conversation).where(Conversation.id == bindparam("conversation")).values(updated_at=bindparam("now"))
)
NEW = {"uuid", "conversation_id", "author_id", "client_id", "position", "revision", "state", "state_revision", "body"}
INSERT_MESSAGE = Prepared(insert(Message), sorted(NEW | {"created_at"}))
BLOCKS = (
    select(models.Block)
    .where(models.Block.message_id.in_(bindparam("ids", expanding=True)))
    .order_by(models.Block.ordinal)
)
MESSAGES = (
    select(Message, Person.kind, *_AUTHOR)
    .join(Person, Person.id == Message.author_id)
    .where(Message.conversation_id == bindparam("conversation"))
)
CHANGED = Prepared(
    MESSAGES.where(Message.revision > bindparam("cursor")).order_by(Message.revision).limit(bindparam("most"))
)
LAST_CHANGED_ANSWER = Prepared(
    MESSAGES.where(Person.kind == "assistant", Message.position <= bindparam("end"))
    .order_by(Message.revision.desc())
    .limit(1)
)
BEFORE = Prepared(
    MESSAGES.where(Message.position < bindparam("before")).order_by(Message.position.desc()).limit(bindparam("most"))
)
# Queued answers, and those stopped before they started; a started answer is a message.
WAITING = Prepared(
    select(Run.uuid, Run.revision, Run.ahead, Run.state).where(
        Run.conversation_id == bindparam("conversation"),
        or_(Run.state == "queued", Run.state == "stopped"),
        Run.message_id.is_(None),
        Run.revision > bindparam("cursor"),
    )
)
_member = aliased(Membership)
_people = select(func.count()).where(_member.conversation_id == Conversation.id, _member.left_at.is_(None))
_ENTRIES = (
    select(
        Conversation.uuid,
        Membership.list_revision,
        Conversation.title,
        Conversation.updated_at,
        or_(Conversation.deleted_at.is_not(None), Membership.left_at.is_not(None)),
        _people.scalar_subquery(),
        Conversation.answers,
    )
    .join(Membership)
    .where(Membership.person_id == bindparam("person"))
)
SHOWN_ENTRIES = _ENTRIES.where(Conversation.deleted_at.is_(None), Membership.left_at.is_(None)).order_by(
    Conversation.updated_at.desc(), Conversation.uuid.desc()
)
ENTRIES = Prepared(SHOWN_ENTRIES.limit(MOST_CHANGES))
CHANGED_ENTRIES = Prepared(
    _ENTRIES.where(Membership.list_revision > bindparam("cursor"))
    .order_by(Membership.list_revision)
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
                row = PLACE.first(connection, uuid=uuid, person=person)
                place = _ref(row, uuid, person) if row else None
            if place is not None:
                self._places.put(key, place, PLACE_BYTES + 4 * len(place.title or ""))
        return place

    def newest(self, person: int) -> str | None:
        """Return the UUID of the conversation with the newest activity."""
        query = (
            select(Conversation.uuid)
            .join(Membership)
            .where(Membership.person_id == person, Membership.left_at.is_(None))
            .where(Conversation.deleted_at.is_(None))
            .order_by(Conversation.updated_at.desc(), Conversation.id.desc())
            .limit(1)
        )
        with self.database.read() as connection:
            return connection.execute(query).scalar_one_or_none()

    def count_beyond(self, person: int, cursors: Mapping[str, int], before: int) -> int:
        """Count the messages of others that are beyond these positions, by conversation, and older than a time (ms)."""
        query = (
            select(func.count())
            .select_from(Message)
            .where(Message.author_id != person, Message.created_at < before, Message.deleted_at.is_(None))
        )
        found = 0
        for uuid, cursor in cursors.items():
            if place := self.place(person, uuid):
                its = query.where(Message.conversation_id == place.conversation, Message.position > cursor)
                with self.database.read() as connection:
                    found += connection.execute(its).scalar_one()
        return found

    def _place(self, connection: Connection, person: int, uuid: str) -> ConversationRef | None:
        row = PLACE_WITH_AUTHOR.first(connection, uuid=uuid, person=person)
        return _with_author(row, uuid, person) if row else None

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
        # Only one answer of a conversation can still change (`Runs.claim_run`): the one that changed last.
        newest = self._messages(connection, LAST_CHANGED_ANSWER, {"conversation": place.conversation, "end": end})
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

    def older_entries(self, person: int, before: EntryPlace) -> tuple[Entry, ...]:
        """Return the page of a person's list after `before`."""
        follows = tuple_(Conversation.updated_at, Conversation.uuid) < (before.updated_at, before.uuid)
        query = SHOWN_ENTRIES.where(follows).limit(MOST_CHANGES)
        with self.database.read() as connection:
            return _entries(connection.execute(query, {"person": person}).all())

    def list_feed(self, person: int) -> int:
        """Return the id of the feed of a person's list."""
        if person not in self._list_feeds:
            with self.database.read() as connection:
                query = select(Person.feed_id).where(Person.id == person)
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
            block = Block(row.ordinal, row.html, row.revision, row.steps)
            by_message.setdefault(row.message_id, []).append(block)
        return by_message

    # Changing

    def add(self, tx: Write, person: int, uuid: str) -> ConversationRef:
        """Add an empty conversation. Its feed starts at revision 1: cursor 0 always means "nothing"."""
        now = self._next_time(tx)
        feed = tx.new_feed()
        row = {"uuid": uuid, "feed_id": feed, "title": "", "created_by": person, "created_at": now}
        result = tx.connection.execute(insert(Conversation).values(**row, updated_at=now))
        conversation = new_id(result)
        tx.bump(feed)
        entry = {"conversation_id": conversation, "person_id": person, "role": "owner", "joined_at": now}
        revision = tx.bump(tx.connection.execute(select(Person.feed_id).where(Person.id == person)).scalar_one())
        tx.connection.execute(insert(Membership).values(**entry, list_revision=revision))
        return self._place(tx.connection, person, uuid) or ConversationRef(conversation, feed, uuid, "", person)

    def empty(self, tx: Write, person: int) -> ConversationRef | None:
        """Return the newest conversation of the person's that has no title, no message and nobody else, or None."""
        query = (
            select(Conversation.uuid)
            .join(Membership)
            .where(
                Conversation.created_by == person,
                Conversation.title == "",
                Conversation.deleted_at.is_(None),
                Membership.person_id == person,
                Membership.left_at.is_(None),
                ~exists().where(Message.conversation_id == Conversation.id),
                ~exists().where(_member.conversation_id == Conversation.id, _member.person_id != person),
            )
            .order_by(Conversation.updated_at.desc())
            .limit(1)
        )
        uuid = tx.connection.execute(query).scalar_one_or_none()
        return self._place(tx.connection, person, uuid) if uuid else None

    def find(self, tx: Write, person: int, uuid: str) -> ConversationRef | None:
        """Return the conversation as `place` does, in a write transaction."""
        return self._place(tx.connection, person, uuid)

    def is_taken(self, tx: Write, uuid: str) -> bool:
        """Return True if any conversation, also a deleted or a foreign one, has this UUID."""
        query = select(Conversation.id).where(Conversation.uuid == uuid)
        return tx.connection.execute(query).first() is not None

    def posted(self, tx: Write, person: int, uuid: str, client_id: str) -> tuple[ConversationRef, Posted | None] | None:
        """Return the conversation as `find` does, and the person's message with this client id, or None."""
        row = POSTED.first(tx.connection, person=person, uuid=uuid, client=client_id)
        if row is None:
            return None
        place = _with_author(row, uuid, person)
        if row.position is None:
            return place, None
        return place, Posted(row.uuid, client_id, uuid, row.position, row.revision, row.body, created=False)

    def post(self, tx: Write, place: ConversationRef, client_id: str, body: str) -> Posted:
        """Append the person's message, and move the conversation to the top of its members' lists."""
        revision = self.touch(tx, place.conversation, place.feed)
        message = self._insert(tx, place, place.person, client_id, body, "sent", revision)
        return Posted(message.uuid, client_id, place.uuid, revision, revision, body, created=True)

    def last_own(self, connection: Connection, place: ConversationRef) -> tuple[int, str] | None:
        """Return position and text of the person's last message, or None if somebody else wrote after it."""
        query = (
            select(Message.position, Message.body, Message.author_id)
            .join(Person, Person.id == Message.author_id)
            .where(
                Message.conversation_id == place.conversation,
                Person.kind != "assistant",
                Message.deleted_at.is_(None),
                Message.superseded_by.is_(None),
            )
            .order_by(Message.position.desc())
            .limit(1)
        )
        row = connection.execute(query).first()
        return (row.position, row.body) if row is not None and row.author_id == place.person else None

    def fold(self, tx: Write, place: ConversationRef, start: int, end: int, by: str) -> None:
        """Fold the messages from position `start` to before `end`: the message `by` (its UUID) takes their place."""
        new = select(Message.id).where(Message.uuid == by).scalar_subquery()
        which = (
            Message.conversation_id == place.conversation,
            Message.position >= start,
            Message.position < end,
            Message.superseded_by.is_(None),
        )
        for message in (
            tx.connection.execute(select(Message.id).where(*which).order_by(Message.position)).scalars().all()
        ):
            revision = tx.bump(place.feed)
            change = {"superseded_by": new, "revision": revision, "state_revision": revision}
            tx.connection.execute(update(Message).where(Message.id == message).values(**change))

    def add_answer(self, tx: Write, place: ConversationRef, author: int, uuid: str) -> int:
        """Append a running, empty answer. Return its id."""
        return self._insert(tx, place, author, uuid, "", "running", tx.bump(place.feed)).id

    def add_finished(
        self, tx: Write, place: ConversationRef, author: int, uuid: str, body: str, html: Sequence[str]
    ) -> None:
        """Append a message of the assistant that answers nobody, as Markdown and as its blocks."""
        revision = self.touch(tx, place.conversation, place.feed)
        blocks = tuple(Block(index, text, revision) for index, text in enumerate(html))
        message = self._insert(tx, place, author, uuid, body, "completed", revision, blocks)
        common = {"message_id": message.id, "revision": revision}
        tx.connection.execute(
            insert(models.Block), [{**common, "ordinal": one.index, "html": one.html} for one in blocks]
        )

    def has_message(self, tx: Write, place: ConversationRef, author: int, client_id: str) -> bool:
        """Return True if the author's message with this client id is there."""
        query = select(Message.id).where(
            Message.conversation_id == place.conversation, Message.author_id == author, Message.client_id == client_id
        )
        return tx.connection.execute(query).first() is not None

    def _insert(
        self,
        tx: Write,
        place: ConversationRef,
        author: int,
        client_id: str,
        body: str,
        state: str,
        revision: int,
        blocks: tuple[Block, ...] = (),
    ) -> ChangedMessage:
        now, uuid, is_own = now_ms(), str(uuid4()), author == place.person
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
            author="user" if is_own else "assistant",
            author_id=place.person_uuid if is_own else "",
            author_name=place.person_name if is_own else "",
            error=None,
            deleted=False,
            edited=False,
            created_at=utc_datetime(now),
            blocks=blocks,
            state_revision=revision,
            **values,
        )
        tx.keep_recent(place.feed, message)
        return message

    def set_title(self, tx: Write, place: ConversationRef, title: str) -> None:
        """Set the title, also in every member's list."""
        is_this = Conversation.id == place.conversation
        tx.connection.execute(update(Conversation).where(is_this).values(title=title))
        tx.bump(ACCESS)  # the title is in the cache of memberships
        self.bump_with_lists(tx, place)

    def delete(self, tx: Write, place: ConversationRef) -> None:
        """Mark the conversation as deleted for all members; its rows stay, but for its files."""
        messages = select(Message.id).where(Message.conversation_id == place.conversation)
        tx.connection.execute(delete(Attachment).where(Attachment.message_id.in_(messages)))
        is_this = Conversation.id == place.conversation
        tx.connection.execute(update(Conversation).where(is_this).values(deleted_at=now_ms()))
        tx.bump(ACCESS)
        self.bump_with_lists(tx, place)

    def delete_message(self, tx: Write, place: ConversationRef, uuid: str) -> bool:
        """Turn the person's own message into a tombstone. Return False if there is none."""
        own = and_(
            Message.conversation_id == place.conversation,
            Message.uuid == uuid,
            Message.author_id == place.person,
        )
        row = tx.connection.execute(select(Message.id, Message.deleted_at).where(own)).first()
        if row is None:
            return False
        if row.deleted_at is None:
            revision = tx.bump(place.feed)
            change = {"revision": revision, "state_revision": revision, "deleted_at": now_ms()}
            tx.connection.execute(update(Message).where(Message.id == row.id).values(**change))
            tx.connection.execute(delete(Attachment).where(Attachment.message_id == row.id))
        return True

    def touch(self, tx: Write, conversation: int, feed: int) -> int:
        """Move the conversation to the top of its members' lists. Return the feed's new revision."""
        self._bump_with_lists(tx, conversation, feed)
        TOUCH.run(tx.connection, conversation=conversation, now=self._next_time(tx))
        return tx.revisions[feed]

    def _next_time(self, tx: Write) -> int:
        """Return a time after every `updated_at` (the order of lists), even if the clock was set back."""
        if not self._touched_at:
            self._touched_at = tx.connection.execute(select(func.max(Conversation.updated_at))).scalar_one() or 0
        self._touched_at = max(now_ms(), self._touched_at + 1)
        return self._touched_at

    def bump_with_lists(self, tx: Write, place: ConversationRef) -> None:
        """Take the next revision of the conversation, and of its members' lists, where its entry changes, too."""
        self._bump_with_lists(tx, place.conversation, place.feed)

    def _bump_with_lists(self, tx: Write, conversation: int, feed: int) -> None:
        tx.bump_all(BUMP_WITH_LISTS, conversation=conversation, feed=feed)
        TOUCH_ENTRIES.run(tx.connection, conversation=conversation)

    def last_message(self, tx: Write, place: ConversationRef) -> tuple[str, str] | None:
        """Return author kind and state of the newest message, or None."""
        query = (
            select(Person.kind, Message.state)
            .join(Person, Person.id == Message.author_id)
            .where(Message.conversation_id == place.conversation)
            .order_by(Message.position.desc())
            .limit(1)
        )
        row = tx.connection.execute(query).first()
        return (row[0], row[1]) if row else None


def _ref(row: Any, uuid: str, person: int) -> ConversationRef:
    """Return the conversation; equal words share their memory: thousands are kept."""
    return ConversationRef(row.id, row.feed_id, uuid, row.title, person, intern(row.role), intern(row.answers))


def _with_author(row: Any, uuid: str, person: int) -> ConversationRef:
    member = (row.role, row.answers, row.person_uuid, row.person_name)
    return ConversationRef(row.id, row.feed_id, uuid, row.title, person, *member)


def _message(row: Any, parts: tuple[Block, ...]) -> ChangedMessage:
    deleted, is_answer = row.deleted_at is not None, row.kind == "assistant"
    return ChangedMessage(
        id=row.id,
        uuid=row.uuid,
        client_id=row.client_id,
        position=row.position,
        revision=row.revision,
        author="assistant" if is_answer else "user",
        author_id="" if is_answer else row.person_uuid,
        author_name="" if is_answer else row.person_name,
        state=row.state,
        state_revision=row.state_revision,
        body="" if deleted else row.body,
        error=row.error,
        deleted=deleted,
        edited=row.edited_at is not None,
        created_at=utc_datetime(row.created_at),
        blocks=() if deleted else parts,
        folded=row.superseded_by is not None,
        phase=row.phase or "",
        figures=json.loads(row.figures) if row.figures and not deleted else {},
    )


def _entries(rows: Sequence[Any]) -> tuple[Entry, ...]:
    return tuple(Entry(row[0], row[1], row[2], utc_datetime(row[3]), bool(row[4]), row[5], row[6]) for row in rows)
