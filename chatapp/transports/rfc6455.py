"""WebSocket framing (RFC 6455), the server's half: bytes in, messages out. No socket, nothing kept between messages."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, Protocol

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PROTOCOL_ERROR, NOT_TEXT, TOO_BIG = 1002, 1007, 1009
COMPRESSED = 0x40  # the bit of a message's first byte that RFC 7692 gave a meaning
NO_CODE = 1005  # a close frame without a code; never on the wire
LONGEST_CONTROL = 125  # bytes, by the RFC; also what a length of seven bits can say
CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015)}  # that may be on the wire, besides 3000 to 4999


class Violation(Exception):
    """What arrived is against the rules: the code to close with, and why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One whole frame as a server writes it: unmasked, never in fragments."""
    size = len(payload)
    if size <= LONGEST_CONTROL:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; NO_CODE says none, as the other side did."""
    if code == NO_CODE:
        return frame(b"", CLOSE)
    return frame(code.to_bytes(2, "big") + reason.encode()[: LONGEST_CONTROL - 2], CLOSE)


class Inflater(Protocol):
    """What makes a compressed message readable: deflate.py."""

    def take(self, data: bytes, is_last: bool) -> bytes:
        """The next frame's content. Raises Violation."""


class Parser:
    """Takes bytes as they come and gives messages. One that `is_idle` can be thrown away."""

    __slots__ = ("_at", "_data", "_decoder", "_inflater", "_inflates", "_most", "_opcode", "_parts", "_size")

    def __init__(self, most: int, inflates: Callable[[int], Inflater] | None = None) -> None:
        self._most = most  # bytes of a message
        self._inflates = inflates  # None: no compression was agreed
        self._inflater: Inflater | None = None  # of the message under way
        self._data, self._at = b"", 0
        self._opcode, self._size = CONTINUATION, 0  # of the message whose fragments are being collected
        self._parts: list[Any] = []
        self._decoder: codecs.IncrementalDecoder | None = None

    def is_idle(self) -> bool:
        """Whether the last message ended with the last byte."""
        return self._at == len(self._data) and not self._opcode

    def feed(self, data: bytes) -> None:
        """Bytes from the socket."""
        self._data, self._at = (self._data[self._at :] + data if self._at < len(self._data) else data), 0

    def next(self) -> tuple[int, Any] | None:
        """The next message, as (opcode, str or bytes); None where more bytes are needed. Raises Violation."""
        while (found := self._frame()) is not None:
            opcode, payload, is_last = found
            if opcode >= CLOSE:
                return opcode, payload
            if (message := self._message(opcode, payload, is_last)) is not None:
                return message
        return None

    def _frame(self) -> tuple[int, bytes, bool] | None:
        """The next frame: opcode, payload, whether it is a message's last."""
        data, at = self._data, self._at
        if len(data) - at < 2:
            return None
        first, second = data[at], data[at + 1]
        opcode, size, at = first & 15, second & 127, at + 2
        self._check_head(first, second)
        if size > LONGEST_CONTROL:
            width = 2 if size == 126 else 8
            if len(data) - at < width:
                return None
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
            if size <= LONGEST_CONTROL or (width == 8 and not 1 << 16 <= size < 1 << 63):
                raise Violation(PROTOCOL_ERROR, "a length in more bytes than it needs")
        if opcode < CLOSE and self._size + size > self._most:
            raise Violation(TOO_BIG, "the message is too big")
        if len(data) - at < 4 + size:
            return None
        payload = _unmask(data[at + 4 : at + 4 + size], data[at : at + 4])
        self._at = at + 4 + size
        if opcode < CLOSE:
            payload = self._inflated(first, payload)
        return opcode, payload, first >= 0x80

    def _inflated(self, first: int, payload: bytes) -> bytes:
        if first & COMPRESSED and self._inflates:
            self._inflater = self._inflates(self._most)
        if (inflater := self._inflater) is None:
            return payload
        if first >= 0x80:
            self._inflater = None
        return inflater.take(payload, first >= 0x80)

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & 15
        compressed = COMPRESSED if self._inflates and opcode in (TEXT, BINARY) else 0
        if first & 0x70 & ~compressed:
            raise Violation(PROTOCOL_ERROR, "a reserved bit is set")
        if opcode not in (TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG):
            raise Violation(PROTOCOL_ERROR, "an unknown opcode")
        if not second & 0x80:
            raise Violation(PROTOCOL_ERROR, "a frame without a mask")
        if opcode >= CLOSE and (first < 0x80 or second & 127 > LONGEST_CONTROL):
            raise Violation(PROTOCOL_ERROR, "a control frame in fragments, or too long")
        if opcode < CLOSE and (opcode == CONTINUATION) != bool(self._opcode):
            raise Violation(PROTOCOL_ERROR, "a continuation out of place")

    def _message(self, opcode: int, payload: bytes, is_last: bool) -> tuple[int, Any] | None:
        """The message that this fragment completes; most are whole in one frame."""
        try:
            if is_last and not self._opcode:
                return opcode, payload.decode() if opcode == TEXT else payload
            if not self._opcode:
                self._opcode = opcode
                self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None
            self._size += len(payload)
            part = self._decoder.decode(payload, is_last) if self._decoder else payload
            if part:  # else a flood of empty fragments would fill the memory
                self._parts.append(part)
        except UnicodeDecodeError:
            raise Violation(NOT_TEXT, "text that is no UTF-8") from None
        if not is_last:
            return None
        whole = (self._opcode, ("" if self._opcode == TEXT else b"").join(self._parts))
        self._opcode, self._size, self._parts, self._decoder = CONTINUATION, 0, [], None
        return whole


def _unmask(payload: bytes, key: bytes) -> bytes:
    """XOR with the repeated key, as one large number: the fastest way without a C module."""
    size = len(payload)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


def close_code(payload: bytes) -> int:
    """The code of a close frame. Raises Violation."""
    if not payload:
        return NO_CODE
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or (code not in CLOSE_CODES and not 3000 <= code < 5000):
        raise Violation(PROTOCOL_ERROR, "a close code that must not be sent")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(NOT_TEXT, "a reason that is no UTF-8") from None
    return code
