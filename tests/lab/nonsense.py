"""Nonsense in every place of a request and of a WebSocket, as hypothesis makes it, and a wire that takes any bytes."""

import json
import socket
import time
from typing import Any

from hypothesis import strategies as st

from bench.load.wire import CLOSE, TEXT, Answers, WireError, encode, upgrade

ANSWER_S = 30.0

# What has broken servers before, more often than chance would find it.
NAMES = [
    "",
    ".",
    "..",
    "a..b",
    ".a",
    "a.",
    "-",
    "_",
    "[",
    "]",
    "[]",
    "[::1]",
    "[::1",
    "[v1.a]",
    "xn--",
    "xn--a",
    "a" * 63,
]
NAMES += [
    "a" * 64,
    ".".join(["a" * 60] * 5),
    "localhost",
    "127.0.0.1",
    "0",
    "%61",
    "a b",
    "ä",
    "ß",
    "\u3002",
    "a/b",
    "a@b",
    "a?b",
]
PORTS = ["", ":", ":0", ":80", ":65535", ":65536", ":99999999999999999999", ":-1", ":a", ":٣", ":80:80"]
TEXTS = [
    "\x00",
    "\ud800",
    "\udfff",
    "\ufffe",
    "\u202e",
    "𝕏",
    "'",
    '"',
    "<b>",
    "{{7*7}}",
    "%s",
    "%00",
    "%ff",
    "\r\n",
    "../",
    "null",
]
NUMBERS = [
    "0",
    "-1",
    "-0",
    "1e999",
    "-1e999",
    "nan",
    "inf",
    "1" * 400,
    "9" * 20,
    "0x10",
    "1_0",
    "٣",
    "1.5",
    "true",
    " 1 ",
]

words = st.one_of(st.sampled_from(TEXTS + NUMBERS), st.text(max_size=40), st.integers().map(str))
raw = st.one_of(words.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60))
line = raw.map(lambda value: value.translate(None, b"\r\n"))  # as the value of a header
hosts = st.one_of(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(PORTS)).map(lambda pair: "".join(pair).encode()),
    st.lists(st.sampled_from([*NAMES, ".", ":"]), max_size=4).map(lambda parts: "".join(parts).encode()),
    line,
)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), words, st.sampled_from([float("nan"), float("inf"), 10**400])
)
values = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)), max_leaves=8
)


def dumped(value: Any) -> bytes:
    """JSON as a careless client writes it: NaN, halves of characters and endless numbers included."""
    return json.dumps(value).encode()


deep = st.sampled_from([b"[" * 20_000, b'{"a":' * 5_000, b"[" * 500 + b"]" * 500, b"[" * 5_000 + b"]" * 5_000])
documents = st.one_of(values.map(dumped), deep, raw)


class Wire:
    """A kept connection that is opened again whenever the other side ends it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, request: bytes, is_ended: bool = False) -> tuple[int, bytes]:
        """The status and the body of what comes back; 0 where the other side ends without an answer.

        `is_ended`: nothing follows, so that who waits for more bytes learns that there are none.
        """
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_S)
        answers, end = Answers(), time.monotonic() + ANSWER_S
        try:
            self._socket.sendall(request)
            if is_ended:
                self._socket.shutdown(socket.SHUT_WR)
            while time.monotonic() < end:
                data = self._socket.recv(1 << 16)
                for status, head, body in answers.feed(data):
                    if is_ended or b"connection: close" in head or status in (101, 400, 413, 414, 417, 431, 501):
                        self.close()
                    return status, body
                if not data:
                    self.close()
                    return 0, b""
        except TimeoutError:
            raise AssertionError(f"no answer within {ANSWER_S:g} s to {request[:300]!r}") from None
        except (OSError, WireError):
            self.close()
            return 0, b""
        raise AssertionError(f"no answer within {ANSWER_S:g} s to {request[:300]!r}")

    def close(self) -> None:
        """The next request gets a connection of its own."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def request(
    method: bytes = b"GET",
    target: bytes = b"/",
    host: bytes = b"127.0.0.1",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    body: bytes = b"",
) -> bytes:
    """A request's bytes; a body has its true length."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: " + host]
    lines += [name + b": " + value for name, value in headers]
    if body or method == b"POST":
        lines.append(b"Content-Length: " + str(len(body)).encode())
    return b"\r\n".join([*lines, b"", b""]) + body


def speak(port: int, cookie: str, frames: list[tuple[int, bytes]]) -> None:
    """Open a WebSocket, write these frames (each a first byte and a payload), and wait until the server ends it."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as wire:
        wire.sendall(upgrade("/ws", port, cookie))
        data = wire.recv(1 << 16)
        assert data.startswith(b"HTTP/1.1 101"), data[:300]
        try:
            for first, payload in frames:
                wire.sendall(bytes([first]) + encode(TEXT, payload)[1:])
            wire.sendall(encode(CLOSE, b"\x03\xe8"))
            while wire.recv(1 << 16):
                pass
        except ConnectionError:
            return
