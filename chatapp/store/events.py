"""Connection events: what clients and the server's own side saw of connections, in the metrics database."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError

from chatapp.store.database import Database, now_ms
from chatapp.store.prepared import Prepared
from chatapp.store.tables import connection_events
from chatapp.store.unavailable import StorageUnavailable

RECENT = 50_000  # how many of the newest events are looked through for one person's: some 20 ms

log = logging.getLogger("chatapp.events")


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """One event, numbered by whoever saw it (`client`), so that a repeated report changes nothing."""

    client: str
    number: int
    person: str
    type: str
    transport: str | None
    state_from: str | None
    state_to: str | None
    reason: str | None
    happened_at: int
    data: str


COLUMNS = [field.name for field in fields(ConnectionEvent)]
# One row at a time: a statement for many is another statement for each number of rows, and is kept as such.
ADD = Prepared(
    insert(connection_events)
    .values({name: bindparam(name) for name in (*COLUMNS, "received_at")})
    .on_conflict_do_nothing()
    .returning(connection_events.c.id)
)


class Events:
    """Writes and reads connection events."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, events: Sequence[ConnectionEvent]) -> set[tuple[str, int]]:
        """Store events; those already there are left as they are. Returns (client, number) of the new ones."""
        if not events:
            return set()
        now, new = now_ms(), set()
        with self.database.write() as tx:
            for event in events:
                values = {name: getattr(event, name) for name in COLUMNS}
                if ADD.run(tx.connection, **values, received_at=now).fetchall():
                    new.add((event.client, event.number))
        return new

    def between(self, start: int, end: int, person: str | None = None) -> list[ConnectionEvent]:
        """What was reported to happen from `start` to `end` (ms), to a person or to all, in order."""
        columns = [connection_events.c[name] for name in COLUMNS]
        at = connection_events.c.happened_at
        query = select(*columns).where(at >= start, at < end, connection_events.c.received_at >= start)
        if person is not None:
            query = query.where(connection_events.c.person == person)
        with self.database.read() as connection:
            found = connection.execute(query.order_by(at, connection_events.c.number)).all()
        return [ConnectionEvent(*row) for row in found]

    def note(self, *events: ConnectionEvent) -> None:
        """Store the server's own events. Where that fails it is logged: measuring must not end what is measured."""
        try:
            self.add(events)
        except StorageUnavailable:  # the store has said so, and says it every ten seconds
            log.debug("%d connection events were lost", len(events))
        except (SQLAlchemyError, sqlite3.Error):
            log.exception("%d connection events were lost", len(events))

    def forget(self, before: int, most: int) -> int:
        """Delete at most so many of the events that were received before a time (ms); how many there were."""
        received = connection_events.c.received_at
        old = select(connection_events.c.id).where(received < before).order_by(received).limit(most)
        with self.database.write() as tx:
            done = tx.connection.execute(delete(connection_events).where(connection_events.c.id.in_(old)))
        return done.rowcount

    def states_of(self, person: str, most: int) -> list[ConnectionEvent]:
        """The newest changes of state that a person's pages reported, newest first; a page's start is none."""
        columns = [connection_events.c[name] for name in COLUMNS]
        query = (
            select(*columns)
            .where(connection_events.c.person == person, connection_events.c.type == "state")
            .where(connection_events.c.state_to != "connecting")
            .where(connection_events.c.id > select(func.max(connection_events.c.id) - RECENT).scalar_subquery())
            .order_by(connection_events.c.id.desc())
            .limit(most)
        )
        with self.database.read() as connection:
            found = [ConnectionEvent(*row) for row in connection.execute(query).all()]
        return sorted(found, key=lambda event: (event.happened_at, event.number), reverse=True)
