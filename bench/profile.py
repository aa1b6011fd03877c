"""CPU profiles of a post, a delivery, a poll and an idle second: py-spy samples the product's worker."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.load import work
from bench.load.dialects import Site
from bench.machine import Server
from bench.rows import Rig

RATE = 250  # samples a second
TOP = 12
WAITING = ("acquire_with_timeout",)  # threads of the pool with nothing to do, which py-spy takes for busy


@dataclass(frozen=True)
class Profile:
    """Samples of one kind of work: by function on top, and by the product's file (and the package) below it."""

    title: str
    samples: int
    cpu_us: float
    functions: list[tuple[str, int]]
    rooms: list[tuple[str, int]]


def take(rig: Rig) -> list[Profile]:
    """One profile for each kind of work, each on a fresh server."""
    scale = rig.scale
    kinds: list[tuple[str, float, Callable[[Server, Site], work.Numbers]]] = [
        ("a post", scale.seconds, lambda server, site: work.posts(server, site, scale.clients, scale.seconds)),
        ("a delivery", scale.seconds, lambda server, site: work.fan_out(server, site, scale.readers, scale.seconds)),
        ("a poll", scale.seconds, lambda server, site: work.polls(server, site, scale.pollers, scale.seconds)),
        (
            f"an idle second of {scale.sockets[0]:,} sockets",
            scale.idle_s,
            lambda server, site: work.idle(server, site, scale.sockets[:1], scale.idle_s, scale.sockets[0]),
        ),
    ]
    return [_one(rig, title, seconds, do) for title, seconds, do in kinds]


def _one(rig: Rig, title: str, seconds: float, do: Callable[[Server, Site], work.Numbers]) -> Profile:
    server, site = rig.start("product", ws_ping_interval=rig.scale.ping_s)
    out = rig.folder / f"profile-{len(list(rig.folder.glob('profile-*')))}.txt"
    with server:
        spies: list[subprocess.Popen[bytes]] = []
        work.Meter.on_restart = lambda server: spies.append(_spy(rig, server, out, seconds))
        try:
            numbers = do(server, site)
        finally:
            work.Meter.on_restart = lambda server: None
            for spy in spies:
                spy.wait(60)
    cost = numbers.get("cpu_us", 10_000 * numbers.get("idle_server_cpu_percent", 0.0))
    return _read(title, out, cost)


def _spy(rig: Rig, server: Server, out: Path, seconds: float) -> subprocess.Popen[bytes]:
    options = [
        "--format",
        "raw",
        "--rate",
        str(RATE),
        "--duration",
        str(max(1, round(seconds) - 1)),
        "--output",
        str(out),
    ]
    command = [str(rig.environment.py_spy), "record", *options, "--pid", str(server.pids[-1])]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _read(title: str, out: Path, cost: float) -> Profile:
    functions: Counter[str] = Counter()
    rooms: Counter[str] = Counter()
    for line in out.read_text().splitlines() if out.exists() else []:
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        if frames[-1].startswith(WAITING):
            continue
        functions[frames[-1]] += int(count)
        rooms[_room(frames)] += int(count)
    return Profile(title, sum(functions.values()), cost, functions.most_common(TOP), rooms.most_common(TOP))


def _room(frames: list[str]) -> str:
    """The product's deepest file on the stack, and the package that it is in at the moment."""
    own = [found[1] for frame in frames if (found := re.search(r"(chatapp/[^)]*)\)", frame))]
    top = re.search(r"\(([^/)]*)", frames[-1])
    package = top[1] if top else frames[-1]
    if not own:
        return package
    return own[-1] if "chatapp/" in frames[-1] else f"{own[-1]} → {package}"


def markdown(profiles: list[Profile]) -> str:
    """The profiles, for the report."""
    parts = ["## Where the time goes (py-spy, the worker's own samples; the sampling itself slows it down)"]
    for profile in profiles:
        parts.append(f"### {profile.title}: {profile.cpu_us:,.1f} µs of CPU, {profile.samples:,} samples")
        if not profile.samples:
            parts.append("Nothing was sampled: the time was too short, or py-spy may not look into other processes.")
            continue
        for head, found in (("function", profile.functions), ("file of the product", profile.rooms)):
            lines = [f"| {head} | share |", "| --- | --- |"]
            lines += [f"| `{name}` | {100 * count / profile.samples:.0f} % |" for name, count in found]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)
