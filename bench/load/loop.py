"""One epoll that moves the bytes of thousands of sockets. Everything here is on the load generator's hot path."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable

RECV_BYTES = 1 << 16
LINGER_NOTHING = struct.pack("ii", 1, 0)  # close with RST: no TIME_WAIT, whose ports a run would use up
SOURCES = 8  # loopback addresses to connect from: each has 28,000 ports


class TimedOut(Exception):
    """What a workload waited for did not come; the message says what came."""


class Connection:
    """One socket. `on_bytes` takes what came; `on_end` hears that the other side ended it."""

    __slots__ = ("_loop", "_out", "bytes_in", "connected", "fd", "on_bytes", "on_end", "open", "sock")

    def __init__(self, loop: Loop, port: int) -> None:
        self._loop = loop
        self._out = b""
        self.bytes_in = 0
        self.open = True
        self.connected = False
        self.on_bytes: Callable[[bytes], None] = lambda data: None
        self.on_end: Callable[[], None] = lambda: None
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOTHING)
        self.sock.bind((loop.source(), 0))
        self.fd = self.sock.fileno()
        code = self.sock.connect_ex(("127.0.0.1", port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")
        loop.add(self)

    def send(self, data: bytes) -> None:
        """Write it now, or what is left of it when there is room."""
        if self._out or not self.connected:
            self._out += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.ended()
            return
        if sent < len(data):
            self._out = data[sent:]
            self._loop.watch(self, writing=True)

    def writable(self) -> None:
        """The socket is connected, or has room."""
        if not self.connected:
            if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.ended()
                return
            self.connected = True
        data, self._out = self._out, b""
        if data:
            self.send(data)
        if not self._out and self.open:
            self._loop.watch(self, writing=False)

    def ended(self) -> None:
        """The other side is gone."""
        if self.open:
            self.close()
            self.on_end()

    def close(self) -> None:
        """End it rudely, as a lost network does."""
        if self.open:
            self.open = False
            self._loop.remove(self)
            self.sock.close()


class Loop:
    """The sockets of one load generator."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._made = 0
        self.turns = 0
        self.sources: tuple[str, ...] = ()  # where connections come from; else SOURCES addresses in turn

    def source(self) -> str:
        """The address that the next connection comes from."""
        self._made += 1
        if self.sources:
            return self.sources[self._made % len(self.sources)]
        return f"127.0.0.{2 + self._made % SOURCES}"

    def add(self, connection: Connection) -> None:
        """Watch a new socket."""
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def watch(self, connection: Connection, writing: bool) -> None:
        """Also, or no longer, wait for room to write."""
        self._epoll.modify(connection.fd, select.EPOLLIN | (select.EPOLLOUT if writing else 0))

    def remove(self, connection: Connection) -> None:
        """Forget a socket."""
        self._connections.pop(connection.fd, None)
        self._epoll.unregister(connection.fd)

    def turn(self, timeout_s: float) -> None:
        """Wait for events once, and handle them."""
        self.turns += 1
        connections = self._connections
        for fd, event in self._epoll.poll(timeout_s):
            connection = connections.get(fd)
            if connection is None:
                continue
            if event & select.EPOLLOUT:
                connection.writable()
            if event & ~select.EPOLLOUT and connection.open:
                try:
                    data = connection.sock.recv(RECV_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if data:
                    connection.bytes_in += len(data)
                    connection.on_bytes(data)
                else:
                    connection.ended()

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Handle events for this time, or until the condition holds (tested once a turn)."""
        end = time.monotonic() + seconds
        while not until() and (left := end - time.monotonic()) > 0:
            self.turn(min(left, 0.05))

    def wait(self, until: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Handle events until the condition holds. Raises TimedOut."""
        self.run(timeout_s, until)
        if not until():
            raise TimedOut(f"not within {timeout_s:g} s: {what}")

    def close(self) -> None:
        """End all connections."""
        for connection in list(self._connections.values()):
            connection.close()
        self._epoll.close()
