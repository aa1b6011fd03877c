"""Refusals before Flask, after a person's budget is spent: asking too much must cost the server little."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from math import ceil
from typing import Any

from werkzeug.wsgi import get_host

from chatapp.accounts.auth import SessionCache
from chatapp.accounts.limits import Limits
from chatapp.gunicorn_bridge import is_short, note_session
from chatapp.store import StorageUnavailable

MESSAGES = re.compile(r"/c/[0-9a-f-]{36}/messages", re.ASCII)
POLLS = "These are more polls than one person may make."
SENDS = "These are more messages than one person may send. Wait a moment, then send it again."

HeadersOf = Callable[[bool, str], list[tuple[str, str]]]  # (is https, host) -> those of every answer


def document_headers(headers: HeadersOf, environ: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the headers of an answer that depends on the cookie."""
    return [*headers(environ["wsgi.url_scheme"] == "https", get_host(environ)), ("Vary", "Cookie")]


def too_many(start_response: Any, headers: list[tuple[str, str]], message: str, wait_s: float) -> Iterable[bytes]:
    """Answer 429 as Flask does it for programs."""
    body = json.dumps({"error": {"code": "rate", "message": message}}).encode()
    own = [("Content-Type", "application/json"), ("Retry-After", str(ceil(wait_s))), ("Content-Length", str(len(body)))]
    start_response("429 TOO MANY REQUESTS", [*headers, *own])
    return [body]


class SendMiddleware:
    """WSGI middleware: refuses messages of programs beyond the person's budget, and passes on everything else.

    The body is left unread, and read away by gunicorn_bridge.py: only a short one, else the connection would close.
    Nothing is counted, so neither the origin nor the CSRF token matters here.
    """

    def __init__(
        self,
        app: Any,
        sessions: SessionCache,
        limits: Limits,
        headers: HeadersOf,
        is_injecting: Callable[[], bool],
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._limits = limits
        self._headers = headers
        self._is_injecting = is_injecting  # a drill is running; faults are injected in Flask

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") == "POST" and (wait_s := self._wait_s(environ)):
            note_session(environ)
            return too_many(start_response, document_headers(self._headers, environ), SENDS, wait_s)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def _wait_s(self, environ: dict[str, Any]) -> float:
        """Return how long the person has to wait; 0 if Flask has to answer."""
        is_message = environ.get("HTTP_ACCEPT") == "application/json" and MESSAGES.fullmatch(environ["PATH_INFO"])
        if not is_message or self._is_injecting() or not is_short(environ):
            return 0.0
        try:
            session = self._sessions.find(environ.get("HTTP_COOKIE", ""))
        except StorageUnavailable:
            return 0.0
        return self._limits.sends.spent_s(session.person.id) if session else 0.0
