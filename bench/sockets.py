"""What sockets, deliveries, posts and polls cost: this tree against another one, in turns, as ratios of medians.

    PYTHONPATH=tests .venv/bin/python bench/sockets.py [OTHER_TREE] [--runs 3] [--only idle,delivery]

The server is the product as it ships (gunicorn, signed in, FULL, fragments), without the assistant. CPU is the
worker's own time as the kernel counts it, so that a busy machine disturbs little.
"""

import argparse
import json
import os
import selectors
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

from lab.http import Client
from lab.server import Server

HERE = Path(__file__).resolve().parents[1]
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT = "x" * 200
PATIENT = {"ws_read_timeout": 3600, "ws_pong_timeout": 3600}  # a busy machine may not get to its pongs
IDLE = 1000  # sockets


class Tree(Server):
    """The server of a checkout, with this one's environment."""

    def __init__(self, tree: Path, directory: Path) -> None:
        super().__init__(directory, assistant="off", ws_ping_interval=25, **PATIENT)
        self.tree = tree

    def start(self, timeout: float = 120.0) -> "Server":
        # From within the other tree: gunicorn puts its directory first.
        run = f"import os, sys; os.chdir({str(self.tree)!r}); sys.argv[:2] = ['chatapp']\n"
        run += "from chatapp import cli; cli.main()"
        self.prefix = (sys.executable, "-c", run)
        return super().start(timeout)

    @property
    def worker(self) -> str:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[-1]

    def cpu_s(self) -> float:
        """CPU time of the worker so far, with threads that have ended meanwhile; in steps of 10 ms."""
        fields = Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_kib(self) -> int:
        return int(Path(f"/proc/{self.worker}/status").read_text().partition("VmRSS:")[2].split()[0])


def frame(**message: object) -> bytes:
    """A client's text frame, masked with zeros."""
    data = json.dumps(message).encode()
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + b"\0\0\0\0" + data


class Load:
    """Many raw sockets and one selector. Counts frames by what they contain, without parsing more than it must."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.selector = selectors.DefaultSelector()
        self.sockets: list[socket.socket] = []

    def open(self, count: int) -> None:
        head = f"GET /ws HTTP/1.1\r\nHost: {self.client.host}:{self.client.port}\r\nUpgrade: websocket\r\n"
        head += f"Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
        head += f"Origin: {self.client.url}\r\nCookie: {self.client.cookie_header}\r\n\r\n"
        for _ in range(count):
            one = socket.create_connection((self.client.host, self.client.port))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sendall(head.encode())
            seen = b""
            while b"</chat-hello>" not in seen:
                seen += one.recv(65536)
            one.setblocking(False)
            self.selector.register(one, selectors.EVENT_READ)
            self.sockets.append(one)

    def subscribe(self, one: socket.socket, feed: str, cursor: int) -> None:
        one.sendall(frame(type="subscribe", epoch=self.client.epoch, feeds={feed: cursor}))

    def read(self, timeout: float) -> Iterator[tuple[socket.socket, bytes]]:
        for key, _ in self.selector.select(timeout):
            data = key.fileobj.recv(1 << 16)
            assert data, "the server closed a connection"
            if data[0] == 0x89 and len(data) == 2:
                key.fileobj.sendall(b"\x8a\x80\0\0\0\0")  # a pong for a ping
            yield key.fileobj, data

    def count(self, mark: bytes, wanted: int, timeout: float = 30.0) -> None:
        """Read until `mark` came so often."""
        end, seen = time.monotonic() + timeout, 0
        while seen < wanted:
            assert time.monotonic() < end, f"{seen} of {wanted}"
            seen += sum(data.count(mark) for _, data in self.read(0.5))

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        self.selector.close()


def conversations(client: Client, count: int) -> list[str]:
    made = [str(uuid.uuid4()) for _ in range(count)]
    for one in made:
        assert client.create("hello", one).status == 201
    return made


def idle(server: Tree, client: Client) -> dict[str, float]:
    """Sockets with one feed each."""
    (feed,), load, count = conversations(client, 1), Load(client), IDLE
    load.open(50)
    time.sleep(1)
    before, cpu, start = server.memory_kib(), server.cpu_s(), time.monotonic()
    load.open(count)
    connects, cpu = count / (time.monotonic() - start), (server.cpu_s() - cpu) / count
    for one in load.sockets:
        load.subscribe(one, feed, 0)
    load.count(b"</chat-feed>", len(load.sockets))
    time.sleep(2)
    grown, idle_cpu, start = server.memory_kib() - before, server.cpu_s(), time.monotonic()
    while time.monotonic() - start < 26:
        for _ in load.read(0.5):
            pass
    idle_cpu = (server.cpu_s() - idle_cpu) / (time.monotonic() - start)
    load.close()
    return {
        "KiB a socket": grown / count,
        "connects/s": connects,
        "CPU ms a connect": 1000 * cpu,
        "CPU % of all idle": 100 * idle_cpu,
    }


def delivery(server: Tree, client: Client) -> dict[str, float]:
    """500 readers of one conversation, 200 messages."""
    (feed,), load, count, readers = conversations(client, 1), Load(client), 200, 500
    load.open(1)
    alone, start = post_all(server, load, feed, count, 1), time.monotonic()
    load.open(readers)
    for one in load.sockets[1:]:
        load.subscribe(one, feed, 0)
    load.count(b"</chat-feed>", readers)
    cpu, start = post_all(server, load, feed, count, readers), time.monotonic() - start
    load.close()
    return {"CPU µs a delivery": 1e6 * (cpu - alone) / (count * readers), "CPU ms a post alone": 1000 * alone / count}


def post_all(server: Tree, load: Load, feed: str, count: int, readers: int) -> float:
    """One message after the other, each read by all."""
    cpu = server.cpu_s()
    for _ in range(count):
        load.sockets[0].sendall(frame(type="send", conversation=feed, client_id=str(uuid.uuid4()), body=TEXT))
        load.count(b"</chat-feed>" if readers > 1 else b"</chat-ack>", readers)
    return server.cpu_s() - cpu


def posts(server: Tree, client: Client) -> dict[str, float]:
    """50 clients, each its own conversation, each its next message when the last one is acknowledged and shown."""
    clients, seconds, load = 50, 4.0, Load(client)
    feeds = conversations(client, clients)
    load.open(clients)
    mine = dict(zip(load.sockets, feeds, strict=True))
    for one, feed in mine.items():
        load.subscribe(one, feed, 0)
    load.count(b"</chat-feed>", clients)

    def send(one: socket.socket) -> None:
        sent[one] = time.monotonic()
        one.sendall(frame(type="send", conversation=mine[one], client_id=str(uuid.uuid4()), body=TEXT))

    sent: dict[socket.socket, float] = {}
    waits: dict[socket.socket, int] = dict.fromkeys(mine, 0)
    took: list[float] = []
    start, cpu = time.monotonic(), server.cpu_s()
    for one in mine:
        send(one)
    while time.monotonic() - start < seconds:
        for one, data in load.read(0.5):
            waits[one] += data.count(b"</chat-ack>") + data.count(b"</chat-feed>")
            if waits[one] >= 2:
                waits[one] = 0
                took.append(time.monotonic() - sent[one])
                send(one)
    spent = time.monotonic() - start
    cpu = server.cpu_s() - cpu
    load.close()
    return {
        "posts/s": len(took) / spent,
        "p50 ms": 1000 * statistics.median(took),
        "p99 ms": 1000 * sorted(took)[int(0.99 * len(took))],
        "CPU ms a post": 1000 * cpu / len(took),
    }


def polls(server: Tree, client: Client) -> dict[str, float]:
    """Polls with nothing new, on 10 connections."""
    (feed,), count = conversations(client, 1), 4000
    answer = client.poll({feed: 0})
    cursor = int(answer.page.one("chat-feed").get("to"))
    query = urlencode([("epoch", client.epoch), ("c", f"{feed}:{cursor}"), ("wait", "0")])
    ask = (
        f"GET /changes?{query} HTTP/1.1\r\nHost: {client.host}:{client.port}\r\nCookie: {client.cookie_header}\r\n\r\n"
    )
    load = Load(client)
    for _ in range(10):
        one = socket.create_connection((client.host, client.port))
        load.selector.register(one, selectors.EVENT_READ)
        load.sockets.append(one)
        one.sendall(ask.encode())
    done, start, cpu = 0, time.monotonic(), server.cpu_s()
    while done < count:
        for one, data in load.read(5):
            assert data.startswith(b"HTTP/1.1 204"), data[:300]
            done += 1
            one.sendall(ask.encode())
    spent, cpu = time.monotonic() - start, server.cpu_s() - cpu
    load.close()
    return {"polls/s": done / spent, "CPU ms a poll": 1000 * cpu / done}


WORKS: dict[str, Callable[[Tree, Client], dict[str, float]]] = {
    work.__name__: work for work in (idle, delivery, posts, polls)
}


def measure(tree: Path, names: list[str]) -> dict[str, float]:
    """All works on a fresh server."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory, Tree(tree, Path(directory)) as server:
        for name in names:
            found |= {
                f"{name}: {key}": value for key, value in WORKS[name](server, Client(server.url).sign_in()).items()
            }
    return found


def main() -> None:
    """Measure in turns and print medians, ranges and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default=",".join(WORKS))
    chosen = parser.parse_args()
    trees = [HERE, *([chosen.other.resolve()] if chosen.other else [])]
    results: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    for _ in range(chosen.runs):
        for tree in trees:
            results[tree].append(measure(tree, chosen.only.split(",")))
    for key in results[HERE][0]:
        columns, medians = [], []
        for tree in trees:
            values = sorted(run[key] for run in results[tree])
            medians.append(statistics.median(values))
            columns.append(f"{medians[-1]:10.3f} ({values[0]:.3f} to {values[-1]:.3f})")
        ratio = f"  × {medians[0] / medians[1]:.3f}" if len(medians) > 1 else ""
        print(f"{key:36}", *columns, ratio)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; first column: this tree; ratio: this / other")


if __name__ == "__main__":
    main()
