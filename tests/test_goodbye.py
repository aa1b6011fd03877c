"""A WebSocket whose last word waits for room, because the other side does not read."""

import socket
from collections.abc import Iterator

import gevent
import pytest

from chatapp.parts import Parts
from chatapp.store import Lives
from chatapp.transports import rfc6455
from chatapp.transports.connections import STORE_AFTER_S
from chatapp.transports.event_socket import READ_BYTES
from chatapp.transports.websocket import WebSocketConnection

FLOOD = 500  # reads: 2 MB


@pytest.fixture
def pair(parts: Parts) -> Iterator[tuple[WebSocketConnection, socket.socket]]:
    """The server's side of a connection, and the other end of its socket."""
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
    parts.store.people.add_session(ada, "hash", Lives(3600, 3600, 3600), "127.0.0.1", "")
    sign_in = parts.store.people.session("hash")
    assert sign_in is not None
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    connection = WebSocketConnection(ours.detach(), parts, sign_in, "127.0.0.1", False)
    connection.start(b"")
    with theirs:
        yield connection, theirs
        connection.cut()
        gevent.sleep(2 * STORE_AFTER_S)  # its event is stored


def drain(theirs: socket.socket) -> bytes:
    """All that the server says, up to its end."""
    said = bytearray()
    theirs.setblocking(False)
    while True:
        gevent.sleep(0)
        try:
            data = theirs.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            return bytes(said)
        said += data


@pytest.mark.timeout(20)
def test_what_comes_after_the_last_word_is_not_kept(pair: tuple[WebSocketConnection, socket.socket]) -> None:
    connection, theirs = pair
    connection.write(rfc6455.frame(b"x" * 4_000_000))
    assert connection.is_blocked
    connection.close(rfc6455.CloseCode.TOO_BIG, "the message is too big")
    for _ in range(FLOOD):
        theirs.sendall(b"y" * READ_BYTES)
        connection()  # as the event loop does
    assert connection.bytes_in >= FLOOD * READ_BYTES, "it was read, so that the other side's end would be seen"
    assert connection._parser is None
    assert drain(theirs).endswith(rfc6455.close_frame(rfc6455.CloseCode.TOO_BIG, "the message is too big"))
