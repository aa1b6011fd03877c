"""A person's sessions, as they and operators see them, and their end."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, func, select, update

from chatapp.bus import ACCESS, session_topic
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.last_seen import TRANSPORT_MS
from chatapp.store.models import AuthSession

MOST_AGENTS, MOST_NEWCOMERS = 500, 20
SESSIONS_SHOWN = 50  # in one page of the list
GRACE_MS = 60_000  # of an access that has ended: requests under way do not race a renewal
FRESH = 0.9  # of an access: with so much left it is not renewed again, so that many tabs write once
CONFIRMED_MS = 600_000  # a password that was entered is good for so long


@dataclass(frozen=True, slots=True)
class Lives:
    """How long a session lives, s: from one renewal to the next, without any, and altogether."""

    access_s: float
    idle_s: float
    whole_s: float

    def until(self, now: int, expires_at: int) -> dict[str, int]:
        """Return the ends that a renewal at `now` sets, ms."""
        idle_until = min(now + round(self.idle_s * 1000), expires_at)
        return {"access_until": min(now + round(self.access_s * 1000), idle_until), "idle_until": idle_until}


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A live session in a list. Times are milliseconds since 1970 UTC."""

    uuid: str
    address: str
    user_agent: str
    created_at: int
    last_seen_at: int
    transport: str
    transport_at: int

    def transport_now(self) -> str:
        """Return what carries its connection: websocket, polling; "" if nothing, as far as was noted in time."""
        return self.transport if now_ms() - self.transport_at < TRANSPORT_MS[self.transport] else ""


class SessionEnded(Exception):
    """The session cannot be renewed. `how`: expired; or revoked, also if there is none."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


ENDS = (AuthSession.idle_until, AuthSession.expires_at)
COLUMNS = [getattr(AuthSession, field.name) for field in fields(ListedSession)]


class SessionTable:
    """Queries about a person's sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def live(self, person: int, after: str = "", most: int = SESSIONS_SHOWN) -> tuple[list[ListedSession], bool]:
        """Return a page of the live sessions, the newest sign-in first, and True if there are more.

        `after`: the UUID of the last session of the page before.
        """
        own = _live_of(person)
        query = select(*COLUMNS).where(*own).order_by(AuthSession.id.desc()).limit(most + 1)
        if after:
            last = select(AuthSession.id).where(AuthSession.uuid == after, AuthSession.person_id == person)
            query = query.where(AuthSession.id < last.scalar_subquery())
        with self._database.read() as connection:
            found = [ListedSession(*row) for row in connection.execute(query).all()]
        return found[:most], len(found) > most

    def agents(self, person: int) -> set[str]:
        """Return the User-Agent headers of a person's latest sessions, also of those that have ended."""
        query = select(AuthSession.user_agent).where(AuthSession.person_id == person).order_by(AuthSession.id.desc())
        with self._database.read() as connection:
            return set(connection.execute(query.limit(MOST_AGENTS)).scalars())

    def newcomers(self, person: int) -> list[ListedSession]:
        """Return the live sessions from new devices, the newest first, until `acknowledge`."""
        query = select(*COLUMNS).where(*_live_of(person), AuthSession.is_new_device).order_by(AuthSession.id.desc())
        with self._database.read() as connection:
            return [ListedSession(*row) for row in connection.execute(query.limit(MOST_NEWCOMERS)).all()]

    def acknowledge(self, person: int, uuid: str) -> None:
        """Note that the person knows this session's device."""
        which = (AuthSession.uuid == uuid, AuthSession.person_id == person)
        with self._database.write() as tx:
            tx.connection.execute(update(AuthSession).where(*which).values(is_new_device=False))

    def end(self, tx: Write, person: int, uuid: str) -> bool:
        """End a session of this person. Return False if there is none, or it has ended."""
        return revoke(tx, (AuthSession.uuid == uuid) & (AuthSession.person_id == person)) > 0

    def end_all(self, tx: Write, person: int, keep: int = 0) -> int:
        """End all sessions of a person except `keep`. Return their number."""
        return revoke(tx, (AuthSession.person_id == person) & (AuthSession.id != keep))

    def owner(self, token_hash: str) -> int | None:
        """Return whose session this is, unless somebody has ended it; it may have expired."""
        query = select(AuthSession.person_id).where(AuthSession.token_hash == token_hash)
        with self._database.read() as connection:
            return connection.execute(query.where(AuthSession.revoked_at.is_(None))).scalar_one_or_none()

    def confirm(self, session: int) -> None:
        """Note that the password was entered now."""
        with self._database.write() as tx:
            query = update(AuthSession).where(AuthSession.id == session)
            tx.connection.execute(query.values(confirmed_at=now_ms()))

    def is_confirmed(self, session: int) -> bool:
        """Return True if the password was entered in the last CONFIRMED_MS."""
        query = select(AuthSession.confirmed_at).where(AuthSession.id == session)
        with self._database.read() as connection:
            at = connection.execute(query).scalar_one_or_none() or 0
        return 0 <= now_ms() - at < CONFIRMED_MS


def renewal(row: Any, lives: Lives) -> dict[str, int]:
    """Return the ends that a session is to get, ms since 1970 UTC; none if its access is fresh. Raises SessionEnded."""
    now = now_ms()
    if row is None or row.revoked_at is not None or row.disabled_at is not None:
        raise SessionEnded("revoked")
    if min(row.idle_until, row.expires_at) <= now:
        raise SessionEnded("expired")
    new = lives.until(now, row.expires_at)
    return {} if row.access_until - now >= FRESH * (new["access_until"] - now) else new


def _live_of(person: int) -> tuple[ColumnElement[bool], ...]:
    now = now_ms()
    return AuthSession.person_id == person, AuthSession.revoked_at.is_(None), *(end > now for end in ENDS)


def revoke(tx: Write, which: ColumnElement[bool]) -> int:
    """End these sessions, unless they were ended before. Return their number."""
    live = (which, AuthSession.revoked_at.is_(None))  # expired ones, too: the clock may be set back
    numbers = tx.connection.execute(select(AuthSession.id).where(*live)).scalars().all()
    for number in numbers:
        tx.notify(session_topic(number))
    tx.bump(ACCESS)
    # `revoked_at` only grows, even if the clock is set back: the watcher looks for values above the last it saw.
    last = tx.connection.execute(select(func.max(AuthSession.revoked_at))).scalar_one() or 0
    tx.connection.execute(update(AuthSession).where(*live).values(revoked_at=max(now_ms(), last + 1)))
    return len(numbers)
