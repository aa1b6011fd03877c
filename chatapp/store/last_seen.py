"""When sessions were last used, and by which transport: noted in memory, written by a thread."""

import logging
from threading import Event, Thread

from sqlalchemy import bindparam, update
from sqlalchemy.exc import SQLAlchemyError

from chatapp.cache import Cache
from chatapp.store import sqlite
from chatapp.store.database import Database, StorageUnavailable, now_ms
from chatapp.store.models import AuthSession
from chatapp.store.prepared import Prepared, Value

WRITE_EVERY_S = 10.0
FRESH_MS = 300_000  # a stored time is kept for so long: one write of a session in five minutes
MOST_NOTED = 10_000
TRANSPORT_MS = {"websocket": 660_000, "polling": 150_000, "": 0}  # for which a note of it holds
POLL_AGAIN_MS = 60_000  # between two notes of polling
NOTED_BYTES = 200
SLICE = 200  # sessions in one transaction
PAUSE_S = 0.05  # between two transactions
# Another worker may have written a later one.
SEEN = Prepared(
    update(AuthSession)
    .where(AuthSession.id == bindparam("session"), AuthSession.last_seen_at < bindparam("at"))
    .values(last_seen_at=bindparam("at"))
)
CARRIED = Prepared(
    update(AuthSession)
    .where(AuthSession.id == bindparam("session"))  # whatever the time of the last note: the clock may be set back
    .values(transport=bindparam("by"), transport_at=bindparam("at"))
)

log = logging.getLogger("chatapp.sessions")


class LastSeen:
    """Thread that stores the times at which sessions were last used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[int, int] = {}  # time in ms, by session
        self._carried: dict[int, str] = {}  # transport by session, not yet written
        self._polled: Cache[int, int] = Cache(MOST_NOTED, MOST_NOTED * NOTED_BYTES)  # when a poll was noted last
        self._stopped = Event()

    def note(self, session: int, stored_at: int) -> None:
        """Note the use of a session, unless its stored time is fresh."""
        now = now_ms()
        if now - stored_at >= FRESH_MS and len(self._noted) < MOST_NOTED:
            self._noted[session] = now

    def note_transport(self, session: int, transport: str) -> None:
        """Note what carries a session's connection: websocket, polling, or "" where a socket has closed."""
        if transport == "polling":
            now = now_ms()
            if 0 <= now - (self._polled.get(session) or 0) < POLL_AGAIN_MS:
                return
            self._polled.put(session, now, NOTED_BYTES)
        else:
            self._polled.drop(session)
        if len(self._carried) < MOST_NOTED:
            self._carried[session] = transport

    def start(self) -> None:
        """Start the thread (under gevent, a greenlet)."""
        Thread(target=self._run, name="chatapp-last-seen", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def write(self) -> int:
        """Write what was noted. Return the number of notes."""
        noted: list[tuple[Prepared, dict[str, Value]]] = []
        noted += [(SEEN, {"session": session, "at": at}) for session, at in self._noted.items()]
        now = now_ms()
        noted += [(CARRIED, {"session": one, "by": by, "at": now}) for one, by in self._carried.items()]
        self._noted, self._carried = {}, {}
        for start in range(0, len(noted), SLICE):
            with self._database.write() as tx:
                for statement, values in noted[start : start + SLICE]:
                    statement.run(tx.connection, **values)
            self._stopped.wait(PAUSE_S)
        return len(noted)

    def _run(self) -> None:
        while not self._stopped.wait(WRITE_EVERY_S):
            try:
                self.write()
            except (SQLAlchemyError, sqlite.Error, StorageUnavailable) as error:  # the next use notes it again
                log.warning("the last use of sessions could not be stored: %s", error)
