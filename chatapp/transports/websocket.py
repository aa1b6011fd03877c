"""The door of /ws: flask-sock's handshake, after which the socket is the event loop's and the request ends."""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING

from flask import Flask, Response, g, request
from flask_sock import Sock
from simple_websocket import Server

from chatapp.auth import origin_is_allowed
from chatapp.config import Settings
from chatapp.store import Store
from chatapp.transports.carrier import WebSocketConnection
from chatapp.transports.deflate import agreed
from chatapp.transports.live import Live

if TYPE_CHECKING:
    from chatapp.house import House

__all__ = ["Live", "make_live", "register"]

FULL_RETRY_S = 5  # when a client that found no room may try again

log = logging.getLogger("chatapp.websocket")


class NoThread:
    """What simple-websocket starts as its reading thread: the event loop reads."""

    def __init__(self, **_: object) -> None:
        self.name = ""

    def start(self) -> None:
        """Nothing to start."""


def make_live(settings: Settings, store: Store) -> Live:
    """What all connections share, with a timer fine enough for the time-outs as they are set."""
    shortest = min(settings.ws_ping_interval, settings.ws_pong_timeout, settings.ws_read_timeout)
    return Live(min(shortest, settings.ws_write_timeout), store.events.note)


def register(app: Flask, house: House) -> None:
    """Hang /ws into the app."""
    settings, live = house.settings, house.live
    app.config["SOCK_SERVER_OPTIONS"] = {"thread_class": NoThread}
    sock = Sock(app)

    @app.before_request
    def before_upgrade() -> Response | None:
        """Refuse before the 101: whoever is signed out, comes from a foreign page or finds no room."""
        if request.endpoint != "websocket_route":
            return None
        if request.headers.get("Sec-WebSocket-Version") != "13":
            return Response("WebSocket version 13 is needed.\n", 426, {"Sec-WebSocket-Version": "13"})
        if not is_key(request.headers.get("Sec-WebSocket-Key", "")):
            return Response("Sec-WebSocket-Key must be 16 bytes in base64.\n", 400, content_type="text/plain")
        if house.auth.current() is None:
            return Response("Sign in first.\n", 401, content_type="text/plain")
        if not origin_is_allowed(settings, request.headers.get("Origin", ""), request.host_url):
            log.warning("refused a WebSocket from origin %r", request.headers.get("Origin", ""))
            return Response("This origin may not open a WebSocket here.\n", 403, content_type="text/plain")
        if live.is_full() or "gunicorn.socket" not in request.environ:
            return Response("No WebSocket can be opened now.\n", 503, {"Retry-After": str(FULL_RETRY_S)})
        # simple-websocket agrees to whatever is offered: it gets to see what we can do, or nothing.
        g.extension = agreed(request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))
        if g.extension:
            request.environ["HTTP_SEC_WEBSOCKET_EXTENSIONS"] = g.extension
        return None

    @sock.route("/ws")  # type: ignore[untyped-decorator]
    def websocket_route(ws: Server) -> None:
        sign_in = house.auth.current()
        ws.connected = False  # else flask-sock closes it when we return
        if sign_in is not None:
            live.replace(request.args.get("replaces", ""), sign_in.person.id)
            # The descriptor changes hands: gunicorn keeps an empty object that it may close.
            fd = ws.sock.detach()
            address, deflates = request.remote_addr or "", bool(g.extension)
            WebSocketConnection(fd, house, sign_in, house.auth.token_hash(), address, deflates).start()


def is_key(key: str) -> bool:
    """Whether a handshake's key is one."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False
