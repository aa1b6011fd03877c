"""Just enough HTTP/2 (RFC 9113, cleartext, by prior knowledge) to send odd requests to a proxy, one connection each."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
STREAM = 1  # the only one
STATUSES = {0x88: 200, 0x89: 204, 0x8A: 206, 0x8B: 304, 0x8C: 400, 0x8D: 404, 0x8E: 500}  # HPACK's static table


class Stream:
    """A connection with its first stream: `ask`, `body`, then `answer`."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._socket = socket.create_connection((host, port), timeout)
        self._rest = b""
        self._is_tunnel = False
        self.text = ""  # of the answer's body
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, b""))

    def ask(self, headers: list[tuple[str, str]], ends: bool) -> None:
        """The request's head; `ends`: no body follows."""
        self._is_tunnel = (":method", "CONNECT") in headers
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)
        self._socket.sendall(_frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), STREAM, block))

    def body(self, data: bytes) -> None:
        """The whole body."""
        self._socket.sendall(_frame(DATA, END_STREAM, STREAM, data))

    def answer(self) -> int:
        """The answer's status once it has ended (an opened tunnel: once its head is there); 0 for any other end."""
        status = 0
        try:
            while True:
                kind, flags, payload = self._next()
                if kind == SETTINGS and not flags & ACK:
                    self._socket.sendall(_frame(SETTINGS, ACK, 0, b""))
                elif kind == PING and not flags & ACK:
                    self._socket.sendall(_frame(PING, ACK, 0, payload))
                elif kind in (RST_STREAM, GOAWAY):
                    return status
                elif kind == HEADERS:
                    status = _status(payload)
                elif kind == DATA:
                    self.text += payload.decode(errors="replace")
                if kind in (HEADERS, DATA) and (flags & END_STREAM or (self._is_tunnel and status == 200)):
                    return status
        except (TimeoutError, ConnectionError):
            return status

    def close(self) -> None:
        """Gone without a word."""
        self._socket.close()

    def _next(self) -> tuple[int, int, bytes]:
        head = self._take(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        return kind, flags, self._take(length)

    def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the other side has closed")
            self._rest += data
        found, self._rest = self._rest[:count], self._rest[count:]
        return found


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def _text(text: str) -> bytes:
    """A string of HPACK (RFC 7541), neither indexed nor compressed."""
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    left, length = len(data) - 127, bytearray([127])
    while left >= 128:
        length.append(left % 128 + 128)
        left //= 128
    return bytes(length) + bytes([left]) + data


def _status(block: bytes) -> int:
    """The first field of an answer's head; HAProxy compresses no text."""
    if block[0] in STATUSES:
        return STATUSES[block[0]]
    digits = block[2:5]
    return int(digits) if digits.isdigit() else 0
