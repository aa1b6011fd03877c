"""Long polls: their sockets are detached from gunicorn, wait on the event loop, and close after the answer.

A waiting poll costs an object instead of a greenlet with gunicorn's request, and one sweep answers all polls of a feed.
The socket does not go back to gunicorn: early or late bytes must never be parsed as a request.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from gevent.event import Event

from chatapp.bus import Bus, session_topic
from chatapp.chat import Gone
from chatapp.gunicorn_bridge import can_detach, detach
from chatapp.store import AuthSession, StorageUnavailable
from chatapp.store.histories import Histories
from chatapp.store.unavailable import RETRY_S
from chatapp.transports import protocol
from chatapp.transports.connections import Connections
from chatapp.transports.event_socket import LINGER_S, EventSocket, has_unread
from chatapp.transports.integrity import UNKEPT, armoured
from chatapp.transports.subscriptions import Reader, StaleCursor
from chatapp.transports.timers import NO_SLOT, Slot

WRITE_S = 20.0  # for a write to progress: seen only once a third of the kernel's buffer is free
MOST_LONG_POLLS = 10_000  # in a worker; more wait as gunicorn's requests, which gunicorn limits

UNREADABLE = "The server cannot read its storage just now."
NOTHING = f"Cache-Control: {UNKEPT}\r\nVary: Cookie\r\nCross-Origin-Resource-Policy: same-origin\r\n"

log = logging.getLogger("chatapp.polling")


@dataclass(frozen=True)
class Poll:
    """A parsed poll request."""

    epoch: str
    cursors: dict[str, int]
    wait_s: float
    person: str | None = None  # signed in, as far as the client knows
    mark: str = ""  # see store/histories.py
    armour: bool = False  # see integrity.py


class LongPoll(EventSocket):
    """A poll waiting on the event loop, with its socket."""

    __slots__ = (
        "_client",
        "_due",
        "_head",
        "_is_awake",
        "_is_ended",
        "_poll",
        "_polls",
        "_session",
        "_started_at",
        "_topics",
        "slot",
    )

    def __init__(self, fd: int, polls: Polls, session: AuthSession, poll: Poll) -> None:
        super().__init__(fd)
        self.slot: Slot = NO_SLOT
        self._polls = polls
        self._session, self._poll = session, poll
        self._started_at = time.monotonic()
        self._due = self._started_at + poll.wait_s
        self._topics: tuple[int, ...] = ()
        self._client = self._head = ""
        self._is_awake = self._is_ended = False

    def start(self, client: str, head: str, published: int) -> None:
        """Wait for changes.

        client: the address for the access log. head: the answer's fixed headers. published: `Bus.published` before the
        last look for changes."""
        self._client, self._head = client, head
        self._topics = self._subscribe_feeds()
        self._polls.long_polls.add(self)
        self._polls.connections.long_poll_count += 1
        self._polls.connections.timer.set(self, self._due)
        self.resume_reading()
        if self._polls.bus.published != published or not self._topics:  # a change since then, or a feed is gone
            self.wake(0)

    def _subscribe_feeds(self) -> tuple[int, ...]:
        polls, person = self._polls, self._session.person.id
        try:
            feeds = [polls.reader.feed(person, name) for name in self._poll.cursors]
        except (Gone, StorageUnavailable):
            return ()  # `Polls.now` reports it
        polls.bus.subscribe(session_topic(self._session.id), self.release)
        for feed in feeds:
            polls.bus.subscribe(feed, self.wake)
        return tuple(feeds)

    def _unsubscribe(self) -> None:
        self._polls.long_polls.discard(self)
        self._polls.bus.unsubscribe(session_topic(self._session.id), self.release)
        for feed in self._topics:
            self._polls.bus.unsubscribe(feed, self.wake)
        self._topics = ()

    # Waiting

    def wake(self, _topic: int) -> None:
        """Schedule a look for changes."""
        if not self._is_awake:
            self._is_awake = True
            self._polls.connections.wake(self)

    def release(self, topic: int = 0) -> None:
        """Answer 204: the session has ended, or the worker exits."""
        self._is_ended = True
        self.wake(topic)

    def flush(self) -> None:
        """Answer if there are changes."""
        self._is_awake = False
        action = self._next_action() if self in self._polls.long_polls else None
        # The store may have blocked, and the timer have answered meanwhile: a request has one answer.
        if action is not None and self in self._polls.long_polls:
            action()

    def _next_action(self) -> Callable[[], None] | None:
        try:
            found = [] if self._is_ended else self._polls.now(self._session.person.id, self._poll)
        except StorageUnavailable:  # the store has logged it
            return lambda: self._end(unavailable())
        except Exception:  # the sweep must go on for all others
            log.exception("answering a held poll failed")
            return self.cut
        return (lambda: self._answer(found)) if found or self._is_ended else None

    def check(self, now: float) -> float:
        """End the hold, the write timeout or the linger when it is over; returns when to check again."""
        if self.blocked_at is not None:
            if now - self.blocked_at >= WRITE_S:
                self.cut()
        elif self.ended_at is not None:
            if now - self.ended_at >= LINGER_S:
                self.cut()
        elif now >= self._due:
            self._answer([])
        if self.blocked_at is not None:
            return now + WRITE_S / 4
        return self._due if self.ended_at is None else now + LINGER_S / 4

    # Answering

    def _answer(self, found: list[str]) -> None:
        self._end(http_answer(self._body(found), self._head))

    def _end(self, answer: tuple[int, bytes]) -> None:
        self._unsubscribe()
        status, data = answer
        took = round((time.monotonic() - self._started_at) * 1000)
        self._polls.log(f'{self._client} "GET /changes" {status} {len(data)} {took}ms')
        self.end(data)

    def _body(self, found: list[str]) -> bytes:
        return self._polls.body(found, self._poll.armour) if found else b""

    def _half_close(self) -> None:
        # Without unread bytes the kernel delivers the answer after close(), too.
        if self.bytes_in or has_unread(self._fd):
            super()._half_close()
            self._polls.connections.timer.set(self, time.monotonic() + LINGER_S)
        else:
            self.cut()

    def on_bytes(self, data: bytes) -> None:
        """Ignore pipelined requests; `Connection: close` in the answer makes the client repeat them."""
        self.pause_reading()

    def on_writable(self) -> None:
        """Do nothing: the answer is written."""

    def _write_rest(self) -> None:
        before = self.bytes_out
        super()._write_rest()
        if self.blocked_at is not None and self.bytes_out > before:
            self.blocked_at = time.monotonic()

    def on_blocked(self) -> None:
        """Start the write timeout."""
        self._polls.connections.timer.set(self, time.monotonic() + WRITE_S)

    def on_cut(self) -> None:
        """Do nothing: `on_end` follows."""

    def on_end(self) -> None:
        """Unsubscribe and release the descriptor."""
        self._unsubscribe()
        self._polls.connections.timer.clear(self)
        self._polls.connections.long_poll_count -= 1


class Polls:
    """The polls of this worker."""

    def __init__(
        self, reader: Reader, bus: Bus, connections: Connections, epoch: str, histories: Histories | None = None
    ) -> None:
        self.reader = reader
        self.bus = bus
        self.long_polls: set[LongPoll] = set()
        self.connections = connections
        self.access_log: Callable[[str], None] | None = None  # gunicorn's; None without it
        self._epoch = epoch
        self._histories = histories
        self._waiting: set[Event] = set()  # polls in greenlets
        self._bodies: dict[bool, tuple[list[str], bytes]] = {}  # the last ones by armour: many polls share an answer
        self.is_draining = False

    def answer(self, person: int, session_id: int, poll: Poll) -> list[str]:
        """Return the frames for a poll; waits if nothing is new. Empty when the hold is over or the session ends."""
        found = self.now(person, poll)
        return found if found or poll.wait_s <= 0 else self._wait(person, session_id, poll)

    def body(self, found: list[str], is_armoured: bool) -> bytes:
        """Return the body of an answer."""
        kept = self._bodies.get(is_armoured)
        if kept is None or found != kept[0]:
            plain = protocol.answer(found).encode()
            kept = self._bodies[is_armoured] = (found, armoured(plain) if is_armoured else plain)
        return kept[1]

    def try_detach(self, environ: dict[str, Any], session: AuthSession, poll: Poll, head: str, published: int) -> bool:
        """Move a poll to the event loop; False if it must wait in its greenlet.

        published: `Bus.published` before the last look for changes."""
        if self.access_log is None or not can_detach(environ):
            return False
        if self.connections.long_poll_count >= MOST_LONG_POLLS or self.connections.is_full():
            return False
        LongPoll(detach(environ), self, session, poll).start(environ["REMOTE_ADDR"], head, published)
        return True

    def log(self, line: str) -> None:
        """Write a line to the access log."""
        if self.access_log is not None:
            self.access_log(line)

    def drain(self) -> None:
        """Answer all waiting polls."""
        self.is_draining = True
        for event in tuple(self._waiting):
            event.set()
        for poll in tuple(self.long_polls):
            poll.release()

    def _wait(self, person: int, session_id: int, poll: Poll) -> list[str]:
        event, ended = Event(), []

        def end(topic: int) -> None:
            ended.append(topic)
            event.set()

        cancels = [*self._subscribe(person, poll, event), self.bus.subscribe(session_topic(session_id), end)]
        self._waiting.add(event)
        deadline = time.monotonic() + poll.wait_s
        try:
            while not self.is_draining and not ended:
                found = self.now(person, poll)  # also changes between the first look and the subscription
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
        """Return the frames of the changes so far. Raises StorageUnavailable."""
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


def http_answer(body: bytes, fixed: str) -> tuple[int, bytes]:
    """Return status and bytes of an HTTP answer, the last one on its connection."""
    general = f"Date: {http_date(int(time.time()))}\r\nConnection: close\r\n"
    if not body:
        return 204, f"HTTP/1.1 204 NO CONTENT\r\n{general}{NOTHING}\r\n".encode()
    head = f"HTTP/1.1 200 OK\r\n{general}{fixed}Content-Length: {len(body)}\r\n\r\n"
    return 200, head.encode("latin-1") + body


def unavailable() -> tuple[int, bytes]:
    """Return status and bytes of a 503: the client retries, and does not blame the network."""
    body = json.dumps({"error": {"code": "storage", "message": UNREADABLE}}).encode()
    general = f"Date: {http_date(int(time.time()))}\r\nConnection: close\r\nRetry-After: {RETRY_S}\r\n"
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return 503, f"HTTP/1.1 503 SERVICE UNAVAILABLE\r\n{general}{NOTHING}{content}\r\n".encode() + body


@lru_cache(maxsize=1)
def http_date(second: int) -> str:
    """Return a Unix time as an HTTP-date."""
    return formatdate(second, usegmt=True)
