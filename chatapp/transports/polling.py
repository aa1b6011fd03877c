"""HTTP polling: `GET /changes` brings what changed after the cursors, held open where the client asks for it.

"Nothing new" is 204 and costs neither database nor template nor Flask: sessions, permissions and the newest revision of
each feed are in memory, and the `Door` stands before Flask. What it does not answer, Flask does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from flask import Flask, Response, jsonify, request
from gevent.event import Event
from werkzeug.datastructures import MultiDict
from werkzeug.wsgi import get_host

from chatapp.accounts.auth import Auth, Cookies
from chatapp.bus import Bus, session_topic
from chatapp.cache import Cache
from chatapp.chat import Gone
from chatapp.config import Settings
from chatapp.gunicorn_bridge import can_leave, end_request, know, take
from chatapp.store import AuthSession, StorageUnavailable
from chatapp.store.histories import Histories
from chatapp.store.unavailable import RETRY_S
from chatapp.transports import protocol
from chatapp.transports.integrity import ARMOUR, UNKEPT, armoured
from chatapp.transports.long_poll import MOST_HELD, UNREADABLE, Lender, LongPoll
from chatapp.transports.subscriptions import MOST_FEEDS, Reader, StaleCursor

# Headers of an answer that holds no document.
NOTHING = [("Cache-Control", UNKEPT), ("Vary", "Cookie"), ("Cross-Origin-Resource-Policy", "same-origin")]
MOST_QUERIES, MOST_QUERY_BYTES = 4096, 4 << 20  # kept as parsed
POLL_BYTES, FEED_BYTES = 800, 200  # that a parsed query takes, and each feed in it
DRAIN_RETRY_S = 1  # when a poll that a closing server sends away should come back


class BadPoll(Exception):
    """The query is wrong; the message says how."""


@dataclass(frozen=True)
class Poll:
    """One request, understood."""

    epoch: str
    cursors: dict[str, int]
    wait_s: float
    person: str | None = None  # who the client believes to be signed in
    mark: str = ""  # see store/histories.py
    armour: bool = False  # something on the way rewrites HTML


def parse(arguments: MultiDict[str, str], longest_hold_s: float) -> Poll:
    """The query of a poll. Raises BadPoll."""
    cursors: dict[str, int] = {}
    for text in arguments.getlist("c"):
        name, _, revision = text.rpartition(":")
        if not name or not revision.isascii() or not revision.isdigit() or len(revision) > 15:
            raise BadPoll(f"c={text[:60]!r} must be <feed>:<revision>, such as list:7.")
        cursors[name] = int(revision)
    if not cursors:
        raise BadPoll("Name at least one feed: c=<feed>:<revision>.")
    if len(cursors) > MOST_FEEDS:
        raise BadPoll(f"At most {MOST_FEEDS} feeds fit into one poll.")
    try:
        wait_s = float(arguments.get("wait", "0"))
    except ValueError:
        raise BadPoll("wait must be a number of seconds.") from None
    if not wait_s >= 0:
        raise BadPoll("wait must be a number of seconds from 0.")
    is_armoured = arguments.get(ARMOUR) == "1"
    wait_s = min(wait_s, longest_hold_s)
    epoch, mark = arguments.get("epoch", ""), arguments.get("mark", "")
    return Poll(epoch, cursors, wait_s, arguments.get("person"), mark, is_armoured)


def within(poll: Poll, sign_in: AuthSession) -> Poll:
    """A poll that is held no longer than its session lasts."""
    left_s = sign_in.left_s()
    return poll if left_s >= poll.wait_s else replace(poll, wait_s=left_s)


class Queries:
    """Queries as polls: who has nothing new asks the same again and again."""

    def __init__(self, longest_hold_s: float) -> None:
        self._longest_hold_s = longest_hold_s
        self._known: Cache[str, Poll] = Cache(MOST_QUERIES, MOST_QUERY_BYTES)

    def poll(self, query: str) -> Poll:
        """Understand a query. Raises BadPoll."""
        found = self._known.get(query)
        if found is None:
            found = parse(MultiDict(parse_qsl(query, keep_blank_values=True)), self._longest_hold_s)
            self._known.put(query, found, POLL_BYTES + 3 * len(query) + FEED_BYTES * len(found.cursors))
        return found


class Polls:
    """This worker's polls."""

    def __init__(self, reader: Reader, bus: Bus, epoch: str, histories: Histories | None = None) -> None:
        self.reader = reader
        self.bus = bus
        self.held: set[LongPoll] = set()  # by the event loop
        self.lender: Lender | None = None  # of sockets, where there is one
        self._epoch = epoch
        self._histories = histories
        self._waiting: set[Event] = set()  # in greenlets
        self._bodies: dict[bool, tuple[list[str], bytes]] = {}  # the last ones, plain and armoured
        self.is_draining = False

    def answer(self, person: int, session: int, poll: Poll) -> list[str]:
        """The frames for a poll; empty when nothing is new, after the hold, or when the session ends meanwhile."""
        found = self.now(person, poll)
        return found if found or poll.wait_s <= 0 else self._hold(person, session, poll)

    def body(self, found: list[str], is_armoured: bool) -> bytes:
        """The body of an answer; the same for many who waited for the same."""
        kept = self._bodies.get(is_armoured)
        if kept is None or found != kept[0]:
            plain = protocol.answer(found).encode()
            kept = self._bodies[is_armoured] = (found, armoured(plain) if is_armoured else plain)
        return kept[1]

    def hand_over(self, environ: dict[str, Any], sign_in: AuthSession, poll: Poll, head: str, looked: int) -> bool:
        """Have the event loop hold this request, if it can take its socket: False where it must wait as it is.

        looked: how much had been published before it was looked for news."""
        if self.lender is None or not can_leave(environ):
            return False
        connections = self.lender.connections
        if connections.lent >= MOST_HELD or connections.is_full():
            return False
        LongPoll(take(environ), self, self.lender, sign_in, poll).start(environ["REMOTE_ADDR"], head, looked)
        return True

    def drain(self) -> None:
        """Let all held polls go."""
        self.is_draining = True
        for event in tuple(self._waiting):
            event.set()
        for poll in tuple(self.held):
            poll.let_go()

    def _hold(self, person: int, session: int, poll: Poll) -> list[str]:
        event, ended = Event(), []

        def end(topic: int) -> None:
            ended.append(topic)
            event.set()

        cancels = [*self._subscribe(person, poll, event), self.bus.subscribe(session_topic(session), end)]
        self._waiting.add(event)
        deadline = time.monotonic() + poll.wait_s
        try:
            while not self.is_draining and not ended:
                found = self.now(person, poll)  # also what came between the first look and the subscription
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                event.wait(timeout=left)
                event.clear()
            return []
        finally:
            self._waiting.discard(event)
            for cancel in cancels:
                cancel()

    def _subscribe(self, person: int, poll: Poll, event: Event) -> list[Callable[[], None]]:
        def wake(_topic: int) -> None:
            event.set()

        feeds = []
        for name in poll.cursors:
            try:
                feeds.append(self.reader.feed(person, name))
            except Gone:
                event.set()
        return [self.bus.subscribe(feed, wake) for feed in feeds]

    def now(self, person: int, poll: Poll) -> list[str]:
        """The frames of what is new at this moment."""
        reload = protocol.stale(self._histories, poll.epoch, self._epoch, poll.mark)
        if reload is not None:
            return [reload(name) for name in poll.cursors]
        found = []
        for name, cursor in poll.cursors.items():
            try:
                if self.reader.is_new(person, name, cursor):
                    update = self.reader.read(person, name, cursor)
                    if update.frame is not None:
                        found.append(update.frame)
            except Gone:
                found.append(protocol.gone(name))
            except StaleCursor:
                found.append(protocol.reload(name, "cursor"))
        return found


class Door:
    """WSGI middleware: answers polls of who is known to be signed in, and leaves all else to the app behind it."""

    def __init__(
        self,
        app: Any,
        polls: Polls,
        cookies: Cookies,
        settings: Settings,
        headers: Callable[[bool, str], list[tuple[str, str]]],
        is_spoiled: Callable[[], bool],
    ) -> None:
        self._app = app
        self._polls = polls
        self._cookies = cookies
        self._queries = Queries(settings.poll_longest_hold)
        self._is_spoiled = is_spoiled  # a drill is running, and spoils what reaches Flask
        self._headers = headers  # of every answer: (is https, host) -> names and values

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = None
        if environ.get("PATH_INFO") == "/changes" and environ.get("REQUEST_METHOD") == "GET":
            body = self._body(environ)
        if body is None:
            behind: Iterable[bytes] = self._app(environ, start_response)
            return behind
        if not body:
            start_response("204 NO CONTENT", NOTHING)
            return []
        start_response("200 OK", [*self._document_headers(environ), ("Content-Length", str(len(body)))])
        return [body]

    def _document_headers(self, environ: dict[str, Any]) -> list[tuple[str, str]]:
        fixed = self._headers(environ["wsgi.url_scheme"] == "https", get_host(environ))
        return [*fixed, ("Vary", "Cookie"), ("Content-Type", "text/html; charset=utf-8")]

    def _body(self, environ: dict[str, Any]) -> bytes | None:
        """The answer's body, empty where nothing is new; None where Flask has to say why there is none."""
        if self._is_spoiled():
            return None
        query = environ.get("QUERY_STRING", "")
        try:
            sign_in = self._cookies.sign_in(environ.get("HTTP_COOKIE", ""))
        except StorageUnavailable:
            return None
        if sign_in is None or self._polls.is_draining or not query.isascii():
            return None
        know(environ)
        try:
            poll = within(self._queries.poll(query), sign_in)
        except BadPoll:
            return None
        if poll.person not in (None, sign_in.person.uuid):
            return None
        looked = self._polls.bus.published
        try:
            found = self._polls.now(sign_in.person.id, poll)
        except StorageUnavailable:
            return None
        if found or poll.wait_s <= 0:
            return self._polls.body(found, poll.armour) if found else b""
        head = "".join(f"{name}: {value}\r\n" for name, value in self._document_headers(environ))
        if self._polls.hand_over(environ, sign_in, poll, head, looked):
            end_request()
        found = self._polls.answer(sign_in.person.id, sign_in.id, poll)
        return self._polls.body(found, poll.armour) if found else b""


def register(app: Flask, polls: Polls, auth: Auth, settings: Settings) -> None:
    """Hang the poll into the app."""

    @app.get("/changes")
    def changes() -> Response | tuple[Response, int]:
        sign_in = auth.current()
        if sign_in is None:
            return _error("signed-out", "You are signed out.", 401)
        if request.args.get("person", sign_in.person.uuid) != sign_in.person.uuid:
            return _error("signed-out", "Somebody else has signed in.", 401)
        if polls.is_draining:
            response, status = _error("restart", "The server is closing; come back in a moment.", 503)
            response.headers["Retry-After"] = str(DRAIN_RETRY_S)
            return response, status
        try:
            poll = within(parse(request.args, settings.poll_longest_hold), sign_in)
        except BadPoll as error:
            return _error("bad-poll", str(error), 400)
        try:
            found = polls.answer(sign_in.person.id, sign_in.id, poll)
        except StorageUnavailable:
            response, status = _error("storage", UNREADABLE, 503)
            response.headers["Retry-After"] = str(RETRY_S)
            return response, status
        if not found:
            return Response(status=204)
        return Response(protocol.answer(found), content_type="text/html; charset=utf-8")


def _error(code: str, message: str, status: int) -> tuple[Response, int]:
    return jsonify(error={"code": code, "message": message}), status
