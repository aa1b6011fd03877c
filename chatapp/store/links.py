"""Links that work once: invitations, and links to set another password."""

from dataclasses import dataclass, fields
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, insert, or_, select, update

from chatapp.store import models
from chatapp.store.database import Database, Write, new_id, now_ms
from chatapp.store.models import Person

INVITE, RESET = "invite", "reset"
LINK_DAYS = 7  # from its creation to its end
DAY_MS = 86_400_000
LINKS_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Link:
    """An open link. `email`: the invited address, or that of the person with a forgotten password."""

    id: int
    uuid: str
    kind: str
    is_operator: bool
    person_id: int | None
    expires_at: int
    email: str
    name: str  # of the person; "" of an invitation


COLUMNS = [getattr(models.Link, field.name) for field in fields(Link) if field.name not in ("email", "name")]


class LinkTable:
    """Queries about links."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_invitation(self, tx: Write, email: str, is_operator: bool, token_hash: str) -> int:
        """Add an invitation; an earlier one to the same address ends. Return its id."""
        _revoke(tx, (models.Link.email == email) & (models.Link.kind == INVITE))
        return self._add(tx, INVITE, token_hash, email=email, is_operator=is_operator)

    def add_reset(self, tx: Write, person: int, token_hash: str) -> int:
        """Add a link to set another password; an earlier one of the same person ends. Return its id."""
        end_resets(tx, person)
        return self._add(tx, RESET, token_hash, person_id=person)

    def _add(self, tx: Write, kind: str, token_hash: str, **values: object) -> int:
        now = now_ms()
        row = {"uuid": str(uuid4()), "kind": kind, "token_hash": token_hash, "created_at": now}
        result = tx.connection.execute(insert(models.Link).values(**row, **values, expires_at=now + LINK_DAYS * DAY_MS))
        return new_id(result)

    def withdraw(self, tx: Write, uuid: str) -> int | None:
        """End an open invitation. Return its id, or None if there is none."""
        return _revoke(tx, (models.Link.uuid == uuid) & (models.Link.kind == INVITE))

    def spend(self, tx: Write, link: int, person: int) -> bool:
        """Spend an open link; `person` is whose account it makes or changes. Return False if it is not open."""
        values = {"spent_at": now_ms(), "person_id": person}
        query = update(models.Link).where(models.Link.id == link, *_is_open()).values(**values)
        return tx.connection.execute(query).rowcount > 0

    def forget(self, tx: Write, person: int, email: str) -> None:
        """Remove a deleted person's address from links, and end them."""
        which = or_(models.Link.person_id == person, models.Link.email == email)
        _revoke(tx, which)
        tx.connection.execute(update(models.Link).where(which).values(email=None))

    def open(self, token_hash: str) -> Link | None:
        """Return the open link with this token, or None; a disabled person's does not work."""
        query = (
            select(*COLUMNS, models.Link.email, Person.email.label("own_email"), Person.name, Person.disabled_at)
            .outerjoin(Person, Person.id == models.Link.person_id)
            .where(models.Link.token_hash == token_hash, *_is_open())
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        if row is None or row.disabled_at is not None:
            return None
        return _link(row, row.email or row.own_email or "", row.name or "")

    def invitations(self) -> list[Link]:
        """Return the open invitations, those that end first before the others."""
        query = select(*COLUMNS, models.Link.email).where(models.Link.kind == INVITE, *_is_open())
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(models.Link.expires_at).limit(LINKS_SHOWN)).all()
        return [_link(row, row.email or "") for row in rows]


def _link(row: Any, email: str, name: str = "") -> Link:
    return Link(row.id, row.uuid, row.kind, row.is_operator, row.person_id, row.expires_at, email, name)


def end_resets(tx: Write, person: int) -> None:
    """End the links of a person to set another password."""
    _revoke(tx, (models.Link.person_id == person) & (models.Link.kind == RESET))


def end_made_by(tx: Write, person: int) -> None:
    """End the links that a person made: else a former operator could come back by one."""
    _revoke(tx, models.Link.id.in_(select(models.AuditEvent.link_id).where(models.AuditEvent.actor_id == person)))


def _revoke(tx: Write, which: ColumnElement[bool]) -> int | None:
    query = update(models.Link).where(which, *_is_open()).values(revoked_at=now_ms()).returning(models.Link.id)
    return tx.connection.execute(query).scalars().first()


def _is_open() -> tuple[ColumnElement[bool], ...]:
    return models.Link.spent_at.is_(None), models.Link.revoked_at.is_(None), models.Link.expires_at > now_ms()
