"""Publish other processes' commits: SQLite's data_version tells that there was one, feeds.change tells in which feeds.

A poll that finds nothing costs some microseconds and reads no page of the database.
"""

from __future__ import annotations

import logging
import time
from threading import Event, Thread
from typing import Any

from sqlalchemy import and_, func, or_, select

from chatapp.bus import ACCESS, Bus, session_topic
from chatapp.store import sqlite
from chatapp.store.database import Database, StorageUnavailable, translate_errors
from chatapp.store.models import AuthSession, Feed, Person

LOOK_EVERY_S = 0.02  # with several workers: the latency of their updates
LOOK_SELDOM_S = 1.0  # with one: only a command such as `admin reset-password` is another writer
SESSION_ENDS = select(
    select(func.max(AuthSession.revoked_at)).scalar_subquery(),
    func.count(Person.disabled_at),
    func.max(Person.disabled_at),
)

log = logging.getLogger("chatapp.watch")


class Watcher:
    """Thread that publishes other processes' commits on this process's bus."""

    def __init__(self, database: Database, bus: Bus, workers: int) -> None:
        self._database = database
        self._bus = bus
        self._interval_s = LOOK_EVERY_S if workers > 1 else LOOK_SELDOM_S
        self._stopped = Event()
        # data_version ignores the commits of its own connection: nothing else may use this one.
        self._connection: Any = None
        self._version = 0
        self._change = 0
        self._ends: tuple[Any, ...] = (None, 0, None)  # changes if a session ended

    def start(self) -> None:
        """Start the thread (under gevent, a greenlet)."""
        self._connection = self._database.engine.raw_connection()
        self._version = self._data_version()
        with self._database.read() as connection:
            self._change = connection.execute(select(func.coalesce(func.max(Feed.change), 0))).scalar_one()
            self._ends = tuple(connection.execute(SESSION_ENDS).one())
        Thread(target=self._watch, name="chatapp-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def look(self) -> None:
        """Publish the commits of other processes since the last call."""
        version = self._data_version()
        if version == self._version:
            return
        query = select(Feed.id, Feed.revision, Feed.change).where(Feed.change > self._change)
        with self._database.read() as connection:
            moved = connection.execute(query).all()
            ends = tuple(connection.execute(SESSION_ENDS).one())
        ended = [ACCESS, *map(session_topic, self._ended_sessions())] if ends != self._ends else []
        # Only after every read succeeded: if one fails, the next call repeats it.
        self._version = version
        self._change = max([self._change, *(row.change for row in moved)])
        self._ends = ends
        changed = self._database.note_revisions({row.id: row.revision for row in moved})
        self._bus.publish(dict.fromkeys([*changed, *ended]))

    def _ended_sessions(self) -> list[int]:
        """Return sessions revoked since the last call, and all of disabled people."""
        is_new = AuthSession.revoked_at > (self._ends[0] or 0)
        is_disabled = and_(AuthSession.revoked_at.is_(None), Person.disabled_at.is_not(None))
        query = select(AuthSession.id).join(Person).where(or_(is_new, is_disabled))
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def _data_version(self) -> int:
        with translate_errors():
            return sqlite.data_version(self._connection.driver_connection)

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self.look()
            except StorageUnavailable:  # already logged
                time.sleep(1)
            except Exception:  # the loop must outlive every error of the database
                log.exception("looking for other processes' commits failed")
                time.sleep(1)
