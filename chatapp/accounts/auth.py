"""Signing in: sessions in the database, passwords off the event loop, and who may do the first run.

Only this room knows the cookie. The cookie holds a random token; the database holds its hash.
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
CACHE_S = 30.0  # how long a checked session is believed without the database
MOST_CACHED, MOST_CACHED_BYTES = 10_000, 8 << 20  # of each cache; an entry has the size of a name and some strings
ENTRY_BYTES, SIGN_IN_BYTES = 450, 900  # of an entry whose content is of fixed size; of a sign-in without its names
MOST_COMERS = 256  # who opened a WebSocket lately, and may soon do so again because the network is bad
JUDGED = "chatapp.sign_in"  # in a request's environment: whose it is, found out before Flask
CODE_FILE = "first-run-code"
MOST_GUESSES = 10  # of the first-run code, by an address; after a minute half of them are forgotten


class Refused(Exception):
    """Sign-in or first run was refused: which field, and a sentence."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class TooManyGuesses(Exception):
    """This address tried too many codes of the first run lately."""


class Auth:
    """Sessions and passwords of one instance."""

    def __init__(self, store: Store, settings: Settings, bus: Bus) -> None:
        self._people = store.people
        self._settings = settings
        self._cache: Cache[str, tuple[AuthSession, float]] = Cache(MOST_CACHED, MOST_CACHED_BYTES)  # and until when
        self._guesses = Attempts()
        self.attempts = Attempts()  # to sign in: pages, forms and passwords
        self._hashing = Hashing(settings.data_dir / "hashing.lock" if settings.workers > 1 else None, self.attempts)
        bus.subscribe(ACCESS, lambda _topic: self._cache.clear())

    # Sessions

    def current(self) -> AuthSession | None:
        """Whose request this is. Costs no database for a session that was seen lately."""
        if "sign_in" not in g and JUDGED in request.environ:
            g.sign_in = request.environ[JUDGED]
        if "sign_in" not in g:
            token = session.get(TOKEN)
            g.sign_in = self.check(hash_token(token)) if isinstance(token, str) else None
            if g.sign_in is not None:
                note_session(request.environ)
        sign_in: AuthSession | None = g.sign_in
        return sign_in

    def check(self, token_hash: str, keeps: bool = True) -> AuthSession | None:
        """The live session of this token's hash; `keeps` it for whoever will soon ask again."""
        cached = self._cache.get(token_hash)
        if cached is not None and time.monotonic() < cached[1]:
            return cached[0]
        self._cache.drop(token_hash)
        sign_in = self._people.session(token_hash)
        if sign_in is not None and keeps:
            self._cache.put(token_hash, (sign_in, believed_until(sign_in)), size_of(sign_in))
        return sign_in

    def left_s(self, session: int) -> float:
        """How long the session of this number goes on, s; 0 where it has ended. Asks the database."""
        return self._people.left_s(session)

    def token_hash(self) -> str:
        """The hash of this request's token."""
        return hash_token(str(session.get(TOKEN, "")))

    def begin(self, person: int) -> None:
        """Start a session in this response. The old cookie's content, its CSRF secret too, is dropped."""
        token = secrets.token_urlsafe(32)
        lifetime_s = self._settings.session_lifetime * 86400
        agent = request.headers.get("User-Agent", "")
        self._people.add_session(person, hash_token(token), lifetime_s, request.remote_addr or "", agent)
        session.clear()
        session[TOKEN] = token
        session.permanent = True

    def end(self) -> None:
        """Sign out."""
        token_hash = self.token_hash()
        self._people.end_session(token_hash)
        self._cache.drop(token_hash)
        session.clear()

    # Passwords

    def sign_in(self, email: str, password: str, address: str) -> int:
        """The number of the person with this e-mail and password, asked for from an address. Raises Refused, Busy."""
        found = self._people.password_hash(email.strip())
        environ = request.environ
        is_right = self._hashing.check(address, found[1] if found else None, password, lambda: has_left(environ))
        # It may have waited, and the password been replaced meanwhile.
        if found is None or not is_right or self._people.password_hash(email.strip()) != found:
            raise Refused("password", "The e-mail address or the password is wrong.")
        return found[0]

    def first_run(self, name: str, email: str, password: str, address: str = "") -> Person:
        """Make the first admin. Raises Refused for bad input, AlreadySetUp if somebody was faster, Busy."""
        name, email = checked_person(name, email, password)
        return self._people.add_first_admin(name, email, self._hashing.make(address, password))

    # First run: by the code that the start printed, wherever one comes from. Behind a proxy all seem to be local.

    def check_code(self, code: str, address: str) -> None:
        """Raise Refused unless this is the code of the start, TooManyGuesses where an address had its guesses."""
        if round(self._guesses.count(address, 0)) >= MOST_GUESSES:
            raise TooManyGuesses
        path = self._settings.data_dir / CODE_FILE
        expected = path.read_text().strip() if path.exists() else ""
        if not expected or not hmac.compare_digest(expected.encode(), code.strip().upper().encode()):
            self._guesses.count(address)
            raise Refused("code", _("Enter the code that the server printed when it started."))


class Cookies:
    """Whose a Cookie header is, read as Flask does, for what answers before Flask.

    Kept by a digest of the session's cookie alone, and only where the session is live: neither a stranger nor what else
    stands in the header takes any memory.
    """

    def __init__(self, app: Flask, auth: Auth) -> None:
        interface = app.session_interface
        assert isinstance(interface, SecureCookieSessionInterface)
        self._auth = auth
        self._serializer = interface.get_signing_serializer(app)
        self._pair = re.compile(rf"(?:^|;)[ \t]*{re.escape(interface.get_cookie_name(app))}[ \t]*=[ \t]*([^;]*)")
        # The token's hash by the digest, and when it was read.
        self._known: Cache[bytes, tuple[str, float]] = Cache(MOST_CACHED, MOST_CACHED_BYTES)

    def sign_in(self, header: str) -> AuthSession | None:
        """The live session of a Cookie header; None where there is none, or its signature is not ours."""
        value = self.own(header)
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

    def own(self, header: str) -> str:
        """The value of the session's cookie, as it stands in the header; empty where there is none."""
        found = self._pair.search(header)
        return found[1].rstrip() if found else ""

    def token_hash(self, value: str) -> str | None:
        """The hash of the token in a session's cookie, which is not kept; None where its signature is not ours."""
        if self._serializer is None or not value.isascii():
            return None
        try:
            token = self._serializer.loads(value).get(TOKEN)
        except BadSignature:
            return None
        return hash_token(token) if isinstance(token, str) else None


class Comers:
    """Who opens a WebSocket, by the Cookie header. That is asked once for each, so that only the newest are kept."""

    def __init__(self, auth: Auth, cookies: Cookies, bus: Bus) -> None:
        self._auth = auth
        self._cookies = cookies
        # By the digest of the session's cookie, and until when it is believed.
        self._known: Cache[bytes, tuple[AuthSession, float]] = Cache(MOST_COMERS, MOST_CACHED_BYTES)
        bus.subscribe(ACCESS, lambda _topic: self._known.clear())

    def sign_in(self, header: str) -> AuthSession | None:
        """The live session of a Cookie header."""
        value = self._cookies.own(header)
        key = digest(value)
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        self._known.drop(key)
        token_hash = self._cookies.token_hash(value) if value else None
        found = self._auth.check(token_hash, keeps=False) if token_hash else None
        if found is not None:
            self._known.put(key, (found, believed_until(found)), size_of(found))
        return found


def believed_until(sign_in: AuthSession) -> float:
    """Until when a session is believed without the database (monotonic clock, s)."""
    return time.monotonic() + min(CACHE_S, sign_in.left_s())


def digest(value: str) -> bytes:
    """What stands for a cookie's value in a cache: of one size, however long the value is."""
    return hashlib.sha256(value.encode()).digest()


def size_of(sign_in: AuthSession) -> int:
    """About how many bytes a cache's entry of this session takes."""
    return SIGN_IN_BYTES + 4 * (len(sign_in.person.name) + len(sign_in.person.email))


class Untimed(URLSafeTimedSerializer):
    """Signs without a time. When a session ends is said by its row: a signature that looks younger than the server's
    clock, which was set back, would be refused, and its cookie overwritten."""

    default_signer = Signer  # type: ignore[assignment]

    def loads(self, s: str | bytes, *_: Any, **__: Any) -> Any:
        """The content. Raises BadSignature."""
        return Serializer.loads(self, s)


class Sessions(SecureCookieSessionInterface):
    """Flask's sessions, signed without a time, but for requests that were judged before Flask: these need none."""

    salt = "session"

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer | None:
        """What signs the cookie and reads it."""
        how = {"key_derivation": self.key_derivation, "digest_method": self.digest_method}
        key = app.secret_key or ""
        return Untimed(key, salt=self.salt, serializer=self.serializer, signer_kwargs=how)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Set the cookie where it changed. How long it is kept is said as a duration, which browsers prefer to the time
        of the server's clock."""
        super().save_session(app, session, response)
        name, lasts = f"{self.get_cookie_name(app)}=", round(app.permanent_session_lifetime.total_seconds())
        lines = response.headers.getlist("Set-Cookie")
        if session.permanent and session and any(line.startswith(name) for line in lines):
            lines = [f"{line}; Max-Age={lasts}" if line.startswith(name) else line for line in lines]
            response.headers.setlist("Set-Cookie", lines)

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """The session of a request."""
        return self.session_class() if JUDGED in request.environ else super().open_session(app, request)


def first_run_code(data_dir: Path) -> str:
    """The code of an empty installation, made once."""
    return _secret_file(data_dir / CODE_FILE, lambda: secrets.token_hex(6).upper())


def secret_key(data_dir: Path) -> str:
    """The key that signs cookies, made at the first start."""
    return _secret_file(data_dir / "secret-key", lambda: secrets.token_hex(32))


def _secret_file(path: Path, make: Any) -> str:
    """The secret in this file, made once: whole or not at all, also when the machine stops or two starts race."""
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
        except FileExistsError:  # empty, left by a start that was killed; or another start was faster: its secret holds
            if path.read_text().strip():
                made.unlink()
            else:
                made.replace(path)
    return path.read_text().strip()


def checked_person(name: str, email: str, password: str) -> tuple[str, str]:
    """Name and address, tidied. Raises Refused."""
    name, email = " ".join(name.split())[:200], email.strip()
    if is_blank(name):
        raise Refused("name", "Say how you want to be called.")
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", email) or len(email) > 320:
        raise Refused("email", "This does not look like an e-mail address.")
    if len(password) < SHORTEST_PASSWORD:
        raise Refused("password", f"The password needs at least {SHORTEST_PASSWORD} characters.")
    return name, email


def hash_password(password: str) -> str:
    """A slow hash, for commands: no event loop waits for it."""
    return generate_password_hash(password)


def hash_token(token: str) -> str:
    """What the database keeps of a session's token."""
    return hashlib.sha256(token.encode()).hexdigest()


def origin_is_allowed(settings: Settings, origin: str, requested: str) -> bool:
    """Whether a WebSocket may be opened from this Origin: ours as requested, PUBLIC_URL's, or a listed one."""
    return origin != "" and origin.lower() in {item.lower() for item in expected_origins(settings, requested)}


def expected_origins(settings: Settings, requested: str) -> list[str]:
    """The origins that may open a WebSocket where the server was asked at `requested` (scheme, host and port)."""
    expected = [requested.rstrip("/"), *settings.allowed_origins]
    if settings.public_url:
        parts = urlsplit(settings.public_url)
        expected.append(f"{parts.scheme}://{parts.netloc}")
    return expected
