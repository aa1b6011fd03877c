"""People, their sessions, and the instance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, bindparam, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from chatapp.cache import Cache
from chatapp.store import models
from chatapp.store.audit import BY_SHELL, Actor, record
from chatapp.store.database import Database, StorageUnavailable, Write, new_id, now_ms
from chatapp.store.last_seen import LastSeen
from chatapp.store.links import end_resets
from chatapp.store.models import InstanceValue
from chatapp.store.prepared import Prepared
from chatapp.store.sessions import GRACE_MS, Lives, renewal, revoke

MOST_UNWRITTEN, UNWRITTEN_BYTES = 10_000, 100
FIRST_ADMIN = "first-admin"  # row of `instance`: its primary key decides a race of two first runs


# Built once: both run for every connection.
LIVE_SESSION = (
    models.AuthSession.revoked_at.is_(None),
    models.AuthSession.idle_until > bindparam("now"),
    models.AuthSession.expires_at > bindparam("now"),
    models.Person.disabled_at.is_(None),
)
ENDS = (models.AuthSession.access_until, models.AuthSession.idle_until, models.AuthSession.expires_at)
SESSION = Prepared(
    select(
        models.AuthSession.id.label("session"),
        models.AuthSession.uuid.label("session_uuid"),
        *ENDS,
        models.AuthSession.last_seen_at,
        models.Person.id,
        models.Person.uuid,
        models.Person.name,
        models.Person.email,
        models.Person.is_admin,
        models.Person.is_operator,
    )
    .join(models.Person)
    .where(models.AuthSession.token_hash == bindparam("token_hash"), *LIVE_SESSION)
)
RENEWAL = Prepared(
    select(models.AuthSession.id, *ENDS, models.AuthSession.revoked_at, models.Person.disabled_at)
    .join(models.Person)
    .where(models.AuthSession.token_hash == bindparam("token_hash"))
)
EXPIRES = Prepared(
    select(*ENDS, models.AuthSession.last_seen_at)
    .join(models.Person)
    .where(models.AuthSession.id == bindparam("session"), *LIVE_SESSION)
)


class AlreadySetUp(Exception):
    """The first admin exists already."""


class EmailTaken(Exception):
    """The e-mail address belongs to another person."""


@dataclass(frozen=True, slots=True)
class Person:
    """A person with an account."""

    id: int
    uuid: str
    name: str
    email: str
    is_admin: bool
    is_operator: bool


@dataclass(frozen=True, slots=True)
class AuthSession:
    """A live session, with access, of its person. Times are milliseconds since 1970 UTC."""

    id: int
    uuid: str
    access_until: int  # clients renew it before
    ends_at: int  # what it answers to until it is renewed
    person: Person

    def left_s(self) -> float:
        """Return the remaining time, s, by the wall clock; count it down by a monotonic one."""
        return max(0.0, (self.ends_at - now_ms()) / 1000)


class People:
    """Queries about people."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.last_seen = LastSeen(database)
        # Access that could not be written, by session: until when, ms since 1970 UTC.
        self._unwritten: Cache[int, int] = Cache(MOST_UNWRITTEN, MOST_UNWRITTEN * UNWRITTEN_BYTES)

    def is_empty(self) -> bool:
        """Return True if there is no account yet."""
        query = select(models.Person.id).where(models.Person.kind == "person").limit(1)
        with self.database.read() as connection:
            return connection.execute(query).first() is None

    def epoch(self) -> str:
        """Return the name of this database; cursors of another one are invalid here."""
        with self.database.read() as connection:
            query = select(InstanceValue.value).where(InstanceValue.name == "epoch")
            return str(connection.execute(query).scalar_one())

    def add_first_admin(self, name: str, email: str, password_hash: str, address: str = "") -> Person:
        """Add the first admin and operator. Raises AlreadySetUp, also in a race of two."""
        try:
            with self.database.write() as tx:
                if tx.connection.execute(select(models.Person.id).where(models.Person.kind == "person")).first():
                    raise AlreadySetUp
                tx.connection.execute(insert(InstanceValue).values(name=FIRST_ADMIN, value=email))
                person = self.add(tx, name, email, password_hash, is_operator=True)
                record(tx, "first-run", Actor(person.id, address), person.id)
                return person
        except IntegrityError:
            raise AlreadySetUp from None

    def add_admin(self, name: str, email: str, password_hash: str) -> Person:
        """Add an admin; the first one also becomes operator. Raises EmailTaken."""
        try:
            with self.database.write() as tx:
                first = not tx.connection.execute(select(exists().where(models.Person.kind == "person"))).scalar_one()
                person = self.add(tx, name, email, password_hash, is_operator=first)
                record(tx, "created", BY_SHELL, person.id, detail="operator" if first else "admin")
                return person
        except IntegrityError:
            raise EmailTaken from None

    def change_password(self, person: int, old_hash: str, new_hash: str, session: int, address: str = "") -> bool:
        """Replace the own password, and end all other sessions. Return False if it was replaced meanwhile."""
        own = (models.Person.id == person, models.Person.password_hash == old_hash)
        with self.database.write() as tx:
            query = update(models.Person).where(*own).values(password_hash=new_hash)
            if not tx.connection.execute(query).rowcount:
                return False
            revoke(tx, (models.AuthSession.person_id == person) & (models.AuthSession.id != session))
            end_resets(tx, person)
            record(tx, "password", Actor(person, address), person)
            return True

    def password_hash(self, email: str) -> tuple[int, str] | None:
        """Return id and password hash of an enabled person, or None."""
        query = select(models.Person.id, models.Person.password_hash)
        query = query.where(*_account(email), models.Person.disabled_at.is_(None))
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return (row.id, row.password_hash or "") if row else None

    def add_session(
        self, person: int, token_hash: str, lives: Lives, address: str, user_agent: str, is_new_device: bool = False
    ) -> None:
        """Add a session. Only the hash of its token is stored."""
        now = now_ms()
        expires_at = now + round(lives.whole_s * 1000)
        with self.database.write() as tx:
            tx.connection.execute(
                insert(models.AuthSession).values(
                    uuid=str(uuid4()),
                    person_id=person,
                    token_hash=token_hash,
                    address=address[:45],
                    user_agent=user_agent[:300],
                    is_new_device=is_new_device,
                    created_at=now,
                    last_seen_at=now,
                    confirmed_at=now,
                    expires_at=expires_at,
                    **lives.until(now, expires_at),
                )
            )
            record(tx, "sign-in", Actor(person, address), person)

    def session(self, token_hash: str) -> AuthSession | None:
        """Return the live session of a token's hash, or None."""
        with self.database.read() as connection:
            row = SESSION.first(connection, token_hash=token_hash, now=now_ms())
        if row is None or (ends_at := self._ends_at(row, row.session)) <= now_ms():
            return None
        self.last_seen.note(row.session, row.last_seen_at)
        person = Person(row.id, row.uuid, row.name, row.email, bool(row.is_admin), bool(row.is_operator))
        return AuthSession(row.session, row.session_uuid, self._access_until(row, row.session), ends_at, person)

    def is_renewable(self, token_hash: str) -> bool:
        """Return True if the session of a token's hash has not ended, with access or without."""
        with self.database.read() as connection:
            return SESSION.first(connection, token_hash=token_hash, now=now_ms()) is not None

    def renew(self, token_hash: str, lives: Lives) -> int:
        """Extend the access of a session. Return until when, ms since 1970 UTC. Raises SessionEnded.

        Where the database cannot be written, this worker keeps it in memory: with a full disk people must still read.
        """
        with self.database.read() as connection:
            row = RENEWAL.first(connection, token_hash=token_hash)
        if not (new := renewal(row, lives)):
            return int(row.access_until)
        try:
            with self.database.write() as tx:
                renewal(RENEWAL.first(tx.connection, token_hash=token_hash), lives)  # it may have ended meanwhile
                query = update(models.AuthSession).where(models.AuthSession.id == row.id).values(**new)
                tx.connection.execute(query)
        except StorageUnavailable:
            self._unwritten.put(row.id, new["access_until"], UNWRITTEN_BYTES)
        return new["access_until"]

    def _access_until(self, row: Any, session: int) -> int:
        return max(int(row.access_until), self._unwritten.get(session) or 0)

    def _ends_at(self, row: Any, session: int) -> int:
        """Return until when a session answers, unless it is renewed, ms since 1970 UTC."""
        return int(min(self._access_until(row, session) + GRACE_MS, row.idle_until, row.expires_at))

    def left_s(self, session: int) -> float:
        """Return the remaining time of a session, s; 0 if it has ended."""
        now = now_ms()
        with self.database.read() as connection:
            row = EXPIRES.first(connection, session=session, now=now)
        if row is None:
            return 0.0
        self.last_seen.note(session, row.last_seen_at)
        return max(0, self._ends_at(row, session) - now) / 1000

    def end_session(self, token_hash: str, address: str = "") -> None:
        """Revoke the session of a token's hash."""
        this = models.AuthSession.token_hash == token_hash
        with self.database.write() as tx:
            person = tx.connection.execute(select(models.AuthSession.person_id).where(this)).scalar_one_or_none()
            if revoke(tx, this):
                record(tx, "sign-out", Actor(person, address), person)

    def add(self, tx: Write, name: str, email: str, password_hash: str, is_operator: bool) -> Person:
        """Add a person, an admin, whose address is free."""
        uuid = str(uuid4())
        feed = tx.new_feed()
        tx.bump(feed)  # starts at revision 1: cursor 0 always means "nothing"
        row = {"uuid": uuid, "kind": "person", "name": name, "email": email.lower(), "feed_id": feed}
        result = tx.connection.execute(
            insert(models.Person).values(
                **row, is_admin=True, is_operator=is_operator, password_hash=password_hash, created_at=now_ms()
            )
        )
        return Person(new_id(result), uuid, name, email.lower(), True, is_operator)


def _account(email: str) -> tuple[ColumnElement[bool], ...]:
    return models.Person.email == email.lower(), models.Person.kind == "person"
