"""WebSocket by flask-sock, with the repairs that the stack needs (docs/architecture.md, "The stack's traps").

One greenlet reads (the handler), one writes. All that is written is whole, under a lock, and within the write
timeout; a socket on which a write failed is never written to again.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import gevent
from flask import Flask, Response, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server
from wsproto.events import Ping

from chatapp.auth import origin_is_allowed
from chatapp.bus import session_topic
from chatapp.config import Settings
from chatapp.connection.peer import MOST_FEEDS, News, Peer, StaleCursor, TooManyFeeds
from chatapp.conversation import ChatError
from chatapp.store import ConnectionEvent, SignIn, now_ms
from chatapp.transports import frames
from chatapp.transports.whole import WholeSocket

if TYPE_CHECKING:
    from chatapp.house import House

access = logging.getLogger("gunicorn.access")
log = logging.getLogger("chatapp.websocket")

NORMAL, ABNORMAL, POLICY, TOO_BIG, SERVER_ERROR, RESTART = 1000, 1006, 1008, 1009, 1011, 1012
SIGNED_OUT = 4401
REPLACED = 4409
OPENED, CLOSED = (1, "server-open"), (2, "server-close")  # number and type of the server's own events
MOST_REPLIES = 64  # control frames waiting to be written; beyond, a client floods and is not read
MOST_BAD_FRAMES = 10  # before a client that does not speak the protocol is closed
RECONNECTS_PER_S = 100  # how densely a draining server asks its clients to come back
FIRST_RETRY_S = 0.2  # the successor needs a moment to listen


class WebSocketConnection:
    """Carries one Peer over one WebSocket."""

    def __init__(self, ws: Server, peer: Peer, post: Callable[[frames.Send], str], greeting: str, epoch: str) -> None:
        self._ws = ws
        self._sock: WholeSocket = ws.sock
        self._sock.backlog = ws.input_buffer
        self._peer = peer
        self._post = post
        self._epoch = epoch
        self._wakeup = threading.Event()
        self._close: tuple[int, str] | None = None
        self._is_doubtful = False  # the session may have ended: ask before anything more is written
        self._bad_frames = 0
        self.close_code: int | None = None
        self.feeds = 0  # how many were followed at the end
        peer.replies.append(greeting)

    def wake(self) -> None:
        """There may be something to write."""
        self._wakeup.set()

    def doubt(self, _topic: int) -> None:
        """The session may have ended."""
        self._is_doubtful = True
        self.wake()

    def close(self, code: int, reason: str = "") -> None:
        """Have the writer close the connection after what it is writing."""
        if self._close is None:
            self._close = (code, reason)
        self.wake()

    def run(self, settings: Settings, is_allowed: Callable[[bool], bool]) -> None:
        """Serve until the connection ends. Returns; never raises what a peer can cause."""
        self.wake()
        writer = gevent.spawn(self._write, settings, is_allowed)
        try:
            self._read(settings.ws_max_message_size)
        except ConnectionClosed as closed:
            self.close_code = self.close_code or self._code_of(closed, settings)
        except Exception:  # the outermost line of the reader: the writer must still say goodbye, and why
            log.exception("the reader of a WebSocket failed")
            self.close(SERVER_ERROR, "the server made a mistake")
        finally:
            self.feeds = self._peer.feeds()
            self._peer.close()
            self._close = self._close or (NORMAL, "")
            self.wake()
            writer.join(timeout=settings.ws_write_timeout + 1)
            self._sock.abort()

    def _code_of(self, closed: ConnectionClosed, settings: Settings) -> int:
        """How the other side ended it; simple-websocket says 1005 also of a cut and of a message too big."""
        if self._ws.incoming_message_len > settings.ws_max_message_size:
            return TOO_BIG
        return ABNORMAL if self._sock.was_cut else int(closed.reason)

    # Reading

    def _read(self, max_bytes: int) -> None:
        while self._close is None:
            text = self._ws.receive()
            if text is None:
                continue
            if isinstance(text, bytes) or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
                code, why = (1003, "text only") if isinstance(text, bytes) else (TOO_BIG, "the message is too big")
                self.close(code, why)
                return
            try:
                self._on_frame(frames.decode(text))
            except frames.BadFrame as error:
                self._on_bad_frame(error)
            self.wake()
            while len(self._peer.replies) > MOST_REPLIES and self._close is None:
                gevent.sleep(0.01)  # a flood waits in the kernel, not in our memory

    def _on_frame(self, frame: frames.ClientFrame) -> None:
        replies = self._peer.replies
        match frame:
            case frames.Echo(n):
                replies.append(frames.echo(n))
            case frames.Send():
                replies.append(self._post(frame))
            case frames.Unsubscribe(names):
                for name in names:
                    self._peer.unsubscribe(name)
            case frames.Subscribe(epoch, feeds):
                for name, cursor in feeds.items():
                    self._subscribe(name, cursor, epoch)

    def _subscribe(self, name: str, cursor: int, epoch: str) -> None:
        if epoch != self._epoch:
            self._peer.replies.append(frames.reload(name, "epoch", self._epoch))
            return
        try:
            self._peer.subscribe(name, cursor)
        except ChatError:
            self._peer.replies.append(frames.gone(name))
        except TooManyFeeds:
            words = f"One connection follows at most {MOST_FEEDS} feeds; unsubscribe from one first."
            self._peer.replies.append(frames.error("too-many-feeds", words))

    def _on_bad_frame(self, error: frames.BadFrame) -> None:
        self._bad_frames += 1
        self._peer.replies.append(frames.error("bad-frame", str(error)))
        if self._bad_frames >= MOST_BAD_FRAMES:
            self.close(POLICY, "too many bad frames")

    # Writing

    def _write(self, settings: Settings, is_allowed: Callable[[bool], bool]) -> None:
        health = Health(settings, time.monotonic())
        try:
            while self._close is None:
                self._wakeup.wait(timeout=health.wait_s(time.monotonic()))
                self._wakeup.clear()
                if self._is_doubtful and not is_allowed(True):
                    self.close(SIGNED_OUT, "signed out")
                    break
                self._is_doubtful = False
                for text in self._output():
                    self._ws.send(text)
                self._check_health(health, is_allowed)
            self._say_goodbye(*(self._close or (NORMAL, "")))
        except (OSError, ConnectionClosed):
            self._close = self._close or (ABNORMAL, "")
            self.close_code = self.close_code or ABNORMAL
        except Exception:  # the outermost line of the writer: an error here must not leave a mute connection
            log.exception("the writer of a WebSocket failed")
            self._say_goodbye(SERVER_ERROR, "the server made a mistake")
        finally:
            # Wakes the reader, which otherwise waits for bytes that may never come.
            self._ws.connected = False
            self._ws.event.set()

    def _output(self) -> Iterator[str]:
        while self._close is None or self._peer.replies:
            if self._peer.replies:
                yield self._peer.replies.popleft()
            elif (news := self._peer.next_news()) is not None:
                yield _frame_of(*news)
            else:
                return

    def _check_health(self, health: Health, is_allowed: Callable[[bool], bool]) -> None:
        verdict = health.check(time.monotonic(), self._sock.received_at, self._ws.pong_received)
        if verdict == "ping":
            if not is_allowed(False):
                self.close(SIGNED_OUT, "signed out")
                return
            self._ws.pong_received = False
            self._sock.send(self._ws.ws.send(Ping()))
        elif verdict is not None:
            self.close(POLICY, verdict)

    def _say_goodbye(self, code: int, reason: str) -> None:
        self.close_code = self.close_code or code
        try:
            self._ws.close(code, reason)
        except (OSError, ConnectionClosed):
            pass  # the other side closed first, or is gone


class Health:
    """When to ping, and when the other side counts as dead. Times are seconds of a monotonic clock."""

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._next_ping = now + settings.ws_ping_interval
        self._pinged_at: float | None = None

    def wait_s(self, now: float) -> float:
        """How long nothing need be looked at: until the next ping, and a fraction of the shorter timeout."""
        timeout = min(self._settings.ws_read_timeout, self._settings.ws_pong_timeout)
        return max(0.01, min(self._next_ping - now, timeout / 4))

    def check(self, now: float, received_at: float, pong_received: bool) -> str | None:
        """None, "ping", or why the connection is to be closed."""
        if pong_received:
            self._pinged_at = None
        if self._pinged_at is not None and now - self._pinged_at >= self._settings.ws_pong_timeout:
            return "no pong"
        if now - received_at >= self._settings.ws_read_timeout:
            return "nothing received"
        if now < self._next_ping:
            return None
        self._next_ping = now + self._settings.ws_ping_interval
        if self._pinged_at is None:
            self._pinged_at = now
        return "ping"


class Live:
    """This worker's WebSockets, so that they can be told to go."""

    def __init__(self) -> None:
        self._connections: set[WebSocketConnection] = set()
        self.named: dict[str, tuple[int, WebSocketConnection]] = {}  # by name: whose it is, and the connection
        self.is_draining = False

    def add(self, connection: WebSocketConnection) -> None:
        """Note a connection; one that comes during a drain is sent on at once."""
        self._connections.add(connection)
        if self.is_draining:
            connection.close(RESTART, _advice(0))

    def remove(self, connection: WebSocketConnection) -> None:
        """Forget it."""
        self._connections.discard(connection)

    def replace(self, name: str, person: int) -> None:
        """Close this person's connection of that name, if it lives here: its browser has opened another one."""
        owner, connection = self.named.get(name, (0, None))
        if connection is not None and owner == person:
            connection.close(REPLACED, "replaced")

    def drain(self) -> None:
        """Close all with 1012 and say when to come back, spread so that they do not come at once."""
        self.is_draining = True
        for number, connection in enumerate(self._connections):
            connection.close(RESTART, _advice(number))

    def __len__(self) -> int:
        return len(self._connections)


def _advice(number: int) -> str:
    return f"retry={FIRST_RETRY_S + number / RECONNECTS_PER_S:.3f}"


def _frame_of(name: str, news: News | Exception) -> str:
    if isinstance(news, News):
        return news.frame if news.frame is not None else frames.nothing(name, news.cursor)
    return frames.reload(name, "cursor") if isinstance(news, StaleCursor) else frames.gone(name)


def register(app: Flask, house: House) -> None:
    """Hang /ws into the app."""
    settings, live = house.settings, house.live
    # Counted in characters by simple-websocket, hence again in bytes by us.
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": settings.ws_max_message_size}
    sock = Sock(app)

    @app.before_request
    def before_upgrade() -> Response | None:
        """Refuse before the 101: whoever is signed out or comes from a foreign page. Repair the socket."""
        if request.endpoint != "websocket_route":
            return None
        if request.headers.get("Sec-WebSocket-Version") != "13":
            return Response("WebSocket version 13 is needed.\n", 426, {"Sec-WebSocket-Version": "13"})
        if not is_key(request.headers.get("Sec-WebSocket-Key", "")):
            return Response("Sec-WebSocket-Key must be 16 bytes in base64.\n", 400, content_type="text/plain")
        if house.auth.current() is None:
            return Response("Sign in first.\n", 401, content_type="text/plain")
        if not origin_is_allowed(settings, request.headers.get("Origin", ""), request.host_url):
            log.warning("refused a WebSocket from origin %r", request.headers.get("Origin", ""))
            return Response("This origin may not open a WebSocket here.\n", 403, content_type="text/plain")
        environ = request.environ
        # simple-websocket accepts every offer of compression, without any bound on what it inflates to.
        environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
        environ["gunicorn.socket"] = WholeSocket(environ["gunicorn.socket"], settings.ws_write_timeout)
        return None

    @sock.route("/ws")  # type: ignore[untyped-decorator]
    def websocket_route(ws: Server) -> None:
        sign_in = house.auth.current()
        if sign_in is None:
            return
        _serve(ws, house, sign_in, house.auth.token_hash(), live)


def is_key(key: str) -> bool:
    """Whether a handshake's key is one."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def _serve(ws: Server, house: House, sign_in: SignIn, token_hash: str, live: Live) -> None:
    settings, person = house.settings, sign_in.person
    name = str(uuid4())
    holder: list[WebSocketConnection] = []
    peer = Peer(house.reader, house.bus, person.id, lambda: holder[0].wake())

    def post(frame: frames.Send) -> str:
        try:
            return frames.ack(house.chat.post(person.id, frame.conversation, frame.client_id, frame.body))
        except ChatError as error:
            return frames.refused(frame.client_id, error.code, error.message)

    greeting = frames.hello(house.epoch, person.uuid, name, settings.ws_max_message_size, settings.ws_ping_interval)
    connection = WebSocketConnection(ws, peer, post, greeting, house.epoch)
    holder.append(connection)
    live.replace(request.args.get("replaces", ""), person.id)
    live.named[name] = (person.id, connection)
    live.add(connection)
    _note(house, name, OPENED, sign_in, {"address": request.remote_addr})
    started = time.monotonic()
    cancel = house.bus.subscribe(session_topic(sign_in.id), connection.doubt)
    try:
        connection.run(settings, lambda fresh: house.auth.check(token_hash, fresh) is not None)
    except Exception:  # the outermost line: else Flask writes an HTML page into the socket
        log.exception("a WebSocket failed")
        connection.close(SERVER_ERROR, "the server made a mistake")
    finally:
        cancel()
        live.remove(connection)
        live.named.pop(name, None)
        _report(house, name, sign_in, connection, ws.sock, time.monotonic() - started)


def _report(
    house: House, name: str, sign_in: SignIn, connection: WebSocketConnection, sock: WholeSocket, seconds: float
) -> None:
    """The connection's own line in the access log, which gunicorn leaves out, and its event."""
    code = connection.close_code or ABNORMAL
    address = request.remote_addr
    line = '%s - %s "WEBSOCKET /ws" %s in=%d out=%d %.1fs'
    access.info(line, address, sign_in.person.uuid, code, sock.bytes_in, sock.bytes_out, seconds)
    data = {"code": code, "seconds": round(seconds, 3), "in": sock.bytes_in, "out": sock.bytes_out}
    _note(house, name, CLOSED, sign_in, {**data, "feeds": connection.feeds})


def _note(house: House, name: str, what: tuple[int, str], sign_in: SignIn, data: dict[str, object]) -> None:
    """Store what the server saw of a connection."""
    number, kind = what
    text = json.dumps(data)
    event = ConnectionEvent(name, number, sign_in.person.uuid, kind, "websocket", None, None, None, now_ms(), text)
    house.store.events.note(event)
