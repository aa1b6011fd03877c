"""The states of alerts: pure functions of stored state, reading and time, so that a restart changes nothing.

normal → pending → firing → recovering → resolved → normal; and no-data, in which an open alert stays open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatapp.monitoring.figures import Figures
from chatapp.monitoring.rules import GRAVE, RULES, Facts, Reading, Rule, Seen
from chatapp.store.alerts import Alert, AlertChange, Incident

GAP_MS = 120_000  # without a look, after which waiting begins anew


@dataclass(frozen=True)
class Told:
    """A notice that is due: opened, joined (rules in an incident that was told before), closed."""

    kind: str
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """All that a look changes. `incident`: the open one, or the one that it closes; None for none."""

    alerts: dict[str, Alert]
    changes: list[AlertChange]
    incident: Incident | None
    told: Told | None


Whole = Callable[[int], Figures]  # of so many minutes
Describe = Callable[[str, Reading, Figures], dict[str, Any]]  # the facts of an alert's moment: incidents.moment_of


def look(
    before: Mapping[str, Alert], incident: Incident | None, facts: Facts, whole: Whole, at: int, describe: Describe
) -> Outcome:
    """Look at all rules. The alerts that are open at the same time are one incident."""
    after: dict[str, Alert] = {}
    readings: dict[str, Reading] = {}
    for name, rule in RULES.items():
        seen, reading = rule.look(whole(rule.minutes), facts_for(rule, before[name], facts, at))
        after[name] = advance(rule, before[name], seen, reading, at, facts.before)
        if reading and seen == "bad":
            readings[name] = reading
    changes = [change for name in RULES if (change := change_of(before[name], after[name]))]
    opened = [name for name, alert in after.items() if alert.is_open]
    if incident is None and not opened:
        return Outcome(after, changes, None, None)
    begun = [_begun(before[name], at) for name in opened if not before[name].is_open]
    incident = (
        replace(incident, opened=min([incident.opened, *begun])) if incident else Incident(min(begun, default=at))
    )
    worst = {
        name: _worst(RULES[name], incident.worst.get(name), readings.get(name), whole, describe) for name in opened
    }
    told = due(after.values(), incident.told, at)
    closed = None if opened else max((before[change.rule].since for change in changes), default=at)
    names = (*incident.told, *(told.rules if told and opened else ()))
    found = {**incident.worst, **{name: moment for name, moment in worst.items() if moment}}
    return Outcome(after, changes, replace(incident, closed=closed, told=names, worst=found), told)


def _begun(alert: Alert, at: int) -> int:
    """Return when an alert that fires now began."""
    return alert.since if alert.state == "pending" else at


def _worst(
    rule: Rule, known: dict[str, Any] | None, reading: Reading | None, whole: Whole, describe: Describe
) -> dict[str, Any] | None:
    """Return an alert's worst moment; its cause may be found later."""
    if reading is None or (known and known["cause"] and not rule.is_worse(reading.value, known["value"])):
        return known
    found = describe(rule.name, reading, whole(rule.minutes))
    if known is None:
        return found
    cause = found if found["cause"] else known
    kept = found if rule.is_worse(reading.value, known["value"]) else known
    return {**kept, "cause": cause["cause"], "culprit": cause["culprit"]}


def facts_for(rule: Rule, alert: Alert, facts: Facts, at: int) -> Facts:
    """Return the facts as this alert sees them: an open mass drop is measured by the people before it."""
    if rule.name == "mass-drop" and alert.is_open:
        return replace(facts, before=alert.before, open_s=max(0.001, (at - alert.opened) / 1000))
    return facts


def advance(rule: Rule, alert: Alert, seen: Seen, reading: Reading | None, at: int, before: int = 0) -> Alert:
    """Return the alert after a look. `before`: as in the facts, kept when it fires."""
    is_late = at - alert.seen_at > GAP_MS and alert.state in ("pending", "recovering")
    since = at if is_late or at < alert.since else alert.since
    state = _next(rule, alert, seen, at - since)
    value, samples = (reading.value, reading.samples) if reading else (None, 0)
    after = replace(alert, since=since, seen_at=at, value=value, samples=samples)
    if state != alert.state:
        after = replace(after, state=state, since=at)
    if state == "firing" and not alert.is_open:
        after = replace(after, is_open=True, opened=at, before=before, acknowledged_by="")
    elif state == "resolved":
        after = replace(after, is_open=False)
    return after


def _next(rule: Rule, alert: Alert, seen: Seen, lasted_ms: int) -> str:
    if seen == "no-data":
        return "no-data"
    if alert.is_open:
        if seen != "good":
            return "firing"
        return "resolved" if alert.state == "recovering" and lasted_ms >= 1000 * rule.keep_s else "recovering"
    if seen != "bad":
        return "normal"
    is_over = rule.for_s == 0 or (alert.state == "pending" and lasted_ms >= 1000 * rule.for_s)
    return "firing" if is_over else "pending"


def change_of(before: Alert, after: Alert) -> AlertChange | None:
    """Return the change of state between two looks, or None."""
    if before.state == after.state:
        return None
    return AlertChange(after.rule, after.seen_at, before.state, after.state, after.value, after.samples)


def due(alerts: Collection[Alert], told: Sequence[str], at: int) -> Told | None:
    """Return the notice that is due for an incident. `told`: its rules of which operators know."""
    opened = [alert for alert in alerts if alert.is_open]
    if not opened:
        is_silent = all(at < alert.silenced_until for alert in alerts if alert.rule in told)
        return None if is_silent else Told("closed", tuple(in_order(told)))
    is_grave = any(alert.rule in GRAVE for alert in opened if alert.rule in told)
    new = [
        alert.rule
        for alert in opened
        if alert.rule not in told
        and alert.state == "firing"
        and at >= alert.silenced_until
        and (alert.rule in GRAVE or not is_grave)
    ]
    return Told("joined" if told else "opened", tuple(in_order(new))) if new else None


def in_order(rules: Iterable[str]) -> list[str]:
    """Return these rules, the gravest first."""
    names = set(rules)
    return [name for name in RULES if name in names]


def fresh(stored: Mapping[str, Alert]) -> dict[str, Alert]:
    """Return the alert of each rule: as stored, else normal."""
    return {name: stored.get(name) or Alert(name) for name in RULES}
