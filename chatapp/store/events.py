"""Connection events of clients and of the server, in the metrics database."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from chatapp.store import sqlite
from chatapp.store.database import Database, now_ms
from chatapp.store.prepared import Prepared
from chatapp.store.tables import connection_events
from chatapp.store.unavailable import StorageUnavailable

RECENT = 50_000  # the newest events that a query for one person scans: some 20 ms

log = logging.getLogger("chatapp.events")


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """One event. (`client`, `number`) is unique: a repeated report is ignored."""

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
# One row at a time: SQLAlchemy would compile and cache a statement for each number of rows.
ADD = Prepared(
    sqlite.insert(connection_events)
    .values({name: bindparam(name) for name in (*COLUMNS, "received_at")})
    .on_conflict_do_nothing()
    .returning(connection_events.c.id)
)


class Events:
    """Queries about connection events."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, events: Sequence[ConnectionEvent]) -> set[tuple[str, int]]:
        """Store events, ignoring known ones. Return (client, number) of the new ones."""
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
        """Return the events from `start` to before `end` (ms) of a person or of all, in order."""
        columns = [connection_events.c[name] for name in COLUMNS]
        at = connection_events.c.happened_at
        query = select(*columns).where(at >= start, at < end, connection_events.c.received_at >= start)
        if person is not None:
            query = query.where(connection_events.c.person == person)
        with self.database.read() as connection:
            found = connection.execute(query.order_by(at, connection_events.c.number)).all()
        return [ConnectionEvent(*row) for row in found]

    def record(self, *events: ConnectionEvent) -> None:
        """Store the server's own events. Never raises: a failure of metrics must not end a connection."""
        try:
            self.add(events)
        except StorageUnavailable:  # already logged
            log.debug("%d connection events were lost", len(events))
        except (SQLAlchemyError, sqlite.Error):
            log.exception("%d connection events were lost", len(events))

    def delete_before(self, before: int, most: int) -> int:
        """Delete at most `most` events received before a time (ms). Return their number."""
        received = connection_events.c.received_at
        old = select(connection_events.c.id).where(received < before).order_by(received).limit(most)
        with self.database.write() as tx:
            done = tx.connection.execute(delete(connection_events).where(connection_events.c.id.in_(old)))
        return done.rowcount

    def states_of(self, person: str, most: int) -> list[ConnectionEvent]:
        """Return the newest state changes of a person's pages, newest first, without those to `connecting`."""
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
