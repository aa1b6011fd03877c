"""Durable answers: a run is queued with the question, claimed by a worker, written in pieces, ended once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import Connection, Select, and_, bindparam, exists, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from chatapp.bus import RUNS
from chatapp.store import models
from chatapp.store.attachments import MARK, File, files_of
from chatapp.store.conversations import AFTER_ALL, Conversations
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.members import ADDRESSED
from chatapp.store.models import Conversation, Membership, Message, Person, Run
from chatapp.store.prepared import Prepared, Value
from chatapp.store.records import ConversationRef, Waiting
from chatapp.store.steps import add_step

MOST_AT_ONCE = 16  # running answers of a worker; more are queued
MOST_RECOUNTED = 200  # the first of the queue: those behind them are updated as they move up
MOST_TURNS = 20  # messages in the history of an assistant
FAILING, MOST_LOOKED_AT = 2, 20  # answers in a row that mean trouble; of so many newest ones
GO_ON = "Go on exactly where your answer stopped, without repeating it."  # asked in the person's name
AGAIN = "+"  # suffix of the lease of a resumed run: it is resumed only once

IsGone = Callable[[int, str], bool]  # (run id, lease): True if its worker is gone
Verdict = Literal["go", "stop", "lost"]


@dataclass(frozen=True)
class Turn:
    """One message of the history of an assistant."""

    author: Literal["user", "assistant"]
    body: str
    name: str = ""  # of the person, where several people are or were in the conversation
    is_asked: bool = True  # False: by the conversation's rule the assistant does not answer it
    files: tuple[File, ...] = ()
    person: int = 0  # of a user's: their id


@dataclass(frozen=True)
class ClaimedRun:
    """A running answer, to be written by the holder of the lease."""

    id: int
    conversation_id: int
    message_id: int
    lease: str
    history: tuple[Turn, ...]
    model: str = ""  # of the conversation; "": the operator's
    instructions: str = ""
    asked_by: int = 0  # a person's id: who asked last, or wanted another answer


_other = aliased(Run)
_live = or_(Run.state == "queued", Run.state == "running")
CLAIMABLE = (
    select(Run)
    .where(
        Run.state == "queued", ~exists().where(_other.conversation_id == Run.conversation_id, _other.state == "running")
    )
    .order_by(Run.id)
    .limit(1)
)
RUNNING = select(Run, Message.position).join(Message, Message.id == Run.message_id).where(Run.state == "running")

# Of a post: number of live runs, and of those in this conversation; and its queued run.
BEFORE = Prepared(
    select(func.count(), func.coalesce(func.sum(Run.conversation_id == bindparam("conversation")), 0)).where(_live)
)
WAITING = Prepared(select(Run.id).where(Run.conversation_id == bindparam("conversation"), Run.state == "queued"))
QUEUE = Prepared(insert(Run), ("uuid", "conversation_id", "state", "created_at", "revision", "ahead", "asked_by"))
# Of each piece of an answer: 16 are written at once, several times a second.
VERDICT = Prepared(select(Run.state, Run.lease, Run.stop_asked).where(Run.id == bindparam("run")))
FEED = Prepared(select(Conversation.feed_id).where(Conversation.id == bindparam("conversation")))
GROW = Prepared(
    update(Message).where(Message.id == bindparam("message")).values(body=bindparam("text"), revision=bindparam("at"))
)
MOVE = Prepared(update(Message).where(Message.id == bindparam("message")).values(revision=bindparam("at")))
STEP = Prepared(
    update(Message)
    .where(Message.id == bindparam("message"))
    .values(phase=bindparam("step"), revision=bindparam("at"), state_revision=bindparam("state_at"))
)
_block = and_(models.Block.message_id == bindparam("message"), models.Block.ordinal == bindparam("index"))
BLOCK = Prepared(select(models.Block).where(_block))
ADD_BLOCK = Prepared(insert(models.Block), ("message_id", "ordinal", "revision", "html"))
CHANGE_BLOCK = Prepared(
    update(models.Block).where(_block).values(revision=bindparam("at"), html=bindparam("text"), steps=bindparam("by"))
)


class Runs:
    """Queries about runs."""

    def __init__(self, database: Database, conversations: Conversations, workers: int = 1) -> None:
        self.database = database
        self._capacity = MOST_AT_ONCE * workers
        self._conversations = conversations
        self._assistant: int | None = None  # its id, which never changes

    def queue(self, tx: Write, place: ConversationRef, goes_on: bool = False) -> None:
        """Queue an answer, unless one is queued: a run answers everything posted before it starts. `goes_on`: it
        continues the answer before it."""
        if WAITING.first(tx.connection, conversation=place.conversation) is None:
            conversation, feed = place.conversation, place.feed
            revision = tx.revisions[feed] if feed in tx.revisions else tx.bump(feed)
            total, own = BEFORE.run(tx.connection, conversation=conversation).fetchone()
            waiting = Waiting(str(uuid4()), revision, total if total >= self._capacity else own)
            values: dict[str, Value] = {"revision": revision, "ahead": waiting.ahead, "created_at": now_ms()}
            QUEUE.run(
                tx.connection,
                uuid=waiting.uuid,
                conversation_id=conversation,
                state="queued",
                asked_by=place.person,
                **values,
            )
            if goes_on:
                tx.connection.execute(update(Run).where(Run.uuid == waiting.uuid).values(goes_on=True))
            tx.keep_waiting(feed, waiting)
        else:  # one that waits answers this question, too
            which = Run.conversation_id == place.conversation, Run.state == "queued"
            tx.connection.execute(update(Run).where(*which).values(asked_by=place.person))
        tx.bump(RUNS)

    def recount(self) -> None:
        """Update `ahead` of queued answers. Raises StorageUnavailable."""
        with self.database.read() as connection:
            if not self._outdated_counts(connection):
                return
        with self.database.write() as tx:
            for row, ahead in self._outdated_counts(tx.connection):
                feed = self._feed(tx, row.conversation_id)
                revision = tx.bump(feed)
                tx.connection.execute(update(Run).where(Run.id == row.id).values(ahead=ahead, revision=revision))
                tx.keep_waiting(feed, Waiting(row.uuid, revision, ahead))

    def _outdated_counts(self, connection: Connection) -> list[tuple[Any, int]]:
        """Return the queued runs with an outdated `ahead`, and their new one."""
        live = connection.execute(select(Run).where(_live).order_by(Run.id)).all()
        running = [row for row in live if row.state == "running"]
        queued = [row for row in live if row.state == "queued"]
        busy = {row.conversation_id for row in running}
        found = []
        for before, row in enumerate(queued[:MOST_RECOUNTED], len(running)):
            ahead = before if before >= self._capacity else int(row.conversation_id in busy)
            if ahead != row.ahead:
                found.append((row, ahead))
        return found

    def is_failing(self, within_ms: int) -> bool:
        """Return True if the last answers that ended within this time, two at least, have failed."""
        since = now_ms() - within_ms
        with self.database.read() as connection:
            newest = select(func.max(Run.id) - MOST_LOOKED_AT).scalar_subquery()
            rows = connection.execute(select(Run.state, Run.error, Run.ended_at).where(Run.id > newest)).all()
        # One that ended with an error although it was completed is made of quotes: its provider failed.
        ended = sorted(
            (row.ended_at, row.state == "failed" or (row.state == "completed" and row.error is not None))
            for row in rows
            if (row.ended_at or 0) > since
        )
        return len(ended) >= FAILING and all(has_failed for _at, has_failed in ended[-FAILING:])

    def count_running(self) -> int:
        """Return the number of answers that are being written."""
        with self.database.read() as connection:
            return int(connection.execute(select(func.count()).where(Run.state == "running")).scalar_one())

    def is_answering(self, conversation: int) -> bool:
        """Return True if an answer is queued or running."""
        with self.database.read() as connection:
            query = select(exists().where(Run.conversation_id == conversation, _live))
            return bool(connection.execute(query).scalar_one())

    def claim_run(self, lease: str) -> ClaimedRun | None:
        """Start the oldest queued run of a conversation without a running one, or return None. `lease`: the name of the
        worker. Raises StorageUnavailable."""
        with self.database.read() as connection:
            if connection.execute(CLAIMABLE).first() is None:
                return None
        with self.database.write() as tx:
            row = tx.connection.execute(CLAIMABLE).first()
            return self._claim(tx, row, lease) if row is not None else None

    def write_answer(
        self, run: ClaimedRun, body: str | None, changed: Sequence[tuple[int, str]], phase: str | None = None
    ) -> Verdict:
        """Store changed blocks, the text so far (None: later) and the phase (None: unchanged).

        Return "stop" if a stop was requested, "lost" if another worker holds the run. Raises StorageUnavailable."""
        if not changed and phase is None:
            with self.database.read() as connection:
                return self._verdict(connection, run)
        with self.database.write() as tx:
            verdict = self._verdict(tx.connection, run)
            if verdict == "go":
                revision = self._bump(tx, run.conversation_id)
                self._write_blocks(tx, run, revision, changed)
                if body is None:
                    MOVE.run(tx.connection, message=run.message_id, at=revision)
                else:
                    GROW.run(tx.connection, message=run.message_id, text=body, at=revision)
                if phase is not None:
                    STEP.run(tx.connection, message=run.message_id, step=phase, at=revision, state_at=revision)
        return verdict

    def end_run(
        self,
        run: ClaimedRun,
        state: str,
        body: str,
        changed: Sequence[tuple[int, str]],
        error: str | None,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        """End a run with its final text and the figures of its usage, unless the lease is lost. Raises
        StorageUnavailable."""
        with self.database.write() as tx:
            if self._verdict(tx.connection, run) == "lost":
                return
            revision = self._end(tx, run.id, run.conversation_id, run.message_id, state, error, figures)
            self._write_blocks(tx, run, revision, changed)
            GROW.run(tx.connection, message=run.message_id, text=body, at=revision)

    def stop(self, tx: Write, place: ConversationRef, answer: str = "") -> None:
        """Stop an answer: the given one, else the running one, else the queued one."""
        found = {row.state: row.id for row in tx.connection.execute(_live_runs(place, answer))}
        if "running" in found:
            tx.connection.execute(update(Run).where(Run.id == found["running"]).values(stop_asked=True))
        elif "queued" in found:
            self._cancel(tx, found["queued"], place)
        tx.bump(RUNS)

    def stop_all(self, tx: Write, place: ConversationRef) -> None:
        """Stop every answer of a deleted conversation."""
        for row in tx.connection.execute(_live_runs(place)).all():
            if row.state == "running":
                tx.connection.execute(update(Run).where(Run.id == row.id).values(stop_asked=True))
            else:
                self._cancel(tx, row.id, place)
        tx.bump(RUNS)

    def _cancel(self, tx: Write, run: int, place: ConversationRef) -> None:
        """End a queued run."""
        revision = tx.bump(place.feed)
        values = {"state": "stopped", "ended_at": now_ms(), "revision": revision}
        ended = update(Run).where(Run.id == run).values(**values).returning(Run.uuid)
        uuid = tx.connection.execute(ended).scalar_one()
        tx.keep_waiting(place.feed, Waiting(uuid, revision, 0, is_over=True))

    def reap_runs(self, is_gone: IsGone, by: str, room: int) -> tuple[int, list[ClaimedRun]]:
        """End or take over the runs of dead workers. Return the number ended, and up to `room` taken over by `by`.

        A run without text is taken over, once; any other is interrupted, and its text stays.
        """
        with self.database.read() as connection:
            gone = [row for row in connection.execute(RUNNING) if is_gone(row.id, row.lease)]
        if not gone:
            return 0, []
        resumed: list[ClaimedRun] = []
        with self.database.write() as tx:
            now = {row.id: row for row in tx.connection.execute(RUNNING)}
            still = [now[row.id] for row in gone if row.id in now and now[row.id].lease == row.lease]
            for row in (resumable := [row for row in still if self._is_resumable(tx, row)])[:room]:
                resumed.append(self._take_over(tx, row, by + AGAIN))
            over = [row for row in still if row not in resumable]
            for row in over:
                state = "stopped" if row.stop_asked else "interrupted"
                self._end(tx, row.id, row.conversation_id, row.message_id, state, None)
        return len(over), resumed

    def _is_resumable(self, tx: Write, row: Any) -> bool:
        """Return True if nothing of the run was shown, and it was not resumed before."""
        if row.stop_asked or row.lease.endswith(AGAIN):
            return False
        is_shown = exists().where(models.Block.message_id == row.message_id)
        query = select(Message.body != "", is_shown).where(Message.id == row.message_id)
        return not any(tx.connection.execute(query).one())

    def _take_over(self, tx: Write, row: Any, lease: str) -> ClaimedRun:
        tx.connection.execute(update(Run).where(Run.id == row.id).values(lease=lease))
        return self._claimed(tx, row, row.message_id, lease, row.position)  # later messages have another run

    def _claim(self, tx: Write, row: Any, lease: str) -> ClaimedRun:
        place = self._conversation(tx, row.conversation_id)
        if self._assistant is None:
            self._assistant = tx.connection.execute(select(Person.id).where(Person.kind == "assistant")).scalar_one()
        assistant = self._assistant
        claimed = self._claimed(tx, row, 0, lease, AFTER_ALL)
        message = self._conversations.add_answer(tx, place, assistant, row.uuid)
        started = {"state": "running", "lease": lease, "message_id": message, "started_at": now_ms()}
        tx.connection.execute(update(Run).where(Run.id == row.id).values(**started))
        return replace(claimed, message_id=message)

    def _claimed(self, tx: Write, row: Any, message: int, lease: str, before: int) -> ClaimedRun:
        """Return a run with all that its writer needs. `before`: the position at which its history ends."""
        turns = self._history(tx, row.conversation_id, before)
        if row.goes_on and turns and turns[-1].author == "assistant":
            turns = (*turns, Turn("user", GO_ON))
        wishes = tx.connection.execute(
            select(Conversation.model, Conversation.instructions).where(Conversation.id == row.conversation_id)
        ).one()
        return ClaimedRun(
            row.id, row.conversation_id, message, lease, turns, wishes.model, wishes.instructions, row.asked_by or 0
        )

    def _verdict(self, connection: Connection, run: ClaimedRun) -> Verdict:
        row = VERDICT.first(connection, run=run.id)
        if row.state != "running" or row.lease != run.lease:
            return "lost"
        return "stop" if row.stop_asked else "go"

    def _end(
        self,
        tx: Write,
        run: int,
        conversation: int,
        message: int,
        state: str,
        error: str | None,
        figures: Mapping[str, Any] | None = None,
    ) -> int:
        """End run and message. Return the revision of that change."""
        revision = self._conversations.touch(tx, conversation, self._feed(tx, conversation))
        ended: dict[str, Any] = {"state": state, "revision": revision, "state_revision": revision, "error": error}
        ended |= {"phase": None, "figures": json.dumps(figures) if figures else None}
        tx.connection.execute(update(Message).where(Message.id == message).values(**ended))
        tx.connection.execute(update(Run).where(Run.id == run).values(state=state, ended_at=now_ms(), error=error))
        tx.bump(RUNS)  # the next run of this conversation may be queued
        return revision

    def _write_blocks(self, tx: Write, run: ClaimedRun, revision: int, changed: Sequence[tuple[int, str]]) -> None:
        for index, html in changed:
            old = BLOCK.first(tx.connection, message=run.message_id, index=index)
            if old is None:
                ADD_BLOCK.run(tx.connection, message_id=run.message_id, ordinal=index, revision=revision, html=html)
            elif old.html != html:
                steps = add_step(old.steps, old.revision, revision, old.html, html)
                values: dict[str, Value] = {"at": revision, "text": html, "by": steps}
                CHANGE_BLOCK.run(tx.connection, message=run.message_id, index=index, **values)

    def _bump(self, tx: Write, conversation: int) -> int:
        return tx.bump(self._feed(tx, conversation))

    def _feed(self, tx: Write, conversation: int) -> int:
        return FEED.one(tx.connection, conversation=conversation)

    def _conversation(self, tx: Write, conversation: int) -> ConversationRef:
        row = tx.connection.execute(select(Conversation).where(Conversation.id == conversation)).one()
        return ConversationRef(row.id, row.feed_id, row.uuid, row.title, row.created_by)

    def _history(self, tx: Write, conversation: int, before: int) -> tuple[Turn, ...]:
        query = (
            select(Person.kind, Person.id, Message.id.label("message"), Message.body, Person.name, Conversation.answers)
            .join(Person, Person.id == Message.author_id)
            .join(Conversation, Conversation.id == Message.conversation_id)
            .where(
                Message.conversation_id == conversation,
                Message.position < before,
                Message.deleted_at.is_(None),
                Message.superseded_by.is_(None),
            )
            .order_by(Message.position.desc())
            .limit(MOST_TURNS)
        )
        several = select(func.count() > 1).where(Membership.conversation_id == conversation)
        are_several = bool(tx.connection.execute(several).scalar_one())
        rows = tx.connection.execute(query).all()
        files = files_of(tx.connection, [row.message for row in rows if MARK in row.body])
        return tuple(_turn(row, are_several, files.get(row.message, ())) for row in reversed(rows))


def _turn(row: Any, are_several: bool, files: Sequence[File]) -> Turn:
    if row.kind == "assistant":
        return Turn("assistant", row.body)
    is_asked = row.answers == "always" or ADDRESSED.search(row.body) is not None
    return Turn("user", row.body, row.name * are_several, is_asked, tuple(files), row.id)


def _live_runs(place: ConversationRef, answer: str = "") -> Select[int, str]:
    """Select id and state of the live runs of a conversation, or only of `answer`."""
    query = select(Run.id, Run.state).where(Run.conversation_id == place.conversation, _live)
    return query.where(Run.uuid == answer) if answer else query
