"""Deletion of old events and figures and of deleted people's data, in small transactions that block nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from chatapp.store import sqlite
from chatapp.store.alerts import AlertTable
from chatapp.store.database import StorageUnavailable, now_ms
from chatapp.store.erasure import Erasure
from chatapp.store.events import Events
from chatapp.store.measures import Measures
from chatapp.store.questions import QuestionTable

FIRST_LOOK_S, LOOK_EVERY_S = 5.0, 600.0
SLICE = 200  # events in one transaction: it blocks the event loop for some 3 ms
PAUSE_S = 0.05  # between two transactions
DAY_MS = 86_400_000
ALERTS_KEPT_DAYS = 90  # changes without an incident, and notices
ANY_TIME = 1 << 60  # ms; whatever the clock says

log = logging.getLogger("chatapp.retention")


@dataclass(frozen=True)
class Kept:
    """Retention times of events, minutes, hours and unanswered questions, in days; and the largest size of the metrics
    database, in MB."""

    events: float = 14.0
    minutes: float = 30.0
    hours: float = 730.0
    most_mb: int = 500
    questions: float = 90.0


KEPT = Kept()


class Retention:
    """Thread that deletes old connection events and figures, and the rest of deleted people's data."""

    def __init__(
        self,
        events: Events,
        measures: Measures,
        alerts: AlertTable,
        questions: QuestionTable,
        kept: Kept,
        erasure: Erasure,
    ) -> None:
        self._events, self._measures, self._alerts, self._questions = events, measures, alerts, questions
        self._erasure = erasure
        self._kept = kept
        self._stopped = Event()

    def start(self) -> None:
        """Start the thread (under gevent, a greenlet)."""
        Thread(target=self._run, name="chatapp-retention", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def purge(self) -> int:
        """Delete all events and figures past their retention time, and the oldest events of a database that is too
        large. Return the number of events."""
        now, kept = now_ms(), self._kept
        before = now - round(kept.events * DAY_MS)
        deleted = self._sliced(partial(self._events.delete_before, before, SLICE))
        for span, days in (("m", kept.minutes), ("h", kept.hours)):
            self._sliced(partial(self._measures.delete_before, span, now - round(days * DAY_MS), SLICE))
        self._sliced(partial(self._alerts.delete_before, now - ALERTS_KEPT_DAYS * DAY_MS, SLICE))
        self._sliced(partial(self._questions.delete_before, now - round(kept.questions * DAY_MS), SLICE))
        return deleted + self._sliced(self._delete_if_large)

    def _delete_if_large(self) -> int:
        is_large = self._events.used_bytes() > self._kept.most_mb * 1_000_000
        return self._events.delete_before(ANY_TIME, SLICE) if is_large else 0

    def _sliced(self, delete: Callable[[], int]) -> int:
        """Delete slice by slice, with pauses. Return the number of rows."""
        deleted, found = 0, SLICE
        while found == SLICE and not self._stopped.wait(PAUSE_S):
            found = delete()
            deleted += found
        return deleted

    def _run(self) -> None:
        wait_s = FIRST_LOOK_S
        while not self._stopped.wait(wait_s):
            wait_s = LOOK_EVERY_S
            self._erasure.run()
            try:
                self.purge()
            except (SQLAlchemyError, sqlite.Error, StorageUnavailable) as error:
                log.warning("old events and figures could not be deleted; the next try is in 10 minutes: %s", error)
