"""A server that does as good as nothing, to show what the load generator itself can do. Standard library alone.

It speaks picows_server.py's text frames and answers every GET with 204. BENCH_SLEEP_S is slept, BENCH_BURN_S is
computed before each message is passed on: so that a test can plant a cost and see whether the rig finds it.

Usage: null_server.py PORT
"""

import base64
import hashlib
import os
import select
import socket
import sys
import time

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
SLEEP_S = float(os.environ.get("BENCH_SLEEP_S", "0"))
BURN_S = float(os.environ.get("BENCH_BURN_S", "0"))


def frame(payload: bytes) -> bytes:
    """A server's text frame of less than 64 KiB."""
    size = len(payload)
    return bytes((0x81, size)) + payload if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big") + payload


class Peer:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.data, self.room, self.upgraded = sock, b"", b"", False

    def messages(self) -> list[bytes]:
        """The text frames that are whole; others are left out."""
        found = []
        while len(self.data) >= 6:
            size, at = self.data[1] & 127, 2
            if size == 126:
                size, at = int.from_bytes(self.data[2:4], "big"), 4
            if len(self.data) < at + 4 + size:
                break
            mask, payload = self.data[at : at + 4], self.data[at + 4 : at + 4 + size]
            pad = (mask * (size // 4 + 1))[:size]
            plain = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
            if self.data[0] & 15 == 1:
                found.append(plain)
            self.data = self.data[at + 4 + size :]
        return found


class Server:
    """All of it."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.peers: dict[int, Peer] = {}
        self.rooms: dict[bytes, dict[int, socket.socket]] = {}

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for fd, _ in self.epoll.poll():
                if fd == self.listener.fileno():
                    self.accept()
                    continue
                peer = self.peers[fd]
                try:
                    data = peer.sock.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    self.leave(fd)
                    continue
                peer.data += data
                self.frames(peer) if peer.upgraded else self.requests(peer)

    def accept(self) -> None:
        """A new connection."""
        sock, _ = self.listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers[sock.fileno()] = Peer(sock)
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def leave(self, fd: int) -> None:
        """One that has ended."""
        peer = self.peers.pop(fd)
        members = self.rooms.get(peer.room, {})
        members.pop(fd, None)
        if not members:
            self.rooms.pop(peer.room, None)
        self.epoll.unregister(fd)
        peer.sock.close()

    def requests(self, peer: Peer) -> None:
        """GETs: an upgrade, or nothing new."""
        while (end := peer.data.find(b"\r\n\r\n")) >= 0:
            head, peer.data = peer.data[:end], peer.data[end + 4 :]
            at = head.find(b"Sec-WebSocket-Key: ")
            if at < 0:
                peer.sock.sendall(NOTHING)
                continue
            key = head[at + 19 :].split(b"\r\n")[0]
            accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
            head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            peer.sock.sendall(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            peer.upgraded = True
            self.frames(peer)
            return

    def planted(self) -> None:
        """The cost that a test has planted."""
        if SLEEP_S:
            time.sleep(SLEEP_S)
        until = time.perf_counter() + BURN_S
        while BURN_S and time.perf_counter() < until:
            pass

    def frames(self, peer: Peer) -> None:
        """What a client says."""
        for text in peer.messages():
            if text[:1] == b"J":
                peer.room = text[1:]
                self.rooms.setdefault(peer.room, {})[peer.sock.fileno()] = peer.sock
                peer.sock.sendall(frame(b"J"))
                continue
            self.planted()
            room, _, body = text[1:].partition(b" ")
            data = frame(b"M" + body)
            for sock in self.rooms.get(room, {}).values():
                sock.sendall(data)


Server(int(sys.argv[1])).run()
