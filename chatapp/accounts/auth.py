"""Authentication: sessions in the database, password checks, the code of the first run.

The session cookie holds a random token; the database holds its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from contextlib import suppress
from itertools import takewhile
from urllib.parse import urlsplit

from flask import Flask, Request, Response, g, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from flask_babel import gettext as _
from itsdangerous import BadSignature, URLSafeSerializer
from werkzeug.security import generate_password_hash

from chatapp.accounts.devices import device_words
from chatapp.accounts.failures import Failures
from chatapp.accounts.guesses import Guesses, tells_people_apart
from chatapp.accounts.hashing import Hashing
from chatapp.accounts.keys import CODE_FILE
from chatapp.accounts.passwords import password_problem
from chatapp.bus import ACCESS, Bus
from chatapp.cache import Cache
from chatapp.config import Settings
from chatapp.fair_queue import Attempts
from chatapp.gunicorn_bridge import has_left
from chatapp.store import Actor, AuthSession, ListedSession, Lives, People, Person, SessionEnded, Store, now_ms
from chatapp.visible import is_assistants, is_blank

TOKEN = "token"
CACHE_S = 30.0  # lifetime of a cached session
DAY_S = 86400
MOST_CACHED, MOST_CACHED_BYTES = 10_000, 8 << 20
SESSION_BYTES = 900  # of a cached session, without its names
AUTH_SESSION_KEY = "chatapp.sign_in"  # WSGI environ: the AuthSession, if found before Flask
LAST_PART = 0.3  # of an access: a page's client asks once 0.7 of it are over (static/js/connection/access.js)
POLLS = "changes.show"  # the endpoint
MOST_ATTEMPTS = 10  # at the first-run code of an address, at the own password of a person; half expire each minute


class Refused(Exception):
    """Sign-in or first run was refused. `field`: of the form; `message`: for the person."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class TooManyGuesses(Exception):
    """This address tried too many first-run codes, or this person too many passwords."""


class Auth:
    """Sessions and passwords of one instance."""

    def __init__(self, app: Flask, store: Store, settings: Settings, bus: Bus) -> None:
        self._people = store.people
        self._sessions = store.sessions
        self._failures = Failures(store.audit)
        self._settings = settings
        self._lives = Lives(settings.access_lifetime, settings.session_idle * DAY_S, settings.session_lifetime * DAY_S)
        self.sessions = SessionCache(app, store.people, bus)
        self._code_attempts = Attempts()
        self._guesses = Guesses()
        self._own_attempts = Attempts()  # at the own password, by person
        self.attempts = Attempts()  # to sign in: pages, forms and passwords, by address
        self._hashing = Hashing(settings.data_dir / "hashing.lock" if settings.workers > 1 else None, self.attempts)

    # Sessions

    def current(self) -> AuthSession | None:
        """Return the session of this request, or None."""
        if "auth_session" not in g:
            cookie = request.cookies.get(self.sessions.cookie_name, "")
            found = request.environ.get(AUTH_SESSION_KEY) or self.sessions.check(cookie)
            # A page or a plain form is not sent again after a renewal: it renews on the way.
            if cookie and not wants_json() and (found is None or self._is_used_up(found)):
                with suppress(SessionEnded):
                    self.renew()
                    self.sessions.forget(cookie)
                    found = self.sessions.check(cookie)
            g.auth_session = found
        current: AuthSession | None = g.auth_session
        return current

    def _is_used_up(self, session: AuthSession) -> bool:
        """Return True in the last part of a session's access, in which pages renew it by themselves."""
        return session.access_until - now_ms() < LAST_PART * self._settings.access_lifetime * 1000

    def newcomer(self) -> ListedSession | None:
        """Return the newest session of this person from a new device, unless this is that device."""
        found = self.current()
        sessions = self._sessions.newcomers(found.person.id) if found else []
        own = device_words(request.headers.get("User-Agent", ""))
        return next((one for one in sessions if device_words(one.user_agent) != own), None)

    def renew(self) -> float:
        """Renew the session of this request. Return how long its access lasts, s. Raises SessionEnded."""
        token_hash = self.sessions.token_hash(request.cookies.get(self.sessions.cookie_name, ""))
        if not token_hash:
            raise SessionEnded("revoked")
        return (self._people.renew(token_hash, self._lives) - now_ms()) / 1000

    def start_session(self, person: int) -> None:
        """Start a session in this response, with an empty cookie: the old CSRF secret must not survive."""
        token = secrets.token_urlsafe(32)
        agent, known = request.headers.get("User-Agent", ""), self._sessions.agents(person)
        is_new = bool(known) and device_words(agent) not in map(device_words, known)
        address = request.remote_addr or ""
        self._people.add_session(person, hash_token(token), self._lives, address, agent, is_new)
        session.clear()
        session[TOKEN] = token
        session.permanent = True

    def end_session(self) -> None:
        """End the session of this request."""
        self._people.end_session(hash_token(str(session.get(TOKEN, ""))), request.remote_addr or "")
        session.clear()

    # Passwords

    def sign_in(self, email: str, password: str, address: str) -> int:
        """Return the id of the person with this e-mail and password. Raises Refused, TooSoon, Busy."""
        email = email.strip()
        found = self._people.password_hash(email)
        environ = request.environ
        trusts_proxies = bool(self._settings.trusted_proxies)
        is_counted = tells_people_apart(environ, trusts_proxies) and not (found and self._knows_browser(found[0]))
        if is_counted:
            self._guesses.count(email, address)
        is_right = self._hashing.check(address, found[1] if found else None, password, lambda: has_left(environ))
        # The password may have been replaced while this waited.
        is_right = is_right and self._people.password_hash(email) == found
        if is_right:
            self._guesses.forget(email, address)
        if found is None or not is_right:
            self._failures.note("sign-in-failed", Actor(None, address), found[0] if found else None)
            raise Refused("password", _("The e-mail address or the password is wrong."))
        return found[0]

    def _knows_browser(self, person: int) -> bool:
        """Return True if this browser has a session of this person, also an expired one, that nobody has ended."""
        token_hash = self.sessions.token_hash(request.cookies.get(self.sessions.cookie_name, ""))
        return token_hash is not None and self._sessions.owner(token_hash) == person

    def first_run(self, name: str, email: str, password: str, address: str = "") -> Person:
        """Add the first admin. Raises Refused for bad input, AlreadySetUp, Busy."""
        name, email = checked_person(name, email, password)
        return self._people.add_first_admin(name, email, self._hashing.make(address, password), address)

    def hash_checked(self, name: str, email: str, password: str) -> tuple[str, str]:
        """Check what a person enters by a link. Return name and password hash. Raises Refused, Busy."""
        name, _email = checked_person(name, email, password)
        return name, self._hashing.make(request.remote_addr or "", password)

    def confirm(self, password: str) -> None:
        """Note that this session's person entered their password. Raises Refused, TooManyGuesses, Busy."""
        self._check_own("password", password)
        found = self.current()
        assert found is not None
        self._sessions.confirm(found.id)

    def is_confirmed(self) -> bool:
        """Return True if this session's person entered their password in the last ten minutes."""
        found = self.current()
        return found is not None and self._sessions.is_confirmed(found.id)

    def change_password(self, current: str, new: str) -> None:
        """Replace the own password and end the other sessions. Raises Refused, TooManyGuesses, Busy."""
        session = self.current()
        assert session is not None
        old_hash = self._check_own("current", current)
        _check_password(new, session.person.name, session.person.email)
        new_hash = self._hashing.make(request.remote_addr or "", new)
        address = request.remote_addr or ""
        if not self._people.change_password(session.person.id, old_hash, new_hash, session.id, address):
            raise _wrong_password("current")

    def _check_own(self, field: str, password: str) -> str:
        """Check the password of this session's person. Return its hash. Raises Refused, TooManyGuesses, Busy."""
        session, environ = self.current(), request.environ
        assert session is not None
        person = f"person {session.person.id}"
        if round(self._own_attempts.count(person)) > MOST_ATTEMPTS:
            raise TooManyGuesses
        found = self._people.password_hash(session.person.email)
        own = found[1] if found else None
        if not self._hashing.check(request.remote_addr or "", own, password, lambda: has_left(environ)):
            by = Actor(session.person.id, request.remote_addr or "")
            self._failures.note("password-failed", by, session.person.id)
            raise _wrong_password(field)
        self._own_attempts.count(person, -1)
        return own or ""

    # The code is required from every address: behind a proxy all seem to be local.

    def check_code(self, code: str, address: str) -> None:
        """Check the first-run code that the server printed. Raises Refused, TooManyGuesses."""
        if round(self._code_attempts.count(address, 0)) >= MOST_ATTEMPTS:
            raise TooManyGuesses
        path = self._settings.data_dir / CODE_FILE
        expected = path.read_text().strip() if path.exists() else ""
        if not expected or not hmac.compare_digest(expected.encode(), code.strip().upper().encode()):
            self._code_attempts.count(address)
            raise Refused("code", _("Enter the code that the server printed when it started."))


class SessionCache:
    """Live sessions by their cookie, read as Flask does: for requests, and for WSGI middleware.

    Cached by a digest of the cookie's value, and only if the session is live: unauthenticated clients use no memory.
    The end of any session clears the cache.
    """

    def __init__(self, app: Flask, people: People, bus: Bus) -> None:
        interface = app.session_interface
        assert isinstance(interface, Sessions)
        self._people = people
        self._serializer = interface.get_signing_serializer(app)
        self.cookie_name = interface.get_cookie_name(app)
        self._pair = re.compile(rf"(?:^|;)[ \t]*{re.escape(self.cookie_name)}[ \t]*=[ \t]*([^;]*)")
        # With the time until which an entry is trusted (monotonic, s).
        self._known: Cache[bytes, tuple[AuthSession, float]] = Cache(MOST_CACHED, MOST_CACHED_BYTES)
        bus.subscribe(ACCESS, lambda _topic: self._known.clear())

    def find(self, header: str, most: int = MOST_CACHED) -> AuthSession | None:
        """Return the live session of a Cookie header, or None. `most`: entries from which on it is not cached."""
        return self.check(self.cookie_value(header), most)

    def check(self, value: str, most: int = MOST_CACHED) -> AuthSession | None:
        """Return the live session of a session cookie's value, or None."""
        if not value:
            return None
        key = hashlib.sha256(value.encode()).digest()
        known, now = self._known.get(key), time.monotonic()
        if known is not None and now < known[1]:
            return known[0]
        self._known.drop(key)
        token_hash = self.token_hash(value)
        found = self._people.session(token_hash) if token_hash else None
        if found is not None:
            self._drop_expired(now)
            if len(self._known) < most:
                size = SESSION_BYTES + 4 * (len(found.person.name) + len(found.person.email))
                self._known.put(key, (found, now + min(CACHE_S, found.left_s())), size)
        return found

    def _drop_expired(self, now: float) -> None:
        for key, _until in list(takewhile(lambda entry: entry[1][1] <= now, self._known.items())):
            self._known.drop(key)

    def forget(self, value: str) -> None:
        """Read the session of a cookie's value again at the next check."""
        self._known.drop(hashlib.sha256(value.encode()).digest())

    def is_renewable(self, header: str) -> bool:
        """Return True if a Cookie header has a session that has not ended, with access or without."""
        token_hash = self.token_hash(self.cookie_value(header))
        return token_hash is not None and self._people.is_renewable(token_hash)

    def cookie_value(self, header: str) -> str:
        """Return the raw value of the session cookie in a Cookie header, or ""."""
        found = self._pair.search(header)
        return found[1].rstrip() if found else ""

    def token_hash(self, value: str) -> str | None:
        """Return the hash of the token in a session cookie, uncached; None if its signature is invalid."""
        if not value.isascii():
            return None
        try:
            token = self._serializer.loads(value).get(TOKEN)
        except BadSignature:
            return None
        return hash_token(token) if isinstance(token, str) else None


class Sessions(SecureCookieSessionInterface):
    """Flask's cookie sessions, signed without a timestamp. Requests authenticated before Flask get an empty one.

    After the clock was set back, itsdangerous would refuse a timestamp from the future, and Flask would overwrite the
    cookie. A session expires by its row.
    """

    salt = "session"

    def get_signing_serializer(self, app: Flask) -> URLSafeSerializer:  # type: ignore[override]
        """Return the serializer of the session cookie; its `loads` ignores Flask's `max_age`."""
        how = {"key_derivation": self.key_derivation, "digest_method": self.digest_method}
        keys = [*(app.config["SECRET_KEY_FALLBACKS"] or ()), app.secret_key or ""]  # the last one signs
        return URLSafeSerializer(keys, salt=self.salt, serializer=self.serializer, signer_kwargs=how)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Set the cookie if it changed, with Max-Age: Expires depends on the server's clock."""
        super().save_session(app, session, response)
        name, lasts = f"{self.get_cookie_name(app)}=", round(app.permanent_session_lifetime.total_seconds())
        lines = response.headers.getlist("Set-Cookie")
        if session.permanent and session and any(line.startswith(name) for line in lines):
            lines = [f"{line}; Max-Age={lasts}" if line.startswith(name) else line for line in lines]
            response.headers.setlist("Set-Cookie", lines)

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Read the session of a request."""
        return self.session_class() if AUTH_SESSION_KEY in request.environ else super().open_session(app, request)


def wants_json() -> bool:
    """Return True for a program's request, False for a person's page or form."""
    accepts = request.accept_mimetypes
    is_json = accepts.best_match(["text/html", "application/json"]) == "application/json"
    return is_json or "HX-Request" in request.headers or request.endpoint == POLLS


def checked_person(name: str, email: str, password: str) -> tuple[str, str]:
    """Return name and address, normalised. Raises Refused."""
    name = " ".join(name.split())[:200]
    if is_blank(name):
        raise Refused("name", _("Say how you want to be called."))
    if is_assistants(name):
        raise Refused("name", _("The assistant is called so. Choose another name."))
    email = checked_email(email)
    _check_password(password, name, email)
    return name, email


def checked_email(email: str) -> str:
    """Return an e-mail address without spaces around it. Raises Refused."""
    email = email.strip()
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", email) or len(email) > 320:
        raise Refused("email", _("This does not look like an e-mail address."))
    return email


def _check_password(password: str, name: str, email: str) -> None:
    if problem := password_problem(password, name, email):
        raise Refused("password", problem)


def _wrong_password(field: str) -> Refused:
    return Refused(field, _("This is not your password."))


def hash_password(password: str) -> str:
    """Hash a password; for commands, as it would block an event loop."""
    return generate_password_hash(password)


def hash_token(token: str) -> str:
    """Return the stored hash of a session token."""
    return hashlib.sha256(token.encode()).hexdigest()


def origin_is_allowed(settings: Settings, origin: str, requested: str) -> bool:
    """Return True if this Origin may open a WebSocket."""
    return origin != "" and origin.lower() in {item.lower() for item in expected_origins(settings, requested)}


def expected_origins(settings: Settings, requested: str) -> list[str]:
    """Return the allowed origins: `requested` (scheme, host, port of the request), PUBLIC_URL's, the listed ones."""
    expected = [requested.rstrip("/"), *settings.allowed_origins]
    if settings.public_url:
        parts = urlsplit(settings.public_url)
        expected.append(f"{parts.scheme}://{parts.netloc}")
    return expected
