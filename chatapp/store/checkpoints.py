"""What commits wrote goes from SQLite's log into its file beside the event loop, not inside the commit that happens to
be the one too many: that one would hold everybody up for 10 ms, for two more waits for the disk."""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from chatapp.concurrency import ParkedWorker, SingleThread, has_loop
from chatapp.store.prepared import driver

PAGES = 1000  # of the log, about, between two checkpoints: SQLite's own number
PAGES_A_COMMIT, PAGES_A_CHANGE = 8, 2  # measured with messages; it only has to be about right
MANY_PAGES = 4000  # from here on the log must start over: writers wait a moment, or it would always have news
PAGE_BYTES = 4096
MOST_PAGES = 10_000  # should that not be enough, the commit sees to it after all

WARN_EVERY_S = 600.0  # how often a log that only grows is said

log = logging.getLogger("chatapp.store")


class Checkpoints:
    """Of one database. Where no event loop waits, SQLite makes them."""

    def __init__(self, engine: Engine, writer: AbstractContextManager[object]) -> None:
        self._engine = engine
        self._writer = writer  # the lock of this process's writers
        self._pages = 0  # since the last one, about
        self._warned_at = float("-inf")
        self._standby = ParkedWorker(self._make)
        self._thread = SingleThread()

    def count(self, changes: int) -> None:
        """A commit of so many changes."""
        self._pages += PAGES_A_COMMIT + PAGES_A_CHANGE * changes
        if self._pages >= PAGES and has_loop():
            self._pages = 0
            self._standby.ask()

    def _make(self) -> None:
        try:
            with self._engine.connect() as connection:
                pages, left = self._carry(connection)
                if pages > MANY_PAGES:
                    with self._writer:
                        pages, left = self._carry(connection)  # what came meanwhile
            if left > MOST_PAGES:
                self._warn(left)
        except (SQLAlchemyError, sqlite3.Error) as error:  # the next one, or a commit, tries again
            log.warning("a checkpoint failed: %s", error)

    def _warn(self, pages: int) -> None:
        """Somebody's transaction needs the database as it was before all this: nothing of it can be carried over."""
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

    def _carry(self, connection: Connection) -> tuple[int, int]:
        """Carry over what can be; the log's length in pages, and how many of them had to stay."""
        found = self._thread.run(_checkpoint, driver(connection))
        if isinstance(found, sqlite3.Error):
            raise found
        return found


def _checkpoint(connection: sqlite3.Connection) -> tuple[int, int] | sqlite3.Error:
    """In another thread. What goes wrong is returned: gevent would print what a thread raises."""
    try:
        _, pages, carried = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(pages), int(pages) - int(carried)
    except sqlite3.Error as error:
        return error
