"""A database that does not answer for now: locked by somebody else, a full disk, a disk that fails."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from sqlalchemy.exc import DBAPIError, TimeoutError

RETRY_S = 2  # when the same may be tried again
SAY_EVERY_S = 10.0  # a database that fails, fails for everybody: one line of the log, not one for each

Reason = Literal["busy", "full", "failed"]
# SQLite's primary result codes (sqlite.org/rescode.html). A damaged file is none of them: it does not mend by waiting.
TEMPORARY: dict[int, Reason] = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_PROTOCOL: "busy",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_NOMEM: "failed",
    sqlite3.SQLITE_READONLY: "failed",
    sqlite3.SQLITE_IOERR: "failed",
    sqlite3.SQLITE_CANTOPEN: "failed",
}

log = logging.getLogger("chatapp.store")
_said: dict[Reason, float] = {}  # when (monotonic)


class StorageUnavailable(Exception):
    """The database does not take this for now. Nothing of it is stored; the same may be tried again later.

    `reason`: busy (another process writes for too long), full (no room on the disk), failed (the disk or its rights).
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"the database is {reason}: {detail}")
        self.reason: Reason = reason


def translated(error: Exception) -> Exception:
    """StorageUnavailable for what SQLite says where it cannot work for now; any other error as it is."""
    if isinstance(error, TimeoutError):  # SQLAlchemy's: no connection left in the pool
        return _noted(StorageUnavailable("busy", str(error)))
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None) if isinstance(cause, sqlite3.Error) else None
    reason = TEMPORARY.get(code & 0xFF) if code is not None else None  # the rest of the code is detail
    return _noted(StorageUnavailable(reason, str(cause))) if reason is not None else error


@contextmanager
def translating() -> Iterator[None]:
    """Raise StorageUnavailable in place of what SQLite and SQLAlchemy raise."""
    try:
        yield
    except (sqlite3.Error, DBAPIError, TimeoutError) as error:
        found = translated(error)
        if found is error:
            raise
        raise found from error


def _noted(error: StorageUnavailable) -> StorageUnavailable:
    now = time.monotonic()
    if now - _said.get(error.reason, -SAY_EVERY_S) >= SAY_EVERY_S:
        _said[error.reason] = now
        log.error("%s", error)
    return error
