"""RFC 6455, on the wire and beside two other implementations; `make conformance` does much more of the same.

The other two are `websockets` and wsproto: each random stream, cut at random places, must mean the same to all three.
"""

import json
import os
import random
import struct
import uuid
from collections.abc import Iterator

import pytest
from lab.http import Client
from lab.server import Server
from test_websocket import RawWebSocket
from websockets.frames import Frame as ReferenceFrame
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as Reference
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import RemoteProtocolError

from chatapp.transports.rfc6455 import CloseCode, Parser, Violation, close_code, close_frame, frame

ROUNDS = int(os.environ.get("CONFORMANCE_ROUNDS", "1"))
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MOST = 70_000  # bytes of a message here
SIZES = [0, 1, 124, 125, 126, 127, 128, 65_535, 65_536, 65_537]

Event = tuple[int, object]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes large messages; nobody answers."""
    with Server(tmp_path_factory.mktemp("conformance"), assistant="off", ws_max_message_size=MOST) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def masked(opcode: int, payload: bytes, fin: bool = True, rsv: int = 0, key: bytes = b"\x37\xfa\x21\x3d") -> bytes:
    """A client's frame."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + struct.pack("!H", size) if size < 1 << 16 else b"\xff" + struct.pack("!Q", size)
    data = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | rsv | opcode]) + length + key + data


def pieces(stream: bytes, chance: random.Random) -> list[bytes]:
    """A stream as it may arrive."""
    found, at = [], 0
    while at < len(stream):
        step = chance.choice([1, 2, 3, 7, 100, 5000, 100_000])
        found.append(stream[at : at + step])
        at += step
    return found


def ours(arriving: list[bytes]) -> tuple[list[Event], int]:
    """Messages, and the close code of a violation (0: none)."""
    found: list[Event] = []
    parser = Parser(MOST)
    try:
        for data in arriving:
            parser.feed(data)
            while (message := parser.next()) is not None:
                opcode, payload = message
                if opcode == CLOSE:
                    return [*found, (CLOSE, close_code(payload))], 0
                found.append((opcode, payload))
            if parser.is_idle():
                parser = Parser(MOST)  # as the product does: forgotten at a message's end
    except Violation as violation:
        return found, violation.code
    return found, 0


def by_websockets(arriving: list[bytes]) -> tuple[list[Event], int]:
    """What `websockets` makes of it; it leaves the UTF-8 of text to its caller."""
    reference = Reference(SERVER, state=OPEN, max_size=MOST)
    found: list[Event] = []
    parts: list[bytes] = []
    kind = 0
    for data in arriving:
        reference.receive_data(data)
        for event in reference.events_received():
            assert isinstance(event, ReferenceFrame)
            if event.opcode == CLOSE:
                return [*found, (CLOSE, reference.close_rcvd.code if reference.close_rcvd else 0)], 0
            if event.opcode in (PING, PONG):
                found.append((int(event.opcode), bytes(event.data)))
                continue
            kind = int(event.opcode) or kind
            parts.append(bytes(event.data))
            if event.fin:
                whole, parts = b"".join(parts), []
                try:
                    found.append((kind, whole.decode() if kind == TEXT else whole))
                except UnicodeDecodeError:
                    return found, 1007
        if reference.parser_exc is not None:
            return found, reference.close_sent.code if reference.close_sent else -1
    return found, 0


def by_wsproto(arriving: list[bytes]) -> tuple[list[Event], int]:
    """What wsproto makes of it, up to where it is too much for us: it knows no size limit."""
    connection = Connection(ConnectionType.SERVER)
    found: list[Event] = []
    parts: list[object] = []
    try:
        for data in arriving:
            connection.receive_data(data)
            for event in connection.events():
                match event:
                    case CloseConnection():
                        return [*found, (CLOSE, event.code)], 0
                    case Ping() | Pong():
                        found.append((PING if isinstance(event, Ping) else PONG, bytes(event.payload)))
                    case TextMessage() | BytesMessage():
                        is_text = isinstance(event, TextMessage)
                        parts.append(event.data if is_text else bytes(event.data))
                        if event.message_finished:
                            whole = ("" if is_text else b"").join(parts)  # type: ignore[arg-type]
                            found.append((TEXT if is_text else BINARY, whole))
                            parts = []
    except RemoteProtocolError as error:
        return found, int(error.event_hint.code) if isinstance(error.event_hint, CloseConnection) else 1002
    return found, 0


def random_stream(chance: random.Random) -> bytes:
    """Messages of all kinds, whole and in fragments, with control frames between; sometimes something wrong."""
    out = b""
    for _ in range(chance.randrange(1, 6)):
        opcode = chance.choice([TEXT, TEXT, BINARY])
        text = "".join(chance.choice("aé日👍 ") for _ in range(chance.choice([0, 1, 5, 60, 500])))
        payload = text.encode()
        if chance.random() < 0.08:
            payload += chance.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
        cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(chance.choice([0, 0, 1, 4])))
        ends = [*cuts, len(payload)]
        for number, (start, end) in enumerate(zip([0, *cuts], ends, strict=True)):
            if chance.random() < 0.3:
                out += masked(chance.choice([PING, PONG]), chance.randbytes(chance.choice([0, 3, 125])))
            key = chance.randbytes(4)
            out += masked(opcode if number == 0 else CONTINUATION, payload[start:end], number == len(cuts), 0, key)
        if chance.random() < 0.06:
            out += VIOLATIONS[chance.choice(UNDISPUTED)][0]
        if chance.random() < 0.05:
            return out + masked(
                CLOSE, chance.choice([b"", b"\x03\xe8bye", b"\x0f\xa0", b"\x03", b"\x03\xed", b"\x00\x00"])
            )
    return out


VIOLATIONS: dict[str, tuple[bytes, int]] = {
    **{f"opcode {n}": (masked(n, b"x"), 1002) for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"reserved bit {bit}": (masked(TEXT, b"x", rsv=bit), 1002) for bit in (0x40, 0x20, 0x10)},
    "a ping with a reserved bit": (masked(PING, b"", rsv=0x40), 1002),
    "no mask": (b"\x81\x01x", 1002),
    "a ping without a mask": (b"\x89\x00", 1002),
    "a continuation of nothing": (masked(CONTINUATION, b"x"), 1002),
    "an unfinished continuation of nothing": (masked(CONTINUATION, b"x", fin=False), 1002),
    "a message within a message": (masked(TEXT, b"x", fin=False) + masked(TEXT, b"y"), 1002),
    "a ping in fragments": (masked(PING, b"x", fin=False), 1002),
    "a close in fragments": (masked(CLOSE, b"", fin=False), 1002),
    "a ping of 126 bytes": (masked(PING, b"x" * 126), 1002),
    "a close of 126 bytes": (masked(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "a length of 16 bits for 125": (b"\x81\xfe\x00\x7d" + bytes(4 + 125), 1002),
    "a length of 64 bits for 65535": (b"\x81\xff" + struct.pack("!Q", 65_535) + bytes(4 + 65_535), 1002),
    "a length beyond 63 bits": (b"\x81\xff\xff" + bytes(7 + 4), 1002),
    "bad UTF-8": (masked(TEXT, b"\xff"), 1007),
    "UTF-8 cut off": (masked(TEXT, "é".encode()[:1]), 1007),
    "a surrogate in UTF-8": (masked(TEXT, b"\xed\xa0\x80"), 1007),
    "bad UTF-8 in an early fragment": (masked(TEXT, b"a\xffb", fin=False), 1007),
    "a close code of one byte": (masked(CLOSE, b"\x03"), 1002),
    "a reason that is no UTF-8": (masked(CLOSE, b"\x03\xe8\xff"), 1007),
    **{
        f"close code {code}": (masked(CLOSE, struct.pack("!H", code)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "a terabyte is announced": (b"\x81\xff" + struct.pack("!Q", 1 << 40) + bytes(4), 1009),
    "fragments that are too much together": (
        masked(TEXT, b"x" * 40_000, fin=False) + masked(CONTINUATION, b"x" * 40_000),
        1009,
    ),
}


# What the two others see otherwise: they take a length in too many bytes, or answer a bad reason with 1002.
UNDISPUTED = [name for name in VIOLATIONS if "a length of" not in name and "reason" not in name]


@pytest.mark.parametrize(("stream", "code"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_each_violation_closes_with_its_code(me: Client, stream: bytes, code: int) -> None:
    with RawWebSocket(me) as raw:
        raw.until(lambda frame: frame.opcode == TEXT)
        raw.socket.sendall(stream)
        assert raw.closed()[0] == code
        while not raw.is_ended:
            assert raw.read(5) == [], "nothing after the goodbye"


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_a_close_is_answered_with_its_code_and_the_stream_ends(me: Client, code: int) -> None:
    with RawWebSocket(me) as raw:
        raw.frame(struct.pack("!H", code) + "done ✓".encode(), CLOSE)
        raw.frame('{"type":"echo","n":1}')  # too late
        assert raw.closed()[0] == code
        while not raw.is_ended:
            assert raw.read(5) == [], "nothing after the goodbye"


def test_a_close_without_a_code_is_answered_without_one(me: Client) -> None:
    with RawWebSocket(me) as raw:
        raw.frame(b"", CLOSE)
        assert raw.until(lambda frame: frame.opcode == CLOSE).payload == b""


@pytest.mark.parametrize("size", [size for size in SIZES if size > 40])
def test_sizes_at_the_edges_of_the_length_field(me: Client, size: int) -> None:
    text = json.dumps({"type": "echo", "n": size, "x": ""})
    text = text[:-2] + "x" * (size - len(text)) + '"}'
    with RawWebSocket(me) as raw:
        raw.frame(text)
        raw.until(lambda frame: frame.text == f'<chat-echo n="{size}"></chat-echo>')


@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_a_ping_is_answered_with_its_payload_and_a_pong_with_nothing(me: Client, size: int) -> None:
    with RawWebSocket(me) as raw:
        raw.frame(bytes(range(size)), PONG)
        raw.frame(bytes(range(size)), PING)
        assert raw.until(lambda frame: frame.opcode in (PING, PONG)).payload == bytes(range(size))
        raw.say(type="echo", n=1)
        raw.until(lambda frame: "<chat-echo" in frame.text)
        assert sum(frame.opcode == PONG for frame in raw.frames) == 1


@pytest.mark.parametrize("seed", range(10 * ROUNDS))
def test_fragments_with_pings_between_and_any_cut_of_the_stream(me: Client, seed: int) -> None:
    chance = random.Random(seed)
    count, stream = 30, b""
    for number in range(count):
        payload = json.dumps(
            {"type": "echo", "n": number, "x": "é日👍" * chance.randrange(30)}, ensure_ascii=False
        ).encode()
        cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(chance.randrange(6)))
        for at, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
            stream += masked(
                TEXT if at == 0 else CONTINUATION, payload[start:end], at == len(cuts), 0, chance.randbytes(4)
            )
            stream += masked(PING, b"%d.%d" % (number, at)) if chance.random() < 0.3 else b""
    with RawWebSocket(me) as raw:
        for piece in pieces(stream, chance):
            raw.socket.sendall(piece)
        raw.until(lambda frame: frame.text == f'<chat-echo n="{count - 1}"></chat-echo>')
        echoes = [frame.text for frame in raw.frames if frame.text.startswith("<chat-echo")]
        assert echoes == [f'<chat-echo n="{n}"></chat-echo>' for n in range(count)]
        pings = [part.payload for part in raw.frames if part.opcode == PONG]
        assert pings == sorted(pings, key=lambda payload: [int(n) for n in payload.split(b".")])


def agree(mine: tuple[list[Event], int], theirs: tuple[list[Event], int]) -> bool:
    """The same messages and verdict. Bad UTF-8 may be found earlier or later: what came before is the same."""
    if 1007 in (mine[1], theirs[1]):
        shorter, longer = sorted((mine[0], theirs[0]), key=len)
        return longer[: len(shorter)] == shorter and bool(mine[1])
    return mine[0] == theirs[0] and bool(mine[1]) == bool(theirs[1])


def test_three_implementations_agree() -> None:
    verdicts = set()
    for seed in range(1500 * ROUNDS):
        chance = random.Random(seed)
        arriving = pieces(random_stream(chance), chance)
        mine = ours(arriving)
        verdicts.add(mine[1])
        assert agree(mine, by_websockets(arriving)), (seed, mine, by_websockets(arriving))
        other = by_wsproto(arriving)  # lenient: it takes an empty ping without a mask, for one
        assert agree(mine, other) or (mine[1] and other[0][: len(mine[0])] == mine[0]), (seed, mine, other)
    assert verdicts == {0, 1002, 1007, 1009}


@pytest.mark.parametrize("size", SIZES)
def test_what_we_write_is_what_others_read(size: int) -> None:
    chance = random.Random(size)
    reference = Reference(SERVER, state=OPEN)
    reference.side = reference.side.__class__.CLIENT  # reads what a server writes: unmasked
    payload = chance.randbytes(size)
    reference.receive_data(frame(payload, BINARY) + frame(b"x", PING) + close_frame(4401, "signed out"))
    first, ping, _ = reference.events_received()
    assert (bytes(first.data), bytes(ping.data)) == (payload, b"x")
    assert reference.close_rcvd is not None
    assert (reference.close_rcvd.code, reference.close_rcvd.reason) == (4401, "signed out")
    assert close_frame(CloseCode.NO_STATUS) == b"\x88\x00"


def test_a_thousand_small_fragments_are_one_message(me: Client) -> None:
    text = json.dumps({"type": "echo", "n": 5, "id": str(uuid.uuid4())}).encode()
    stream = masked(TEXT, b"", fin=False) + masked(CONTINUATION, b"", fin=False) * 3000
    stream += b"".join(masked(CONTINUATION, text[at : at + 1], fin=False) for at in range(len(text)))
    with RawWebSocket(me) as raw:
        raw.socket.sendall(stream + masked(CONTINUATION, b""))
        raw.until(lambda frame: frame.text == '<chat-echo n="5"></chat-echo>')
