"""Detection of cursors from before a restore: after a backup was restored, revisions are taken a second time.

Each serving process adds a *history*: a random name and the current change number. A reader gets a *mark*, the newest
history's name and the newest change shown: `9f3c21d0.1842`. A mark is valid if its history is known here and no later
one began before that change.
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

from sqlalchemy import Connection, delete, func, insert, select, update

from chatapp.bus import ACCESS
from chatapp.store.database import REVISION, Database, StorageUnavailable
from chatapp.store.models import Feed, InstanceValue

PREFIX = "history:"  # of rows of `instance`; their value: the number of the history, and its first change
MOST_HISTORIES = 500  # kept; an older mark is invalid: its reader loads everything again
NUMBER = struct.Struct("<Q")
ENDLESS = 1 << 62
RETRY_S = 2.0  # until the next attempt to add a history

log = logging.getLogger("chatapp.store")


class HighWater:
    """The newest change, in a file next to the database. Not synced: it detects a restore, not a power cut."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def read(self) -> int:
        """Return the newest change ever committed here; 0 if unknown."""
        data = os.pread(self._file, NUMBER.size, 0)
        return int(NUMBER.unpack(data)[0]) if len(data) == NUMBER.size else 0

    def record(self, change: int) -> None:
        """Record the newest committed change. Never raises OSError."""
        with suppress(OSError):  # the commit must be acknowledged all the same
            os.pwrite(self._file, NUMBER.pack(change), 0)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class Histories:
    """The histories of this database, and the marks of its readers."""

    def __init__(self, database: Database, data_dir: Path) -> None:
        self._database = database
        self._high_water = HighWater(data_dir / "chat.db-change")
        self._newest = ""
        self._ends: dict[str, int] = {}  # the change at which the next history began, by name
        self._is_stale = False
        self._seen = 0  # every history begun before this change is loaded
        self._access = 0  # the revision of ACCESS at that load; a new history bumps it
        self._closed = Event()
        database.on_access_change(self._mark_stale)
        database.on_commit = self._record_commit

    def look_back(self) -> None:
        """Detect a database older than the high-water mark; log it and give the database another epoch."""
        written = self._high_water.read()  # first: another process may be writing
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
                epoch = update(InstanceValue).where(InstanceValue.name == "epoch").values(value=str(uuid4()))
                tx.connection.execute(epoch)
        self._high_water.record(change)

    def start(self) -> None:
        """Add a history, in a thread if the database is unavailable now: a worker that fails to start ends the server.
        Until then marks are empty."""
        try:
            self.add()
        except StorageUnavailable:  # already logged
            Thread(target=self._add_later, name="chatapp-history", daemon=True).start()

    def _add_later(self) -> None:
        while not self._closed.wait(RETRY_S):
            try:
                return self.add()
            except StorageUnavailable:
                continue

    def add(self) -> None:
        """Add a history for the commits from now on. Raises StorageUnavailable."""
        name = token_hex(4)
        with self._database.write() as tx:
            known = _read_histories(tx.connection)
            number = known[-1][0] + 1 if known else 1
            value = f"{number} {_newest_change(tx.connection)}"
            tx.connection.execute(insert(InstanceValue).values(name=PREFIX + name, value=value))
            too_old = [PREFIX + old for _, _, old in known[: max(0, len(known) - MOST_HISTORIES + 1)]]
            tx.connection.execute(delete(InstanceValue).where(InstanceValue.name.in_(too_old)))
            tx.bump(ACCESS)  # other processes reload the histories
        self._load()

    def close(self) -> None:
        """Stop the thread and close the file."""
        self._closed.set()
        self._high_water.close()

    def mark(self, change: int) -> str:
        """Return the mark of a reader up to this change; empty before the first history."""
        if self._newest and (self._is_stale or change > self._seen):
            self._refresh()
            self._seen = max(self._seen, change)
        return f"{self._newest}.{change}" if self._newest else ""

    def holds(self, mark: str) -> bool:
        """Return True if a reader's mark is valid for this database, or empty."""
        if not mark or not self._newest:
            return True
        name, _, change = mark.partition(".")
        if self._is_stale or name not in self._ends:
            self._refresh()
        return change.isascii() and change.isdigit() and len(change) < 19 and int(change) <= self._ends.get(name, -1)

    def _record_commit(self, first: int, last: int) -> None:
        """Record a commit of this process. If it directly follows `_seen`, no history was added in between."""
        self._high_water.record(last)
        if first == self._seen + 1:
            self._seen = last

    def _mark_stale(self) -> None:
        self._is_stale = True

    def _refresh(self) -> None:
        """Load the histories if another process added one. The watcher is too late: in an upgrade two servers overlap,
        and until it looks the old one would give out invalid marks."""
        with self._database.read() as connection:
            is_known = REVISION.one(connection, feed=ACCESS) == self._access
        if self._is_stale or not is_known:
            self._load()

    def _load(self) -> None:
        self._is_stale = False
        with self._database.read() as connection:
            known = _read_histories(connection)
            self._access = REVISION.one(connection, feed=ACCESS)
            self._seen = max(self._seen, _newest_change(connection))
        begun = [*(change for _, change, _ in known[1:]), ENDLESS]
        self._ends = {name: end for (_, _, name), end in zip(known, begun, strict=True)}
        self._newest = known[-1][2]


def _newest_change(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(Feed.change), 0))).scalar_one())


def _read_histories(connection: Connection) -> list[tuple[int, int, str]]:
    """Return number, first change and name of each, oldest first."""
    rows = connection.execute(
        select(InstanceValue.name, InstanceValue.value).where(InstanceValue.name.like(PREFIX + "%"))
    )
    found = [(*map(int, row.value.split()), row.name.removeprefix(PREFIX)) for row in rows]
    return sorted(found)
