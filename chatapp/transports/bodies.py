"""Which request's body is read, and how much of it: decided by its head, before anything of it is in memory."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any

from flask import Flask, request

from chatapp.accounts.auth import Cookies
from chatapp.gunicorn_bridge import has_body, know, leave_body, place
from chatapp.store import StorageUnavailable
from chatapp.wellformed import PLAIN

LONGEST = "chatapp.longest_body"  # in a request's environment
LONG_BYTES = 512 << 10  # a report of 200 events or a message of 20,000 characters, with room
SHORT_BYTES = 16 << 10  # everything else
LONG_PATHS = ("/c", "/connection/events")  # and whatever ends in:
LONG_ENDS = "/messages"
TOO_LONG = "This is longer than anything that this address takes.\n"
FOR_STRANGERS = ("/sign-in", "/first-run")


class Door:
    """WSGI middleware: bounds bodies, and leaves those unread that a stranger sends where a session is needed."""

    def __init__(self, app: Any, cookies: Cookies) -> None:
        self._app = app
        self._cookies = cookies

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        place(environ, environ.get("chatapp.peer", ""))
        if has_body(environ) and not self._bound(environ):
            words = TOO_LONG.encode()
            start_response("413 CONTENT TOO LARGE", [*PLAIN, ("Content-Length", str(len(words)))])
            return [words]
        behind: Iterable[bytes] = self._app(environ, start_response)
        return behind

    def _bound(self, environ: dict[str, Any]) -> bool:
        """False where it is a stranger's and too long: that is said without a page."""
        path, header = environ.get("PATH_INFO", ""), environ.get("HTTP_COOKIE", "")
        is_known = self._is_signed_in(header)
        if is_known:
            know(environ)
        elif path not in FOR_STRANGERS and not self._has_ended(header):
            leave_body(environ)
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(), "0"
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            return True
        is_long = path in LONG_PATHS or path.endswith(LONG_ENDS)
        environ[LONGEST] = LONG_BYTES if is_long else SHORT_BYTES
        length = environ.get("CONTENT_LENGTH", "")
        is_too_long = length.isdecimal() and int(length) > environ[LONGEST]
        if is_too_long:
            leave_body(environ)
        return is_known or not is_too_long

    def _is_signed_in(self, header: str) -> bool:
        try:
            return self._cookies.sign_in(header) is not None
        except StorageUnavailable:  # Flask says so; until then it is somebody's whose session has ended
            return False

    def _has_ended(self, header: str) -> bool:
        """Whether it is of somebody whose session has ended: they are told so, and not that the form is too old."""
        value = self._cookies.own(header)
        return bool(value) and self._cookies.token_hash(value) is not None


def register(app: Flask) -> None:
    """Have Flask refuse what is longer (413), before it reads. Call it before anything that reads a form."""

    @app.before_request
    def bound() -> None:
        if LONGEST in request.environ:
            request.max_content_length = request.environ[LONGEST]
