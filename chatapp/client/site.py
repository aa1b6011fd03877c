"""Where the server is, one WebSocket, and single HTTP requests: the standard library and wsproto."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Event, Ping, RejectConnection, Request, TextMessage
from wsproto.utilities import ProtocolError

from chatapp.client.actions import Answer
from chatapp.client.feeds import Element, parse

TIMEOUT_S = 40.0  # of a request; the core's own deadlines are shorter
CONNECT_S = 10.0
FORM = "application/x-www-form-urlencoded"


class NotSignedIn(Exception):
    """The server did not let us in; the message says why."""


@dataclass(frozen=True)
class Site:
    """Where the server is."""

    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def of(cls, url: str) -> Site:
        """From its URL, with or without a path in front of everything."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname or "", port, parts.path.rstrip("/"))

    @property
    def netloc(self) -> str:
        """Host, and port where it is not the scheme's own."""
        own = {"http": 80, "https": 443}.get(self.scheme) == self.port
        return self.host if own else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """What a browser would send as Origin."""
        return f"{self.scheme}://{self.netloc}"

    def http(self) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=TIMEOUT_S)

    def socket(self) -> socket.socket:
        """An open connection."""
        plain = socket.create_connection((self.host, self.port), timeout=CONNECT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.scheme != "https":
            return plain
        return ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


class Socket:
    """One WebSocket: whole writes under a lock, one thread that reads."""

    def __init__(self, site: Site, path: str, cookie: str) -> None:
        self._site, self._path, self._cookie = site, path, cookie
        self._lock = threading.Lock()
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._sock: socket.socket | None = None
        self._is_closed = False

    def run(self, on_frame: Callable[[str], None]) -> tuple[int, str]:
        """Connect and read until it ends; the close code (1006: without a word) and reason."""
        try:
            self._sock = self._site.socket()
            if self._is_closed:
                return 1006, ""
            headers = [(b"Cookie", self._cookie.encode()), (b"Origin", self._site.origin.encode())]
            self._write(Request(host=self._site.netloc, target=self._path, extra_headers=headers))
            self._sock.settimeout(None)
            return self._read(self._sock, on_frame)
        except (OSError, ProtocolError):
            return 1006, ""
        finally:
            self.abort()
            if self._sock:
                self._sock.close()

    def _read(self, sock: socket.socket, on_frame: Callable[[str], None]) -> tuple[int, str]:
        text = ""
        while not self._is_closed:
            data = sock.recv(65536)
            if not data:
                break
            self._ws.receive_data(data)
            for event in self._ws.events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        on_frame(text)
                        text = ""
                elif isinstance(event, Ping):
                    self._write(event.response())
                elif isinstance(event, CloseConnection):
                    self._write(event.response())
                    return int(event.code), event.reason or ""
                elif isinstance(event, RejectConnection):
                    return 1006, _advice_of(event)
        return 1006, ""

    def say(self, text: str) -> None:
        """Write a frame; a socket that fails ends its reader, which tells."""
        try:
            self._write(TextMessage(data=text))
        except (OSError, ProtocolError):
            self.abort()

    def close(self, code: int) -> None:
        """Say goodbye and end it."""
        self._is_closed = True
        with contextlib.suppress(OSError, ProtocolError):
            self._write(CloseConnection(code))
        self.abort()

    def abort(self) -> None:
        """End both directions; whoever reads is woken."""
        if self._sock:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _write(self, event: Event) -> None:
        with self._lock:
            if self._sock:
                self._sock.sendall(self._ws.send(event))


def _advice_of(refusal: RejectConnection) -> str:
    """A refused upgrade's Retry-After, in the words of a closing server."""
    value = next((value.decode() for name, value in refusal.headers if name.lower() == b"retry-after"), None)
    seconds = _advice_ms(value) / 1000
    return f"retry={seconds:g}" if seconds and refusal.status_code in (429, 503) else ""


class Session:
    """Cookies and the CSRF token of one sign-in, and single requests with them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.cookies: dict[str, str] = {}
        self.token = ""

    @property
    def cookie(self) -> str:
        """The Cookie header."""
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def request(
        self,
        method: str,
        path: str,
        fields: Iterable[tuple[str, str]] = (),
        accept: str = "application/json",
        opened: Callable[[http.client.HTTPConnection], None] = lambda _: None,
    ) -> tuple[Answer, str]:
        """One request and the Location it was sent on to. OSError where the network fails."""
        form = urlencode([*fields, ("csrf_token", self.token)] if method == "POST" else list(fields))
        body, target = (form, path) if method == "POST" else (None, f"{path}?{form}" if form else path)
        headers = {"Connection": "close", "Cookie": self.cookie, "Origin": self.site.origin}
        headers |= {"Content-Type": FORM, "Accept": accept} if method == "POST" else {}
        connection = self.site.http()
        try:
            opened(connection)
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except http.client.HTTPException as problem:
            raise ConnectionError(repr(problem)) from problem
        finally:
            connection.close()
        self._keep_cookies(response.msg.get_all("Set-Cookie") or [])
        advice_ms = _advice_ms(response.getheader("Retry-After"))
        return Answer(response.status, text, advice_ms), response.getheader("Location") or ""

    def sign_in(self, email: str, password: str) -> None:
        """By the form. Raises NotSignedIn."""
        path = f"{self.site.prefix}/sign-in"
        answer, location = self.request("GET", path)
        if answer.status != 200:
            raise NotSignedIn(f"{path} answered {answer.status} {location}".strip())
        self.token = next(e.get("value") for e in _all(answer.text, "input") if e.get("name") == "csrf_token")
        answer, _ = self.request("POST", path, [("email", email), ("password", password)], accept="text/html")
        if answer.status != 303:
            raise NotSignedIn(f"Signing in as {email} was answered {answer.status}.")

    def home(self) -> tuple[dict[str, object], Element]:
        """The chat-config and the body element of a fresh page; learns its token. Raises NotSignedIn."""
        path = f"{self.site.prefix}/"
        for _ in range(5):
            answer, location = self.request("GET", path)
            if not location:
                break
            path = urlsplit(location).path
        metas = {meta.get("name"): meta.get("content") for meta in _all(answer.text, "meta")}
        bodies = _all(answer.text, "body")
        if "chat-config" not in metas or not bodies:
            raise NotSignedIn(f"{path} answered {answer.status} without a chat.")
        self.token = metas["csrf-token"]
        config: dict[str, object] = json.loads(metas["chat-config"])
        return config, bodies[0]

    def _keep_cookies(self, lines: list[str]) -> None:
        for line in lines:
            name, _, value = line.partition(";")[0].strip().partition("=")
            self.cookies[name] = value


def _all(markup: str, tag: str) -> list[Element]:
    return [found for top in parse(markup) for found in ([top] if top.tag == tag else top.all(tag))]


def _advice_ms(header: str | None) -> int:
    try:
        return max(0, int(1000 * float(header or 0)))
    except ValueError:  # a date: this server never sends one
        return 0
