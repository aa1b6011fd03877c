"""The rows of the comparison: who takes part, what is measured, and the bars it is held against."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import answers, contenders
from bench.contenders import OURS, PING_S, Environment
from bench.load import work
from bench.load.dialects import Site
from bench.load.loop import Loop
from bench.load.work import Numbers
from bench.machine import Cores, Server
from bench.product import Product, Sizes

RENDERED = "socketio-full"
BARE = "socketio"


@dataclass(frozen=True)
class Scale:
    """How much of everything. The defaults are what the bars are about."""

    seconds: float = 4.0
    clients: int = 100
    readers: int = 1000
    sockets: tuple[int, ...] = (5000, 10_000)
    idle_s: float = 2 * PING_S
    ping_s: float = PING_S
    connecting: int = 50
    people: int = 200
    pollers: int = 50
    held: int = 500
    rounds: int = 5
    answers: int = 20
    readers_each: int = 10
    crowds: tuple[int, ...] = (100, 1000, 5000)
    history: tuple[int, ...] = (100, 10_000, 1_000_000)
    beside: tuple[int, ...] = (10, 10_000)
    times: int = 100

    def names(self) -> dict[str, str]:
        """What may stand in the titles and metrics of rows."""
        numbers = {key: value for key, value in vars(self).items() if isinstance(value, int)}
        shown = {key: f"{value:,}" for key, value in numbers.items()}
        return {**shown, "first": str(self.sockets[0]), "last": str(self.sockets[-1])}

    def sizes(self) -> Sizes:
        """What must be in the product's database for it."""
        people = max(*self.sockets, *self.beside, self.people, self.clients)
        return Sizes(people, max(self.readers, self.held, *self.crowds), self.history)


SHORT = Scale(
    seconds=0.4,
    clients=4,
    readers=8,
    sockets=(10, 20),
    idle_s=1.2,
    ping_s=0.5,
    connecting=4,
    people=10,
    pollers=4,
    held=6,
    rounds=1,
    answers=2,
    readers_each=2,
    crowds=(4, 8),
    history=(10, 100),
    beside=(2, 8),
    times=3,
)


@dataclass
class Rig:
    """What every row needs."""

    product: Product
    environment: Environment
    folder: Path
    cores: Cores
    scale: Scale
    before: Product | None = None  # another commit's
    bytes_a_delivery: float = 0.0  # of the product, as measured

    def start(self, name: str, **settings: object) -> tuple[Server, Site]:
        """A fresh server of a contender."""
        if name in OURS:
            return self.ours(name).start(self.cores.server, **settings)  # type: ignore[arg-type]
        planted = {key: os.environ[key] for key in ("BENCH_SLEEP_S", "BENCH_BURN_S") if key in os.environ}
        pings = {"BENCH_PING_S": f"{self.scale.ping_s:g}"}
        return contenders.start(name, self.environment, self.folder, self.cores.server, **(planted | pings))

    def ours(self, name: str) -> Product:
        """The product as it is here, or as it was in another commit."""
        found = self.product if name == "product" else self.before
        assert found is not None
        return found


@dataclass(frozen=True)
class Bar:
    """A metric of the product against `factor` times a peer's, or against `factor` itself."""

    metric: str
    sign: str  # <= or >=
    factor: float | None  # None: there is only the stretch
    peer: str = ""
    stretch: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    key: str
    title: str
    unit: str
    metric: str  # what is shown of everybody
    who: Sequence[str]
    measure: Callable[[Rig, str], Numbers]
    bars: Sequence[Bar] = ()


def _posts(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who)
    with server:
        return work.posts(server, site, rig.scale.clients, rig.scale.seconds)


def _start(rig: Rig, who: str) -> Numbers:
    server, _ = rig.start(who)
    with server:
        return {"ready_s": server.ready_s, "cpu_s": server.cpu_s()}


def _round(rig: Rig, who: str) -> Numbers:
    before, _ = answers.commit_ms(rig.folder, rig.cores.server)
    server, site = rig.start(who)
    with server:
        found = work.posts(server, site, 1, rig.scale.seconds)
    after, hot = answers.commit_ms(rig.folder, rig.cores.server)
    commit = median(before + after)
    commits = commit if site.dialect.acknowledges or who == RENDERED else 0.0
    return {**found, "commit_ms": commit, "commit_hot_ms": hot, "net_ms": found["p50_ms"] - commits}


def _equalled(rig: Rig, server: Server, site: Site, who: str) -> None:
    """Have a peer's message as long as makes its delivery as long as the product's."""
    if who in (*OURS, RENDERED) or not rig.bytes_a_delivery:
        return
    own = work.fan_out(server, site, 2, 0.3)["bytes_a_delivery"]
    site.message_bytes = work.padded(rig.bytes_a_delivery, own)


def _fan_out(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who)
    with server:
        _equalled(rig, server, site, who)
        found = work.fan_out(server, site, rig.scale.readers, rig.scale.seconds)
    if who == "product":
        rig.bytes_a_delivery = found["bytes_a_delivery"]
    return found


def _paced(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who)
    with server:
        _equalled(rig, server, site, who)
        found = work.paced(server, site, rig.scale.readers, max(1.0, 1.5 * rig.scale.seconds))
    if who == "product":
        rig.bytes_a_delivery = found["bytes_a_delivery"]
    return found


def _idle(rig: Rig, who: str) -> Numbers:
    steps = rig.scale.sockets if who in OURS else rig.scale.sockets[:1]
    settings = {"ws_ping_interval": rig.scale.ping_s} if who in OURS else {}
    server, site = rig.start(who, **settings)
    with server:
        return work.idle(server, site, steps, rig.scale.idle_s, rig.scale.sockets[0])


def _connects(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who)
    with server:
        return work.connects(server, site, rig.scale.seconds, rig.scale.connecting, rig.scale.people)


def _polls(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who)
    with server:
        return work.polls(server, site, rig.scale.pollers, rig.scale.seconds)


def _held(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who)
    with server:
        return work.held_polls(server, site, rig.scale.held, rig.scale.rounds)


def _answers(rig: Rig, who: str) -> Numbers:
    characters = round(answers.TOKENS_S * answers.TOKEN_CHARACTERS * (rig.scale.seconds + 30))
    pace = (answers.TOKENS_S, answers.TOKEN_CHARACTERS, characters)
    with answers.model(rig.folder, rig.cores.load, *pace) as settings:
        server, site = rig.start(who, **settings)
        with server:
            return answers.many(server, site, rig.scale.answers, rig.scale.readers_each, rig.scale.seconds)


def _stream(rig: Rig, who: str) -> Numbers:
    rate = answers.STREAM_BYTES_S / answers.STREAM_PIECE
    with answers.model(rig.folder, rig.cores.load, rate, answers.STREAM_PIECE, answers.STREAM_CHARACTERS) as settings:
        server, site = rig.start(who, **settings)
        with server:
            return answers.stream(rig.ours(who), site)


def _growth(name: str, values: dict[int, float]) -> Numbers:
    base = next(iter(values.values()))
    found = {f"{name}_{size}": value for size, value in values.items()}
    return {**found, f"{name}_growth": max(values.values()) / base}


def _crowds(rig: Rig, who: str) -> Numbers:
    values = {}
    for readers in rig.scale.crowds:
        server, site = rig.start(who)
        with server:
            values[readers] = work.fan_out(server, site, readers, rig.scale.seconds)["cpu_us"]
    return _growth("delivery_us", values)


def _history(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who, history=True)
    sizes = rig.scale.history
    with server:
        found = answers.history(server, rig.ours(who), site, sizes, rig.scale.times)
    shutil.rmtree(rig.ours(who).data)
    posts = _growth("post_us", {size: found[f"post_us_{size}"] for size in sizes})
    return {**posts, **_growth("changes_us", {size: found[f"changes_us_{size}"] for size in sizes})}


def _beside(rig: Rig, who: str) -> Numbers:
    server, site = rig.start(who)
    values = {}
    with server:
        loop = Loop()
        there = 0
        for count in rig.scale.beside:
            work.connect_all(loop, site, [site.seats(number) for number in range(there, count)])
            there = count
            others = Loop()
            operation = work.connect_once(site, rig.scale.people)
            values[count] = work.one_by_one(server, rig.scale.times, operation, others)["cpu_us"]
            others.close()
            loop.run(1.0)
        loop.close()
    return _growth("connect_us", values)


ALL = ("product", BARE, RENDERED, "node", "picows", "null")  # the product first: its deliveries set the bytes
GROWTH = 1.3

ROWS = (
    Row("start", "start until ready", "s", "ready_s", ("product", BARE, RENDERED, "node"), _start,
        (Bar("ready_s", "<=", 2),)),
    Row("posts", "{clients} clients, own conversations: durable posts", "posts/s", "per_s", ALL, _posts,
        (Bar("per_s", ">=", 1, BARE, 2), Bar("per_s", ">=", 3, RENDERED, 6))),
    Row("round", "one client's round trip p50, less a FULL commit", "ms", "net_ms", ALL, _round,
        (Bar("net_ms", "<=", 1, BARE, 0.7),)),
    Row("delivery", "{readers} readers: server CPU a delivery", "µs", "cpu_us", ALL, _fan_out,
        (Bar("cpu_us", "<=", 1 / 4.5, BARE), Bar("cpu_us", "<=", 1 / 1.6, "node"),
         Bar("cpu_us", "<=", 1.2, "picows", 1.0))),
    Row("p99", "{readers} readers, 10 messages/s: p99 of a delivery", "ms", "p99_ms", ALL, _paced,
        (Bar("p99_ms", "<=", 1 / 4, BARE), Bar("p99_ms", "<=", 1, "node"))),
    Row("idle", "{first} idle sockets: memory of one", "KiB", "kib_{first}",
        ("product", BARE, "node", "picows"), _idle,
        (Bar("kib_{first}", "<=", 3, stretch=1.5, title="KiB at {first}"),
         Bar("kib_{last}", "<=", 3, stretch=1.5, title="KiB at {last}"),
         Bar("idle_server_cpu_percent", "<=", 1 / 8, BARE, 1 / 20, "CPU of {first}"))),
    Row("connects", "connects, signed in and resumed", "1/s", "per_s", ALL, _connects,
        (Bar("per_s", ">=", 1.5, BARE), Bar("per_s", ">=", None, "node", 1))),
    Row("polls", "polls with nothing new", "1/s", "per_s", ("product", "view", "null"), _polls,
        (Bar("per_s", ">=", 2, "view", 3),)),
    Row("held", "{held} held polls, all answered after a post", "ms", "all_ms", ("product", BARE, "node"), _held,
        (Bar("all_ms", "<=", 1, BARE, 0.5),)),
    Row("answers", "{answers} answers at 30 tokens/s, {readers_each} readers each: CPU of a core", "%",
        "server_cpu_percent",
        ("product",), _answers, (Bar("server_cpu_percent", "<=", 50, stretch=25),)),
    Row("stream", "a 4 kB answer at 5 kB/s, compressed: wire bytes to its HTML", "×", "share",
        ("product",), _stream, (Bar("share", "<=", 0.8, stretch=0.5),)),
    Row("crowds", "growth: CPU a delivery with more readers", "×", "delivery_us_growth",
        ("product",), _crowds, (Bar("delivery_us_growth", "<=", GROWTH),)),
    Row("history", "growth: CPU a post and a `changes` with a longer history", "×", "post_us_growth",
        ("product",), _history, (Bar("post_us_growth", "<=", GROWTH), Bar("changes_us_growth", "<=", GROWTH))),
    Row("beside", "growth: CPU a connect beside more sockets", "×", "connect_us_growth",
        ("product",), _beside, (Bar("connect_us_growth", "<=", GROWTH),)),
)  # fmt: skip
