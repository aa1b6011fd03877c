"""The figures of the monitor a second time, from `connection_events` and the words of docs/monitoring.md alone.

Nothing of chatapp/monitoring is used, or was read for this. Counts are SQL; what a page did is a walk over its events.
"""

import json
import sqlite3
from bisect import bisect_right
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

SECOND, MINUTE = 1000, 60_000
READY_MS = 10_000
SILENCE = {"polling": 12 * MINUTE, "connected": 2 * MINUTE}  # a socket that is open needs no sign of life
SILENT_MS = 2 * MINUTE  # while it tries to connect
LIVE = ("connected", "polling")
BEST = ("connected", "polling", "connecting", "reconnecting", "error")
CLEAN = (1000, 1001)  # codes of a page that was left; after all others it comes back, or is gone after a silence
NO_LOSS = {"offline", "server-restart", "drill", "signed-out", "session-expired", "session-revoked", "rate-limited"}
PLANNED = {None, "websocket-off", "rate-limited", "drill"}  # None: by what is remembered of the network

# Messages: bins of the round trip of all transports; and what came within 30 s, by the server's clock.
TRIPS = """
SELECT CAST(bin.key AS INTEGER), SUM(bin.value)
FROM connection_events AS e, json_each(e.data, '$.sent') AS transport, json_each(transport.value) AS bin
WHERE e.type = 'minute' GROUP BY 1 ORDER BY 1
"""
RECEIVED = """
SELECT COALESCE(SUM(CASE WHEN s <= 30 THEN n END), 0), COALESCE(SUM(CASE WHEN s > 30 THEN n END), 0) FROM (
  SELECT delay.key + (CASE WHEN abs(at - happened_at) > 1000 THEN at - happened_at ELSE 0 END) / 1000.0 AS s,
    delay.value AS n
  FROM connection_events AS e, json_each(e.data, '$.received') AS delay WHERE e.type = 'minute')
"""
TOLD = """
SELECT COALESCE(SUM(json_extract(data, '$.missing')), 0), COALESCE(SUM(json_extract(data, '$.repeated')), 0)
FROM connection_events WHERE type = 'minute'
"""
# Attempts that failed. `before` tells of more failures like the page's last one, whatever this attempt came to.
FAILED = """
WITH attempts AS (
  SELECT page, at, number, transport, reason,
    json_extract(data, '$.outcome') AS outcome, json_extract(data, '$.ms') AS ms,
    COALESCE(json_extract(data, '$.before'), 0) AS more, COALESCE(json_extract(data, '$.probe'), 0) AS probe
  FROM connection_events WHERE type = 'attempt'
)
SELECT transport || ' ' || reason, SUM(times) FROM (
  SELECT transport, CASE WHEN outcome = 'ready' THEN 'slow' ELSE reason END AS reason, 1 AS times FROM attempts
  WHERE probe = 0 AND (outcome = 'failed' OR outcome = 'ready' AND ms > 10000)
  UNION ALL
  SELECT transport, CASE WHEN outcome = 'failed' THEN reason ELSE (
    SELECT earlier.reason FROM attempts AS earlier WHERE earlier.page = attempts.page AND earlier.outcome = 'failed'
    AND earlier.transport = attempts.transport AND (earlier.at, earlier.number) < (attempts.at, attempts.number)
    ORDER BY earlier.at DESC, earlier.number DESC LIMIT 1) END, more FROM attempts WHERE probe = 0 AND more > 0
) GROUP BY 1
"""
UNWITNESSED = "SELECT COUNT(*) FROM connection_events WHERE type = 'server-open' AND page = ''"
# Ends of workers: each is the end of the sockets that it had open.
SOCKETS = """
SELECT opened.client, dead.at FROM connection_events AS opened
JOIN (SELECT e.at, name.value AS worker FROM connection_events AS e, json_each(e.data, '$.dead') AS name
  WHERE e.type = 'server-start') AS dead ON json_extract(opened.data, '$.worker') = dead.worker
WHERE opened.type = 'server-open' AND opened.at <= dead.at AND NOT EXISTS (SELECT 1 FROM connection_events AS closed
  WHERE closed.client = opened.client AND closed.type = 'server-close' AND closed.at <= dead.at)
"""


@dataclass
class Sums:
    """Everything that the monitor shows."""

    attempts_failed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    planned: int = 0
    came_back: int = 0
    sessions: list[int] = field(default_factory=lambda: [0, 0])  # in time, not
    connected_ms: Counter[str] = field(default_factory=Counter)
    ended: list[int] = field(default_factory=list)  # durations of WebSockets
    gaps: list[int] = field(default_factory=list)
    trips: dict[int, int] = field(default_factory=dict)
    in_time: int = 0
    late: int = 0
    missing: int = 0
    repeated: int = 0
    unwitnessed: int = 0
    here: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # of each person: state and reason
    pages: int = 0

    @property
    def people(self) -> Counter[str]:
        """Their number by state."""
        return Counter("reconnecting" if state == "connecting" else state for state, _ in self.here.values())

    @property
    def level(self) -> str:
        """What the sentence says, as far as it is about people."""
        lost = sum(state not in LIVE for state, _ in self.here.values())
        poll = sum(state == "polling" and reason not in PLANNED for state, reason in self.here.values())
        every = len(self.here)
        if lost >= 3 and 2 * lost >= every:
            return "down"
        return "degraded" if every and 4 * (lost + poll) >= every else "ok"

    @property
    def hours(self) -> float:
        """Connected, by any transport."""
        return sum(self.connected_ms[state] for state in LIVE) / 3_600_000

    def metrics(self) -> dict[str, float | None]:
        """The tiles."""
        sessions, all_ms = sum(self.sessions), sum(self.connected_ms[state] for state in LIVE)
        messages = self.in_time + self.late + self.missing
        lost, fallbacks = sum(self.lost.values()), sum(self.fallbacks.values())
        return {
            "websocket-share": 100 * self.connected_ms["connected"] / all_ms if all_ms else None,
            "session-success": 100 * self.sessions[0] / sessions if sessions else None,
            "round-trip-p95": self.trip_ms(0.95),
            "delivery": 100 * self.in_time / messages if messages else None,
            "drops-per-hour": lost / self.hours if all_ms else None,
            "between-drops": all_ms / 1000 / lost if lost else None,
            "fallbacks-per-hour": fallbacks / self.hours if all_ms else None,
            "websocket-duration": sum(self.ended) / 1000 / len(self.ended) if self.ended else None,
            "gap-p95": percentile(self.gaps, 0.95),
        }

    def trip_ms(self, share: float) -> float | None:
        """A percentile of the round trips, from their bins."""
        seen, every = 0, sum(self.trips.values())
        for number, count in sorted(self.trips.items()):
            seen += count
            if seen >= share * every:
                return float(2 ** (number / 4))
        return None


def percentile(values: list[int], share: float) -> float | None:
    """The least value that this share of all does not exceed."""
    seen = sorted(values)
    return next((float(one) for rank, one in enumerate(seen, 1) if rank >= share * len(seen)), None)


def sums_of(data: Path, until: int) -> Sums:
    """Everything, of all events, up to a time (ms)."""
    with closing(sqlite3.connect(data / "metrics.db", timeout=20)) as database:
        database.row_factory = sqlite3.Row
        ask = database.execute
        rows = [start for (start,) in ask("SELECT start FROM rollups WHERE span = 'm' ORDER BY start")]
        found = Sums(
            attempts_failed=Counter(dict(map(tuple, ask(FAILED)))),
            trips=dict(map(tuple, ask(TRIPS))),
            unwitnessed=ask(UNWITNESSED).fetchone()[0],
        )
        found.in_time, found.late = ask(RECEIVED).fetchone()
        found.missing, found.repeated = ask(TOLD).fetchone()
        ends = {client: at for client, at in map(tuple, ask(SOCKETS))}
        query = "SELECT * FROM connection_events WHERE page <> '' AND at <= ? ORDER BY page, at, number"
        for _, events in groupby(map(dict, ask(query, (until,))), key=lambda event: event["page"]):
            found.pages += 1
            walk = Walk(found, Minutes(rows), ends)
            state = walk.through(list(events), until)
            known = found.here.get(walk.person)
            if state in BEST and (known is None or BEST.index(state) < BEST.index(known[0])):
                found.here[walk.person] = (state, walk.reason)
        return found


DECIDED_MS = 120_000


class Minutes:
    """The minutes in which the server ran: only these have figures."""

    def __init__(self, starts: list[int]) -> None:
        self.starts = starts

    def within(self, begin: int, end: int) -> int:
        """The part of a time that lies in them (ms)."""
        first = max(0, bisect_right(self.starts, begin) - 1)
        total = 0
        for start in self.starts[first:]:
            if start >= end:
                break
            total += max(0, min(end, start + MINUTE) - max(begin, start))
        return total


class Walk:
    """What one page did, event by event."""

    def __init__(self, sums: Sums, minutes: Minutes, ends: dict[str, int]) -> None:
        self.sums, self.minutes, self.ends = sums, minutes, ends
        self.state, self.since, self.heard = "", 0, 0
        self.carried = ""  # the last transport
        self.left_at = 0  # since when there is none; 0: there is one, or the page is new or gone
        self.began = 0
        self.connected_at = self.ended_at = 0
        self.sockets: set[str] = set()
        self.own: list[dict[str, Any]] = []  # what the page says of its states
        self.causes: list[tuple[int, str]] = []  # and of the reasons of polling
        self.person = ""
        self.reason: str | None = None

    def through(self, events: list[dict[str, Any]], until: int) -> str:
        """All its events; the state in the end, "" if it is gone."""
        opened = {event["client"] for event in events if event["type"] == "server-open"}
        closing_times = [
            {"type": "dead", "at": at, "client": client, "number": 1 << 40, "data": "{}"}
            for client, at in self.ends.items()
            if client in opened and at <= until
        ]
        self.own = [event for event in events if event["type"] in ("state", "end")]
        self.causes = [(event["at"], event["reason"]) for event in events if event["type"] == "cause"]
        for event in sorted(events + closing_times, key=lambda one: (one["at"], one["number"])):
            self.silence(event["at"])
            self.person = event.get("person") or self.person
            self.take(event, json.loads(event["data"]))
            if not event["type"].startswith("server-") and event["type"] != "dead":
                self.heard = event["at"]
        self.silence(until)
        self.spend(until)
        if self.began and (self.connected_at or not self.ended_at or self.ended_at - self.began > READY_MS):
            is_known = self.connected_at or until - self.began > READY_MS
            if is_known:
                in_time = bool(self.connected_at) and self.connected_at - self.began <= READY_MS
                self.sums.sessions[0 if in_time else 1] += 1
        return self.state

    def take(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        """One event."""
        at, kind = event["at"], event["type"]
        if kind == "state":
            self.change(event["state_to"], at, event["reason"])
        elif kind == "attempt" and not data.get("probe"):
            self.begin(at - data["ms"])
        elif kind == "cause":
            self.reason = event["reason"]
        elif kind == "end":
            self.ended_at = self.ended_at or at
            self.gone(at)
        elif kind == "server-open":
            self.sockets.add(event["client"])
        elif kind in ("server-close", "dead"):
            self.sockets.discard(event["client"])
            if self.state == "connected" and not self.sockets:
                self.end_of_socket(at, data.get("code"), "server-restart" if kind == "dead" else "socket-closed")

    def end_of_socket(self, at: int, code: int | None, reason: str) -> None:
        """The server's word; where the page says of the same end why, that counts."""
        told = next((event for event in self.own if event["at"] >= at), None)
        if told and told["state_from"] == "connected":
            self.change("reconnecting", at, told["reason"])
        elif code in CLEAN or (told and told["type"] == "end" and told["at"] - at < SECOND):
            self.gone(at)
        else:
            self.change("reconnecting", at, reason)

    def found_out(self, at: int, reason: str | None) -> str | None:
        """The reason of a change to polling: if at first it is a symptom, what is found out until the next change."""
        if reason not in (None, "upgrade-failed"):
            return reason
        ends = min((event["at"] for event in self.own if event["at"] > at), default=at + DECIDED_MS)
        return next((found for when, found in self.causes if at <= when <= min(ends, at + DECIDED_MS)), reason)

    def begin(self, at: int) -> None:
        """The first attempt."""
        self.began = min(self.began or at, at)

    def spend(self, at: int) -> None:
        """The time in this state is over."""
        if self.state in LIVE:
            self.sums.connected_ms[self.state] += self.minutes.within(self.since, at)

    def silence(self, at: int) -> None:
        """Whether it was silent for too long before this time."""
        if self.state and not (self.state == "connected" and self.sockets):
            ends = max(self.heard, self.since) + SILENCE.get(self.state, SILENT_MS)
            if ends <= at:
                self.gone(ends)

    def gone(self, at: int) -> None:
        """No page any more."""
        if self.state == "connected":
            self.sums.ended.append(at - self.since)
        self.spend(at)
        self.state, self.left_at, self.carried = "", 0, ""

    def change(self, to: str, at: int, reason: str | None) -> None:
        """Another state."""
        before = self.state
        if to == before:
            return
        if to == "connecting" and not before:
            self.begin(at)
        if before == "connected":
            self.sums.ended.append(at - self.since)
        self.spend(at)
        if (before == "connected" or (before == "polling" and to != "connected")) and reason not in NO_LOSS:
            self.sums.lost[reason or "unknown"] += 1
        if to == "polling" and before not in (*LIVE, "", "connecting") and self.carried == "polling":
            pass  # it polled before it lost the connection: no change
        elif to == "polling" and self.found_out(at, reason) in PLANNED:
            self.sums.planned += 1
        elif to == "polling":
            self.sums.fallbacks[str(self.found_out(at, reason))] += 1
        if to in LIVE:
            self.connected_at = self.connected_at or at
            if to == "connected" and self.carried == "polling":
                self.sums.came_back += 1
            if self.left_at:
                self.sums.gaps.append(at - self.left_at)
            self.carried, self.left_at = to, 0
        elif before in LIVE:
            self.left_at = at
        self.reason = reason
        self.state, self.since, self.heard = ("" if to == "disconnected" else to), at, at
        if not self.state:
            self.left_at, self.carried = 0, ""
