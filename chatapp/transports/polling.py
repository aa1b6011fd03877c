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

from chatapp.accounts.auth import SessionCache
from chatapp.accounts.limits import Limits
from chatapp.cache import Cache
from chatapp.config import Settings
from chatapp.gunicorn_bridge import end_request, header_lines, note_session
from chatapp.store import AuthSession, StorageUnavailable
from chatapp.transports.armour import ARMOUR
from chatapp.transports.long_poll import NOTHING, Poll, Polls
from chatapp.transports.over_budget import POLLS, HeadersOf, document_headers, too_many
from chatapp.transports.subscriptions import MOST_FEEDS, are_distinct

MOST_QUERIES, MOST_QUERY_BYTES = 4096, 4 << 20  # in the cache of parsed queries
POLL_BYTES, FEED_BYTES = 800, 200  # size of a parsed query, and of each feed in it
DRAIN_RETRY_S = 1  # Retry-After of a draining server


class TooManyPolls(Exception):
    """The person's budget of polls is spent."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


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
    is_short = arguments.get("short") == "1" and are_distinct(cursors)
    return Poll(epoch, cursors, wait_s, arguments.get("person"), mark, is_armoured, is_short)


def within(poll: Poll, session: AuthSession) -> Poll:
    """Return the poll with its hold bounded by the session's remaining lifetime."""
    left_s = session.left_s()
    return poll if left_s >= poll.wait_s else replace(poll, wait_s=left_s)


class PollMiddleware:
    """WSGI middleware: answers polls with a session in memory, and passes everything else on to Flask."""

    def __init__(
        self,
        app: Any,
        polls: Polls,
        sessions: SessionCache,
        settings: Settings,
        limits: Limits,
        headers: HeadersOf,
        is_injecting: Callable[[], bool],
        note_transport: Callable[[int, str], None],
    ) -> None:
        self._app = app
        self._polls = polls
        self._sessions = sessions
        self._limits = limits
        self._longest_hold_s = settings.poll_longest_hold
        self._parsed: Cache[str, Poll] = Cache(MOST_QUERIES, MOST_QUERY_BYTES)
        self._is_injecting = is_injecting  # a drill is running; faults are injected in Flask
        self._note_transport = note_transport
        self._headers = headers

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = None
        if environ.get("PATH_INFO") == "/changes" and environ.get("REQUEST_METHOD") == "GET":
            try:
                body = self._answer(environ)
            except TooManyPolls as refused:
                return too_many(start_response, document_headers(self._headers, environ), POLLS, refused.wait_s)
        if body is None:
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        if not body:
            start_response("204 NO CONTENT", NOTHING)
            return []
        start_response("200 OK", [*self._document_headers(environ), ("Content-Length", str(len(body)))])
        return [body]

    def _document_headers(self, environ: dict[str, Any]) -> list[tuple[str, str]]:
        return [*document_headers(self._headers, environ), ("Content-Type", "text/html; charset=utf-8")]

    def _answer(self, environ: dict[str, Any]) -> bytes | None:
        """Return the answer's body, empty if nothing is new, or None if Flask has to answer. Raises TooManyPolls."""
        polls, query = self._polls, environ.get("QUERY_STRING", "")
        if self._is_injecting() or polls.connections.is_draining or not query.isascii():
            return None
        try:
            session = self._sessions.find(environ.get("HTTP_COOKIE", ""))
            poll = self._parse(query) if session else None
            if session is None or poll is None or poll.person not in (None, session.person.uuid):
                return None
            note_session(environ)
            if wait_s := self._limits.polls.take(session.person.id):
                raise TooManyPolls(wait_s)
            self._note_transport(session.id, "polling")
            poll, published = within(poll, session), polls.bus.published
            found = polls.news(session, environ.get("REMOTE_ADDR", ""), poll)
            if not found and poll.wait_s > 0:
                head = header_lines(self._document_headers(environ))
                if polls.try_detach(environ, session, poll, head, published):
                    end_request()
                found = polls.answer(session.person.id, session.id, poll)
        except (BadPoll, StorageUnavailable):
            return None
        return polls.body(found, poll.armour) if found else b""

    def _parse(self, query: str) -> Poll:
        """Return a query as a poll; an idle client repeats it. Raises BadPoll."""
        poll = self._parsed.get(query)
        if poll is None:
            poll = parse(MultiDict(parse_qsl(query, keep_blank_values=True)), self._longest_hold_s)
            self._parsed.put(query, poll, POLL_BYTES + 3 * len(query) + FEED_BYTES * len(poll.cursors))
        return poll
