"""The states of each page, from its events: one pass in the order of the server's clock, minute by minute.

A page is `connecting`, `connected`, `polling`, `reconnecting`, `error`, `disconnected`, or gone. It reports that
itself; the ends of sockets and workers are the server's events. A page without an event for long is gone.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatapp import histograms
from chatapp.monitoring.causes import known
from chatapp.monitoring.figures import Figures, count
from chatapp.store import ConnectionEvent
from chatapp.store.drills import DrillTable

READY_MS = 10_000  # an attempt that takes longer has failed
POLLING_SIGN_MS = 720_000  # a page that polls says something each 5 minutes
OTHER_SIGN_MS = 120_000  # a page that tries to connect, or whose socket the server does not know
LATE_S = 30  # a message that arrives later was not delivered in time
MOST_DROPS = 5  # remembered of a page
GRACE_MS = 30_000  # after a drill, for what it did to end
LIVE = {"connected": "websocket", "polling": "polling"}
SHOWN = ("connected", "polling", "reconnecting", "error", "connecting")  # the best one first
STATES = (*SHOWN, "disconnected")  # that a page reports
LIMITS = ("delay", "jitter", "loss", "drops")  # of the quality
CLEAN_CODES = (1000, 1001)
CODES = {1012: "server-restart", 4401: "signed-out"}  # other codes, as reasons
CLOSED_MS = 10_000  # in which a page says itself why its socket has ended
REMEMBERED_MS = 24 * 3_600_000  # a page that said nothing for long may only have slept
PLANNED = (None, "websocket-off", "drill", "rate-limited", "server-full")  # reasons of polling that are no fallback
DECIDED_MS = 120_000  # after which polling without another reason is meant to be so
UNDECIDED = (None, "upgrade-failed")  # reasons that the page still looks into
NO_DROPS = ("offline", "server-restart", "drill", "signed-out", "session-expired", "session-revoked", "rate-limited")


@dataclass(frozen=True)
class DrillTime:
    """The time of a drill. `person`: a UUID, or None for everybody."""

    person: str | None
    start: int
    end: int

    def covers(self, person: str, at: int) -> bool:
        """Return True if the drill may have affected this person at a time."""
        return self.person in (None, person) and self.start <= at < self.end + GRACE_MS


def drill_times(table: DrillTable, since: int) -> list[DrillTime]:
    """Return the drills that ended after a time (ms), or still run."""
    return [DrillTime(one.person, one.starts_at, one.ends_at) for one in table.since(since)]


@dataclass
class Page:
    """A page's state. Times are ms of the server's clock; 0: none. Stored by position: new fields come last."""

    person: str = ""
    network: str = ""
    agent: str = ""
    state: str = ""
    since: int = 0  # of the state
    counted: int = 0  # up to when its time is counted
    reason: str | None = None
    carried: str = ""  # the state of `LIVE` that it was in last
    lost_at: int = 0  # when it left that, until it is in one again
    polled_at: int = 0  # since when it polls, also where that was interrupted
    is_undecided: bool = False  # why it polls is not counted yet
    socket: str = ""  # the one that is open
    closed_at: int = 0  # when it ended, until it is known why
    close_code: int = 0
    failed_as: dict[str, str | None] = field(default_factory=dict)  # reason of the last failure, by transport
    sleeps: bool = False  # it is gone because it said nothing
    worker: str = ""  # of `socket`
    sign_at: int = 0  # of its last event
    first_try_at: int = 0
    is_scored: bool = False  # whether it connected in time is counted
    quality: int | None = None
    limit: str | None = None  # what limits the quality
    way: str | None = None  # what something on the way does: a cause
    drops: list[int] = field(default_factory=list)  # times of the last ones

    def dump(self) -> list[Any]:
        """Return the values, for JSON."""
        return list(dataclasses.astuple(self))

    @classmethod
    def load(cls, values: Sequence[Any]) -> Page:
        """Return the page of `dump`."""
        return cls(*values)

    def gone_at(self) -> int | None:
        """Return when it counts as gone if it says nothing more; None while its socket is open."""
        if self.state == "gone":
            return self.sign_at + REMEMBERED_MS
        if self.state == "connected" and (self.socket or self.closed_at):
            return None
        return self.sign_at + (POLLING_SIGN_MS if self.state == "polling" else OTHER_SIGN_MS)


@dataclass
class Timeline:
    """All live pages at a moment, which `run` moves on."""

    at: int = 0
    pages: dict[str, Page] = field(default_factory=dict)

    def copy(self) -> Timeline:
        """Return an independent copy."""
        return Timeline(self.at, {name: dataclasses.replace(page) for name, page in self.pages.items()})

    def run(self, events: Iterable[ConnectionEvent], until: int, drills: Sequence[DrillTime] = ()) -> Figures:
        """Move on to `until` by the events from `at` to before that, in any order. Return their figures."""
        return _Run(self, until, drills).over(events)


class _Run:
    """One pass over the events of some time."""

    def __init__(self, timeline: Timeline, until: int, drills: Sequence[DrillTime]) -> None:
        self._timeline, self._pages = timeline, timeline.pages
        self._until = until
        self._drills = [one for one in drills if one.end + GRACE_MS > timeline.at and one.start < until]
        self._all = Figures()
        self._figures = self._all  # those of the event at hand: of a drill's none count

    def over(self, events: Iterable[ConnectionEvent]) -> Figures:
        for event in sorted(events, key=lambda one: (one.at, one.client, one.number)):
            self._figures = Figures() if self._is_drilled(event.person, event.at) else self._all
            self._take(event)
        for name, page in list(self._pages.items()):
            self._figures = Figures() if self._is_drilled(page.person, self._until - 1) else self._all
            self._finish(name, page)
        self._timeline.at = self._until
        self._all.people = dict(Counter(page.state for page in best_pages(self._pages.values()).values()))
        return self._all

    def _is_drilled(self, person: str, at: int) -> bool:
        return any(one.covers(person, at) for one in self._drills)

    # Events

    def _take(self, event: ConnectionEvent) -> None:
        if event.type == "server-start":
            return self._end_workers(event)
        if not event.page:
            self._figures.unwitnessed += event.type == "server-open"
            return
        known = self._pages.get(event.page)
        if known is not None and known.person != event.person:
            return  # somebody else claims to be this page
        page = self._page(event)
        match event.type:
            case "state":
                if event.state_to in STATES:
                    self._change(page, event.state_to, event.reason, event.at)
            case "cause" if page.state == "polling":
                self._decide(page, event.reason)
            case "way":
                page.way = event.reason
            case "idle-kill" if _whole(event.facts.get("killGap")):
                page.way = "idle-cut"
            case "server-open":
                page.socket, page.worker = event.client, str(event.facts.get("worker", ""))
            case "server-close":
                self._close(page, event)
            case "attempt":
                self._note_attempt(page, event)
            case "minute":
                self._note_messages(event)
            case "quality":
                self._note_quality(page, event.facts)
            case "end":
                self._score_end(page, event.at)
                self._change(page, "gone", None, event.at)

    def _page(self, event: ConnectionEvent) -> Page:
        page = self._pages.get(event.page)
        if page is None:
            page = self._pages[event.page] = Page(since=event.at, counted=event.at)
        if page.closed_at and event.at - page.closed_at > CLOSED_MS:
            self._close_silently(page)
        if page.state != "gone" and (gone_at := page.gone_at()) is not None and event.at > gone_at:
            self._fall_asleep(page, gone_at)
        page.person, page.sign_at = event.person, event.at
        page.network, page.agent = event.network or page.network, event.agent or page.agent
        if page.sleeps and page.carried == "polling" and event.type not in ("state", "end", "server-open"):
            self._change(page, "polling", page.reason, event.at)  # who polls says so by this
        return page

    def _fall_asleep(self, page: Page, at: int) -> None:
        """It says nothing: if it comes back, it is the same page."""
        carried, polled_at, lost_at = page.carried, page.polled_at, page.lost_at
        self._change(page, "gone", page.reason, at)
        page.sleeps, page.carried, page.polled_at, page.lost_at = (
            True,
            carried,
            polled_at,
            page.lost_at or lost_at or at,
        )

    def _change(self, page: Page, state: str, reason: str | None, at: int) -> None:
        before = page.state
        if state == before:
            page.reason = reason
            return
        if before == "polling":
            self._decide(page, page.reason, is_last=True)
        page.reason = reason
        self._count_time(page, at)
        if before in LIVE:
            self._leave(page, state, reason, at)
        if state in LIVE:
            self._enter(page, state, reason, at)
        elif state in ("gone", "disconnected"):
            page.carried, page.lost_at, page.polled_at = "", 0, 0
        page.state, page.since, page.sleeps, page.closed_at = state, at, False, 0

    def _leave(self, page: Page, state: str, reason: str | None, at: int) -> None:
        self._figures.note_end(LIVE[page.state], max(0, at - page.since))
        page.lost_at = at
        is_drop = state not in ("gone", "disconnected", "connected") and reason not in NO_DROPS
        if is_drop:
            count(self._figures.drops, known(reason))
            page.drops = [*page.drops, at][-MOST_DROPS:]

    def _enter(self, page: Page, state: str, reason: str | None, at: int) -> None:
        if page.lost_at and page.carried and at > page.lost_at:
            histograms.add(self._figures.gaps, at - page.lost_at)
        if state == "polling" and page.carried != "polling":
            page.polled_at, page.is_undecided = at, True
            self._decide(page, reason)
        elif state == "connected" and page.polled_at:
            self._figures.recoveries += 1
            histograms.add(self._figures.dwell, at - page.polled_at)
            page.polled_at = 0
        page.carried, page.lost_at = state, 0

    def _decide(self, page: Page, reason: str | None, is_last: bool = False) -> None:
        """Count why a page polls, once that is known: at first it may have no reason, or only a symptom."""
        page.reason = reason
        if not page.is_undecided or (reason in UNDECIDED and not is_last):
            return
        page.is_undecided = False
        if reason in PLANNED:
            self._figures.planned += 1
        else:
            count(self._figures.fallbacks, known(reason))

    def _close(self, page: Page, event: ConnectionEvent) -> None:
        """Note the end of a socket's server side. The page reports its next state and the reason itself, if it can."""
        if page.socket != event.client:
            return  # an older one
        page.socket = ""
        if page.state == "connected":
            page.closed_at, page.close_code = event.at, _whole(event.facts.get("code"))

    def _close_silently(self, page: Page) -> None:
        """The page said nothing of its socket's end: the code tells."""
        is_clean = page.close_code in CLEAN_CODES
        reason = CODES.get(page.close_code, "socket-closed")
        self._change(page, "gone" if is_clean else "reconnecting", reason, page.closed_at)

    def _end_workers(self, event: ConnectionEvent) -> None:
        dead = event.facts.get("dead") or ()
        for page in self._pages.values():
            if page.socket and page.worker in dead:
                page.socket, page.sign_at = "", event.at
                if page.state == "connected":
                    self._change(page, "reconnecting", "server-restart", event.at)

    def _note_attempt(self, page: Page, event: ConnectionEvent) -> None:
        facts, figures = event.facts, self._figures
        outcome, ms, transport = facts.get("outcome"), _whole(facts.get("ms")), event.transport or ""
        if outcome not in ("ready", "failed", "cancelled") or transport not in figures.attempts:
            return
        is_ready = outcome == "ready" and ms <= READY_MS
        if facts.get("probe"):
            if outcome != "cancelled" and transport == "websocket":
                figures.probes[0 if is_ready else 1] += 1 if is_ready else 1 + _whole(facts.get("before"))
            return
        reason = "slow" if outcome == "ready" and not is_ready else event.reason
        figures.note_attempt(transport, "ready" if is_ready else "failed" if outcome == "ready" else outcome, reason)
        if before := _whole(facts.get("before")):
            figures.note_attempt(transport, "failed", page.failed_as.get(transport, event.reason), before)
        if outcome == "failed":
            page.failed_as = page.failed_as | {transport: event.reason}
        if is_ready:
            histograms.add(figures.connect[transport], ms)
        self._score(page, event.at - ms, event.at if outcome == "ready" else None)

    def _score(self, page: Page, tried_at: int, ready_at: int | None) -> None:
        """Count once whether a page connected in time."""
        if page.is_scored:
            return
        page.first_try_at = min(page.first_try_at or tried_at, tried_at)
        if ready_at is not None:
            page.is_scored = True
            self._figures.sessions[0 if ready_at - page.first_try_at <= READY_MS else 1] += 1

    def _score_end(self, page: Page, at: int) -> None:
        """A page that ends before its time is up says nothing about that."""
        if page.first_try_at and not page.is_scored and at - page.first_try_at > READY_MS:
            self._figures.sessions[1] += 1
        page.is_scored = True

    def _note_quality(self, page: Page, facts: dict[str, Any]) -> None:
        score, limit = facts.get("score"), facts.get("limit")
        page.quality = min(100, _whole(score)) if score is not None else None
        page.limit = limit if limit in LIMITS else None

    def _note_messages(self, event: ConnectionEvent) -> None:
        facts, figures = event.facts, self._figures
        sent, received = facts.get("sent"), facts.get("received")
        offset_s = (event.at - event.happened_at) / 1000  # of the server's clock from the page's
        try:
            for transport, bins in (sent if isinstance(sent, dict) else {}).items():
                histograms.merge(figures.sent[transport], bins)
            for seconds, number in (received if isinstance(received, dict) else {}).items():
                is_late = int(seconds) + offset_s > LATE_S
                figures.received += 0 if is_late else _whole(number)
                figures.late += _whole(number) if is_late else 0
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # a client's own form
        figures.repeated += _whole(facts.get("repeated"))
        figures.missing += _whole(facts.get("missing"))

    # The end of the time

    def _finish(self, name: str, page: Page) -> None:
        if page.closed_at and self._until - page.closed_at > CLOSED_MS:
            self._close_silently(page)
        if page.first_try_at and not page.is_scored and page.first_try_at + READY_MS < self._until:
            page.is_scored = True
            self._figures.sessions[1] += 1
        if page.is_undecided and page.state == "polling" and self._until - page.polled_at > DECIDED_MS:
            self._decide(page, page.reason, is_last=True)
        gone_at = page.gone_at()
        if page.state != "gone" and gone_at is not None and gone_at < self._until:
            self._fall_asleep(page, gone_at)
        is_over = not page.sleeps or page.sign_at + REMEMBERED_MS < self._until
        if page.state == "gone" and not page.socket and is_over:
            del self._pages[name]
        else:
            self._count_time(page, page.closed_at or self._until)

    def _count_time(self, page: Page, at: int) -> None:
        """Count the time in the state up to `at`, without that of drills."""
        start, page.counted = page.counted, max(page.counted, at)
        drilled = sum(
            max(0, min(at, one.end + GRACE_MS) - max(start, one.start))
            for one in self._drills
            if one.person in (None, page.person)
        )
        if page.state in SHOWN and at - start - drilled > 0:
            count(self._all.state_ms, page.state, at - start - drilled)


def _whole(value: Any) -> int:
    """Return a client's number, bounded; 0 if it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return round(value) if is_number and 0 <= value < 1 << 31 else 0


def best_pages(pages: Iterable[Page]) -> dict[str, Page]:
    """Return the page in the best state of each person with a live one."""
    best: dict[str, Page] = {}
    for page in pages:
        known = best.get(page.person)
        if page.state in SHOWN and (known is None or SHOWN.index(page.state) < SHOWN.index(known.state)):
            best[page.person] = page
    return best
