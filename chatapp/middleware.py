"""What every request passes before Flask, from the outside in, and the headers that every answer gets.

ProxyMiddleware      takes the URL prefix off, and believes the forwarding headers of declared proxies only
RequestMiddleware    refuses what is not well formed: hosts, cookies
BodyMiddleware       bounds bodies by their head, before anything of them is in memory
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
from chatapp.gunicorn_bridge import end_request, has_body, has_left, is_cut, leave_body, note_address, note_session
from chatapp.staticfiles import StaticFiles
from chatapp.store import StorageUnavailable
from chatapp.transports.integrity import UNKEPT
from chatapp.wellformed import COOKIES, LONGEST_COOKIES, PLAIN, WRONG_HOST, is_host, shown

WEBSOCKET_SCHEMES = {"wss": "https", "ws": "http"}  # what Traefik says of an upgrade's scheme
MOST_PEERS = 4096  # addresses that are known to be a proxy's, or not

KNOWN_HOSTS = 256

LONGEST = "chatapp.longest_body"  # in a request's environment
LONG_BYTES = 512 << 10  # a report of 200 events or a message of 20,000 characters, with room
SHORT_BYTES = 16 << 10  # everything else
LONG_PATHS = ("/c", "/connection/events")  # and whatever ends in:
LONG_ENDS = "/messages"
TOO_LONG = "This is longer than anything that this address takes.\n"
FOR_STRANGERS = ("/sign-in", "/first-run")

APART_S = 0.02  # between two pages for strangers: they get some tenth of the event loop
FILES_APART_S = 0.003  # between two files for them: a page needs some thirty
GIVE_WAY = 3.0  # the loop is late: wait so many times longer than that before the next one
LONGEST_S = 0.25  # between two, however late the loop is
MOST_WAITING = 250  # pages: some 5 s
MOST_FILES_WAITING = 100  # some 0.3 s
FREE = ("/healthz", "/readyz")  # cheap, and a balancer must not wait for them
WORDS = b"Too many people who are not signed in ask for pages at this moment. Try again in a few seconds.\n"
RETRY_S = 5

log = logging.getLogger("chatapp.requests")


class ProxyMiddleware:
    """WSGI middleware. Remembers the peer, believes declared proxies only, and takes the prefix off."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=0)
        self._settings = settings
        self._is_declared = lru_cache(MOST_PEERS)(self._is_in_a_declared_network)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR", "")
        environ["chatapp.peer"] = peer
        if not self._take_prefix(environ):
            start_response("404 NOT FOUND", [*PLAIN, ("Content-Length", "0")])
            return []
        is_declared = self._is_declared(peer)
        if is_declared:
            _name_scheme_as_http_does(environ)
            _believe_only_addresses(environ)
        app = self._behind_proxy if is_declared else self._app
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    def _is_in_a_declared_network(self, peer: str) -> bool:
        return any(peer in network for network in self._settings.trusted_proxies)

    def _take_prefix(self, environ: dict[str, Any]) -> bool:
        prefix = self._settings.url_prefix
        path = environ.get("PATH_INFO", "")
        if not prefix or path in ("/healthz", "/readyz"):
            return True
        if path != prefix and not path.startswith(prefix + "/"):
            return False
        environ["SCRIPT_NAME"] = prefix
        environ["PATH_INFO"] = path.removeprefix(prefix) or "/"
        return True


def _name_scheme_as_http_does(environ: dict[str, Any]) -> None:
    said = environ.get("HTTP_X_FORWARDED_PROTO", "")
    if "ws" in said.lower():
        names = (name.strip().lower() for name in said.split(","))
        environ["HTTP_X_FORWARDED_PROTO"] = ",".join(WEBSOCKET_SCHEMES.get(name, name) for name in names)


def _believe_only_addresses(environ: dict[str, Any]) -> None:
    """Leave the client's address, which the proxy wrote last, or nothing where it is none: it is logged and counted."""
    said = environ.pop("HTTP_X_FORWARDED_FOR", None)
    address = forwarded_address(said.rpartition(",")[2]) if said else ""
    if address:
        environ["HTTP_X_FORWARDED_FOR"] = address


def forwarded_address(text: str) -> str:
    """An address as proxies write it, also with a port (`[::1]:80`); empty where it is none."""
    text = text.strip().strip('"')
    bare = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+):\d+", text)
    try:
        return str(plain_address(bare[1] or bare[2] if bare else "" if "%" in text else text))
    except ValueError:
        return ""


class RequestMiddleware:
    """WSGI middleware: lets through what is well formed."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._hosts: set[str] = set()  # that were found to be hosts; none is longer than a name may be

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        host, cookies = environ.get("HTTP_HOST"), environ.get("HTTP_COOKIE", "")
        if host is not None and host not in self._hosts:
            if not is_host(host):
                return _refuse(environ, start_response, "400 BAD REQUEST", WRONG_HOST, f"host {shown(host)}")
            if len(self._hosts) >= KNOWN_HOSTS:
                self._hosts.clear()
            self._hosts.add(host)
        if len(cookies) > LONGEST_COOKIES:
            said = f"{len(cookies)} characters of cookies"
            return _refuse(environ, start_response, "431 REQUEST HEADER FIELDS TOO LARGE", COOKIES, said)
        if not cookies.isascii():  # other sites': ours are ASCII, and Flask wants all of them to be UTF-8
            environ["HTTP_COOKIE"] = cookies.encode("ascii", "replace").decode()
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer


def _refuse(environ: dict[str, Any], start_response: Any, status: str, words: str, said: str) -> Iterable[bytes]:
    log.warning("refused a request from %s: %s", environ.get("REMOTE_ADDR", "-"), said)
    body = words.encode()
    start_response(status, [*PLAIN, ("Content-Length", str(len(body)))])
    return [body]


class BodyMiddleware:
    """WSGI middleware: bounds bodies, and leaves those unread that a stranger sends where a session is needed."""

    def __init__(self, app: Any, cookies: SessionCache) -> None:
        self._app = app
        self._cookies = cookies

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        note_address(environ, environ.get("chatapp.peer", ""))
        if has_body(environ) and not self._bound(environ):
            words = TOO_LONG.encode()
            start_response("413 CONTENT TOO LARGE", [*PLAIN, ("Content-Length", str(len(words)))])
            return [words]
        behind: Iterable[bytes] = self._app(environ, start_response)
        return behind

    def _bound(self, environ: dict[str, Any]) -> bool:
        """False where it is a stranger's and too long: that is said without a page."""
        path, header = environ.get("PATH_INFO", ""), environ.get("HTTP_COOKIE", "")
        is_known = self._is_signed_in(header)
        if is_known:
            note_session(environ)
        elif path not in FOR_STRANGERS and not self._has_ended(header):
            leave_body(environ)
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(), "0"
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            return True
        is_long = path in LONG_PATHS or path.endswith(LONG_ENDS)
        environ[LONGEST] = LONG_BYTES if is_long else SHORT_BYTES
        length = environ.get("CONTENT_LENGTH", "")
        is_too_long = length.isdecimal() and int(length) > environ[LONGEST]
        if is_too_long:
            leave_body(environ)
        return is_known or not is_too_long

    def _is_signed_in(self, header: str) -> bool:
        try:
            return self._cookies.find(header) is not None
        except StorageUnavailable:  # Flask says so; until then it is somebody's whose session has ended
            return False

    def _has_ended(self, header: str) -> bool:
        """Whether it is of somebody whose session has ended: they are told so, and not that the form is too old."""
        value = self._cookies.cookie_value(header)
        return bool(value) and self._cookies.token_hash(value) is not None


def bound_body() -> None:
    """Have Flask refuse what is longer (413), before it reads. For `before_request`, before anything reads a form."""
    if LONGEST in request.environ:
        request.max_content_length = request.environ[LONGEST]


class Pace:
    """Lets one request after the other begin, some time apart."""

    def __init__(self, apart_s: float, most_waiting: int, attempts: Attempts) -> None:
        self._apart_s = apart_s
        self._queue = FairQueue(most_waiting, attempts)
        self._next_at = 0.0  # monotonic clock, s
        self._is_running = False

    def wait(self, environ: dict[str, Any]) -> None:
        """Return when this request may begin: at once where strangers are few. Raises Full."""
        address = environ.get("REMOTE_ADDR", "")
        attempts, now = self._queue.attempts.count(address), time.monotonic()
        if not self._is_running and now >= self._next_at:
            self._next_at = now + self._apart_s
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
                late = max(0.0, now - self._next_at)
                if not self._queue.let_next():
                    return
                self._next_at = now + min(LONGEST_S, max(self._apart_s, GIVE_WAY * late))
        finally:
            self._is_running = False


class AdmissionMiddleware:
    """WSGI middleware. `attempts`: of pages and of passwords; signing in takes them back."""

    def __init__(self, app: Any, cookies: SessionCache, files: StaticFiles, attempts: Attempts) -> None:
        self._app = app
        self._cookies = cookies
        self._known_files = files
        self._refusals = Refusals()
        self._pages = Pace(APART_S, MOST_WAITING, attempts)
        self._files = Pace(FILES_APART_S, MOST_FILES_WAITING, Attempts())

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            if has_loop() and self._is_strangers(environ):
                self._wait(environ)
        except Full:
            self._refusals.wait()
            if is_cut(environ):
                end_request()
            leave_body(environ)  # nor any request behind this one
            start_response("503 SERVICE UNAVAILABLE", [*PLAIN, ("Retry-After", str(RETRY_S))])
            return [WORDS]
        if is_cut(environ):  # while it waited
            end_request()
        behind: Iterable[bytes] = self._app(environ, start_response)
        return behind

    def _wait(self, environ: dict[str, Any]) -> None:
        path = environ.get("PATH_INFO", "")
        is_plain = environ.get("REQUEST_METHOD") in ("GET", "HEAD")
        if is_plain and self._known_files.has(path):
            self._files.wait(environ)
        elif not is_plain or path not in FREE:  # also what there is not: to say so takes a page
            self._pages.wait(environ)

    def _is_strangers(self, environ: dict[str, Any]) -> bool:
        if AUTH_SESSION_KEY in environ:
            return False
        try:
            is_live = self._cookies.find(environ.get("HTTP_COOKIE", "")) is not None
        except StorageUnavailable:  # the cookie is ours; what needs the database says that it does not answer
            return False
        if is_live:
            note_session(environ)
        return not is_live


# Headers

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self' {socket}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'"
)
HTTPS_S = 31_536_000  # a year, in which a browser asks this host by https alone
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@lru_cache(maxsize=100)
def answer_headers(is_secure: bool, host: str, is_public_https: bool = False) -> list[tuple[str, str]]:
    """The headers of every answer, for whom it is asked at this host; `is_public_https`: as PUBLIC_URL says."""
    policy = POLICY.format(socket=f"ws{'s' if is_secure else ''}://{host}")
    strict = [("Strict-Transport-Security", f"max-age={HTTPS_S}")] if is_public_https else []
    return [("Content-Security-Policy", policy), *HEADERS.items(), *strict, ("Cache-Control", UNKEPT)]


def init_headers(app: Flask) -> None:
    """Have every answer carry them."""
    is_public_https = bool(app.config["SESSION_COOKIE_SECURE"])

    @app.after_request
    def headers(response: Response) -> Response:
        for name, value in answer_headers(request.is_secure, request.host, is_public_https):
            response.headers.setdefault(name, value)
        return response
