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
NIGHT = re.compile(r"\b(last night|letzte nacht|anoche)\b", re.I)
DUSK, DAWN = 18, 9  # hours between which a night is
YESTERDAY = re.compile(r"\b(yesterday|gestern|ayer)\b", re.I)
_CLOCK = r"(?<![\d:.])([01]?\d|2[0-3])[:.h]([0-5]\d)(?![\d:])( ?[ap]m\b)?"
TIME = re.compile(_CLOCK, re.I)
_DAY = r"today|yesterday|last night|this (morning|afternoon|evening)|heute|gestern|letzte nacht|hoy|ayer|anoche"
_HERE = r"at|around|about|on|in|the|here|to|with|us|everybody|everyone|chat|server|network|connections?|then|utc|[ap]m"
_HIER = r"um|gegen|mit|dem|der|im|hier|uhr|a|las?|el|con|de|servidor|red|ma[nñ]ana"
WHAT_HAPPENED = re.compile(
    r"^\W*(what(\W?s| has| was)? (happened|wrong|going on|the matter|went wrong)|"
    r"was (ist|war)(?=.*(\d|\b(passiert|los|geschehen)\W*$))|"
    r"why was (it|everything|the (chat|server)) (so )?(slow|down|offline)|qu[eé] (pas[oó]|ocurri[oó]|hubo))\b"
    rf"(\W+({_CLOCK}|{_DAY}|{_HERE}|{_HIER}|passiert|los|geschehen)\b)*\W*$",
    re.I,
)


def happened_words(store: Store, person: int, question: str, now: int) -> str:
    """Return the incidents of the time that an operator asks about (now: ms), as Markdown; "" for anybody else."""
    try:
        asking = store.directory.find(store.directory.uuid_of(person) or "")
        if asking is None or not asking.is_operator or asking.disabled_at:
            return ""
        start, end, when = span_of(question, datetime.fromtimestamp(now / 1000, UTC))
        incidents = store.alerts.incidents_between(_ms(start), _ms(end), MOST_TOLD + 1)
        before = store.alerts.incidents(most=1)[0] if not incidents else []
    except STORAGE_ERRORS:
        return UNREADABLE
    if incidents:
        lines = ["- and others before these"] if len(incidents) > MOST_TOLD else []
        lines += [_line(incident) for incident in reversed(incidents[:MOST_TOLD])]
        return "\n".join([f"{when[:1].upper()}{when[1:]}:", "", *lines, "", "The steps are on **Monitor**, Incidents."])
    last = (
        f" The last one, of {_day(before[0].opened)}: {sentence(before[0])}" if before else " None is recorded at all."
    )
    return f"No incident is recorded {when}.{last} What else changed is on **Monitor**."


def span_of(question: str, now: datetime) -> tuple[datetime, datetime, str]:
    """Return start and end of the time that a question names, and its words. Without one: the last 24 hours."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = midnight - timedelta(days=1)
    is_night = bool(NIGHT.search(question))
    if time := TIME.search(question):
        hour = int(time[1]) % 12 + 12 * ("p" in time[3].lower()) if time[3] and int(time[1]) <= 12 else int(time[1])
        is_before = YESTERDAY.search(question) or (is_night and hour >= DUSK)
        at = (yesterday if is_before else midnight) + timedelta(hours=hour, minutes=int(time[2]))
        if at > now:  # today it is still to come
            at -= timedelta(days=1)
        return at - AROUND, at + AROUND, f"around {at:%H:%M} UTC on {at:%b %d}"
    if is_night:
        return yesterday + timedelta(hours=DUSK), midnight + timedelta(hours=DAWN), f"in the night to {now:%b %d} (UTC)"
    if YESTERDAY.search(question):
        return yesterday, midnight, f"on {yesterday:%b %d} (UTC)"
    return now - timedelta(days=1), now, "in the last 24 hours"


def _line(incident: Incident) -> str:
    """Return an incident as an item of a list, with its cause and the remedy."""
    return f"- {_day(incident.opened)}: {sentence(incident)} {to_do(incident)}".rstrip()


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000, UTC):%b %d}"


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
