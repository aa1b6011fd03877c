"""Deletion of a person's data in small transactions, which block nobody and go on after a restart.

Their conversations, messages and answers become tombstones without text; memory of networks, connection events,
addresses and devices go. Rows that others refer to stay, without content. A conversation that they shared goes to the
next member, without their messages.
"""

import logging
import time

from sqlalchemy import Select, delete, exists, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from chatapp.store import models, sqlite
from chatapp.store.audit import BY_SCHEDULE
from chatapp.store.conversations import Conversations
from chatapp.store.database import Database, StorageUnavailable, Write, now_ms
from chatapp.store.events import Events
from chatapp.store.members import Members
from chatapp.store.models import Attachment, AuthSession, Conversation, Membership, Message, NetworkMemory, Person, Run
from chatapp.store.records import ConversationRef
from chatapp.store.runs import Runs

SLICE = 100  # conversations or messages in one transaction
PAUSE_S = 0.02  # between two transactions
WAIT_S = 1.0  # for a running answer to end
MOST_WAITS = 30
EVENTS_SCANNED = 5000  # in one transaction

log = logging.getLogger("chatapp.erasure")


class Erasure:
    """Removes the data of deleted people."""

    def __init__(
        self, database: Database, conversations: Conversations, members: Members, runs: Runs, events: Events
    ) -> None:
        self._database = database
        self._conversations = conversations
        self._members = members
        self._runs = runs
        self._events = events

    def run(self) -> None:
        """Remove what is left of all deleted people. Errors are logged: the next call goes on."""
        try:
            for person, uuid in self._pending():
                self._erase(person, uuid)
        except (SQLAlchemyError, sqlite.Error, StorageUnavailable) as error:
            log.warning("deleted people's data could not be removed; the next try is in 10 minutes: %s", error)

    def _pending(self) -> list[tuple[int, str]]:
        query = select(Person.id, Person.uuid).where(Person.deleted_at > 0, Person.erased_at.is_(None))
        with self._database.read() as connection:
            return [(row.id, row.uuid) for row in connection.execute(query)]

    def _erase(self, person: int, uuid: str) -> None:
        self._events.forget(uuid, EVENTS_SCANNED, PAUSE_S)
        while self._leave_conversations(person):
            time.sleep(PAUSE_S)
        while self._delete_conversations(person):
            time.sleep(PAUSE_S)
        waits = 0
        while self._empty_messages(person):
            time.sleep(PAUSE_S)
        while self._has_running(person):  # the last words of its answer would come after the deletion
            waits += 1
            if waits > MOST_WAITS:
                return
            time.sleep(WAIT_S)
        while self._empty_messages(person):
            time.sleep(PAUSE_S)
        with self._database.write() as tx:
            self._finish(tx, person)

    def _leave_conversations(self, person: int) -> bool:
        """End some of the person's memberships in shared conversations. Return False if none is left."""
        other = aliased(Membership)
        has_others = exists().where(
            other.conversation_id == Membership.conversation_id, other.person_id != person, other.left_at.is_(None)
        )
        query = (
            select(Conversation.id, Conversation.feed_id, Conversation.uuid, Conversation.created_by, Membership.role)
            .join(Membership, Membership.conversation_id == Conversation.id)
            .where(Membership.person_id == person, Membership.left_at.is_(None), has_others)
            .where(Conversation.deleted_at.is_(None))
            .limit(SLICE)
        )
        with self._database.write() as tx:
            found = tx.connection.execute(query).all()
            for row in found:
                place = ConversationRef(row.id, row.feed_id, row.uuid, "", person)
                if row.role == "owner" or row.created_by == person:
                    self._conversations.set_title(tx, place, "")  # it is their first words, or what they called it
                if row.role == "owner":
                    self._members.hand_over(tx, place, BY_SCHEDULE)
                self._members.remove(tx, place, person)
        return bool(found)

    def _delete_conversations(self, person: int) -> bool:
        """Delete some of the person's own conversations, and stop their answers. Return False if none is left."""
        query = (
            select(Conversation.id, Conversation.feed_id, Conversation.uuid)
            .where(Conversation.id.in_(_owned(person)))
            .where(or_(Conversation.deleted_at.is_(None), Conversation.title != ""))
            .limit(SLICE)
        )
        with self._database.write() as tx:
            found = tx.connection.execute(query).all()
            for row in found:
                place = ConversationRef(row.id, row.feed_id, row.uuid, "", person)
                self._runs.stop_all(tx, place)
                self._conversations.set_title(tx, place, "")
                self._conversations.delete(tx, place)
        return bool(found)

    def _empty_messages(self, person: int) -> bool:
        """Empty some messages in their conversations, and their own in others. Return False if none is left."""
        own = Message.conversation_id.in_(_owned(person))
        elsewhere = Message.conversation_id.in_(_memberships(person)) & (Message.author_id == person)
        full = or_(Message.deleted_at.is_(None), Message.body != "", Message.error.is_not(None))
        with self._database.write() as tx:
            for which in (own, elsewhere):
                columns = select(Message.id, Message.conversation_id, Conversation.feed_id)
                query = columns.join(Conversation, Conversation.id == Message.conversation_id).where(which, full)
                found = tx.connection.execute(query.limit(SLICE)).all()
                for row in found:
                    self._empty(tx, row.id, tx.bump(row.feed_id))
                if found:
                    return True
        return False

    def _empty(self, tx: Write, message: int, revision: int) -> None:
        values = {"body": "", "error": None, "revision": revision, "state_revision": revision}
        query = update(Message).where(Message.id == message)
        tx.connection.execute(query.values(**values, deleted_at=func.coalesce(Message.deleted_at, now_ms())))
        tx.connection.execute(delete(models.Block).where(models.Block.message_id == message))

    def _has_running(self, person: int) -> bool:
        live = or_(Run.state == "running", Run.state == "queued")
        query = select(Run.id).where(Run.conversation_id.in_(_owned(person)), live).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def _finish(self, tx: Write, person: int) -> None:
        """Remove the rest, and note that nothing is left."""
        for query in (
            delete(NetworkMemory).where(NetworkMemory.person_id == person),
            delete(Attachment).where(Attachment.person_id == person),
            update(AuthSession).where(AuthSession.person_id == person).values(address="", user_agent=""),
            update(Run).where(Run.conversation_id.in_(_owned(person)), Run.error.is_not(None)).values(error=None),
            update(Person).where(Person.id == person).values(erased_at=now_ms()),
        ):
            tx.connection.execute(query)


def _memberships(person: int) -> Select[int]:
    return select(Membership.conversation_id).where(Membership.person_id == person)


def _owned(person: int) -> Select[int]:
    return _memberships(person).where(Membership.role == "owner")
