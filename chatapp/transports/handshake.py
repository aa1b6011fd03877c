"""The door of /ws: flask-sock's handshake, after which the socket is the event loop's and the request ends.

Who may open one is judged before Flask, from the request's headers; the `Door` then calls flask-sock's endpoint itself.
What it refuses, and what a drill is to spoil, goes through Flask, which asks the same judge.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import flask_sock
from flask import Flask, Response, request
from flask_sock import Sock
from werkzeug.wsgi import get_host

from chatapp.accounts.auth import AUTH_SESSION_KEY, HandshakeSessionCache, expected_origins, origin_is_allowed
from chatapp.config import Settings
from chatapp.gunicorn_bridge import can_detach, detach, end_request, has_body, is_plain
from chatapp.store import AuthSession, StorageUnavailable
from chatapp.transports.rfc6455 import agreed
from chatapp.transports.websocket import Services, WebSocketConnection
from chatapp.wellformed import shown

PATH, ENDPOINT = "/ws", "websocket_route"
VERSION = "13"
KEY_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455's
ALONE = "An upgrade stands alone: no body, no Expect, and nothing behind it before it is answered.\n"
FULL_RETRY_S = 5  # when a client that found no room may try again

log = logging.getLogger("chatapp.websocket")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no WebSocket is opened."""

    status: int
    words: str
    headers: tuple[tuple[str, str], ...] = ()


class Handshake:
    """What flask-sock makes of the request: the answer, which is written together with the first frame.

    It stands where simple-websocket's `Server` did, which reads the request a second time and starts a thread.
    """

    mode = "gunicorn"

    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self.extension = agreed(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))
        key = hashlib.sha1(environ["HTTP_SEC_WEBSOCKET_KEY"].encode() + KEY_GUID, usedforsecurity=False)
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines.append(f"Sec-WebSocket-Accept: {base64.b64encode(key.digest()).decode()}")
        if self.extension:
            lines.append(f"Sec-WebSocket-Extensions: {self.extension}")
        self.answer = "\r\n".join([*lines, "", ""]).encode()

    def take(self) -> int:
        """The descriptor of its socket, which changes hands."""
        return detach(self._environ)

    def close(self) -> None:
        """flask-sock closes what its endpoint leaves; this one has handed its socket on."""


class HandedOver(Exception):
    """The socket is the event loop's: there is nothing left to answer."""


class NoAnswer(Response):
    """For requests that went through Flask."""

    def __call__(self, *_: object) -> Iterable[bytes]:
        """Tell gunicorn that all is answered, as flask-sock does."""
        end_request()


class Judge:
    """Says whether a request may open a WebSocket."""

    def __init__(self, services: Services, sessions: HandshakeSessionCache) -> None:
        self._services = services
        self._sessions = sessions

    def __call__(self, environ: dict[str, Any]) -> AuthSession | Refusal:
        """Whose it is, or why not: who is signed out, comes from a foreign page or finds no room."""
        if has_body(environ):
            return Refusal(400, ALONE)
        if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != VERSION:
            return Refusal(426, "WebSocket version 13 is needed.\n", (("Sec-WebSocket-Version", VERSION),))
        if not is_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", "")):
            return Refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64.\n")
        sign_in = self._sessions.find(environ.get("HTTP_COOKIE", ""))
        if sign_in is None:
            return Refusal(401, "Sign in first.\n")
        origin, host = environ.get("HTTP_ORIGIN", ""), f"{environ['wsgi.url_scheme']}://{get_host(environ)}"
        if not origin_is_allowed(self._services.settings, origin, host):
            words = _wrong_origin(self._services.settings, environ, origin, host)
            log.warning("refused a WebSocket: %s", words)
            return Refusal(403, f"{words}\n")
        if self._services.connections.is_full() or not is_plain(environ):
            return Refusal(503, "No WebSocket can be opened now.\n", (("Retry-After", str(FULL_RETRY_S)),))
        if not can_detach(environ):
            return Refusal(400, ALONE)
        return sign_in


class Door:
    """WSGI middleware: lets in who may open a WebSocket, and leaves all else to Flask behind it."""

    def __init__(self, app: Flask, judge: Judge, behind: Any, is_drilling: Callable[[], bool]) -> None:
        self._app = app
        self._judge = judge
        self._behind = behind
        self._is_drilling = is_drilling

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if is_upgrade(environ) and not self._is_drilling():
            judged = self._judged(environ)
            if isinstance(judged, AuthSession):
                environ[AUTH_SESSION_KEY] = judged
                self._open(environ)
        behind: Iterable[bytes] = self._behind(environ, start_response)
        return behind

    def _judged(self, environ: dict[str, Any]) -> AuthSession | Refusal | None:
        """None where the database does not answer: Flask says so."""
        try:
            return self._judge(environ)
        except StorageUnavailable:
            return None

    def _open(self, environ: dict[str, Any]) -> None:
        """flask-sock's endpoint without Flask's way there and back: no answer follows the handshake."""
        endpoint: Callable[[], object] = self._app.view_functions[ENDPOINT]
        try:
            with self._app.request_context(environ):
                endpoint()
        except HandedOver:
            end_request()


def is_upgrade(environ: dict[str, Any]) -> bool:
    """Whether this is /ws, asked for as RFC 6455 wants it."""
    return (
        environ.get("PATH_INFO") == PATH
        and environ.get("REQUEST_METHOD") == "GET"
        and environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        and "upgrade" in (token.strip() for token in environ.get("HTTP_CONNECTION", "").lower().split(","))
        and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    )


def register(app: Flask, services: Services, sessions: HandshakeSessionCache, is_drilling: Callable[[], bool]) -> None:
    """Hang /ws into the app, and its door before the app. While a drill is running, Flask answers all upgrades."""
    judge = Judge(services, sessions)
    flask_sock.Server = Handshake  # the seam: what flask-sock makes of each request
    sock = Sock(app)

    @app.before_request
    def before_upgrade() -> Response | None:
        """Refuse before the 101."""
        if request.endpoint != ENDPOINT:
            return None
        if not is_upgrade(request.environ):
            return Response("GET by HTTP/1.1 is needed.\n", 400, content_type="text/plain")
        judged = judge(request.environ)
        if isinstance(judged, Refusal):
            return Response(judged.words, judged.status, judged.headers, content_type="text/plain")
        request.environ[AUTH_SESSION_KEY] = judged
        return None

    @sock.route(PATH)  # type: ignore[untyped-decorator]
    def websocket_route(ws: Handshake) -> None:
        sign_in: AuthSession = request.environ[AUTH_SESSION_KEY]
        if request.query_string:
            services.connections.replace(request.args.get("replaces", ""), sign_in.person.id)
        fd, address = ws.take(), request.remote_addr or ""
        WebSocketConnection(fd, services, sign_in, address, bool(ws.extension)).start(ws.answer)
        raise HandedOver

    @app.errorhandler(HandedOver)
    def handed_over(_: HandedOver) -> Response:
        return NoAnswer()

    app.wsgi_app = Door(app, judge, app.wsgi_app, is_drilling)  # type: ignore[method-assign]


def is_key(key: str) -> bool:
    """Whether a handshake's key is one."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def _wrong_origin(settings: Settings, environ: dict[str, Any], origin: str, requested: str) -> str:
    """What was expected, what came, and who can mend it."""
    said = f"the Origin is {shown(origin)}, expected {shown(' or '.join(expected_origins(settings, requested)))}"
    peer, scheme = environ.get("chatapp.peer", ""), environ.get("HTTP_X_FORWARDED_PROTO", "")
    by = "the Host header" if not environ.get("werkzeug.proxy_fix.orig") else "X-Forwarded-Host and -Proto"
    help_ = "A proxy must pass Host on with its port, or CHATAPP_PUBLIC_URL name the address that people open"
    if scheme and "werkzeug.proxy_fix.orig" not in environ:
        help_ += f"; {peer} sends X-Forwarded-Proto {shown(scheme)}, but is not in CHATAPP_TRUSTED_PROXIES"
    return f"{said} (by {by}). {help_}."
