"""Compression of WebSocket messages (permessage-deflate, RFC 7692), without context from one message to the next.

So a frame is compressed once for all its readers, and a connection keeps nothing between messages.
"""

from __future__ import annotations

import zlib

from chatapp.transports.rfc6455 import COMPRESSED, PROTOCOL_ERROR, TEXT, TOO_BIG, Violation, frame

NAME = "permessage-deflate"
TAIL = b"\x00\x00\xff\xff"  # what RFC 7692 has the sender leave out
WINDOW_BITS = 12  # of what we write: 4 kB, as much as most frames have; a smaller window is quicker to set up
MEMORY_LEVEL = 5
LEVEL = 6
LEAST_BYTES = 200  # below, little is saved, and an echo would cost more than it does now


def agreed(offers: str) -> str:
    """What is answered to a client's Sec-WebSocket-Extensions, as an offer that is accepted as it stands; or empty."""
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        wanted = dict(parameter.replace(" ", "").partition("=")[::2] for parameter in parameters)
        if name == NAME and len(wanted) == len(parameters) and _can(wanted):
            bits = f"; server_max_window_bits={WINDOW_BITS}" if "server_max_window_bits" in wanted else ""
            return f"{NAME}; client_no_context_takeover; server_no_context_takeover{bits}"
    return ""


def _can(wanted: dict[str, str]) -> bool:
    return all(value.strip('"') in _POSSIBLE.get(name, ()) for name, value in wanted.items())


_POSSIBLE: dict[str, set[str]] = {
    "client_no_context_takeover": {""},
    "server_no_context_takeover": {""},
    "client_max_window_bits": {"", *map(str, range(8, 16))},  # we inflate whatever the client likes
    "server_max_window_bits": {str(bits) for bits in range(WINDOW_BITS, 16)},
}


def deflated(payload: bytes) -> bytes:
    """A whole text frame, compressed where that makes it shorter."""
    if len(payload) < LEAST_BYTES:
        return frame(payload)
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
    data = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
    data = data[: -len(TAIL)]
    return frame(data, TEXT | COMPRESSED) if len(data) < len(payload) else frame(payload)


class Inflater:
    """Inflates the frames of one message."""

    __slots__ = ("_left", "_stream")

    def __init__(self, most: int) -> None:
        self._left = most  # bytes that may still come out
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)

    def take(self, data: bytes, is_last: bool) -> bytes:
        """The next frame's content. Raises Violation before more than the limit is inflated."""
        try:
            found = self._stream.decompress(data + TAIL if is_last else data, self._left + 1)
        except zlib.error:
            raise Violation(PROTOCOL_ERROR, "a compressed message that does not inflate") from None
        self._left -= len(found)
        if self._left < 0:
            raise Violation(TOO_BIG, "the message is too big")
        return found
