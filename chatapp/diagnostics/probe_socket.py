"""The doctor's WebSocket, tunnelled through the forward proxy if one is set."""

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

from chatapp.diagnostics.wire import CONNECT_S, ProbeClient, ms_since

HELLO_S = 4.0  # from the 101 to the first frame, and for an echo
CLOSE_S = 1.0
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "Y2hhdGFwcC1kb2N0b3ItMQ==",
}


class UpgradeRefused(Exception):
    """The upgrade was requested and failed, with `error` or `status`. `is_unread`: the response could not be parsed."""

    def __init__(self, error: str | None, status: int = 0, is_unread: bool = False) -> None:
        super().__init__(error, status)
        self.error, self.status, self.is_unread = error, status, is_unread


class UpgradingConnection(ClientConnection):
    """A connection that turns failures of the upgrade, as opposed to earlier ones, into UpgradeRefused."""

    def handshake(self, *arguments: Any, **named: Any) -> None:
        """Upgrade. Raises UpgradeRefused, also for a redirect, which `connect` would follow."""
        try:
            super().handshake(*arguments, **named)
        except InvalidStatus as refusal:
            raise UpgradeRefused(None, refusal.response.status_code) from refusal
        except TimeoutError as silence:
            raise UpgradeRefused("hung", is_unread=True) from silence
        except WebSocketException as problem:
            raise UpgradeRefused("cut", is_unread=isinstance(problem, InvalidMessage)) from problem


class ProbeSocket:
    """One WebSocket for probes, with one reader at a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._socket: ClientConnection  # from `open` on
        self.is_closed = False

    def open(self, client: ProbeClient, path: str) -> dict[str, Any]:
        """Connect and wait for the hello. Returns the facts of the probe `upgrade`."""
        try:
            self._socket = self._connect(client, path)
        except UpgradeRefused as refusal:
            status = refusal.status or (_status_of_upgrade(client, path) if refusal.is_unread else 0)
            return {"error": None if status else refusal.error, "status": status, "opened": False, "hello": False}
        except InvalidProxyStatus as refusal:
            return {"error": None, "status": refusal.response.status_code, "opened": False, "hello": False}
        except (OSError, InvalidHandshake):
            return {"error": "unreachable", "status": 0, "opened": False, "hello": False}
        first = self._receive(HELLO_S)
        error = None if first else "cut" if self.is_closed else "hung"
        return {"error": error, "status": 101, "opened": True, "hello": first.startswith(b"<chat-hello")}

    def _connect(self, client: ProbeClient, path: str) -> ClientConnection:
        way, cookie = client.way, client.cookie
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
            ping_interval=None,  # pings would keep an idle connection alive
            close_timeout=CLOSE_S,
            create_connection=UpgradingConnection,
        )
        return self._stack.enter_context(opening)

    def echo(self, count: int) -> dict[str, Any]:
        """Send echoes, one after another. Returns the facts of the probe `echo`."""
        times, missing = [], 0
        for n in range(1, count + 1):
            started = time.monotonic()
            if not self._echo(n):
                missing += 1
                break
            times.append(ms_since(started))
        ms = round(statistics.median(times)) if times else None
        return {"missing": missing, "ms": ms, "closed": self.is_closed}

    def idle(self, seconds: float) -> dict[str, Any]:
        """Send nothing but pongs for some time, then one echo. Returns the facts of the probe `idle`."""
        started = time.monotonic()
        while not self.is_closed and (left := started + seconds - time.monotonic()) > 0:
            self._receive(left)
        silent_ms = ms_since(started)
        is_answered = not self.is_closed and self._echo(1000)
        return {"closed": self.is_closed, "answered": is_answered, "silent_ms": silent_ms}

    def close(self) -> None:
        """Close with a closing handshake."""
        self._stack.close()

    def _echo(self, n: int) -> bool:
        try:
            self._socket.send(f'{{"type":"echo","n":{n}}}')
        except ConnectionClosed:
            self.is_closed = True
        until = time.monotonic() + HELLO_S
        while not self.is_closed and (left := until - time.monotonic()) > 0:
            if f'n="{n}"'.encode() in self._receive(left):
                return True
        return False

    def _receive(self, within_s: float) -> bytes:
        """Return the next message, or b"" after a timeout or the close."""
        try:
            return self._socket.recv(within_s, decode=False)
        except ConnectionClosed:
            self.is_closed = True
        except TimeoutError:
            pass
        return b""


def _status_of_upgrade(client: ProbeClient, path: str) -> int:
    """Repeat the upgrade as a plain request, for the status of a refusal that `websockets` cannot read (HTTP/1.0, long
    headers, no end of the body). Returns 0 for http by a forward proxy: httpx tunnels only https.
    """
    if client.way.proxy and client.way.site.scheme == "http":
        return 0
    return client.get(path, CONNECT_S, headers=UPGRADE | {"Origin": client.way.origin}).status
