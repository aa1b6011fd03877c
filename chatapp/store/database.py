"""The engines and the two kinds of transaction: nothing outside this package opens one, and none is left open."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, CursorResult, Engine, bindparam, event, func, select, update

from chatapp.bus import ACCESS, Bus
from chatapp.cache import Cache
from chatapp.concurrency import ParkedWorker, SingleThread, has_loop
from chatapp.store.checkpoints import MOST_PAGES, Checkpoints
from chatapp.store.prepared import Prepared, Value, driver
from chatapp.store.records import Changes, Waiting
from chatapp.store.tables import feeds, instance
from chatapp.store.unavailable import Reason, StorageUnavailable, translated, translating

SLOW_COMMIT_S = 0.003  # a commit that takes longer goes beside the event loop; a thread costs some 0.3 ms
# What a connection's transactions are for. Those of the one that is kept for groups begin and end by the driver: for
# SQLAlchemy, whose own part is a tenth of a post, it is in one transaction for as long as it lives.
WRITES, BY_HAND = "writes", "by_hand"
BUSY_TIMEOUT_MS = 5000  # how long a write waits for others, in this process and elsewhere, before it is given up


def bumping(which: ColumnElement[bool]) -> Prepared:
    """The statement that takes the next revision of each of these feeds, and returns their numbers and revisions."""
    change = select(func.coalesce(func.max(feeds.c.change), 0) + 1).scalar_subquery()
    values = {"revision": feeds.c.revision + 1, "change": change}
    return Prepared(update(feeds).where(which).values(**values).returning(feeds.c.id, feeds.c.revision, feeds.c.change))


# Statements that run with every message are built once: building one costs more than running it.
BUMP = bumping(feeds.c.id == bindparam("feed"))
REVISION = Prepared(select(feeds.c.revision, feeds.c.change).where(feeds.c.id == bindparam("feed")))
# Changes nothing, and is written and committed like anything else.
TRY = update(instance).where(instance.c.name == "epoch").values(value=instance.c.value)
TRY_EVERY_S = 5.0
MOST_TOGETHER = 100  # changes in one transaction: the first of them waits for the last
MOST_FRESH = 1000  # feeds whose newest items are kept
MOST_FRESH_BYTES = 8 << 20  # of them together: one item can have 20,000 characters
MOST_ITEMS = 5  # of one feed: who lacks more reads the database
ITEM_BYTES = 1000  # about as much as an item takes besides its text

R = TypeVar("R")


def now_ms() -> int:
    """Milliseconds since 1970 UTC, the unit of every stored time."""
    return time.time_ns() // 1_000_000


def prepare_sqlite(engine: Engine, synchronous: str) -> None:
    """Make each new connection safe: WAL, foreign keys, and transactions that begin as we say.

    `synchronous` is FULL where an acknowledgement promises durability, NORMAL for measurements.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            *([f"wal_autocheckpoint={MOST_PAGES}"] if has_loop() else []),
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that turns into a writer can fail at once; IMMEDIATE waits its turn instead.
        options = connection.get_execution_options()
        execute = driver(connection).execute
        if options.get(BY_HAND, False):
            execute("PRAGMA busy_timeout=0")  # as long as it lives
        elif WRITES in options:
            execute("PRAGMA busy_timeout=0")
            try:
                _begin_immediate(execute, options[WRITES])
            finally:
                execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        else:
            execute("BEGIN")


def _begin_immediate(execute: Callable[[str], object], deadline: float) -> None:
    """Take the write lock until `deadline` (monotonic). Another process may hold it: then others of this one run
    while we wait, which SQLite's own busy handler would not let them."""
    pause_s = 0.001
    while True:
        try:
            execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.02)


def _commit(execute: Callable[[str], object]) -> sqlite3.Error | None:
    """Commit in another thread. What goes wrong is returned: gevent would print what a thread raises."""
    try:
        execute("COMMIT")
    except sqlite3.Error as error:
        return error
    return None


def new_id(result: CursorResult[Any]) -> int:
    """The number of the row that was just inserted."""
    key = result.inserted_primary_key
    assert key is not None  # every table here has one
    return int(key[0])


@dataclass
class Write:
    """A write transaction: the connection, and the topics to wake once it is committed."""

    connection: Connection
    topics: dict[int, None] = field(default_factory=dict)
    revisions: dict[int, int] = field(default_factory=dict)
    recent: dict[int, Changes[Any]] = field(default_factory=dict)
    first: int = 0  # the first of the database-wide numbers that it took
    change: int = 0  # the newest of them

    def bump(self, feed: int) -> int:
        """Take the feed's next revision; its readers are woken after the commit."""
        self.bump_all(BUMP, feed=feed)
        return self.revisions[feed]

    def bump_all(self, statement: Prepared, **which: Value) -> None:
        """Take the next revision of all feeds of a statement that `bumping` made."""
        for feed, revision, change in statement.run(self.connection, **which).fetchall():
            self.topics[feed] = None
            self.first, self.change = self.first or change, change
            self.revisions[feed] = revision

    def keep_recent(self, feed: int, item: object) -> None:
        """Have what was written at the feed's newest revision at hand for its readers: they need not look it up."""
        revision = self.revisions[feed]
        self.recent[feed] = Changes(revision - 1, revision, (item,), change=self.change)

    def keep_waiting(self, feed: int, waiting: Waiting) -> None:
        """The same for an answer that waits, which may share its revision with the message that it waits to answer."""
        revision = self.revisions[feed]
        kept = self.recent.get(feed)
        items = kept.items if kept is not None and kept.end == revision else ()
        self.recent[feed] = Changes(revision - 1, revision, items, waiting=(waiting,), change=self.change)

    def new_feed(self) -> int:
        """A new feed's number."""
        result = self.connection.execute(feeds.insert().values(revision=0, change=0))
        return new_id(result)

    def notify(self, topic: int) -> None:
        """Wake a topic of this process only after the commit."""
        self.topics[topic] = None


def _nothing(*_: object) -> Any:
    """What a change does that was refused before it began."""


class WriteJob(Generic[R]):
    """A change that waits for its transaction, and what came of it."""

    def __init__(self, work: Callable[[Write], R], done: Callable[[WriteJob[R]], None]) -> None:
        self._work = work
        self._done = done
        self._result: list[R] = []
        self.error: Exception | None = None

    @classmethod
    def failed(cls, error: Exception) -> WriteJob[R]:
        """One that was refused before it could wait."""
        job = cls(_nothing, _nothing)
        job.error = error
        return job

    def run(self, tx: Write) -> None:
        """Do it. Raises what the work raises."""
        self._result.append(self._work(tx))

    def end(self, problem: Exception | None) -> None:
        """It is on disk, unless there was a problem: say so to whoever asked for it."""
        self.error = self.error or problem
        self._done(self)

    def outcome(self) -> R:
        """The result. Raises what the work, or the commit, raised."""
        if self.error is not None:
            raise self.error
        return self._result[0]


def _joined(before: Changes[Any] | None, changes: Changes[Any]) -> Changes[Any]:
    """What is at hand of a feed, after these changes."""
    if before is None or before.end != changes.start:
        return changes
    items = before.items + changes.items
    start = before.start if len(items) <= MOST_ITEMS else items[-MOST_ITEMS].revision - 1
    # An answer that has begun, which the last of these items says, waits no more.
    over = {item.client_id for item in changes.items} | {each.uuid for each in changes.waiting}
    waiting = tuple(each for each in before.waiting if each.uuid not in over and each.revision > start)
    return Changes(start, changes.end, items[-MOST_ITEMS:], waiting=waiting + changes.waiting, change=changes.change)


def _attempt(connection: Connection, job: WriteJob[Any]) -> list[Write]:
    """Do it; none where it failed."""
    tx = Write(connection)
    try:
        job.run(tx)
    except Exception as error:  # whatever it is, it belongs to whoever asked for this change
        job.error = translated(error)
        return []
    return [tx]


def _attempt_apart(connection: Connection, job: WriteJob[Any]) -> list[Write]:
    """Do it as if the others of its group were not there."""
    execute = driver(connection).execute
    execute("SAVEPOINT job")
    done: list[Write] = []
    try:
        done = _attempt(connection, job)
    finally:
        if not done:
            execute("ROLLBACK TO job")
        execute("RELEASE job")
    return done


class Database:
    """Reads, writes and the newest known revision of each feed."""

    def __init__(self, engine: Engine, bus: Bus) -> None:
        self.engine = engine
        self._bus = bus
        self.revisions: dict[int, int] = {}  # the newest known revision of each feed
        self._fresh: Cache[int, Changes[Any]] = Cache(MOST_FRESH, MOST_FRESH_BYTES)
        self._forget: list[Callable[[], None]] = []
        self.on_commit: Callable[[int, int], object] = _nothing  # with the first and the last change that it took
        self._commit_s = 0.0  # how long commits took lately
        self.failing: Reason | None = None  # why the last write failed; nothing where it did not
        self._tries_at = 0.0  # when the next write may be tried, only to know (monotonic)
        self._committing = SingleThread()  # of its own: a commit waits for nothing but commits
        # One writer at a time in this process: SQLite's busy wait would hold the event loop against ourselves.
        self._writer = threading.RLock()
        self._checkpoints = Checkpoints(engine, self._writer)
        # For groups of changes: to get one from the pool costs as much as two of them.
        self._kept: Connection | None = None
        self._jobs: list[WriteJob[Any]] = []  # changes that wait for the next group
        self._has_leader = False
        self._leader = ParkedWorker(self._lead)
        self._gate = threading.Lock()  # around the two; never held while waiting

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view. Keep it short, and never wait for anybody inside. Raises StorageUnavailable."""
        with translating(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[float]:
        """Be this process's one writer; until when (monotonic) the write may wait for others. Raises
        StorageUnavailable: whoever waits behind a writer that waits for the lock must not wait for it once more."""
        deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        if not self._writer.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            raise StorageUnavailable("busy", "this process waits for another one's write")
        try:
            yield deadline
        finally:
            self._writer.release()

    @contextmanager
    def write(self) -> Iterator[Write]:
        """One durable change. When the block ends it is on disk; only then are its readers woken. Raises
        StorageUnavailable."""
        with self._noting(), translating(), self._writing() as deadline, self.engine.connect() as plain:
            connection = plain.execution_options(**{WRITES: deadline})
            with connection.begin():
                tx = Write(connection)
                yield tx
                self._commit(driver(connection).execute)
        self._learn_own(tx)
        self._bus.publish(tx.topics)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except StorageUnavailable as error:
            self.failing = error.reason
            raise

    def try_write(self) -> None:
        """Find out whether writes work again, where one failed: every five seconds at most."""
        now = time.monotonic()
        if self.failing is None or now < self._tries_at:
            return
        self._tries_at = now + TRY_EVERY_S
        try:
            with self.write() as tx:
                tx.connection.execute(TRY)
        except StorageUnavailable:
            pass  # it has been logged, and `failing` says it

    def group_commit(self, work: Callable[[Write], R]) -> R:
        """One durable change, in one transaction with those of whoever else comes at this moment.

        Returns when it is on disk. A work that raises is undone alone; a commit that fails fails for all. Raises
        StorageUnavailable.
        """
        latch, ended = threading.Lock(), []
        latch.acquire()

        def done(job: WriteJob[R]) -> None:
            ended.append(job)
            latch.release()

        self.enqueue(work, done)
        latch.acquire()
        return ended[0].outcome()

    def enqueue(self, work: Callable[[Write], R], done: Callable[[WriteJob[R]], None]) -> None:
        """As `together`, without waiting: `done` is called with the outcome. It must neither wait nor raise."""
        with self._gate:
            self._jobs.append(WriteJob(work, done))
            leads, self._has_leader = not self._has_leader, True
        if leads and has_loop():
            self._leader.ask()  # others that are ready in this turn of the loop join
        elif leads:
            self._lead()

    def _lead(self) -> None:
        """Commit group after group while there is anything to commit."""
        is_done = False
        try:
            while self._commit_next():
                pass
            is_done = True
        finally:
            if not is_done:  # killed, or a subscriber failed: nobody must wait for a leader that is gone
                with self._gate:
                    leads = self._has_leader = has_loop() and bool(self._jobs)
                if leads:
                    self._leader.ask()

    def _commit_next(self) -> bool:
        """Commit the next group and wake its readers; False where there is none."""
        try:
            with self._writing() as deadline:
                jobs = self._next_jobs(MOST_TOGETHER)
                self._commit_and_tell(jobs, deadline)
        except StorageUnavailable as error:  # before any of them was taken
            self.failing = error.reason
            jobs = self._next_jobs(None)
            for job in jobs:
                job.end(error)
        return bool(jobs)

    def _next_jobs(self, most: int | None) -> list[WriteJob[Any]]:
        """Take those that wait; without any there is no leader any more."""
        with self._gate:
            taken = self._jobs[:most]
            self._jobs = self._jobs[len(taken) :]
            self._has_leader = bool(taken)
        return taken

    def _commit_and_tell(self, jobs: list[WriteJob[Any]], deadline: float) -> None:
        topics: dict[int, None] = {}
        problem: Exception | None = RuntimeError("whoever was to commit this was ended")
        try:
            topics, problem = self._commit_group(jobs, deadline) if jobs else {}, None
        except Exception as error:  # nothing of it is on disk: each of them must say so
            problem = translated(error)
            if isinstance(problem, StorageUnavailable) and problem.reason == "busy":
                jobs += self._next_jobs(None)  # they have waited as well, and would wait as long again
        finally:
            for found in (problem, *(job.error for job in jobs)):
                if isinstance(found, StorageUnavailable):
                    self.failing = found.reason
            try:
                self._bus.publish(topics)
            finally:
                for job in jobs:
                    job.end(problem)

    def _commit_group(self, jobs: list[WriteJob[Any]], deadline: float) -> dict[int, None]:
        if self._kept is None:
            self._kept = self.engine.connect().execution_options(**{BY_HAND: True})
            self._kept.begin()
        is_done = False
        try:
            done = self._attempt_all(self._kept, jobs, deadline)
            is_done = True
        finally:
            if not is_done:
                self.close()  # whatever state it is in: the next group begins with another one
        topics: dict[int, None] = {}
        for tx in done:
            self._learn_own(tx)
            topics |= tx.topics
        return topics

    def _attempt_all(self, connection: Connection, jobs: list[WriteJob[Any]], deadline: float) -> list[Write]:
        """One transaction for all of them; what each wrote that is on disk now."""
        execute = driver(connection).execute
        _begin_immediate(execute, deadline)
        if len(jobs) == 1:
            done = _attempt(connection, jobs[0])
        else:
            done = [tx for job in jobs for tx in _attempt_apart(connection, job)]
        if done:
            self._commit(execute, len(done))
        else:
            execute("ROLLBACK")
        return done

    def recent(self, feed: int, cursor: int) -> Changes[Any] | None:
        """What a reader at this cursor lacks, where this process has just written all of it."""
        kept = self._fresh.get(feed)
        if kept is None or kept.end != self.revisions.get(feed) or not kept.start <= cursor < kept.end:
            return None
        items, waiting = kept.items, kept.waiting
        if cursor != kept.start:
            items = tuple(item for item in items if item.revision > cursor)
            waiting = tuple(each for each in waiting if each.revision > cursor)
        return Changes(cursor, kept.end, items, waiting=waiting, change=kept.change)

    def _learn_own(self, tx: Write) -> None:
        """What was committed here: the newest revisions, and the newest items."""
        self.note_revisions(tx.revisions)
        if tx.change:
            self.on_commit(tx.first, tx.change)
        for feed, changes in tx.recent.items():
            kept = _joined(self._fresh.get(feed), changes)
            self._fresh.put(feed, kept, ITEM_BYTES + sum(ITEM_BYTES + getsizeof(item.body) for item in kept.items))

    def note_revisions(self, heads: Mapping[int, int]) -> list[int]:
        """Note the newest revisions of feeds; returns those that were news."""
        changed = [feed for feed, revision in heads.items() if revision > self.revisions.get(feed, -1)]
        self.revisions.update({feed: heads[feed] for feed in changed})
        if ACCESS in changed:
            for forget in self._forget:
                forget()
        return changed

    def _commit(self, execute: Callable[[str], object], changes: int = 1) -> None:
        """Wait for the disk; where it is slow, beside the event loop. SQLAlchemy has nothing left to commit."""
        started = time.monotonic()
        if self._commit_s > SLOW_COMMIT_S:
            if (error := self._committing.run(_commit, execute)) is not None:
                raise error
        else:
            execute("COMMIT")
        self.failing = None
        took = time.monotonic() - started
        # Up at once, down slowly: one slow commit on the loop is one too many.
        self._commit_s = took if took > self._commit_s else 0.98 * self._commit_s + 0.02 * took
        self._checkpoints.count(changes)

    def close(self) -> None:
        """Give back the connection that is kept for groups of changes."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.invalidate()  # it waits for nobody, which is not what others of the pool expect
            kept.close()

    def on_access_change(self, forget: Callable[[], None]) -> None:
        """Have a cache of permissions forgotten when a commit changed them."""
        self._forget.append(forget)

    def revision(self, feed: int, reread: bool = False) -> int:
        """The newest revision of a feed, without the database where it is known; `fresh` asks it all the same."""
        known = None if reread else self.revisions.get(feed)
        if known is None:
            with self.read() as connection:
                row = REVISION.first(connection, feed=feed)
            # What was found here the watcher does not find any more: whoever waits for it must hear of it now.
            self._bus.publish(self.note_revisions({feed: row.revision if row else 0}))
            known = self.revisions[feed]
        return known
