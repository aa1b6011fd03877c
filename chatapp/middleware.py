"""WSGI middleware from the outside in, and the headers of every response.

ProxyMiddleware      strips the URL prefix, and trusts the forwarding headers of declared proxies only
RequestMiddleware    refuses malformed hosts and cookies, and limits bodies by the request's head, before they are read
AdmissionMiddleware  gives requests without a session a share of the event loop's time

Polls and WebSocket upgrades are answered between the last two (transports/).
"""

import logging
import re
import time
from collections.abc import Iterable
from functools import lru_cache, partial
from io import BytesIO
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import gevent
from flask import Flask, Response, request
from werkzeug.middleware.proxy_fix import ProxyFix

from chatapp.accounts.auth import AUTH_SESSION_KEY, SessionCache
from chatapp.assistant.own_files import LARGEST_UPLOAD
from chatapp.concurrency import has_loop
from chatapp.config import Settings, is_within, plain_address
from chatapp.fair_queue import Attempts, FairQueue, Full, Refusals
from chatapp.gunicorn_bridge import assign_connection, end_request, has_body, has_left, is_cut, note_session, skip_body
from chatapp.staticfiles import UNKEPT, StaticFiles
from chatapp.store import StorageUnavailable
from chatapp.wellformed import COOKIES, LONGEST_COOKIES, PLAIN, WRONG_HOST, is_host, shown

WEBSOCKET_SCHEMES = {"wss": "https", "ws": "http"}  # Traefik forwards an upgrade's scheme as ws or wss
MOST_PEERS = 4096  # in the cache of declared addresses
PROBE_PATHS = ("/healthz", "/readyz")  # without the prefix, and without waiting: a load balancer's

BODY_LIMIT = "chatapp.longest_body"  # key of a request's environment
LARGEST_BODY = 512 << 10  # bytes; a report of 200 events or a message of 20,000 characters fits easily
SMALL_BODY = 16 << 10  # bytes; for every other path
LARGE_BODY_PATHS = ("/c", "/connection/events", "/knowledge/files/preview")
UPLOAD_PATH = "/knowledge/files/upload"
LARGE_BODY_SUFFIXES = ("/messages", "/edit", "/wishes", "/attachments")
TOO_LARGE = "This is longer than anything that this address takes.\n"
ANONYMOUS_PATHS = ("/sign-in", "/first-run", "/network-test")  # forms for people without a session
ANONYMOUS_PREFIX = "/link/"  # and these

PAGE_INTERVAL_S = 0.02  # between two pages for strangers: they get some tenth of the event loop
FILE_INTERVAL_S = 0.003  # between two files for them: a page needs some thirty
LAG_FACTOR = 3.0  # the interval grows to so many times the event loop's lag,
LONGEST_INTERVAL_S = 0.25  # but not beyond this
MOST_PAGES_WAITING = 250  # some 5 s
MOST_FILES_WAITING = 100  # some 0.3 s
OVERLOADED = "Too many people who are not signed in ask for pages at this moment. Try again in a few seconds.\n"
RETRY_S = 5

log = logging.getLogger("chatapp.requests")


def _log_refusal(environ: WSGIEnvironment, reason: str) -> None:
    log.warning("refused a request from %s: %s", environ.get("REMOTE_ADDR", "-"), reason)


def _plain(start_response: StartResponse, status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    """Answer with plain text, which costs neither Flask nor a template."""
    body = text.encode()
    start_response(status, [*PLAIN, *headers, ("Content-Length", str(len(body)))])
    return [body]


class ProxyMiddleware:
    """Records the TCP peer, strips the URL prefix, and applies the forwarding headers of declared proxies."""

    def __init__(self, app: WSGIApplication, settings: Settings) -> None:
        self._app = app
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=0)
        self._settings = settings
        self._is_declared = lru_cache(MOST_PEERS)(partial(is_within, settings.trusted_proxies))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR", "")
        environ["chatapp.peer"] = peer
        if not self._strip_prefix(environ):
            return _plain(start_response, "404 NOT FOUND", "")
        if not self._is_declared(peer):
            return self._app(environ, start_response)
        _normalize_scheme(environ)
        _normalize_client_address(environ)
        return self._behind_proxy(environ, start_response)

    def _strip_prefix(self, environ: WSGIEnvironment) -> bool:
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


def _normalize_scheme(environ: WSGIEnvironment) -> None:
    header = environ.get("HTTP_X_FORWARDED_PROTO", "")
    if "ws" in header.lower():
        schemes = (scheme.strip().lower() for scheme in header.split(","))
        environ["HTTP_X_FORWARDED_PROTO"] = ",".join(WEBSOCKET_SCHEMES.get(scheme, scheme) for scheme in schemes)


def _normalize_client_address(environ: WSGIEnvironment) -> None:
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
    """Refuses malformed Host headers (400) and too long cookies (431), limits bodies, and drops those of requests that
    need a session and have none."""

    def __init__(self, app: WSGIApplication, sessions: SessionCache) -> None:
        self._app = app
        self._sessions = sessions

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host, cookies = environ.get("HTTP_HOST"), environ.get("HTTP_COOKIE", "")
        if host is not None and not is_host(host):
            _log_refusal(environ, f"host {shown(host)}")
            return _plain(start_response, "400 BAD REQUEST", WRONG_HOST)
        if len(cookies) > LONGEST_COOKIES:
            _log_refusal(environ, f"{len(cookies)} characters of cookies")
            return _plain(start_response, "431 REQUEST HEADER FIELDS TOO LARGE", COOKIES)
        if not cookies.isascii():  # Flask decodes all cookies as UTF-8; ours are ASCII, but other sites' may not be
            environ["HTTP_COOKIE"] = cookies.encode("ascii", "replace").decode()
        assign_connection(environ, environ.get("chatapp.peer", ""))
        if has_body(environ) and not self._limit(environ):
            return _plain(start_response, "413 CONTENT TOO LARGE", TOO_LARGE)
        return self._app(environ, start_response)

    def _limit(self, environ: WSGIEnvironment) -> bool:
        """Set the body's limit. Return False for a stranger's oversized body: a plain-text 413 then, no page."""
        path, header = environ.get("PATH_INFO", ""), environ.get("HTTP_COOKIE", "")
        is_signed_in = self._is_signed_in(header)
        if is_signed_in:
            note_session(environ)
        elif not (path in ANONYMOUS_PATHS or path.startswith(ANONYMOUS_PREFIX) or self._has_signed_cookie(header)):
            skip_body(environ)
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(), "0"
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            return True
        is_large = path in LARGE_BODY_PATHS or path.endswith(LARGE_BODY_SUFFIXES)
        is_upload = path == UPLOAD_PATH and is_signed_in
        environ[BODY_LIMIT] = LARGEST_UPLOAD if is_upload else LARGEST_BODY if is_large else SMALL_BODY
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

    def wait(self, environ: WSGIEnvironment) -> None:
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

    def __init__(self, app: WSGIApplication, sessions: SessionCache, static: StaticFiles, attempts: Attempts) -> None:
        self._app = app
        self._sessions = sessions
        self._static = static
        self._refusals = Refusals()
        self._pages = Pacer(PAGE_INTERVAL_S, MOST_PAGES_WAITING, attempts)
        self._files = Pacer(FILE_INTERVAL_S, MOST_FILES_WAITING, Attempts())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            if has_loop() and self._is_anonymous(environ):
                self._wait(environ)
        except Full:
            self._refusals.wait()
            if is_cut(environ):
                end_request()
            skip_body(environ)  # and all further requests of this connection
            return _plain(start_response, "503 SERVICE UNAVAILABLE", OVERLOADED, ("Retry-After", str(RETRY_S)))
        if is_cut(environ):  # while it waited
            end_request()
        return self._app(environ, start_response)

    def _wait(self, environ: WSGIEnvironment) -> None:
        path = environ.get("PATH_INFO", "")
        is_read = environ.get("REQUEST_METHOD") in ("GET", "HEAD")
        if is_read and self._static.has(path):
            self._files.wait(environ)
        elif not is_read or path not in PROBE_PATHS:  # an unknown path, too: its 404 is a page
            self._pages.wait(environ)

    def _is_anonymous(self, environ: WSGIEnvironment) -> bool:
        if AUTH_SESSION_KEY in environ:
            return False
        try:
            cookies = environ.get("HTTP_COOKIE", "")
            is_live = self._sessions.find(cookies) is not None or self._sessions.is_renewable(cookies)
        except StorageUnavailable:  # the cookie's signature is ours; Flask reports the error
            return False
        if is_live:
            note_session(environ)
        return not is_live


# Headers

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self' {socket}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PICTURE_POLICY = "default-src 'none'"  # a picture can be opened as a document
HSTS_S = 31_536_000  # a year
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

# Static files that are no documents do without their headers, which would weigh more than some of them.
_WINDOW = ("Cross-Origin-Opener-Policy", "Permissions-Policy")
_PART = ("Content-Security-Policy", *_WINDOW)
NOT_OF = {"text/css": _PART, "text/javascript": (*_PART, "Referrer-Policy"), "image/svg+xml": _WINDOW}


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
        left_out = NOT_OF.get(response.mimetype or "", ()) if request.endpoint == "static" else ()
        if request.endpoint == "static" and response.mimetype == "image/svg+xml":
            response.headers.setdefault("Content-Security-Policy", PICTURE_POLICY)
        for name, value in answer_headers(request.is_secure, request.host, is_public_https):
            if name not in left_out:
                response.headers.setdefault(name, value)
        return response
