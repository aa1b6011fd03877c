"""Between processes of one host: SQLite's data_version says that somebody committed, the feeds' numbers say where.

A look that finds nothing costs some microseconds and touches no page of the database.
"""

from __future__ import annotations

import logging
import time
from threading import Event, Thread
from typing import Any

from sqlalchemy import and_, func, or_, select

from chatapp.bus import ACCESS, Bus, session_topic
from chatapp.store.database import Database
from chatapp.store.prepared import Prepared
from chatapp.store.tables import feeds, people, sessions
from chatapp.store.unavailable import StorageUnavailable, translating

LOOK_EVERY_S = 0.02  # with other workers: how late their news may be
LOOK_SELDOM_S = 1.0  # alone: only a command such as `admin reset-password` writes beside us
ENDS = Prepared(
    select(
        select(func.max(sessions.c.revoked_at)).scalar_subquery(),
        func.count(people.c.disabled_at),
        func.max(people.c.disabled_at),
    )
)

log = logging.getLogger("chatapp.watch")


class Watcher:
    """Publishes in this process what other processes committed."""

    def __init__(self, database: Database, bus: Bus, workers: int) -> None:
        self._database = database
        self._bus = bus
        self._every_s = LOOK_EVERY_S if workers > 1 else LOOK_SELDOM_S
        self._stopped = Event()
        # data_version changes for the commits of every other connection; hence one that nobody else uses.
        self._own: Any = None
        self._version = 0
        self._change = 0
        self._ends: tuple[Any, ...] = (None, 0, None)  # what tells that sessions ended

    def start(self) -> None:
        """Watch until `stop`. Under gevent this is a greenlet."""
        self._own = self._database.engine.raw_connection()
        self._version = self._data_version()
        with self._database.read() as connection:
            self._change = connection.execute(select(func.coalesce(func.max(feeds.c.change), 0))).scalar_one()
            self._ends = tuple(ENDS.run(connection).fetchone())
        Thread(target=self._watch, name="chatapp-watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def look(self) -> None:
        """Publish what was committed elsewhere since the last look."""
        version = self._data_version()
        if version == self._version:
            return
        query = select(feeds.c.id, feeds.c.revision, feeds.c.change).where(feeds.c.change > self._change)
        with self._database.read() as connection:
            moved = connection.execute(query).all()
            ends = tuple(ENDS.run(connection).fetchone())
        ended = [ACCESS, *map(session_topic, self._ended_sessions())] if ends != self._ends else []
        # Only what was read whole has been seen: where reading fails, the next look sees it again.
        self._version = version
        self._change = max([self._change, *(row.change for row in moved)])
        self._ends = ends
        changed = self._database.note_revisions({row.id: row.revision for row in moved})
        self._bus.publish(dict.fromkeys([*changed, *ended]))

    def _ended_sessions(self) -> list[int]:
        """Those that were revoked since the last look, and those of people who were disabled, by whatever means."""
        is_new = sessions.c.revoked_at > (self._ends[0] or 0)
        is_disabled = and_(sessions.c.revoked_at.is_(None), people.c.disabled_at.is_not(None))
        query = select(sessions.c.id).join(people).where(or_(is_new, is_disabled))
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def _data_version(self) -> int:
        with translating():
            return int(self._own.driver_connection.execute("PRAGMA data_version").fetchone()[0])

    def _watch(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.look()
            except StorageUnavailable:  # the store has said so
                time.sleep(1)
            except Exception:  # the outermost line of a loop that must outlive a database that is busy or full
                log.exception("looking for other processes' commits failed")
                time.sleep(1)
