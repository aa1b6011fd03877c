"""Durable answers: a run is queued with the question, claimed by a worker, written in pieces, ended once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import Connection, Select, bindparam, exists, func, or_, select, update

from chatapp.bus import RUNS
from chatapp.store.conversations import AFTER_ALL, Conversations
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.prepared import Prepared, Value
from chatapp.store.records import ConversationRef, Waiting
from chatapp.store.tables import blocks, conversations, messages, people, runs

MOST_AT_ONCE = 16  # running answers of a worker; more are queued
MOST_RECOUNTED = 200  # the first of the queue: those behind them are updated as they move up
MOST_TURNS = 20  # messages in the history of an assistant
MOST_STEPS = 20  # changes of the open block: a reader further behind gets it whole
AGAIN = "+"  # suffix of the lease of a resumed run: it is resumed only once

IsGone = Callable[[int, str], bool]  # (run id, lease): True if its worker is gone
Verdict = Literal["go", "stop", "lost"]


@dataclass(frozen=True)
class Turn:
    """One message of the history of an assistant."""

    author: Literal["user", "assistant"]
    body: str


@dataclass(frozen=True)
class ClaimedRun:
    """A running answer, to be written by the holder of the lease."""

    id: int
    conversation_id: int
    message_id: int
    lease: str
    history: tuple[Turn, ...]


# Built once: building a statement costs more than running it.
_other = runs.alias("other")
_live = or_(runs.c.state == "queued", runs.c.state == "running")
CLAIMABLE = Prepared(
    select(runs.c.id, runs.c.uuid, runs.c.conversation_id)
    .where(
        runs.c.state == "queued",
        ~exists().where(_other.c.conversation_id == runs.c.conversation_id, _other.c.state == "running"),
    )
    .order_by(runs.c.id)
    .limit(1)
)
QUEUE = Prepared(runs.insert(), ("uuid", "conversation_id", "state", "created_at", "revision", "ahead"))
# Number of live runs, and of those in this conversation.
BEFORE = Prepared(
    select(func.count(), func.coalesce(func.sum(runs.c.conversation_id == bindparam("conversation")), 0)).where(_live)
)
LIVE = Prepared(
    select(runs.c.id, runs.c.uuid, runs.c.conversation_id, runs.c.state, runs.c.ahead).where(_live).order_by(runs.c.id)
)
RECOUNT = Prepared(
    update(runs).where(runs.c.id == bindparam("run")).values(ahead=bindparam("count"), revision=bindparam("at"))
)
WAITING = Prepared(
    select(runs.c.id).where(runs.c.conversation_id == bindparam("conversation"), runs.c.state == "queued")
)
ANSWERING = Prepared(select(runs.c.id).where(runs.c.conversation_id == bindparam("conversation"), _live).limit(1))
PLACE = Prepared(select(conversations).where(conversations.c.id == bindparam("conversation")))
HISTORY = Prepared(
    select(people.c.kind, messages.c.body)
    .join(people, people.c.id == messages.c.author_id)
    .where(
        messages.c.conversation_id == bindparam("conversation"),
        messages.c.position < bindparam("before"),
        messages.c.deleted_at.is_(None),
    )
    .order_by(messages.c.position.desc())
    .limit(MOST_TURNS)
)
ASSISTANT = select(people.c.id).where(people.c.kind == "assistant")
START = Prepared(
    update(runs)
    .where(runs.c.id == bindparam("run"))
    .values(
        state="running",
        lease=bindparam("by"),
        message_id=bindparam("message"),
        started_at=bindparam("now"),
    )
)
VERDICT = Prepared(select(runs.c.state, runs.c.lease, runs.c.stop_asked).where(runs.c.id == bindparam("run")))
FEED = Prepared(select(conversations.c.feed_id).where(conversations.c.id == bindparam("conversation")))
GROW = Prepared(
    update(messages)
    .where(messages.c.id == bindparam("message"))
    .values(body=bindparam("text"), revision=bindparam("at"))
)
BLOCK = Prepared(
    select(blocks).where(blocks.c.message_id == bindparam("message"), blocks.c.ordinal == bindparam("index"))
)
ADD_BLOCK = Prepared(blocks.insert(), ("message_id", "ordinal", "revision", "html"))
CHANGE_BLOCK = Prepared(
    update(blocks)
    .where(blocks.c.message_id == bindparam("message"), blocks.c.ordinal == bindparam("index"))
    .values(revision=bindparam("at"), html=bindparam("text"), steps=bindparam("by"))
)
RUNNING = Prepared(
    select(runs.c.id, runs.c.conversation_id, runs.c.message_id, runs.c.lease, runs.c.stop_asked, messages.c.position)
    .join(messages, messages.c.id == runs.c.message_id)
    .where(runs.c.state == "running")
)
SHOWN = Prepared(select(func.length(messages.c.body)).where(messages.c.id == bindparam("message")))
TAKE_OVER = Prepared(update(runs).where(runs.c.id == bindparam("run")).values(lease=bindparam("by")))
END = Prepared(
    update(runs)
    .where(runs.c.id == bindparam("run"))
    .values(state=bindparam("word"), ended_at=bindparam("now"), error=bindparam("why"))
)
END_MESSAGE = Prepared(
    update(messages)
    .where(messages.c.id == bindparam("message"))
    .values(state=bindparam("word"), revision=bindparam("at"), state_revision=bindparam("at"), error=bindparam("why"))
)


class Runs:
    """Queries about runs."""

    def __init__(self, database: Database, conversations: Conversations, workers: int = 1) -> None:
        self.database = database
        self._capacity = MOST_AT_ONCE * workers
        self._conversations = conversations
        self._assistant: int | None = None  # its id, which never changes

    def queue(self, tx: Write, place: ConversationRef) -> None:
        """Queue an answer, unless one is queued: a run answers everything posted before it starts."""
        if WAITING.first(tx.connection, conversation=place.conversation) is None:
            conversation, feed = place.conversation, place.feed
            revision = tx.revisions[feed] if feed in tx.revisions else tx.bump(feed)
            total, own = BEFORE.run(tx.connection, conversation=conversation).fetchone()
            waiting = Waiting(str(uuid4()), revision, total if total >= self._capacity else own)
            values: dict[str, Value] = {"revision": revision, "ahead": waiting.ahead, "created_at": now_ms()}
            QUEUE.run(tx.connection, uuid=waiting.uuid, conversation_id=conversation, state="queued", **values)
            tx.keep_waiting(feed, waiting)
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
                RECOUNT.run(tx.connection, run=row.id, count=ahead, at=revision)
                tx.keep_waiting(feed, Waiting(row.uuid, revision, ahead))

    def _outdated_counts(self, connection: Connection) -> list[tuple[Any, int]]:
        """Return the queued runs with an outdated `ahead`, and their new one."""
        live = LIVE.all(connection)
        running = [row for row in live if row.state == "running"]
        queued = [row for row in live if row.state == "queued"]
        busy = {row.conversation_id for row in running}
        found = []
        for before, row in enumerate(queued[:MOST_RECOUNTED], len(running)):
            ahead = before if before >= self._capacity else int(row.conversation_id in busy)
            if ahead != row.ahead:
                found.append((row, ahead))
        return found

    def is_answering(self, conversation: int) -> bool:
        """Return True if an answer is queued or running."""
        with self.database.read() as connection:
            return ANSWERING.first(connection, conversation=conversation) is not None

    def claim_run(self, lease: str) -> ClaimedRun | None:
        """Start the oldest queued run of a conversation without a running one, or return None. `lease`: the name of the
        worker. Raises StorageUnavailable."""
        with self.database.read() as connection:
            if CLAIMABLE.first(connection) is None:
                return None
        with self.database.write() as tx:
            row = CLAIMABLE.first(tx.connection)
            return self._claim(tx, row, lease) if row is not None else None

    def write_answer(self, run: ClaimedRun, lease: str, body: str, changed: Sequence[tuple[int, str]]) -> Verdict:
        """Store the text so far. Return "stop" if a stop was requested, "lost" if another worker holds the run. Raises
        StorageUnavailable."""
        if not changed:
            with self.database.read() as connection:
                return self._verdict(connection, run, lease)
        with self.database.write() as tx:
            verdict = self._verdict(tx.connection, run, lease)
            if verdict == "go":
                revision = self._bump(tx, run.conversation_id)
                self._write_blocks(tx, run, revision, changed)
                GROW.run(tx.connection, message=run.message_id, text=body, at=revision)
        return verdict

    def end_run(
        self,
        run: ClaimedRun,
        lease: str,
        state: str,
        body: str,
        changed: Sequence[tuple[int, str]],
        error: str | None,
    ) -> None:
        """End a run with its final text, unless the lease is lost. Raises StorageUnavailable."""
        with self.database.write() as tx:
            if self._verdict(tx.connection, run, lease) == "lost":
                return
            revision = self._end(tx, run.id, run.conversation_id, run.message_id, state, error)
            self._write_blocks(tx, run, revision, changed)
            GROW.run(tx.connection, message=run.message_id, text=body, at=revision)

    def stop(self, tx: Write, place: ConversationRef, answer: str = "") -> None:
        """Stop an answer: the given one, else the running one, else the queued one."""
        found = {row.state: row.id for row in tx.connection.execute(_live_runs(place, answer))}
        if "running" in found:
            tx.connection.execute(update(runs).where(runs.c.id == found["running"]).values(stop_asked=True))
        elif "queued" in found:
            self._cancel(tx, found["queued"], place)
        tx.bump(RUNS)

    def stop_all(self, tx: Write, place: ConversationRef) -> None:
        """Stop every answer of a deleted conversation."""
        for row in tx.connection.execute(_live_runs(place)).all():
            if row.state == "running":
                tx.connection.execute(update(runs).where(runs.c.id == row.id).values(stop_asked=True))
            else:
                self._cancel(tx, row.id, place)
        tx.bump(RUNS)

    def _cancel(self, tx: Write, run: int, place: ConversationRef) -> None:
        """End a queued run."""
        revision = tx.bump(place.feed)
        values = {"state": "stopped", "ended_at": now_ms(), "revision": revision}
        ended = update(runs).where(runs.c.id == run).values(**values).returning(runs.c.uuid)
        uuid = tx.connection.execute(ended).scalar_one()
        tx.keep_waiting(place.feed, Waiting(uuid, revision, 0, is_over=True))

    def reap_runs(self, is_gone: IsGone, by: str, room: int) -> tuple[int, list[ClaimedRun]]:
        """End or take over the runs of dead workers. Return the number ended, and up to `room` taken over by `by`.

        A run without text is taken over, once; any other is interrupted, and its text stays.
        """
        with self.database.read() as connection:
            gone = [row for row in RUNNING.all(connection) if is_gone(row.id, row.lease)]
        if not gone:
            return 0, []
        resumed: list[ClaimedRun] = []
        with self.database.write() as tx:
            now = {row.id: row for row in RUNNING.all(tx.connection)}
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
        may = not row.stop_asked and not row.lease.endswith(AGAIN)
        return may and SHOWN.one(tx.connection, message=row.message_id) == 0

    def _take_over(self, tx: Write, row: Any, lease: str) -> ClaimedRun:
        TAKE_OVER.run(tx.connection, run=row.id, by=lease)
        turns = self._history(tx, row.conversation_id, row.position)  # later messages have another run
        return ClaimedRun(row.id, row.conversation_id, row.message_id, lease, turns)

    def _claim(self, tx: Write, row: Any, lease: str) -> ClaimedRun:
        place = self._conversation(tx, row.conversation_id)
        turns = self._history(tx, row.conversation_id)
        if self._assistant is None:
            self._assistant = tx.connection.execute(ASSISTANT).scalar_one()
        assistant = self._assistant
        message = self._conversations.add_answer(tx, place, assistant, row.uuid)
        START.run(tx.connection, run=row.id, by=lease, message=message, now=now_ms())
        return ClaimedRun(row.id, row.conversation_id, message, lease, turns)

    def _verdict(self, connection: Connection, run: ClaimedRun, lease: str) -> Verdict:
        row = VERDICT.first(connection, run=run.id)
        if row.state != "running" or row.lease != lease:
            return "lost"
        return "stop" if row.stop_asked else "go"

    def _end(self, tx: Write, run: int, conversation: int, message: int, state: str, error: str | None) -> int:
        """End run and message. Return the revision of that change."""
        revision = self._conversations.touch(tx, conversation, self._feed(tx, conversation))
        END_MESSAGE.run(tx.connection, message=message, word=state, at=revision, why=error)
        END.run(tx.connection, run=run, word=state, now=now_ms(), why=error)
        tx.bump(RUNS)  # the next run of this conversation may be queued
        return revision

    def _write_blocks(self, tx: Write, run: ClaimedRun, revision: int, changed: Sequence[tuple[int, str]]) -> None:
        for index, html in changed:
            old = BLOCK.first(tx.connection, message=run.message_id, index=index)
            if old is None:
                ADD_BLOCK.run(tx.connection, message_id=run.message_id, ordinal=index, revision=revision, html=html)
            elif old.html != html:
                step = [old.revision, revision, common_start(old.html, html)]
                steps = json.dumps([*json.loads(old.steps), step][-MOST_STEPS:], separators=(",", ":"))
                values: dict[str, Value] = {"at": revision, "text": html, "by": steps}
                CHANGE_BLOCK.run(tx.connection, message=run.message_id, index=index, **values)

    def _bump(self, tx: Write, conversation: int) -> int:
        return tx.bump(self._feed(tx, conversation))

    def _feed(self, tx: Write, conversation: int) -> int:
        return FEED.one(tx.connection, conversation=conversation)

    def _conversation(self, tx: Write, conversation: int) -> ConversationRef:
        row = PLACE.first(tx.connection, conversation=conversation)
        return ConversationRef(row.id, row.feed_id, row.uuid, row.title, row.created_by)

    def _history(self, tx: Write, conversation: int, before: int = AFTER_ALL) -> tuple[Turn, ...]:
        rows = reversed(HISTORY.all(tx.connection, conversation=conversation, before=before))
        return tuple(Turn("assistant" if kind == "assistant" else "user", body) for kind, body in rows)


def _live_runs(place: ConversationRef, answer: str = "") -> Select[tuple[int, str]]:
    """Select id and state of the live runs of a conversation, or only of `answer`."""
    query = select(runs.c.id, runs.c.state).where(runs.c.conversation_id == place.conversation, _live)
    return query.where(runs.c.uuid == answer) if answer else query


def common_start(a: str, b: str) -> int:
    """Return the length in characters of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
