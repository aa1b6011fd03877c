"""HTTP polling: `GET /changes` returns the changes after the cursors, as a long poll if the client asks for it.

"Nothing new" is 204 and costs neither database nor template nor Flask: `PollMiddleware` answers before Flask from
sessions, permissions and revisions in memory. Drills and errors are Flask's.
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

# Headers of a 204.
NOTHING = [("Cache-Control", UNKEPT), ("Vary", "Cookie"), ("Cross-Origin-Resource-Policy", "same-origin")]
MOST_QUERIES, MOST_QUERY_BYTES = 4096, 4 << 20  # in the cache of parsed queries
POLL_BYTES, FEED_BYTES = 800, 200  # size of a parsed query, and of each feed in it
DRAIN_RETRY_S = 1  # Retry-After of a draining server


class BadPoll(Exception):
    """An invalid query; the message is for the client."""


def parse(arguments: MultiDict[str, str], longest_hold_s: float) -> Poll:
    """Parse the query of a poll. Raises BadPoll."""
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


def within(poll: Poll, session: AuthSession) -> Poll:
    """Return the poll with its hold bounded by the session's remaining lifetime."""
    left_s = session.left_s()
    return poll if left_s >= poll.wait_s else replace(poll, wait_s=left_s)


class Queries:
    """A cache of parsed queries: an idle client repeats its query."""

    def __init__(self, longest_hold_s: float) -> None:
        self._longest_hold_s = longest_hold_s
        self._known: Cache[str, Poll] = Cache(MOST_QUERIES, MOST_QUERY_BYTES)

    def poll(self, query: str) -> Poll:
        """Return a query as a poll. Raises BadPoll."""
        found = self._known.get(query)
        if found is None:
            found = parse(MultiDict(parse_qsl(query, keep_blank_values=True)), self._longest_hold_s)
            self._known.put(query, found, POLL_BYTES + 3 * len(query) + FEED_BYTES * len(found.cursors))
        return found


class PollMiddleware:
    """WSGI middleware: answers polls with a session in memory, and passes everything else on to Flask."""

    def __init__(
        self,
        app: Any,
        polls: Polls,
        cookies: SessionCache,
        settings: Settings,
        headers: Callable[[bool, str], list[tuple[str, str]]],
        is_injecting: Callable[[], bool],
    ) -> None:
        self._app = app
        self._polls = polls
        self._cookies = cookies
        self._queries = Queries(settings.poll_longest_hold)
        self._is_injecting = is_injecting  # a drill is running; faults are injected in Flask
        self._headers = headers  # of every answer: (is https, host) -> names and values

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = None
        if environ.get("PATH_INFO") == "/changes" and environ.get("REQUEST_METHOD") == "GET":
            body = self._answer(environ)
        if body is None:
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        if not body:
            start_response("204 NO CONTENT", NOTHING)
            return []
        start_response("200 OK", [*self._document_headers(environ), ("Content-Length", str(len(body)))])
        return [body]

    def _document_headers(self, environ: dict[str, Any]) -> list[tuple[str, str]]:
        fixed = self._headers(environ["wsgi.url_scheme"] == "https", get_host(environ))
        return [*fixed, ("Vary", "Cookie"), ("Content-Type", "text/html; charset=utf-8")]

    def _answer(self, environ: dict[str, Any]) -> bytes | None:
        """Return the answer's body, empty if nothing is new, or None if Flask has to answer."""
        if self._is_injecting():
            return None
        query = environ.get("QUERY_STRING", "")
        try:
            session = self._cookies.find(environ.get("HTTP_COOKIE", ""))
        except StorageUnavailable:
            return None
        if session is None or self._polls.is_draining or not query.isascii():
            return None
        note_session(environ)
        try:
            poll = within(self._queries.poll(query), session)
        except BadPoll:
            return None
        if poll.person not in (None, session.person.uuid):
            return None
        published = self._polls.bus.published
        try:
            found = self._polls.now(session.person.id, poll)
        except StorageUnavailable:
            return None
        if found or poll.wait_s <= 0:
            return self._polls.body(found, poll.armour) if found else b""
        head = "".join(f"{name}: {value}\r\n" for name, value in self._document_headers(environ))
        if self._polls.try_detach(environ, session, poll, head, published):
            end_request()
        found = self._polls.answer(session.person.id, session.id, poll)
        return self._polls.body(found, poll.armour) if found else b""
