"""`make churn`: clients come and go for an hour, politely and rudely; then memory and descriptors must be back.

The same coming and going runs first for a while, so that caches, pools and the allocator have what they keep.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.load.dialects import Asker, HeldPoll, ProductPoll, ProductSocket, Seat, Site, body_of
from bench.load.loop import Connection, Loop
from bench.load.wire import CLOSE, Answers, encode, get, upgrade
from bench.machine import ROOT, Server, cores, end_on_term, raise_descriptors
from bench.product import Product, Sizes

PEOPLE = 300
PAGE = 60  # messages in each conversation: more than a first frame holds, so that cached frames grow no further
MOST = 150  # sockets at once
ACTIONS_PER_S = 60.0
SETTLE_S = 8.0  # after the last client: handlers see the cut, events are written
WARM_SHARE, LONGEST_WARM_S = 0.25, 300.0
MEMORY_KIB = 8 * 1024  # what the allocator and SQLite's page caches may keep; a leak of 1 kB a client is 100 MB an hour
FILES = 20  # descriptors of the pools' SQLite connections, whose number goes up and down
STABLE_S, LONGEST_QUIET_S = 10, 90.0
SHOWN_LINES = 24  # of a traceback


@dataclass(frozen=True)
class State:
    """What the server holds when nobody is there."""

    memory_kib: int
    sockets: int
    files: int


@dataclass
class Crowd:
    """The clients. `did` counts what they did."""

    site: Site
    loop: Loop
    chance: random.Random
    sockets: list[ProductSocket] = field(default_factory=list)
    polls: list[HeldPoll] = field(default_factory=list)
    others: list[Connection] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)

    def run(self, seconds: float) -> None:
        """Come and go for this time."""
        actions = (
            self.connect,
            self.connect,
            self.post,
            self.post,
            self.poll,
            self.hold,
            self.drop,
            self.leave,
            self.half,
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.chance.choice(actions)()
            self.loop.run(self.chance.expovariate(ACTIONS_PER_S))
            self.sockets = [socket for socket in self.sockets if socket.connection.open]
            while len(self.sockets) > MOST:
                self.drop()
            while len(self.polls) + len(self.others) > MOST:
                (self.polls or self.others).pop(0).close()

    def fill_caches(self) -> None:
        """Everybody reads their conversation from nothing: what the server caches of renderings and frames is full."""
        for number in range(PEOPLE):
            seat = self.site.seats(number)
            request = get(self.site.poll_path(Seat(seat.cookie, seat.room, 0)), self.site.port, seat.cookie)
            asker = Asker(self.loop, self.site.port, request, 200)
            asker.is_asking = False
            self.loop.wait(lambda asker=asker: asker.answers > 0, LONGEST_QUIET_S, "a page")  # type: ignore[misc]
            asker.connection.close()

    def connect(self) -> None:
        """A WebSocket, resumed from the newest revision or, one in ten, from nothing."""
        seat = self.seat()
        if self.chance.random() < 0.1:
            seat = Seat(seat.cookie, seat.room, 0)
        self.sockets.append(ProductSocket(self.loop, self.site, seat))
        self.did["connected"] += 1

    def post(self) -> None:
        """A message from somebody who is there."""
        ready = [socket for socket in self.sockets if socket.is_ready]
        if ready:
            socket = self.chance.choice(ready)
            socket.say(socket.seat.room, body_of())
            self.did["posted"] += 1

    def poll(self) -> None:
        """One poll on a new connection."""
        seat = self.seat()
        connection = Connection(self.loop, self.site.port)
        answers = Answers()

        def heard(data: bytes) -> None:
            for status, _, _ in answers.feed(data):
                self.did[f"polled {status}"] += 1
                connection.close()

        connection.on_bytes = heard
        connection.send(get(self.site.poll_path(seat), self.site.port, seat.cookie))
        self.others.append(connection)

    def hold(self) -> None:
        """A held poll, which somebody may drop while it is held."""
        poll = ProductPoll(self.loop, self.site, self.seat())
        poll.hold()
        self.polls.append(poll)
        self.did["held"] += 1

    def drop(self) -> None:
        """Cut a socket with RST, in the middle of its work."""
        if self.sockets:
            self.sockets.pop(self.chance.randrange(len(self.sockets))).close()
            self.did["dropped"] += 1

    def leave(self) -> None:
        """Say goodbye, as a browser does."""
        if self.sockets:
            socket = self.sockets.pop(self.chance.randrange(len(self.sockets)))
            if socket.is_ready:
                socket.connection.send(encode(CLOSE, (1000).to_bytes(2, "big")))
            self.others.append(socket.connection)
            self.did["left"] += 1

    def half(self) -> None:
        """Half a request, then nothing more."""
        seat = self.seat()
        connection = Connection(self.loop, self.site.port)
        connection.send(upgrade(self.site.path, self.site.port, seat.cookie)[: self.chance.randrange(20, 200)])
        self.others.append(connection)
        self.did["half a request"] += 1

    def seat(self) -> Seat:
        """Somebody."""
        return self.site.seats(self.chance.randrange(PEOPLE))

    def go(self) -> None:
        """Everybody is gone at once."""
        for socket in self.sockets:
            socket.close()
        for poll in self.polls:
            poll.close()
        for connection in self.others:
            connection.close()
        self.sockets, self.polls, self.others = [], [], []


def quiet(server: Server, loop: Loop) -> State:
    """The server's state once nobody is there and the number of its sockets no longer changes."""
    loop.run(SETTLE_S)
    end = time.monotonic() + LONGEST_QUIET_S
    sockets, stable = server.descriptors()[0], 0
    while stable < STABLE_S and time.monotonic() < end:
        loop.run(1.0)
        now = server.descriptors()[0]
        stable = stable + 1 if now == sockets else 0
        sockets = now
    sockets, files = server.descriptors()
    return State(server.memory_kib(), sockets, files)


def verdict(before: State, after: State) -> list[str]:
    """What is not back where it began, in words."""
    wrong = []
    if after.sockets > before.sockets:
        wrong.append(f"{after.sockets - before.sockets} sockets are still open")
    if after.files > before.files + FILES:
        wrong.append(f"{after.files - before.files} other descriptors more (allowed: {FILES})")
    if after.memory_kib > before.memory_kib + MEMORY_KIB:
        wrong.append(f"{after.memory_kib - before.memory_kib:,} KiB more (allowed: {MEMORY_KIB:,})")
    return wrong


def tracebacks(log: str) -> list[str]:
    """The errors that the server logged with a traceback: how often, and the first lines of one each."""
    found: dict[str, list[str]] = {}
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("Traceback"):
            end = next((at for at in range(number + 1, len(lines)) if not lines[at].startswith(" ")), number)
            found.setdefault(lines[end], []).append("\n".join(lines[max(0, number - 1) : end + 1][:SHOWN_LINES]))
    return [f"{len(examples)} times in the server's log: {error}\n{examples[0]}" for error, examples in found.items()]


def churn(folder: Path, seconds: float, seed: int) -> list[str]:
    """Run it; returns what is wrong afterwards."""
    where = cores()
    os.sched_setaffinity(0, {where.load})
    product = Product(folder, Sizes(PEOPLE, 1, messages=PAGE))
    product.fill()
    server, site = product.start(where.server)
    with server:
        loop = Loop()
        crowd = Crowd(site, loop, random.Random(seed))
        crowd.fill_caches()
        crowd.run(min(seconds * WARM_SHARE, LONGEST_WARM_S))
        crowd.go()
        before = quiet(server, loop)
        print(f"after the warm-up: {before}", flush=True)
        crowd.did.clear()
        crowd.run(seconds / 2)
        crowd.go()
        print(f"half-way: {quiet(server, loop)}", flush=True)  # what still grows after that is a leak
        crowd.run(seconds / 2)
        crowd.go()
        after = quiet(server, loop)
        print(f"after {seconds / 60:.1f} minutes: {after}\nclients: {dict(sorted(crowd.did.items()))}")
        loop.close()
        for line in tracebacks(server.log_text(1 << 24)):
            print(line)
        return verdict(before, after)


def main() -> int:
    """0 where everything is back where it began."""
    parser = argparse.ArgumentParser(prog="python -m bench.churn", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    end_on_term()
    raise_descriptors()
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))
    try:
        wrong = churn(folder, options.minutes * 60, options.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("back where it began" if not wrong else f"NOT back where it began: {'; '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
