"""People, their sessions, and the instance."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import ColumnElement, bindparam, exists, func, select, update
from sqlalchemy.exc import IntegrityError

from chatapp.bus import ACCESS, session_topic
from chatapp.store.database import Database, Write, new_id, now_ms
from chatapp.store.prepared import Prepared
from chatapp.store.tables import instance, people, sessions

FIRST_ADMIN = "first-admin"  # row of `instance`: its primary key decides a race of two first runs


# Built once: both run for every connection.
LIVE_SESSION = (
    sessions.c.revoked_at.is_(None),
    sessions.c.expires_at > bindparam("now"),
    people.c.disabled_at.is_(None),
)
SESSION = Prepared(
    select(
        sessions.c.id.label("session"),
        sessions.c.uuid.label("session_uuid"),
        sessions.c.expires_at,
        people.c.id,
        people.c.uuid,
        people.c.name,
        people.c.email,
        people.c.is_admin,
        people.c.is_operator,
    )
    .join(people)
    .where(sessions.c.token_hash == bindparam("token_hash"), *LIVE_SESSION)
)
EXPIRES = Prepared(
    select(sessions.c.expires_at).join(people).where(sessions.c.id == bindparam("session"), *LIVE_SESSION)
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
    """A live session with its person. `expires_at` is milliseconds since 1970 UTC."""

    id: int
    uuid: str
    expires_at: int
    person: Person

    def left_s(self) -> float:
        """Return the remaining time, s, by the wall clock; count it down by a monotonic one."""
        return max(0.0, (self.expires_at - now_ms()) / 1000)


class People:
    """Queries about people."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def is_empty(self) -> bool:
        """Return True if there is no account yet."""
        query = select(people.c.id).where(people.c.kind == "person").limit(1)
        with self.database.read() as connection:
            return connection.execute(query).first() is None

    def epoch(self) -> str:
        """Return the name of this database; cursors of another one are invalid here."""
        with self.database.read() as connection:
            query = select(instance.c.value).where(instance.c.name == "epoch")
            return str(connection.execute(query).scalar_one())

    def add_first_admin(self, name: str, email: str, password_hash: str) -> Person:
        """Add the first admin and operator. Raises AlreadySetUp, also in a race of two."""
        try:
            with self.database.write() as tx:
                if tx.connection.execute(select(people.c.id).where(people.c.kind == "person")).first():
                    raise AlreadySetUp
                tx.connection.execute(instance.insert().values(name=FIRST_ADMIN, value=email))
                return self._add(tx, name, email, password_hash, is_admin=True, is_operator=True)
        except IntegrityError:
            raise AlreadySetUp from None

    def add_admin(self, name: str, email: str, password_hash: str) -> Person:
        """Add an admin; the first one also becomes operator. Raises EmailTaken."""
        try:
            with self.database.write() as tx:
                first = not tx.connection.execute(select(exists().where(people.c.kind == "person"))).scalar_one()
                return self._add(tx, name, email, password_hash, is_admin=True, is_operator=first)
        except IntegrityError:
            raise EmailTaken from None

    def set_password(self, email: str, password_hash: str) -> bool:
        """Replace a password and end the person's sessions. Return False if the address is unknown."""
        with self.database.write() as tx:
            query = select(people.c.id).where(people.c.email == email.lower())
            person = tx.connection.execute(query).scalar_one_or_none()
            if person is None:
                return False
            tx.connection.execute(update(people).where(people.c.id == person).values(password_hash=password_hash))
            self._revoke(tx, sessions.c.person_id == person)
            return True

    def disable(self, email: str) -> bool:
        """Disable a person and end their sessions. Return False if the address is unknown."""
        with self.database.write() as tx:
            query = select(people.c.id).where(people.c.email == email.lower(), people.c.kind == "person")
            person = tx.connection.execute(query).scalar_one_or_none()
            if person is None:
                return False
            still = (people.c.id == person, people.c.disabled_at.is_(None))
            tx.connection.execute(update(people).where(*still).values(disabled_at=now_ms()))
            self._revoke(tx, sessions.c.person_id == person)
            return True

    def enable(self, email: str) -> bool:
        """Enable a disabled person. Return False if the address is unknown."""
        with self.database.write() as tx:
            which = (people.c.email == email.lower(), people.c.kind == "person")
            return tx.connection.execute(update(people).where(*which).values(disabled_at=None)).rowcount > 0

    def password_hash(self, email: str) -> tuple[int, str] | None:
        """Return id and password hash of an enabled person, or None."""
        query = select(people.c.id, people.c.password_hash).where(
            people.c.email == email.lower(), people.c.kind == "person", people.c.disabled_at.is_(None)
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return (row[0], row[1]) if row else None

    def add_session(self, person: int, token_hash: str, lifetime_s: float, address: str, user_agent: str) -> None:
        """Add a session. Only the hash of its token is stored."""
        now = now_ms()
        with self.database.write() as tx:
            tx.connection.execute(
                sessions.insert().values(
                    uuid=str(uuid4()),
                    person_id=person,
                    token_hash=token_hash,
                    address=address[:45],
                    user_agent=user_agent[:300],
                    created_at=now,
                    expires_at=now + round(lifetime_s * 1000),
                )
            )

    def session(self, token_hash: str) -> AuthSession | None:
        """Return the live session of a token's hash, or None."""
        with self.database.read() as connection:
            row = SESSION.first(connection, token_hash=token_hash, now=now_ms())
        if row is None:
            return None
        person = Person(row.id, row.uuid, row.name, row.email, bool(row.is_admin), bool(row.is_operator))
        return AuthSession(row.session, row.session_uuid, row.expires_at, person)

    def left_s(self, session: int) -> float:
        """Return the remaining time of a session, s; 0 if it has ended."""
        now = now_ms()
        with self.database.read() as connection:
            row = EXPIRES.first(connection, session=session, now=now)
        return (row.expires_at - now) / 1000 if row else 0.0

    def end_session(self, token_hash: str) -> None:
        """Revoke the session of a token's hash."""
        with self.database.write() as tx:
            self._revoke(tx, sessions.c.token_hash == token_hash)

    def _revoke(self, tx: Write, which: ColumnElement[bool]) -> None:
        is_live = (which, sessions.c.revoked_at.is_(None))
        for number in tx.connection.execute(select(sessions.c.id).where(*is_live)).scalars().all():
            tx.notify(session_topic(number))
        tx.bump(ACCESS)
        # `revoked_at` only grows, even if the clock is set back: the watcher looks for values above the last it saw.
        last = tx.connection.execute(select(func.max(sessions.c.revoked_at))).scalar_one() or 0
        tx.connection.execute(update(sessions).where(*is_live).values(revoked_at=max(now_ms(), last + 1)))

    def _add(self, tx: Write, name: str, email: str, password_hash: str, **roles: bool) -> Person:
        uuid = str(uuid4())
        feed = tx.new_feed()
        tx.bump(feed)  # starts at revision 1: cursor 0 always means "nothing"
        row = {"uuid": uuid, "kind": "person", "name": name, "email": email.lower(), "feed_id": feed}
        result = tx.connection.execute(
            people.insert().values(**row, **roles, password_hash=password_hash, created_at=now_ms())
        )
        number = new_id(result)
        return Person(number, uuid, name, email.lower(), roles["is_admin"], roles["is_operator"])
