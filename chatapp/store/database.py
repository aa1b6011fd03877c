"""Read and write transactions, their errors, group commit and the newest revision of each feed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, CursorResult, Engine, bindparam, func, insert, select, update
from sqlalchemy.exc import DBAPIError, TimeoutError

from chatapp.bus import ACCESS, Bus
from chatapp.cache import Cache
from chatapp.concurrency import ParkedWorker, SingleThread, has_loop
from chatapp.store import sqlite
from chatapp.store.models import Feed, InstanceValue
from chatapp.store.prepared import Prepared, Value, driver
from chatapp.store.records import Changes, Waiting
from chatapp.store.sqlite import Reason

RETRY_S = 2  # Retry-After of a refused request
LOG_EVERY_S = 10.0  # for each reason: every request fails at the same time
SLOW_COMMIT_S = 0.003  # slower commits run in a thread, which costs some 0.3 ms


log = logging.getLogger("chatapp.store")
_logged_at: dict[Reason, float] = {}  # monotonic


class StorageUnavailable(Exception):
    """The database is temporarily unavailable. Nothing was stored; the same call may be retried.

    `reason`: busy (another process writes for too long), full (no room on the disk), failed (I/O error or permissions).
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"the database is {reason}: {detail}")
        self.reason: Reason = reason


def translate_error(error: Exception) -> Exception:
    """Return StorageUnavailable for a temporary error of SQLite, else the error unchanged."""
    if isinstance(error, TimeoutError):  # of SQLAlchemy's pool
        return _logged(StorageUnavailable("busy", str(error)))
    reason = sqlite.reason_of(error)
    cause = error.orig if isinstance(error, DBAPIError) else error
    return _logged(StorageUnavailable(reason, str(cause))) if reason is not None else error


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise StorageUnavailable for temporary errors of SQLite and SQLAlchemy."""
    try:
        yield
    except (sqlite.Error, DBAPIError, TimeoutError) as error:
        found = translate_error(error)
        if found is error:
            raise
        raise found from error


def _logged(error: StorageUnavailable) -> StorageUnavailable:
    now = time.monotonic()
    if now - _logged_at.get(error.reason, -LOG_EVERY_S) >= LOG_EVERY_S:
        _logged_at[error.reason] = now
        log.error("%s", error)
    return error


def bump_statement(which: ColumnElement[bool]) -> Prepared:
    """Return the statement that takes the next revision of these feeds, and returns id, revision and change of each."""
    change = select(func.coalesce(func.max(Feed.change), 0) + 1).scalar_subquery()
    values = {"revision": Feed.revision + 1, "change": change}
    return Prepared(update(Feed).where(which).values(**values).returning(Feed.id, Feed.revision, Feed.change))


# Built once: building a statement costs more than running it.
BUMP = bump_statement(Feed.id == bindparam("feed"))
REVISION = Prepared(select(Feed.revision, Feed.change).where(Feed.id == bindparam("feed")))
# A write that changes nothing.
PROBE = update(InstanceValue).where(InstanceValue.name == "epoch").values(value=InstanceValue.value)
PROBE_EVERY_S = 5.0
MOST_JOBS = 100  # in one transaction: the first of them waits for the last
MOST_REVISIONS, REVISION_BYTES = 50_000, 250  # feeds; another one's revision is read from the database
MOST_RECENT = 1000  # feeds in the cache of recent changes
MOST_RECENT_BYTES = 8 << 20  # of all: one item can have 20,000 characters
MOST_ITEMS = 5  # of one feed: a reader further behind reads the database
ITEM_BYTES = 1000  # about, without its text

R = TypeVar("R")


def now_ms() -> int:
    """Return milliseconds since 1970 UTC, the unit of every stored time."""
    return time.time_ns() // 1_000_000


def new_id(result: CursorResult[Any]) -> int:
    """Return the id of the inserted row."""
    key = result.inserted_primary_key
    assert key is not None  # every table here has one
    return int(key[0])


@dataclass
class Write:
    """A write transaction: its connection, and the topics to publish after the commit."""

    connection: Connection
    topics: dict[int, None] = field(default_factory=dict)
    revisions: dict[int, int] = field(default_factory=dict)
    recent: dict[int, Changes[Any]] = field(default_factory=dict)
    first: int = 0  # the first change number taken
    change: int = 0  # the last one

    def bump(self, feed: int) -> int:
        """Take the feed's next revision and return it; the feed's topic is published after the commit."""
        self.bump_all(BUMP, feed=feed)
        return self.revisions[feed]

    def bump_all(self, statement: Prepared, **which: Value) -> None:
        """Take the next revision of all feeds of a statement of `bump_statement`."""
        for feed, revision, change in statement.run(self.connection, **which).fetchall():
            self.topics[feed] = None
            self.first, self.change = self.first or change, change
            self.revisions[feed] = revision

    def keep_recent(self, feed: int, item: object) -> None:
        """Cache the item of the feed's newest revision for its readers, after the commit."""
        revision = self.revisions[feed]
        self.recent[feed] = Changes(revision - 1, revision, (item,), change=self.change)

    def keep_waiting(self, feed: int, waiting: Waiting) -> None:
        """Cache a queued answer; it may share its revision with the message it answers."""
        revision = self.revisions[feed]
        kept = self.recent.get(feed)
        items = kept.items if kept is not None and kept.end == revision else ()
        self.recent[feed] = Changes(revision - 1, revision, items, waiting=(waiting,), change=self.change)

    def new_feed(self) -> int:
        """Insert a feed. Return its id."""
        result = self.connection.execute(insert(Feed).values(revision=0, change=0))
        return new_id(result)

    def notify(self, topic: int) -> None:
        """Publish a topic after the commit, in this process only."""
        self.topics[topic] = None


def _do_nothing(*_: object) -> Any:
    pass


class WriteJob(Generic[R]):
    """A change queued for a group commit, and its outcome."""

    def __init__(self, work: Callable[[Write], R], done: Callable[[WriteJob[R]], None]) -> None:
        self._work = work
        self._done = done
        self._result: list[R] = []
        self.error: Exception | None = None

    def run(self, tx: Write) -> None:
        """Do the work. Raises its errors."""
        self._result.append(self._work(tx))

    def end(self, problem: Exception | None) -> None:
        """Record the problem of the commit, if any, and call `done`."""
        self.error = self.error or problem
        self._done(self)

    def outcome(self) -> R:
        """Return the result of the work. Raises the error of the work or of the commit."""
        if self.error is not None:
            raise self.error
        return self._result[0]


def _merge(before: Changes[Any] | None, changes: Changes[Any]) -> Changes[Any]:
    """Return the cached changes of a feed with newer ones appended."""
    if before is None or before.end != changes.start:
        return changes
    items = before.items + changes.items
    start = before.start if len(items) <= MOST_ITEMS else items[-MOST_ITEMS].revision - 1
    # An answer among these items has started: it is no longer queued.
    over = {item.client_id for item in changes.items} | {each.uuid for each in changes.waiting}
    waiting = tuple(each for each in before.waiting if each.uuid not in over and each.revision > start)
    return Changes(start, changes.end, items[-MOST_ITEMS:], waiting=waiting + changes.waiting, change=changes.change)


def _run_job(connection: Connection, job: WriteJob[Any]) -> list[Write]:
    """Run a job. Return its transaction, or none if it failed."""
    tx = Write(connection)
    try:
        job.run(tx)
    except Exception as error:  # any error of the work is the job's outcome
        job.error = translate_error(error)
        return []
    return [tx]


def _run_jobs(connection: Connection, jobs: list[WriteJob[Any]]) -> list[Write]:
    """Run jobs in one transaction. Return the changes of those that succeeded."""
    if len(jobs) == 1:
        return _run_job(connection, jobs[0])
    return [tx for job in jobs for tx in _run_in_savepoint(connection, job)]


def _run_in_savepoint(connection: Connection, job: WriteJob[Any]) -> list[Write]:
    """Run a job in a savepoint: if it fails, the others of its group are unaffected."""
    execute = driver(connection).execute
    execute("SAVEPOINT job")
    done: list[Write] = []
    try:
        done = _run_job(connection, job)
    finally:
        if not done:
            execute("ROLLBACK TO job")
        execute("RELEASE job")
    return done


class Database:
    """Transactions of one database, and the newest known revision of each feed."""

    def __init__(self, engine: Engine, bus: Bus) -> None:
        self.engine = engine
        self._bus = bus
        self.revisions: Cache[int, int] = Cache(MOST_REVISIONS, MOST_REVISIONS * REVISION_BYTES)  # newest, by feed
        self._recent: Cache[int, Changes[Any]] = Cache(MOST_RECENT, MOST_RECENT_BYTES)
        self._access_listeners: list[Callable[[], None]] = []
        self.on_commit: Callable[[int, int], object] = _do_nothing  # called with the first and the last change number
        self.on_commit_time: Callable[[float], object] = _do_nothing  # called with the duration of each commit, s
        self._commit_s = 0.0  # recent duration of a commit, s
        self.failing: Reason | None = None  # why the last write failed
        self._probe_at = 0.0  # monotonic
        self._commit_thread = SingleThread()  # used for commits only: nothing else may delay them
        # One writer at a time in this process: SQLite's busy wait would block the event loop, and so the other writer.
        self._writer = threading.RLock()
        self._checkpoints = sqlite.Checkpoints(engine, self._writer)
        # Of all write transactions: a checkout from the pool costs as much as two changes.
        self._connection: Connection | None = None
        self._jobs: list[WriteJob[Any]] = []  # queued for the next group
        self._is_committing = False
        self._committer = ParkedWorker(self._commit_queued)
        self._queue_lock = threading.Lock()  # guards _jobs and _is_committing; never held while waiting

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read transaction. Keep it short, and never block inside. Raises StorageUnavailable."""
        with translate_errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Write]:
        """Open a write transaction; commit it and publish its topics when the block ends. Raises StorageUnavailable."""
        with self._transaction() as (connection, done):
            tx = Write(connection)
            done.append(tx)
            yield tx
        self._bus.publish(tx.topics)

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Connection, list[Write]]]:
        """Open this process's only write transaction. Commit the changes that the block put into the list; roll back if
        there is none. Raises StorageUnavailable."""
        deadline = time.monotonic() + sqlite.BUSY_TIMEOUT_MS / 1000
        with self._record_failure(), translate_errors(), self._lock_writer(deadline):
            done: list[Write] = []
            connection = self._connection = self._connection or sqlite.open_writer(self.engine)
            execute = driver(connection).execute
            is_complete = False
            try:
                sqlite.begin_write(execute, deadline)
                yield connection, done
                if done:
                    self._commit(execute, len(done))
                else:
                    execute("ROLLBACK")
                is_complete = True
            finally:
                if not is_complete:
                    self.close()  # in an unknown state: the next transaction opens another
            for tx in done:
                self._record_commit(tx)
            if changed := [tx for tx in done if tx.change]:
                self.on_commit(changed[0].first, changed[-1].change)

    @contextmanager
    def _lock_writer(self, deadline: float) -> Iterator[None]:
        """Hold this process's write lock. Raises StorageUnavailable if it is not free before `deadline`."""
        if not self._writer.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise StorageUnavailable("busy", "this process waits for another one's write")
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def _record_failure(self) -> Iterator[None]:
        try:
            yield
        except StorageUnavailable as error:
            self.failing = error.reason
            raise

    def try_write(self) -> None:
        """Try a write if the last one failed, every 5 s at most; `failing` is the outcome."""
        now = time.monotonic()
        if self.failing is None or now < self._probe_at:
            return
        self._probe_at = now + PROBE_EVERY_S
        try:
            with self.write() as tx:
                tx.connection.execute(PROBE)
        except StorageUnavailable:
            pass  # already logged

    def group_commit(self, work: Callable[[Write], R]) -> R:
        """Make a durable change, in one transaction with concurrent ones. Return when it is on disk.

        A work that raises is rolled back alone; a failed commit fails all. Raises StorageUnavailable.
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
        """Queue a change for a group commit. `done` gets the finished job; it must neither block nor raise."""
        with self._queue_lock:
            self._jobs.append(WriteJob(work, done))
            is_first, self._is_committing = not self._is_committing, True
        if is_first and has_loop():
            self._committer.ask()  # in the next loop iteration: others of this one join
        elif is_first:
            self._commit_queued()

    def _commit_queued(self) -> None:
        """Commit groups until the queue is empty."""
        is_complete = False
        try:
            while self._has_jobs():
                self._commit_group()
            is_complete = True
        finally:
            if not is_complete:  # killed, or a subscriber failed: queued jobs need another committer
                with self._queue_lock:
                    self._is_committing = has_loop() and bool(self._jobs)
                if self._is_committing:
                    self._committer.ask()

    def _has_jobs(self) -> bool:
        """Return True if jobs are queued; if not, committing ends."""
        with self._queue_lock:
            self._is_committing = bool(self._jobs)
            return self._is_committing

    def _dequeue(self, most: int | None) -> list[WriteJob[Any]]:
        with self._queue_lock:
            taken, self._jobs = self._jobs[:most], self._jobs[most:] if most else []
            return taken

    def _commit_group(self) -> None:
        """Commit the next group of jobs, publish its topics and end its jobs."""
        jobs: list[WriteJob[Any]] = []
        done: list[Write] = []
        problem: Exception | None = RuntimeError("the committing greenlet was killed")
        try:
            with self._transaction() as (connection, done):
                jobs = self._dequeue(MOST_JOBS)
                done += _run_jobs(connection, jobs)
            problem = None
        except Exception as error:  # rolled back: every job gets the error, also those that waited as long
            problem, done = error, []
            jobs = jobs or self._dequeue(None)
        finally:
            self._finish(jobs, done, problem)

    def _finish(self, jobs: list[WriteJob[Any]], done: list[Write], problem: Exception | None) -> None:
        for job in jobs:
            if isinstance(job.error, StorageUnavailable):
                self.failing = job.error.reason
        try:
            self._bus.publish({topic: None for tx in done for topic in tx.topics})
        finally:
            for job in jobs:
                job.end(problem)

    def recent(self, feed: int, cursor: int) -> Changes[Any] | None:
        """Return the changes after `cursor` from the cache of this process's writes, or None."""
        kept = self._recent.get(feed)
        if kept is None or kept.end != self.revisions.get(feed) or not kept.start <= cursor < kept.end:
            return None
        items, waiting = kept.items, kept.waiting
        if cursor != kept.start:
            items = tuple(item for item in items if item.revision > cursor)
            waiting = tuple(each for each in waiting if each.revision > cursor)
        return Changes(cursor, kept.end, items, waiting=waiting, change=kept.change)

    def _record_commit(self, tx: Write) -> None:
        self.note_revisions(tx.revisions)
        for feed, changes in tx.recent.items():
            kept = _merge(self._recent.get(feed), changes)
            self._recent.put(feed, kept, ITEM_BYTES + sum(ITEM_BYTES + getsizeof(item.body) for item in kept.items))

    def note_revisions(self, revisions: Mapping[int, int]) -> list[int]:
        """Note the newest revisions of feeds. Return the feeds that moved."""
        changed = [feed for feed, revision in revisions.items() if revision > self.revisions.get(feed, -1)]
        for feed in changed:
            self.revisions.put(feed, revisions[feed], REVISION_BYTES)
        if ACCESS in changed:
            for listener in self._access_listeners:
                listener()
        return changed

    def _commit(self, execute: Callable[[str], object], changes: int = 1) -> None:
        """Commit by the driver, in a thread if the disk is slow. SQLAlchemy has nothing left to commit."""
        started = time.monotonic()
        if self._commit_s > SLOW_COMMIT_S:
            if (error := self._commit_thread.run(sqlite.commit, execute)) is not None:
                raise error
        else:
            execute("COMMIT")
        self.failing = None
        took = time.monotonic() - started
        # Rises at once, decays slowly: a slow commit must not block the event loop twice.
        self._commit_s = took if took > self._commit_s else 0.98 * self._commit_s + 0.02 * took
        self.on_commit_time(took)
        self._checkpoints.count(changes)

    def close(self) -> None:
        """Close the connection of write transactions; the next one opens another."""
        kept, self._connection = self._connection, None
        if kept is not None:
            kept.invalidate()  # not back into the pool: its busy_timeout is 0
            kept.close()

    def on_access_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a commit changed permissions: it must clear its cache."""
        self._access_listeners.append(listener)

    def revision(self, feed: int, reread: bool = False) -> int:
        """Return the newest revision of a feed; from memory if known, unless `reread`."""
        known = None if reread else self.revisions.get(feed)
        if known is None:
            with self.read() as connection:
                row = REVISION.first(connection, feed=feed)
            # The watcher will not report this revision any more: publish it here.
            self._bus.publish(self.note_revisions({feed: row.revision if row else 0}))
            known = self.revisions[feed]
        return known
