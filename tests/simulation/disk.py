"""The database: the product's store on SQLite in memory, with a hand on the moment of the commit."""

import sqlite3
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from chatapp.bus import Bus
from chatapp.store import Store, sqlite
from chatapp.store.conversations import MOST_CHANGES, Conversations
from chatapp.store.database import Database
from chatapp.store.migrate import migrate
from chatapp.store.people import People
from chatapp.store.runs import Runs

EPOCH = "00000000-0000-4000-8000-000000000001"


class Crashed(Exception):
    """The process dies here."""


@cache
def schema() -> str:
    """What the product's migrations make of an empty database, as SQL."""
    with tempfile.TemporaryDirectory() as directory:
        migrate(Path(directory))
        database = sqlite3.connect(Path(directory) / "chat.db")
        statements = "\n".join(database.iterdump())
        database.close()
    return statements


class Disk:
    """One database in memory. `before_commit` may raise Crashed: then nothing of the transaction remains."""

    def __init__(self, change_schema: Callable[[str], str] = lambda statements: statements) -> None:
        self.watch(lambda: None, lambda: None)
        self.connection = sqlite3.connect(":memory:", factory=self._factory(), check_same_thread=False)
        self.connection.executescript(change_schema(schema()))
        self.connection.execute("UPDATE instance SET value = ? WHERE name = 'epoch'", (EPOCH,))
        self.connection.commit()
        self.engine = create_engine("sqlite://", creator=lambda: self.connection, poolclass=StaticPool)
        sqlite.configure(self.engine, "FULL")

    def watch(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Have something called around each commit of a change."""
        self.before_commit, self.after_commit = before, after

    def copy(self) -> bytes:
        """All that is on it."""
        return self.connection.serialize()

    def restore(self, content: bytes) -> None:
        """Put back what was on it."""
        self.connection.deserialize(content)

    def _factory(self) -> type[sqlite3.Connection]:
        disk = self

        class Watched(sqlite3.Connection):
            """A connection that tells when a write is about to be committed."""

            _seen = 0

            def execute(self, sql: str, *arguments: object) -> sqlite3.Cursor:  # type: ignore[override]
                if sql != "COMMIT":
                    return super().execute(sql, *arguments)  # type: ignore[arg-type]
                self.commit()
                return self.cursor()

            def commit(self) -> None:
                if self.total_changes == self._seen:
                    super().commit()
                    return
                disk.before_commit()
                super().commit()
                self._seen = self.total_changes
                disk.after_commit()

            def rollback(self) -> None:
                super().rollback()
                self._seen = self.total_changes

            def close(self) -> None:
                # Its user is gone, and its open transaction is undone; the memory stands for the disk.
                self.rollback()

        return Watched


class MemoryStore(Store):
    """The product's queries on a disk that is there already."""

    def __init__(
        self,
        disk: Disk,
        bus: Bus,
        conversations: type[Conversations] = Conversations,
        most_changes: int = MOST_CHANGES,
    ) -> None:
        self.database = Database(disk.engine, bus)
        self.people = People(self.database)
        self.conversations = conversations(self.database)
        self.conversations.most_changes = most_changes
        self.runs = Runs(self.database, self.conversations)
