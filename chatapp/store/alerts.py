"""Alerts, their changes, incidents and notices, in the metrics database. One look of the rules is one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlalchemy import delete, exists, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from chatapp.store import models, sqlite
from chatapp.store.database import Database, Write, new_id

INCIDENTS_SHOWN = 20  # in one page
MOST_CHANGES = 200  # of one incident
OWN = ("silenced_until", "acknowledged_by")  # columns of operators: a look leaves them alone
GIVEN_UP = 1 << 53  # as the time of the next try: there is none


@dataclass(frozen=True)
class Alert:
    """The state of a rule. Times are milliseconds since 1970 UTC."""

    rule: str
    state: str = "normal"
    since: int = 0  # of the state
    seen_at: int = 0
    value: float | None = None
    samples: int = 0
    is_open: bool = False  # fired, and not resolved
    opened: int = 0
    before: int = 0  # people who were live when it fired
    silenced_until: int = 0
    acknowledged_by: str = ""  # UUID


@dataclass(frozen=True)
class AlertChange:
    """A change of state; or, with a note, an operator's act."""

    rule: str
    at: int
    state_from: str
    state_to: str
    value: float | None
    samples: int
    note: str = ""


@dataclass(frozen=True)
class Incident:
    """Alerts that were open together. `worst`: by rule, the facts of its worst moment (monitoring/incidents.py)."""

    opened: int
    closed: int | None = None
    told: tuple[str, ...] = ()  # rules of which somebody was told
    worst: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    id: int = 0  # 0: not stored yet


@dataclass(frozen=True)
class Notice:
    """A notice on a channel. `data`: its text, and facts for programs."""

    id: int
    incident_id: int
    number: int
    channel: str
    data: dict[str, Any]
    at: int
    tries: int


@dataclass(frozen=True)
class FailedNotice:
    """A notice that could not be sent."""

    channel: str
    at: int
    error: str


ALERT_NAMES = [one.name for one in fields(Alert)]
CHANGE_NAMES = [one.name for one in fields(AlertChange)]
_incident = (
    models.Incident.opened,
    models.Incident.closed,
    models.Incident.told,
    models.Incident.worst,
    models.Incident.id,
)
_earlier = aliased(models.Notice)
_notice = [getattr(models.Notice, one.name) for one in fields(Notice)]


class AlertTable:
    """Queries about alerts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Alerts

    def alerts(self) -> dict[str, Alert]:
        """Return the stored alerts by rule."""
        query = select(*(getattr(models.Alert, name) for name in ALERT_NAMES))
        with self._database.read() as connection:
            return {row.rule: Alert(*row) for row in connection.execute(query).all()}

    def save(
        self,
        alerts: Iterable[Alert],
        changes: Sequence[AlertChange],
        incident: Incident | None,
        notices: Mapping[str, dict[str, Any]],
        at: int,
    ) -> None:
        """Store the outcome of a look: alerts, changes, their incident, and a notice for each channel."""
        with self._database.write() as tx:
            _put(tx, list(alerts))
            number = _put_incident(tx, incident) if incident is not None else None
            if changes:
                its = incident.worst if incident is not None else {}
                rows = [{**asdict(one), "incident_id": number if one.rule in its else None} for one in changes]
                tx.connection.execute(insert(models.AlertChange), rows)
            if changes and incident is not None:
                _take_changes(tx, number, incident)
            if number is not None and notices:
                _add_notices(tx, number, notices, at)

    def acknowledge(self, rule: str, person: str, at: int) -> bool:
        """Note that somebody takes care of an open alert. Return False if it is not open."""
        return self._act(rule, "acknowledged", at, models.Alert.is_open, acknowledged_by=person)

    def silence(self, rule: str, until: int, at: int) -> bool:
        """Send no notice of this rule until then. Return False for an unknown rule."""
        note = "silenced" if until > at else "silence ended"
        return self._act(rule, note, at, models.Alert.rule == rule, silenced_until=until)

    def _act(self, rule: str, note: str, at: int, which: Any, **values: Any) -> bool:
        with self._database.write() as tx:
            query = select(models.Alert.state, models.Alert.is_open).where(models.Alert.rule == rule, which)
            row = tx.connection.execute(query).first()
            if row is None:
                return False
            tx.connection.execute(update(models.Alert).where(models.Alert.rule == rule).values(**values))
            newest = select(func.max(models.Incident.id)).scalar_subquery()  # that of an open alert
            change = AlertChange(rule, at, row.state, row.state, None, 0, note)
            incident = newest if row.is_open else None
            tx.connection.execute(insert(models.AlertChange).values(**asdict(change), incident_id=incident))
        return True

    # Incidents

    def open_incident(self) -> Incident | None:
        """Return the incident that is open, or None. It is always the newest one."""
        with self._database.read() as connection:
            newest = select(func.max(models.Incident.id)).scalar_subquery()
            row = connection.execute(select(*_incident).where(models.Incident.id == newest)).first()
        return _loaded(row) if row and row.closed is None else None

    def incidents(self, before: int = 0, most: int = INCIDENTS_SHOWN) -> tuple[list[Incident], bool]:
        """Return a page of incidents, the newest first, and True if there are more. `before`: the last one's number."""
        query = select(*_incident).order_by(models.Incident.id.desc()).limit(most + 1)
        if before:
            query = query.where(models.Incident.id < before)
        with self._database.read() as connection:
            found = [_loaded(row) for row in connection.execute(query).all()]
        return found[:most], len(found) > most

    def incidents_between(self, start: int, end: int, most: int = INCIDENTS_SHOWN) -> list[Incident]:
        """Return the incidents that were open in a time (ms), the newest first."""
        lasts = or_(models.Incident.closed.is_(None), models.Incident.closed >= start)
        query = select(*_incident).where(models.Incident.opened <= end, lasts)
        with self._database.read() as connection:
            return [_loaded(row) for row in connection.execute(query.order_by(models.Incident.id.desc()).limit(most))]

    def changes_of(self, incidents: Sequence[int]) -> dict[int, list[AlertChange]]:
        """Return the changes of incidents, in order."""
        columns = [getattr(models.AlertChange, name) for name in CHANGE_NAMES]
        found: dict[int, list[AlertChange]] = {}
        with self._database.read() as connection:
            for number in incidents:
                query = select(*columns).where(models.AlertChange.incident_id == number)
                rows = connection.execute(query.order_by(models.AlertChange.id).limit(MOST_CHANGES)).all()
                found[number] = [AlertChange(*row) for row in rows]
        return found

    def changes(self, since: int = 0, most: int = 10_000) -> list[AlertChange]:
        """Return the changes since a time (ms), in order."""
        columns = [getattr(models.AlertChange, name) for name in CHANGE_NAMES]
        query = select(*columns).where(models.AlertChange.at >= since).order_by(models.AlertChange.id).limit(most)
        with self._database.read() as connection:
            return [AlertChange(*row) for row in connection.execute(query).all()]

    # Notices

    def due_notices(self, now: int, most: int = 20) -> list[Notice]:
        """Return the notices to be sent now: of each channel the first one, so that they come in their order."""
        is_first = ~exists().where(
            _earlier.channel == models.Notice.channel,
            _earlier.id < models.Notice.id,
            _earlier.sent_at.is_(None),
            _earlier.next_at < GIVEN_UP,
        )
        is_due = models.Notice.sent_at.is_(None), models.Notice.next_at <= now, is_first
        query = select(*_notice).where(*is_due).order_by(models.Notice.id).limit(most)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Notice(row.id, row.incident_id, row.number, row.channel, json.loads(row.data), row.at, row.tries)
            for row in rows
        ]

    def note_try(self, notice: int, next_at: int) -> None:
        """Count a try, before it is made; after a crash the next one is at that time."""
        self._change_notice(notice, tries=models.Notice.tries + 1, next_at=next_at)

    def note_sent(self, notice: int, at: int) -> None:
        """Note that a notice was sent."""
        self._change_notice(notice, sent_at=at, error="")

    def note_failed(self, notice: int, error: str, is_last: bool) -> None:
        """Note why a notice could not be sent."""
        self._change_notice(notice, error=error[:200], **({"next_at": GIVEN_UP} if is_last else {}))

    def _change_notice(self, notice: int, **values: Any) -> None:
        with self._database.write() as tx:
            tx.connection.execute(update(models.Notice).where(models.Notice.id == notice).values(**values))

    def failed_notices(self, since: int, most: int = 5) -> list[FailedNotice]:
        """Return the newest notices that nobody got."""
        query = (
            select(models.Notice.channel, models.Notice.at, models.Notice.error)
            .where(models.Notice.sent_at.is_(None), models.Notice.next_at == GIVEN_UP, models.Notice.at >= since)
            .order_by(models.Notice.id.desc())
            .limit(most)
        )
        with self._database.read() as connection:
            return [FailedNotice(*row) for row in connection.execute(query).all()]

    def delete_before(self, before: int, most: int) -> int:
        """Delete at most so many old changes that belong to no incident, and old notices that are done. Return their
        number."""
        change, notice = models.AlertChange, models.Notice
        changes = select(change.id).where(change.at < before, change.incident_id.is_(None)).limit(most)
        is_done = (notice.sent_at.is_not(None)) | (notice.next_at == GIVEN_UP)
        notices = select(notice.id).where(notice.at < before, is_done).limit(most)
        with self._database.write() as tx:
            deleted = tx.connection.execute(delete(change).where(change.id.in_(changes))).rowcount
            deleted += tx.connection.execute(delete(notice).where(notice.id.in_(notices))).rowcount
        return int(deleted)


def _put(tx: Write, alerts: Sequence[Alert]) -> None:
    statement = sqlite.insert(models.Alert)
    kept = {name: statement.excluded[name] for name in ALERT_NAMES if name not in ("rule", *OWN)}
    put = statement.on_conflict_do_update(index_elements=["rule"], set_=kept)
    tx.connection.execute(put, [asdict(alert) for alert in alerts])
    anew = [alert.rule for alert in alerts if alert.is_open and alert.opened == alert.seen_at]
    if anew:
        nobody = update(models.Alert).where(models.Alert.rule.in_(anew)).values(acknowledged_by="")
        tx.connection.execute(nobody)


def _put_incident(tx: Write, incident: Incident) -> int:
    values: dict[str, Any] = {"opened": incident.opened, "closed": incident.closed}
    values |= {"told": json.dumps(incident.told), "worst": json.dumps(incident.worst)}
    if not incident.id:
        return new_id(tx.connection.execute(insert(models.Incident).values(**values)))
    tx.connection.execute(update(models.Incident).where(models.Incident.id == incident.id).values(**values))
    return incident.id


def _take_changes(tx: Write, number: int | None, incident: Incident) -> None:
    """Count the changes by which an incident began among its own."""
    change = models.AlertChange
    its = change.at >= incident.opened, change.incident_id.is_(None), change.rule.in_(list(incident.worst))
    tx.connection.execute(update(change).where(*its).values(incident_id=number))


def _add_notices(tx: Write, incident: int, notices: Mapping[str, dict[str, Any]], at: int) -> None:
    of_this = select(func.count(func.distinct(models.Notice.number))).where(models.Notice.incident_id == incident)
    number = tx.connection.execute(of_this).scalar_one()
    common = {"incident_id": incident, "number": number, "at": at, "next_at": at}
    rows = [{**common, "channel": channel, "data": json.dumps(data)} for channel, data in notices.items()]
    tx.connection.execute(insert(models.Notice), rows)


def _loaded(row: Any) -> Incident:
    return Incident(row.opened, row.closed, tuple(json.loads(row.told)), json.loads(row.worst), row.id)
