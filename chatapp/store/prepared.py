"""Statements that run with every message: SQLAlchemy writes their SQL once, the driver runs it.

What SQLAlchemy adds to each run costs several times the run itself. For integers, text and None only: nothing is
converted on the way in or out.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql import ClauseElement

Value = int | str | None


def driver(connection: Connection) -> Any:
    """The driver's own connection."""
    return connection.connection.driver_connection


class Prepared:
    """A statement with named parameters."""

    def __init__(self, statement: ClauseElement, inserted: Sequence[str] = ()) -> None:
        self.statement = statement
        self._inserted = list(inserted) or None  # columns, where it inserts
        self._sql = ""
        self._names: Sequence[str] = ()
        self._constants: dict[str, Any] = {}
        self._row: Callable[[Any], Any] = tuple

    def run(self, connection: Connection, **values: Value) -> Any:
        """Run it; returns the driver's cursor."""
        if not self._sql:
            self._compile(connection)
        constants = self._constants
        given = [values[name] if name in values else constants[name] for name in self._names]
        return driver(connection).execute(self._sql, given)

    def all(self, connection: Connection, **values: Value) -> list[Any]:
        """Every row, with its columns by name."""
        cursor = self.run(connection, **values)
        if self._row is tuple:
            names = [column[0] for column in cursor.description]
            row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]
            self._row = row._make
        return [self._row(row) for row in cursor.fetchall()]

    def first(self, connection: Connection, **values: Value) -> Any:
        """The first row, or None."""
        rows = self.all(connection, **values)
        return rows[0] if rows else None

    def one(self, connection: Connection, **values: Value) -> int:
        """The number in the first column of the first row, which must be there."""
        return int(self.run(connection, **values).fetchall()[0][0])

    def _compile(self, connection: Connection) -> None:
        compiled = self.statement.compile(dialect=connection.dialect, column_keys=self._inserted)
        self._names = getattr(compiled, "positiontup", None) or ()
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        self._sql = str(compiled)
