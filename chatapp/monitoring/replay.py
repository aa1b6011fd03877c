"""The examples of each alert rule (vectors.json), run through the states of alerts without a database.

`chatapp alerts test` shows them, so that an operator sees when a rule fires; tests compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from chatapp import histograms
from chatapp.monitoring.alerts import Outcome, fresh, look
from chatapp.monitoring.figures import Figures
from chatapp.monitoring.rules import Facts, Reading
from chatapp.store.alerts import Alert, Incident

TICK_MS = 15_000
T0 = 1_800_000_000_000


@dataclass(frozen=True)
class Vector:
    """An example: a rule's facts and figures, tick by tick, and the states and notices that must follow."""

    rule: str
    name: str
    steps: list[dict[str, Any]]
    states: str  # runs: "normal 2, pending 20"
    notices: list[str]

    def ticks(self) -> Iterator[tuple[Facts, Figures]]:
        """Yield facts and figures of each tick."""
        for step in self.steps:
            facts, whole = Facts(**step.get("facts", {})), _figures(step.get("figures", {}))
            for _ in range(step["ticks"]):
                yield facts, whole


@dataclass(frozen=True)
class Replayed:
    """The states and notices that followed."""

    states: str
    notices: list[str]

    def is_as(self, vector: Vector) -> bool:
        """Return True if the example says the same."""
        return (self.states, self.notices) == (vector.states, vector.notices)


@cache
def vectors() -> dict[str, list[Vector]]:
    """Return the examples of each rule."""
    found = json.loads((Path(__file__).parent / "vectors.json").read_text())
    return {rule: [Vector(rule, **one) for one in several] for rule, several in found.items()}


def replay(vector: Vector) -> Replayed:
    """Run an example."""
    alerts: Mapping[str, Alert] = fresh({})
    incident: Incident | None = None
    states, notices = [], []
    for number, (facts, whole) in enumerate(vector.ticks()):
        found = tick(alerts, incident, facts, whole, T0 + number * TICK_MS)
        alerts = found.alerts
        incident = found.incident if found.incident and found.incident.closed is None else None
        states.append(alerts[vector.rule].state)
        if found.told and vector.rule in found.told.rules:
            notices.append(found.told.kind)
    return Replayed(strip(states), notices)


def tick(alerts: Mapping[str, Alert], incident: Incident | None, facts: Facts, whole: Figures, at: int) -> Outcome:
    """Look at the rules once; all of them see the same figures."""
    return look(alerts, incident, facts, lambda _minutes: whole, at, _moment)


def strip(states: list[str]) -> str:
    """Return runs of states in words."""
    return ", ".join(f"{state} {len(list(run))}" for state, run in groupby(states))


def _moment(_rule: str, reading: Reading, _whole: Figures) -> dict[str, Any]:
    return {"value": reading.value, "samples": reading.samples, "cause": "", "culprit": ["", ""]}


def _figures(given: dict[str, Any]) -> Figures:
    sent: dict[str, int] = {}
    for ms, number in given.get("sent_ms", {}).items():
        histograms.add(sent, float(ms), number)
    figures = Figures.load({name: value for name, value in given.items() if name != "sent_ms"})
    figures.sent["websocket"] = sent
    return figures
