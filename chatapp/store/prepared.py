"""Prepared statements for frequent queries: SQLAlchemy compiles the SQL once, the driver runs it.

SQLAlchemy's overhead is several times the query itself. For integers, text and None only: no type conversion.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql import ClauseElement

Value = int | str | None


def driver(connection: Connection) -> Any:
    """Return the DBAPI connection."""
    return connection.connection.driver_connection


class Prepared:
    """A statement with named parameters."""

    def __init__(self, statement: ClauseElement, inserted: Sequence[str] = ()) -> None:
        self.statement = statement
        self._inserted = list(inserted) or None  # columns of an INSERT
        self._sql = ""
        self._names: Sequence[str] = ()
        self._constants: dict[str, Any] = {}
        self._row: Callable[[Any], Any] = tuple

    def run(self, connection: Connection, **values: Value) -> Any:
        """Run the statement. Return the driver's cursor."""
        if not self._sql:
            self._compile(connection)
        constants = self._constants
        given = [values[name] if name in values else constants[name] for name in self._names]
        return driver(connection).execute(self._sql, given)

    def all(self, connection: Connection, **values: Value) -> list[Any]:
        """Return all rows as named tuples."""
        cursor = self.run(connection, **values)
        if self._row is tuple:
            names = [column[0] for column in cursor.description]
            row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]
            self._row = row._make
        return [self._row(row) for row in cursor.fetchall()]

    def first(self, connection: Connection, **values: Value) -> Any:
        """Return the first row, or None."""
        rows = self.all(connection, **values)
        return rows[0] if rows else None

    def one(self, connection: Connection, **values: Value) -> int:
        """Return the integer in the first column of the first row; there must be one."""
        return int(self.run(connection, **values).fetchall()[0][0])

    def _compile(self, connection: Connection) -> None:
        compiled = self.statement.compile(dialect=connection.dialect, column_keys=self._inserted)
        self._names = getattr(compiled, "positiontup", None) or ()
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        self._sql = str(compiled)
