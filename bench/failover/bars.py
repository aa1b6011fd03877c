"""The thresholds (bars) of this rig: met, not met, or not measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from failover.drained import Drained
from failover.measure import Result

Cells = Mapping[str, Mapping[str, Sequence[Result]]]
MOST_TIMES = 2.0
"""A maximum may be at most twice the bar."""
REFUSED_S = 0.05
LOOPBACK_S = 0.01
"""One round trip where there is no network between."""


@dataclass(frozen=True)
class Bar:
    """One line of the table: what is taken from which cell, and how long it may be (the median, in seconds)."""

    what: str
    cell: str
    value: Callable[[Result], float | None]
    limit: float
    most: float = 0.0  # a limit of the maximum, else twice the limit
    least: float = 0.0


def _noticed(result: Result) -> float | None:
    return result.noticed


def _gap(result: Result) -> float | None:
    return result.gap


def _back(result: Result) -> float | None:
    return result.back


def _obeyed(result: Result) -> float | None:
    return result.obeyed


BARS = [
    Bar("blackhole of the socket, a send outstanding: suspected", "blackhole-socket-outstanding", _noticed, 1.2),
    Bar("… messages flow", "blackhole-socket-outstanding", _gap, 1.5),
    Bar("… awaiting an answer: suspected", "blackhole-socket-awaiting", _noticed, 2.5),
    Bar("… messages flow", "blackhole-socket-awaiting", _gap, 4.5),
    Bar("… visible, nothing happening: suspected", "blackhole-socket-idle", _noticed, 5.0, most=9.75),
    Bar("… messages flow", "blackhole-socket-idle", _gap, 8.0, most=9.75),
    Bar("woken in Chromium (the socket died): verdict", "frozen in Chromium", _noticed, 2.0),
    Bar("the network changed (Chromium is told): verdict", "address-change in Chromium", _noticed, 2.0),
    Bar("poll transport dead: noticed", "poll-blackhole", _noticed, 8.0),
    Bar("upgrade refused: usable", "upgrade-refused", _noticed, REFUSED_S + LOOPBACK_S),
    Bar("upgrade hung: usable", "upgrade-hung", _noticed, 1.0),
    Bar("upgrade hung: usable in Chromium", "upgrade-hung in Chromium", _noticed, 1.0),
    Bar("socket closed: messages flow", "reset", _gap, 0.3),
    Bar("back on WebSocket after it works again", "websocket-outage", _back, 12.0),
    Bar("429 with Retry-After 7: next request", "http-429", _obeyed, 9.0, most=9.0, least=7.0),
    Bar("503 with Retry-After 7: next request", "http-503", _obeyed, 9.0, most=9.0, least=7.0),
]
ELSEWHERE = (
    "false switches on a 4G-like line, predictive switches, ten tabs, network memory, `doctor` and Run test, and the "
    "size of the code are not measured by this rig"
)


@dataclass(frozen=True)
class Verdict:
    """One bar with what was reached."""

    what: str
    bar: str
    reached: str
    verdict: str


def verdicts(cells: Cells, drain: Drained | None) -> list[Verdict]:
    """Every bar, met or not."""
    found = [_times(bar, cells) for bar in BARS]
    found += [_counts(cells, name) for name in ("random",)]
    return found + _drain(drain)


def _times(bar: Bar, cells: Cells) -> Verdict:
    most = bar.most or MOST_TIMES * bar.limit
    words = f"{bar.limit:g} s, at most {most:g} s" + (f", never before {bar.least:g} s" if bar.least else "")
    results = cells.get(bar.cell, {}).get("ours", [])
    values = [value for value in map(bar.value, results) if value is not None]
    if not results:
        return Verdict(bar.what, words, "", "not measured")
    if not values:
        return Verdict(bar.what, words, f"never (n={len(results)})", "NOT MET")
    missing = len(results) - len(values)
    reached = f"{median(values):.2f} s, at most {max(values):.2f} s (n={len(values)})"
    reached += f", never in {missing}" if missing else ""
    is_met = median(values) <= bar.limit and max(values) <= most and min(values) >= bar.least and not missing
    return Verdict(bar.what, words, reached, "met" if is_met else "NOT MET")


def _counts(cells: Cells, name: str) -> Verdict:
    what, bar = "lost / doubled / reordered under random faults", "0 / 0 / 0 of 10,000"
    results = cells.get(name, {}).get("ours", [])
    if not results:
        return Verdict(what, bar, "", "not measured")
    counts = [sum(getattr(one, kind) for one in results) for kind in ("lost", "doubled", "reordered")]
    messages = sum(one.messages for one in results)
    reached = f"{' / '.join(map(str, counts))} of {messages:,}"
    few = messages < 9_500  # the last words of each client fall away
    return Verdict(what, bar, reached, "NOT MET" if any(counts) else "met, with fewer messages" if few else "met")


def _drain(drain: Drained | None) -> list[Verdict]:
    whats = ("after a drain: all back", "after a drain: connects in the busiest 100 ms")
    if drain is None:
        return [Verdict(f"200 clients {what}", "", "", "not measured") for what in whats]
    is_back = drain.all_back is not None and drain.all_back <= 5 and drain.connected == drain.clients
    is_spread = drain.peak <= 3 * drain.advised
    back = "not all" if drain.all_back is None else f"{drain.all_back:.2f} s"
    return [
        Verdict(
            f"{drain.clients} clients {whats[0]}",
            "5 s",
            f"{back} ({drain.back} of {drain.connected} that were connected)",
            "met" if is_back else "NOT MET",
        ),
        Verdict(
            f"{drain.clients} clients {whats[1]}",
            f"3 × the advised {drain.advised:g}",
            f"{drain.peak}",
            "met" if is_spread else "NOT MET",
        ),
    ]
