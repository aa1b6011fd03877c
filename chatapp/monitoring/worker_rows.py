"""The row of each worker in the metrics database, written every 5 s, so that any worker can add them up.

Counts and histograms are totals since the start of the worker; `recent` are the histograms of the last minutes.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable, Mapping
from threading import Event, Thread
from typing import Any

from chatapp import histograms
from chatapp.histograms import Histogram
from chatapp.meters import Meters
from chatapp.store import STORAGE_ERRORS, now_ms
from chatapp.store.measures import Measures

SAY_EVERY_S = 5.0
FRESH_MS = 20_000  # a worker that said nothing for longer is dead
FORGOTTEN_MS = 600_000

log = logging.getLogger("chatapp.monitoring")


class WorkerRows:
    """Thread that stores this worker's row."""

    def __init__(self, measures: Measures, meters: Meters, name: str, gauges: Callable[[], dict[str, Any]]) -> None:
        """`gauges`: values of the moment, such as the number of sockets."""
        self._measures, self._meters, self._name = measures, meters, name
        self._gauges = gauges
        self.on_row: list[Callable[[], None]] = []  # called before each row, and at the end
        self._started_at = 0
        self._stopped = Event()

    def start(self) -> None:
        """Start the thread (under gevent, a greenlet)."""
        self._started_at = now_ms()
        Thread(target=self._run, name="chatapp-worker-row", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def row(self) -> dict[str, Any]:
        """Return the row."""
        meters = self._meters
        own = {"pid": os.getpid(), "started_at": self._started_at, "rss_kib": _rss_kib(), "cpu_s": _cpu_s()}
        measured = {"counts": meters.counts, "histograms": meters.totals(), "recent": meters.recent()}
        return {**own, **measured, **self._gauges()}

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopped.wait(wait_s):
            wait_s = SAY_EVERY_S
            self._say()
        self._say()  # what came since the last time

    def _say(self) -> None:
        try:
            for call in self.on_row:
                call()
            self._measures.say(self._name, self.row())
            self._measures.totals.forget_workers(now_ms() - FORGOTTEN_MS)
        except STORAGE_ERRORS as error:
            log.warning("this worker's figures could not be stored: %s", error)


def merged(rows: Mapping[str, Mapping[str, Any]], field: str, name: str) -> Histogram:
    """Return a histogram of all workers: `histograms` or `recent`."""
    whole: Histogram = {}
    for row in rows.values():
        histograms.merge(whole, row.get(field, {}).get(name, {}))
    return whole


def _rss_kib() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() // 1024
    except OSError:  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round(used.ru_utime + used.ru_stime, 2)
