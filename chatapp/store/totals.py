"""Totals that outlive their rows, in the metrics database: of workers that ended, and of the figures as they were told.

A counter that was told never falls: not when a worker dies, nor when old rows are deleted, nor when a minute is
counted again and is less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from sqlalchemy import delete, select

from chatapp.store import sqlite
from chatapp.store.database import Database, Write
from chatapp.store.models import Total, WorkerRow

WORKERS, FIGURES = "workers", "figures"
ADDED = ("counts", "histograms", "cpu_s")  # of a worker's row: totals since its start


@dataclass(frozen=True)
class Told:
    """Figures as they were told last. `base`: the sum of all before `through` (ms), which changes no more."""

    through: int = 0
    base: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


class Totals:
    """Queries about totals."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Workers

    def of_workers(self) -> dict[str, Any]:
        """Return the sum of all workers' totals since the first start, in the form of a worker's row."""
        with self._database.read() as connection:  # one moment: no row is in both, or in none
            kept = connection.execute(select(Total.data).where(Total.name == WORKERS)).scalar_one_or_none()
            rows = connection.execute(select(WorkerRow.data)).scalars().all()
        whole: dict[str, Any] = json.loads(kept) if kept else {}
        for row in rows:
            whole = _with_row(whole, json.loads(row))
        return whole

    def forget_workers(self, before: int) -> None:
        """Delete the rows of workers that said nothing since a time (ms); their totals are kept."""
        is_old = WorkerRow.at < before
        with self._database.read() as connection:
            if connection.execute(select(WorkerRow.worker).where(is_old).limit(1)).first() is None:
                return
        with self._database.write() as tx:
            gone = tx.connection.execute(delete(WorkerRow).where(is_old).returning(WorkerRow.data)).scalars().all()
            whole = self._read(tx, WORKERS)
            for row in gone:
                whole = _with_row(whole, json.loads(row))
            self._keep(tx, WORKERS, whole)

    # Figures

    def told(self) -> Told:
        """Return the figures as they were told last."""
        with self._database.read() as connection:
            kept = connection.execute(select(Total.data).where(Total.name == FIGURES)).scalar_one_or_none()
        return Told(**json.loads(kept)) if kept else Told()

    def tell(self, through: int, base: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
        """Keep figures that are about to be told. Return them, none less than it was told before."""
        with self._database.write() as tx:
            kept = Told(**self._read(tx, FIGURES))
            told: dict[str, Any] = most(kept.told, figures)
            if kept.through > through:  # another worker was faster
                through, base = kept.through, kept.base
            self._keep(tx, FIGURES, {"through": through, "base": base, "told": told})
        return told

    def _read(self, tx: Write, name: str) -> dict[str, Any]:
        kept = tx.connection.execute(select(Total.data).where(Total.name == name)).scalar_one_or_none()
        return dict(json.loads(kept)) if kept else {}

    def _keep(self, tx: Write, name: str, data: Mapping[str, Any]) -> None:
        statement = sqlite.insert(Total).values(name=name, data=json.dumps(data, separators=(",", ":")))
        kept = statement.on_conflict_do_update(index_elements=["name"], set_={"data": statement.excluded.data})
        tx.connection.execute(kept)


def _with_row(whole: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _sum(whole.get(name), row.get(name)) for name in ADDED}


def _sum(one: Any, other: Any) -> Any:
    """Return the sum of numbers, or of dictionaries of them."""
    if isinstance(one or other, dict):
        one, other = one or {}, other or {}
        return {key: _sum(one.get(key), other.get(key)) for key in {**one, **other}}
    return round((one or 0) + (other or 0), 2)


def most(one: Any, other: Any) -> Any:
    """Return the greater of each two numbers, in dictionaries and lists of one form."""
    if isinstance(one or other, dict):
        one, other = one or {}, other or {}
        return {key: most(one.get(key), other.get(key)) for key in {**one, **other}}
    if isinstance(one or other, list):
        return [max(pair) for pair in zip_longest(one or (), other or (), fillvalue=0)]
    return max(one or 0, other or 0)
