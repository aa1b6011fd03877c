"""Errors by their fingerprint, in the metrics database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, select

from chatapp.store import sqlite
from chatapp.store.database import Database
from chatapp.store.models import ErrorGroup

MOST_GROUPS = 150  # of each side: no browser can push out the server's. The one that was quiet longest goes first


@dataclass(frozen=True)
class FoundError:
    """Errors of one fingerprint. `sample`: the places in the code, never a value. Times are ms."""

    fingerprint: str
    side: str  # server, browser
    title: str
    sample: str
    version: str
    number: int
    first_at: int
    last_at: int


NAMES = [column.name for column in ErrorGroup.__table__.columns]
COLUMNS = [getattr(ErrorGroup, name) for name in NAMES]


class ErrorGroups:
    """Queries about errors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, found: Iterable[FoundError]) -> None:
        """Add to the groups of these errors."""
        with self._database.write() as tx:
            for one in found:
                statement = sqlite.insert(ErrorGroup).values({name: getattr(one, name) for name in NAMES})
                new = statement.excluded
                changed = {
                    "number": ErrorGroup.number + new.number,
                    "sample": new.sample,
                    "version": new.version,
                    "last_at": new.last_at,
                }
                tx.connection.execute(statement.on_conflict_do_update(index_elements=["fingerprint"], set_=changed))
            for side in ("server", "browser"):
                kept = select(ErrorGroup.fingerprint).where(ErrorGroup.side == side)
                kept = kept.order_by(ErrorGroup.last_at.desc()).limit(MOST_GROUPS)
                old = ErrorGroup.side == side, ErrorGroup.fingerprint.not_in(kept)
                tx.connection.execute(delete(ErrorGroup).where(*old))

    def newest(self, most: int) -> list[FoundError]:
        """Return the groups, the one that was seen last first."""
        query = select(*COLUMNS).order_by(ErrorGroup.last_at.desc(), ErrorGroup.fingerprint).limit(most)
        with self._database.read() as connection:
            return [FoundError(**row._mapping) for row in connection.execute(query).all()]
