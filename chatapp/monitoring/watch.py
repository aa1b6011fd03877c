"""The loops that look at the alert rules and send notices, in the one worker that rolls up.

All that they know is in the metrics database, so that another worker, or the next start, goes on where they were.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from chatapp.monitoring import incidents
from chatapp.monitoring.alerts import Outcome, Told, fresh, look
from chatapp.monitoring.channels import OPERATIONS, ChannelFailed, Channels
from chatapp.monitoring.figures import Figures, add_up
from chatapp.monitoring.loops import repeat
from chatapp.monitoring.present import Present, polling, read_present
from chatapp.monitoring.rules import LONGEST_MINUTES, Facts, Reading
from chatapp.monitoring.timeline import LIVE
from chatapp.monitoring.worker_rows import FRESH_MS
from chatapp.store import StorageUnavailable, Store, now_ms
from chatapp.store.alerts import Incident, Notice
from chatapp.store.measures import MINUTE_MS

LOOK_EVERY_S = 15.0
SEND_EVERY_S = 2.0
RETRY_MS = (30_000, 120_000)  # after the first try, and the second
LATER_MS = 60_000  # for the conversation: until the database takes it
MOST_TRIES = 3
PING_EVERY_S = 60.0
DISTURBED_MS = 120_000  # after a worker's start

log = logging.getLogger("chatapp.alerts")


@dataclass(frozen=True)
class Observation:
    """All that the rules look at."""

    facts: Facts
    minutes: Mapping[int, Figures]  # by their start
    present: Present | None  # None: the database does not answer

    def whole(self, minutes: int, at: int) -> Figures:
        """Return the sum of the last minutes."""
        return add_up(row for start, row in sorted(self.minutes.items()) if start >= at - minutes * MINUTE_MS)


def observe(store: Store, data_dir: Path, now: int) -> Observation:
    """Return the present and the last minutes. Raises StorageUnavailable if even the measures cannot be read."""
    rows = store.measures.between("m", now - (LONGEST_MINUTES + 1) * MINUTE_MS, now)
    minutes = {start: Figures.load(row) for start, row in rows.items()}
    newest = store.measures.newest("m")
    through = newest + MINUTE_MS if newest is not None else 0
    trouble = store.trouble()
    try:
        present = read_present(store, data_dir, now)
    except StorageUnavailable:
        started = [row.get("started_at", now) for row in store.measures.workers(now - FRESH_MS).values()]
        age_ms = now - max(through, min(started, default=now))
        return Observation(Facts(False, "server-storage", age_ms / 1000), minutes, None)
    age_ms = now - max(through, present.server.up_since)
    started = [row.get("started_at", now) for row in present.server.rows.values()]
    facts = facts_of(present, minutes, age_ms / 1000, now - max(started, default=now) < DISTURBED_MS)
    if trouble and not facts.trouble:
        facts = replace(facts, trouble="server-storage")
    return Observation(facts, minutes, present)


def facts_of(present: Present, minutes: Mapping[int, Figures], log_age_s: float, is_young: bool) -> Facts:
    """Return the present as the rules see it."""
    everybody = present.undrilled
    newest = [minutes[start] for start in sorted(minutes) if start >= present.at - 3 * MINUTE_MS][-2:]
    return Facts(
        is_current=present.is_current,
        trouble=present.server.trouble,
        log_age_s=log_age_s,
        people=len(everybody),
        live=sum(page.state in LIVE for page in everybody.values()),
        polling=len(polling(everybody)),
        lost=len(incidents.lost(everybody)),
        before=max((sum(row.people.get(state, 0) for state in LIVE) for row in newest), default=0),
        is_disturbed=is_young or bool(present.drills),
    )


class AlertWatch:
    """Threads that look at the rules, and send the notices that are due."""

    def __init__(
        self,
        store: Store,
        observe: Callable[[int], Observation],
        channels: Channels,
        is_leader: Callable[[], bool],
        context: Callable[[], AbstractContextManager[Any]],
        url: str,
        has_ping: bool = False,
    ) -> None:
        """`context`: an app's, for words. `url`: of the page of incidents."""
        self._table, self._observe, self._channels = store.alerts, observe, channels
        self._is_leader, self._context, self._url = is_leader, context, url
        self._has_ping = has_ping
        self._stopped = Event()
        self._looked_at = self._pinged_at = float("-inf")  # monotonic

    def start(self) -> None:
        """Start the threads (under gevent, greenlets)."""
        for run, every_s, name in ((self._look, LOOK_EVERY_S, "alerts"), (self._send, SEND_EVERY_S, "notices")):
            Thread(target=repeat, args=(run, every_s, self._stopped, name), name=f"chatapp-{name}", daemon=True).start()

    def stop(self) -> None:
        """Stop the threads. Another worker goes on."""
        self._stopped.set()

    def _look(self) -> None:
        if self._is_leader():
            self.step(now_ms())
            self._looked_at = time.monotonic()

    def _send(self) -> None:
        if self._is_leader():
            self.deliver(now_ms())
            self._ping()

    def step(self, now: int) -> Outcome:
        """Look at all rules once, and store the outcome in one transaction."""
        seen = self._observe(now)
        with self._context():
            describe = partial(_describe, seen)
            before, incident = fresh(self._table.alerts()), self._table.open_incident()
            whole = cache(lambda minutes: seen.whole(minutes, now))
            found = look(before, incident, seen.facts, whole, now, describe)
            notices = self._notices(found.incident, found.told) if found.incident and found.told else {}
        self._table.save(found.alerts.values(), found.changes, found.incident, notices, now)
        return found

    def _notices(self, incident: Incident, told: Told) -> dict[str, dict[str, Any]]:
        """Return a notice for each channel."""
        data = {
            "kind": told.kind,
            "rules": list(told.rules),
            "text": incidents.sentence(incident),
            "to_do": incidents.to_do(incident) if told.kind != "closed" else "",
            "opened": incident.opened,
            "closed": incident.closed,
            "url": self._url,
        }
        return dict.fromkeys(self._channels.names, data)

    def deliver(self, now: int) -> None:
        """Send the notices that are due. A crash before the end of a delivery repeats it."""
        due = self._table.due_notices(now)
        for notice in sorted(due, key=lambda one: one.channel != OPERATIONS):
            self._deliver(notice, now)

    def _deliver(self, notice: Notice, now: int) -> None:
        is_own = notice.channel == OPERATIONS
        wait_ms = LATER_MS if is_own else RETRY_MS[min(notice.tries, len(RETRY_MS) - 1)]
        self._table.note_try(notice.id, now + wait_ms)
        try:
            self._channels.send(notice)
        except (ChannelFailed, StorageUnavailable) as error:
            is_last = not is_own and notice.tries + 1 >= MOST_TRIES
            log.warning("a notice of an alert could not be sent by %s: %s", notice.channel, error)
            self._table.note_failed(notice.id, str(error), is_last)
        else:
            self._table.note_sent(notice.id, now)

    def try_channels(self) -> dict[str, str]:
        """Send a notice marked as a test on each channel. Return the error by channel; "" for none."""
        now = now_ms()
        text = "This is a test of the alerts. Nothing is wrong."
        data = {"kind": "test", "rules": [], "text": text, "to_do": "", "opened": now, "closed": now, "url": self._url}
        found = {}
        for name in self._channels.names:
            try:
                self._channels.send(Notice(0, 0, 0, name, data, now, 0))
                found[name] = ""
            except (ChannelFailed, StorageUnavailable) as error:
                found[name] = str(error)
        return found

    def _ping(self) -> None:
        """Tell the dead man's switch, while the rules are looked at."""
        now = time.monotonic()
        if not self._has_ping or now - self._pinged_at < PING_EVERY_S or now - self._looked_at > PING_EVERY_S:
            return
        self._pinged_at = now
        try:
            self._channels.ping()
        except ChannelFailed as error:
            log.warning("the dead man's switch (CHATAPP_ALERT_PING) could not be reached: %s", error)


def _describe(seen: Observation, rule: str, reading: Reading, whole: Figures) -> dict[str, Any]:
    return incidents.moment_of(rule, reading, seen.present, whole).dump()
