"""Figures over time for SVG: columns of a range, sparklines, the strip of people by state. The templates draw them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from chatapp.monitoring.figures import Figures, add_up
from chatapp.monitoring.timeline import SHOWN
from chatapp.store.measures import HOUR_MS, MINUTE_MS

SPARK = (184, 32)  # width and height of a sparkline
STRIP = (1200, 28)
ROOM_OF_A_WORD = 0.06  # of the axis
LABELS = 5  # times under the strip
OUT = 1.5  # a figure so many times the usual one is marked
OUT_SHARE = 5  # percent; a share so much lower


@dataclass(frozen=True)
class Columns:
    """The figures of a range, in columns of equal length (ms); None: no data."""

    start: int
    step: int
    figures: list[Figures | None]


@dataclass(frozen=True)
class Tile:
    """A figure with its course. `form`: its unit; `tone`: of its mark, "" for none. `is_short`: too little data."""

    name: str
    title: str
    value: float | None
    form: str
    course: Sequence[float | None]
    note: str
    tone: str
    is_short: bool = False

    @property
    def number(self) -> str:
        """The value without its unit."""
        return shown(None if self.is_short else self.value, self.form).partition(" ")[0]

    @property
    def unit(self) -> str:
        """The unit as shown."""
        return shown(None if self.is_short else self.value, self.form).partition(" ")[2]

    @property
    def path(self) -> str:
        """The sparkline's path; columns without data break it."""
        return path(self.course)


@dataclass(frozen=True)
class History:
    """The figures of a range in columns and as a whole, and the usual ones."""

    rows: Columns
    whole: Figures
    usual: Figures


def history(
    texts: Sequence[tuple[int, str]], usual: Sequence[tuple[int, str]], end: int, minutes: int, most: int
) -> History:
    """Return the history of stored figures (start, JSON). It may take 100 ms."""
    rows = columns({at: Figures.load(json.loads(text)) for at, text in texts}, end, minutes, most)
    before = add_up(Figures.load(json.loads(text)) for _at, text in usual)
    return History(rows, add_up(row for row in rows.figures if row is not None), before)


def columns(rows: Mapping[int, Figures], end: int, minutes: int, most: int) -> Columns:
    """Return the figures of the last minutes before `end` in at most so many columns."""
    least = HOUR_MS if minutes > 1440 else MINUTE_MS
    step = least * max(1, ceil(minutes * MINUTE_MS / least / most))
    last = end - end % step + step
    start = last - step * ceil(minutes * MINUTE_MS / step)
    grouped: dict[int, list[Figures]] = {}
    for at, row in rows.items():
        if start <= at < last:
            grouped.setdefault((at - start) // step, []).append(row)
    number = (last - start) // step
    return Columns(start, step, [add_up(grouped[n]) if n in grouped else None for n in range(number)])


def shown(value: float | None, form: str) -> str:
    """Return a value with its unit, in few digits; "–" for none."""
    if value is None:
        return "–"
    if form == "s":
        return _duration(value)
    digits = 0 if value >= 100 or form == "ms" else 1 if value >= 10 or form == "%" else 2
    text = f"{value:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{text} {form}".strip()


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def is_out(value: float | None, usual: float | None, bad: str) -> str:
    """Return "polling" if a value is worse than usual by much; `bad`: "high", "low", or "" for neither."""
    if value is None or usual is None or not bad:
        return ""
    is_worse = value < usual - OUT_SHARE if bad == "low" else value > OUT * usual and value - usual > 0.1
    return "polling" if is_worse else ""


def path(course: Sequence[float | None]) -> str:
    """Return the path of a sparkline."""
    known = [value for value in course if value is not None]
    if not known:
        return ""
    width, height = SPARK
    low, high = min(known), max(known)
    scale = (height - 6) / (high - low) if high > low else 0.0
    step = width / max(1, len(course) - 1)
    parts, is_down = [], False
    for number, value in enumerate(course):
        if value is not None:
            y = height - 3 - (value - low) * scale if scale else height / 2
            parts.append(f"{'L' if is_down else 'M'}{number * step:.1f} {y:.1f}")
        is_down = value is not None
    return "".join(parts)


@dataclass(frozen=True)
class Bar:
    """A part of the strip: x, y, width, height, and the state, or "none" for no data."""

    x: float
    y: float
    width: float
    height: float
    state: str


def strip(rows: Columns, now: int) -> list[Bar]:
    """Return the strip: in each column the share of people by state, the best at the bottom. No data is "none"."""
    width, height = STRIP
    step = width / len(rows.figures)
    bars = []
    for number, row in enumerate(rows.figures):
        x, at = number * step, rows.start + number * rows.step
        if row is None or not (whole := sum(row.state_ms.get(state, 0) for state in SHOWN)):
            if at <= now - rows.step:
                bars.append(Bar(x, height - 2, step, 2, "none" if row is None else "nobody"))
            continue
        y = float(height)
        for state in SHOWN:
            part = height * row.state_ms.get(state, 0) / whole
            if part > 0.3:
                y -= part
                # Live has no joints; of polling each column is a dash.
                gap = -0.5 if state == "connected" else 0.25 * step
                bars.append(Bar(x, y, step - gap, part, state))
    return bars


@dataclass(frozen=True)
class Mark:
    """A mark on the time axis: place (0 to 1) and kind; `is_named`: there is room for its word."""

    place: float
    kind: str
    is_named: bool


def marks(times: Mapping[str, Sequence[int]], rows: Columns) -> list[Mark]:
    """Return the marks of a range, by the times (ms) of each kind; those of one minute are one."""
    end = rows.start + rows.step * len(rows.figures)
    moments = sorted((at, kind) for kind, some in times.items() for at in some if rows.start <= at < end)
    found: list[Mark] = []
    last: dict[str, int] = {}
    for at, kind in moments:
        place = (at - rows.start) / (end - rows.start)
        if at - last.get(kind, 0) > MINUTE_MS:
            found.append(Mark(place, kind, is_named=not found or place - found[-1].place > ROOM_OF_A_WORD))
            last[kind] = at
    return found


def labels(rows: Columns) -> list[tuple[float, int]]:
    """Return the places (0 to 1) and times (ms) under the strip."""
    length = rows.step * len(rows.figures)
    return [(number / (LABELS - 1), rows.start + length * number // (LABELS - 1)) for number in range(LABELS)]
