"""Just enough HTTP/1.1 and RFC 6455 to watch a connection go by: heads, ends of bodies, frames."""

from collections.abc import Callable
from dataclasses import dataclass, field

HEAD_LIMIT = 64 * 1024


@dataclass
class Head:
    """The first lines of a request or an answer; `raw` ends with the empty line."""

    raw: bytes
    first: str
    headers: dict[str, str]

    @classmethod
    def of(cls, raw: bytes) -> "Head":
        """Reads a head; names of headers become lower case, repeated ones are joined."""
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        return cls(raw, first, headers)

    @property
    def is_upgrade(self) -> bool:
        """Whether a request asks for a WebSocket."""
        return self.headers.get("upgrade", "").lower() == "websocket"

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.first.split(" ", 1)[0]

    @property
    def target(self) -> str:
        """Path and query of a request."""
        return [*self.first.split(" "), ""][1]

    @property
    def status(self) -> int:
        """The status of an answer."""
        return int([*self.first.split(" "), "0"][1])

    def without(self, *names: str) -> bytes:
        """The head again, without some headers."""
        lines = self.raw.rstrip(b"\r\n").split(b"\r\n")
        kept = [lines[0]] + [ln for ln in lines[1:] if ln.split(b":")[0].strip().lower().decode() not in names]
        return b"\r\n".join(kept) + b"\r\n\r\n"


class Body:
    """Finds the end of an answer's body as bytes come; `done` once it is reached."""

    def __init__(self, head: Head, method: str) -> None:
        self.done = method == "HEAD" or head.status in (204, 304) or 100 <= head.status < 200
        self.chunked = "chunked" in head.headers.get("transfer-encoding", "").lower()
        length = head.headers.get("content-length")
        self.left = int(length) if length is not None else None
        self._tail = b""
        if not self.done and not self.chunked and self.left == 0:
            self.done = True

    @property
    def until_close(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return not self.done and not self.chunked and self.left is None

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        if self.chunked:
            # The last chunk is the only place where these bytes follow a line end; good enough for a test proxy.
            self._tail = (self._tail + data)[-7:]
            self.done = self.done or (b"\r\n" + self._tail).endswith(b"\r\n0\r\n\r\n")
        elif self.left is not None:
            self.left -= len(data)
            self.done = self.done or self.left <= 0


@dataclass
class Frame:
    """One WebSocket frame seen on the wire. `size` counts its header, too; `at` is time.time()."""

    at: float
    connection: int
    up: bool
    opcode: int
    payload: bytes
    size: int
    compressed: bool = False

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode(errors="replace")

    @property
    def close_code(self) -> int:
        """The code of a close frame; 1005 where it has none."""
        return int.from_bytes(self.payload[:2], "big") if len(self.payload) >= 2 else 1005

    def rewritten(self, rewrite: Callable[[bytes], bytes]) -> bytes:
        """A server's frame as it goes on, with something done to its text."""
        payload = rewrite(self.payload) if self.opcode == 1 else self.payload
        n = len(payload)
        size = (
            bytes([n]) if n < 126 else b"\x7e" + n.to_bytes(2, "big") if n < 1 << 16 else b"\x7f" + n.to_bytes(8, "big")
        )
        return bytes([0x80 | self.opcode]) + size + payload


@dataclass
class FrameReader:
    """Cuts one direction of a WebSocket into frames."""

    connection: int
    up: bool
    rest: bytes = b""
    frames: list[Frame] = field(default_factory=list)

    def feed(self, data: bytes, at: float) -> list[Frame]:
        """The frames that these bytes complete."""
        self.rest += data
        found = []
        while frame := self._next(at):
            found.append(frame)
        return found

    def _next(self, at: float) -> Frame | None:
        data = self.rest
        if len(data) < 2:
            return None
        length, start = data[1] & 0x7F, 2
        if length >= 126:
            extra = 2 if length == 126 else 8
            length, start = int.from_bytes(data[2 : 2 + extra], "big"), 2 + extra
        masked = bool(data[1] & 0x80)
        end = start + 4 * masked + length
        if len(data) < end:
            return None
        payload = data[start + 4 * masked : end]
        if masked:
            mask = data[start : start + 4]
            payload = bytes(byte ^ mask[n & 3] for n, byte in enumerate(payload))
        self.rest = data[end:]
        return Frame(at, self.connection, self.up, data[0] & 0x0F, payload, end, bool(data[0] & 0x40))
