"""How the doctor reaches a server: directly or by a forward proxy, one answer or one WebSocket at a time."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, RejectConnection, Request, TextMessage
from wsproto.utilities import ProtocolError

from chatapp.client.site import Site

MARK, END = "<chat-test", "</chat-test>"
CONNECT_S = 8.0
ANSWER_S = 10.0  # for an answer that should come at once
HELLO_S = 4.0  # from the 101 to the first frame, and for an echo
REDIRECTS = (301, 302, 303, 307, 308)


class Unreachable(Exception):
    """The URL says nothing that could be asked; the message says why."""


class ViaProxy(http.client.HTTPConnection):
    """Plain HTTP through a forward proxy: the request names the whole address, as a browser's does."""

    def __init__(self, proxy: str, netloc: str, timeout: float) -> None:
        super().__init__(proxy, timeout=timeout)
        self._netloc = netloc

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        """Asks for http://host/path."""
        super().putrequest(method, f"http://{self._netloc}{url}", *args, **kwargs)


@dataclass(frozen=True)
class Way(Site):
    """The site, by way of a forward proxy (`host:port`) where there is one."""

    proxy: str = ""

    @classmethod
    def to(cls, url: str, proxy: str | None = None) -> Way:
        """From the URL; the proxy of the environment's variables where none is named. Raises Unreachable."""
        site = Site.of(url)
        if site.scheme not in ("http", "https") or not site.host:
            raise Unreachable(f"{url!r} is not an address such as https://chat.example.org")
        if proxy is None:
            proxy = "" if proxy_bypass(site.host) else getproxies().get(site.scheme, "")
        proxy = urlsplit(proxy).netloc or proxy
        return cls(site.scheme, site.host, site.port, site.prefix, proxy.rpartition("@")[2])

    def http(self) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        if not self.proxy:
            return super().http()
        if self.scheme == "http":
            return ViaProxy(self.proxy, self.netloc, CONNECT_S)
        tunnel = http.client.HTTPSConnection(self.proxy, timeout=CONNECT_S)
        tunnel.set_tunnel(self.host, self.port)
        return tunnel

    def socket(self) -> socket.socket:
        """An open connection; through a proxy, a tunnel. Raises OSError."""
        if not self.proxy:
            return super().socket()
        tunnel = http.client.HTTPConnection(self.proxy, timeout=CONNECT_S)
        tunnel.set_tunnel(self.host, self.port)
        tunnel.connect()
        assert tunnel.sock is not None
        if self.scheme != "https":
            return tunnel.sock
        return ssl.create_default_context().wrap_socket(tunnel.sock, server_hostname=self.host)


@dataclass
class Got:
    """An HTTP answer, or what became of it; `at` are the arrivals of its parts, in ms after the request."""

    error: str | None = None
    status: int = 0
    headers: http.client.HTTPMessage | None = None
    text: str = ""
    at: list[int] = field(default_factory=list)
    ms: int = 0

    @property
    def location(self) -> str:
        """Where a redirect leads, without its query."""
        if self.headers is None or self.status not in REDIRECTS:
            return ""
        return self.headers.get("Location", "").partition("?")[0]

    def facts(self, mark: str = MARK) -> dict[str, Any]:
        """What every rule may look at."""
        return {
            "error": self.error,
            "status": self.status,
            "redirected": self.status in REDIRECTS,
            "location": self.location,
            "marked": self.text.lstrip().startswith(mark),
            "complete": self.text.rstrip().endswith(END),
            "ms": self.ms,
        }


def fetch(way: Way, path: str, cookie: str, within_s: float = ANSWER_S) -> Got:
    """One GET, read as it comes; redirects are not followed. Failures are in its `error`."""
    got, started = Got(), time.monotonic()
    connection = way.http()
    connection.timeout = CONNECT_S
    pieces: list[bytes] = []
    try:
        got.error = "unreachable"
        connection.connect()
        got.error = "cut"
        assert connection.sock is not None
        connection.sock.settimeout(within_s)
        headers = {"Cookie": cookie, "X-Chatapp-Test": "1", "Cache-Control": "no-cache", "Accept": "*/*"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        got.status, got.headers = response.status, response.msg
        while piece := response.read1(65536):
            got.at.append(_ms_since(started))
            pieces.append(piece)
            if time.monotonic() - started > within_s:
                raise TimeoutError
        got.error = None
    except ssl.SSLError:
        got.error = "tls"
    except TimeoutError:
        got.error = "unreachable" if got.error == "unreachable" else "hung"
    except (OSError, http.client.HTTPException) as problem:
        got.status = got.status or _tunnel_status(problem)
        got.error = None if got.status >= 400 else got.error
    finally:
        connection.close()
    got.text, got.ms = b"".join(pieces).decode("utf-8", "replace"), _ms_since(started)
    return got


def _tunnel_status(problem: Exception) -> int:
    """The status with which a forward proxy refused a tunnel; http.client says it in words only."""
    found = re.search(r"Tunnel connection failed: (\d{3})", str(problem))
    return int(found[1]) if found else 0


def _ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


class Line:
    """One WebSocket, read and written by one thread."""

    def __init__(self) -> None:
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._sock: socket.socket | None = None
        self.frames: list[str] = []
        self.status = 0
        self.is_open = False
        self.is_closed = False

    def open(self, way: Way, path: str, cookie: str) -> dict[str, Any]:
        """Open it and wait for the hello; the facts of `upgrade`."""
        error: str | None = "unreachable"
        try:
            self._sock = way.socket()
            headers = [(b"Cookie", cookie.encode()), (b"Origin", way.origin.encode())]
            self._sock.sendall(self._ws.send(Request(host=way.netloc, target=path, extra_headers=headers)))
            is_decided = self._read(lambda: self.is_open or self.status != 0, CONNECT_S)
            said_hello = self.is_open and self._read(lambda: bool(self.frames), HELLO_S)
            error = None if is_decided and (said_hello or not self.is_open) else "cut" if self.is_closed else "hung"
        except (OSError, ProtocolError) as problem:
            self.status = self.status or _tunnel_status(problem)
            error = None if self.status else error
            self.is_closed = True
        hello = any(frame.startswith("<chat-hello") for frame in self.frames)
        return {"error": error, "status": self.status, "opened": self.is_open, "hello": hello}

    def echo(self, count: int) -> dict[str, Any]:
        """Some echoes, one after another; the facts of `echo`."""
        times, missing = [], 0
        for n in range(1, count + 1):
            started = time.monotonic()
            if not self._is_answered(n):
                missing += 1
                break
            times.append(_ms_since(started))
        ms = round(statistics.median(times)) if times else None
        return {"missing": missing, "ms": ms, "closed": self.is_closed}

    def idle(self, seconds: float) -> dict[str, Any]:
        """Say nothing for so long (the server's pings are answered), then one echo; the facts of `idle`."""
        started = time.monotonic()
        self._read(lambda: False, seconds)  # ends early only where the socket does
        silent_ms = _ms_since(started)
        is_answered = not self.is_closed and self._is_answered(1000)
        return {"closed": self.is_closed, "answered": is_answered, "silent_ms": silent_ms}

    def close(self) -> None:
        """Say goodbye and end it."""
        if self._sock is None:
            return
        with contextlib.suppress(OSError, ProtocolError):
            self._sock.sendall(self._ws.send(CloseConnection(1000)))
        self._sock.close()

    def _is_answered(self, n: int) -> bool:
        assert self._sock is not None
        try:
            self._sock.sendall(self._ws.send(TextMessage(data=f'{{"type":"echo","n":{n}}}')))
        except (OSError, ProtocolError):
            self.is_closed = True
            return False
        return self._read(lambda: any(f'n="{n}"' in frame for frame in self.frames[-3:]), HELLO_S)

    def _read(self, is_enough: Callable[[], bool], within_s: float) -> bool:
        """Read until it is enough, too late, or over; whether it was enough."""
        until = time.monotonic() + within_s
        while not is_enough():
            left = until - time.monotonic()
            if left <= 0 or self.is_closed or self._sock is None:
                return False
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                return False
            except OSError:
                data = b""
            self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        if not data:
            self.is_closed = True
            return
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                self._on(event)
        except ProtocolError:
            self.is_closed = True

    def _on(self, event: object) -> None:
        if isinstance(event, AcceptConnection):
            self.status, self.is_open = 101, True
        elif isinstance(event, RejectConnection):
            self.status = event.status_code
        elif isinstance(event, TextMessage):
            self.frames.append(event.data)
        elif isinstance(event, Ping) and self._sock is not None:
            self._sock.sendall(self._ws.send(event.response()))
        elif isinstance(event, CloseConnection):
            self.is_closed = True
