"""The audit: who did what to whom, from where. Rows are added in the transaction of the act, and never changed."""

from dataclasses import dataclass, fields
from typing import Any
from uuid import uuid4

from sqlalchemy import Select, insert, or_, select
from sqlalchemy.orm import aliased

from chatapp.store.database import Database, Write, now_ms
from chatapp.store.models import AuditEvent, Link, Person

AUDIT_SHOWN = 50  # events in one page
NEWEST = 1 << 62  # after every number
SHELL, SCHEDULE = "shell", "schedule"  # as the address: a command, a scheduled drill


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: a person by number, or None for a stranger or a shell; and from which address."""

    person: int | None
    address: str


BY_SHELL = Actor(None, SHELL)
BY_SCHEDULE = Actor(None, SCHEDULE)


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The wanted events. Times are milliseconds since 1970 UTC."""

    person: int | None = None  # who did it, or to whom it was done
    action: str = ""
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Audited:
    """An event with the present names of its people; those of deleted ones are empty."""

    id: int
    uuid: str
    at: int
    action: str
    address: str
    detail: str
    actor: str | None  # UUID
    actor_name: str | None
    actor_email: str | None
    person: str | None  # UUID
    person_name: str | None
    person_email: str | None
    invited: str | None  # e-mail of an invitation


_actor, _person = aliased(Person), aliased(Person)
_NAMED: dict[str, Any] = {
    "actor": _actor.uuid,
    "actor_name": _actor.name,
    "actor_email": _actor.email,
    "person": _person.uuid,
    "person_name": _person.name,
    "person_email": _person.email,
    "invited": Link.email,
}
_NAMES = [field.name for field in fields(Audited)]
EVENTS = (
    select(*(_NAMED[name] if name in _NAMED else getattr(AuditEvent, name) for name in _NAMES))
    .select_from(AuditEvent)
    .outerjoin(_actor, _actor.id == AuditEvent.actor_id)
    .outerjoin(_person, _person.id == AuditEvent.person_id)
    .outerjoin(Link, Link.id == AuditEvent.link_id)
)


def record(
    tx: Write, action: str, actor: Actor, person: int | None = None, link: int | None = None, detail: str = ""
) -> None:
    """Add an event. `detail`: a figure or a word, never a name or an address, which a deletion could not remove."""
    who = {"actor_id": actor.person, "person_id": person, "link_id": link, "address": actor.address[:45]}
    row = {"uuid": str(uuid4()), "at": now_ms(), "action": action, "detail": detail}
    tx.connection.execute(insert(AuditEvent).values(**row, **who))


class AuditTable:
    """Queries about the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, action: str, actor: Actor, person: int | None = None, detail: str = "") -> None:
        """Add an event that changes nothing else."""
        with self._database.write() as tx:
            record(tx, action, actor, person, detail=detail)

    def page(self, wanted: AuditFilter, after: str = "", most: int = AUDIT_SHOWN) -> tuple[list[Audited], bool]:
        """Return a page of events, the newest first, and True if there are more. `after`: the UUID of the last one
        of the page before."""
        with self._database.read() as connection:
            before = NEWEST
            if after:
                query = select(AuditEvent.id).where(AuditEvent.uuid == after)
                before = connection.execute(query).scalar_one_or_none() or 0
            rows = connection.execute(_query(wanted, before).limit(most + 1)).all()
        return [Audited(*row) for row in rows[:most]], len(rows) > most


def _query(wanted: AuditFilter, before: int) -> Select[Any]:
    query = EVENTS.where(AuditEvent.id < before).order_by(AuditEvent.id.desc())
    if wanted.person is not None:
        query = query.where(or_(AuditEvent.actor_id == wanted.person, AuditEvent.person_id == wanted.person))
    if wanted.action:
        query = query.where(AuditEvent.action == wanted.action)
    if wanted.since is not None:
        query = query.where(AuditEvent.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(AuditEvent.at < wanted.until)
    return query
