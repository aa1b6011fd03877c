"""Deletion of old connection events, in small transactions that block nobody."""

from __future__ import annotations

import logging
from threading import Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from chatapp.store import sqlite
from chatapp.store.database import now_ms
from chatapp.store.events import Events
from chatapp.store.unavailable import StorageUnavailable

FIRST_LOOK_S, LOOK_EVERY_S = 5.0, 600.0
SLICE = 200  # events in one transaction: it blocks the event loop for some 3 ms
PAUSE_S = 0.05  # between two transactions
DAY_MS = 86_400_000

log = logging.getLogger("chatapp.retention")


class Retention:
    """Thread that deletes old connection events."""

    def __init__(self, events: Events, kept_days: float) -> None:
        self._events = events
        self._kept_ms = round(kept_days * DAY_MS)
        self._stopped = Event()

    def start(self) -> None:
        """Start the thread (under gevent, a greenlet)."""
        Thread(target=self._run, name="chatapp-retention", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def purge(self) -> int:
        """Delete all events past the retention time. Return their number."""
        deleted, found = 0, SLICE
        while found == SLICE and not self._stopped.wait(PAUSE_S):
            found = self._events.delete_before(now_ms() - self._kept_ms, SLICE)
            deleted += found
        return deleted

    def _run(self) -> None:
        wait_s = FIRST_LOOK_S
        while not self._stopped.wait(wait_s):
            wait_s = LOOK_EVERY_S
            try:
                self.purge()
            except (SQLAlchemyError, sqlite.Error, StorageUnavailable) as error:
                log.warning("old connection events could not be deleted; the next try is in 10 minutes: %s", error)
