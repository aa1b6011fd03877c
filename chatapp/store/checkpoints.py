"""What commits wrote goes from SQLite's log into its file beside the event loop, not inside the commit that happens to
be the one too many: that one would hold everybody up for 10 ms, for two more waits for the disk."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from chatapp.beside import Standby, beside, has_loop
from chatapp.store.hot import driver

PAGES = 1000  # of the log, about, between two checkpoints: SQLite's own number
PAGES_A_COMMIT, PAGES_A_CHANGE = 8, 2  # measured with messages; it only has to be about right
MANY_PAGES = 4000  # from here on the log must begin anew: writers wait a moment, or it would always have news
MOST_PAGES = 10_000  # should that not be enough, the commit sees to it after all

log = logging.getLogger("chatapp.store")


class Checkpoints:
    """Of one database. Where no event loop waits, SQLite makes them."""

    def __init__(self, engine: Engine, writer: AbstractContextManager[object]) -> None:
        self._engine = engine
        self._writer = writer  # the lock of this process's writers
        self._pages = 0  # since the last one, about
        self._standby = Standby(self._make)

    def count(self, changes: int) -> None:
        """A commit of so many changes."""
        self._pages += PAGES_A_COMMIT + PAGES_A_CHANGE * changes
        if self._pages >= PAGES and has_loop():
            self._pages = 0
            self._standby.ask()

    def _make(self) -> None:
        try:
            with self._engine.connect() as connection:
                if _carry(connection) > MANY_PAGES:
                    with self._writer:
                        _carry(connection)  # what came meanwhile
        except (SQLAlchemyError, sqlite3.Error) as error:  # the next one, or a commit, tries again
            log.warning("a checkpoint failed: %s", error)


def _carry(connection: Connection) -> int:
    """Carry over what can be; the log's length in pages."""
    found = beside(_checkpoint, driver(connection))
    if isinstance(found, sqlite3.Error):
        raise found
    return found


def _checkpoint(connection: sqlite3.Connection) -> int | sqlite3.Error:
    """In another thread. What goes wrong is returned: gevent would print what a thread raises."""
    try:
        return int(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])
    except sqlite3.Error as error:
        return error
