"""Headless pages on real sockets and plain HTTP: the shipped core as a client of a running server, for tests and bench.

One thread runs all pages of a process, because a JavaScript context is one thread's; each request and each socket has
a thread of its own, which only waits and says what came.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from headless.core import Message, Page, Script
from headless.elements import Tree, trees

CONNECT_S = 10.0
REPORT_S = 0.3  # in which reports are collected
SIGN_IN_TRIES = 20
TIMEOUT_S = 40.0  # of a request; the core's own deadlines are shorter
FORM = "application/x-www-form-urlencoded"
TOKEN = ("csrf_token", "")  # the session puts its own
Found = TypeVar("Found")
PAGE_MS = 100  # of a page load that took a second, so much counts as the line's latency


class NotSignedIn(Exception):
    """The server did not let us in; the message says why."""


class Session:
    """Cookies and the CSRF token of one sign-in at `url`, and single requests with them."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.address = (parts.hostname or "", parts.port or 80)
        self.prefix = parts.path.rstrip("/")
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
    ) -> tuple[int, str, dict[str, str]]:
        """Status, text, headers (names in small letters). OSError where the network fails."""
        form = urlencode([(name, self.token if name == "csrf_token" else value) for name, value in fields])
        body, target = (form, path) if method == "POST" else (None, f"{path}?{form}" if form else path)
        headers = {"Connection": "close", "Cookie": self.cookie, "Origin": self.origin}
        headers |= {"Content-Type": FORM, "Accept": accept} if method == "POST" else {}
        connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT_S)
        try:
            opened(connection)
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except http.client.HTTPException as problem:
            raise ConnectionError(repr(problem)) from problem
        finally:
            connection.close()
        for line in response.msg.get_all("Set-Cookie") or []:
            name, _, value = line.partition(";")[0].strip().partition("=")
            self.cookies[name] = value
        return response.status, text, {name.lower(): value for name, value in response.getheaders()}

    def sign_in(self, email: str, password: str) -> None:
        """By the form. Raises NotSignedIn."""
        path = f"{self.prefix}/sign-in"
        status, text, _ = self.request("GET", path)
        if status != 200:
            raise NotSignedIn(f"{path} answered {status}")
        self.token = next(one["a"]["value"] for one in every(text, "input") if one["a"].get("name") == "csrf_token")
        fields = [("email", email), ("password", password), ("csrf_token", "")]
        for _ in range(SIGN_IN_TRIES):  # passwords are checked one at a time: a full queue says when to come back
            status, _, headers = self.request("POST", path, fields, accept="text/html")
            if status != 503:
                break
            time.sleep(int(headers.get("retry-after", 1)) * random.uniform(0.5, 1))
        if status != 303:
            raise NotSignedIn(f"signing in as {email} was answered {status}")

    def home(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The chat-config of a fresh page, and the attributes of its body; learns its token. Raises NotSignedIn."""
        path = f"{self.prefix}/"
        for _ in range(5):
            status, text, headers = self.request("GET", path)
            if "location" not in headers:
                break
            path = urlsplit(headers["location"]).path
        metas = {meta["a"].get("name", ""): meta["a"].get("content", "") for meta in every(text, "meta")}
        if "chat-config" not in metas:
            raise NotSignedIn(f"{path} answered {status} without a chat")
        self.token = metas["csrf-token"]
        return json.loads(metas["chat-config"]), every(text, "body")[0]["a"]


def every(markup: str, tag: str) -> list[Tree]:
    """All elements of that name, in the document's order."""

    def walk(tree: Tree) -> Iterable[Tree]:
        if tree["t"] == tag:
            yield tree
        for child in tree.get("c", ()):
            yield from walk(child)

    return [found for top in trees(markup) for found in walk(top)]


class Loop:
    """The thread of all pages of this process, or of a test module's: each has a JavaScript context of its own."""

    driver: Script

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._clients: set[Client] = set()
        self._thread = threading.Thread(target=self._run, name="pages", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        """Soon, in the pages' thread."""
        self._work.put(work)

    def add(self, client: Client) -> None:
        """See to its clock from now on."""
        self._clients.add(client)

    def remove(self, client: Client) -> None:
        """It has ended."""
        self._clients.discard(client)

    def found(self, question: Callable[[], Found], timeout: float = 10.0) -> Found:
        """The answer to a question that is asked in the pages' thread. Raises what it raises, and TimeoutError."""
        answer: Future[Found] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except Exception as error:  # any error belongs to the caller
                answer.set_exception(error)

        self.do(ask)
        return answer.result(timeout)

    def stop(self) -> None:
        """End the thread."""
        self._work.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        self.driver = Script("tests/headless/page.js")
        while True:
            due = min((client.due for client in self._clients), default=float("inf"))
            try:
                work = self._work.get(timeout=min(5.0, max(0.0, due - now_ms()) / 1000))
                if work is None:
                    return
                work()
            except queue.Empty:
                pass
            for client in [client for client in self._clients if client.due <= now_ms()]:
                client.happen("tick")


class Client:
    """One page of a person. Methods may be called from any thread; the callbacks run in the pages' thread and must not
    block. `transports` narrows what the server offers; `follows`: feeds that are shown from the start, where a person's
    page has at least the list (a poll about nothing is refused); `notes` is what earlier pages noted of networks, and
    is kept true.
    """

    def __init__(
        self,
        loop: Loop,
        url: str,
        email: str,
        password: str,
        transports: Iterable[str] = ("websocket", "polling"),
        *,
        follows: Iterable[str] = (),
        on_record: Callable[[dict[str, Any]], None] = lambda record: None,
        on_shown: Callable[[str, dict[str, Any]], None] = lambda feed, row: None,
        notes: dict[str, Any] | None = None,
        reports: bool = False,
    ) -> None:
        """`reports`: it sends the server its connection events, as a browser's page does."""
        self._loop, self._session = loop, Session(url)
        self._email, self._password, self._transports = email, password, tuple(transports)
        self._on_record, self._on_shown = on_record, on_shown
        self._notes = {} if notes is None else notes
        self._follows = tuple(follows)
        self._page: Page | None = None
        self._sockets: dict[int, Line] = {}
        self._requests: dict[int, http.client.HTTPConnection | None] = {}
        self._seq = 0
        self._ws_path = ""
        self.id = str(uuid4())
        self._reports: list[dict[str, Any]] | None = [] if reports else None
        self._reported_count = 0

    @property
    def due(self) -> float:
        """When its clock wants to be looked at, in ms of `now_ms`."""
        due = self._page.due if self._page else None
        return float("inf") if due is None else due

    def start(self) -> Client:
        """Sign in, load a page, connect. Raises OSError, NotSignedIn. Returns itself."""
        began = time.monotonic()
        self._session.sign_in(self._email, self._password)
        config, body = self._session.home()
        latency = min(500, int((time.monotonic() - began) * PAGE_MS))
        offered = [name for name in config["transports"] if name in self._transports]
        config |= {"latency_ms": latency, "transports": offered}
        self._ws_path = config["ws_url"]
        page = {name: body.get(f"data-{name}", "") for name in ("epoch", "mark", "person")}

        def begin() -> None:
            more = {"wall": time.time() * 1000, "tells": True, "notes": self._notes, "origin": self._session.origin}
            more["reports"] = self._reports is not None
            self._page = Page(config, page, random.getrandbits(31), now_ms(), self._loop.driver, **more)
            self._loop.add(self)
            for feed in self._follows:
                self.happen("follow", feed)
            self.happen("start")

        self._loop.found(begin)
        return self

    def __enter__(self) -> Client:
        return self if self._page else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # What people do

    def create(self, body: str = "") -> str:
        """A new conversation, followed, with its first message where there is one; its id. Raises ValueError where that
        was refused, OSError where it was not made."""
        conversation = str(uuid4())
        if body:
            self.wait_sent(self.send(conversation, body, create=True))
        else:
            status, text, _ = self._session.request("POST", f"{self._session.prefix}/c", [("id", conversation), TOKEN])
            if status not in (200, 201):
                raise ConnectionError(f"{conversation} was not made: {status} {text[:200]}")
        self.follow(conversation)
        return conversation

    def follow(self, feed: str) -> None:
        """Show a feed (a conversation, or `list`), from nothing."""
        self._loop.do(lambda: self.happen("follow", feed))

    def unfollow(self, feed: str) -> None:
        """Show it no longer."""
        self._loop.do(lambda: self.happen("unfollow", feed))

    def send(self, conversation: str, body: str, client_id: str = "", *, create: bool = False) -> str:
        """Take a message and return its client id at once; it is repeated until the server has it."""
        client_id = client_id or str(uuid4())
        self._loop.do(lambda: self.happen("send", client_id, conversation, body, create))
        return client_id

    def hint(self, what: str) -> None:
        """What the browser would say: wake, hidden, online, offline; or the person: retry."""
        self._loop.do(lambda: self.happen("hint", what))

    def close(self) -> None:
        """The page goes."""
        self._loop.found(self._end)

    # What can be seen

    @property
    def state(self) -> dict[str, Any]:
        """record, cursors, waiting, acks, refusals, notes: see core.Page.seen. Raises RuntimeError before the start."""
        return self._loop.found(lambda: self._running().seen())

    @property
    def record(self) -> dict[str, Any]:
        """The observable record: status, connectionType, reason, reconnectAttempts, rtt, …"""
        found: dict[str, Any] = self.state["record"]
        return found

    def messages(self, conversation: str) -> list[Message]:
        """What is shown of a conversation, in order."""
        rows = self._loop.found(lambda: self._running().rows(conversation))
        return [Message.of(row) for row in rows if row["position"]]

    def titles(self) -> dict[str, str]:
        """The list of conversations, where it is followed: id → title."""
        return {row["id"]: row["title"] for row in self._loop.found(lambda: self._running().rows("list"))}

    def wait(self, condition: Callable[[], Found], timeout: float = 10.0, what: str = "") -> Found:
        """Wait until the condition holds; its value. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {timeout:g} s: {what or condition}; {self.record}")
            time.sleep(0.01)
        return found

    def reach(self, *statuses: str, within: float = 15.0) -> None:
        """Wait for one of these statuses. Raises TimeoutError."""
        self.wait(lambda: self.record["status"] in statuses, within, f"one of {statuses}")

    def wait_sent(self, client_id: str, timeout: float = 10.0) -> dict[str, Any]:
        """The acknowledgement of a message (id, position, revision). Raises TimeoutError, ValueError where refused."""

        def settled() -> tuple[dict[str, Any] | None, str | None] | None:
            state = self.state
            found = state["acks"].get(client_id), state["refusals"].get(client_id)
            return found if any(found) else None

        ack, refusal = self.wait(settled, timeout, f"{client_id} is sent")
        if ack is None:
            raise ValueError(f"{client_id} was refused: {refusal}")
        return ack

    # Inside

    def _running(self) -> Page:
        if self._page is None:
            raise RuntimeError("start() the client first, and ask before it is closed")
        return self._page

    def _end(self) -> None:
        if self._page is None:
            return
        self.happen("hint", "stop")
        self._notes.update(self._page.seen()["notes"])
        self._loop.remove(self)
        self._page.close()
        self._page = None

    def happen(self, what: str, *given: Any) -> None:
        """In the pages' thread: let something happen, and do what the core wants."""
        if self._page is None:
            return
        self._page.happen(now_ms(), what, *given, wall=time.time() * 1000)
        for name, *order in self._page.take():
            getattr(self, f"_{name}")(*order)

    def later(self, what: str, *given: Any) -> None:
        """From any thread."""
        self._loop.do(lambda: self.happen(what, *given))

    def ended(self, number: int, code: int, reason: str) -> None:
        """From any thread: a socket is over."""

        def over() -> None:
            self._sockets.pop(number, None)
            self.happen("closed", number, code, reason)

        self._loop.do(over)

    # What the core wants

    def _ask(self, number: int, method: str, url: str, fields: list[tuple[str, str]]) -> None:
        self._requests[number] = None
        _begin(self._request, number, method, url, fields)

    def _drop(self, number: int) -> None:
        _abort(self._requests.pop(number, None))

    def _open(self, number: int, replaces: str) -> None:
        named = {"page": self.id if self._reports is not None else "", "replaces": replaces}
        query = urlencode({name: value for name, value in named.items() if value})
        path = self._ws_path + (f"?{query}" if query else "")
        self._sockets[number] = Line(self, self._session, number, path)

    def _say(self, number: int, text: str) -> None:
        if line := self._sockets.get(number):  # else it has just ended, which is on its way to the core
            line.say(text)

    def _hang(self, number: int, code: int) -> None:
        if line := self._sockets.pop(number, None):
            _begin(line.close, code)

    def _status(self, *_: object) -> None:
        pass

    def _changed(self, record: dict[str, Any]) -> None:
        self._on_record(record)

    def _reported(self, report: dict[str, Any]) -> None:
        if self._reports is None:
            return
        if not self._reports:
            _begin(self._send_reports)
        self._reported_count += 1
        self._reports.append({"client": self.id, "number": self._reported_count, **report})

    def _send_reports(self) -> None:
        """Soon, and until the server has them."""
        while True:
            time.sleep(REPORT_S)
            batch = list(self._reports or ())
            fields = [("events", json.dumps(batch)), ("now", str(round(time.time() * 1000))), TOKEN]
            with contextlib.suppress(OSError):
                status, _, _ = self._session.request("POST", f"{self._session.prefix}/connection/events", fields)
                if status == 204 or self._page is None:
                    del (self._reports or [])[: len(batch)]
                    if not self._reports:
                        return

    def _foretold(self, _foretold: dict[str, Any]) -> None:
        pass

    def _shown(self, feed: str, row: dict[str, Any]) -> None:
        self._on_shown(feed, row)

    def _sent(self, *_: object) -> None:
        pass

    def _failed(self, *_: object) -> None:
        pass

    def _read(self, number: int) -> None:
        self.later("done", number, [])

    def _write(self, number: int, operations: list[list[Any]]) -> None:
        self._seq += len(operations)
        keys = range(self._seq - len(operations) + 1, self._seq + 1)
        self.later("done", number, [key for key, _ in zip(keys, operations, strict=True)])

    def _renew(self, number: int) -> None:
        def ask() -> None:
            outcome = "foreign-page"
            with contextlib.suppress(OSError, NotSignedIn):
                self._session.home()
                outcome = "renewed"
            self.later("done", number, outcome)

        _begin(ask)

    # In threads

    def _request(self, number: int, method: str, url: str, fields: list[tuple[str, str]]) -> None:
        answer: dict[str, Any] | None = None
        with contextlib.suppress(OSError):
            status, text, headers = self._session.request(
                method, url, fields, opened=lambda connection: self._opened(number, connection)
            )
            is_redirect = 300 <= status < 400
            status = 0 if is_redirect else status
            answer = {"status": status, "text": text, "headers": headers, "isRedirect": is_redirect}

        def answered() -> None:
            if number in self._requests:
                del self._requests[number]
                self.happen("answered", number, answer)

        self._loop.do(answered)

    def _opened(self, number: int, connection: http.client.HTTPConnection) -> None:
        if number not in self._requests:
            raise ConnectionError("given up")
        self._requests[number] = connection


class Line:
    """One WebSocket, in a thread that reads."""

    def __init__(self, client: Client, session: Session, number: int, path: str) -> None:
        self._client, self._session, self._number, self._path = client, session, number, path
        self._socket: socket.socket | None = None
        self._connection: ClientConnection | None = None
        self._is_over = False
        _begin(self._run)

    def _run(self) -> None:
        code, reason = 1006, ""
        try:
            self._socket = socket.create_connection(self._session.address, timeout=CONNECT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._is_over:
                return
            headers = {"Cookie": self._session.cookie, "Origin": self._session.origin}
            url = f"ws://{urlsplit(self._session.origin).netloc}{self._path}"
            with connect(
                url,
                sock=self._socket,
                additional_headers=headers,
                open_timeout=TIMEOUT_S,
                ping_interval=None,
                close_timeout=1,
            ) as connection:
                self._connection = connection
                self._client.later("opened", self._number)
                for text in connection:
                    self._client.later("frame", self._number, text)
                code, reason = connection.close_code or 1006, connection.close_reason or ""
        except ConnectionClosed as end:
            code, reason = (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "")
        except (OSError, TimeoutError, InvalidHandshake, EOFError):
            pass
        finally:
            if self._socket:
                self._socket.close()
        self._client.ended(self._number, code, reason)

    def say(self, text: str) -> None:
        """Write a frame; a socket that fails ends its reader, which tells."""
        if self._connection:
            with contextlib.suppress(ConnectionClosed, OSError):
                self._connection.send(text)

    def close(self, code: int) -> None:
        """Say goodbye and end it."""
        self._is_over = True
        with contextlib.suppress(ConnectionClosed, OSError):
            if self._connection:
                self._connection.close(code)
        _shut(self._socket)


def now_ms() -> float:
    """The clock of the pages."""
    return time.monotonic() * 1000


def _begin(work: Callable[..., object], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _abort(connection: http.client.HTTPConnection | None) -> None:
    _shut(connection.sock if connection else None)


def _shut(sock: socket.socket | None) -> None:
    if sock:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
