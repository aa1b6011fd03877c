"""The eight alert rules: each one number, a threshold, and how long it must last. docs/monitoring.md has the table.

A rule measures the figures of its last minutes and the present. Drills are left out of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from chatapp import histograms
from chatapp.monitoring import figures
from chatapp.monitoring.figures import Figures

UNREADY = ("disk-full", "server-storage", "no-worker")  # troubles of present.ServerState
LOG_AGE_S = 180.0  # figures that are older say nothing of now
LEAST_FAILED = 3  # pages: one bad laptop is no incident
LOST_PART = 0.5  # of those who are not there any more: the others have left
DROP_FORGOTTEN_S = 1800.0  # after that those who dropped are not expected back

Seen = Literal["bad", "between", "good", "no-data"]


@dataclass(frozen=True)
class Facts:
    """The present, as rules see it. Numbers are people outside drills."""

    is_current: bool = True  # minutes are kept up to date
    trouble: str = ""  # as in present.ServerState
    log_age_s: float = 0.0  # since the end of the newest minute; at most the server's age
    people: int = 0
    live: int = 0
    polling: int = 0  # unplanned
    lost: int = 0  # by no fault of their device
    before: int = 0  # live people a minute or two ago; of an open mass drop: before it
    open_s: float = 0.0  # since the alert fired
    is_disturbed: bool = False  # by a start or a drill


@dataclass(frozen=True)
class Reading:
    """A rule's number, and the number of samples it is made of."""

    value: float
    samples: int


Measure = Callable[[Figures, Facts], Reading | None]


@dataclass(frozen=True)
class Rule:
    """A rule. `bad`: how the value compares with the threshold. `minutes`: of figures that it looks at."""

    name: str
    measure: Measure
    bad: Literal["<", ">", ">="]
    threshold: float
    for_s: int
    recover: float
    keep_s: int
    least: int = 0
    minutes: int = 0

    def is_bad(self, value: float) -> bool:
        """Return True beyond the threshold."""
        if self.bad == "<":
            return value < self.threshold
        return value > self.threshold if self.bad == ">" else value >= self.threshold

    def is_good(self, value: float) -> bool:
        """Return True if the value counts as recovered."""
        return value >= self.recover if self.bad == "<" else value < self.recover

    def is_worse(self, value: float, other: float) -> bool:
        """Return True if a value is as bad as another, or worse."""
        return value <= other if self.bad == "<" else value >= other

    def look(self, whole: Figures, facts: Facts) -> tuple[Seen, Reading | None]:
        """Judge the figures of the rule's minutes and the present. Too few samples are good: nobody is affected."""
        reading = self.measure(whole, facts)
        if reading is None:
            return "no-data", None
        if reading.samples < self.least or self.is_good(reading.value):
            return "good", reading
        return "bad" if self.is_bad(reading.value) else "between", reading


def _unready(_whole: Figures, facts: Facts) -> Reading:
    return Reading(float(facts.trouble in UNREADY), 1)


def _disk_or_log(_whole: Figures, facts: Facts) -> Reading:
    return Reading(float(facts.trouble in ("disk", "disk-full") or facts.log_age_s > LOG_AGE_S), 1)


def _success(whole: Figures, facts: Facts) -> Reading | None:
    ready, failed = whole.sessions
    share = figures.session_success(whole) if failed >= LEAST_FAILED else 1.0
    return Reading(1.0 if share is None else share, ready + failed) if facts.is_current else None


def _polling_share(_whole: Figures, facts: Facts) -> Reading | None:
    return Reading(facts.polling / max(1, facts.people), facts.people) if facts.is_current else None


def _mass_drop(_whole: Figures, facts: Facts) -> Reading | None:
    if not facts.is_current:
        return None
    fallen, is_open = max(0, facts.before - facts.live), facts.open_s > 0
    is_drop = facts.lost >= LOST_PART * fallen and not facts.is_disturbed
    counts = facts.open_s <= DROP_FORGOTTEN_S if is_open else is_drop
    return Reading(fallen / max(1, facts.before) if counts else 0.0, facts.before)


def _drops_per_hour(whole: Figures, facts: Facts) -> Reading | None:
    hours = figures.live_hours(whole)
    return Reading(figures.drops_per_hour(whole) or 0.0, int(hours)) if facts.is_current else None


def _round_trip(whole: Figures, facts: Facts) -> Reading | None:
    number = sum(map(histograms.total, whole.sent.values()))
    return Reading(figures.round_trip_ms(whole) or 0.0, number) if facts.is_current else None


def _delivery(whole: Figures, facts: Facts) -> Reading | None:
    share, number = figures.delivery(whole), whole.received + whole.late + whole.missing
    return Reading(1.0 if share is None else share, number) if facts.is_current else None


# The gravest first: it names the incident.
RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("unready", _unready, ">=", 1, for_s=30, recover=1, keep_s=60),
        Rule("disk-or-log", _disk_or_log, ">=", 1, for_s=60, recover=1, keep_s=300),
        Rule("mass-drop", _mass_drop, ">=", 0.5, for_s=0, recover=0.2, keep_s=120, least=10),
        Rule("polling-share", _polling_share, ">=", 0.25, for_s=300, recover=0.15, keep_s=600, least=5),
        Rule("success", _success, "<", 0.95, for_s=300, recover=0.98, keep_s=600, least=20, minutes=15),
        Rule("delivery", _delivery, "<", 0.99, for_s=300, recover=0.997, keep_s=600, least=200, minutes=10),
        Rule("round-trip", _round_trip, ">", 1500, for_s=600, recover=1000, keep_s=600, least=50, minutes=10),
        Rule("drops", _drops_per_hour, ">", 2, for_s=600, recover=1, keep_s=600, least=5, minutes=15),
    )
}
GRAVE = ("unready", "mass-drop")  # while one of them fires, the others need no notice of their own
LONGEST_MINUTES = max(rule.minutes for rule in RULES.values())
