"""`make hostile`: attacks by strangers and hostile members, and their effects on people, against thresholds.

Each of the first three attacks runs in interleaved pairs, without and with it, beside 20 people who write; judged is
the median over the pairs of what it does to the 95th percentile of a message's time. Strangers come from the addresses
of a network namespace of their own (root is needed), where the attack is not about one address.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlencode

from bench.load.dialects import Seat, Site, Socket, body_of, sent_at
from bench.load.loop import Loop
from bench.load.work import connect_all
from bench.machine import ROOT, Cores, Failed, cores, end_on_term, raise_descriptors
from bench.product import EMAIL, PASSWORD, Product, Sizes
from bench.strangers import BOTH, CONNECTIONS, SIGN_INS
from chatapp.config import Settings

OUTSIDE, INSIDE, STRANGERS = "10.78.0.1", "10.78.0.2", "10.77.0.0/16"  # of the namespace's pair, and who lives in it
LATE_S = 60.0  # for messages that are under way when a measurement ends
AS_SHIPPED: dict[str, Any] = {
    "max_sockets_per_address": Settings.max_sockets_per_address
}  # elsewhere the bench has limits off
GONE_S, LONGEST_GONE_S = 15.0, 40.0
LONGEST_ATTACK_S = 40.0  # that a half with the attack is extended to, until all strangers are there
PAGE_COOKIES = 7_900, 64_000


@dataclass(frozen=True)
class Scale:
    """How much of everything; the defaults are what the bars are about."""

    pairs: int = 20
    seconds: float = 3.0  # of each half of a pair
    writers: int = 20
    every_s: float = 0.5  # each of them writes
    sign_ins: int = 300
    connections: int = 12_000
    members: int = 200
    polls: int = 20_000
    minutes: float = 10.0


@dataclass
class Row:
    """One bar."""

    what: str
    value: float
    bar: float
    unit: str
    is_met: bool
    said: str = ""


@dataclass
class Rig:
    """What every attack needs."""

    product: Product
    where: Cores
    scale: Scale
    rows: list[Row] = field(default_factory=list)

    def judge(self, what: str, value: float, bar: float, unit: str, said: str = "", is_met: bool | None = None) -> None:
        """Hold a value against its bar, and say so."""
        row = Row(what, value, bar, unit, value <= bar if is_met is None else is_met, said)
        self.rows.append(row)
        print(line_of(row), flush=True)


def line_of(row: Row) -> str:
    """For the table."""
    met = "met" if row.is_met else "NOT MET"
    return f"| {row.what} | {row.value:.3g} {row.unit} | ≤ {row.bar:g} {row.unit} | {met} | {row.said} |"


# People who write


class Writers:
    """People in conversations of their own, who write at an even pace."""

    def __init__(self, site: Site, scale: Scale, sources: Sequence[str]) -> None:
        self.loop = Loop()
        self.loop.sources = tuple(sources)
        self.taken: list[float] = []  # ms
        self._scale = scale
        self._waiting = self.refused = 0
        self.sockets = connect_all(self.loop, site, [site.seats(number) for number in range(scale.writers)])
        for socket in self.sockets:
            socket.on_message, socket.on_text = self._seen, self._heard

    def _seen(self, _socket: Socket, payload: bytes, count: int) -> None:
        self.taken.append((time.monotonic_ns() - sent_at(payload)) / 1e6)
        self._waiting -= count

    def _heard(self, payload: bytes) -> None:
        if b"<chat-refused" in payload:  # it would be sent again; here it counts as late
            self.refused += 1

    def p95(self, seconds: float, is_over: Callable[[], bool] = lambda: True) -> float:
        """Write for so long, and until it is over, and wait for the last message: the 95th percentile, ms."""
        self.taken.clear()
        scale, began = self._scale, time.monotonic()
        step = scale.every_s / scale.writers
        for number in range(round(LONGEST_ATTACK_S / step)):
            if number >= max(2, round(seconds / step)) and is_over():
                break
            self.loop.run(began + number * step - time.monotonic())
            socket = self.sockets[number % scale.writers]
            socket.say(socket.seat.room, body_of())
            self._waiting += 1
        self.loop.run(LATE_S, lambda: self._waiting <= self.refused)
        self.refused = 0
        if self._waiting > 0:  # they were lost, or take longer than anybody waits
            self.taken += [LATE_S * 1000] * self._waiting
            self._waiting = 0
        return quantiles(self.taken, n=20, method="inclusive")[-1]


# Strangers


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """A network namespace in which all of STRANGERS live, with a way to this machine. Raises Failed."""
    name, link = f"hostile-{os.getpid()}", f"hst{os.getpid() % 100_000}"
    inside = ["ip", "netns", "exec", name, "ip"]
    try:
        _run(["ip", "netns", "add", name])
        _run(["ip", "link", "add", link, "type", "veth", "peer", "name", "outside", "netns", name])
        _run(["ip", "address", "add", f"{OUTSIDE}/24", "dev", link])
        _run(["ip", "link", "set", link, "up"])
        for command in (
            ["address", "add", f"{INSIDE}/24", "dev", "outside"],
            ["link", "set", "outside", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "local", STRANGERS, "dev", "lo"],
        ):
            _run([*inside, *command])
        _run(["ip", "route", "add", STRANGERS, "via", INSIDE])
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", link], capture_output=True)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()} (root and iproute2 are needed)")


def addresses(count: int) -> list[str]:
    """So many of STRANGERS."""
    return [f"10.77.{1 + number // 250}.{1 + number % 250}" for number in range(count)]


class Attack:
    """Strangers at work while the block runs; afterwards `said` is what was answered to them."""

    def __init__(self, command: Sequence[str], core: int) -> None:
        self.said: dict[str, object] = {}
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: _step_back(core)
        )
        self._is_up = False

    def is_up(self) -> bool:
        """Whether all of them have come."""
        assert self._process.stdout is not None
        if not self._is_up and select.select([self._process.stdout], [], [], 0)[0]:
            self._is_up = self._process.stdout.readline() == "up\n"
        return self._is_up

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.send_signal(signal.SIGTERM)
            said = self._process.communicate(timeout=30)[0].splitlines()
            self.said |= json.loads(said[-1]) if said else {}
        except (
            subprocess.TimeoutExpired
        ):  # a machine that is too slow for them; what people noticed counts all the same
            self.said["seen"] = "not told in time"
        finally:
            self._process.kill()
            self._process.wait()


def _step_back(core: int) -> None:
    """Strangers take what the people's clients leave of their core: elsewhere they have machines of their own, and
    with nice(10) alone half of what was measured was people's clients waiting behind them."""
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def strangers(port: int, kind: str, count: int, sources: Sequence[str], host: str, netns: str = "") -> list[str]:
    """The command that sends them."""
    where = ["ip", "netns", "exec", netns] if netns else []
    return [*where, sys.executable, "-m", "bench.strangers", host, str(port), kind, str(count), *sources]


class Honest:
    """A person who signs in from another address during the attack."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.took = LATE_S  # s
        self.status = 0
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Honest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(LATE_S)

    def _work(self) -> None:
        began = time.monotonic()
        self.status = Member(self._port, "127.0.9.9").sign_in()
        if self.status == 303:
            self.took = time.monotonic() - began


class Member:
    """One person's browser, as far as it is needed here."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LATE_S, source_address=(source, 0))
        self.cookie = self.token = ""

    def ask(self, method: str, path: str, **fields: str) -> tuple[int, str]:
        """Status and text."""
        headers = {"Cookie": self.cookie, "Accept": "application/json" if self.token and fields else "text/html"}
        body = urlencode({"csrf_token": self.token, **fields}) if method == "POST" else None
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0, ""
        self.cookie = (answer.headers["Set-Cookie"] or self.cookie).split(";")[0]
        found = re.search(r'name="csrf[-_]token" (?:value|content)="([^"]+)"', text)
        self.token = found[1] if found else self.token
        return answer.status, text

    def sign_in(self) -> int:
        """Sign in by the form; the status."""
        self.ask("GET", "/sign-in")
        status, _ = self.ask("POST", "/sign-in", email=EMAIL, password=PASSWORD)
        return status

    def look(self) -> None:
        """Open a page, and take its token."""
        self.token = ""
        self.ask("GET", "/connection")


# The attacks


def _judge_pairs(rig: Rig, what: str, pairs: list[tuple[float, float]], grown_kib: float) -> None:
    ratio, more = median(b / a for a, b in pairs), median(b - a for a, b in pairs)
    before, after = (_spread([pair[half] for pair in pairs]) for half in (0, 1))
    said = f"p95 {before} → {after} ms, {more:+.1f} ms, {len(pairs)} pairs"
    rig.judge(f"{what}: a message's p95", ratio, 1.3, "×", said + "; or +5 ms", ratio <= 1.3 or more <= 5)
    rig.judge(f"{what}: memory", grown_kib / 1024, 64, "MiB")


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def sign_ins(rig: Rig) -> None:
    """Concurrent sign-ins from as many addresses."""
    scale = rig.scale
    server, site = rig.product.start(rig.where.server, host="0.0.0.0", **AS_SHIPPED)
    pairs, took, grown = [], [], 0.0
    with server, namespace() as netns:
        writers = Writers(site, scale, ())
        command = strangers(server.port, SIGN_INS, scale.sign_ins, addresses(scale.sign_ins), OUTSIDE, netns)
        writers.p95(scale.seconds)
        before = server.memory_kib()
        for number in range(scale.pairs):
            without = writers.p95(scale.seconds)
            with Attack(command, rig.where.load) as attack, Honest(server.port) as honest:
                writers.loop.run(LONGEST_ATTACK_S, attack.is_up)
                pairs.append((without, writers.p95(scale.seconds)))
                grown = max(grown, server.memory_kib() - before)
            took.append(honest.took)
            writers.loop.run(1.0)
            print(
                f"sign-ins {number + 1}/{scale.pairs}: {pairs[-1]}, {took[-1]:.2f} s ({honest.status}), {attack.said}",
                flush=True,
            )
        writers.loop.close()
    _judge_pairs(rig, f"{scale.sign_ins} sign-ins at once", pairs, grown)
    rig.judge("an honest sign-in beside them, the slowest", max(took), 2, "s", f"median {median(took):.2f} s")


def connections(rig: Rig) -> None:
    """Very many connections of one address that do nothing good."""
    scale = rig.scale
    server, site = rig.product.start(rig.where.server, host="0.0.0.0", **AS_SHIPPED)
    pairs, gone, grown = [], [], 0.0
    with server, namespace() as netns:
        writers = Writers(site, scale, ())
        command = strangers(server.port, CONNECTIONS, scale.connections, [INSIDE], OUTSIDE, netns)
        writers.p95(scale.seconds)
        before, (sockets, _) = server.memory_kib(), server.descriptors()
        for number in range(scale.pairs):
            without = writers.p95(scale.seconds)
            with Attack(command, rig.where.load) as attack:
                pairs.append((without, writers.p95(scale.seconds, attack.is_up)))
                grown, held = max(grown, server.memory_kib() - before), server.descriptors()[0] - sockets
                began = time.monotonic()
                writers.loop.run(LONGEST_GONE_S, lambda: server.descriptors()[0] <= sockets + 4)
                gone.append(time.monotonic() - began)
            writers.loop.run(LONGEST_GONE_S, lambda: server.descriptors()[0] <= sockets + 4)
            writers.loop.run(1.0)
            words = f"{held} held, gone after {gone[-1]:.1f} s, {attack.said}"
            print(f"connections {number + 1}/{scale.pairs}: {pairs[-1]}, {words}", flush=True)
        writers.loop.close()
    _judge_pairs(rig, f"{scale.connections:,} connections of one address", pairs, grown)
    rig.judge("offenders are gone after, at most", max(gone), GONE_S, "s", f"median {median(gone):.1f} s")


def office(rig: Rig) -> None:
    """Members and strangers behind one address."""
    scale = rig.scale
    server, site = rig.product.start(rig.where.server, **AS_SHIPPED)
    one = ["127.0.0.1"]
    pairs, grown = [], 0.0
    with server:
        writers = Writers(site, scale, one)
        others = connect_all(writers.loop, site, [site.seats(number) for number in range(scale.writers, scale.members)])
        command = strangers(server.port, BOTH, scale.sign_ins, one, "127.0.0.1")
        writers.p95(scale.seconds)
        before = server.memory_kib()
        for number in range(scale.pairs):
            without = writers.p95(scale.seconds)
            with Attack(command, rig.where.load) as attack:
                writers.loop.run(LONGEST_ATTACK_S, attack.is_up)
                pairs.append((without, writers.p95(scale.seconds)))
                grown = max(grown, server.memory_kib() - before)
                out = _signed_out(site, [*writers.sockets, *others], server.port)
            writers.loop.run(1.0)
            print(f"one address {number + 1}/{scale.pairs}: {pairs[-1]}, {out} signed out or cut", flush=True)
        out += _signed_out(site, [*writers.sockets, *others], server.port)
        writers.loop.close()
    what = f"{scale.members} people and {scale.sign_ins} strangers behind one address"
    _judge_pairs(rig, what, pairs, grown)
    rig.judge("of them signed out or cut", out, 0, "people")


def _signed_out(site: Site, sockets: Sequence[Socket], port: int) -> int:
    """How many of the members lost their WebSocket, or are not answered by a poll."""
    cut, connection = (
        sum(not socket.connection.open for socket in sockets),
        http.client.HTTPConnection("127.0.0.1", port),
    )
    for socket in sockets:
        connection.request("GET", site.poll_path(socket.seat), headers={"Cookie": socket.seat.cookie})
        answer = connection.getresponse()
        answer.read()
        cut += answer.status not in (200, 204)
    connection.close()
    return cut


def polls(rig: Rig) -> None:
    """Polls whose cookies all differ: of somebody who is signed in, of one whose session ended, of nobody."""
    server, site = rig.product.start(rig.where.server)
    with server:
        ended = Member(server.port)
        ended.sign_in()
        ended.look()
        session = ended.cookie
        ended.ask("POST", "/sign-out")
        seat = site.seats(0)
        sessions = (seat.cookie, session, "chatapp=nobody")
        for size in PAGE_COOKIES:
            for one in sessions:
                _ask_with_cookies(site, seat, one, size, 50)
            before = server.memory_kib()
            statuses = {
                status for one in sessions for status in _ask_with_cookies(site, seat, one, size, rig.scale.polls // 3)
            }
            grown = (server.memory_kib() - before) / 1024
            what = f"{rig.scale.polls:,} polls with distinct cookies of {size:,} bytes: memory"
            rig.judge(what, grown, 20, "MiB", f"answered {sorted(statuses)}")


def _ask_with_cookies(site: Site, seat: Seat, session: str, size: int, times: int) -> set[int]:
    found, connection = set(), http.client.HTTPConnection("127.0.0.1", site.port, timeout=LATE_S)
    for number in range(times):
        junk = f"sso{number}={uuid.uuid4()}".ljust(size - len(session) - 2, "x")
        try:
            connection.request("GET", site.poll_path(seat), headers={"Cookie": f"{junk}; {session}"})
            answer = connection.getresponse()
            answer.read()
            found.add(answer.status)
        except (OSError, http.client.HTTPException):
            connection.close()
    connection.close()
    return found


def growth(rig: Rig) -> None:
    """A member who reports events and begins conversations as quickly as they are answered."""
    server, _ = rig.product.start(rig.where.server)
    with server:
        data = rig.product.data
        eve, client, asked = Member(server.port), str(uuid.uuid4()), 0
        eve.sign_in()
        eve.look()
        before, end = _bytes_of(data), time.monotonic() + 60 * rig.scale.minutes
        statuses = set()
        while time.monotonic() < end:
            now = round(time.time() * 1000)
            numbers = range(200 * asked, 200 * asked + 200)
            events = [
                {"client": client, "number": n, "at": now, "type": "state", "data": {"x": "x" * 1900}} for n in numbers
            ]
            statuses.add(eve.ask("POST", "/connection/events", events=json.dumps(events))[0])
            statuses |= {eve.ask("POST", "/c", id=str(uuid.uuid4()))[0] for _ in range(20)}
            asked += 1
        grown = (_bytes_of(data) - before) / 2**20
    said = f"{asked} reports of 200 events, {20 * asked} conversations asked for, answered {sorted(statuses)}"
    rig.judge(f"{rig.scale.minutes:g} minutes of events and conversations: databases", grown, 50, "MiB", said)


def _bytes_of(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("*.db*"))


ATTACKS: dict[str, Callable[[Rig], None]] = {
    "sign-ins": sign_ins,
    "connections": connections,
    "office": office,
    "polls": polls,
    "growth": growth,
}
SHORT = Scale(
    pairs=2, seconds=0.5, writers=4, every_s=0.1, sign_ins=8, connections=40, members=8, polls=60, minutes=0.02
)


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line; an empty value means the default, as make passes it."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--attacks", default="", help=f"which, with commas: {', '.join(ATTACKS)}")
    parser.add_argument("--set", default="", help="other sizes, such as pairs=5,minutes=1 (see hostile.Scale)")
    parser.add_argument("--out", default="", help="folder of hostile.md and hostile.json (test-results/hostile)")
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that it works, says nothing else")
    return parser.parse_args(list(given))


def main(given: Sequence[str]) -> int:
    """Attack and report; 1 where a bar is not met."""
    options = arguments(given)
    end_on_term()
    raise_descriptors()
    changes = dict(pair.split("=") for pair in options.set.split(",") if pair)
    base = SHORT if options.short else Scale()
    scale = dataclasses.replace(base, **{name: type(getattr(base, name))(value) for name, value in changes.items()})
    names = [name for name in options.attacks.split(",") if name] or list(ATTACKS)
    if unknown := set(names) - set(ATTACKS):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    where = cores()
    os.sched_setaffinity(0, {where.load})
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))
    rig = Rig(Product(folder, Sizes(max(scale.members, scale.writers), 1)), where, scale)
    try:
        rig.product.fill()
        for name in names:
            ATTACKS[name](rig)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _report(rig, Path(options.out or "test-results/hostile"), options.short)


def _report(rig: Rig, out: Path, is_short: bool) -> int:
    out.mkdir(parents=True, exist_ok=True)
    table = "\n".join(["| what | measured | bar | | in words |", "| --- " * 5 + "|", *map(line_of, rig.rows)])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    (out / "hostile.md").write_text(f"{table}\n\nLoad of the machine at the end: {load}.\n")
    report = {
        "scale": dataclasses.asdict(rig.scale),
        "load": load,
        "rows": [dataclasses.asdict(row) for row in rig.rows],
    }
    (out / "hostile.json").write_text(json.dumps(report, indent=1))
    print(f"\n{table}\n\nLoad of the machine at the end: {load}.")
    return 0 if is_short or all(row.is_met for row in rig.rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
