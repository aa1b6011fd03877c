"""Bytes of HTTP and WebSocket (RFC 6455, 7692), as little of both as a load generator needs."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Callable, Iterator

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FINAL, COMPRESSED, MASKED = 0x80, 0x40, 0x80
DEFLATE = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
MASK = b"\x37\xfa\x21\x3d"  # not zero: some servers skip the unmasking then
_TAIL = b"\x00\x00\xff\xff"

Frame = tuple[int, bytes]  # opcode and payload, inflated


class WireError(Exception):
    """The other side does not speak what it should."""


def encode(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", FINAL | opcode, MASKED | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", FINAL | opcode, MASKED | 126, size)
    else:
        head = struct.pack("!BBQ", FINAL | opcode, MASKED | 127, size)
    pad = (MASK * (size // 4 + 1))[:size]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return head + MASK + mixed.to_bytes(size, "big")


def text(message: str) -> bytes:
    """A client's text frame."""
    return encode(TEXT, message.encode())


class Frames:
    """Takes a server's bytes, gives its frames. `sizes` of what came are the caller's to count."""

    def __init__(self, compressed: bool = False) -> None:
        self._rest = b""
        self._inflate: Callable[[bytes], bytes] | None = _inflate if compressed else None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete. Raises WireError for what a server may not send."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = 0, len(data)
        while end - at >= 2:
            first, size, body = data[at], data[at + 1], at + 2
            if size == 126:
                body = at + 4
                size = int.from_bytes(data[at + 2 : body], "big") if end >= body else end
            elif size == 127:
                body = at + 10
                size = int.from_bytes(data[at + 2 : body], "big") if end >= body else end
            elif size > 127:
                raise WireError("a server's frame is masked")
            if body + size > end:
                break
            yield self._frame(first, data[body : body + size])
            at = body + size
        self._rest = data[at:] if at else data

    def whole(self, data: bytes) -> bytes | None:
        """The payload, where these bytes are exactly one plain text frame: nearly always, hence this short way."""
        if self._rest or len(data) < 2 or data[0] != FINAL | TEXT or data[1] > 126:
            return None
        size, body = data[1], 2
        if size == 126 and len(data) >= 4:
            size, body = data[2] << 8 | data[3], 4
        return data[body:] if len(data) == body + size else None

    def _frame(self, first: int, payload: bytes) -> Frame:
        if not first & FINAL or first & 0x0F == 0:
            raise WireError("a frame in fragments: this client reads whole ones")
        if first & COMPRESSED:
            if self._inflate is None:
                raise WireError("a compressed frame that nobody asked for")
            payload = self._inflate(payload)
        return first & 0x0F, payload


def _inflate(payload: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(payload + _TAIL)


def upgrade(path: str, port: int, cookie: str = "", compressed: bool = False) -> bytes:
    """The request for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        f"Origin: http://127.0.0.1:{port}",
    ]
    if cookie:
        lines.append(f"Cookie: {cookie}")
    if compressed:
        lines.append(f"Sec-WebSocket-Extensions: {DEFLATE}")
    return "\r\n".join([*lines, "", ""]).encode()


def get(path: str, port: int, cookie: str = "") -> bytes:
    """A GET on a connection that is kept."""
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    if cookie:
        lines.append(f"Cookie: {cookie}")
    return "\r\n".join([*lines, "", ""]).encode()


def post(path: str, port: int, body: bytes, kind: str, cookie: str = "") -> bytes:
    """A POST on a connection that is kept."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(body)}", "Accept: application/json"]
    if cookie:
        lines.append(f"Cookie: {cookie}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Answers:
    """Takes a server's bytes, gives HTTP answers: (status, head, body). Bodies have a length, are chunked, or none."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self) -> bytes:
        """What came after the last answer: after a 101, frames."""
        rest, self._rest = self._rest, b""
        return rest

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """The answers that these bytes complete; stops after a 101."""
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            status = int(head[9:12])
            found = _body(head, self._rest, end + 4, status)
            if found is None:
                return
            body, after = found
            self._rest = self._rest[after:]
            yield status, head, body
            if status == 101:
                return


def _body(head: bytes, data: bytes, at: int, status: int) -> tuple[bytes, int] | None:
    if status in (101, 204, 304):
        return b"", at
    if b"\r\ntransfer-encoding: chunked" in head:
        return _chunks(data, at)
    mark = head.find(b"\r\ncontent-length:")
    if mark < 0:
        raise WireError(f"an answer without a length: {head[:200]!r}")
    length = int(head[mark + 17 :].split(b"\r\n", 1)[0])
    return (data[at : at + length], at + length) if len(data) >= at + length else None


def _chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    parts: list[bytes] = []
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].split(b";")[0], 16)
        end = line + 2 + size
        if len(data) < end + 2:
            return None
        if size == 0:
            return b"".join(parts), end + 2
        parts.append(data[line + 2 : end])
        at = end + 2
    return None
