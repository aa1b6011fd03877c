"""Gunicorn's socket, repaired: whatever is written is written whole, in turn and in time; a flood is not read."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import gevent

MOST_BACKLOG = 64  # messages read ahead of the handler


class WriteFailed(OSError):
    """The reader did not take a write in time; the stream is cut in mid frame and must not be used again."""


class WholeSocket:
    """Gunicorn's socket, repaired: `send` writes all of its data, in turn, within a deadline.

    simple-websocket calls `send` once and forgets what the kernel did not take, which under gevent tears the
    stream of every slow reader apart (its issue 45).
    """

    def __init__(self, sock: socket.socket, write_timeout_s: float) -> None:
        self._sock = sock
        self._lock = threading.RLock()
        self._timeout_s = write_timeout_s
        self._is_broken = False
        self.received_at = time.monotonic()
        self.backlog: list[Any] = []  # messages read and not yet taken up
        self.was_cut = False  # the stream ended before anybody said goodbye
        self.is_mute = False  # a drill: nothing passes, either way
        self.delay_s = 0.0  # a drill: what comes waits so long
        self.bytes_in = 0
        self.bytes_out = 0

    def send(self, data: bytes) -> int:
        """Write all of it. Raises OSError; after that nothing is written any more."""
        with self._lock:
            if self._is_broken:
                raise WriteFailed("the connection is broken")
            if self.is_mute:
                return len(data)
            try:
                with gevent.Timeout(self._timeout_s, WriteFailed("the reader does not take what is sent")):
                    self._sock.sendall(data)
            except OSError:
                self._is_broken = True
                self.abort()
                raise
            self.bytes_out += len(data)
            return len(data)

    def recv(self, size: int) -> bytes:
        """Read, and note that the other side lives. A flood waits in the kernel, not in our memory."""
        gevent.sleep(0)  # where bytes are always there, recv never waits, and nobody else would get a turn
        while len(self.backlog) > MOST_BACKLOG:
            gevent.sleep(0.01)
        try:
            data = self._sock.recv(size)
        except OSError:
            self.was_cut = True
            raise
        self.was_cut = not data
        if data:
            self.received_at = time.monotonic()
            self.bytes_in += len(data)
        if self.delay_s:
            gevent.sleep(self.delay_s)
        while self.is_mute:  # until `abort`
            gevent.sleep(0.05)
        return data

    def abort(self) -> None:
        """End both directions at once; whoever waits on the socket is woken."""
        self.is_mute = False
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
