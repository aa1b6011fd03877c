"""The opening handshake of /ws with flask-sock; the socket then moves to the event loop, and the request ends.

`HandshakeMiddleware` checks the request's headers before Flask and calls flask-sock's endpoint itself. Refused
upgrades, and all upgrades during a drill, go through Flask, with the same `UpgradeCheck`.
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
from chatapp.transports.rfc6455 import negotiate
from chatapp.transports.websocket import Services, WebSocketConnection
from chatapp.wellformed import shown

PATH, ENDPOINT = "/ws", "websocket_route"
VERSION = "13"
KEY_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455's
NOT_ALONE = "An upgrade stands alone: no body, no Expect, and nothing behind it before it is answered.\n"
FULL_RETRY_S = 5

log = logging.getLogger("chatapp.websocket")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The HTTP answer to a refused upgrade."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = ()


class Handshake:
    """The answer to an accepted upgrade, written together with the first frame.

    Replaces simple-websocket's `Server` in flask-sock, which would parse the request again and start a thread.
    """

    mode = "gunicorn"

    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self.extension = negotiate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))
        key = hashlib.sha1(environ["HTTP_SEC_WEBSOCKET_KEY"].encode() + KEY_GUID, usedforsecurity=False)
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines.append(f"Sec-WebSocket-Accept: {base64.b64encode(key.digest()).decode()}")
        if self.extension:
            lines.append(f"Sec-WebSocket-Extensions: {self.extension}")
        self.answer = "\r\n".join([*lines, "", ""]).encode()

    def detach(self) -> int:
        """Take the socket out of gunicorn; returns its file descriptor."""
        return detach(self._environ)

    def close(self) -> None:
        """Do nothing: flask-sock calls it after the endpoint, when the socket is detached."""


class Detached(Exception):
    """The socket has moved to the event loop: there is nothing left to answer."""


class NoResponse(Response):
    """The response to an upgrade that went through Flask."""

    def __call__(self, *_: object) -> Iterable[bytes]:
        end_request()


class UpgradeCheck:
    """The conditions for opening a WebSocket: headers, session, Origin, room."""

    def __init__(self, services: Services, sessions: HandshakeSessionCache) -> None:
        self._services = services
        self._sessions = sessions

    def __call__(self, environ: dict[str, Any]) -> AuthSession | Refusal:
        """Return the request's session, or the reason for refusing it. Raises StorageUnavailable."""
        if has_body(environ):
            return Refusal(400, NOT_ALONE)
        if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != VERSION:
            return Refusal(426, "WebSocket version 13 is needed.\n", (("Sec-WebSocket-Version", VERSION),))
        if not is_valid_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", "")):
            return Refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64.\n")
        session = self._sessions.find(environ.get("HTTP_COOKIE", ""))
        if session is None:
            return Refusal(401, "Sign in first.\n")
        origin, host = environ.get("HTTP_ORIGIN", ""), f"{environ['wsgi.url_scheme']}://{get_host(environ)}"
        if not origin_is_allowed(self._services.settings, origin, host):
            problem = _wrong_origin(self._services.settings, environ, origin, host)
            log.warning("refused a WebSocket: %s", problem)
            return Refusal(403, f"{problem}\n")
        if self._services.connections.is_full() or not is_plain(environ):
            return Refusal(503, "No WebSocket can be opened now.\n", (("Retry-After", str(FULL_RETRY_S)),))
        if not can_detach(environ):
            return Refusal(400, NOT_ALONE)
        return session


class HandshakeMiddleware:
    """WSGI middleware: accepts upgrades, and passes everything else on to Flask."""

    def __init__(self, app: Flask, check: UpgradeCheck, inner: Any, is_drilling: Callable[[], bool]) -> None:
        self._app = app
        self._check = check
        self._inner = inner
        self._is_drilling = is_drilling

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if is_upgrade(environ) and not self._is_drilling():
            try:
                checked = self._check(environ)
            except StorageUnavailable:
                checked = None  # Flask answers with 503
            if isinstance(checked, AuthSession):
                environ[AUTH_SESSION_KEY] = checked
                self._open(environ)
        answer: Iterable[bytes] = self._inner(environ, start_response)
        return answer

    def _open(self, environ: dict[str, Any]) -> None:
        """Call flask-sock's endpoint without Flask's dispatch: no response follows the handshake."""
        endpoint: Callable[[], object] = self._app.view_functions[ENDPOINT]
        try:
            with self._app.request_context(environ):
                endpoint()
        except Detached:
            end_request()


def is_upgrade(environ: dict[str, Any]) -> bool:
    """Return True for an opening handshake (RFC 6455, section 4.1) of /ws."""
    return (
        environ.get("PATH_INFO") == PATH
        and environ.get("REQUEST_METHOD") == "GET"
        and environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        and "upgrade" in (token.strip() for token in environ.get("HTTP_CONNECTION", "").lower().split(","))
        and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    )


def register(app: Flask, services: Services, sessions: HandshakeSessionCache, is_drilling: Callable[[], bool]) -> None:
    """Add the endpoint /ws and its middleware to the app. During a drill, Flask answers all upgrades."""
    check = UpgradeCheck(services, sessions)
    flask_sock.Server = Handshake
    sock = Sock(app)

    @app.before_request
    def before_upgrade() -> Response | None:
        """Refuse an upgrade before the 101."""
        if request.endpoint != ENDPOINT:
            return None
        if not is_upgrade(request.environ):
            return Response("GET by HTTP/1.1 is needed.\n", 400, content_type="text/plain")
        checked = check(request.environ)
        if isinstance(checked, Refusal):
            return Response(checked.body, checked.status, checked.headers, content_type="text/plain")
        request.environ[AUTH_SESSION_KEY] = checked
        return None

    @sock.route(PATH)  # type: ignore[untyped-decorator]
    def websocket_route(ws: Handshake) -> None:
        session: AuthSession = request.environ[AUTH_SESSION_KEY]
        if request.query_string:
            services.connections.replace(request.args.get("replaces", ""), session.person.id)
        fd, address = ws.detach(), request.remote_addr or ""
        WebSocketConnection(fd, services, session, address, bool(ws.extension)).start(ws.answer)
        raise Detached

    @app.errorhandler(Detached)
    def handle_detached(_: Detached) -> Response:
        return NoResponse()

    app.wsgi_app = HandshakeMiddleware(app, check, app.wsgi_app, is_drilling)  # type: ignore[method-assign]


def is_valid_key(key: str) -> bool:
    """Return True if a Sec-WebSocket-Key is 16 bytes in base64."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def _wrong_origin(settings: Settings, environ: dict[str, Any], origin: str, requested: str) -> str:
    problem = f"the Origin is {shown(origin)}, expected {shown(' or '.join(expected_origins(settings, requested)))}"
    peer, scheme = environ.get("chatapp.peer", ""), environ.get("HTTP_X_FORWARDED_PROTO", "")
    by = "the Host header" if not environ.get("werkzeug.proxy_fix.orig") else "X-Forwarded-Host and -Proto"
    help_ = "A proxy must pass Host on with its port, or CHATAPP_PUBLIC_URL name the address that people open"
    if scheme and "werkzeug.proxy_fix.orig" not in environ:
        help_ += f"; {peer} sends X-Forwarded-Proto {shown(scheme)}, but is not in CHATAPP_TRUSTED_PROXIES"
    return f"{problem} (by {by}). {help_}."
