"""One WebSocket connection, watched by the event loop (docs/architecture.md).

Idle, it is one small object: no greenlet, no request, no parser. What arrives is read in the event loop, which must
never wait: frames that touch the database are done by a greenlet that lives as long as they do.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import gevent

from chatapp.accounts.auth import Auth
from chatapp.accounts.quotas import EVENT_BYTES, Quotas
from chatapp.bus import Bus
from chatapp.chat import Chat, ChatError
from chatapp.config import Settings
from chatapp.store import AuthSession, ConnectionEvent, Posted, StorageUnavailable, now_ms
from chatapp.store.database import WriteJob
from chatapp.store.histories import Histories
from chatapp.store.unavailable import RETRY_S
from chatapp.transports import protocol, rendering, rfc6455
from chatapp.transports.connections import Connections
from chatapp.transports.event_socket import LINGER_S, EventSocket
from chatapp.transports.rfc6455 import CloseCode, Opcode, Violation
from chatapp.transports.subscriptions import MOST_FEEDS, Reader, Subscriber, TooManyFeeds, Update
from chatapp.transports.timers import NO_SLOT, Slot

log = logging.getLogger("chatapp.websocket")

OPENED, CLOSED = (-2, "server-open"), (-1, "server-close")  # number, which no client can report, and type
MOST_WAITING = 64  # answers to be written and frames to be done; beyond, a client floods and is not read
MOST_BAD_FRAMES = 10  # before a client that does not speak the protocol is closed
ENOUGH_BYTES = 16_384  # for one write; more feeds than fit wait for room
RECHECK_S = 600.0  # a session's end is told by the bus; that nothing was missed is checked so often


@dataclass(frozen=True)
class Services:
    """The services of an app that its WebSocket connections use."""

    settings: Settings
    epoch: str
    chat: Chat
    auth: Auth
    quotas: Quotas
    reader: Reader
    bus: Bus
    histories: Histories
    connections: Connections
    drill_left_ms: Callable[[int], int]  # of a person


class WebSocketConnection(EventSocket):
    """The server's side of one WebSocket: frames in, a subscriber's updates out."""

    __slots__ = (
        "_address",
        "_bad_frames",
        "_checked_at",
        "_close",
        "_closed_as",
        "_deflates",
        "_expires_at",
        "_inbox",
        "_is_awake",
        "_is_flushing",
        "_is_working",
        "_must_recheck",
        "_next_ping",
        "_opened_at",
        "_parser",
        "_person",
        "_pinged_at",
        "_sending",
        "_services",
        "_session",
        "_subscriber",
        "feeds",
        "name",
        "slot",
    )

    def __init__(self, fd: int, services: Services, sign_in: AuthSession, address: str, deflates: bool) -> None:
        super().__init__(fd)
        self.slot: Slot = NO_SLOT
        self.feeds = 0  # how many were followed at the end
        self._services = services
        self.name = str(uuid4())
        self._person, self._session = sign_in.person.uuid, sign_in.id
        self._address, self._deflates = sys.intern(address), deflates  # many come from behind one proxy or router
        self._subscriber = Subscriber(services.reader, services.bus, sign_in.person.id, self)
        self._parser: rfc6455.Parser | None = None
        self._inbox: tuple[protocol.Subscribe | protocol.Unsubscribe, ...] = ()
        self._sending = 0  # messages that are not on disk yet
        self._is_awake = self._is_flushing = self._is_working = False
        self._must_recheck = False  # the session may have ended: ask before anything more is written
        self._close: tuple[int, str] | None = None  # to be said once there is room
        self._closed_as: int | None = None
        self._bad_frames = 0
        self._opened_at = self._checked_at = self.heard_at
        self._expires_at = self.heard_at + sign_in.left_s()
        self._next_ping = self.heard_at + services.settings.ws_ping_interval
        self._pinged_at: float | None = None  # and no pong since

    def start(self, answer: bytes) -> None:
        """Answer the handshake, say hello and listen; returns at once."""
        services, settings, connections = self._services, self._services.settings, self._services.connections
        self._subscriber.follow_session(self._session)
        self._note(OPENED, {"address": self._address})
        limits = (settings.ws_max_message_size, settings.ws_ping_interval)
        fails_ms = services.drill_left_ms(self._subscriber.person)
        hello = rfc6455.frame(protocol.hello(services.epoch, self._person, self.name, *limits, fails_ms).encode())
        self.read_on()
        self.write(answer + hello)
        self.bytes_out = max(0, self.bytes_out - len(answer))  # what is counted begins after the handshake
        if not self.is_over:
            connections.timer.set(self, self._due())
            connections.add(self)

    @property
    def person(self) -> int:
        """Whose it is."""
        return self._subscriber.person

    # Reading: in the event loop

    def on_bytes(self, data: bytes) -> None:
        """Frames arrived, or services of them."""
        if self._close is not None:
            return  # the last word waits for room: whatever comes now would wait with it, without a bound
        try:
            most = self._services.settings.ws_max_message_size
            parser = self._parser = self._parser or rfc6455.Parser(most, self._deflates)
            parser.feed(data)
            self._take(parser)
        except Violation as violation:
            self.close(violation.code, violation.reason)
        except Exception as error:  # what escapes here would leave the connection deaf but open
            self._fail("reading a WebSocket failed", error)

    def _take(self, parser: rfc6455.Parser) -> None:
        """Do what is read; stop where too much waits, so that a flood stays in the kernel."""
        while self._close is None and (message := parser.next()) is not None:
            self._on_message(*message)
            if self._waiting() > MOST_WAITING:
                self._write_replies()
                if self._waiting() > MOST_WAITING:
                    self.pause()
                    break
        else:
            if parser.is_idle():
                self._parser = None
        self._write_replies()
        if self._inbox and not self._is_working:
            self._is_working = True
            gevent.spawn(self._work)

    def _waiting(self) -> int:
        return len(self._subscriber.replies) + len(self._inbox) + self._sending

    def _resume(self) -> None:
        """There may be room again for what was left in the parser and in the kernel."""
        if self.is_paused and self.ended_at is None and self._waiting() <= MOST_WAITING:
            self.read_on()
            if self._parser is not None:
                self.on_bytes(b"")

    def _on_message(self, opcode: int, payload: Any) -> None:
        match opcode:
            case Opcode.TEXT:
                self._on_text(payload)
            case Opcode.PING:
                if self._may_write():  # else it is one of the last things that this reader would want
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
        elif isinstance(frame, protocol.Send):
            self._send(frame)
        else:
            self._inbox += (frame,)

    # Doing: in a greenlet of its own, because the database may let us wait

    def _work(self) -> None:
        try:
            while self._inbox:
                frame, self._inbox = self._inbox[0], self._inbox[1:]
                if self._close is None:
                    self._follow(frame)
                self.wake()
        except Exception as error:  # the outermost line of the greenlet: the other side must learn that it failed
            self._inbox = ()
            self._fail("a frame on a WebSocket failed", error)
        finally:
            self._is_working = False
            if self.ended_at is not None or self.is_over:
                self._leave()  # what was followed meanwhile
            self.wake()

    def _follow(self, frame: protocol.Subscribe | protocol.Unsubscribe) -> None:
        """Begin or end to follow feeds; the updates, or the reason why there are none, are written later."""
        match frame:
            case protocol.Unsubscribe(names):
                for name in names:
                    self._subscriber.unsubscribe(name)
            case protocol.Subscribe(epoch, feeds, mark):
                reload = protocol.stale(self._services.histories, epoch, self._services.epoch, mark)
                for name, cursor in feeds.items():
                    if reload is None:
                        self._subscribe(name, cursor)
                    else:
                        self._subscriber.reply(reload(name))

    def _subscribe(self, name: str, cursor: int) -> None:
        try:
            self._subscriber.subscribe(name, cursor)
        except ChatError:
            self._subscriber.reply(protocol.gone(name))
        except TooManyFeeds:
            words = f"One connection follows at most {MOST_FEEDS} feeds; unsubscribe from one first."
            self._subscriber.reply(protocol.error("too-many-feeds", words))

    def _send(self, frame: protocol.Send) -> None:
        """Have a message posted; it is answered when it is on disk, or at once where it is refused."""

        def posted(job: WriteJob[Posted]) -> None:
            self._sending -= 1
            if (answer := _answer_to(frame, job)) is not None:
                self._subscriber.reply(answer)
            else:
                self._fail("a message from a WebSocket could not be stored", job.error)
            self.wake()

        self._sending += 1
        try:
            person = self._subscriber.person
            self._services.chat.post_soon(person, frame.conversation, frame.client_id, frame.body, posted)
        except ChatError as error:
            posted(WriteJob.failed(error))

    # Writing: by the sweep

    def wake(self) -> None:
        """There may be something to write."""
        if not self._is_awake:
            self._is_awake = True
            self._services.connections.wake(self)

    def on_blocked(self) -> None:
        """The kernel is full."""
        self._services.connections.timer.set(self, self._due())

    def on_room(self) -> None:
        """The kernel took the rest."""
        if self._close is not None:
            self._say_goodbye()
        else:
            self.wake()

    def push(self, update: Update) -> bool:
        """Write at once what others had already; False where something else comes first, which `flush` knows."""
        if self._close or self._rest is not None or self._must_recheck or self._is_flushing:
            return False
        frame = update.deflated if self._deflates else update.encoded
        self.write(frame or rendering.encoded("", update, self._deflates))
        return True

    def flush(self) -> None:
        """Write answers and news if there is room; a slow reader gets what is newest when it has room again."""
        self._is_awake = False
        if self._is_flushing:
            return  # another sweep is at it, waits for something, and looks again afterwards
        self._is_flushing = True
        try:
            if self._must_recheck and not self._is_signed_in():
                self.close(CloseCode.SIGNED_OUT, "signed out")
            if self._may_flush() and (data := self._output()) and self._may_flush():
                self.write(data)
            if self._may_flush() and (self._subscriber.dirty or self._subscriber.replies or self._must_recheck):
                self.wake()  # the rest in another turn: a reader with much to catch up with must not hold others
        except Exception as error:  # the sweep must go on for all others
            self._fail("writing a WebSocket failed", error)
        self._is_flushing = False
        if self.is_paused:
            self._resume()

    def _may_flush(self) -> bool:
        return self._close is None and not self.is_blocked

    def _output(self) -> bytes:
        """The next write: one frame as all its readers share it, or several small ones."""
        first = self._replies()
        while len(first) < ENOUGH_BYTES and (update := self._subscriber.next_update()) is not None:
            data = rendering.encoded(*update, self._deflates)
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
        """Whether the event loop may write at once, instead of leaving it to the sweep."""
        return self._may_flush() and not self._is_flushing and not self._must_recheck

    def announce_drill(self, ms: int) -> None:
        """A drill begins: what happens now is no fault of the network."""
        if self._may_write():
            self.write(rfc6455.frame(protocol.drill(ms).encode()))

    # Time-outs: by the one timer

    def _due(self) -> float:
        settings = self._services.settings
        due = min(self._next_ping, self.heard_at + settings.ws_read_timeout, self._expires_at)
        if self._pinged_at is not None:
            due = min(due, self._pinged_at + settings.ws_pong_timeout)
        return due if self.blocked_at is None else min(due, self.blocked_at + settings.ws_write_timeout)

    def check(self, now: float) -> float:
        """Ping, or close what is silent, mute, blocked, expired or signed out; returns when to look again."""
        try:
            return self._check(now)
        except StorageUnavailable as error:  # whether the session goes on cannot be asked
            self._fail("", error)
            return now + LINGER_S / 4

    def _check(self, now: float) -> float:
        settings = self._services.settings
        if self.blocked_at is not None and now - self.blocked_at >= settings.ws_write_timeout:
            self.cut()
        elif self.ended_at is not None:
            if now - self.ended_at >= LINGER_S and not self.is_blocked:
                self.cut()
            return now + LINGER_S / 4
        elif now >= self._expires_at and self._close is None and not self._is_signed_in():
            self.close(CloseCode.SIGNED_OUT, "signed out")
        elif self._pinged_at is not None and now - self._pinged_at >= settings.ws_pong_timeout:
            self.close(CloseCode.POLICY, "no pong")
        elif now - self.heard_at >= settings.ws_read_timeout:
            self.close(CloseCode.POLICY, "nothing received")
        elif now >= self._next_ping:
            self._ping(now)
        return self._due()

    def _ping(self, now: float) -> None:
        self._next_ping = max(self._next_ping + self._services.settings.ws_ping_interval, now)
        if now - self._checked_at >= RECHECK_S and not self._is_signed_in():
            self.close(CloseCode.SIGNED_OUT, "signed out")
        elif self._may_write():
            self._pinged_at = self._pinged_at or now
            self.write(rfc6455.frame(b"", Opcode.PING))

    # The session

    def recheck_session(self) -> None:
        """The session may have ended."""
        self._must_recheck = True
        self.wake()

    def _is_signed_in(self) -> bool:
        """Ask the database, and learn when the session expires."""
        self._checked_at, self._must_recheck = time.monotonic(), False
        left_s = self._services.auth.left_s(self._session)
        self._expires_at = self._checked_at + left_s
        return left_s > 0

    # The end

    def _fail(self, what: str, error: Exception | None) -> None:
        """Close for a fault of ours, and say which kind: the client must not blame the network for it."""
        if isinstance(error, StorageUnavailable):
            self.close(CloseCode.SERVER_ERROR, "storage")  # the store has logged it
        else:
            log.error(what, exc_info=error)
            self.close(CloseCode.SERVER_ERROR, "the server made a mistake")

    def close(self, code: int, reason: str = "") -> None:
        """Say goodbye as soon as what is being written is written. The first word counts."""
        if self._close is None:
            self._close = (code, reason)
            self._parser = None
            if not self.is_blocked:
                self._say_goodbye()

    def restart(self, advice: str) -> None:
        """The worker closes: come back when the advice says so."""
        self.close(CloseCode.RESTART, advice)

    def replace(self) -> None:
        """The browser has opened another one."""
        self.close(CloseCode.REPLACED, "replaced")

    def _say_goodbye(self) -> None:
        assert self._close is not None
        code, reason = self._close
        self._closed_as = self._closed_as or code
        last = b"" if code == CloseCode.SIGNED_OUT else self._replies()
        self.end(last + rfc6455.close_frame(code, reason))
        self._leave()
        if not self.is_over:
            self._services.connections.timer.set(self, time.monotonic() + LINGER_S)

    def on_cut(self) -> None:
        """The stream broke, or the write timeout was over."""
        self._close = self._close or (CloseCode.ABNORMAL, "")
        self._closed_as = self._closed_as or CloseCode.ABNORMAL

    def _leave(self) -> None:
        """Follow nothing any more."""
        if self._subscriber.feeds():
            self.feeds = self._subscriber.feeds()
            self._subscriber.close()
        self._subscriber.forget_session(self._session)

    def on_end(self) -> None:
        """The connection's own line in the access log, which gunicorn leaves out, and its event."""
        self._leave()
        self._parser = None
        self._services.connections.remove(self)
        seconds, code = time.monotonic() - self._opened_at, self._closed_as or CloseCode.ABNORMAL
        line = f'{self._address} - {self._person} "WEBSOCKET /ws" {code} in={self.bytes_in} out={self.bytes_out}'
        data = {"code": code, "seconds": round(seconds, 3), "in": self.bytes_in, "out": self.bytes_out}
        self._note(CLOSED, {**data, "feeds": self.feeds}, f"{line} {seconds:.1f}s")
        self._subscriber.abandon()

    def _note(self, what: tuple[int, str], data: dict[str, object], line: str = "") -> None:
        text = (now_ms(), json.dumps(data))
        event = ConnectionEvent(self.name, what[0], self._person, what[1], "websocket", None, None, None, *text)
        is_kept = not self._services.quotas.events.consume(self._person, 1, EVENT_BYTES + len(text[1]))
        self._services.connections.note(event if is_kept else None, line)


def _answer_to(frame: protocol.Send, job: WriteJob[Posted]) -> str | None:
    """The answer to a message; None where the server made a mistake."""
    if isinstance(job.error, ChatError):
        return protocol.refused(frame.client_id, job.error.code, job.error.message)
    if isinstance(job.error, StorageUnavailable):
        words = "The server cannot store messages just now; send it again in a moment."
        return protocol.refused(frame.client_id, "storage", words, RETRY_S)
    return None if job.error else protocol.ack(job.outcome())
