"""The counts of a minute or longer, and the metrics made of them. docs/monitoring.md defines each.

All counts add up, so those of an hour are the sum of its minutes'; only `people` is a state at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chatapp.histograms import Histogram, merge, percentile_ms, total
from chatapp.monitoring.causes import known

ATTEMPTS = {"websocket": [0, 0, 0], "polling": [0, 0, 0]}
Counts = dict[str, int]


def _attempts() -> dict[str, list[int]]:
    return {transport: list(counts) for transport, counts in ATTEMPTS.items()}


def _histograms() -> dict[str, Histogram]:
    return {"websocket": {}, "polling": {}}


def count(counts: Counts, key: str, number: int = 1) -> None:
    """Add to a count."""
    counts[key] = counts.get(key, 0) + number


@dataclass
class Figures:
    """Counts of connections and messages. Times are ms; durations of messages are histograms."""

    sessions: list[int] = field(default_factory=lambda: [0, 0])  # pages that connected in time, and others
    attempts: dict[str, list[int]] = field(default_factory=_attempts)  # ready in time, failed, cancelled
    probes: list[int] = field(default_factory=lambda: [0, 0])  # of WebSocket while polling: ready, failed
    refusals: Counts = field(default_factory=dict)  # failed attempts by "transport reason"
    connect: dict[str, Histogram] = field(default_factory=_histograms)  # from an attempt to ready
    state_ms: Counts = field(default_factory=dict)  # time of all pages by state
    ended: dict[str, list[int]] = field(default_factory=lambda: {"websocket": [0, 0], "polling": [0, 0]})  # number, ms
    drops: Counts = field(default_factory=dict)  # by reason
    fallbacks: Counts = field(default_factory=dict)  # by reason
    planned: int = 0  # polling by memory, setting or drill
    recoveries: int = 0
    dwell: Histogram = field(default_factory=dict)  # of polling, at its end in a recovery
    gaps: Histogram = field(default_factory=dict)  # without a transport, between two
    sent: dict[str, Histogram] = field(default_factory=_histograms)  # from sending to the acknowledgement
    repeated: int = 0  # messages that were sent more than once: not in `sent`
    received: int = 0  # messages of others that arrived within 30 s
    late: int = 0  # later
    missing: int = 0  # not there although 30 s old, when the page said what it has
    unwitnessed: int = 0  # sockets of clients that report nothing
    people: Counts = field(default_factory=dict)  # by their best state at the end

    def dump(self) -> dict[str, Any]:
        """Return the values, for JSON, without those that are empty."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if _has_counts(value)}

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Figures:
        """Return the figures of `dump`."""
        return cls(**{name: value for name, value in values.items() if name in NAMES})

    def note_attempt(self, transport: str, outcome: str, reason: str | None, number: int = 1) -> None:
        """Count attempts to connect: ready, failed, cancelled."""
        if transport not in self.attempts:
            return
        self.attempts[transport][("ready", "failed", "cancelled").index(outcome)] += number
        if outcome == "failed":
            count(self.refusals, f"{transport} {known(reason)}", number)

    def note_end(self, transport: str, ms: int) -> None:
        """Count a connection that ended, and how long it lasted."""
        self.ended[transport][0] += 1
        self.ended[transport][1] += ms


def _has_counts(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_counts, value.values()))
    return any(value) if isinstance(value, list) else bool(value)


def add_up(several: Iterable[Figures]) -> Figures:
    """Return the sum of figures in their order; `people` are those of the last ones."""
    whole = Figures()
    for one in several:
        for name in NAMES:
            its = getattr(one, name)
            if isinstance(its, int):
                setattr(whole, name, getattr(whole, name) + its)
            elif name != "people":
                _add(getattr(whole, name), its)
        whole.people = dict(one.people)
    return whole


NAMES = tuple(one.name for one in dataclasses.fields(Figures))


def _add(mine: Any, its: Any) -> None:
    """Add counts to others in place: lists and dictionaries of numbers, or dictionaries of these."""
    for key, value in its.items() if isinstance(its, dict) else enumerate(its):
        if isinstance(value, int):
            mine[key] = (mine.get(key, 0) if isinstance(mine, dict) else mine[key]) + value
        else:
            _add(mine.setdefault(key, type(value)() if isinstance(value, dict) else [0] * len(value)), value)


# The metrics. None: no data, which is not 0.


def ratio(part: float, whole: float) -> float | None:
    """Return part of whole; None without any."""
    return part / whole if whole else None


def session_success(figures: Figures) -> float | None:
    """Connection success rate of sessions: pages that were connected within 10 s, by any transport."""
    return ratio(figures.sessions[0], sum(figures.sessions))


def transport_success(figures: Figures, transport: str) -> float | None:
    """Connection success rate of a transport: its attempts that were ready within 10 s; cancelled ones do not count."""
    ready, failed, _cancelled = figures.attempts[transport]
    return ratio(ready, ready + failed)


def mean_duration_s(figures: Figures, transport: str) -> float | None:
    """Average duration of the connections that ended."""
    number, ms = figures.ended[transport]
    return ratio(ms / 1000, number)


def live_hours(figures: Figures, transport: str = "") -> float:
    """Return the connected time of all pages, in hours."""
    states = {"websocket": ["connected"], "polling": ["polling"], "": ["connected", "polling"]}[transport]
    return sum(figures.state_ms.get(state, 0) for state in states) / 3_600_000


def drops_per_hour(figures: Figures) -> float | None:
    """Connections that were lost, for each hour that somebody was connected."""
    return ratio(sum(figures.drops.values()), live_hours(figures))


def between_drops_s(figures: Figures) -> float | None:
    """Mean connected time between two drops."""
    return ratio(live_hours(figures) * 3600, sum(figures.drops.values()))


def fallbacks_per_hour(figures: Figures) -> float | None:
    """Unplanned changes to polling, for each connected hour."""
    return ratio(sum(figures.fallbacks.values()), live_hours(figures))


def polling_share(figures: Figures) -> float | None:
    """Share of the connected time that was polling."""
    return ratio(live_hours(figures, "polling"), live_hours(figures))


def round_trip_ms(figures: Figures, share: float = 0.95, transport: str = "") -> float | None:
    """Percentile of the time from sending a message to its acknowledgement."""
    whole: Histogram = {}
    for name, histogram in figures.sent.items():
        if transport in ("", name):
            merge(whole, histogram)
    return percentile_ms(whole, share)


def messages_sent(figures: Figures) -> int:
    """Return the number of acknowledged messages."""
    return sum(map(total, figures.sent.values())) + figures.repeated


def delivery(figures: Figures) -> float | None:
    """Message delivery rate: messages that reached a page within 30 s, of all that it should have got."""
    return ratio(figures.received, figures.received + figures.late + figures.missing)


def gap_ms(figures: Figures, share: float = 0.95) -> float | None:
    """Percentile of the time without a transport, between two."""
    return percentile_ms(figures.gaps, share)
