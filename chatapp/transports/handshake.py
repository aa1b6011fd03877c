"""The opening handshake of /ws with flask-sock; the socket then moves to the event loop, and the request ends.

`Upgrades` checks the request's headers before Flask and calls flask-sock's endpoint itself. Refused upgrades, and all
upgrades during a drill, go through Flask, with the same check.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Iterable
from math import ceil
from typing import Any

import flask_sock
from flask import Flask, Response, request
from flask_sock import Sock
from werkzeug.wsgi import get_host

from chatapp.accounts.auth import AUTH_SESSION_KEY, SessionCache, expected_origins, origin_is_allowed
from chatapp.accounts.tickets import Ticket
from chatapp.config import Settings
from chatapp.gunicorn_bridge import can_detach, detach, end_request, has_body, is_plain
from chatapp.store import AuthSession, StorageUnavailable
from chatapp.transports.rfc6455 import negotiate
from chatapp.transports.visitors import Visitors
from chatapp.transports.websocket import Services, WebSocketConnection
from chatapp.wellformed import as_uuid, shown

PATH, ENDPOINT = "/ws", "websocket_route"
TICKET_KEY = "chatapp.ticket"  # WSGI environ: the ticket of an accepted upgrade, instead of a session
VERSION = "13"
KEY_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455's
NOT_ALONE = "An upgrade stands alone: no body, no Expect, and nothing behind it before it is answered.\n"
FULL_RETRY_S = 5
MANY_RETRY_S = 60
MOST_HANDSHAKES = 256  # cached sessions: a connection needs one look-up, but on a bad network others follow soon

log = logging.getLogger("chatapp.websocket")


class Handshake:
    """The answer to an accepted upgrade, written together with the first frame.

    Replaces simple-websocket's `Server` in flask-sock, which would parse the request again and start a thread.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        self.extension = negotiate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))
        key = hashlib.sha1(environ["HTTP_SEC_WEBSOCKET_KEY"].encode() + KEY_GUID, usedforsecurity=False)
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines.append(f"Sec-WebSocket-Accept: {base64.b64encode(key.digest()).decode()}")
        if self.extension:
            lines.append(f"Sec-WebSocket-Extensions: {self.extension}")
        self.answer = "\r\n".join([*lines, "", ""]).encode()


class Detached(StopIteration):
    """The socket has moved to the event loop: as `end_request`, for nothing but an upgrade."""


class NoResponse(Response):
    """The response to an upgrade that went through Flask."""

    def __call__(self, *_: object) -> Iterable[bytes]:
        end_request()


class Upgrades:
    """The endpoint /ws, and WSGI middleware that accepts upgrades and passes everything else on to Flask."""

    def __init__(
        self, services: Services, sessions: SessionCache, is_drilling: Callable[[], bool], visitors: Visitors
    ) -> None:
        self._services, self._visitors = services, visitors
        self._sessions = sessions
        self._is_drilling = is_drilling  # Flask answers all upgrades then

    def init_app(self, app: Flask) -> None:
        """Add the endpoint and the middleware."""
        flask_sock.Server = Handshake
        Sock(app).route(PATH)(self.websocket_route)
        app.before_request(self._refuse)
        app.register_error_handler(Detached, lambda _: NoResponse())
        self._app, self._inner = app, app.wsgi_app
        app.wsgi_app = self  # type: ignore[method-assign]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if is_upgrade(environ) and not self._is_drilling():
            try:
                checked = self._check(environ)
            except StorageUnavailable:
                checked = None  # Flask answers with 503
            if isinstance(checked, AuthSession | Ticket):
                environ[AUTH_SESSION_KEY if isinstance(checked, AuthSession) else TICKET_KEY] = checked
                with self._app.request_context(environ):  # without Flask's dispatch: no response follows the handshake
                    self._app.view_functions[ENDPOINT]()
        return self._inner(environ, start_response)

    def _refuse(self) -> Response | None:
        """Refuse an upgrade before the 101. For `before_request`."""
        if request.endpoint != ENDPOINT:
            return None
        if not is_upgrade(request.environ):
            return _refusal(400, "GET by HTTP/1.1 is needed.\n")
        checked = self._check(request.environ)
        if isinstance(checked, Response):
            return checked
        request.environ[AUTH_SESSION_KEY if isinstance(checked, AuthSession) else TICKET_KEY] = checked
        return None

    def websocket_route(self, ws: Handshake) -> None:
        """Move the socket to the event loop, and end the request."""
        address, deflates = request.remote_addr or "", bool(ws.extension)
        if ticket := request.environ.get(TICKET_KEY):
            self._visitors.accept(detach(request.environ), ticket, address, ws.answer, deflates)
            raise Detached
        services, session = self._services, request.environ[AUTH_SESSION_KEY]
        page = ""
        if request.query_string:
            services.websockets.replace(request.args.get("replaces", ""), session.person.id)
            page = as_uuid(request.args.get("page", ""))
        fd = detach(request.environ)
        WebSocketConnection(fd, services, session, address, deflates, page).start(ws.answer)
        raise Detached

    def _check(self, environ: dict[str, Any]) -> AuthSession | Ticket | Response:
        """Return the session of the request, its ticket, or its refusal. Raises StorageUnavailable."""
        if has_body(environ):
            return _refusal(400, NOT_ALONE)
        if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != VERSION:
            return _refusal(426, "WebSocket version 13 is needed.\n", ("Sec-WebSocket-Version", VERSION))
        if not is_valid_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", "")):
            return _refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64.\n")
        ticket = self._visitors.find(environ)  # before a session: the test of a person who has both counts as a test
        holder = ticket or self._sessions.find(environ.get("HTTP_COOKIE", ""), MOST_HANDSHAKES)
        if holder is None:
            return _refusal(401, "Sign in first.\n")
        origin, host = environ.get("HTTP_ORIGIN", ""), f"{environ['wsgi.url_scheme']}://{get_host(environ)}"
        if not origin_is_allowed(self._services.settings, origin, host):
            problem = _wrong_origin(self._services.settings, environ, origin, host)
            log.warning("refused a WebSocket: %s", problem)
            return _refusal(403, f"{problem}\n")
        if self._services.connections.is_full() or not is_plain(environ):
            return _refusal(503, "No WebSocket can be opened now.\n", ("Retry-After", str(FULL_RETRY_S)))
        if not can_detach(environ):
            return _refusal(400, NOT_ALONE)
        return self._over_limit(holder) or holder

    def _over_limit(self, holder: AuthSession | Ticket) -> Response | None:
        """Count an upgrade, or return its refusal."""
        if isinstance(holder, Ticket):
            wait_s = self._visitors.wait_s(holder)
        elif not self._services.websockets.has_room(holder.person.id):
            return _refusal(429, "You have very many WebSockets open.\n", ("Retry-After", str(MANY_RETRY_S)))
        else:
            wait_s = self._services.limits.connects.take(holder.person.id)
        if not wait_s:
            return None
        return _refusal(429, "You open very many WebSockets.\n", ("Retry-After", str(ceil(wait_s))))


def _refusal(status: int, body: str, *headers: tuple[str, str]) -> Response:
    return Response(body, status, headers, content_type="text/plain")


def is_upgrade(environ: dict[str, Any]) -> bool:
    """Return True for an opening handshake (RFC 6455, section 4.1) of /ws."""
    return (
        environ.get("PATH_INFO") == PATH
        and environ.get("REQUEST_METHOD") == "GET"
        and environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        and "upgrade" in (token.strip() for token in environ.get("HTTP_CONNECTION", "").lower().split(","))
        and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    )


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
