"""One WebSocket connection on the event loop (docs/architecture.md).

An idle one is a small object: no greenlet, no request, no parser. Frames are read in the event loop, which must never
block; those that need the database are handled in a short-lived greenlet.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any
from uuid import uuid4

import gevent

from chatapp.accounts.limits import EVENT_BYTES, Limits
from chatapp.bus import Bus, session_topic
from chatapp.chat import Chat, ChatError
from chatapp.config import Settings
from chatapp.meters import Meters
from chatapp.store import AuthSession, ConnectionEvent, Posted, StorageUnavailable, Store, now_ms
from chatapp.store.database import RETRY_S, WriteJob
from chatapp.store.workers import Worker
from chatapp.transports import protocol, rfc6455
from chatapp.transports.connections import Connections
from chatapp.transports.event_socket import LINGER_S, EventSocket
from chatapp.transports.rfc6455 import CloseCode, Opcode, Violation
from chatapp.transports.subscriptions import MOST_FEEDS, Reader, StaleCursor, Subscriber, TooManyFeeds, Update

log = logging.getLogger("chatapp.websocket")

OPENED, CLOSED = (-2, "server-open"), (-1, "server-close")  # number (clients report from 0) and type of the event
MOST_WAITING = 64  # unwritten replies and unhandled frames, before reading pauses
TOO_MANY_SENDS = "These are more messages than one person may send. They are kept, and go on by themselves."
MOST_BAD_FRAMES = 10  # before the connection is closed
ENOUGH_BYTES = 16_384  # for one write; further feeds wait for room
RECONNECTS_PER_S = 100  # advised by a draining server
FIRST_RETRY_S = 0.2  # until the next server listens
FINISH_S = 5.0  # for the closing handshakes of a worker that exits
RECHECK_S = 600.0  # at most, between session checks: the bus may have lost a notice


@dataclass(frozen=True)
class Services:
    """The parts of an app that its WebSocket connections use. `Parts` has the others."""

    settings: Settings
    epoch: str
    store: Store
    chat: Chat
    limits: Limits
    reader: Reader
    bus: Bus
    connections: Connections
    websockets: WebSockets
    drill_left_ms: Callable[[int], int]  # of a person
    network_of: Callable[[str], str]  # the key of an address's network
    meters: Meters
    worker: Worker


class WebSocketConnection(EventSocket):
    """The server's side of one WebSocket: frames in, a subscriber's updates out."""

    __slots__ = (
        "_address",
        "_bad_frames",
        "_close",
        "_closed_as",
        "_deflates",
        "_inbox",
        "_is_awake",
        "_is_flushing",
        "_is_working",
        "_must_recheck",
        "_next_ping",
        "_opened_at",
        "_page",
        "_parser",
        "_person",
        "_pinged_at",
        "_recheck_at",
        "_sending",
        "_services",
        "_session_id",
        "_subscriber",
        "feeds",
        "name",
    )

    def __init__(
        self, fd: int, services: Services, session: AuthSession, address: str, deflates: bool, page: str = ""
    ) -> None:
        """`page`: the id of the page that opened it, "" if it is unknown."""
        super().__init__(fd)
        self.feeds = 0  # subscriptions at the close
        self._services = services
        self.name = str(uuid4())
        self._person, self._session_id = session.person.uuid, session.id
        self._address, self._deflates = sys.intern(address), deflates  # many share a proxy's or a router's
        self._page = page
        self._subscriber = Subscriber(services.reader, services.bus, session.person.id, self)
        self._parser: rfc6455.Parser | None = None
        self._inbox: tuple[protocol.Subscribe | protocol.Unsubscribe | protocol.Send, ...] = ()
        self._sending = 0  # messages not yet on disk
        self._is_awake = self._is_flushing = self._is_working = False
        self._must_recheck = False  # check the session before the next write
        self._close: tuple[int, str] | None = None  # close code and reason, perhaps not yet written
        self._closed_as: int | None = None
        self._bad_frames = 0
        self._opened_at = self.received_at
        self._recheck_at = self.received_at + min(session.left_s(), RECHECK_S)
        self._next_ping = self.received_at + services.settings.ws_ping_interval
        self._pinged_at: float | None = None  # of a ping without a pong

    def start(self, answer: bytes) -> None:
        """Write the handshake's answer and the hello, and start reading. Does not block."""
        services, settings, connections = self._services, self._services.settings, self._services.connections
        services.bus.subscribe(session_topic(self._session_id), self._subscriber)
        network = services.network_of(self._address)
        self._record(OPENED, {"address": self._address, "worker": services.worker.name}, network)
        services.store.people.last_seen.note_transport(self._session_id, "websocket")
        limits = (settings.ws_max_message_size, settings.ws_ping_interval)
        drill_ms = services.drill_left_ms(self._subscriber.person)
        hello = rfc6455.frame(protocol.hello(services.epoch, self._person, self.name, *limits, drill_ms).encode())
        self.resume_reading()
        self.write(answer + hello)
        self.bytes_out = max(0, self.bytes_out - len(answer))  # the handshake does not count
        if not self.is_closed:
            connections.timer.set(self, self._due())
            services.websockets.add(self)

    @property
    def person(self) -> int:
        """The person's number."""
        return self._subscriber.person

    # Reading, in the event loop

    def on_bytes(self, data: bytes) -> None:
        """Handle received bytes: whole frames, or parts of them."""
        if self._close is not None:
            return  # replies would collect without a bound until the close frame is written
        try:
            most = self._services.settings.ws_max_message_size
            parser = self._parser = self._parser or rfc6455.Parser(most, self._deflates)
            parser.feed(data)
            self._handle_messages(parser)
        except Violation as violation:
            self.close(violation.code, violation.reason)
        except Exception as error:  # an uncaught one would stop the reading and leave the connection open
            self._fail("reading a WebSocket failed", error)

    def _handle_messages(self, parser: rfc6455.Parser) -> None:
        """Handle messages until too many wait: a flood stays in the kernel."""
        while self._close is None and (message := parser.next()) is not None:
            self._on_message(*message)
            if self._backlog() > MOST_WAITING:
                self._write_replies()
                if self._backlog() > MOST_WAITING:
                    self.pause_reading()
                    break
        else:
            if parser.is_idle():
                self._parser = None
        self._write_replies()
        if self._inbox and not self._is_working:
            self._is_working = True
            gevent.spawn(self._handle_inbox)

    def _backlog(self) -> int:
        return len(self._subscriber.replies) + len(self._inbox) + self._sending

    def _resume(self) -> None:
        """Continue with the parser's and the kernel's bytes, if there is room."""
        if self.is_paused and self.ended_at is None and self._backlog() <= MOST_WAITING:
            self.resume_reading()
            if self._parser is not None:
                self.on_bytes(b"")

    def _on_message(self, opcode: int, payload: Any) -> None:
        match opcode:
            case Opcode.TEXT:
                self._on_text(payload)
            case Opcode.PING:
                if self._may_write():  # a slow reader gets no pong
                    self.write(rfc6455.frame(payload, Opcode.PONG))
            case Opcode.PONG:
                self._pinged_at = None
            case Opcode.CLOSE:
                code = rfc6455.close_code(payload)
                self._closed_as = self._closed_as or (code if code != CloseCode.NO_STATUS else CloseCode.NORMAL)
                self.close(code)
            case _:
                self.close(CloseCode.UNSUPPORTED_DATA, "text only")

    def _on_text(self, text: str) -> None:
        try:
            frame = protocol.decode(text)
        except protocol.BadFrame as error:
            self._bad_frames += 1
            self._subscriber.reply(protocol.error("bad-frame", str(error)))
            if self._bad_frames >= MOST_BAD_FRAMES:
                self.close(CloseCode.POLICY, "too many bad frames")
            return
        if isinstance(frame, protocol.Echo):
            self._subscriber.reply(protocol.echo(frame.n))
        elif isinstance(frame, protocol.Send) and not (self._inbox or self._is_working or self._must_ask()):
            self._send(frame)
        else:
            self._inbox += (frame,)

    def _must_ask(self) -> bool:
        """Return True if the person's budget of sends must be asked of the database."""
        return self._services.limits.sends.must_ask(self._subscriber.person)

    # Frames in a greenlet, because the database may block

    def _handle_inbox(self) -> None:
        try:
            while self._inbox:
                frame, self._inbox = self._inbox[0], self._inbox[1:]
                if self._close is None:
                    self._handle(frame)
                self.wake()
        except Exception as error:  # the top of a greenlet: the client must learn of the failure
            self._inbox = ()
            self._fail("a frame on a WebSocket failed", error)
        finally:
            self._is_working = False
            if self.ended_at is not None or self.is_closed:
                self._unsubscribe()  # from feeds subscribed to during the close
            self.wake()

    def _handle(self, frame: protocol.Subscribe | protocol.Unsubscribe | protocol.Send) -> None:
        """Handle a frame; updates and errors are written by the next flush."""
        match frame:
            case protocol.Send():
                self._send(frame)
            case protocol.Unsubscribe(names):
                for name in names:
                    self._subscriber.unsubscribe(name)
            case protocol.Subscribe(epoch, feeds, mark, is_short):
                reload = protocol.stale(self._services.store.histories, epoch, self._services.epoch, mark)
                for name, cursor in feeds.items():
                    if reload is None:
                        self._subscribe(name, cursor, is_short)
                    else:
                        self._subscriber.reply(reload(name))

    def _subscribe(self, name: str, cursor: int, is_short: bool) -> None:
        try:
            self._subscriber.subscribe(name, cursor, is_short)
        except ChatError:
            self._subscriber.reply(protocol.gone(name))
        except TooManyFeeds:
            message = f"One connection follows at most {MOST_FEEDS} feeds; unsubscribe from one first."
            self._subscriber.reply(protocol.error("too-many-feeds", message))

    def _send(self, frame: protocol.Send) -> None:
        """Post a message; the reply follows when it is on disk, or at once if it is refused."""

        began = time.monotonic()

        def on_posted(job: WriteJob[Posted]) -> None:
            self._sending -= 1
            self._services.meters.observe("post", time.monotonic() - began)
            if (reply := _reply_to(frame, job)) is not None:
                self._subscriber.reply(reply)
            else:
                self._fail("a message from a WebSocket could not be stored", job.error)
            self.wake()

        person = self._subscriber.person
        if wait_s := self._services.limits.send(person, frame.body):
            refusal = protocol.refused(frame.client_id, "rate", TOO_MANY_SENDS, ceil(wait_s))
            return self._subscriber.reply(refusal)
        self._sending += 1
        try:
            self._services.chat.post_soon(person, frame.conversation, frame.client_id, frame.body, on_posted)
        except ChatError as error:
            self._sending -= 1
            self._subscriber.reply(protocol.refused(frame.client_id, error.code, error.message))

    # Writing, in the sweep of `Connections`

    def wake(self) -> None:
        """Schedule a flush."""
        if not self._is_awake:
            self._is_awake = True
            self._services.connections.wake(self.flush)

    def on_blocked(self) -> None:
        """Start the write timeout."""
        self._services.connections.timer.set(self, self._due())

    def on_writable(self) -> None:
        """Continue with the close frame or the next update."""
        if self._close is not None:
            self._send_close()
        else:
            self.wake()

    def push(self, update: Update) -> bool:
        """Write an update now; return False, without writing, if anything else must come first."""
        if self._close or self._rest is not None or self._must_recheck or self._is_flushing:
            return False
        frame = update.deflated if self._deflates else update.encoded
        self.write(frame or _encode("", update, self._deflates))
        return True

    def flush(self) -> None:
        """Write replies and one update if there is room; a slow reader gets the newest state later."""
        self._is_awake = False
        if self._is_flushing:
            return  # another sweep is blocked in it, and checks for more afterwards
        self._is_flushing = True
        try:
            if self._must_recheck:
                self._check_session()
            if self._may_flush() and (data := self._output()) and self._may_flush():
                self.write(data)
            if self._may_flush() and (self._subscriber.dirty or self._subscriber.replies or self._must_recheck):
                self.wake()  # the rest in another turn: others must not wait for one reader to catch up
        except Exception as error:  # the sweep must go on for all others
            self._fail("writing a WebSocket failed", error)
        self._is_flushing = False
        if self.is_paused:
            self._resume()

    def _may_flush(self) -> bool:
        return self._close is None and not self.is_blocked

    def _output(self) -> bytes:
        """Return the next write: one frame, shared with other readers, or several small ones."""
        first = self._replies()
        while len(first) < ENOUGH_BYTES and (update := self._subscriber.next_update()) is not None:
            data = _encode(*update, self._deflates)
            if first:
                first += data
            elif self._subscriber.dirty or self._subscriber.replies:
                first = data
            else:
                return data
        return first

    def _replies(self) -> bytes:
        replies, self._subscriber.replies = self._subscriber.replies, ()
        return b"".join([rfc6455.frame(text.encode()) for text in replies])

    def _write_replies(self) -> None:
        if self._subscriber.replies and self._may_write():
            self.write(self._replies())

    def _may_write(self) -> bool:
        """Return True if the event loop may write now, without the sweep."""
        return self._may_flush() and not self._is_flushing and not self._must_recheck

    def announce_drill(self, ms: int) -> None:
        """Send that a drill runs for `ms`: its failures are not the network's."""
        if self._may_write():
            self.write(rfc6455.frame(protocol.drill(ms).encode()))

    # Time-outs, called by the timer of `Connections`

    def _due(self) -> float:
        settings = self._services.settings
        due = min(self._next_ping, self.received_at + settings.ws_read_timeout, self._recheck_at)
        if self._pinged_at is not None:
            due = min(due, self._pinged_at + settings.ws_pong_timeout)
        return due if self.blocked_at is None else min(due, self.blocked_at + settings.ws_write_timeout)

    def check(self, now: float) -> float:
        """Ping, or close when a time-out or the session has expired; returns the time of the next check."""
        try:
            return self._check(now)
        except StorageUnavailable as error:  # from the check of the session
            self._fail("", error)
            return now + LINGER_S / 4

    def _check(self, now: float) -> float:
        settings = self._services.settings
        self._cut_if_late(now, settings.ws_write_timeout)
        if self.is_closed or self.ended_at is not None:
            return now + LINGER_S / 4
        if now >= self._recheck_at and self._close is None:
            self._check_session()
        if self._pinged_at is not None and now - self._pinged_at >= settings.ws_pong_timeout:
            self.close(CloseCode.POLICY, "no pong")
        elif now - self.received_at >= settings.ws_read_timeout:
            self.close(CloseCode.POLICY, "nothing received")
        elif now >= self._next_ping:
            self._ping(now)
        return self._due()

    def _ping(self, now: float) -> None:
        self._next_ping = max(self._next_ping + self._services.settings.ws_ping_interval, now)
        if self._may_write():
            self._pinged_at = self._pinged_at or now
            self.write(rfc6455.frame(b"", Opcode.PING))

    # The session

    def recheck_session(self) -> None:
        """Check the session before the next write: it may have ended."""
        self._must_recheck = True
        self.wake()

    def _check_session(self) -> None:
        """Close if the session has ended; set the time of the next check. Raises StorageUnavailable."""
        self._must_recheck = False
        left_s = self._services.store.people.left_s(self._session_id)
        self._recheck_at = time.monotonic() + min(left_s, RECHECK_S)
        self._services.store.people.last_seen.note_transport(self._session_id, "websocket")
        if left_s <= 0:
            self.close(CloseCode.SIGNED_OUT, "signed out")

    # Closing

    def _fail(self, message: str, error: Exception | None) -> None:
        """Close with 1011 and a reason: the client must not blame the network."""
        if isinstance(error, StorageUnavailable):
            self.close(CloseCode.SERVER_ERROR, "storage")  # the store has logged it
        else:
            log.error(message, exc_info=error, extra={"connection": self.name})
            self.close(CloseCode.SERVER_ERROR, "the server made a mistake")

    def close(self, code: int, reason: str = "") -> None:
        """Write a close frame after the current write. The first call counts."""
        if self._close is None:
            self._close = (code, reason)
            self._parser = None
            if not self.is_blocked:
                self._send_close()

    def _send_close(self) -> None:
        assert self._close is not None
        code, reason = self._close
        self._closed_as = self._closed_as or code
        last = b"" if code == CloseCode.SIGNED_OUT else self._replies()
        self.end(last + rfc6455.close_frame(code, reason))
        self._unsubscribe()
        if not self.is_closed:
            self._services.connections.timer.set(self, time.monotonic() + LINGER_S)

    def on_cut(self) -> None:
        """Record 1006: the stream broke, or the write timed out."""
        self._close = self._close or (CloseCode.ABNORMAL, "")
        self._closed_as = self._closed_as or CloseCode.ABNORMAL

    def _unsubscribe(self) -> None:
        """End all subscriptions, and count them."""
        if self._subscriber.feeds():
            self.feeds = self._subscriber.feeds()
            self._subscriber.close()
        self._services.bus.unsubscribe(session_topic(self._session_id), self._subscriber)

    def on_end(self) -> None:
        """Unregister, and record the close as an event and in the access log, which gunicorn does not write."""
        self._unsubscribe()
        self._parser = None
        self._services.websockets.remove(self)
        seconds, code = time.monotonic() - self._opened_at, self._closed_as or CloseCode.ABNORMAL
        line = f'{self._address} - {self._person} "WEBSOCKET /ws" {code} in={self.bytes_in} out={self.bytes_out}'
        data = {"code": code, "seconds": round(seconds, 3), "in": self.bytes_in, "out": self.bytes_out}
        self._services.connections.log_access(f"{line} {seconds:.1f}s {self.name}")
        self._record(CLOSED, {**data, "feeds": self.feeds})
        self._services.store.people.last_seen.note_transport(self._session_id, "")
        self._subscriber.abandon()

    def _record(self, kind: tuple[int, str], data: dict[str, object], network: str = "") -> None:
        text = json.dumps(data)
        event = ConnectionEvent(
            self.name,
            kind[0],
            self._person,
            kind[1],
            "websocket",
            None,
            None,
            None,
            now_ms(),
            text,
            page=self._page,
            network=network,
        )
        if not self._services.limits.events.consume(self._person, 1, EVENT_BYTES + len(text)):
            self._services.connections.record(event)


class WebSockets:
    """The WebSockets of this worker, by name."""

    def __init__(self, connections: Connections, most_of_a_person: int) -> None:
        """`most_of_a_person`: 0 for any number."""
        self._connections = connections
        self._most_of_a_person = most_of_a_person
        self._open: dict[str, WebSocketConnection] = {}
        self._of_people: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def of(self, person: int | None) -> list[WebSocketConnection]:
        """Return the connections of a person, or all."""
        return [one for one in self._open.values() if person in (None, one.person)]

    def has_room(self, person: int) -> bool:
        """Return True if this person may open another one."""
        return not self._most_of_a_person or self._of_people[person] < self._most_of_a_person

    def add(self, connection: WebSocketConnection) -> None:
        """Register a connection; during a drain, close it."""
        self._open[connection.name] = connection
        self._of_people[connection.person] += 1
        self._connections.websocket_count = len(self._open)
        if self._connections.is_draining:
            connection.close(CloseCode.RESTART, _advice(0))

    def remove(self, connection: WebSocketConnection) -> None:
        """Unregister a connection."""
        if self._open.pop(connection.name, None) is not None:
            self._of_people[connection.person] -= 1
            if not self._of_people[connection.person]:
                del self._of_people[connection.person]
        self._connections.websocket_count = len(self._open)
        self._connections.timer.clear(connection)

    def replace(self, name: str, person: int) -> None:
        """Close this person's connection of that name, if it is in this worker: its browser has opened another one."""
        connection = self._open.get(name)
        if connection is not None and connection.person == person:
            connection.close(CloseCode.REPLACED, "replaced")

    def drain(self) -> None:
        """Close all connections, each with its own retry time."""
        for number, connection in enumerate(self.of(None)):
            connection.close(CloseCode.RESTART, _advice(number))

    def finish(self) -> None:
        """Wait for the closing handshakes, then cut the rest. Gunicorn does not know these sockets."""
        end = time.monotonic() + FINISH_S
        while self._open and time.monotonic() < end:
            gevent.sleep(0.02)
        for connection in self.of(None):
            connection.cut()
        while self._connections.is_storing and time.monotonic() < end + FINISH_S:
            gevent.sleep(0.01)


def _advice(number: int) -> str:
    return f"retry={FIRST_RETRY_S + number / RECONNECTS_PER_S:.3f}"


def _reply_to(frame: protocol.Send, job: WriteJob[Posted]) -> str | None:
    """Return the reply to a message, or None after an internal error."""
    if isinstance(job.error, ChatError):
        return protocol.refused(frame.client_id, job.error.code, job.error.message)
    if isinstance(job.error, StorageUnavailable):
        message = "The server cannot store messages just now; send it again in a moment."
        return protocol.refused(frame.client_id, "storage", message, RETRY_S)
    return None if job.error else protocol.ack(job.outcome())


def _encode(name: str, update: Update | Exception, deflates: bool) -> bytes:
    """Return the WebSocket frame of an update; cached in it, plain and compressed, for all readers."""
    if not isinstance(update, Update):
        text = protocol.reload(name, "cursor") if isinstance(update, StaleCursor) else protocol.gone(name)
        return rfc6455.frame(text.encode())
    if update.frame is None:
        return rfc6455.frame(protocol.nothing(name, update.cursor).encode())
    if not deflates:
        update.encoded = update.encoded or rfc6455.frame(update.frame.encode())
        return update.encoded
    frame = rfc6455.compressed_frame if update.compresses else rfc6455.frame
    update.deflated = update.deflated or frame(update.frame.encode())
    return update.deflated
