"""Workloads that only the product has: answers that grow, and what grows with the history."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.load.dialects import Asker, ProductSocket, Seat, Site, body_of, sent_at
from bench.load.loop import Loop, TimedOut
from bench.load.wire import get
from bench.load.work import SLOW_S, Meter, Numbers, connect_all, one_by_one, post_once
from bench.machine import Server, free_port
from bench.product import Product, answer_html_bytes

TOKENS = Path(__file__).parent / "peers" / "tokens.py"
TOKENS_S = 30.0
TOKEN_CHARACTERS = 4
STREAM_CHARACTERS = 4096
STREAM_PIECE = 100
STREAM_BYTES_S = 5000.0
COMMITS = 200
COMMIT_PAUSE_S = 0.0007  # about what a message takes besides its commit
DONE = b'data-state="completed"', b' state="completed"'


@contextlib.contextmanager
def model(folder: Path, core: int, rate: float, piece: int, characters: int) -> Iterator[dict[str, str]]:
    """A model server that says `characters` in pieces, so many a second; gives the product's settings for it."""
    port = free_port()
    pace = {"BENCH_TOKENS_S": f"{rate:g}", "BENCH_PIECE": str(piece), "BENCH_CHARACTERS": str(characters)}
    command = [sys.executable, "-I", str(TOKENS), str(port)]
    with Server(command, port, folder / "tokens.log", pace, core) as server:
        server.wait_ready("")
        address = f"http://127.0.0.1:{port}/v1"
        yield {"assistant": "openai", "openai_base_url": address, "openai_model": "bench"}


def many(server: Server, site: Site, answers: int, readers: int, seconds: float) -> Numbers:
    """CPU of the server while many answers grow at once, each with its readers."""
    loop, frames = Loop(), [0]
    seats = [site.seats(number) for number in range(answers)]
    sockets = connect_all(loop, site, [seat for seat in seats for _ in range(readers)])

    def heard(payload: bytes) -> None:
        frames[0] += payload.startswith(b"<chat-feed")

    for socket in sockets:
        socket.on_text = heard
    for socket in sockets[::readers]:
        socket.say(socket.seat.room, body_of())
    loop.wait(lambda: frames[0] > 3 * len(sockets), SLOW_S, "all readers see answers that grow")
    frames[0] = 0
    meter = Meter(server)
    loop.run(seconds)
    found = meter.stop(frames[0])
    loop.close()
    if not frames[0]:
        raise TimedOut("no answer grew while it was measured")
    return found


def stream(product: Product, site: Site) -> Numbers:
    """One answer, read over one compressed WebSocket: what came over the wire, and the answer's HTML, in bytes."""
    loop, seat = Loop(), site.seats(0)
    writer = connect_all(loop, site, [Seat(seat.cookie)])[0]
    reader = ProductSocket(loop, site, seat, compressed=True)
    loop.wait(lambda: reader.is_ready, SLOW_S, "the reader follows")
    done, own = [False], [0]

    def heard(payload: bytes) -> None:
        done[0] = done[0] or any(mark in payload for mark in DONE)

    def seen(*_: object) -> None:
        own[0] = own[0] or reader.connection.bytes_in  # the question itself is not counted

    reader.on_text, reader.on_message = heard, seen
    writer.say(seat.room, body_of())
    loop.wait(lambda: done[0] and own[0] > 0, SLOW_S, "the answer is complete")
    wire = reader.connection.bytes_in - own[0]
    loop.close()
    html = answer_html_bytes(product.data, seat.room)
    return {"wire_bytes": float(wire), "html_bytes": float(html), "share": wire / html}


def history(server: Server, product: Product, site: Site, sizes: tuple[int, ...], times: int) -> Numbers:
    """CPU of a post, and of a poll that brings it, in conversations of different lengths."""
    found: Numbers = {}
    for size in sizes:
        seat = product.history_seat(product.data, size)
        loop = Loop()
        writer = connect_all(loop, site, [Seat(seat.cookie)])[0]
        post = post_once(writer, seat.room)
        for number in range(5):
            post(loop, number)
        asker = Asker(
            loop, site.port, get(site.poll_path(Seat(seat.cookie, seat.room, 10**9)), site.port, seat.cookie), 200
        )
        asker.is_asking = False
        loop.wait(lambda asker=asker: asker.answers > 0, SLOW_S, "a first poll is answered")  # type: ignore[misc]
        posts, reads = [], []
        for _ in range(times):
            posts.append(one_by_one(server, 1, post, loop)["cpu_us"])
            now = product.history_seat(product.data, size)
            request = get(site.poll_path(Seat(now.cookie, now.room, now.cursor - 1)), site.port, now.cookie)

            def read(loop: Loop, _number: int, request: bytes = request, asker: Asker = asker) -> None:
                answers = asker.answers
                asker.ask(request)
                loop.wait(lambda: asker.answers > answers, SLOW_S, "a poll is answered")
                sent_at(asker.bodies[0])  # it brought the message

            reads.append(one_by_one(server, 1, read, loop)["cpu_us"])
        found[f"post_us_{size}"] = sorted(posts)[times // 2]
        found[f"changes_us_{size}"] = sorted(reads)[times // 2]
        loop.close()
    return found


def commit_ms(folder: Path, core: int, times: int = COMMITS) -> tuple[list[float], float]:
    """Bare FULL commits of 200 bytes on this disk, each in ms; and the median of some that are made back to back.

    As a server makes them that answers one client: on its core, and after a pause each. Back to back a commit takes
    about half, because neither the core nor the disk has gone to sleep.
    """
    path, mine = folder / f"commit-{time.monotonic_ns()}.db", os.sched_getaffinity(0)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")

    def commit(pause_s: float) -> float:
        time.sleep(pause_s)
        began = time.monotonic_ns()
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO t (body) VALUES (?)", ("x" * 200,))
        database.execute("COMMIT")
        return (time.monotonic_ns() - began) / 1e6

    os.sched_setaffinity(0, {core})
    try:
        hot = sorted(commit(0) for _ in range(times))[times // 2]
        return [commit(COMMIT_PAUSE_S) for _ in range(times)], hot
    finally:
        os.sched_setaffinity(0, mine)
        database.close()
