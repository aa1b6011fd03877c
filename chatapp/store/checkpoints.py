"""WAL checkpoints in a thread. SQLite's automatic checkpoint inside a commit would block the event loop for 10 ms."""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from chatapp.concurrency import ParkedWorker, SingleThread, has_loop
from chatapp.store.prepared import driver

PAGES = 1000  # of the WAL, about, between two checkpoints: SQLite's default
PAGES_A_COMMIT, PAGES_A_CHANGE = 8, 2  # measured with messages; an estimate
MANY_PAGES = 4000  # from here on writers wait for the checkpoint: under load the WAL would never restart
PAGE_BYTES = 4096
MOST_PAGES = 10_000  # wal_autocheckpoint: the commit's own, if that was not enough

WARN_EVERY_S = 600.0  # about a WAL that only grows

log = logging.getLogger("chatapp.store")


class Checkpoints:
    """Checkpoints of one database; without an event loop SQLite makes them."""

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
