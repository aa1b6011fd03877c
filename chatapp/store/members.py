"""The people of a conversation: who they are, and how they join and leave it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, insert, select, update

from chatapp.bus import ACCESS
from chatapp.store.audit import Actor, record
from chatapp.store.conversations import Conversations
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.models import Conversation, Membership, Person
from chatapp.store.records import ConversationRef

OWNER, MEMBER = "owner", "member"
ADDRESSED = re.compile(r"(?<![\w@.])@assistant(?![\w-]|\.\w)", re.IGNORECASE)
MEMBERS = (
    select(Person.id, Person.uuid, Person.name, Person.email, Membership.role, Person.disabled_at)
    .join(Membership, Membership.person_id == Person.id)
    .where(Membership.left_at.is_(None), Person.deleted_at.is_(None))
    .order_by(Membership.role.desc(), Membership.joined_at, Person.id)
)


@dataclass(frozen=True, slots=True)
class Member:
    """A person in a conversation."""

    id: int
    uuid: str
    name: str
    email: str
    role: str  # owner, member
    is_disabled: bool = False


class Members:
    """Queries about the people of a conversation."""

    def __init__(self, database: Database, conversations: Conversations) -> None:
        self._database = database
        self._conversations = conversations

    def list(self, conversation: int) -> tuple[Member, ...]:
        """Return the people of a conversation: the owner, then the others by the time at which they joined."""
        with self._database.read() as connection:
            return _members(connection, conversation)

    def list_in(self, tx: Write, conversation: int) -> tuple[Member, ...]:
        """Return the people as `list` does, in a write transaction."""
        return _members(tx.connection, conversation)

    def add(self, tx: Write, place: ConversationRef, person: int) -> None:
        """Add a person who is no member, or has left."""
        values = {"role": MEMBER, "joined_at": now_ms(), "left_at": None}
        if not tx.connection.execute(update(Membership).where(*_entry(place, person)).values(**values)).rowcount:
            key = {"conversation_id": place.conversation, "person_id": person, "list_revision": 0}
            tx.connection.execute(insert(Membership).values(**key, **values))
        self._announce(tx, place)

    def remove(self, tx: Write, place: ConversationRef, person: int) -> None:
        """End a person's membership: from the commit on they read and write nothing there."""
        feed = select(Person.feed_id).where(Person.id == person)
        revision = tx.bump(tx.connection.execute(feed).scalar_one())  # the entry leaves their list
        ended = update(Membership).where(*_entry(place, person))
        tx.connection.execute(ended.values(left_at=now_ms(), list_revision=revision))
        self._announce(tx, place)

    def hand_over(self, tx: Write, place: ConversationRef, actor: Actor) -> None:
        """Make another member the owner: who joined first, of those who can sign in if there are any."""
        others = [each for each in self.list_in(tx, place.conversation) if each.id != place.person]
        if not others:
            return
        person = min(others, key=lambda each: each.is_disabled).id
        of_this = Membership.conversation_id == place.conversation
        tx.connection.execute(update(Membership).where(of_this, Membership.role == OWNER).values(role=MEMBER))
        tx.connection.execute(update(Membership).where(*_entry(place, person)).values(role=OWNER))
        tx.bump(ACCESS)
        record(tx, "owner", actor, person, detail=place.uuid)

    def set_answers(self, tx: Write, place: ConversationRef, answers: str) -> None:
        """Set when the assistant answers: always, addressed."""
        this = Conversation.id == place.conversation
        tx.connection.execute(update(Conversation).where(this).values(answers=answers))
        self._announce(tx, place)

    def wishes(self, conversation: int) -> tuple[str, str]:
        """Return model and instructions."""
        with self._database.read() as connection:
            query = select(Conversation.model, Conversation.instructions).where(Conversation.id == conversation)
            model, instructions = connection.execute(query).one()
        return model, instructions

    def set_wishes(self, tx: Write, place: ConversationRef, model: str, instructions: str) -> None:
        """Set model and instructions."""
        this = Conversation.id == place.conversation
        tx.connection.execute(update(Conversation).where(this).values(model=model, instructions=instructions))

    def _announce(self, tx: Write, place: ConversationRef) -> None:
        tx.bump(ACCESS)  # workers have memberships in memory
        self._conversations.bump_with_lists(tx, place)


def _entry(place: ConversationRef, person: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Membership.conversation_id == place.conversation, Membership.person_id == person


def _members(connection: Connection, conversation: int) -> tuple[Member, ...]:
    rows = connection.execute(MEMBERS.where(Membership.conversation_id == conversation)).all()
    return tuple(
        Member(row.id, row.uuid, row.name, row.email or "", row.role, row.disabled_at is not None) for row in rows
    )
