"""The end of what is kept: connection events that are too old are deleted in slices, so that nobody waits for it."""

from __future__ import annotations

import logging
import sqlite3
from threading import Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from chatapp.store.database import now_ms
from chatapp.store.events import Events
from chatapp.store.unavailable import StorageUnavailable

FIRST_LOOK_S, LOOK_EVERY_S = 5.0, 600.0
SLICE = 200  # events in one transaction: it holds the event loop for some 3 ms
PAUSE_S = 0.05  # between two of them
DAY_MS = 86_400_000

log = logging.getLogger("chatapp.retention")


class Retention:
    """Looks again and again for what has been kept long enough."""

    def __init__(self, events: Events, kept_days: float) -> None:
        self._events = events
        self._kept_ms = round(kept_days * DAY_MS)
        self._stopped = Event()

    def start(self) -> None:
        """Look until `stop`. Under gevent this is a greenlet."""
        Thread(target=self._work, name="chatapp-retention", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def purge(self) -> int:
        """Delete what is too old now; how much that was."""
        deleted, found = 0, SLICE
        while found == SLICE and not self._stopped.wait(PAUSE_S):
            found = self._events.forget(now_ms() - self._kept_ms, SLICE)
            deleted += found
        return deleted

    def _work(self) -> None:
        wait_s = FIRST_LOOK_S
        while not self._stopped.wait(wait_s):
            wait_s = LOOK_EVERY_S
            try:
                self.purge()
            except (SQLAlchemyError, sqlite3.Error, StorageUnavailable) as error:
                log.warning("old connection events could not be deleted; the next try is in 10 minutes: %s", error)
