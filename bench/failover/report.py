"""The run as JSON, and as one page of Markdown with the systems side by side."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from failover.bars import ELSEWHERE, Cells, verdicts
from failover.drained import Drained
from failover.measure import Result, as_json

HOUR_S = 3600
TITLES = {
    "ours": "chatapp",
    "sio": "socket.io",
    "sio-recovery": "… recovery, retries",
    "sio-first": "… WebSocket first",
}
LEGEND = """\
Seconds: median (maximum); `-` does not apply or did not happen, and `n/m` after a figure says that it happened in n of
m trials. **noticed**: the client leaves its good state, or begins with another transport; where the fault was there
first: from the first dial to usable. **gap**: the longest that a message of the other person took, from the fault on
(to the end of the trial where it never came). **back**: on WebSocket again, from the end of the fault; 0: it never
left. **l/d/r**: lost, doubled, reordered messages, both directions, all trials. **requests**: per client from the fault
to the end, the sends among them."""


def write(
    directory: Path, about: dict[str, Any], cells: Cells, windows: dict[str, float], drain: Drained | None
) -> str:
    """failover.json and failover.md in this directory; the text of the page."""
    directory.mkdir(parents=True, exist_ok=True)
    bars = verdicts(cells, drain)
    data = {
        "about": about,
        "bars": [asdict(bar) for bar in bars],
        "drained": asdict(drain) if drain else None,
        "cells": {name: {system: as_json(rows) for system, rows in sides.items()} for name, sides in cells.items()},
    }
    (directory / "failover.json").write_text(json.dumps(data, indent=1) + "\n")
    page = _page(about, cells, windows, [tuple(asdict(bar).values()) for bar in bars])
    (directory / "failover.md").write_text(page)
    return page


def brief(results: Sequence[Result]) -> str:
    """One side of a cell in a few words, while the run goes on: noticed, gap, back, lost/doubled/reordered."""
    times = [
        _time(results, value).partition(" ")[0] for value in (lambda r: r.noticed, lambda r: r.gap, lambda r: r.back)
    ]
    return f"{' '.join(times)} {_counts(results).partition(' ')[0]}"


def _page(about: dict[str, Any], cells: Cells, windows: dict[str, float], bars: list[tuple[str, ...]]) -> str:
    systems: list[str] = list(dict.fromkeys(system for sides in cells.values() for system in sides))
    parts = ["# Failover", "; ".join(f"{name}: {value}" for name, value in about.items()) + "."]
    parts += ["## Bars", _table(("what", "bar", "reached", "verdict"), bars), f"({ELSEWHERE}.)"]
    parts += ["## Side by side", LEGEND]
    times: list[tuple[str, Callable[[Result], float | None]]] = [
        ("noticed", lambda one: one.noticed),
        ("gap", lambda one: one.gap),
        ("back", lambda one: one.back),
        ("first request after `Retry-After: 7`", lambda one: one.obeyed),
    ]
    for title, value in times:
        rows = [(name, *(_time(sides.get(s, []), value) for s in systems)) for name, sides in cells.items()]
        if rows := [row for row in rows if set(row[1:]) != {"-"}]:
            parts.append(_table((title, *_titles(systems)), rows))
    rows = [(name, *(_counts(sides.get(s, [])) for s in systems)) for name, sides in cells.items()]
    parts.append(_table(("l/d/r of messages; requests", *_titles(systems)), rows))
    if "no-fault" in cells:
        parts.append(_idle(cells, windows["no-fault"], systems))
    parts += _problems(cells)
    return "\n\n".join(parts) + "\n"


def _titles(systems: Sequence[str]) -> tuple[str, ...]:
    return tuple(TITLES.get(system, system) for system in systems)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _time(results: Sequence[Result], value: Callable[[Result], float | None]) -> str:
    values = [one for one in map(value, results) if one is not None]
    if not values:
        return "-"
    share = f" {len(values)}/{len(results)}" if len(values) < len(results) else ""
    return f"{median(values):.2f} ({max(values):.2f}){share}"


def _counts(results: Sequence[Result]) -> str:
    if not results:
        return "-"
    counts = "/".join(str(sum(getattr(one, kind) for one in results)) for kind in ("lost", "doubled", "reordered"))
    requests = sum(one.requests for one in results) / len(results)
    return f"{counts} of {sum(one.messages for one in results)}; {requests:.0f}"


def _idle(cells: Cells, window: float, systems: Sequence[str]) -> str:
    rows = []
    for title, value in (("requests", lambda one: one.requests), ("bytes", lambda one: one.bytes)):
        per_hour = []
        for system in systems:
            results = cells["no-fault"].get(system, [])
            mean = sum(map(value, results)) / len(results) if results else 0
            per_hour.append(f"{mean * HOUR_S / window:,.0f}")
        rows.append((title, *per_hour))
    return f"Idle and visible, an hour (from {window:g} s; heads and bodies):\n\n" + _table(
        ("", *_titles(systems)), rows
    )


def _problems(cells: Cells) -> list[str]:
    found = [
        f"- {name}, {system}: {one.problem}"
        for name, sides in cells.items()
        for system, results in sides.items()
        for one in results
        if one.problem
    ]
    return ["## Clients that failed", "\n".join(found)] if found else []
