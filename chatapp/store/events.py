"""Connection events of clients and of the server, in the metrics database."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import bindparam, delete, func, literal_column, select, tuple_
from sqlalchemy.exc import SQLAlchemyError

from chatapp.store import models, sqlite
from chatapp.store.database import Database, StorageUnavailable, now_ms
from chatapp.store.prepared import Prepared

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
    page: str = ""
    network: str = ""
    agent: str = ""
    at: int = 0  # by the server's clock; 0: as `happened_at`

    @property
    def facts(self) -> dict[str, Any]:
        """Return `data`; {} if it was cut."""
        try:
            found = json.loads(self.data)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class EventFilter:
    """The events of an operator's question; "" and 0 for any. `network`: the beginning of its key."""

    person: str = ""
    network: str = ""
    agent: str = ""
    type: str = ""
    reason: str = ""
    since: int = 0


NAMES = [field.name for field in fields(ConnectionEvent)]
COLUMNS = [getattr(models.ConnectionEvent, name) for name in NAMES]
# One row at a time: SQLAlchemy would compile and cache a statement for each number of rows.
ADD = Prepared(
    sqlite.insert(models.ConnectionEvent)
    .values({name: bindparam(name) for name in (*NAMES, "received_at")})
    .on_conflict_do_nothing()
    .returning(models.ConnectionEvent.id)
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
                values = {name: getattr(event, name) for name in NAMES} | {"at": event.at or event.happened_at}
                if ADD.run(tx.connection, **values, received_at=now).fetchall():
                    new.add((event.client, event.number))
        return new

    def between(self, start: int, end: int, person: str | None = None) -> list[ConnectionEvent]:
        """Return the events from `start` to before `end` (ms) of a person or of all, in order."""
        at = models.ConnectionEvent.happened_at
        query = select(*COLUMNS).where(at >= start, at < end, models.ConnectionEvent.received_at >= start)
        if person is not None:
            query = query.where(models.ConnectionEvent.person == person)
        with self.database.read() as connection:
            found = connection.execute(query.order_by(at, models.ConnectionEvent.number)).all()
        return [ConnectionEvent(*row) for row in found]

    def scan(self, start: int, end: int, most: int) -> Iterator[list[ConnectionEvent]]:
        """Yield the events from `start` to before `end`, by the server's clock (ms), in order, at most so many at once.
        None comes twice, even if others are stored meanwhile."""
        at, number, last = models.ConnectionEvent.at, models.ConnectionEvent.id, (start, 0)
        while True:
            query = select(number, *COLUMNS).where(at >= last[0], at < end, tuple_(at, number) > last)
            with self.database.read() as connection:
                rows = connection.execute(query.order_by(at, number).limit(most)).all()
            if rows:
                found = [ConnectionEvent(*row[1:]) for row in rows]
                last = (found[-1].at, rows[-1][0])
                yield found
            if len(rows) < most:
                return

    def newest(self, types: Sequence[str], most: int) -> list[ConnectionEvent]:
        """Return the newest events of these types, newest first."""
        at = models.ConnectionEvent.at
        query = select(*COLUMNS).where(models.ConnectionEvent.type.in_(types))
        query = query.order_by(at.desc(), models.ConnectionEvent.id.desc()).limit(most)
        with self.database.read() as connection:
            return [ConnectionEvent(*row) for row in connection.execute(query).all()]

    def find(self, wanted: EventFilter, most: int, before: int = 0) -> list[tuple[int, ConnectionEvent]]:
        """Return at most so many events with their numbers, the newest first, after the event numbered `before`."""
        event, query = models.ConnectionEvent, select(models.ConnectionEvent.id, *COLUMNS)
        if before:
            last = select(event.at).where(event.id == before).scalar_subquery()
            query = query.where(tuple_(event.at, event.id) < tuple_(last, before))
        for column in ("person", "agent", "type", "reason"):
            if value := getattr(wanted, column):
                query = query.where(getattr(event, column) == value)
        if wanted.network:
            query = query.where(event.network.startswith(wanted.network, autoescape=True))
        if wanted.since:
            query = query.where(event.at >= wanted.since)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(event.at.desc(), event.id.desc()).limit(most)).all()
        return [(row[0], ConnectionEvent(*row[1:])) for row in rows]

    def start_of_newest(self, start: int, end: int, most: int) -> int:
        """Return the time (ms) since which there are at most so many events before `end`; not before `start`."""
        at = models.ConnectionEvent.at
        query = select(at).where(at >= start, at < end).order_by(at.desc()).offset(most).limit(1)
        with self.database.read() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return start if found is None else found + 1

    def since(self, kind: str, start: int, most: int = 100) -> list[ConnectionEvent]:
        """Return the server's own events of a type, of no person, from a time on (ms), newest first."""
        event = models.ConnectionEvent
        query = select(*COLUMNS).where(event.person == literal_column("''"), event.type == kind, event.at >= start)
        query = query.order_by(event.at.desc()).limit(most)
        with self.database.read() as connection:
            return [ConnectionEvent(*row) for row in connection.execute(query).all()]

    def of_page(self, page: str, most: int) -> list[ConnectionEvent]:
        """Return the newest events of a page, in order."""
        at, number = models.ConnectionEvent.at, models.ConnectionEvent.number
        query = (
            select(*COLUMNS).where(models.ConnectionEvent.page == page).order_by(at.desc(), number.desc()).limit(most)
        )
        with self.database.read() as connection:
            return [ConnectionEvent(*row) for row in connection.execute(query).all()][::-1]

    def late_since(self, received: int, before: int) -> int | None:
        """Return the time (ms) of the earliest event before `before` that was received since `received`."""
        at = models.ConnectionEvent.at
        query = select(func.min(at + 0)).where(  # + 0: else SQLite walks all events by `at`
            models.ConnectionEvent.received_at >= received, at < before
        )
        with self.database.read() as connection:
            return connection.execute(query).scalar_one()

    def record(self, *events: ConnectionEvent) -> None:
        """Store the server's own events. Never raises: a failure of metrics must not end a connection."""
        try:
            self.add(events)
        except StorageUnavailable:  # already logged
            log.debug("%d connection events were lost", len(events))
        except (SQLAlchemyError, sqlite.Error):
            log.exception("%d connection events were lost", len(events))

    def used_bytes(self) -> int:
        """Return the size of the metrics database, without the room that new rows will reuse."""
        with self.database.read() as connection:
            return sqlite.used_bytes(connection)

    def delete_before(self, before: int, most: int) -> int:
        """Delete at most `most` events received before a time (ms). Return their number."""
        received = models.ConnectionEvent.received_at
        old = select(models.ConnectionEvent.id).where(received < before).order_by(received).limit(most)
        with self.database.write() as tx:
            done = tx.connection.execute(delete(models.ConnectionEvent).where(models.ConnectionEvent.id.in_(old)))
        return done.rowcount

    def forget(self, person: str, scanned: int, pause_s: float) -> None:
        """Delete all events of a person, in transactions that scan so many each: no index names people."""
        number = models.ConnectionEvent.id
        with self.database.read() as connection:
            newest = connection.execute(select(func.max(number))).scalar_one() or 0
        for start in range(0, newest + 1, scanned):
            which = (number >= start, number < start + scanned, models.ConnectionEvent.person == person)
            with self.database.write() as tx:
                tx.connection.execute(delete(models.ConnectionEvent).where(*which))
            time.sleep(pause_s)

    def history_of(self, person: str, most: int) -> list[ConnectionEvent]:
        """Return the newest state changes (without those to `connecting`) and renewals of a person's pages."""
        is_state = (models.ConnectionEvent.type == "state") & (models.ConnectionEvent.state_to != "connecting")
        query = (
            select(*COLUMNS)
            .where(models.ConnectionEvent.person == person, is_state | (models.ConnectionEvent.type == "renewed"))
            .where(models.ConnectionEvent.id > select(func.max(models.ConnectionEvent.id) - RECENT).scalar_subquery())
            .order_by(models.ConnectionEvent.id.desc())
            .limit(most)
        )
        with self.database.read() as connection:
            found = [ConnectionEvent(*row) for row in connection.execute(query).all()]
        return sorted(found, key=lambda event: (event.happened_at, event.number), reverse=True)
