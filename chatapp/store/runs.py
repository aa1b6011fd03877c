"""Durable answers: a run is queued with the question, claimed by a worker, written as it grows, ended once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from sqlalchemy import Row, Select, bindparam, exists, select, update

from chatapp.bus import RUNS
from chatapp.store.conversations import Conversations
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.hot import Hot
from chatapp.store.shapes import Place
from chatapp.store.tables import blocks, conversations, messages, people, runs

HISTORY = 20  # messages of the conversation that an assistant gets to see
MOST_STEPS = 20  # changes of the open block that a reader may be behind and still get only the rest

Verdict = Literal["go", "stop", "lost"]


@dataclass(frozen=True)
class Turn:
    """One message, as an assistant sees it."""

    author: Literal["user", "assistant"]
    body: str


@dataclass(frozen=True)
class ClaimedRun:
    """An answer to be written by whoever holds the lease."""

    id: int
    conversation_id: int
    message_id: int
    history: tuple[Turn, ...]


# Statements that run with every message or piece of an answer are built once: building costs more than running.
_other = runs.alias("other")
CLAIMABLE: Select[tuple[int, str, int]] = (
    select(runs.c.id, runs.c.uuid, runs.c.conversation_id)
    .where(
        runs.c.state == "queued",
        ~exists().where(_other.c.conversation_id == runs.c.conversation_id, _other.c.state == "running"),
    )
    .order_by(runs.c.id)
    .limit(1)
)
WAITING = Hot(select(runs.c.id).where(runs.c.conversation_id == bindparam("conversation"), runs.c.state == "queued"))
VERDICT = select(runs.c.state, runs.c.lease, runs.c.stop_asked).where(runs.c.id == bindparam("run"))
ASSISTANT = select(people.c.id).where(people.c.kind == "assistant")
FEED = select(conversations.c.feed_id).where(conversations.c.id == bindparam("conversation"))
BEAT = update(runs).where(runs.c.id == bindparam("run")).values(heartbeat_at=bindparam("now"))
GROW = (
    update(messages)
    .where(messages.c.id == bindparam("message"))
    .values(body=bindparam("text"), revision=bindparam("at"))
)
BLOCK = select(blocks).where(blocks.c.message_id == bindparam("message"), blocks.c.ordinal == bindparam("index"))


class Runs:
    """Queries about runs."""

    def __init__(self, database: Database, conversations: Conversations) -> None:
        self.database = database
        self._conversations = conversations
        self._assistant: int | None = None  # its number, which never changes

    def queue(self, tx: Write, place: Place) -> None:
        """Have the assistant answer. One run waits at most: it answers all that is posted before it starts."""
        if WAITING.first(tx.connection, conversation=place.conversation) is None:
            row = {"uuid": str(uuid4()), "conversation_id": place.conversation, "state": "queued"}
            tx.connection.execute(runs.insert().values(**row, created_at=now_ms()))
        tx.bump(RUNS)

    def is_answering(self, conversation: int) -> bool:
        """Whether an answer is queued or running."""
        query = select(runs.c.id).where(runs.c.conversation_id == conversation, runs.c.state.in_(("queued", "running")))
        with self.database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def claim_run(self, lease: str) -> ClaimedRun | None:
        """Take the oldest queued run of a conversation in which none is running; None when there is none."""
        with self.database.read() as connection:
            if connection.execute(CLAIMABLE).first() is None:
                return None
        with self.database.write() as tx:
            row = tx.connection.execute(CLAIMABLE).first()
            return self._claim(tx, row, lease) if row is not None else None

    def write_answer(self, run: ClaimedRun, lease: str, body: str, changed: Sequence[tuple[int, str]]) -> Verdict:
        """Store what there is so far. "stop": somebody asked for it; "lost": another holds the run."""
        with self.database.write() as tx:
            verdict = self._verdict(tx, run, lease)
            if verdict == "go":
                tx.connection.execute(BEAT, {"run": run.id, "now": now_ms()})
                if changed:
                    revision = self._bump(tx, run.conversation_id)
                    self._write_blocks(tx, run, revision, changed)
                    tx.connection.execute(GROW, {"message": run.message_id, "text": body, "at": revision})
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
        """End a run for good, with the rest of its text. Does nothing where the lease is lost."""
        with self.database.write() as tx:
            if self._verdict(tx, run, lease) == "lost":
                return
            self._end(tx, run.id, run.conversation_id, run.message_id, state, error)
            if changed:
                revision = tx.heads[self._feed(tx, run.conversation_id)]
                self._write_blocks(tx, run, revision, changed)
            tx.connection.execute(update(messages).where(messages.c.id == run.message_id).values(body=body))

    def stop(self, tx: Write, place: Place) -> None:
        """Ask whoever writes the answer to stop, and forget what is queued."""
        mine = runs.c.conversation_id == place.conversation
        running = (mine, runs.c.state == "running")
        tx.connection.execute(update(runs).where(*running).values(stop_asked=True))
        queued = (mine, runs.c.state == "queued")
        tx.connection.execute(update(runs).where(*queued).values(state="stopped", ended_at=now_ms()))
        tx.bump(RUNS)

    def reap_runs(self, older_than_s: float) -> int:
        """Mark answers interrupted whose writer is gone; what was written stays. Returns how many."""
        limit = now_ms() - round(older_than_s * 1000)
        gone = select(runs).where(runs.c.state == "running", runs.c.heartbeat_at < limit)
        with self.database.read() as connection:
            if connection.execute(gone.limit(1)).first() is None:
                return 0
        with self.database.write() as tx:
            rows = tx.connection.execute(gone).all()
            for row in rows:
                self._end(tx, row.id, row.conversation_id, row.message_id, "interrupted", None)
        return len(rows)

    def _claim(self, tx: Write, row: Row[tuple[int, str, int]], lease: str) -> ClaimedRun:
        place = self._whereabouts(tx, row.conversation_id)
        turns = self._history(tx, row.conversation_id)
        if self._assistant is None:
            self._assistant = tx.connection.execute(ASSISTANT).scalar_one()
        assistant = self._assistant
        message, _ = self._conversations.insert_message(tx, place, assistant, row.uuid, "", "running")
        now = now_ms()
        change = {"state": "running", "lease": lease, "message_id": message, "heartbeat_at": now}
        tx.connection.execute(update(runs).where(runs.c.id == row.id).values(**change, started_at=now))
        return ClaimedRun(row.id, row.conversation_id, message, turns)

    def _verdict(self, tx: Write, run: ClaimedRun, lease: str) -> Verdict:
        row = tx.connection.execute(VERDICT, {"run": run.id}).one()
        if row.state != "running" or row.lease != lease:
            return "lost"
        return "stop" if row.stop_asked else "go"

    def _end(self, tx: Write, run: int, conversation: int, message: int, state: str, error: str | None) -> None:
        revision = self._bump(tx, conversation)
        change = {"state": state, "revision": revision, "state_revision": revision, "error": error}
        tx.connection.execute(update(messages).where(messages.c.id == message).values(**change))
        ended = {"state": state, "ended_at": now_ms(), "error": error}
        tx.connection.execute(update(runs).where(runs.c.id == run).values(**ended))
        self._conversations.touch(tx, conversation)
        tx.bump(RUNS)  # the next question of this conversation may wait

    def _write_blocks(self, tx: Write, run: ClaimedRun, revision: int, changed: Sequence[tuple[int, str]]) -> None:
        for ordinal, html in changed:
            mine = (blocks.c.message_id == run.message_id, blocks.c.ordinal == ordinal)
            old = tx.connection.execute(BLOCK, {"message": run.message_id, "index": ordinal}).first()
            if old is None:
                row = {"message_id": run.message_id, "ordinal": ordinal, "revision": revision, "html": html}
                tx.connection.execute(blocks.insert().values(**row))
            elif old.html != html:
                step = [old.revision, revision, common_start(old.html, html)]
                steps = json.dumps([*json.loads(old.steps), step][-MOST_STEPS:], separators=(",", ":"))
                change = {"revision": revision, "html": html, "steps": steps}
                tx.connection.execute(update(blocks).where(*mine).values(**change))

    def _bump(self, tx: Write, conversation: int) -> int:
        return tx.bump(self._feed(tx, conversation))

    def _feed(self, tx: Write, conversation: int) -> int:
        return int(tx.connection.execute(FEED, {"conversation": conversation}).scalar_one())

    def _whereabouts(self, tx: Write, conversation: int) -> Place:
        query = select(conversations).where(conversations.c.id == conversation)
        row = tx.connection.execute(query).one()
        return Place(row.id, row.feed_id, row.uuid, row.title, row.created_by)

    def _history(self, tx: Write, conversation: int) -> tuple[Turn, ...]:
        query = (
            select(people.c.kind, messages.c.body)
            .join(people, people.c.id == messages.c.author_id)
            .where(messages.c.conversation_id == conversation, messages.c.deleted_at.is_(None))
            .order_by(messages.c.position.desc())
            .limit(HISTORY)
        )
        rows = reversed(tx.connection.execute(query).all())
        return tuple(Turn("assistant" if kind == "assistant" else "user", body) for kind, body in rows)


def common_start(a: str, b: str) -> int:
    """Length in characters of the longest common start."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
