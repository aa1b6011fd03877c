"""The error of a database that is temporarily unavailable: locked, a full disk, a failing disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, TimeoutError

from chatapp.store import sqlite
from chatapp.store.sqlite import Reason

RETRY_S = 2  # Retry-After of a refused request
LOG_EVERY_S = 10.0  # for each reason: every request fails at the same time


log = logging.getLogger("chatapp.store")
_logged_at: dict[Reason, float] = {}  # monotonic


class StorageUnavailable(Exception):
    """The database is temporarily unavailable. Nothing was stored; the same call may be retried.

    `reason`: busy (another process writes for too long), full (no room on the disk), failed (I/O error or permissions).
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"the database is {reason}: {detail}")
        self.reason: Reason = reason


def translate_error(error: Exception) -> Exception:
    """Return StorageUnavailable for a temporary error of SQLite, else the error unchanged."""
    if isinstance(error, TimeoutError):  # of SQLAlchemy's pool
        return _logged(StorageUnavailable("busy", str(error)))
    reason = sqlite.reason_of(error)
    cause = error.orig if isinstance(error, DBAPIError) else error
    return _logged(StorageUnavailable(reason, str(cause))) if reason is not None else error


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise StorageUnavailable for temporary errors of SQLite and SQLAlchemy."""
    try:
        yield
    except (sqlite.Error, DBAPIError, TimeoutError) as error:
        found = translate_error(error)
        if found is error:
            raise
        raise found from error


def _logged(error: StorageUnavailable) -> StorageUnavailable:
    now = time.monotonic()
    if now - _logged_at.get(error.reason, -LOG_EVERY_S) >= LOG_EVERY_S:
        _logged_at[error.reason] = now
        log.error("%s", error)
    return error
