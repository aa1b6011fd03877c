"""Roll-ups of connection events, live pages, and the rows of the workers, in the metrics database. All data is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import delete, func, select

from chatapp.store import sqlite
from chatapp.store.database import Database, now_ms
from chatapp.store.models import LivePage, Rollup, WorkerRow
from chatapp.store.totals import Totals

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
SLICE = 500  # rows in one transaction


class Measures:
    """Queries about roll-ups, live pages and workers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.totals = Totals(database)

    # Roll-ups

    def put(self, span: str, rows: Mapping[int, dict[str, Any]]) -> None:
        """Store the figures of minutes (`m`) or hours (`h`) by their start in ms, instead of earlier ones."""
        values = [{"span": span, "start": start, "data": _text(data)} for start, data in rows.items()]
        for at in range(0, len(values), SLICE):
            with self._database.write() as tx:
                statement = sqlite.insert(Rollup)
                kept = statement.on_conflict_do_update(
                    index_elements=["span", "start"], set_={"data": statement.excluded.data}
                )
                tx.connection.execute(kept, values[at : at + SLICE])

    def between(self, span: str, start: int, end: int) -> dict[int, dict[str, Any]]:
        """Return the figures from `start` to before `end` (ms), by their start, in order."""
        return {at: json.loads(data) for at, data in self.texts_between(span, start, end)}

    def texts_between(self, span: str, start: int, end: int) -> list[tuple[int, str]]:
        """Return start and JSON of the figures from `start` to before `end` (ms), in order."""
        query = select(Rollup.start, Rollup.data).where(Rollup.span == span, Rollup.start >= start, Rollup.start < end)
        with self._database.read() as connection:
            return [(at, data) for at, data in connection.execute(query.order_by(Rollup.start)).all()]

    def scan(self, span: str, start: int, end: int, most: int) -> Iterator[list[tuple[int, str]]]:
        """Yield what `texts_between` returns, at most so many at once."""
        query = select(Rollup.start, Rollup.data).where(Rollup.span == span, Rollup.start < end)
        while True:
            with self._database.read() as connection:
                found = query.where(Rollup.start >= start).order_by(Rollup.start).limit(most)
                rows = [(at, data) for at, data in connection.execute(found).all()]
            if not rows:
                return
            yield rows
            start = rows[-1][0] + 1

    def newest(self, span: str) -> int | None:
        """Return the start of the newest minute or hour, or None."""
        with self._database.read() as connection:
            return connection.execute(select(func.max(Rollup.start)).where(Rollup.span == span)).scalar_one()

    def delete_before(self, span: str, before: int, most: int) -> int:
        """Delete at most so many roll-ups that start before a time (ms). Return their number."""
        old = select(Rollup.start).where(Rollup.span == span, Rollup.start < before).order_by(Rollup.start).limit(most)
        with self._database.write() as tx:
            return tx.connection.execute(delete(Rollup).where(Rollup.span == span, Rollup.start.in_(old))).rowcount

    # Live pages

    def live_pages(self) -> dict[str, list[Any]]:
        """Return the state of each live page, by its id."""
        return {page: json.loads(data) for page, data in self.live_page_texts()}

    def live_page_texts(self) -> list[tuple[str, str]]:
        """Return id and JSON of each live page: thousands take long to read."""
        with self._database.read() as connection:
            return [(page, data) for page, data in connection.execute(select(LivePage.page, LivePage.data)).all()]

    def keep_pages(self, changed: Mapping[str, list[Any]], gone: Iterable[str]) -> None:
        """Store changed pages, and forget those that are gone."""
        values = [{"page": page, "data": _text(data)} for page, data in changed.items()]
        lost = list(gone)
        for at in range(0, len(values), SLICE):
            with self._database.write() as tx:
                statement = sqlite.insert(LivePage)
                kept = statement.on_conflict_do_update(index_elements=["page"], set_={"data": statement.excluded.data})
                tx.connection.execute(kept, values[at : at + SLICE])
        for at in range(0, len(lost), SLICE):
            with self._database.write() as tx:
                tx.connection.execute(delete(LivePage).where(LivePage.page.in_(lost[at : at + SLICE])))

    # Workers

    def say(self, worker: str, data: dict[str, Any]) -> None:
        """Store a worker's row."""
        statement = sqlite.insert(WorkerRow).values(worker=worker, at=now_ms(), data=_text(data))
        changed = {"at": statement.excluded.at, "data": statement.excluded.data}
        with self._database.write() as tx:
            tx.connection.execute(statement.on_conflict_do_update(index_elements=["worker"], set_=changed))

    def workers(self, since: int) -> dict[str, dict[str, Any]]:
        """Return the rows of the workers that said something since a time (ms), by their name."""
        with self._database.read() as connection:
            rows = connection.execute(select(WorkerRow.worker, WorkerRow.data).where(WorkerRow.at >= since)).all()
        return {worker: json.loads(data) for worker, data in rows}


def _text(data: object) -> str:
    return json.dumps(data, separators=(",", ":"))
