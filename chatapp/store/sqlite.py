"""All that only SQLite has: URLs and pragmas, the begin and end of transactions, checkpoints, upserts, its errors.

The rest of the store is portable SQL; another engine would be a module with the same names.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from chatapp.concurrency import ParkedWorker, SingleThread, has_loop
from chatapp.store.prepared import driver

__all__ = ["Checkpoints", "Error", "begin_write", "commit", "configure", "data_version", "insert", "migrations_of"]
__all__ += ["VERSION", "is_damaged", "open_writer", "reason_of", "url"]

Error = sqlite3.Error
VERSION = sqlite3.sqlite_version
MANUAL = "manual"  # execution option: the driver begins and ends transactions
BUSY_TIMEOUT_MS = 5000  # timeout of a write that waits for other writers, in this process or another

PAGES = 1000  # of the WAL, about, between two checkpoints: SQLite's default
PAGES_A_COMMIT, PAGES_A_CHANGE = 8, 2  # measured with messages; an estimate
MANY_PAGES = 4000  # from here on writers wait for the checkpoint: under load the WAL would never restart
PAGE_BYTES = 4096
MOST_PAGES = 10_000  # wal_autocheckpoint: above this, a commit makes one itself

WARN_EVERY_S = 600.0  # about a WAL that only grows

Reason = Literal["busy", "full", "failed"]
# SQLite's primary result codes (sqlite.org/rescode.html). SQLITE_CORRUPT is not temporary.
TEMPORARY: dict[int, Reason] = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_PROTOCOL: "busy",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_NOMEM: "failed",
    sqlite3.SQLITE_READONLY: "failed",
    sqlite3.SQLITE_IOERR: "failed",
    sqlite3.SQLITE_CANTOPEN: "failed",
}

log = logging.getLogger("chatapp.store")


def url(file: Path) -> str:
    """Return the URL of a database file."""
    return f"sqlite:///{file}"


def configure(engine: Engine, synchronous: str) -> None:
    """Configure each new connection: WAL, foreign keys, explicit BEGIN.

    `synchronous`: FULL if a commit must survive a power cut, NORMAL for measurements.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions
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
        if not connection.get_execution_options().get(MANUAL):
            driver(connection).execute("BEGIN")


def open_writer(engine: Engine) -> Connection:
    """Open a connection for write transactions: `begin_write` begins them, the driver ends them. SQLAlchemy sees a
    single one that never ends, which saves a tenth of a post's cost."""
    connection = engine.connect().execution_options(**{MANUAL: True})
    connection.begin()
    driver(connection).execute("PRAGMA busy_timeout=0")
    return connection


def begin_write(execute: Callable[[str], object], deadline: float) -> None:
    """Take the write lock; wait until `deadline` (monotonic) if another process holds it. SQLite's busy handler would
    block the event loop meanwhile, and a deferred transaction that becomes a writer can fail at once."""
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


def commit(execute: Callable[[str], object]) -> sqlite3.Error | None:
    """Commit; for another thread. Errors are returned: gevent would print an exception of the thread."""
    try:
        execute("COMMIT")
    except sqlite3.Error as error:
        return error
    return None


def data_version(connection: Any) -> int:
    """Return a number that changes with every commit of another connection."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def used_bytes(connection: Connection) -> int:
    """Return the size of a database's used pages."""
    size, pages, free = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_size", "page_count", "freelist_count")
    )
    return size * (pages - free)


def reason_of(error: BaseException) -> Reason | None:
    """Return why the database is temporarily unavailable, or None if this error says something else."""
    code = _primary_code(error)
    return TEMPORARY.get(code) if code is not None else None


def is_damaged(error: BaseException) -> bool:
    """Return True if the file is corrupt, or no database."""
    return _primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _primary_code(error: BaseException) -> int | None:
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None) if isinstance(cause, sqlite3.Error) else None
    return code & 0xFF if code is not None else None


def migrations_of(file: Path) -> list[str]:
    """Return the migrations that a file has, without loading SQLAlchemy's engine. Raises Error if it is damaged."""
    with closing(sqlite3.connect(file)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            return []  # not created yet, or interrupted
        return [row[0] for row in database.execute("SELECT version_num FROM alembic_version")]


class Checkpoints:
    """WAL checkpoints of one database, in a thread; without an event loop SQLite makes them.

    SQLite's automatic checkpoint inside a commit would block the event loop for 10 ms.
    """

    def __init__(self, engine: Engine, writer: AbstractContextManager[object]) -> None:
        self._engine = engine
        self._writer = writer  # this process's write lock
        self._pages = 0  # since the last one, about
        self._warned_at = float("-inf")
        self._worker = ParkedWorker(self._make)
        self._thread = SingleThread()

    def count(self, changes: int) -> None:
        """Count a commit of this many changes, and start a checkpoint if one is due."""
        self._pages += PAGES_A_COMMIT + PAGES_A_CHANGE * changes
        if self._pages >= PAGES and has_loop():
            self._pages = 0
            self._worker.ask()

    def _make(self) -> None:
        try:
            with self._engine.connect() as connection:
                pages, remaining = self._checkpoint(connection)
                if pages > MANY_PAGES:
                    with self._writer:
                        pages, remaining = self._checkpoint(connection)  # the commits since then
            if remaining > MOST_PAGES:
                self._warn(remaining)
        except (SQLAlchemyError, sqlite3.Error) as error:  # the next checkpoint or commit tries again
            log.warning("a checkpoint failed: %s", error)

    def _warn(self, pages: int) -> None:
        """Log that a long read transaction keeps the WAL from being checkpointed."""
        now = time.monotonic()
        if now - self._warned_at < WARN_EVERY_S:
            return
        self._warned_at = now
        log.warning(
            "%s-wal has grown to %d MB and grows on: some program has been reading the database for long, such as a "
            "backup or an open sqlite3. End it (lsof names it); the file is used again after that.",
            self._engine.url.database,
            pages * PAGE_BYTES >> 20,
        )

    def _checkpoint(self, connection: Connection) -> tuple[int, int]:
        """Run a passive checkpoint. Return the pages of the WAL, and those that remain in it."""
        found = self._thread.run(_run_checkpoint, driver(connection))
        if isinstance(found, sqlite3.Error):
            raise found
        return found


def _run_checkpoint(connection: sqlite3.Connection) -> tuple[int, int] | sqlite3.Error:
    """Run in another thread. Errors are returned: gevent would print an exception of the thread."""
    try:
        _, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(pages), int(pages) - int(copied)
    except sqlite3.Error as error:
        return error
