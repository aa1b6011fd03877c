"""HTTP polling: `GET /changes` brings what changed after the cursors, held open where the client asks for it.

"Nothing new" is 204 and costs neither database nor template nor Flask: sessions, permissions and the newest revision of
each feed are in memory, and `PollMiddleware` stands before Flask. What it does not answer, Flask does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.datastructures import MultiDict
from werkzeug.wsgi import get_host

from chatapp.accounts.auth import SessionCache
from chatapp.cache import Cache
from chatapp.config import Settings
from chatapp.gunicorn_bridge import end_request, note_session
from chatapp.store import AuthSession, StorageUnavailable
from chatapp.transports.integrity import ARMOUR, UNKEPT
from chatapp.transports.long_poll import Poll, Polls
from chatapp.transports.subscriptions import MOST_FEEDS

# Headers of an answer that holds no document.
NOTHING = [("Cache-Control", UNKEPT), ("Vary", "Cookie"), ("Cross-Origin-Resource-Policy", "same-origin")]
MOST_QUERIES, MOST_QUERY_BYTES = 4096, 4 << 20  # kept as parsed
POLL_BYTES, FEED_BYTES = 800, 200  # that a parsed query takes, and each feed in it
DRAIN_RETRY_S = 1  # when a poll that a closing server sends away should come back


class BadPoll(Exception):
    """The query is wrong; the message says how."""


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


class PollMiddleware:
    """WSGI middleware: answers polls of who is known to be signed in, and leaves all else to the app behind it."""

    def __init__(
        self,
        app: Any,
        polls: Polls,
        cookies: SessionCache,
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
            sign_in = self._cookies.find(environ.get("HTTP_COOKIE", ""))
        except StorageUnavailable:
            return None
        if sign_in is None or self._polls.is_draining or not query.isascii():
            return None
        note_session(environ)
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
