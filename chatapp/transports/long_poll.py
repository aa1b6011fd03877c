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
from chatapp.gunicorn_bridge import can_detach, detach, header_lines
from chatapp.staticfiles import UNKEPT
from chatapp.store import AuthSession, StorageUnavailable
from chatapp.store.database import RETRY_S
from chatapp.store.histories import Histories
from chatapp.transports import protocol
from chatapp.transports.armour import armoured
from chatapp.transports.connections import Connections
from chatapp.transports.event_socket import LINGER_S, EventSocket, has_unread
from chatapp.transports.retries import Retries
from chatapp.transports.subscriptions import Reader, StaleCursor

WRITE_S = 20.0  # for a write to progress: seen only once a third of the kernel's buffer is free
MOST_LONG_POLLS = 10_000  # in a worker; more wait as gunicorn's requests, which gunicorn limits

UNREADABLE = "The server cannot read its storage just now."
# Headers of a 204.
NOTHING = [("Cache-Control", UNKEPT), ("Vary", "Cookie"), ("Cross-Origin-Resource-Policy", "same-origin")]
NOTHING_LINES = header_lines(NOTHING)

log = logging.getLogger("chatapp.polling")
_http_date = lru_cache(1)(formatdate)


@dataclass(frozen=True)
class Poll:
    """A parsed poll request."""

    epoch: str
    cursors: dict[str, int]
    wait_s: float
    person: str | None = None  # signed in, as far as the client knows
    mark: str = ""  # see store/histories.py
    armour: bool = False  # see armour.py
    is_short: bool = False  # the client reads the short form of what an answer grows by


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
    )

    def __init__(self, fd: int, polls: Polls, session: AuthSession, poll: Poll) -> None:
        super().__init__(fd)
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
        self._topics = self._polls.feeds(self._session.person.id, self._poll)
        self._polls.bus.subscribe(session_topic(self._session.id), self.release)
        for feed in self._topics:
            self._polls.bus.subscribe(feed, self.wake)
        self._polls.long_polls.add(self)
        self._polls.connections.long_poll_count += 1
        self._polls.connections.timer.set(self, self._due)
        self.resume_reading()
        if self._polls.bus.published != published or not self._topics:  # a change since then, or a feed is gone
            self.wake(0)

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
            self._polls.connections.wake(self.flush)

    def retry(self) -> None:
        """Answer with the hint to try WebSocket, if it is meant for this page's network."""
        if self._polls.retries.is_affected(self._client):
            self.wake(0)

    def release(self, topic: int = 0) -> None:
        """Answer 204: the session has ended, or the worker exits."""
        self._is_ended = True
        self.wake(topic)

    def flush(self) -> None:
        """Answer if there are changes."""
        self._is_awake = False
        if self not in self._polls.long_polls:
            return
        try:
            found = [] if self._is_ended else self._polls.news(self._session, self._client, self._poll)
        except StorageUnavailable:  # the store has logged it
            self._end(unavailable())
        except Exception:  # the sweep must go on for all others
            log.exception("answering a held poll failed")
            if self in self._polls.long_polls:
                self.cut()
        else:
            if found or self._is_ended:
                self._answer(found)

    def check(self, now: float) -> float:
        """End the hold, the write timeout or the linger when it is over; returns when to check again."""
        self._cut_if_late(now, WRITE_S)
        if self.ended_at is None and now >= self._due:
            self._answer([])
        if self.is_blocked:
            return now + WRITE_S / 4
        return self._due if self.ended_at is None else now + LINGER_S / 4

    # Answering

    def _answer(self, found: list[str]) -> None:
        if found:
            self._end(http_answer("200 OK", self._head, self._polls.body(found, self._poll.armour)))
        else:
            self._end(http_answer("204 NO CONTENT", NOTHING_LINES, b""))

    def _end(self, answer: tuple[int, bytes]) -> None:
        if self not in self._polls.long_polls:
            return  # the store had blocked, and the timer has answered meanwhile: a request has one answer
        self._unsubscribe()
        status, data = answer
        took = round((time.monotonic() - self._started_at) * 1000)
        self._polls.connections.log_access(f'{self._client} "GET /changes" {status} {len(data)} {took}ms')
        self.end(data)

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

    def _write_rest(self) -> None:
        before = self.bytes_out
        super()._write_rest()
        if self.blocked_at is not None and self.bytes_out > before:
            self.blocked_at = time.monotonic()

    def on_blocked(self) -> None:
        """Start the write timeout."""
        self._polls.connections.timer.set(self, time.monotonic() + WRITE_S)

    def on_end(self) -> None:
        """Unsubscribe and release the descriptor."""
        self._unsubscribe()
        self._polls.connections.timer.clear(self)
        self._polls.connections.long_poll_count -= 1


class Polls:
    """The polls of this worker."""

    def __init__(
        self,
        reader: Reader,
        bus: Bus,
        connections: Connections,
        epoch: str,
        histories: Histories,
        network_of: Callable[[str], str] = lambda _address: "",
    ) -> None:
        self.retries = Retries(network_of)
        self.reader = reader
        self.bus = bus
        self.long_polls: set[LongPoll] = set()
        self.connections = connections
        self._epoch = epoch
        self._histories = histories
        self._waiting: set[Event] = set()  # polls in greenlets
        self._bodies: dict[bool, tuple[list[str], bytes]] = {}  # the last ones by armour: many polls share an answer

    def answer(self, person: int, session_id: int, poll: Poll) -> list[str]:
        """Return the frames for a poll; waits if nothing is new. Empty when the hold is over or the session ends."""
        found = self.now(person, poll)
        if found or poll.wait_s <= 0:
            return found
        event, deadline, ended = Event(), time.monotonic() + poll.wait_s, session_topic(session_id)
        heard: set[int] = set()

        def wake(topic: int) -> None:
            heard.add(topic)
            event.set()

        topics = (ended, *self.feeds(person, poll))
        for topic in topics:
            self.bus.subscribe(topic, wake)
        self._waiting.add(event)
        try:
            while not self.connections.is_draining and ended not in heard:
                found = self.now(person, poll)  # also changes between the first look and the subscription
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                event.wait(timeout=left)
                event.clear()
            return []
        finally:
            self._waiting.discard(event)
            for topic in topics:
                self.bus.unsubscribe(topic, wake)

    def feeds(self, person: int, poll: Poll) -> tuple[int, ...]:
        """Return the feeds of a poll; none if one cannot be read, as `now` reports."""
        try:
            return tuple([self.reader.feed(person, name) for name in poll.cursors])
        except (Gone, StorageUnavailable):
            return ()

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
        is_full = self.connections.long_poll_count >= MOST_LONG_POLLS or self.connections.is_full()
        if is_full or not can_detach(environ):
            return False
        LongPoll(detach(environ), self, session, poll).start(environ["REMOTE_ADDR"], head, published)
        return True

    def drain(self) -> None:
        """Answer all waiting polls."""
        for event in tuple(self._waiting):
            event.set()
        for poll in tuple(self.long_polls):
            poll.release()

    def retry(self, network: str) -> None:
        """Have all pages that poll from a network try WebSocket: those with a held poll now, others at their next."""
        self.retries.add(network)
        for poll in tuple(self.long_polls):
            poll.retry()

    def news(self, session: AuthSession, address: str, poll: Poll) -> list[str]:
        """Return the frames of `now`, and the hint to try WebSocket if it is due. Raises StorageUnavailable."""
        found = self.now(session.person.id, poll)
        is_due = self.retries.take(address, session.id, tuple(poll.cursors))
        return [protocol.retry(), *protocol.named_in_full(found, poll.cursors)] if is_due else found

    def now(self, person: int, poll: Poll) -> list[str]:
        """Return the frames of the changes so far. Raises StorageUnavailable."""
        reload = protocol.stale(self._histories, poll.epoch, self._epoch, poll.mark)
        if reload is not None:
            return [reload(name) for name in poll.cursors]
        found = []
        for name, cursor in poll.cursors.items():
            try:
                if (frame := self.reader.read(person, name, cursor, poll.is_short).frame) is not None:
                    found.append(frame)
            except Gone:
                found.append(protocol.gone(name))
            except StaleCursor:
                found.append(protocol.reload(name, "cursor"))
        return protocol.named_in_full(found, poll.cursors) if len(found) > 1 else found


def http_answer(status: str, headers: str, body: bytes) -> tuple[int, bytes]:
    """Return status and bytes of an HTTP answer, the last one on its connection."""
    general = f"HTTP/1.1 {status}\r\nDate: {_http_date(int(time.time()), usegmt=True)}\r\nConnection: close\r\n"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return int(status[:3]), f"{general}{headers}{length}\r\n".encode("latin-1") + body


def unavailable() -> tuple[int, bytes]:
    """Return status and bytes of a 503: the client retries, and does not blame the network."""
    body = json.dumps({"error": {"code": "storage", "message": UNREADABLE}}).encode()
    headers = f"Retry-After: {RETRY_S}\r\n{NOTHING_LINES}Content-Type: application/json\r\n"
    return http_answer("503 SERVICE UNAVAILABLE", headers, body)
