"""One page's story for the monitor: its events, the lanes of its timeline, and impossible changes of state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatapp.connection_states import TABLE
from chatapp.monitoring.timeline import SHOWN
from chatapp.store import ConnectionEvent

WIDTH = 1200
# Every change of state that a row of the table can make.
LEGAL = {(state, target) for state, rows in TABLE.items() for target, _actions in rows.values()}


@dataclass(frozen=True)
class Block:
    """A part of a lane, in units of `WIDTH`; `kind`: a state, or of a socket "open"."""

    x: float
    width: float
    kind: str
    words: str


@dataclass(frozen=True)
class Tick:
    """A moment in a lane."""

    x: float
    kind: str
    words: str


@dataclass(frozen=True)
class Step:
    """An event, the time since the one before (ms), and its fault: gap, illegal, or ""."""

    event: ConnectionEvent
    after_ms: int
    wrong: str


@dataclass(frozen=True)
class Story:
    """The lanes of a page and its steps, from `start` to `end` (ms)."""

    start: int
    end: int
    states: list[Block]
    sockets: list[Block]
    attempts: list[Tick]
    round_trips: list[tuple[float, int]]  # place, ms
    steps: list[Step]


def story_of(events: Sequence[ConnectionEvent], now: int) -> Story | None:
    """Return the story of a page's events in their order; None without any."""
    if not events:
        return None
    start, last = events[0].at, events[-1]
    is_over = last.type in ("end", "server-close") and not _is_open(events)
    end = max(last.at if is_over else now, start + 1000)
    scale = WIDTH / (end - start)

    def place(at: int) -> float:
        return round((at - start) * scale, 1)

    return Story(
        start=start,
        end=end,
        states=_states(events, end, place),
        sockets=_sockets(events, end, place),
        attempts=[
            Tick(place(one.at), str(one.facts.get("outcome", "")), f"{one.transport} {one.facts.get('outcome')}")
            for one in events
            if one.type == "attempt"
        ],
        round_trips=[(place(one.at), ms) for one in events if isinstance(ms := one.facts.get("rtt"), int)],
        steps=_steps(events),
    )


def _is_open(events: Sequence[ConnectionEvent]) -> bool:
    sockets = {one.client for one in events if one.type == "server-open"}
    return bool(sockets - {one.client for one in events if one.type == "server-close"})


def _states(events: Sequence[ConnectionEvent], end: int, place: Callable[[int], float]) -> list[Block]:
    blocks: list[Block] = []
    state, since = "", events[0].at
    changes = [(one.at, one.state_to or "") for one in events if one.type == "state"]
    changes += [(one.at, "") for one in events if one.type == "end"]
    for at, target in [*sorted(changes), (end, "")]:
        if state in SHOWN:
            x = place(since)
            blocks.append(Block(x, max(1.0, place(at) - x), state, state))
        state, since = target, at
    return blocks


def _sockets(events: Sequence[ConnectionEvent], end: int, place: Callable[[int], float]) -> list[Block]:
    closed = {one.client: one for one in events if one.type == "server-close"}
    blocks = []
    for one in events:
        if one.type == "server-open":
            close = closed.get(one.client)
            x, words = place(one.at), f"{close.facts.get('code')}" if close else ""
            until = place(close.at if close else end)
            blocks.append(Block(x, max(1.0, until - x), "open", words))
    return blocks


def _steps(events: Sequence[ConnectionEvent]) -> list[Step]:
    steps: list[Step] = []
    state, before = None, events[0].at
    for one in events:
        wrong = ""
        if one.type == "state":
            if state is not None and one.state_from != state:
                wrong = "gap"
            elif (one.state_from, one.state_to) not in LEGAL:
                wrong = "illegal"
            state = one.state_to
        steps.append(Step(one, one.at - before, wrong))
        before = one.at
    return steps
