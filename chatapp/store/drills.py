"""Drills (fault injection for a bounded time), one row each. A change bumps ACCESS, so that every worker notices it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from uuid import uuid4

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from chatapp.bus import ACCESS
from chatapp.store import models
from chatapp.store.audit import SCHEDULE, SHELL, Actor, record
from chatapp.store.database import Database, now_ms
from chatapp.store.models import Person


class DrillRunning(Exception):
    """Another drill is running."""


@dataclass(frozen=True)
class Drill:
    """An injected fault. Times are milliseconds since 1970 UTC; `amount_s` is its parameter (a delay, a pause)."""

    id: int
    uuid: str
    fault: str
    person_id: int | None  # None: everybody
    person: str | None  # their UUID
    amount_s: float
    starts_at: int
    ends_at: int

    def left_s(self) -> float:
        """Return the remaining time, s, at most its length. 0: over, or the clock was set back too far to tell."""
        length, left = self.ends_at - self.starts_at, self.ends_at - now_ms()
        return min(left, length) / 1000 if 0 < left <= 2 * length else 0.0


COLUMNS = [Person.uuid if field.name == "person" else getattr(models.Drill, field.name) for field in fields(Drill)]


class DrillTable:
    """Queries about drills."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(
        self, fault: str, seconds: float, amount_s: float, person: int | None = None, slot: str | None = None
    ) -> Drill:
        """Start a drill. Raises DrillRunning, also if another worker took this slot."""
        now = now_ms()
        ends_at = now + round(seconds * 1000)
        try:
            with self._database.write() as tx:
                newest = self._newest(tx.connection)
                if newest and newest.left_s():
                    raise DrillRunning
                values = {"uuid": str(uuid4()), "fault": fault, "person_id": person, "amount_s": amount_s}
                tx.connection.execute(insert(models.Drill).values(**values, starts_at=now, ends_at=ends_at, slot=slot))
                by = Actor(None, SCHEDULE if slot else SHELL)
                record(tx, "drill-started", by, person, detail=f"{fault} {seconds:g} s")
                tx.bump(ACCESS)
        except IntegrityError:
            raise DrillRunning from None
        started = self.newest()
        assert started is not None
        return started

    def end(self) -> int:
        """End the running drills. Return their number."""
        now = now_ms()
        with self._database.write() as tx:
            ended = tx.connection.execute(
                update(models.Drill).where(models.Drill.ends_at > now).values(ends_at=now)
            ).rowcount
            if ended:
                record(tx, "drill-ended", Actor(None, SHELL))
                tx.bump(ACCESS)
        return ended

    def running(self) -> Drill | None:
        """Return the running drill, or None."""
        newest = self.newest()
        return newest if newest and newest.left_s() else None

    def since(self, at: int) -> list[Drill]:
        """Return the drills that ended after a time (ms), or still run, in their order."""
        query = select(*COLUMNS).select_from(models.Drill).outerjoin(Person).where(models.Drill.ends_at > at)
        with self._database.read() as connection:
            return [Drill(*row) for row in connection.execute(query.order_by(models.Drill.id)).all()]

    def newest(self) -> Drill | None:
        """Return the drill started last, or None."""
        with self._database.read() as connection:
            return self._newest(connection)

    def _newest(self, connection: Connection) -> Drill | None:
        query = select(*COLUMNS).select_from(models.Drill).outerjoin(Person).order_by(models.Drill.id.desc()).limit(1)
        row = connection.execute(query).first()
        return Drill(*row) if row else None
