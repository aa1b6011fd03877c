"""The peers' envelopes. A message is the same everywhere: 200 bytes of text that begin with a mark and the time."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

from bench.load.loop import Connection, Loop
from bench.load.wire import CLOSE, PING, PONG, TEXT, Answers, Frames, WireError, encode, get, post, text, upgrade

MARK = b"~@"
DIGITS = 20
MESSAGE_BYTES = 200


def body_of(size: int = MESSAGE_BYTES) -> str:
    """A message: the mark, the time in ns on the monotonic clock, and padding."""
    return f"~@{time.monotonic_ns():0{DIGITS}d} ".ljust(size, "x")


def sent_at(payload: bytes) -> int:
    """When a message in this payload was made, in ns on the monotonic clock."""
    at = payload.find(MARK) + len(MARK)
    return int(payload[at : at + DIGITS])


@dataclass(frozen=True)
class Seat:
    """What one reader needs: a cookie, a room, and the cursor to resume from."""

    cookie: str = ""
    room: str = ""
    cursor: int = 0


@dataclass
class Site:
    """A running server, as the load generator sees it."""

    port: int
    dialect: type[Socket]
    held: type[HeldPoll] | None = None
    poll_path: Callable[[Seat], str] = field(default=lambda seat: "/changes")
    seats: Callable[[int], Seat] = field(default=lambda n: Seat(room=f"room-{n}"))
    crowd: Callable[[int], Seat] = field(default=lambda n: Seat(room="crowd"))
    path: str = "/"
    message_bytes: int = MESSAGE_BYTES  # of a message in the fan-out, so that deliveries have equal bytes


class Socket:
    """A WebSocket with one room. `on_message(socket, payload, count)` hears of the messages in a frame."""

    acknowledges = False

    def __init__(self, loop: Loop, site: Site, seat: Seat, compressed: bool = False) -> None:
        self.seat = seat
        self.site = site
        self.is_ready = False
        self.refused = ""
        self.acks = 0
        self.deliveries = 0
        self.on_message: Callable[[Socket, bytes, int], None] = _ignore
        self.on_ack: Callable[[Socket], None] = _nothing
        self.on_ready: Callable[[Socket], None] = _nothing
        self.on_end: Callable[[Socket], None] = _nothing
        self.on_text: Callable[[bytes], None] = lambda payload: None
        self._answers = Answers()
        self._frames = Frames()
        self.connection = Connection(loop, site.port)
        self.connection.on_bytes = self._head
        self.connection.on_end = self._ended
        self.connection.send(upgrade(site.path, site.port, seat.cookie, compressed))

    def say(self, room: str, message: str) -> None:
        """Send a message to a room."""
        raise NotImplementedError

    def opened(self) -> None:
        """The upgrade is done."""

    def control(self, payload: bytes) -> None:
        """A frame without a message."""
        raise NotImplementedError

    def write(self, payload: str) -> None:
        """Send a text frame."""
        self.connection.send(text(payload))

    def ready(self) -> None:
        """Connected, and in the room."""
        if not self.is_ready:
            self.is_ready = True
            self.on_ready(self)

    def close(self) -> None:
        """Gone without a word."""
        self.connection.close()

    def _head(self, data: bytes) -> None:
        for status, head, _ in self._answers.feed(data):
            if status != 101:
                self.refused = f"the upgrade was answered {status}"
                self.connection.ended()
                return
            self._frames = Frames(compressed=b"permessage-deflate" in head)
            self.connection.on_bytes = self._bytes
            self.opened()
            rest = self._answers.take()
            if rest:
                self._bytes(rest)

    def _bytes(self, data: bytes) -> None:
        text_only = self._frames.whole(data)
        if text_only is not None:
            self._text(text_only)
            return
        for opcode, payload in self._frames.feed(data):
            if opcode == TEXT:
                self._text(payload)
            elif opcode == PING:
                self.connection.send(encode(PONG, payload))
            elif opcode == CLOSE:
                self.refused = f"closed by the server: {payload!r}"
                self.connection.ended()
                return

    def _text(self, payload: bytes) -> None:
        self.on_text(payload)
        count = payload.count(MARK)
        if count and self.is_ready:
            self.deliveries += count
            self.on_message(self, payload, count)
        else:
            self.control(payload)

    def _ended(self) -> None:
        self.refused = self.refused or "the connection was cut"
        self.on_end(self)


class ProductSocket(Socket):
    """docs/protocol.md: hello, subscribe from the cursor, the first chat-feed proves it."""

    acknowledges = True

    def control(self, payload: bytes) -> None:
        """A frame without a message of this run."""
        if payload.startswith(b"<chat-hello"):
            if not self.seat.room:
                self.ready()
                return
            epoch = attribute(payload, b"epoch")
            frame = {"type": "subscribe", "epoch": epoch, "feeds": {self.seat.room: self.seat.cursor}}
            self.write(json.dumps(frame))
        elif payload.startswith(b"<chat-feed"):
            self.ready()
        elif payload.startswith(b"<chat-ack"):
            self.acks += 1
            self.on_ack(self)
        else:
            raise WireError(f"the product says {payload[:200]!r}")

    def say(self, room: str, message: str) -> None:
        """Send a message to a room."""
        names = {"conversation": room, "client_id": str(uuid.uuid4())}
        self.write(json.dumps({"type": "send", **names, "body": message}, separators=(",", ":")))


class PlainSocket(Socket):
    """picows_server.py and null_server.py."""

    def opened(self) -> None:
        """Join at once."""
        self.write(f"J{self.seat.room}")

    def control(self, payload: bytes) -> None:
        """The answer to the join."""
        if payload == b"J":
            self.ready()

    def say(self, room: str, message: str) -> None:
        """Send a message to a room."""
        self.write(f"M{room} {message}")


class SocketIOSocket(Socket):
    """Engine.IO 4 and Socket.IO 5 over WebSocket from the start, which is the quicker of its two ways."""

    def control(self, payload: bytes) -> None:
        """Open, connected, joined, pinged."""
        if payload == b"2":
            self.write("3")
        elif payload.startswith(b"0"):
            self.write("40")
        elif payload.startswith(b"40"):
            if self.seat.room:
                self.write(f"420{json.dumps(['join', self.seat.room])}")
            else:
                self.ready()
        elif payload.startswith(b"430"):
            self.ready()
        elif payload.startswith(b"431"):
            self.acks += 1
        elif payload.startswith(b"44"):
            raise WireError(f"Socket.IO refuses: {payload[:200]!r}")

    def say(self, room: str, message: str) -> None:
        """Send a message to a room."""
        self.write(f"421{json.dumps(['m', room, message])}")


class HeldPoll:
    """A client that polls. `on_message(poll, payload)` hears of an answer with a message; `hold` asks again."""

    def __init__(self, loop: Loop, site: Site, seat: Seat) -> None:
        self.site = site
        self.seat = seat
        self.is_held = False
        self.on_message: Callable[[HeldPoll, bytes], None] = lambda poll, payload: None
        self._loop = loop
        self._connect()

    def _connect(self) -> None:
        self._answers = Answers()
        self.connection = Connection(self._loop, self.site.port)
        self.connection.on_bytes = self._bytes

    def ask(self, request: bytes) -> None:
        """Send it, on a new connection where the server has ended the last one."""
        if not self.connection.open:
            self._connect()
        self.connection.send(request)

    def hold(self) -> None:
        """Ask, and be held."""
        raise NotImplementedError

    def answered(self, status: int, body: bytes) -> None:
        """An answer came."""
        raise NotImplementedError

    def close(self) -> None:
        """Gone without a word."""
        self.connection.close()

    def _bytes(self, data: bytes) -> None:
        for status, head, body in self._answers.feed(data):
            if b"\r\nconnection: close" in head:
                self.connection.close()
            self.answered(status, body)


class ProductPoll(HeldPoll):
    """`GET /changes?…&wait=25` from the newest cursor."""

    def __init__(self, loop: Loop, site: Site, seat: Seat) -> None:
        super().__init__(loop, site, seat)
        self.cursor = seat.cursor

    def hold(self) -> None:
        """Ask, and be held."""
        self.is_held = True
        where = Seat(self.seat.cookie, self.seat.room, self.cursor)
        self.ask(get(f"{self.site.poll_path(where)}&wait=25", self.site.port, self.seat.cookie))

    def answered(self, status: int, body: bytes) -> None:
        """An answer came."""
        if status == 204:
            self.hold()
            return
        if status != 200:
            raise WireError(f"a held poll was answered {status}")
        self.is_held = False
        self.cursor = int(attribute(body, b"to"))
        self.on_message(self, body)


class SocketIOPoll(HeldPoll):
    """Engine.IO's polling transport: open, connect and join by POST, each answered by a GET, then the held GET."""

    def __init__(self, loop: Loop, site: Site, seat: Seat) -> None:
        super().__init__(loop, site, seat)
        self._path = "/socket.io/?EIO=4&transport=polling"
        self._steps = ["40", f"420{json.dumps(['join', seat.room])}"]
        self._is_open = False
        self._joined = False
        self.hold()

    def hold(self) -> None:
        """Ask, and be held once joined."""
        self.is_held = self._joined
        self.connection.send(get(self._path, self.site.port, self.seat.cookie))

    def answered(self, status: int, body: bytes) -> None:
        """An answer came: of a POST `ok`, of a GET packets."""
        if status != 200:
            raise WireError(f"Engine.IO answered {status}: {body[:200]!r}")
        if not self._is_open:
            self._is_open = True
            self._path += f"&sid={quote(json.loads(body[1:])['sid'])}"
            self._post(self._steps.pop(0))
            return
        if body.lower() == b"ok":
            self.hold()
            return
        packets = body.split(b"\x1e")
        self._joined = self._joined or any(packet.startswith(b"430") for packet in packets)
        if b"2" in packets:
            self._post("3")
        elif MARK in body:
            self.is_held = False
            self.on_message(self, body)
        elif self._steps:
            self._post(self._steps.pop(0))
        else:
            self.hold()

    def _post(self, packet: str) -> None:
        kind = "text/plain;charset=UTF-8"
        self.connection.send(post(self._path, self.site.port, packet.encode(), kind, self.seat.cookie))


class Asker:
    """One kept connection that asks the same again and again, and counts the answers."""

    def __init__(self, loop: Loop, port: int, request: bytes, expected: int) -> None:
        self.answers = 0
        self.bodies: list[bytes] = []  # of the newest answer
        self.is_asking = True
        self._request, self._expected = request, expected
        self._reader = Answers()
        self.connection = Connection(loop, port)
        self.connection.on_bytes = self._bytes
        self.connection.send(request)

    def ask(self, request: bytes) -> None:
        """Ask something once; `answers` counts up."""
        self.is_asking = False
        self.connection.send(request)

    def _bytes(self, data: bytes) -> None:
        for status, _, body in self._reader.feed(data):
            if status != self._expected:
                raise WireError(f"answered {status}, not {self._expected}: {body[:200]!r}")
            self.answers += 1
            self.bodies = [body]
            if self.is_asking:
                self.connection.send(self._request)


def attribute(payload: bytes, name: bytes) -> str:
    """The first attribute of this name in an element."""
    at = payload.find(b" " + name + b'="') + len(name) + 3
    return payload[at : payload.find(b'"', at)].decode()


def deliveries(sockets: Iterable[Socket]) -> int:
    """How many messages these sockets were brought."""
    return sum(socket.deliveries for socket in sockets)


def _ignore(_socket: Socket, _payload: bytes, _count: int) -> None:
    return None


def _nothing(_socket: Socket) -> None:
    return None
