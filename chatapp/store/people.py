"""People, their sessions, and the instance itself."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import ColumnElement, bindparam, exists, func, select, update
from sqlalchemy.exc import IntegrityError

from chatapp.bus import ACCESS, session_topic
from chatapp.store.database import Database, Write, new_id, now_ms
from chatapp.store.prepared import Prepared
from chatapp.store.tables import instance, people, sessions

FIRST_ADMIN = "first-admin"  # row of `instance` whose uniqueness decides a race of two first runs


# Both run for each connection: built once.
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
    """Somebody made the first admin before."""


class EmailTaken(Exception):
    """Another person has this e-mail address."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who can sign in."""

    id: int
    uuid: str
    name: str
    email: str
    is_admin: bool
    is_operator: bool


@dataclass(frozen=True, slots=True)
class AuthSession:
    """A live session and whose it is. `expires_at` is milliseconds."""

    id: int
    uuid: str
    expires_at: int
    person: Person

    def left_s(self) -> float:
        """How long it goes on, s, as of now. Once that is known a monotonic clock counts it down."""
        return max(0.0, (self.expires_at - now_ms()) / 1000)


class People:
    """Queries about people."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def is_empty(self) -> bool:
        """Whether nobody can sign in yet."""
        query = select(people.c.id).where(people.c.kind == "person").limit(1)
        with self.database.read() as connection:
            return connection.execute(query).first() is None

    def epoch(self) -> str:
        """The name of this database: a cursor of another one means nothing here."""
        with self.database.read() as connection:
            query = select(instance.c.value).where(instance.c.name == "epoch")
            return str(connection.execute(query).scalar_one())

    def add_first_admin(self, name: str, email: str, password_hash: str) -> Person:
        """Make the first admin and operator. Of two at once, one raises AlreadySetUp."""
        try:
            with self.database.write() as tx:
                if tx.connection.execute(select(people.c.id).where(people.c.kind == "person")).first():
                    raise AlreadySetUp
                tx.connection.execute(instance.insert().values(name=FIRST_ADMIN, value=email))
                return self._add(tx, name, email, password_hash, is_admin=True, is_operator=True)
        except IntegrityError:
            raise AlreadySetUp from None

    def add_admin(self, name: str, email: str, password_hash: str) -> Person:
        """Make an admin; the first one also becomes operator. Raises EmailTaken."""
        try:
            with self.database.write() as tx:
                first = not tx.connection.execute(select(exists().where(people.c.kind == "person"))).scalar_one()
                return self._add(tx, name, email, password_hash, is_admin=True, is_operator=first)
        except IntegrityError:
            raise EmailTaken from None

    def set_password(self, email: str, password_hash: str) -> bool:
        """Replace a password and end the person's sessions. False: nobody has this address."""
        with self.database.write() as tx:
            query = select(people.c.id).where(people.c.email == email.lower())
            person = tx.connection.execute(query).scalar_one_or_none()
            if person is None:
                return False
            change = {"password_hash": password_hash, "auth_generation": people.c.auth_generation + 1}
            tx.connection.execute(update(people).where(people.c.id == person).values(**change))
            self._revoke(tx, sessions.c.person_id == person)
            return True

    def disable(self, email: str) -> bool:
        """Let a person sign in no more, and end their sessions. False: nobody has this address."""
        with self.database.write() as tx:
            query = select(people.c.id).where(people.c.email == email.lower(), people.c.kind == "person")
            person = tx.connection.execute(query).scalar_one_or_none()
            if person is None:
                return False
            change = {"disabled_at": now_ms(), "auth_generation": people.c.auth_generation + 1}
            still = (people.c.id == person, people.c.disabled_at.is_(None))
            tx.connection.execute(update(people).where(*still).values(**change))
            self._revoke(tx, sessions.c.person_id == person)
            return True

    def enable(self, email: str) -> bool:
        """Let a person sign in again. False: nobody has this address."""
        with self.database.write() as tx:
            which = (people.c.email == email.lower(), people.c.kind == "person")
            return tx.connection.execute(update(people).where(*which).values(disabled_at=None)).rowcount > 0

    def password_hash(self, email: str) -> tuple[int, str] | None:
        """The person's number and password hash."""
        query = select(people.c.id, people.c.password_hash).where(
            people.c.email == email.lower(), people.c.kind == "person", people.c.disabled_at.is_(None)
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return (row[0], row[1]) if row else None

    def add_session(self, person: int, token_hash: str, lifetime_s: float, address: str, user_agent: str) -> None:
        """Begin a session. Only the hash of its token is stored."""
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
        """The live session of a token."""
        with self.database.read() as connection:
            row = SESSION.first(connection, token_hash=token_hash, now=now_ms())
        if row is None:
            return None
        person = Person(row.id, row.uuid, row.name, row.email, bool(row.is_admin), bool(row.is_operator))
        return AuthSession(row.session, row.session_uuid, row.expires_at, person)

    def left_s(self, session: int) -> float:
        """How long a session goes on, by its number, s; 0 where it has ended."""
        now = now_ms()
        with self.database.read() as connection:
            row = EXPIRES.first(connection, session=session, now=now)
        return (row.expires_at - now) / 1000 if row else 0.0

    def end_session(self, token_hash: str) -> None:
        """Revoke a session."""
        with self.database.write() as tx:
            self._revoke(tx, sessions.c.token_hash == token_hash)

    def _revoke(self, tx: Write, which: ColumnElement[bool]) -> None:
        connections = (which, sessions.c.revoked_at.is_(None))
        for number in tx.connection.execute(select(sessions.c.id).where(*connections)).scalars().all():
            tx.notify(session_topic(number))
        tx.bump(ACCESS)
        # A time that only grows, whatever the clock does: other processes look for what ended after the last they know.
        last = tx.connection.execute(select(func.max(sessions.c.revoked_at))).scalar_one() or 0
        tx.connection.execute(update(sessions).where(*connections).values(revoked_at=max(now_ms(), last + 1)))

    def _add(self, tx: Write, name: str, email: str, password_hash: str, **roles: bool) -> Person:
        uuid = str(uuid4())
        feed = tx.new_feed()
        tx.bump(feed)  # a list begins at revision 1, so that cursor 0 always means "nothing"
        row = {"uuid": uuid, "kind": "person", "name": name, "email": email.lower(), "feed_id": feed}
        result = tx.connection.execute(
            people.insert().values(**row, **roles, password_hash=password_hash, created_at=now_ms())
        )
        number = new_id(result)
        return Person(number, uuid, name, email.lower(), roles["is_admin"], roles["is_operator"])
