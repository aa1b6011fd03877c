"""\"What happened at 14:02?\", answered from the incidents: for operators, by the assistant. Times are UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from chatapp.monitoring.incidents import sentence, to_do
from chatapp.store import STORAGE_ERRORS, Store
from chatapp.store.alerts import Incident

AROUND = timedelta(minutes=15)  # of a time: people remember it roughly, and alerts come minutes after a fault
MOST_TOLD = 5
UNREADABLE = "The records of incidents cannot be read at the moment. See **Monitor**."
YESTERDAY = re.compile(r"\b(yesterday|last night|gestern|letzte nacht|ayer|anoche)\b", re.I)
TIME = re.compile(r"(?<![\d:.])([01]?\d|2[0-3])[:.h]([0-5]\d)(?![\d:])")


def happened_words(store: Store, person: int, question: str, now: int) -> str:
    """Return the incidents of the time that an operator asks about (now: ms), as Markdown; "" for anybody else."""
    try:
        asking = store.directory.find(store.directory.uuid_of(person) or "")
        if asking is None or not asking.is_operator:
            return ""
        start, end, when = span_of(question, datetime.fromtimestamp(now / 1000, UTC))
        incidents = store.alerts.incidents_between(_ms(start), _ms(end), MOST_TOLD)
        before = store.alerts.incidents(most=1)[0] if not incidents else []
    except STORAGE_ERRORS:
        return UNREADABLE
    if incidents:
        lines = [_line(incident) for incident in reversed(incidents)]
        return "\n".join([f"{when[:1].upper()}{when[1:]}:", "", *lines, "", "The steps are on **Monitor**, Incidents."])
    last = (
        f" The last one, of {_day(before[0].opened)}: {sentence(before[0])}" if before else " None is recorded at all."
    )
    return f"No incident is recorded {when}.{last} What else changed is on **Monitor**."


def span_of(question: str, now: datetime) -> tuple[datetime, datetime, str]:
    """Return start and end of the time that a question names, and its words. Without one: the last 24 hours."""
    day = now - timedelta(days=1) if YESTERDAY.search(question) else now
    if time := TIME.search(question):
        at = day.replace(hour=int(time[1]), minute=int(time[2]), second=0, microsecond=0)
        if at > now:  # today it is still to come
            at -= timedelta(days=1)
        return at - AROUND, at + AROUND, f"around {at:%H:%M} UTC on {at:%b %d}"
    if day is now:
        return now - timedelta(days=1), now, "in the last 24 hours"
    start = day.replace(hour=0, minute=0, second=0, microsecond=0)
    return start, start + timedelta(days=1), f"on {start:%b %d} (UTC)"


def _line(incident: Incident) -> str:
    """Return an incident as an item of a list: what, why, and what helps."""
    return f"- {_day(incident.opened)}: {sentence(incident)} {to_do(incident)}".rstrip()


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000, UTC):%b %d}"


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
