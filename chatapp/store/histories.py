"""Whether what somebody shows is of this database's past: a copy that was put back has another future.

Each process that serves begins a *history* under a random name, at the database-wide change number of that moment. A
reader is given a *mark*, the newest history's name and the change up to which it shows: `9f3c21d0.1842`. It is of this
past as long as the history is known here and no later one began before that change.
"""

from __future__ import annotations

import logging
import os
import struct
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from threading import Event, Thread
from uuid import uuid4

from sqlalchemy import Connection, delete, func, select, update

from chatapp.bus import ACCESS
from chatapp.store.database import REVISION, Database
from chatapp.store.tables import feeds, instance
from chatapp.store.unavailable import StorageUnavailable

PREFIX = "history:"  # of rows of `instance`; their value: the number of the history, and the change at which it began
MOST = 500  # kept; a reader who was away for more starts reads again
NUMBER = struct.Struct("<Q")
ENDLESS = 1 << 62
RETRY_S = 2.0  # after which a beginning is tried again that the database did not take

log = logging.getLogger("chatapp.store")


class HighWater:
    """The newest change, in a file beside the database. It is not synced: what it is for is no power cut."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def read(self) -> int:
        """The newest change that was ever committed here; 0 where that is not known."""
        data = os.pread(self._file, NUMBER.size, 0)
        return int(NUMBER.unpack(data)[0]) if len(data) == NUMBER.size else 0

    def note(self, change: int) -> None:
        """A change is on disk."""
        with suppress(OSError):  # what was committed is acknowledged, whatever becomes of this
            os.pwrite(self._file, NUMBER.pack(change), 0)

    def close(self) -> None:
        """Note nothing any more; also where that was said before."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class Histories:
    """The histories of this database, and the mark of what is read now."""

    def __init__(self, database: Database, data_dir: Path) -> None:
        self._database = database
        self._high_water = HighWater(data_dir / "chat.db-change")
        self._newest = ""
        self._ends: dict[str, int] = {}  # at which change the next one began
        self._is_stale = False
        self._seen = 0  # every history that began before this change is known
        self._access = 0  # the revision of ACCESS then: each beginning takes one
        self._closed = Event()
        database.on_access_change(self._doubt)
        database.on_commit = self._note

    def look_back(self) -> None:
        """Find out whether the database is behind what was written; then it gets another name, and the log says so."""
        written = self._high_water.read()  # before the database is read: another process may be writing
        with self._database.read() as connection:
            change = _newest_change(connection)
        if change < written:
            log.error(
                "chat.db ends at change %d, but %d were written. Either an older copy was put back, or its log"
                " chat.db-wal was deleted: what was acknowledged since is lost. Open pages read everything again.",
                change,
                written,
            )
            with self._database.write() as tx:
                epoch = update(instance).where(instance.c.name == "epoch").values(value=str(uuid4()))
                tx.connection.execute(epoch)
        self._high_water.note(change)

    def start(self) -> None:
        """Begin another history, now or, where the database is locked or full, as soon as it can be written: a process
        that cannot start would end its server. Until then nothing is marked."""
        try:
            self.begin()
        except StorageUnavailable:  # it has been logged
            Thread(target=self._begin_later, name="chatapp-history", daemon=True).start()

    def _begin_later(self) -> None:
        while not self._closed.wait(RETRY_S):
            try:
                return self.begin()
            except StorageUnavailable:
                continue

    def begin(self) -> None:
        """Begin another history: what is committed from now on is of no other future. Raises StorageUnavailable."""
        name = token_hex(4)
        with self._database.write() as tx:
            known = _known(tx.connection)
            number = known[-1][0] + 1 if known else 1
            value = f"{number} {_newest_change(tx.connection)}"
            tx.connection.execute(instance.insert().values(name=PREFIX + name, value=value))
            too_old = [PREFIX + old for _, _, old in known[: -MOST + 1]] if len(known) >= MOST else []
            tx.connection.execute(delete(instance).where(instance.c.name.in_(too_old)))
            tx.bump(ACCESS)  # other processes hear of it
        self._learn()

    def close(self) -> None:
        """The database closes."""
        self._closed.set()
        self._high_water.close()

    def mark(self, change: int) -> str:
        """What a reader is given who shows everything up to this change; empty before anything has begun."""
        if self._newest and (self._is_stale or change > self._seen):
            self._refresh()
            self._seen = max(self._seen, change)
        return f"{self._newest}.{change}" if self._newest else ""

    def holds(self, mark: str) -> bool:
        """Whether a reader's mark is of this database's past. Where none is given, nobody knows better."""
        if not mark or not self._newest:
            return True
        name, _, change = mark.partition(".")
        if self._is_stale or name not in self._ends:
            self._refresh()
        return change.isascii() and change.isdigit() and len(change) < 19 and int(change) <= self._ends.get(name, -1)

    def _note(self, first: int, last: int) -> None:
        """This process committed these changes. Where they follow what was seen, nobody began anything between."""
        self._high_water.note(last)
        if first == self._seen + 1:
            self._seen = last

    def _doubt(self) -> None:
        self._is_stale = True

    def _refresh(self) -> None:
        """Find out whether others began a history. The watcher says so late: two processes that take over from one
        another overlap, and the old one's readers show what came after the new one began."""
        with self._database.read() as connection:
            is_known = REVISION.one(connection, feed=ACCESS) == self._access
        if self._is_stale or not is_known:
            self._learn()

    def _learn(self) -> None:
        self._is_stale = False
        with self._database.read() as connection:
            known = _known(connection)
            self._access = REVISION.one(connection, feed=ACCESS)
            self._seen = max(self._seen, _newest_change(connection))
        begun = [*(change for _, change, _ in known[1:]), ENDLESS]
        self._ends = {name: end for (_, _, name), end in zip(known, begun, strict=True)}
        self._newest = known[-1][2]


def _newest_change(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(feeds.c.change), 0))).scalar_one())


def _known(connection: Connection) -> list[tuple[int, int, str]]:
    """Number, beginning and name of each, oldest first."""
    rows = connection.execute(select(instance.c.name, instance.c.value).where(instance.c.name.like(PREFIX + "%")))
    found = [(*map(int, row.value.split()), row.name.removeprefix(PREFIX)) for row in rows]
    return sorted(found)
