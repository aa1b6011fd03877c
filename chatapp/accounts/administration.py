"""Management of people: roles, access, sessions, invitations, resets, deletion. The rules and their audit.

An act of a person who is no operator at that moment is refused as if nothing were there.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from flask_babel import gettext as _

from chatapp.accounts.auth import Refused, checked_email, hash_token
from chatapp.concurrency import soon
from chatapp.config import Settings
from chatapp.store import BY_SHELL, Actor, EmailTaken, Link, ListedPerson, Store
from chatapp.store.audit import record
from chatapp.store.database import Write
from chatapp.store.links import INVITE, end_made_by, end_resets


class NotThere(Exception):
    """No such person, session, invitation or open link for this actor."""


class Administration:
    """Acts of operators and of the shell on people, and acts by links."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._directory = store.directory

    # Access

    def set_role(self, actor: Actor, uuid: str, is_operator: bool) -> None:
        """Make a person an operator, or only an admin. Raises NotThere, Refused."""
        with self._change(actor, uuid) as (tx, person):
            if is_operator == person.is_operator:
                return
            if not is_operator:
                self._keep_an_operator(tx, actor, person)
                end_made_by(tx, person.id)
            self._directory.change(tx, person.id, is_operator=is_operator)
            record(tx, "role", actor, person.id, detail="operator" if is_operator else "admin")

    def disable(self, actor: Actor, uuid: str) -> None:
        """Block a person's sign-in, and end their sessions and links. Raises NotThere, Refused."""
        with self._change(actor, uuid) as (tx, person):
            self._keep_an_operator(tx, actor, person)
            if person.disabled_at is None:
                self._directory.disable(tx, person.id)
                record(tx, "disabled", actor, person.id)
            end_resets(tx, person.id)
            end_made_by(tx, person.id)
            self._store.sessions.end_all(tx, person.id)

    def enable(self, actor: Actor, uuid: str) -> None:
        """Let a disabled person sign in again. Raises NotThere."""
        with self._change(actor, uuid) as (tx, person):
            if person.disabled_at is not None:
                self._directory.change(tx, person.id, disabled_at=None)
                record(tx, "enabled", actor, person.id)

    def end_session(self, actor: Actor, uuid: str, session: str) -> None:
        """End a person's session. Raises NotThere."""
        with self._change(actor, uuid) as (tx, person):
            self._end_session(tx, actor, person.id, session)

    def end_sessions(self, actor: Actor, uuid: str) -> None:
        """End all sessions of a person. Raises NotThere."""
        with self._change(actor, uuid) as (tx, person):
            self._end_sessions(tx, actor, person.id)

    def end_own_session(self, actor: Actor, session: str) -> None:
        """End a session of the actor's. Raises NotThere."""
        assert actor.person is not None
        with self._store.database.write() as tx:
            self._end_session(tx, actor, actor.person, session)

    def end_own_sessions(self, actor: Actor, keep: int) -> None:
        """End all sessions of the actor's but one."""
        assert actor.person is not None
        with self._store.database.write() as tx:
            self._end_sessions(tx, actor, actor.person, keep)

    def _end_session(self, tx: Write, actor: Actor, person: int, session: str) -> None:
        if not self._store.sessions.end(tx, person, session):
            raise NotThere
        record(tx, "session-ended", actor, person)

    def _end_sessions(self, tx: Write, actor: Actor, person: int, keep: int = 0) -> None:
        if ended := self._store.sessions.end_all(tx, person, keep):
            record(tx, "session-ended", actor, person, detail=str(ended))

    # Passwords and deletion

    def set_password(self, actor: Actor, uuid: str, password_hash: str) -> None:
        """Replace a person's password, and end their sessions and links. For the shell. Raises NotThere."""
        with self._change(actor, uuid) as (tx, person):
            self._set_password(tx, person.id, password_hash)
            record(tx, "reset", actor, person.id)

    def _set_password(self, tx: Write, person: int, password_hash: str) -> None:
        self._directory.change(tx, person, password_hash=password_hash)
        end_resets(tx, person)
        self._store.sessions.end_all(tx, person)

    def delete(self, actor: Actor, uuid: str, typed: str) -> None:
        """Delete a person's data; `typed` must be their address. Raises NotThere, Refused."""
        with self._change(actor, uuid) as (tx, person):
            if typed.strip().lower() != person.email:
                raise Refused("typed", _("This is not the address of the person. Nothing was deleted."))
            self._keep_an_operator(tx, actor, person)
            self._store.links.forget(tx, person.id, person.email)
            end_made_by(tx, person.id)
            self._store.sessions.end_all(tx, person.id)
            self._directory.bury(tx, person.id)
            record(tx, "deleted", actor, person.id)
        soon(self._store.erasure.run)

    # Links

    def invite(self, actor: Actor, email: str, is_operator: bool) -> str:
        """Invite an address that has no account. Return the link's token. Raises NotThere, Refused."""
        email, token = checked_email(email).lower(), secrets.token_urlsafe(32)
        with self._act(actor) as tx:
            if self._directory.has_account(tx, email):
                raise Refused("email", _("This address has an account already."))
            link = self._store.links.add_invitation(tx, email, is_operator, hash_token(token))
            record(tx, "invited", actor, link=link, detail="operator" if is_operator else "admin")
        return token

    def withdraw(self, actor: Actor, uuid: str) -> None:
        """End an open invitation. Raises NotThere."""
        with self._act(actor) as tx:
            link = self._store.links.withdraw(tx, uuid)
            if link is None:
                raise NotThere
            record(tx, "withdrawn", actor, link=link)

    def make_reset(self, actor: Actor, uuid: str) -> str:
        """Make a link by which a person sets another password. Return its token. Raises NotThere, Refused."""
        token = secrets.token_urlsafe(32)
        with self._change(actor, uuid) as (tx, person):
            if person.disabled_at is not None:
                raise Refused("reset", _("This person is disabled. Enable them first."))
            link = self._store.links.add_reset(tx, person.id, hash_token(token))
            record(tx, "reset-link", actor, person.id, link)
        return token

    def open_link(self, token: str) -> Link:
        """Return the open link of a token. Raises NotThere."""
        link = self._store.links.open(hash_token(token))
        if link is None:
            raise NotThere
        return link

    def accept(self, link: Link, name: str, password_hash: str, address: str) -> int:
        """Make the invited person's account. Return their number. Raises NotThere, also if another tab was faster,
        EmailTaken."""
        assert link.kind == INVITE
        with self._store.database.write() as tx:
            if self._directory.has_account(tx, link.email):
                raise EmailTaken
            person = self._store.people.add(tx, name, link.email, password_hash, link.is_operator).id
            if not self._store.links.spend(tx, link.id, person):
                raise NotThere
            record(tx, "joined", Actor(person, address), person, link.id)
        return person

    def reset(self, link: Link, password_hash: str, address: str) -> int:
        """Set another password by a link, and end the person's sessions. Return their number. Raises NotThere."""
        assert link.person_id is not None
        with self._store.database.write() as tx:
            if not self._store.links.spend(tx, link.id, link.person_id):
                raise NotThere
            self._set_password(tx, link.person_id, password_hash)
            record(tx, "reset", Actor(link.person_id, address), link.person_id, link.id)
        return link.person_id

    # Rules

    @contextmanager
    def _act(self, actor: Actor) -> Iterator[Write]:
        """Open the transaction of an act. Raises NotThere if the actor is no operator now."""
        with self._store.database.write() as tx:
            if actor != BY_SHELL and (actor.person is None or not self._directory.is_operator(tx, actor.person)):
                raise NotThere
            yield tx

    @contextmanager
    def _change(self, actor: Actor, uuid: str) -> Iterator[tuple[Write, ListedPerson]]:
        """Open the transaction of an act on a person. Raises NotThere."""
        with self._act(actor) as tx:
            person = self._directory.find_in(tx, uuid)
            if person is None:
                raise NotThere
            yield tx, person

    def _keep_an_operator(self, tx: Write, actor: Actor, person: ListedPerson) -> None:
        """Refuse to take away the last operator; a shell may, because it can make another."""
        is_active = person.is_operator and person.disabled_at is None
        if actor != BY_SHELL and is_active and not self._directory.has_other_operator(tx, person.id):
            raise Refused("last", _("This is the last operator. Make somebody else an operator first."))


def link_url(settings: Settings, token: str) -> str:
    """Return the address of a link by PUBLIC_URL, and by nothing that a request says; without it the path alone."""
    return f"{app_url(settings)}/link/{token}"


def origin_of(settings: Settings) -> str:
    """Return scheme and host of PUBLIC_URL, "" without it."""
    parts = urlsplit(settings.public_url)
    return f"{parts.scheme}://{parts.netloc}" if settings.public_url else ""


def app_url(settings: Settings) -> str:
    """Return the address of the app by PUBLIC_URL, without a slash at the end; without it the prefix alone."""
    return f"{origin_of(settings)}{settings.url_prefix}"
