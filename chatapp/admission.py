"""Admission control before Flask: a page takes the event loop a millisecond or more, and what has no session gets a
share of its time. One at a time begins, in an order that is fair between addresses; people who are signed in pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import gevent

from chatapp.accounts.auth import JUDGED, Cookies
from chatapp.concurrency import has_loop
from chatapp.fair_queue import Attempts, FairQueue, Full, Refusals
from chatapp.gunicorn_bridge import end_request, has_left, is_cut, know, leave_body
from chatapp.served import Files
from chatapp.store import StorageUnavailable
from chatapp.wellformed import PLAIN

APART_S = 0.02  # between two pages for strangers: they get some tenth of the event loop
FILES_APART_S = 0.003  # between two files for them: a page needs some thirty
GIVE_WAY = 3.0  # the loop is late: wait so many times longer than that before the next one
LONGEST_S = 0.25  # between two, however late the loop is
MOST_WAITING = 250  # pages: some 5 s
MOST_FILES_WAITING = 100  # some 0.3 s
FREE = ("/healthz", "/readyz")  # cheap, and a balancer must not wait for them
WORDS = b"Too many people who are not signed in ask for pages at this moment. Try again in a few seconds.\n"
RETRY_S = 5


class Pace:
    """Lets one request after the other begin, some time apart."""

    def __init__(self, apart_s: float, most_waiting: int, attempts: Attempts) -> None:
        self._apart_s = apart_s
        self._queue = FairQueue(most_waiting, attempts)
        self._next_at = 0.0  # monotonic clock, s
        self._is_running = False

    def wait(self, environ: dict[str, Any]) -> None:
        """Return when this request may begin: at once where strangers are few. Raises Full."""
        address = environ.get("REMOTE_ADDR", "")
        attempts, now = self._queue.attempts.count(address), time.monotonic()
        if not self._is_running and now >= self._next_at:
            self._next_at = now + self._apart_s
            return
        if not self._is_running:
            self._is_running = True
            gevent.spawn(self._run)
        self._queue.wait(attempts, has_left=lambda: has_left(environ))

    def _run(self) -> None:
        try:
            while True:
                gevent.sleep(max(0.0, self._next_at - time.monotonic()))
                now = time.monotonic()
                late = max(0.0, now - self._next_at)
                if not self._queue.let_next():
                    return
                self._next_at = now + min(LONGEST_S, max(self._apart_s, GIVE_WAY * late))
        finally:
            self._is_running = False


class Admission:
    """WSGI middleware. `attempts`: of pages and of passwords; signing in takes them back."""

    def __init__(self, app: Any, cookies: Cookies, files: Files, attempts: Attempts) -> None:
        self._app = app
        self._cookies = cookies
        self._known_files = files
        self._refusals = Refusals()
        self._pages = Pace(APART_S, MOST_WAITING, attempts)
        self._files = Pace(FILES_APART_S, MOST_FILES_WAITING, Attempts())

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            if has_loop() and self._is_strangers(environ):
                self._wait(environ)
        except Full:
            self._refusals.wait()
            if is_cut(environ):
                end_request()
            leave_body(environ)  # nor any request behind this one
            start_response("503 SERVICE UNAVAILABLE", [*PLAIN, ("Retry-After", str(RETRY_S))])
            return [WORDS]
        if is_cut(environ):  # while it waited
            end_request()
        behind: Iterable[bytes] = self._app(environ, start_response)
        return behind

    def _wait(self, environ: dict[str, Any]) -> None:
        path = environ.get("PATH_INFO", "")
        is_plain = environ.get("REQUEST_METHOD") in ("GET", "HEAD")
        if is_plain and self._known_files.has(path):
            self._files.wait(environ)
        elif not is_plain or path not in FREE:  # also what there is not: to say so takes a page
            self._pages.wait(environ)

    def _is_strangers(self, environ: dict[str, Any]) -> bool:
        if JUDGED in environ:
            return False
        try:
            is_live = self._cookies.sign_in(environ.get("HTTP_COOKIE", "")) is not None
        except StorageUnavailable:  # the cookie is ours; what needs the database says that it does not answer
            return False
        if is_live:
            know(environ)
        return not is_live
