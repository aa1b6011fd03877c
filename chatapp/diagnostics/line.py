"""One WebSocket, as the doctor opens and tests it: by a tunnel through the forward proxy where there is one."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxyStatus,
    InvalidStatus,
    WebSocketException,
)
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from chatapp.diagnostics.wire import CONNECT_S, Visitor, ms_since

HELLO_S = 4.0  # from the 101 to the first frame, and for an echo
GOODBYE_S = 1.0
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "Y2hhdGFwcC1kb2N0b3ItMQ==",
}


class Refused(Exception):
    """The upgrade was asked for and did not come: the answer's status, or what became of it."""

    def __init__(self, error: str | None, status: int = 0, is_unread: bool = False) -> None:
        super().__init__(error, status)
        self.error, self.status, self.is_unread = error, status, is_unread


class Asked(ClientConnection):
    """A connection over which the upgrade is asked for: what fails here is an answer to it, or the lack of one."""

    def handshake(self, *arguments: Any, **named: Any) -> None:
        """Ask. Raises Refused, also for a redirect, which would be followed elsewhere."""
        try:
            super().handshake(*arguments, **named)
        except InvalidStatus as refusal:
            raise Refused(None, refusal.response.status_code) from refusal
        except TimeoutError as silence:
            raise Refused("hung", is_unread=True) from silence
        except WebSocketException as problem:
            raise Refused("cut", is_unread=isinstance(problem, InvalidMessage)) from problem


class Line:
    """One WebSocket, with one reader at a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._socket: ClientConnection | None = None
        self.is_closed = False

    def open(self, visitor: Visitor, path: str) -> dict[str, Any]:
        """Open it and wait for the hello; the facts of `upgrade`."""
        try:
            self._socket = self._connect(visitor, path)
        except Refused as refusal:
            status = refusal.status or (_status(visitor, path) if refusal.is_unread else 0)
            return {"error": None if status else refusal.error, "status": status, "opened": False, "hello": False}
        except InvalidProxyStatus as refusal:
            return {"error": None, "status": refusal.response.status_code, "opened": False, "hello": False}
        except (OSError, InvalidHandshake):
            return {"error": "unreachable", "status": 0, "opened": False, "hello": False}
        first = self._next(HELLO_S)
        error = None if first else "cut" if self.is_closed else "hung"
        return {"error": error, "status": 101, "opened": True, "hello": first.startswith(b"<chat-hello")}

    def _connect(self, visitor: Visitor, path: str) -> ClientConnection:
        way, cookie = visitor.way, visitor.cookie
        opening = connect(
            way.url(path, "ws"),
            ssl=way.trust if way.site.scheme == "https" else None,
            origin=Origin(way.origin),
            compression=None,
            additional_headers={"Cookie": cookie} if cookie else None,
            user_agent_header=None,
            proxy=way.proxy or None,
            proxy_ssl=way.trust_in_proxy,
            open_timeout=CONNECT_S,
            ping_interval=None,  # what is silent must be silent
            close_timeout=GOODBYE_S,
            create_connection=Asked,
        )
        return self._stack.enter_context(opening)

    def echo(self, count: int) -> dict[str, Any]:
        """Some echoes, one after another; the facts of `echo`."""
        times, missing = [], 0
        for n in range(1, count + 1):
            started = time.monotonic()
            if not self._is_answered(n):
                missing += 1
                break
            times.append(ms_since(started))
        ms = round(statistics.median(times)) if times else None
        return {"missing": missing, "ms": ms, "closed": self.is_closed}

    def idle(self, seconds: float) -> dict[str, Any]:
        """Say nothing for so long (the server's pings are answered), then one echo; the facts of `idle`."""
        started = time.monotonic()
        while not self.is_closed and (left := started + seconds - time.monotonic()) > 0:
            self._next(left)
        silent_ms = ms_since(started)
        is_answered = not self.is_closed and self._is_answered(1000)
        return {"closed": self.is_closed, "answered": is_answered, "silent_ms": silent_ms}

    def close(self) -> None:
        """Say goodbye and end it."""
        self._stack.close()

    def _is_answered(self, n: int) -> bool:
        assert self._socket is not None
        try:
            self._socket.send(f'{{"type":"echo","n":{n}}}')
        except ConnectionClosed:
            self.is_closed = True
        until = time.monotonic() + HELLO_S
        while not self.is_closed and (left := until - time.monotonic()) > 0:
            if f'n="{n}"'.encode() in self._next(left):
                return True
        return False

    def _next(self, within_s: float) -> bytes:
        """The next frame; nothing where none came in time, or where it is over."""
        assert self._socket is not None
        try:
            return self._socket.recv(within_s, decode=False)
        except ConnectionClosed:
            self.is_closed = True
        except TimeoutError:
            pass
        return b""


def _status(visitor: Visitor, path: str) -> int:
    """The status of a refusal that `websockets` does not read: by HTTP/1.0, with a long head, without an end.

    Asked for once more, as plain HTTP with an upgrade's headers. Not where that would go another way than a
    WebSocket: httpx takes a tunnel through a forward proxy for https alone.
    """
    if visitor.way.proxy and visitor.way.site.scheme == "http":
        return 0
    return visitor.get(path, CONNECT_S, headers=UPGRADE | {"Origin": visitor.way.origin}).status
