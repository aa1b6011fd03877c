"""Authentication: sessions in the database, password checks, the code of the first run.

The session cookie holds a random token; the database holds its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Request, Response, g, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from flask_babel import gettext as _
from itsdangerous import BadSignature, Serializer, Signer, URLSafeTimedSerializer
from werkzeug.security import generate_password_hash

from chatapp.accounts.hashing import Hashing
from chatapp.bus import ACCESS, Bus
from chatapp.cache import Cache
from chatapp.config import Settings
from chatapp.fair_queue import Attempts
from chatapp.gunicorn_bridge import has_left, note_session
from chatapp.store import AuthSession, Person, Store
from chatapp.visible import is_blank

TOKEN = "token"
SHORTEST_PASSWORD = 10  # characters
CACHE_S = 30.0  # lifetime of a cache entry
MOST_CACHED, MOST_CACHED_BYTES = 10_000, 8 << 20  # of each cache
ENTRY_BYTES, SESSION_BYTES = 450, 900  # of a cached token hash; of a cached session, without its names
MOST_HANDSHAKES = 256  # recent ones: on a bad network a client soon opens another WebSocket
AUTH_SESSION_KEY = "chatapp.sign_in"  # WSGI environ: the AuthSession, if found before Flask
CODE_FILE = "first-run-code"
MOST_ATTEMPTS = 10  # at the first-run code, of an address; half of them expire each minute


class Refused(Exception):
    """Sign-in or first run was refused. `field`: of the form; `message`: for the person."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class TooManyGuesses(Exception):
    """This address tried too many first-run codes."""


class Auth:
    """Sessions and passwords of one instance."""

    def __init__(self, store: Store, settings: Settings, bus: Bus) -> None:
        self._people = store.people
        self._settings = settings
        self._cache: Cache[str, tuple[AuthSession, float]] = Cache(MOST_CACHED, MOST_CACHED_BYTES)  # with expiry
        self._code_attempts = Attempts()
        self.attempts = Attempts()  # to sign in: pages, forms and passwords, by address
        self._hashing = Hashing(settings.data_dir / "hashing.lock" if settings.workers > 1 else None, self.attempts)
        bus.subscribe(ACCESS, lambda _topic: self._cache.clear())

    # Sessions

    def current(self) -> AuthSession | None:
        """Return the session of this request, or None; from the cache if it was seen in the last CACHE_S."""
        if "auth_session" not in g and AUTH_SESSION_KEY in request.environ:
            g.auth_session = request.environ[AUTH_SESSION_KEY]
        if "auth_session" not in g:
            token = session.get(TOKEN)
            g.auth_session = self.check(hash_token(token)) if isinstance(token, str) else None
            if g.auth_session is not None:
                note_session(request.environ)
        found: AuthSession | None = g.auth_session
        return found

    def check(self, token_hash: str, keep: bool = True) -> AuthSession | None:
        """Return the live session of a token's hash, or None; `keep`: cache it."""
        cached = self._cache.get(token_hash)
        if cached is not None and time.monotonic() < cached[1]:
            return cached[0]
        self._cache.drop(token_hash)
        found = self._people.session(token_hash)
        if found is not None and keep:
            self._cache.put(token_hash, (found, trusted_until(found)), entry_size(found))
        return found

    def left_s(self, session: int) -> float:
        """Return the remaining time of a session, s, from the database; 0 if it has ended."""
        return self._people.left_s(session)

    def token_hash(self) -> str:
        """Return the hash of this request's token."""
        return hash_token(str(session.get(TOKEN, "")))

    def start_session(self, person: int) -> None:
        """Start a session in this response, with an empty cookie: the old CSRF secret must not survive."""
        token = secrets.token_urlsafe(32)
        lifetime_s = self._settings.session_lifetime * 86400
        agent = request.headers.get("User-Agent", "")
        self._people.add_session(person, hash_token(token), lifetime_s, request.remote_addr or "", agent)
        session.clear()
        session[TOKEN] = token
        session.permanent = True

    def end_session(self) -> None:
        """End the session of this request."""
        token_hash = self.token_hash()
        self._people.end_session(token_hash)
        self._cache.drop(token_hash)
        session.clear()

    # Passwords

    def sign_in(self, email: str, password: str, address: str) -> int:
        """Return the id of the person with this e-mail and password. Raises Refused, Busy."""
        found = self._people.password_hash(email.strip())
        environ = request.environ
        is_right = self._hashing.check(address, found[1] if found else None, password, lambda: has_left(environ))
        # The password may have been replaced while this waited.
        if found is None or not is_right or self._people.password_hash(email.strip()) != found:
            raise Refused("password", _("The e-mail address or the password is wrong."))
        return found[0]

    def first_run(self, name: str, email: str, password: str, address: str = "") -> Person:
        """Add the first admin. Raises Refused for bad input, AlreadySetUp, Busy."""
        name, email = checked_person(name, email, password)
        return self._people.add_first_admin(name, email, self._hashing.make(address, password))

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
    """Sessions by Cookie header, read as Flask does, for WSGI middleware.

    Cached by a digest of the session cookie, and only if the session is live: unauthenticated clients use no memory.
    """

    def __init__(self, app: Flask, auth: Auth) -> None:
        interface = app.session_interface
        assert isinstance(interface, SecureCookieSessionInterface)
        self._auth = auth
        self._serializer = interface.get_signing_serializer(app)
        self._pair = re.compile(rf"(?:^|;)[ \t]*{re.escape(interface.get_cookie_name(app))}[ \t]*=[ \t]*([^;]*)")
        # (token hash, when it was read) by digest.
        self._known: Cache[bytes, tuple[str, float]] = Cache(MOST_CACHED, MOST_CACHED_BYTES)

    def find(self, header: str) -> AuthSession | None:
        """Return the live session of a Cookie header, or None."""
        value = self.cookie_value(header)
        if not value:
            return None
        key = digest(value)
        known = self._known.get(key)
        if known is not None and time.monotonic() - known[1] <= CACHE_S:
            return self._auth.check(known[0])
        self._known.drop(key)
        token_hash = self.token_hash(value)
        found = self._auth.check(token_hash) if token_hash else None
        if found is not None and token_hash is not None:
            self._known.put(key, (token_hash, time.monotonic()), ENTRY_BYTES)
        return found

    def cookie_value(self, header: str) -> str:
        """Return the raw value of the session cookie in a Cookie header, or ""."""
        found = self._pair.search(header)
        return found[1].rstrip() if found else ""

    def token_hash(self, value: str) -> str | None:
        """Return the hash of the token in a session cookie, uncached; None if its signature is invalid."""
        if self._serializer is None or not value.isascii():
            return None
        try:
            token = self._serializer.loads(value).get(TOKEN)
        except BadSignature:
            return None
        return hash_token(token) if isinstance(token, str) else None


class HandshakeSessionCache:
    """Sessions by Cookie header for WebSocket handshakes; few are cached, as a connection needs only one lookup."""

    def __init__(self, auth: Auth, cookies: SessionCache, bus: Bus) -> None:
        self._auth = auth
        self._cookies = cookies
        # (session, expiry) by digest.
        self._known: Cache[bytes, tuple[AuthSession, float]] = Cache(MOST_HANDSHAKES, MOST_CACHED_BYTES)
        bus.subscribe(ACCESS, lambda _topic: self._known.clear())

    def find(self, header: str) -> AuthSession | None:
        """Return the live session of a Cookie header, or None."""
        value = self._cookies.cookie_value(header)
        key = digest(value)
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        self._known.drop(key)
        token_hash = self._cookies.token_hash(value) if value else None
        found = self._auth.check(token_hash, keep=False) if token_hash else None
        if found is not None:
            self._known.put(key, (found, trusted_until(found)), entry_size(found))
        return found


def trusted_until(auth_session: AuthSession) -> float:
    """Return the expiry of a cached session (monotonic, s)."""
    return time.monotonic() + min(CACHE_S, auth_session.left_s())


def digest(value: str) -> bytes:
    """Return the cache key of a cookie value; of fixed size."""
    return hashlib.sha256(value.encode()).digest()


def entry_size(auth_session: AuthSession) -> int:
    """Estimate the bytes of a cached session."""
    return SESSION_BYTES + 4 * (len(auth_session.person.name) + len(auth_session.person.email))


class UntimedSerializer(URLSafeTimedSerializer):
    """Serializer that signs without a timestamp: after the clock was set back, itsdangerous would refuse one from the
    future, and Flask would overwrite the cookie. A session expires by its row."""

    default_signer = Signer  # type: ignore[assignment]

    def loads(self, s: str | bytes, *_: Any, **__: Any) -> Any:
        """Return the content. Raises BadSignature."""
        return Serializer.loads(self, s)


class Sessions(SecureCookieSessionInterface):
    """Flask's cookie sessions, signed without a timestamp. Requests authenticated before Flask get an empty one."""

    salt = "session"

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer | None:
        """Return the serializer of the session cookie, without a timestamp."""
        how = {"key_derivation": self.key_derivation, "digest_method": self.digest_method}
        key = app.secret_key or ""
        return UntimedSerializer(key, salt=self.salt, serializer=self.serializer, signer_kwargs=how)

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


def first_run_code(data_dir: Path) -> str:
    """Return the first-run code, created once."""
    return _secret_file(data_dir / CODE_FILE, lambda: secrets.token_hex(6).upper())


def secret_key(data_dir: Path) -> str:
    """Return the key that signs cookies, created at the first start."""
    return _secret_file(data_dir / "secret-key", lambda: secrets.token_hex(32))


def _secret_file(path: Path, make: Any) -> str:
    """Return the secret in this file, created atomically: a power cut or a race of two starts must not tear it."""
    if not path.exists() or not path.read_text().strip():
        made = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(made, path)
            made.unlink()
        except FileExistsError:  # another start was faster: its secret holds; or an empty file of a killed one
            if path.read_text().strip():
                made.unlink()
            else:
                made.replace(path)
    return path.read_text().strip()


def checked_person(name: str, email: str, password: str) -> tuple[str, str]:
    """Return name and address, normalised. Raises Refused."""
    name, email = " ".join(name.split())[:200], email.strip()
    if is_blank(name):
        raise Refused("name", _("Say how you want to be called."))
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", email) or len(email) > 320:
        raise Refused("email", _("This does not look like an e-mail address."))
    if len(password) < SHORTEST_PASSWORD:
        raise Refused("password", _("The password needs at least %(least)s characters.", least=SHORTEST_PASSWORD))
    return name, email


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
