"""The workloads. Each takes a site and a meter of its server, and returns numbers by name."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from bench.load.dialects import MESSAGE_BYTES, Asker, HeldPoll, Seat, Site, Socket, body_of, deliveries, sent_at
from bench.load.loop import Loop, TimedOut
from bench.load.wire import get
from bench.machine import Server, foreign_cpu

Numbers = dict[str, float]
CONNECTING = 100  # connects under way at once while a workload is set up
SETTLE_S = 0.3
SLOW_S = 60.0  # an operation that takes longer has failed
CONNECTS_S = 50.0  # sockets that even a slow server takes in a second: so much longer is waited for many
FEW_TIMED = 64  # deliveries of each message that are timed at full speed: timing costs the load's core
LOAD_BOUND = 0.9  # of the load's core: above, the load generator may be what limits


class Meter:
    """What a stretch of time cost: the server's CPU, the load's, and what else ran on the machine."""

    on_restart: ClassVar[Callable[[Server], None]] = lambda server: (
        None
    )  # the profile begins where the measurement does

    def __init__(self, server: Server) -> None:
        self._server = server
        self._mark()

    def restart(self) -> None:
        """Measure from here."""
        type(self).on_restart(self._server)
        self._mark()

    def _mark(self) -> None:
        self._cpu, self._load, self._machine = self._server.cpu_s(), time.process_time(), foreign_cpu()
        self._began = time.monotonic()

    def stop(self, operations: float) -> Numbers:
        """Numbers since the start; `cpu_us` is the server's CPU an operation."""
        took = time.monotonic() - self._began
        cpu, load = self._server.cpu_s() - self._cpu, time.process_time() - self._load
        busy, then = foreign_cpu()
        foreign = (busy - self._machine[0]) / (then - self._machine[1]) - (cpu + load) / took
        return {
            "seconds": took,
            "operations": operations,
            "per_s": operations / took,
            "cpu_us": cpu / operations * 1e6 if operations else 0.0,
            "server_cpu_percent": 100 * cpu / took,
            "load_cpu_percent": 100 * load / took,
            "foreign_cpu_percent": 100 * max(0.0, foreign),
            "load_bound": float(load / took > LOAD_BOUND),
        }


@dataclass
class Times:
    """Round trips in ns."""

    taken: list[int] = field(default_factory=list)

    def numbers(self) -> Numbers:
        """Median and 99th percentile in ms."""
        if not self.taken:
            raise TimedOut("no round trip was timed")
        marks = statistics.quantiles(self.taken * 2, n=100, method="inclusive")  # twice: it wants more than one
        return {"p50_ms": marks[49] / 1e6, "p99_ms": marks[98] / 1e6}


def connect_all(loop: Loop, site: Site, seats: Sequence[Seat]) -> list[Socket]:
    """Sockets in all seats, ready. Raises TimedOut with how far it got."""
    sockets, waiting = [], iter(seats)
    counts = {"under way": 0, "ready": 0}

    def one_ready(_socket: Socket) -> None:
        counts["under way"] -= 1
        counts["ready"] += 1

    def fill() -> bool:
        while counts["under way"] < CONNECTING and (seat := next(waiting, None)) is not None:
            socket = site.dialect(loop, site, seat)
            socket.on_ready = one_ready
            counts["under way"] += 1
            sockets.append(socket)
        return counts["ready"] >= len(seats)

    loop.run(SLOW_S + len(seats) / CONNECTS_S, fill)
    if counts["ready"] < len(seats):
        why = next((socket.refused for socket in sockets if socket.refused), "no answer")
        raise TimedOut(f"{counts['ready']} of {len(seats)} sockets are ready ({why})")
    return sockets


def posts(server: Server, site: Site, clients: int, seconds: float) -> Numbers:
    """Each client posts into its own room, and again once it sees its message (and has the acknowledgement)."""
    loop, times, meter = Loop(), Times(), Meter(server)
    sockets = connect_all(loop, site, [site.seats(number) for number in range(clients)])
    done, running = [0], [True]
    waiting: dict[int, int] = {}
    answers = 2 if site.dialect.acknowledges else 1

    def post(socket: Socket) -> None:
        waiting[id(socket)] = answers
        socket.say(socket.seat.room, body_of())

    def answered(socket: Socket) -> None:
        waiting[id(socket)] -= 1
        if not waiting[id(socket)]:
            done[0] += 1
            if running[0]:
                post(socket)

    def seen(socket: Socket, payload: bytes, _count: int) -> None:
        times.taken.append(time.monotonic_ns() - sent_at(payload))
        answered(socket)

    for socket in sockets:
        socket.on_message, socket.on_ack = seen, answered
        post(socket)
    loop.run(seconds / 4, lambda: False)
    done[0] = 0
    times.taken.clear()
    meter.restart()
    loop.run(seconds)
    found = {**meter.stop(done[0]), **times.numbers()}
    running[0] = False
    loop.run(SLOW_S, lambda: not any(waiting.values()))
    lost = sum(value > 0 for value in waiting.values())
    loop.close()
    return {**found, "lost": float(lost)}


def fan_out(server: Server, site: Site, readers: int, seconds: float) -> Numbers:
    """One writer, many readers of one room; the next message goes out when the last reader has the one before."""
    loop, times, meter = Loop(), Times(), Meter(server)
    sockets = connect_all(loop, site, [site.crowd(number) for number in range(readers)])
    writer = connect_all(loop, site, [Seat(site.crowd(0).cookie)])[0]
    room = site.crowd(0).room
    got, frames, sent = [0], [0], [0]
    every = max(1, readers // FEW_TIMED)

    def seen(_socket: Socket, payload: bytes, count: int) -> None:
        got[0] += count
        frames[0] += 1
        if not frames[0] % every:
            times.taken.append(time.monotonic_ns() - sent_at(payload))
        if got[0] == sent[0] * readers and time.monotonic() < end[0]:
            say()

    def say() -> None:
        sent[0] += 1
        writer.say(room, body_of(site.message_bytes))

    for socket in sockets:
        socket.on_message = seen
    end = [time.monotonic() + seconds / 4]
    say()
    loop.wait(lambda: got[0] >= sent[0] * readers and time.monotonic() >= end[0], SLOW_S, "the warm-up's deliveries")
    before, started, frames[0] = got[0], sent[0], 0
    bytes_in = sum(socket.connection.bytes_in for socket in sockets)
    times.taken.clear()
    end[0] = time.monotonic() + seconds
    meter.restart()
    say()
    loop.run(seconds + SLOW_S, lambda: got[0] >= sent[0] * readers and time.monotonic() >= end[0])
    found = meter.stop(got[0] - before)
    bytes_in = sum(socket.connection.bytes_in for socket in sockets) - bytes_in
    exact: Numbers = {"messages": sent[0] - started, "expected": (sent[0] - started) * readers, "frames": frames[0]}
    exact["bytes_a_delivery"] = bytes_in / max(1, got[0] - before)
    loop.close()
    return {**found, **times.numbers(), **exact, "extra": float(deliveries(sockets) - got[0])}


def paced(server: Server, site: Site, readers: int, seconds: float, rate: float = 10.0) -> Numbers:
    """So many messages a second to all readers: how long a delivery takes when nothing is at its limit."""
    loop, times, meter = Loop(), Times(), Meter(server)
    sockets = connect_all(loop, site, [site.crowd(number) for number in range(readers)])
    writer = connect_all(loop, site, [Seat(site.crowd(0).cookie)])[0]
    room = site.crowd(0).room
    got = [0]

    def seen(_socket: Socket, payload: bytes, count: int) -> None:
        got[0] += count
        times.taken.append(time.monotonic_ns() - sent_at(payload))

    for socket in sockets:
        socket.on_message = seen
    for _ in range(3):  # what is made at the first message is no delivery's
        writer.say(room, body_of(site.message_bytes))
        loop.run(1 / rate)
    loop.run(SLOW_S, lambda: got[0] >= 3 * readers)
    got[0] = 0
    times.taken.clear()
    bytes_in = sum(socket.connection.bytes_in for socket in sockets)
    meter.restart()
    count = max(2, round(seconds * rate))
    began = time.monotonic()
    for number in range(count):
        writer.say(room, body_of(site.message_bytes))
        loop.run(began + (number + 1) / rate - time.monotonic())
    loop.run(SLOW_S, lambda: got[0] >= count * readers)
    bytes_in = sum(socket.connection.bytes_in for socket in sockets) - bytes_in
    found = {**meter.stop(got[0]), **times.numbers(), "expected": float(count * readers)}
    found["bytes_a_delivery"] = bytes_in / max(1, got[0])
    loop.close()
    return found


def idle(server: Server, site: Site, steps: Sequence[int], window_s: float, watched: int) -> Numbers:
    """Sockets that only answer pings: memory of one at each step, and the CPU of all at the step `watched`."""
    loop = Loop()
    found: Numbers = {}
    loop.run(SETTLE_S)
    empty = server.memory_kib()
    sockets: list[Socket] = []
    for step in steps:
        try:
            sockets += connect_all(loop, site, [site.seats(number) for number in range(len(sockets), step)])
        except TimedOut as short:
            found[f"reached_{step}"] = float(str(short).split(" ")[0]) + len(sockets)
            break
        loop.run(max(1.0, SETTLE_S))
        found[f"kib_{step}"] = (server.memory_kib() - empty) / step
        if step == watched:
            meter = Meter(server)
            meter.restart()
            loop.run(window_s)
            numbers = meter.stop(step)
            found |= {f"idle_{key}": value for key, value in numbers.items()}
            found["cut"] = float(sum(not socket.connection.open for socket in sockets))
    loop.close()
    return found


def connects(server: Server, site: Site, seconds: float, at_once: int, people: int) -> Numbers:
    """Connect, sign in by cookie, resume the room; then gone, and the next one."""
    loop, meter = Loop(), Meter(server)
    seats = [site.seats(number) for number in range(people)]
    done, made, failed = [0], [0], [0]

    def one(_old: Socket | None = None) -> None:
        made[0] += 1
        socket = site.dialect(loop, site, seats[made[0] % people])
        socket.on_ready, socket.on_end = ready, broken

    def ready(socket: Socket) -> None:
        done[0] += 1
        socket.close()
        one()

    def broken(_socket: Socket) -> None:
        failed[0] += 1
        one()

    for _ in range(at_once):
        one()
    loop.run(seconds / 4)
    done[0] = 0
    meter.restart()
    loop.run(seconds)
    found = {**meter.stop(done[0]), "failed": float(failed[0])}
    loop.close()
    return found


def polls(server: Server, site: Site, clients: int, seconds: float) -> Numbers:
    """Kept connections that ask for news where there is none."""
    loop, meter = Loop(), Meter(server)
    askers = []
    for number in range(clients):
        seat = site.seats(number)
        askers.append(Asker(loop, site.port, get(site.poll_path(seat), site.port, seat.cookie), 204))
    loop.wait(lambda: all(asker.answers for asker in askers), SLOW_S, "every client's first poll is answered")
    before = sum(asker.answers for asker in askers)
    meter.restart()
    loop.run(seconds)
    found = meter.stop(sum(asker.answers for asker in askers) - before)
    loop.close()
    return found


def held_polls(server: Server, site: Site, clients: int, rounds: int) -> Numbers:
    """Held polls of one room: from a post until the last one is answered, in ms."""
    assert site.held is not None
    loop, meter = Loop(), Meter(server)
    writer = connect_all(loop, site, [Seat(site.crowd(0).cookie)])[0]
    room, answered, taken = site.crowd(0).room, [0], []

    def heard(_poll: HeldPoll, _payload: bytes) -> None:
        answered[0] += 1

    held = []
    for number in range(clients):
        poll = site.held(loop, site, site.crowd(number))
        poll.on_message = heard
        held.append(poll)
        if number % CONNECTING == CONNECTING - 1:
            loop.run(SETTLE_S)
    meter.restart()
    for _ in range(rounds):
        for poll in held:
            if not poll.is_held and type(poll).__name__ == "ProductPoll":
                poll.hold()
        loop.wait(lambda: all(poll.is_held for poll in held), SLOW_S, "all polls are held")
        loop.run(SETTLE_S + clients / 1000)  # until the server has them all
        answered[0] = 0
        began = time.monotonic()
        writer.say(room, body_of())
        loop.wait(lambda: answered[0] >= clients, SLOW_S, f"all {clients} held polls are answered")
        taken.append((time.monotonic() - began) * 1000)
        for poll in held:
            poll.hold()
    loop.close()
    return {**meter.stop(rounds * clients), "all_ms": statistics.median(taken), "slowest_ms": max(taken)}


def one_by_one(server: Server, times: int, operation: Callable[[Loop, int], None], loop: Loop) -> Numbers:
    """The server's CPU of single operations on an otherwise idle server: the median, in µs."""
    taken = []
    for number in range(times):
        loop.run(0.002)
        before = server.cpu_s()
        operation(loop, number)
        loop.run(0.002)  # what a process on another core uses is counted when it goes to sleep
        taken.append((server.cpu_s() - before) * 1e6)
    return {"cpu_us": statistics.median(taken), "operations": float(times)}


def post_once(writer: Socket, room: str) -> Callable[[Loop, int], None]:
    """An operation: one post, until its acknowledgement."""

    def operation(loop: Loop, _number: int) -> None:
        acks = writer.acks
        writer.say(room, body_of())
        loop.wait(lambda: writer.acks > acks, SLOW_S, "a post is acknowledged")

    return operation


def connect_once(site: Site, people: int) -> Callable[[Loop, int], None]:
    """An operation: one connect and resume. The sockets stay until the loop is closed."""

    def operation(loop: Loop, number: int) -> None:
        connect_all(loop, site, [site.seats(number % people)])

    return operation


def padded(bytes_a_delivery: float, own: float) -> int:
    """How long a peer's message must be, so that its delivery has as many bytes as the product's."""
    return max(MESSAGE_BYTES, MESSAGE_BYTES + round(bytes_a_delivery - own))
