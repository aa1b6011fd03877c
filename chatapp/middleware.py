"""WSGI middleware from the outside in, and the headers of every response.

ProxyMiddleware      strips the URL prefix, and trusts the forwarding headers of declared proxies only
RequestMiddleware    refuses malformed hosts and cookies
BodyMiddleware       limits bodies by the request's head, before they are read
AdmissionMiddleware  gives requests without a session a share of the event loop's time

Polls and WebSocket upgrades are answered between the last two (transports/).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from typing import Any

import gevent
from flask import Flask, Response, request
from werkzeug.middleware.proxy_fix import ProxyFix

from chatapp.accounts.auth import AUTH_SESSION_KEY, SessionCache
from chatapp.concurrency import has_loop
from chatapp.config import Settings, plain_address
from chatapp.fair_queue import Attempts, FairQueue, Full, Refusals
from chatapp.gunicorn_bridge import assign_connection, end_request, has_body, has_left, is_cut, note_session, skip_body
from chatapp.staticfiles import StaticFiles
from chatapp.store import StorageUnavailable
from chatapp.transports.integrity import UNKEPT
from chatapp.wellformed import COOKIES, LONGEST_COOKIES, PLAIN, WRONG_HOST, is_host, shown

WEBSOCKET_SCHEMES = {"wss": "https", "ws": "http"}  # Traefik forwards an upgrade's scheme as ws or wss
MOST_PEERS = 4096  # in the cache of declared addresses
MOST_HOSTS = 256  # in the set of checked hosts
PROBE_PATHS = ("/healthz", "/readyz")  # without the prefix, and without waiting: a load balancer's

BODY_LIMIT = "chatapp.longest_body"  # key of a request's environment
LARGEST_BODY = 512 << 10  # bytes; a report of 200 events or a message of 20,000 characters fits easily
SMALL_BODY = 16 << 10  # bytes; for every other path
LARGE_BODY_PATHS = ("/c", "/connection/events")
LARGE_BODY_SUFFIX = "/messages"
TOO_LARGE = "This is longer than anything that this address takes.\n"
ANONYMOUS_PATHS = ("/sign-in", "/first-run")  # forms for people without a session

PAGE_INTERVAL_S = 0.02  # between two pages for strangers: they get some tenth of the event loop
FILE_INTERVAL_S = 0.003  # between two files for them: a page needs some thirty
LAG_FACTOR = 3.0  # the interval grows to so many times the event loop's lag,
LONGEST_INTERVAL_S = 0.25  # but not beyond this
MOST_PAGES_WAITING = 250  # some 5 s
MOST_FILES_WAITING = 100  # some 0.3 s
OVERLOADED = b"Too many people who are not signed in ask for pages at this moment. Try again in a few seconds.\n"
RETRY_S = 5

log = logging.getLogger("chatapp.requests")


class ProxyMiddleware:
    """Records the TCP peer, strips the URL prefix, and applies the forwarding headers of declared proxies."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=0)
        self._settings = settings
        self._is_declared = lru_cache(MOST_PEERS)(self._is_in_declared_network)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR", "")
        environ["chatapp.peer"] = peer
        if not self._strip_prefix(environ):
            start_response("404 NOT FOUND", [*PLAIN, ("Content-Length", "0")])
            return []
        is_declared = self._is_declared(peer)
        if is_declared:
            _normalize_scheme(environ)
            _normalize_client_address(environ)
        app = self._behind_proxy if is_declared else self._app
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    def _is_in_declared_network(self, peer: str) -> bool:
        return any(peer in network for network in self._settings.trusted_proxies)

    def _strip_prefix(self, environ: dict[str, Any]) -> bool:
        """Return False for a path outside the prefix."""
        prefix = self._settings.url_prefix
        path = environ.get("PATH_INFO", "")
        if not prefix or path in PROBE_PATHS:
            return True
        if path != prefix and not path.startswith(prefix + "/"):
            return False
        environ["SCRIPT_NAME"] = prefix
        environ["PATH_INFO"] = path.removeprefix(prefix) or "/"
        return True


def _normalize_scheme(environ: dict[str, Any]) -> None:
    header = environ.get("HTTP_X_FORWARDED_PROTO", "")
    if "ws" in header.lower():
        schemes = (scheme.strip().lower() for scheme in header.split(","))
        environ["HTTP_X_FORWARDED_PROTO"] = ",".join(WEBSOCKET_SCHEMES.get(scheme, scheme) for scheme in schemes)


def _normalize_client_address(environ: dict[str, Any]) -> None:
    """Keep the last element, which the proxy added, if it is an address: it goes into logs and counters."""
    header = environ.pop("HTTP_X_FORWARDED_FOR", None)
    address = forwarded_address(header.rpartition(",")[2]) if header else ""
    if address:
        environ["HTTP_X_FORWARDED_FOR"] = address


def forwarded_address(text: str) -> str:
    """Parse an address in the forms of proxies, with or without a port (`[::1]:80`); "" if it is invalid."""
    text = text.strip().strip('"')
    bare = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+):\d+", text)
    try:
        return str(plain_address(bare[1] or bare[2] if bare else "" if "%" in text else text))
    except ValueError:
        return ""


class RequestMiddleware:
    """Refuses malformed Host headers (400) and too long cookies (431)."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._hosts: set[str] = set()  # valid ones, hence of bounded length

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        host, cookies = environ.get("HTTP_HOST"), environ.get("HTTP_COOKIE", "")
        if host is not None and host not in self._hosts:
            if not is_host(host):
                return _refuse(environ, start_response, "400 BAD REQUEST", WRONG_HOST, f"host {shown(host)}")
            if len(self._hosts) >= MOST_HOSTS:
                self._hosts.clear()
            self._hosts.add(host)
        if len(cookies) > LONGEST_COOKIES:
            reason = f"{len(cookies)} characters of cookies"
            return _refuse(environ, start_response, "431 REQUEST HEADER FIELDS TOO LARGE", COOKIES, reason)
        if not cookies.isascii():  # Flask decodes all cookies as UTF-8; ours are ASCII, but other sites' may not be
            environ["HTTP_COOKIE"] = cookies.encode("ascii", "replace").decode()
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer


def _refuse(environ: dict[str, Any], start_response: Any, status: str, text: str, reason: str) -> Iterable[bytes]:
    log.warning("refused a request from %s: %s", environ.get("REMOTE_ADDR", "-"), reason)
    body = text.encode()
    start_response(status, [*PLAIN, ("Content-Length", str(len(body)))])
    return [body]


class BodyMiddleware:
    """Limits bodies, and drops those of requests that need a session and have none."""

    def __init__(self, app: Any, sessions: SessionCache) -> None:
        self._app = app
        self._sessions = sessions

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assign_connection(environ, environ.get("chatapp.peer", ""))
        if has_body(environ) and not self._limit(environ):
            text = TOO_LARGE.encode()
            start_response("413 CONTENT TOO LARGE", [*PLAIN, ("Content-Length", str(len(text)))])
            return [text]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def _limit(self, environ: dict[str, Any]) -> bool:
        """Set the body's limit. Return False for a stranger's oversized body: a plain-text 413 then, no page."""
        path, header = environ.get("PATH_INFO", ""), environ.get("HTTP_COOKIE", "")
        is_signed_in = self._is_signed_in(header)
        if is_signed_in:
            note_session(environ)
        elif path not in ANONYMOUS_PATHS and not self._has_signed_cookie(header):
            skip_body(environ)
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(), "0"
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            return True
        is_large = path in LARGE_BODY_PATHS or path.endswith(LARGE_BODY_SUFFIX)
        environ[BODY_LIMIT] = LARGEST_BODY if is_large else SMALL_BODY
        length = environ.get("CONTENT_LENGTH", "")
        is_too_large = length.isdecimal() and int(length) > environ[BODY_LIMIT]
        if is_too_large:
            skip_body(environ)
        return is_signed_in or not is_too_large

    def _is_signed_in(self, header: str) -> bool:
        try:
            return self._sessions.find(header) is not None
        except StorageUnavailable:  # Flask reports it; until then the session counts as expired
            return False

    def _has_signed_cookie(self, header: str) -> bool:
        """Return True if we signed the cookie. Without the body Flask reports a CSRF error, not "signed out"."""
        value = self._sessions.cookie_value(header)
        return bool(value) and self._sessions.token_hash(value) is not None


def limit_body() -> None:
    """Set Flask's limit, for a 413 before the body is read. For `before_request`, before anything reads a form."""
    if BODY_LIMIT in request.environ:
        request.max_content_length = request.environ[BODY_LIMIT]


class Pacer:
    """Starts one request after another, at an interval that grows with the event loop's lag."""

    def __init__(self, interval_s: float, most_waiting: int, attempts: Attempts) -> None:
        self._interval_s = interval_s
        self._queue = FairQueue(most_waiting, attempts)
        self._next_at = 0.0  # monotonic clock, s
        self._is_running = False

    def wait(self, environ: dict[str, Any]) -> None:
        """Return when this request may start. Raises Full."""
        address = environ.get("REMOTE_ADDR", "")
        attempts, now = self._queue.attempts.count(address), time.monotonic()
        if not self._is_running and now >= self._next_at:
            self._next_at = now + self._interval_s
            return
        if not self._is_running:
            self._is_running = True
            gevent.spawn(self._run)
        self._queue.wait(attempts, has_left=lambda: has_left(environ))

    def _run(self) -> None:
        try:
            while True:
                gevent.sleep(max(0.0, self._next_at - time.monotonic()))
                now = time.monotonic()
                lag_s = max(0.0, now - self._next_at)
                if not self._queue.let_next():
                    return
                self._next_at = now + min(LONGEST_INTERVAL_S, max(self._interval_s, LAG_FACTOR * lag_s))
        finally:
            self._is_running = False


class AdmissionMiddleware:
    """Makes requests without a session wait their turn. `attempts` counts pages and passwords by address."""

    def __init__(self, app: Any, sessions: SessionCache, static: StaticFiles, attempts: Attempts) -> None:
        self._app = app
        self._sessions = sessions
        self._static = static
        self._refusals = Refusals()
        self._pages = Pacer(PAGE_INTERVAL_S, MOST_PAGES_WAITING, attempts)
        self._files = Pacer(FILE_INTERVAL_S, MOST_FILES_WAITING, Attempts())

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            if has_loop() and self._is_anonymous(environ):
                self._wait(environ)
        except Full:
            self._refusals.wait()
            if is_cut(environ):
                end_request()
            skip_body(environ)  # and all further requests of this connection
            start_response("503 SERVICE UNAVAILABLE", [*PLAIN, ("Retry-After", str(RETRY_S))])
            return [OVERLOADED]
        if is_cut(environ):  # while it waited
            end_request()
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def _wait(self, environ: dict[str, Any]) -> None:
        path = environ.get("PATH_INFO", "")
        is_read = environ.get("REQUEST_METHOD") in ("GET", "HEAD")
        if is_read and self._static.has(path):
            self._files.wait(environ)
        elif not is_read or path not in PROBE_PATHS:  # an unknown path, too: its 404 is a page
            self._pages.wait(environ)

    def _is_anonymous(self, environ: dict[str, Any]) -> bool:
        if AUTH_SESSION_KEY in environ:
            return False
        try:
            is_live = self._sessions.find(environ.get("HTTP_COOKIE", "")) is not None
        except StorageUnavailable:  # the cookie's signature is ours; Flask reports the error
            return False
        if is_live:
            note_session(environ)
        return not is_live


# Headers

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self' {socket}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'"
)
HSTS_S = 31_536_000  # a year
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@lru_cache(maxsize=100)
def answer_headers(is_secure: bool, host: str, is_public_https: bool = False) -> list[tuple[str, str]]:
    """Return the headers of every response of this host; `is_public_https`: by PUBLIC_URL."""
    policy = POLICY.format(socket=f"ws{'s' if is_secure else ''}://{host}")
    strict = [("Strict-Transport-Security", f"max-age={HSTS_S}")] if is_public_https else []
    return [("Content-Security-Policy", policy), *HEADERS.items(), *strict, ("Cache-Control", UNKEPT)]


def init_headers(app: Flask) -> None:
    """Add the headers to every response of the app."""
    is_public_https = bool(app.config["SESSION_COOKIE_SECURE"])

    @app.after_request
    def headers(response: Response) -> Response:
        for name, value in answer_headers(request.is_secure, request.host, is_public_https):
            response.headers.setdefault(name, value)
        return response
