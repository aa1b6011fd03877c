"""Budgets that all workers share: each takes what it needs for a second, and asks again when that is spent."""

from typing import Any

from sqlalchemy import Select, select

from chatapp.store import sqlite
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.models import Lease


class LeaseTable:
    """Leaky buckets, by kind and person."""

    def wait_s(self, kind: str, person: int, burst: float, per_s: float) -> float:
        """Return the seconds until there is some again; 0: now."""
        with self._database.read() as connection:
            row = connection.execute(_row(kind, person)).first()
        return max(0.0, (_used(row, now_ms(), per_s) - burst) / per_s)

    def add(self, kind: str, person: int, amount: float, per_s: float) -> None:
        """Use so much, also more than there is; less than 0 gives back. Raises StorageUnavailable."""
        with self._database.write() as tx:
            row, now = tx.connection.execute(_row(kind, person)).first(), now_ms()
            _put(tx, kind, person, max(0.0, _used(row, now, per_s) + amount), now)

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, kind: str, person: int, burst: float, per_s: float, most: float) -> tuple[float, float]:
        """Take up to `most` (1 or more) from a bucket. Return the amount, and if it is 0 the wait until 1 is there, s.

        Raises StorageUnavailable."""
        with self._database.write() as tx:
            row, now = tx.connection.execute(_row(kind, person)).first(), now_ms()
            used = _used(row, now, per_s)
            amount = min(most, burst - used)
            if amount < 0.999 and not (row and row.at > now):
                return 0.0, (used + 1 - burst) / per_s
            amount = max(0.0, amount)  # after the clock was set back, the row starts over
            _put(tx, kind, person, used + amount, now)
            return amount, 0.0 if amount >= 0.999 else (used + 1 - burst) / per_s


def _row(kind: str, person: int) -> Select[float, int]:
    return select(Lease.used, Lease.at).where(Lease.kind == kind, Lease.person_id == person)


def _used(row: Any, now: int, per_s: float) -> float:
    """Return how much of a bucket is used now. The clock may have been set back."""
    return max(0.0, row.used - max(0, now - row.at) / 1000 * per_s) if row else 0.0


def _put(tx: Write, kind: str, person: int, used: float, now: int) -> None:
    values = {"used": used, "at": now}
    insert = sqlite.insert(Lease).values(kind=kind, person_id=person, **values)
    tx.connection.execute(insert.on_conflict_do_update(["kind", "person_id"], set_=values))
