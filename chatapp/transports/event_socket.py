"""A non-blocking socket on the event loop: while idle it costs a small object and no greenlet.

Detached from gunicorn. Callbacks run in the event loop's own greenlet and must never block.
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

READ_BYTES = 4096  # per turn of the loop, so that a flood does not starve other sockets
LINGER_S = 2.0  # for the peer to close after our last bytes
READABLE, WRITABLE = 1, 2  # libev's EV_READ and EV_WRITE

PlainSocket: Any = monkey.get_original("socket", "socket")
close: Any = monkey.get_original("os", "close")


Slot = dict["EventSocket", None]  # sockets whose time-outs are due within one tick of the timer
NO_SLOT: Slot = {}  # of a socket without time-outs; always empty


class EventSocket:
    """A socket with callbacks (`on_bytes`, `on_blocked`, `on_writable`, `check`, `on_cut`, `on_end`) that buffers one
    write."""

    __slots__ = (
        "_fd",
        "_is_delayed",
        "_reading",
        "_rest",
        "_writing",
        "blocked_at",
        "bytes_in",
        "bytes_out",
        "delay_s",
        "ended_at",
        "is_mute",
        "is_paused",
        "received_at",
        "slot",
    )

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.slot = NO_SLOT  # set by the timer
        self._reading: Any = gevent.get_hub().loop.io(fd, READABLE)
        self._writing: Any = None
        self._rest: memoryview | None = None  # of a write; the bytes are shared between readers
        self.received_at = time.monotonic()
        self.blocked_at: float | None = None  # the kernel's buffer is full since then
        self.ended_at: float | None = None  # time of our last write
        self.is_paused = True  # incoming bytes stay in the kernel
        self.bytes_in = 0
        self.bytes_out = 0
        self.is_mute = False  # for drills: nothing passes in either direction
        self.delay_s = 0.0  # for drills: of each read
        self._is_delayed = False  # a delay has begun; reset at the read
        os.set_blocking(fd, False)

    # Callbacks

    def on_bytes(self, data: bytes) -> None:
        """Handle received bytes."""
        raise NotImplementedError

    def on_writable(self) -> None:
        """Continue: the kernel has taken the rest of a blocked write."""

    def on_blocked(self) -> None:
        """Start the write timeout: the kernel's buffer is full."""
        raise NotImplementedError

    def check(self, now: float) -> float:
        """Handle expired time-outs; returns the time of the next check (monotonic clock, s)."""
        raise NotImplementedError

    def on_cut(self) -> None:
        """Handle a stream that ended or failed before `end`."""

    def on_end(self) -> None:
        """Clean up: the socket is closed. The last callback."""
        raise NotImplementedError

    def _cut_if_late(self, now: float, write_s: float) -> None:
        """Cut if a write has been blocked for `write_s`, or if the peer has not closed LINGER_S after the last one."""
        since, most = (self.blocked_at, write_s) if self.is_blocked else (self.ended_at, LINGER_S)
        if since is not None and now - since >= most:
            self.cut()

    # Reading

    def resume_reading(self) -> None:
        """Read when bytes arrive."""
        if self._fd >= 0 and self.is_paused:
            self.is_paused = False
            self._reading.start(self)

    def pause_reading(self) -> None:
        """Leave incoming bytes in the kernel."""
        self.is_paused = True
        self._reading.stop()

    def _resume_delayed(self) -> None:
        if self._fd >= 0 and not self.is_paused:
            self._reading.start(self)

    def __call__(self) -> None:
        """Read; called by the event loop. (A bound method would be one more object for each socket.)"""
        if self.is_mute or (self.delay_s and not self._is_delayed):
            self._reading.stop()
            if self.delay_s and not self._is_delayed:
                self._is_delayed = True
                gevent.spawn_later(self.delay_s, self._resume_delayed)
            return
        self._is_delayed = False
        # An exception from here would stop the watcher and leave the socket open.
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.cut()
        elif self.ended_at is None:
            self.received_at = time.monotonic()
            self.bytes_in += len(data)
            self.on_bytes(data)

    # Writing

    @property
    def is_blocked(self) -> bool:
        """True while the rest of a write waits for the kernel: write nothing then."""
        return self._rest is not None

    @property
    def is_closed(self) -> bool:
        """True after the socket is closed."""
        return self._fd < 0

    def write(self, data: bytes) -> None:
        """Write whole frames. Call it neither while blocked nor after `end`."""
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
            self._writing.start(self._write_rest)
            self.on_blocked()

    def _write_rest(self) -> None:
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
                self.on_writable()

    def _unblock(self) -> None:
        if self._writing is not None:
            self._writing.stop()
            self._writing.close()
        self._rest = self._writing = self.blocked_at = None

    # Closing

    def end(self, last_bytes: bytes) -> None:
        """Write the last bytes, half-close, and wait for the peer to close."""
        if self._fd < 0 or self.ended_at is not None:
            return
        self.write(last_bytes)
        self.ended_at = time.monotonic()
        if self._fd >= 0:
            self.resume_reading()
            if not self.is_blocked:
                self._half_close()

    def _half_close(self) -> None:
        # close() with unread bytes would send a reset, and the peer could lose the last bytes.
        try:
            _shutdown(self._fd)
        except OSError:
            self.cut()

    def cut(self) -> None:
        """Close now; unwritten bytes are lost."""
        if self._fd < 0:
            return
        if self.ended_at is None:
            self.on_cut()
        self._unblock()
        self._reading.stop()
        self._reading.close()
        fd, self._fd = self._fd, -1
        close(fd)  # the watchers are closed; gevent's own close would wait for another turn of the loop
        self.on_end()


def has_unread(fd: int) -> bool:
    """Return True if the kernel holds unread bytes."""
    return fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"


def _shutdown(fd: int) -> None:
    plain = PlainSocket(fileno=fd)
    try:
        plain.shutdown(socket.SHUT_WR)
    finally:
        plain.detach()  # else the object would close the descriptor
