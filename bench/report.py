"""Medians, ranges and verdicts: JSON for programs, one Markdown table for people."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.contenders import TITLES
from bench.load.work import Numbers
from bench.rows import Bar, Row, Scale

MET = {True: "met", False: "not met"}
FOREIGN_PERCENT = 10.0  # of a core: if others use more than this, a run says little


@dataclass
class Results:
    """What each contender did in each row, run by run; `failures` says in words what could not be measured."""

    scale: Scale
    runs: int
    facts: dict[str, str]
    numbers: dict[str, dict[str, list[Numbers]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, row: str, who: str, numbers: Numbers) -> None:
        """One run."""
        self.numbers.setdefault(row, {}).setdefault(who, []).append(numbers)

    def values(self, row: str, who: str, metric: str) -> list[float]:
        """A metric, run by run."""
        runs = self.numbers.get(row, {}).get(who, [])
        return [numbers[metric] for numbers in runs if metric in numbers]

    def median(self, row: str, who: str, metric: str) -> float | None:
        """A metric's median, if it was measured."""
        values = self.values(row, who, metric)
        return statistics.median(values) if values else None


def named(text: str, scale: Scale) -> str:
    """A title or metric with its numbers in place."""
    return text.format(**scale.names())


def verdict(results: Results, row: Row, bar: Bar) -> dict[str, object]:
    """A bar and its stretch: what was measured, the ratio, and whether it is met. None: not measured."""
    metric = named(bar.metric, results.scale)
    own = results.median(row.key, "product", metric)
    base = results.median(row.key, bar.peer, metric) if bar.peer else 1.0
    ratio = own / base if own is not None and base else None

    def is_met(factor: float | None) -> bool | None:
        if factor is None or ratio is None:
            return None
        return ratio <= factor if bar.sign == "<=" else ratio >= factor

    return {
        "row": row.key,
        "metric": metric,
        "peer": bar.peer or None,
        "sign": bar.sign,
        "bar": bar.factor,
        "stretch": bar.stretch,
        "ratio": ratio,
        "bar_met": is_met(bar.factor),
        "stretch_met": is_met(bar.stretch),
    }


def as_json(results: Results, rows: Sequence[Row], profile: Mapping[str, object]) -> dict[str, object]:
    """Everything, for programs."""
    return {
        "facts": results.facts,
        "scale": vars(results.scale),
        "runs": results.runs,
        "rows": results.numbers,
        "verdicts": [verdict(results, row, bar) for row in rows for bar in row.bars],
        "failures": results.failures,
        "profile": dict(profile),
    }


def table(results: Results, rows: Sequence[Row]) -> str:
    """The table: medians (and ranges) of everybody, and what the ratios are held against."""
    who = [name for name in TITLES if any(name in results.numbers.get(row.key, {}) for row in rows)]
    lines = [f"| work | {' | '.join(TITLES[name] for name in who)} | chatapp to its bars |"]
    lines.append("| --- " * (len(who) + 2) + "|")
    for row in rows:
        if row.key not in results.numbers:
            continue
        cells = [_cell(results, row, name) for name in who]
        bars = "<br>".join(_bar_words(results, row, bar) for bar in row.bars)
        lines.append(f"| {named(row.title, results.scale)}, {row.unit} | {' | '.join(cells)} | {bars} |")
    return "\n".join(lines)


def markdown(results: Results, rows: Sequence[Row], profile: str) -> str:
    """The whole report."""
    facts = "\n".join(f"- {name}: {value}" for name, value in results.facts.items())
    parts = ["# make bench", facts, table(results, rows), _legend(results)]
    if results.failures:
        parts.append("Not measured:\n\n" + "\n".join(f"- {failure}" for failure in results.failures))
    parts += [_self_check(results, rows), _growth(results, rows), profile]
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(cores: tuple[int, int], descriptors: int, versions: str, disk: str) -> dict[str, str]:
    """The conditions."""
    return {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "cores": f"server on {cores[0]}, load on {cores[1]}",
        "descriptors a process": str(descriptors),
        "disk": disk,
        "peers": versions,
        "load at the start": ", ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def shown(value: float) -> str:
    """Three digits that matter."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cell(results: Results, row: Row, who: str) -> str:
    values = results.values(row.key, who, named(row.metric, results.scale))
    if not values:
        return "–"
    marks = "†" if any(results.values(row.key, who, "load_bound")) else ""
    loud = results.values(row.key, who, "foreign_cpu_percent") + results.values(
        row.key, who, "idle_foreign_cpu_percent"
    )
    marks += "‡" if max(loud, default=0) > FOREIGN_PERCENT else ""
    middle = shown(statistics.median(values))
    return f"{middle}{marks}" + (f" ({shown(min(values))}–{shown(max(values))})" if len(values) > 1 else "")


def _bar_words(results: Results, row: Row, bar: Bar) -> str:
    found = verdict(results, row, bar)
    ratio = found["ratio"]
    sign = "≤" if bar.sign == "<=" else "≥"
    measured = shown(ratio) if isinstance(ratio, float) else "not measured"
    of = f" × {TITLES[bar.peer]}" if bar.peer else ""
    title = f"{named(bar.title, results.scale)}: " if bar.title else ""
    words = []
    for name, factor, is_met in (("", bar.factor, found["bar_met"]), ("stretch ", bar.stretch, found["stretch_met"])):
        if factor is not None:
            words.append(f"{name}{sign} {shown(factor)}{'' if is_met is None else ' ' + MET[bool(is_met)]}")
    return f"{title}{measured}{of} ({', '.join(words)})"


def _legend(results: Results) -> str:
    return (
        f"Medians of {results.runs} interleaved runs of {results.scale.seconds:g} s (lowest–highest). † load-bound:"
        " the load generator used over 90 % of its core; compare CPU. ‡ other processes used over"
        f" {FOREIGN_PERCENT:g} % of a core: the figure says little. Deliveries of all peers have the product's bytes."
    )


def _self_check(results: Results, rows: Sequence[Row]) -> str:
    lines = ["## The load generator, checked", ""]
    lines.append("| work | contender | operations/s | server µs each | load's CPU, % | server's, % | others', % |")
    lines.append("| --- " * 7 + "|")
    metrics = ("per_s", "cpu_us", "load_cpu_percent", "server_cpu_percent", "foreign_cpu_percent")
    for row in rows:
        for who in results.numbers.get(row.key, {}):
            medians = [results.median(row.key, who, metric) for metric in metrics]
            if medians[0] is not None:
                cells = " | ".join("–" if value is None else shown(value) for value in medians)
                lines.append(f"| {named(row.title, results.scale)} | {TITLES[who]} | {cells} |")
    return "\n".join(lines)


def _growth(results: Results, rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for numbers in results.numbers.get(row.key, {}).get("product", [])[:1]:
            if row.unit == "×" or row.key == "idle":
                wanted = {key: results.median(row.key, "product", key) for key in numbers}
                shown_all = ", ".join(f"{key} {shown(value)}" for key, value in wanted.items() if value is not None)
                lines.append(f"- {named(row.title, results.scale)}: {shown_all}")
    return "\n".join(["## In detail (medians)", "", *lines]) if lines else ""
