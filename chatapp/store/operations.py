"""The Operations conversation: alerts and incidents as messages of the assistant, for all operators.

It is made with the first message, and again if somebody deleted it. Its people are the operators, kept in step before
each message.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy import delete, insert, select

from chatapp.store.audit import BY_SCHEDULE
from chatapp.store.conversations import Conversations
from chatapp.store.database import Database, Write
from chatapp.store.members import Members
from chatapp.store.models import Conversation, InstanceValue, Membership, Person
from chatapp.store.records import ConversationRef

NAME = "operations"  # of the row of `instance` with its UUID
MOST_OPERATORS = 50
OPERATORS = (
    select(Person.id)
    .where(Person.email > "", Person.kind == "person", Person.is_operator, Person.disabled_at.is_(None))
    .order_by(Person.id)
    .limit(MOST_OPERATORS)
)


class Operations:
    """Queries about the Operations conversation."""

    def __init__(self, database: Database, conversations: Conversations, members: Members) -> None:
        self._database = database
        self._conversations, self._members = conversations, members

    def post(self, uuid: str, title: str, body: str, html: Sequence[str]) -> str | None:
        """Append a message, once for each `uuid`. Return the conversation's UUID; None if there is no operator."""
        with self._database.write() as tx:
            operators = list(tx.connection.execute(OPERATORS).scalars())
            if not operators:
                return None
            place = self._find(tx) or self._make(tx, operators[0], title)
            self._keep_people(tx, place, operators)
            author = tx.connection.execute(select(Person.id).where(Person.kind == "assistant")).scalar_one()
            if not self._conversations.has_message(tx, place, author, uuid):
                self._conversations.add_finished(tx, place, author, uuid, body, html)
        return place.uuid

    def _find(self, tx: Write) -> ConversationRef | None:
        query = (
            select(Conversation, Membership.person_id)
            .join(InstanceValue, InstanceValue.value == Conversation.uuid)
            .join(Membership, Membership.conversation_id == Conversation.id)
            .where(InstanceValue.name == NAME, Conversation.deleted_at.is_(None))
            .where(Membership.role == "owner", Membership.left_at.is_(None))
        )
        row = tx.connection.execute(query).first()
        return ConversationRef(row.id, row.feed_id, row.uuid, row.title, row.person_id) if row else None

    def _make(self, tx: Write, owner: int, title: str) -> ConversationRef:
        uuid = str(uuid4())
        place = self._conversations.add(tx, owner, uuid)
        self._conversations.set_title(tx, place, title)
        self._members.set_answers(tx, place, "addressed")  # else each word about an alert would be answered
        tx.connection.execute(delete(InstanceValue).where(InstanceValue.name == NAME))
        tx.connection.execute(insert(InstanceValue).values(name=NAME, value=uuid))
        return place

    def _keep_people(self, tx: Write, place: ConversationRef, operators: Sequence[int]) -> None:
        """Add operators, and remove all others; an owner among those hands over."""
        known = [member.id for member in self._members.list_in(tx, place.conversation)]
        for person in operators:
            if person not in known:
                self._members.add(tx, place, person)
        gone = [person for person in known if person not in operators]
        for person in sorted(gone, key=lambda one: one == place.person):  # the owner last
            if person == place.person:
                self._members.hand_over(tx, place, BY_SCHEDULE)
            self._members.remove(tx, place, person)
