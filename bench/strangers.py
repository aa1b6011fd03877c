"""Hostile strangers in a process of their own: `python -m bench.strangers HOST PORT KIND COUNT SOURCE…`, until TERM.

KIND is `sign-ins` (each tries passwords as soon as it is answered), `connections` (a fourth each is idle, sends its
header a byte at a time, its body so, and does not read what it asked for), or `both`. They come from the addresses
SOURCE in turn. It prints `up` once all are at work, and at the end, as JSON, the answers of each status.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections import Counter
from urllib.parse import urlencode

TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')
OPENING = 200  # connections under way at once
TRICKLE_S = 1.0  # between two bytes of a slow header or body
LARGE = "/static/x/vendor/htmx-4.0.1.min.js"
PIPELINED = 40  # requests for a large file, none of which is read
KINDS = ("idle", "header", "body", "not reading")
SIGN_INS, CONNECTIONS, BOTH = "sign-ins", "connections", "both"


class Strangers:
    """All of them. `seen` counts answers by status; 0: the connection ended without one."""

    def __init__(self, host: str, port: int, sources: list[str]) -> None:
        self.host, self.port, self.sources = host, port, sources
        self.seen: Counter[int] = Counter()
        self.opened = 0
        self._gate = asyncio.Semaphore(OPENING)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, kind: str, count: int) -> None:
        """Set them to work."""
        for number in range(count):
            is_signing = kind == SIGN_INS or (kind == BOTH and number % 2 == 0)
            source = self.sources[number % len(self.sources)]
            work = self._try_passwords(source) if is_signing else self._sit(number // 2 % 4, source)
            self._tasks.add(asyncio.get_running_loop().create_task(work))

    async def _ask(self, source: str, request: str) -> str:
        reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=(source, 0))
        try:
            writer.write(request.encode())
            return (await reader.read()).decode(errors="replace")
        finally:
            writer.close()

    async def _try_passwords(self, source: str) -> None:
        self.opened += 1
        while True:
            try:
                await self._try_until_broken(source)
            except OSError:
                self.seen[0] += 1
                await asyncio.sleep(0.05)

    async def _try_until_broken(self, source: str) -> None:
        head = f"Host: {self.host}:{self.port}\r\nConnection: close\r\n"
        page = await self._ask(source, f"GET /sign-in HTTP/1.1\r\n{head}\r\n")
        cookie, token = re.search(r"^Set-Cookie: ([^;\r]+)", page, re.M | re.I), TOKEN.search(page)
        if not cookie or not token:
            self._count(page)
            return
        body = urlencode({"csrf_token": token[1], "email": "eve@example.org", "password": "a wrong one"})
        typed = f"Cookie: {cookie[1]}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}"
        while True:
            self._count(await self._ask(source, f"POST /sign-in HTTP/1.1\r\n{head}{typed}\r\n\r\n{body}"))

    def _count(self, answer: str) -> None:
        self.seen[int(answer.split()[1]) if answer.startswith("HTTP/") else 0] += 1

    async def _sit(self, which: int, source: str) -> None:
        """Take up a connection, and do with it what this kind does, until the other side ends it."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        try:
            async with self._gate:
                sock.bind((source, 0))
                await loop.sock_connect(sock, (self.host, self.port))
            self.opened += 1
            await self._spoil(loop, sock, KINDS[which])
        except OSError:
            self.seen[0] += 1
        finally:
            sock.close()

    async def _spoil(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, kind: str) -> None:
        host = f"Host: {self.host}:{self.port}\r\n"
        if kind == "not reading":
            await loop.sock_sendall(sock, f"GET {LARGE} HTTP/1.1\r\n{host}\r\n".encode() * PIPELINED)
            await asyncio.sleep(3600)
        if kind == "header":
            await loop.sock_sendall(sock, f"GET / HTTP/1.1\r\n{host}X-Slow: ".encode())
        if kind == "body":
            head = f"POST /sign-in HTTP/1.1\r\n{host}Content-Type: application/x-www-form-urlencoded\r\n"
            await loop.sock_sendall(sock, f"{head}Content-Length: 500000\r\n\r\n".encode())
        ended = asyncio.ensure_future(loop.sock_recv(sock, 4096))
        while not ended.done():
            if kind != "idle":
                await loop.sock_sendall(sock, b"x")
            await asyncio.wait([ended], timeout=TRICKLE_S if kind != "idle" else None)
        self._count(ended.result().decode(errors="replace"))


async def main(host: str, port: str, kind: str, count: str, *sources: str) -> None:
    """All of them, until TERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    strangers = Strangers(host, int(port), list(sources))
    strangers.begin(kind, int(count))
    while strangers.opened + strangers.seen[0] < int(count) and not ended.is_set():
        await asyncio.sleep(0.05)
    print("up", flush=True)
    await ended.wait()
    print(json.dumps({"opened": strangers.opened, "seen": strangers.seen}), flush=True)
    os._exit(0)  # thousands of tasks need no farewell


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
