"""WebSocket framing (RFC 6455) and compression (RFC 7692) for a server, without I/O.

Compression is without context takeover, so that a frame is compressed once for all its readers.
"""

from __future__ import annotations

import codecs
import zlib
from enum import IntEnum
from typing import Any


class Opcode(IntEnum):
    """Opcodes (RFC 6455, section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Close codes (RFC 6455, section 7.4.1), and the application's own from 4000."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # a close frame without a code; never on the wire
    ABNORMAL = 1006  # no close frame; never on the wire
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    SERVER_ERROR = 1011
    RESTART = 1012
    SIGNED_OUT = 4401
    REPLACED = 4409


# As plain numbers for every frame: a member of an enum costs a look-up.
CONTINUATION, TEXT, BINARY, CLOSE, *_ = OPCODES = tuple(map(int, Opcode))
COMPRESSED = 0x40  # RSV1 in a message's first byte (RFC 7692)
LONGEST_CONTROL = 125  # bytes; also the largest length in seven bits
VALID_CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015)}  # allowed on the wire, besides 3000 to 4999

EXTENSION = "permessage-deflate"
TAIL = b"\x00\x00\xff\xff"  # removed by the sender (RFC 7692, section 7.2.1)
WINDOW_BITS = 12  # of our messages: 4 kB, the size of most frames; a smaller window is quicker to set up
MEMORY_LEVEL = 5
LEVEL = 6
LEAST_BYTES = 200  # shorter frames, such as echoes, are not worth compressing


class Violation(Exception):
    """A protocol error by the peer, with the close code to send and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a frame, unmasked and unfragmented."""
    size = len(payload)
    if size <= LONGEST_CONTROL:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; with CloseCode.NO_STATUS, an empty one."""
    if code == CloseCode.NO_STATUS:
        return frame(b"", CLOSE)
    return frame(code.to_bytes(2, "big") + reason.encode()[: LONGEST_CONTROL - 2], CLOSE)


class Inflater:
    """A decompressor for the frames of one message."""

    __slots__ = ("_left", "_stream")

    def __init__(self, most: int) -> None:
        self._left = most  # bytes of output still allowed
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)

    def inflate(self, data: bytes, is_last: bool) -> bytes:
        """Return the next frame's content. Raises Violation before the output exceeds the limit."""
        try:
            found = self._stream.decompress(data + TAIL if is_last else data, self._left + 1)
        except zlib.error:
            raise Violation(CloseCode.PROTOCOL_ERROR, "a compressed message that does not inflate") from None
        self._left -= len(found)
        if self._left < 0:
            raise Violation(CloseCode.TOO_BIG, "the message is too big")
        return found


class Parser:
    """A parser from bytes to messages. It may be discarded while `is_idle`."""

    __slots__ = ("_at", "_data", "_decoder", "_inflater", "_may_inflate", "_most", "_opcode", "_parts", "_size")

    def __init__(self, most: int, may_inflate: bool = False) -> None:
        self._most = most  # bytes of a message
        self._may_inflate = may_inflate  # compression was negotiated
        self._inflater: Inflater | None = None  # of the message being read
        self._data, self._at = b"", 0
        self._opcode: int = CONTINUATION  # of the fragmented message being read
        self._size = 0  # of its fragments so far
        self._parts: list[Any] = []
        self._decoder: codecs.IncrementalDecoder | None = None

    def is_idle(self) -> bool:
        """Return True between messages."""
        return self._at == len(self._data) and not self._opcode

    def feed(self, data: bytes) -> None:
        """Add bytes from the socket."""
        self._data, self._at = (self._data[self._at :] + data if self._at < len(self._data) else data), 0

    def next(self) -> tuple[int, Any] | None:
        """Return the next message as (opcode, str or bytes), or None if more bytes are needed. Raises Violation."""
        while (found := self._frame()) is not None:
            opcode, payload, is_last = found
            if opcode >= CLOSE:
                return opcode, payload
            if (message := self._message(opcode, payload, is_last)) is not None:
                return message
        return None

    def _frame(self) -> tuple[int, bytes, bool] | None:
        """Return the next frame as (opcode, payload, FIN)."""
        data, at = self._data, self._at
        if len(data) - at < 2:
            return None
        first, second = data[at], data[at + 1]
        opcode, size, at = first & 15, second & 127, at + 2
        self._check_header(first, second)
        if size > LONGEST_CONTROL:
            width = 2 if size == 126 else 8
            if len(data) - at < width:
                return None
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
            if size <= LONGEST_CONTROL or (width == 8 and not 1 << 16 <= size < 1 << 63):
                raise Violation(CloseCode.PROTOCOL_ERROR, "a length in more bytes than it needs")
        if opcode < CLOSE and self._size + size > self._most:
            raise Violation(CloseCode.TOO_BIG, "the message is too big")
        if len(data) - at < 4 + size:
            return None
        payload = _unmask(data[at + 4 : at + 4 + size], data[at : at + 4])
        self._at = at + 4 + size
        if opcode < CLOSE:
            payload = self._inflate(first, payload)
        return opcode, payload, first >= 0x80

    def _inflate(self, first: int, payload: bytes) -> bytes:
        if first & COMPRESSED and self._may_inflate:
            self._inflater = Inflater(self._most)
        if (inflater := self._inflater) is None:
            return payload
        if first >= 0x80:
            self._inflater = None
        return inflater.inflate(payload, first >= 0x80)

    def _check_header(self, first: int, second: int) -> None:
        opcode = first & 15
        compressed = COMPRESSED if self._may_inflate and opcode in (TEXT, BINARY) else 0
        if first & 0x70 & ~compressed:
            raise Violation(CloseCode.PROTOCOL_ERROR, "a reserved bit is set")
        if opcode not in OPCODES:
            raise Violation(CloseCode.PROTOCOL_ERROR, "an unknown opcode")
        if not second & 0x80:
            raise Violation(CloseCode.PROTOCOL_ERROR, "a frame without a mask")
        if opcode >= CLOSE and (first < 0x80 or second & 127 > LONGEST_CONTROL):
            raise Violation(CloseCode.PROTOCOL_ERROR, "a control frame in fragments, or too long")
        if opcode < CLOSE and (opcode == CONTINUATION) != bool(self._opcode):
            raise Violation(CloseCode.PROTOCOL_ERROR, "a continuation out of place")

    def _message(self, opcode: int, payload: bytes, is_last: bool) -> tuple[int, Any] | None:
        """Return the message completed by this frame, if any."""
        try:
            if is_last and not self._opcode:
                return opcode, payload.decode() if opcode == TEXT else payload
            if not self._opcode:
                self._opcode = opcode
                self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None
            self._size += len(payload)
            part = self._decoder.decode(payload, is_last) if self._decoder else payload
            if part:  # a flood of empty fragments must not fill the memory
                self._parts.append(part)
        except UnicodeDecodeError:
            raise Violation(CloseCode.INVALID_DATA, "text that is no UTF-8") from None
        if not is_last:
            return None
        whole = (self._opcode, ("" if self._opcode == TEXT else b"").join(self._parts))
        self._opcode, self._size, self._parts, self._decoder = CONTINUATION, 0, [], None
        return whole


def _unmask(payload: bytes, key: bytes) -> bytes:
    # As one large number: the fastest way without a C module.
    size = len(payload)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


def close_code(payload: bytes) -> int:
    """Return the code of a close frame. Raises Violation."""
    if not payload:
        return CloseCode.NO_STATUS
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or (code not in VALID_CLOSE_CODES and not 3000 <= code < 5000):
        raise Violation(CloseCode.PROTOCOL_ERROR, "a close code that must not be sent")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(CloseCode.INVALID_DATA, "a reason that is no UTF-8") from None
    return code


# Compression


def negotiate(offers: str) -> str:
    """Return the answer to a client's Sec-WebSocket-Extensions: its first acceptable offer, or empty."""
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        wanted = dict(parameter.replace(" ", "").partition("=")[::2] for parameter in parameters)
        if name == EXTENSION and len(wanted) == len(parameters) and _is_acceptable(wanted):
            bits = f"; server_max_window_bits={WINDOW_BITS}" if "server_max_window_bits" in wanted else ""
            return f"{EXTENSION}; client_no_context_takeover; server_no_context_takeover{bits}"
    return ""


def _is_acceptable(wanted: dict[str, str]) -> bool:
    return all(value.strip('"') in _ACCEPTABLE.get(name, ()) for name, value in wanted.items())


_ACCEPTABLE: dict[str, set[str]] = {
    "client_no_context_takeover": {""},
    "server_no_context_takeover": {""},
    "client_max_window_bits": {"", *map(str, range(8, 16))},  # we inflate with the largest window
    "server_max_window_bits": {str(bits) for bits in range(WINDOW_BITS, 16)},
}


def compressed_frame(payload: bytes) -> bytes:
    """Return a text frame, compressed if that makes it shorter."""
    if len(payload) < LEAST_BYTES:
        return frame(payload)
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
    data = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
    data = data[: -len(TAIL)]
    return frame(data, TEXT | COMPRESSED) if len(data) < len(payload) else frame(payload)
