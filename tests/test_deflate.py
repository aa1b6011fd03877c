"""Compression of WebSocket messages: what is agreed, that both sides read it, and that no message can explode."""

import json
import random
import zlib
from collections.abc import Iterator

import pytest
from lab.http import Client
from lab.server import Server
from test_conformance import CONTINUATION, PING, TEXT, masked, pieces
from test_websocket import RawWebSocket
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

from chatapp.transports.rfc6455 import (
    COMPRESSED,
    LEAST_BYTES,
    TAIL,
    WINDOW_BITS,
    Inflater,
    Parser,
    Violation,
    compressed_frame,
    negotiate,
)

CHROMIUM = "permessage-deflate; client_max_window_bits"
BARE = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
MOST = 3000  # bytes of a message here
NARROW = f"{BARE}; server_max_window_bits={WINDOW_BITS}"
OFFERS = {
    "": "",
    CHROMIUM: BARE,
    "permessage-deflate": BARE,
    BARE: BARE,
    'permessage-deflate; client_max_window_bits="10"': BARE,
    "permessage-deflate; server_max_window_bits=15": NARROW,
    "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12": NARROW,
    "permessage-deflate; server_max_window_bits=9": "",
    "permessage-deflate; server_max_window_bits=9, permessage-deflate": BARE,
    "permessage-deflate; server_max_window_bits=7": "",
    "permessage-deflate; server_max_window_bits": "",
    "permessage-deflate; client_max_window_bits=16": "",
    "permessage-deflate; client_max_window_bits; client_max_window_bits": "",
    "permessage-deflate; server_no_context_takeover=1": "",
    "permessage-deflate; magic": "",
    "x-webkit-deflate-frame": "",
    ";;,,=;": "",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes somewhat larger messages; nobody answers."""
    with Server(tmp_path_factory.mktemp("deflate"), assistant="off", ws_max_message_size=MOST) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def packed(payload: bytes) -> bytes:
    """A message's content as a client compresses it."""
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def unpacked(payload: bytes) -> str:
    """And the way back."""
    return zlib.decompressobj(-WINDOW_BITS).decompress(payload + TAIL).decode()


@pytest.mark.parametrize(("offer", "answer"), OFFERS.items())
def test_what_is_agreed(me: Client, offer: str, answer: str) -> None:
    """Only what both sides can do, never with context; what the 101 says is the same."""
    assert negotiate(offer) == answer
    if offer:
        with RawWebSocket(me, Sec_WebSocket_Extensions=offer) as raw:
            found = raw.head.headers.get("sec-websocket-extensions", "")
            assert sorted(found.split("; ")) == sorted(answer.split("; "))


def follow(raw: RawWebSocket, me: Client, conversation: str) -> None:
    """Follow one conversation, with a compressed frame where that was agreed."""
    text = json.dumps({"type": "subscribe", "epoch": me.epoch, "feeds": {conversation: 0}}).encode()
    if "sec-websocket-extensions" in raw.head.headers:
        raw.frame(packed(text), TEXT, 0x80 | COMPRESSED)
    else:
        raw.frame(text)


def test_news_are_compressed_for_those_who_asked_for_it_and_for_nobody_else(me: Client) -> None:
    """Two readers of each kind at the same cursor: the same text, less than half of the bytes; an echo stays plain."""
    conversation = me.create("Compression?").json["conversation"]
    with (
        RawWebSocket(me, Sec_WebSocket_Extensions=CHROMIUM) as one,
        RawWebSocket(me, Sec_WebSocket_Extensions=CHROMIUM) as two,
        RawWebSocket(me) as plain,
        RawWebSocket(me) as other,
    ):
        found = []
        for raw in (one, two, plain, other):
            follow(raw, me, conversation)
            raw.until(lambda frame: frame.opcode == TEXT and (frame.compressed or "chat-feed" in frame.text))
        me.post_message(conversation, "so it is said " * 40)
        for raw in (one, two):
            frame = raw.until(lambda frame, raw=raw: frame.compressed and "so it is said" in unpacked(frame.payload))
            found.append(unpacked(frame.payload))
            assert frame.size < len(found[0]) / 2
            raw.say(type="echo", n=1)
            assert not raw.until(lambda frame: "chat-echo" in frame.text).compressed
        for raw in (plain, other):
            found.append(raw.until(lambda frame: "so it is said" in frame.text).text)
            assert not any(frame.compressed for frame in raw.frames)
    assert len(set(found)) == 1


def test_a_list_of_conversations_is_not_compressed(me: Client) -> None:
    """One's title would stand beside another's, and the length would tell what they have in common."""
    with RawWebSocket(me, Sec_WebSocket_Extensions=CHROMIUM) as raw:
        for _ in range(2):
            me.create("so it is called " * 10)
        raw.say(type="subscribe", epoch=me.epoch, feeds={"list": 0})
        frame = raw.until(lambda frame: frame.opcode == TEXT and (frame.compressed or "chat-feed" in frame.text))
        assert not frame.compressed and frame.text.count("so it is called") >= 2
        me.create("so it is called, too " * 10)
        frame = raw.until(lambda frame: frame.opcode == TEXT and (frame.compressed or "called, too" in frame.text))
        assert not frame.compressed


def test_another_implementation_reads_and_writes_it(me: Client) -> None:
    """`websockets`, with a narrow window of its own."""
    factory = ClientPerMessageDeflateFactory(server_max_window_bits=WINDOW_BITS, client_max_window_bits=9)
    url = f"{me.url.replace('http', 'ws')}/ws"
    headers = {"Cookie": me.cookie_header, "Origin": me.url}
    conversation = me.create("x" * 500).json["conversation"]
    with connect(url, additional_headers=headers, extensions=[factory], compression=None, proxy=None) as peer:
        assert peer.protocol.extensions, "nothing was agreed"
        peer.recv(10)
        peer.send(json.dumps({"type": "subscribe", "epoch": me.epoch, "feeds": {conversation: 0}}))
        assert "x" * 500 in str(peer.recv(10))
        for n in range(30):
            peer.send(json.dumps({"type": "echo", "n": n, "more": "x" * n * 9}))
            assert peer.recv(10) == f'<chat-echo n="{n}"></chat-echo>'


BOMB = packed(b'{"type":"echo","n":1,"x":"' + b" " * 50_000_000 + b'"}')
CLOSING = {
    "a bomb": (masked(TEXT, BOMB, rsv=COMPRESSED)[:100_000], 1009),
    "a bomb that fits": (masked(TEXT, packed(b" " * 2_000_000), rsv=COMPRESSED), 1009),
    "a byte too much": (masked(TEXT, packed(b" " * (MOST + 1)), rsv=COMPRESSED), 1009),
    "garbage": (masked(TEXT, b"\xff" * 40, rsv=COMPRESSED), 1002),
    "no UTF-8 inside": (masked(TEXT, packed(b"\xff\xfe"), rsv=COMPRESSED), 1007),
    "binary": (masked(2, packed(b"abc"), rsv=COMPRESSED), 1003),
    "a compressed ping": (masked(PING, packed(b"abc"), rsv=COMPRESSED), 1002),
    "the bit on a continuation": (
        masked(TEXT, packed(b"abc"), fin=False, rsv=COMPRESSED) + masked(CONTINUATION, b"", rsv=COMPRESSED),
        1002,
    ),
    "another bit": (masked(TEXT, packed(b"abc"), rsv=0x20), 1002),
}


@pytest.mark.parametrize(("stream", "code"), CLOSING.values(), ids=CLOSING.keys())
def test_what_is_against_the_rules_closes_with_its_code(me: Client, stream: bytes, code: int) -> None:
    with RawWebSocket(me, Sec_WebSocket_Extensions=CHROMIUM) as raw:
        raw.socket.sendall(stream)
        assert raw.closed()[0] == code


def test_a_compressed_message_that_nobody_agreed_to_closes(me: Client) -> None:
    with RawWebSocket(me) as raw:
        raw.socket.sendall(masked(TEXT, packed(b'{"type":"echo","n":1}'), rsv=COMPRESSED))
        assert raw.closed()[0] == 1002


def test_a_bomb_is_inflated_no_further_than_the_limit() -> None:
    """What comes out is counted, not what goes in."""
    with pytest.raises(Violation):
        Inflater(MOST).inflate(packed(b" " * 10_000_000), True)
    whole, inflater = packed(b"ab" * (MOST // 2)), Inflater(MOST)
    assert inflater.inflate(whole[:5], False) + inflater.inflate(whole[5:], True) == b"ab" * (MOST // 2)


@pytest.mark.parametrize("seed", range(40))
def test_fragments_pings_and_plain_messages_between_compressed_ones(seed: int) -> None:
    """However the stream is cut."""
    chance, stream, expected = random.Random(seed), b"", []
    for number in range(30):
        text = f"{number} " + "é日👍a"[chance.randrange(4)] * chance.randrange(600)
        is_packed = chance.random() < 0.6
        payload = packed(text.encode()) if is_packed else text.encode()
        cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(chance.choice([0, 0, 1, 4])))
        for at, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
            rsv = COMPRESSED if is_packed and at == 0 else 0
            kind = TEXT if at == 0 else CONTINUATION
            stream += masked(kind, payload[start:end], at == len(cuts), rsv, chance.randbytes(4))
            stream += masked(PING, b"?") if chance.random() < 0.2 else b""
        expected.append(text)
    found, parser = [], Parser(MOST, True)
    for data in pieces(stream, chance):
        parser.feed(data)
        while (message := parser.next()) is not None:
            found += [message[1]] if message[0] == TEXT else []
        if parser.is_idle():
            parser = Parser(MOST, True)
    assert found == expected


@pytest.mark.parametrize("size", [0, 1, LEAST_BYTES - 1, LEAST_BYTES, 5000, 70_000])
def test_what_does_not_get_shorter_stays_as_it_is(size: int) -> None:
    noise = random.Random(size).randbytes(size)
    assert not compressed_frame(noise)[0] & COMPRESSED
    assert bool(compressed_frame(b"words and words " * size)[0] & COMPRESSED) == (16 * size >= LEAST_BYTES)
