"""A socket that the event loop watches: while nothing arrives it costs a small object and no greenlet.

Taken over from gunicorn after the handshake. Callbacks run in the event loop itself and must never wait.
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
import time
from typing import Any

import gevent
from gevent import monkey

READ_BYTES = 4096  # at once: a flood gives way to others after so much
LINGER_S = 2.0  # how long the other side may take to close after the goodbye
READABLE, WRITABLE = 1, 2  # the event loop's words for what to watch

PlainSocket: Any = monkey.get_original("socket", "socket")
close: Any = monkey.get_original("os", "close")


class EventSocket:
    """Reads when bytes arrive, writes what the kernel takes and keeps the rest of that one write.

    Subclasses say what happens: `on_bytes`, `on_blocked`, `on_room`, `on_cut`, `on_end`.
    """

    __slots__ = (
        "_fd",
        "_is_late",
        "_reading",
        "_rest",
        "_writing",
        "blocked_at",
        "bytes_in",
        "bytes_out",
        "delay_s",
        "ended_at",
        "heard_at",
        "is_mute",
        "is_paused",
    )

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reading: Any = gevent.get_hub().loop.io(fd, READABLE)
        self._writing: Any = None
        self._rest: memoryview | None = None  # of a write; it shares its bytes with other readers
        self.heard_at = time.monotonic()
        self.blocked_at: float | None = None  # since when the kernel takes no more
        self.ended_at: float | None = None  # when the goodbye was said
        self.is_paused = True  # whether what comes is left in the kernel
        self.bytes_in = 0
        self.bytes_out = 0
        self.is_mute = False  # a drill: nothing passes, either way
        self.delay_s = 0.0  # a drill: what comes waits so long
        self._is_late = False  # whether it has waited
        os.set_blocking(fd, False)

    # What subclasses say

    def on_bytes(self, data: bytes) -> None:
        """Bytes arrived."""
        raise NotImplementedError

    def on_room(self) -> None:
        """All that was written is with the kernel."""
        raise NotImplementedError

    def on_blocked(self) -> None:
        """The kernel did not take all: the write timeout runs."""
        raise NotImplementedError

    def on_cut(self) -> None:
        """The stream ended, or failed, before a goodbye."""
        raise NotImplementedError

    def on_end(self) -> None:
        """It is over; nothing comes after this."""
        raise NotImplementedError

    # Reading

    def read_on(self) -> None:
        """Watch for bytes."""
        if self._fd >= 0 and self.is_paused:
            self.is_paused = False
            self._reading.start(self)

    def pause(self) -> None:
        """Leave what comes in the kernel."""
        self.is_paused = True
        self._reading.stop()

    def _read_late(self) -> None:
        if self._fd >= 0 and not self.is_paused:
            self._reading.start(self)

    def __call__(self) -> None:
        """The event loop says that there is something to read. (A method would be an object more for each socket.)"""
        if self.is_mute or (self.delay_s and not self._is_late):
            self._reading.stop()
            if self.delay_s and not self._is_late:
                self._is_late = True
                gevent.spawn_later(self.delay_s, self._read_late)
            return
        self._is_late = False
        # What escapes from here would leave the watcher dead and the connection deaf but open.
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.cut()
        elif self.ended_at is None:
            self.heard_at = time.monotonic()
            self.bytes_in += len(data)
            self.on_bytes(data)

    # Writing

    @property
    def is_blocked(self) -> bool:
        """Whether the kernel has not taken all yet: write nothing then."""
        return self._rest is not None

    @property
    def is_over(self) -> bool:
        """Whether there is no socket any more."""
        return self._fd < 0

    def write(self, data: bytes) -> None:
        """Write whole frames. Not while blocked, and not after the goodbye."""
        if self.is_mute:
            return
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.cut()
            return
        self.bytes_out += sent
        if sent < len(data):
            self._rest = memoryview(data)[sent:]
            self.blocked_at = time.monotonic()
            self._writing = gevent.get_hub().loop.io(self._fd, WRITABLE)
            self._writing.start(self._writable)
            self.on_blocked()

    def _writable(self) -> None:
        assert self._rest is not None
        try:
            sent = os.write(self._fd, self._rest)
        except BlockingIOError:
            return
        except OSError:
            self.cut()
            return
        self.bytes_out += sent
        self._rest = self._rest[sent:]
        if not self._rest:
            self._unblock()
            if self.ended_at is not None:
                self._half_close()
            else:
                self.on_room()

    def _unblock(self) -> None:
        if self._writing is not None:
            self._writing.stop()
            self._writing.close()
        self._rest = self._writing = self.blocked_at = None

    # The end

    def end(self, goodbye: bytes) -> None:
        """Write the last words, say that no more comes, and wait for the other side to close."""
        if self._fd < 0 or self.ended_at is not None:
            return
        self.write(goodbye)
        self.ended_at = time.monotonic()
        if self._fd >= 0:
            self.read_on()
            if not self.is_blocked:
                self._half_close()

    def _half_close(self) -> None:
        """Closing at once would make the kernel forget the last words, where bytes of the other side are unread."""
        try:
            _shut(self._fd)
        except OSError:
            self.cut()

    def cut(self) -> None:
        """Close now, whatever is unsaid."""
        if self._fd < 0:
            return
        if self.ended_at is None:
            self.on_cut()
        self._unblock()
        self._reading.stop()
        self._reading.close()
        fd, self._fd = self._fd, -1
        close(fd)  # no watcher has it any more; gevent's own would wait for another turn of the loop
        self.on_end()


def has_unread(fd: int) -> bool:
    """Whether bytes wait in the kernel."""
    return fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"


def _shut(fd: int) -> None:
    """Half-close by number: the socket module closes with its object, so the object gives the number back."""
    borrowed = PlainSocket(fileno=fd)
    try:
        borrowed.shutdown(socket.SHUT_WR)
    finally:
        borrowed.detach()
