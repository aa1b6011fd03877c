"""A poll that waits: its socket leaves gunicorn, is the event loop's until there is an answer, and ends with it.

Meanwhile it costs an object instead of a greenlet with gunicorn's request, and one sweep answers all who wait for the
same. It does not go back to gunicorn: bytes that came too early, or late, must never be taken for a request.
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

WRITE_S = 20.0  # how long the kernel may have no room for more of an answer; it has, once a third of its buffer is free
MOST_HELD = 10_000  # in a worker; more wait as gunicorn's requests, whose number it bounds

UNREADABLE = "The server cannot read its storage just now."
NOTHING = f"Cache-Control: {UNKEPT}\r\nVary: Cookie\r\nCross-Origin-Resource-Policy: same-origin\r\n"

log = logging.getLogger("chatapp.polling")


@dataclass(frozen=True)
class Poll:
    """One request, understood."""

    epoch: str
    cursors: dict[str, int]
    wait_s: float
    person: str | None = None  # who the client believes to be signed in
    mark: str = ""  # see store/histories.py
    armour: bool = False  # something on the way rewrites HTML


class LongPoll(EventSocket):
    """One poll, and the connection it came by."""

    __slots__ = (
        "_client",
        "_due",
        "_head",
        "_is_awake",
        "_is_ended",
        "_poll",
        "_polls",
        "_sign_in",
        "_since",
        "_topics",
        "slot",
    )

    def __init__(self, fd: int, polls: Polls, sign_in: AuthSession, poll: Poll) -> None:
        super().__init__(fd)
        self.slot: Slot = NO_SLOT
        self._polls = polls
        self._sign_in, self._poll = sign_in, poll
        self._since = time.monotonic()
        self._due = self._since + poll.wait_s
        self._topics: tuple[int, ...] = ()
        self._client = self._head = ""
        self._is_awake = self._is_ended = False

    def start(self, client: str, head: str, looked: int) -> None:
        """Wait for news. `client`: for the log, as a declared proxy says it; `head`: the answer's fixed headers;
        `looked`: how much had been published when it was looked for news last."""
        self._client, self._head = client, head
        self._topics = self._subscribed()
        self._polls.held.add(self)
        self._polls.connections.lent += 1
        self._polls.connections.timer.set(self, self._due)
        self.read_on()
        if self._polls.bus.published != looked or not self._topics:  # something came between, or cannot be followed
            self.wake(0)

    def _subscribed(self) -> tuple[int, ...]:
        polls, person = self._polls, self._sign_in.person.id
        try:
            feeds = [polls.reader.feed(person, name) for name in self._poll.cursors]
        except (Gone, StorageUnavailable):
            return ()  # `news` finds out
        polls.bus.subscribe(session_topic(self._sign_in.id), self.let_go)
        for feed in feeds:
            polls.bus.subscribe(feed, self.wake)
        return tuple(feeds)

    def _leave(self) -> None:
        self._polls.held.discard(self)
        self._polls.bus.unsubscribe(session_topic(self._sign_in.id), self.let_go)
        for feed in self._topics:
            self._polls.bus.unsubscribe(feed, self.wake)
        self._topics = ()

    # Waiting

    def wake(self, _topic: int) -> None:
        """There may be an answer."""
        if not self._is_awake:
            self._is_awake = True
            self._polls.connections.wake(self)

    def let_go(self, topic: int = 0) -> None:
        """Answer that there is nothing: the session has ended, or the worker."""
        self._is_ended = True
        self.wake(topic)

    def flush(self) -> None:
        """Answer, if there is anything to say."""
        self._is_awake = False
        conclude = self._look() if self in self._polls.held else None
        # To look may take a while, and the time may have been over meanwhile: no request has two answers.
        if conclude is not None and self in self._polls.held:
            conclude()

    def _look(self) -> Callable[[], None] | None:
        """What to do: answer what is new, or that it cannot be read; None while there is nothing to say."""
        try:
            found = [] if self._is_ended else self._polls.now(self._sign_in.person.id, self._poll)
        except StorageUnavailable:  # the store has said so
            return lambda: self._end(unavailable())
        except Exception:  # the sweep goes on for all others, and who asks again hears what is wrong
            log.exception("answering a held poll failed")
            return self.cut
        return (lambda: self._answer(found)) if found or self._is_ended else None

    def check(self, now: float) -> float:
        """Its time is over: of waiting, of taking the answer, or of closing."""
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
        self._end(answer(self._body(found), self._head))

    def _end(self, answer: tuple[int, bytes]) -> None:
        self._leave()
        status, data = answer
        took = round((time.monotonic() - self._since) * 1000)
        self._polls.log(f'{self._client} "GET /changes" {status} {len(data)} {took}ms')
        self.end(data)

    def _body(self, found: list[str]) -> bytes:
        return self._polls.body(found, self._poll.armour) if found else b""

    def _half_close(self) -> None:
        """The kernel has all of the answer and delivers it, also after the end; unless something unread is there."""
        if self.bytes_in or has_unread(self._fd):
            super()._half_close()
            self._polls.connections.timer.set(self, time.monotonic() + LINGER_S)
        else:
            self.cut()

    def on_bytes(self, data: bytes) -> None:
        """A request before the answer to the one before: legal, unheard of, and to be repeated, as the answer says."""
        self.pause()  # whatever more there is, the kernel keeps

    def on_room(self) -> None:
        """The answer is with the kernel: `end` has seen to the rest."""

    def _writable(self) -> None:
        before = self.bytes_out
        super()._writable()
        if self.blocked_at is not None and self.bytes_out > before:
            self.blocked_at = time.monotonic()

    def on_blocked(self) -> None:
        """The kernel did not take all of it."""
        self._polls.connections.timer.set(self, time.monotonic() + WRITE_S)

    def on_cut(self) -> None:
        """The other side has gone."""

    def on_end(self) -> None:
        """Nothing is left of it."""
        self._leave()
        self._polls.connections.timer.clear(self)
        self._polls.connections.lent -= 1


class Polls:
    """This worker's polls."""

    def __init__(
        self, reader: Reader, bus: Bus, connections: Connections, epoch: str, histories: Histories | None = None
    ) -> None:
        self.reader = reader
        self.bus = bus
        self.held: set[LongPoll] = set()  # by the event loop
        self.connections = connections
        self.access_log: Callable[[str], None] | None = None  # gunicorn's, where it serves
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
        if self.access_log is None or not can_detach(environ):
            return False
        if self.connections.lent >= MOST_HELD or self.connections.is_full():
            return False
        LongPoll(detach(environ), self, sign_in, poll).start(environ["REMOTE_ADDR"], head, looked)
        return True

    def log(self, line: str) -> None:
        """A line of the access log."""
        if self.access_log is not None:
            self.access_log(line)

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


def answer(body: bytes, fixed: str) -> tuple[int, bytes]:
    """Status and bytes of a whole HTTP answer, the last one on its connection."""
    general = f"Date: {http_date(int(time.time()))}\r\nConnection: close\r\n"
    if not body:
        return 204, f"HTTP/1.1 204 NO CONTENT\r\n{general}{NOTHING}\r\n".encode()
    head = f"HTTP/1.1 200 OK\r\n{general}{fixed}Content-Length: {len(body)}\r\n\r\n"
    return 200, head.encode("latin-1") + body


def unavailable() -> tuple[int, bytes]:
    """The same for a poll that cannot be answered: the client comes back, and blames no network."""
    body = json.dumps({"error": {"code": "storage", "message": UNREADABLE}}).encode()
    general = f"Date: {http_date(int(time.time()))}\r\nConnection: close\r\nRetry-After: {RETRY_S}\r\n"
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return 503, f"HTTP/1.1 503 SERVICE UNAVAILABLE\r\n{general}{NOTHING}{content}\r\n".encode() + body


@lru_cache(maxsize=1)
def http_date(second: int) -> str:
    """A time as HTTP writes it."""
    return formatdate(second, usegmt=True)
