"""A day of people in ordinary use, as what their pages and the server report of it; seeded.

Times are ms by the server's clock; `skew` of a page is by how much its own clock is ahead.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from chatapp.store import ConnectionEvent

SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
SIGN = 5 * MINUTE  # between two signs of life of a page that polls


@dataclass
class Report:
    """What a page says, and when the server gets it."""

    client: str
    number: int
    at: int
    type: str
    person: int
    skew: int
    transport: str | None = None
    before: str | None = None
    to: str | None = None
    reason: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    arrives: list[int] = field(default_factory=list)

    @property
    def item(self) -> dict[str, Any]:
        """Its form in `POST /connection/events`."""
        states = {"from": self.before, "to": self.to}
        own = {"client": self.client, "number": self.number, "at": self.at + self.skew, "type": self.type}
        return own | states | {"reason": self.reason, "transport": self.transport, "data": self.data}


class Day:
    """Everything that is reported of a day that ends at `end` (ms).

    is_real: with that of which the monitor does not make what docs/monitoring.md says (test_sentences.py): the server
    often speaks before the page, and failures are told with the next success.
    """

    def __init__(self, seed: int, people: int, hours: int, end: int, uuids: list[str], is_real: bool = False) -> None:
        self.chance = random.Random(seed)
        self.hours, self.start, self.end = hours, end - hours * HOUR, end
        self.uuids, self.is_real = uuids, is_real
        self.reports: list[Report] = []
        self.server: list[ConnectionEvent] = []
        self.workers = [self.uuid()]
        self.restarts = self._restarts()
        for person in range(people):
            self._person(person)
        for _ in range(max(2, people // 20)):  # programs without a page
            opened = self.moment()
            self.socket(opened, min(opened + self.chance.randrange(HOUR), self.end), "", "", 1000)
        self._arrive()

    # --- chance

    def uuid(self) -> str:
        """A new one."""
        return str(UUID(int=self.chance.getrandbits(128), version=4))

    def moment(self) -> int:
        """Some time of the day."""
        return self.chance.randrange(self.start, self.end - MINUTE)

    def is_true(self, share: float) -> bool:
        """True in so many cases."""
        return self.chance.random() < share

    def ms(self, low: float, high: float) -> int:
        """A duration."""
        return round(self.chance.uniform(low, high))

    @property
    def room(self) -> int:
        """From the page's word on an end to the server's."""
        return self.ms(-60, 60) if self.is_real else 400

    # --- the server

    def _restarts(self) -> list[tuple[int, int, bool]]:
        """Its ends and starts, and whether it said goodbye. Each worker's sockets end with it."""
        times = sorted(self.chance.sample(range(1, 2 * self.hours - 1), min(5, self.hours)))
        found = []
        for number, half in enumerate(times):
            stop = self.start + half * HOUR // 2 + self.ms(0, 20 * MINUTE)
            is_clean, back = number % 2 == 0, stop + self.ms(3000, 9000)
            old, new = self.workers[-1], self.uuid()
            self.workers.append(new)
            if is_clean:
                self.event(self.uuid(), 0, stop, "server-stop", {"worker": old})
            self.event(self.uuid(), 0, back, "server-start", {"worker": new, "dead": [] if is_clean else [old]})
            found.append((stop, back, is_clean))
        return found

    def event(self, client: str, number: int, at: int, kind: str, data: dict[str, Any], **more: str) -> None:
        """The server's own."""
        transport = "websocket" if kind in ("server-open", "server-close") else None
        values = (client, number, more.pop("person", ""), kind, transport, None, None, None, at, json.dumps(data))
        self.server.append(ConnectionEvent(*values, at=at, **more))

    def worker(self, at: int) -> str:
        """The worker of that time."""
        return self.workers[sum(stop <= at for stop, _, _ in self.restarts)]

    def is_off(self, at: int) -> bool:
        """True if nobody answers."""
        return any(stop - 2000 <= at <= back + 2000 for stop, back, _ in self.restarts)

    def socket(self, opened: int, closed: int | None, person: str, page: str, code: int = 1006) -> None:
        """One socket as the server saw it; without an end it is still open, or its worker died."""
        name, network = self.uuid(), f"{len(person):012x}"
        data: dict[str, Any] = {"address": "192.0.2.1", "worker": self.worker(opened)}
        self.event(name, -2, opened, "server-open", data, person=person, page=page, network=network)
        if closed is not None:
            data = {"code": code, "seconds": (closed - opened) / 1000, "in": 1, "out": 1, "feeds": 1}
            self.event(name, -1, closed, "server-close", data, person=person, page=page)

    # --- people

    def _person(self, person: int) -> None:
        kind = self.chance.choices(
            ["good", "blocked", "remembered", "setting", "flaky"], [0.62, 0.14, 0.06, 0.04, 0.14]
        )[0]
        skew = 0 if self.is_true(0.6) else self.ms(-12 * MINUTE, 12 * MINUTE)
        for _ in range(self.chance.randrange(2, 7)):
            PageLife(self, person, kind, skew if abs(skew) > 2 * SECOND else 0)

    def _arrive(self) -> None:
        """Most reports come within half a minute; some batches late, some twice."""
        lateness: dict[tuple[str, int], int] = {}
        for report in self.reports:
            batch = (report.client, report.at // (2 * MINUTE))
            if batch not in lateness:
                late = self.chance.choices([0, 20 * MINUTE, 3 * HOUR], [0.93, 0.05, 0.02])[0]
                lateness[batch] = round(self.chance.uniform(0, late) + self.chance.uniform(SECOND, 30 * SECOND))
            report.arrives = [report.at + lateness[batch]]
            if self.is_true(0.05):
                report.arrives.append(report.arrives[0] + self.ms(0, HOUR))

    def arrivals(self) -> Iterator[tuple[int, Report]]:
        """The reports as they come: all of them by the end of the day."""
        for report in self.reports:
            for at in report.arrives:
                yield min(at, self.end), report


class PageLife:
    """A page from its opening to its end, if it has one."""

    def __init__(self, day: Day, person: int, kind: str, skew: int) -> None:
        self.day, self.person, self.kind, self.skew = day, person, kind, skew
        self.id, self.number, self.state = day.uuid(), 0, "disconnected"
        self.at = day.moment()
        self.until = self.at + day.ms(2 * MINUTE, 40 * MINUTE if day.is_true(0.6) else day.hours * HOUR)
        self.has_failed: dict[str, bool] = {}  # by transport: the last attempt
        self.opened = 0  # the live socket's begin; 0: none
        if day.is_off(self.at):
            return
        self.change("connecting")
        if day.is_true(0.05):
            return self.leave_early()
        if day.is_true(0.02):  # closed by force, before anything was reported
            self.report(
                "attempt", day.ms(100, 3000), transport="websocket", reason="upgrade-failed", outcome="failed", ms=90
            )
            return
        self.open()
        while self.at < min(self.until, day.end):
            self.live() if self.state == "connected" else self.poll()
            if self.state == "gone":
                return
        if self.until < day.end:
            self.leave()
        elif self.opened:
            day.socket(self.opened, None, self.uuid, self.id)

    @property
    def uuid(self) -> str:
        """The person's."""
        return self.day.uuids[self.person]

    def report(self, kind: str, wait: int = 0, *, transport: str | None = None, reason: str | None = None,
               was: str | None = None, to: str | None = None, **data: Any) -> None:  # fmt: skip
        """Reports an event some ms later."""
        self.at += wait
        if self.at > self.day.end:
            return
        self.day.reports.append(
            Report(
                self.id, self.number, self.at, kind, self.person, self.skew, transport, was, to, reason,
                {"rtt": 12, "attempts": 0, **data},
            )
        )  # fmt: skip
        self.number += 1

    def change(self, to: str, reason: str | None = None, wait: int = 0) -> None:
        """Another state."""
        transport = "polling" if to == "polling" else "websocket"
        self.report("state", wait, transport=transport, was=self.state, to=to, reason=reason)
        self.state = to

    def attempt(self, transport: str, outcome: str, ms: int, reason: str | None = None, **more: Any) -> None:
        """The end of an attempt, now."""
        self.has_failed[transport] = outcome == "failed" and not more.get("probe")
        self.report("attempt", transport=transport, reason=reason, outcome=outcome, ms=ms, **more)

    # --- begin and end

    def open(self) -> None:
        """The first connection."""
        day = self.day
        if self.kind in ("good", "flaky"):
            ms = day.ms(80, 900) if day.is_true(0.93) else day.ms(1500, 8500)
            ms = day.ms(11_000, 15_000) if day.is_true(0.03) else ms
            if ms > 1500 and day.is_true(0.5):  # polls raced along
                self.report("attempt", ms, transport="polling", outcome="cancelled", ms=ms - 500)
                ms, wait = ms, 0
            else:
                wait = ms
            self.at += wait
            self.opened = self.at - min(ms // 2, 300)
            self.attempt("websocket", "ready", ms)
            self.change("connected")
        elif self.kind == "blocked":
            hung = day.is_true(0.3)
            reason, ms = ("upgrade-hung", 4000) if hung else ("upgrade-failed", day.ms(30, 200))
            if not hung:
                self.at += ms
                self.attempt("websocket", "failed", ms, reason)
            self.at += day.ms(400, 1200)
            poll = day.ms(80, 300) if day.is_true(0.95) else day.ms(11_000, 13_000)
            self.at += poll
            self.attempt("polling", "ready", poll)
            self.change("polling", reason)
            if hung:
                self.at += 3000
                self.attempt("websocket", "failed", 4000, reason)
            self.report(
                "cause", day.ms(50, 400), transport="polling", reason="upgrade-hung" if hung else "upgrade-refused"
            )
        else:
            poll = day.ms(80, 400)
            self.at += poll
            self.attempt("polling", "ready", poll)
            self.change("polling", None if self.kind == "remembered" else "websocket-off")

    def leave_early(self) -> None:
        """Closed before it was connected."""
        ms = self.day.ms(100, 6000)
        self.at += ms
        self.attempt("websocket", "cancelled", ms)
        self.report("end")

    def leave(self) -> None:
        """Closed; or it vanishes, and only the end of its socket tells."""
        day = self.day
        self.at = max(self.at, min(self.until, day.end))
        is_said = day.is_true(0.9)
        if is_said:
            self.minute(0)
            self.report("end")
        if self.opened:
            day.socket(self.opened, min(day.end, self.at + day.room), self.uuid, self.id, 1001 if is_said else 1006)
        self.state, self.opened = "gone", 0

    # --- what happens meanwhile

    def minute(self, wait: int) -> None:
        """Messages of a minute."""
        day, chance = self.day, self.day.chance
        transport = "websocket" if self.state == "connected" else "polling"
        bins: dict[str, int] = {}
        for _ in range(chance.randrange(6)):
            number = str(min(63, max(0, round(chance.gauss(26 if transport == "websocket" else 32, 5)))))
            bins[number] = bins.get(number, 0) + 1
        received: dict[str, int] = {}
        for _ in range(chance.randrange(8)):
            delay = chance.randrange(0, 4) if day.is_true(0.96) else chance.choice([12, 27, 33, 70, 900])
            shown = str(round(delay + self.skew / 1000))
            received[shown] = received.get(shown, 0) + 1
        repeated = int(day.is_true(0.05))
        missing = chance.randrange(1, 4) if day.is_true(0.03) else 0
        sent = {transport: bins} if bins else {}
        self.report(
            "minute", wait, transport=transport, sent=sent, repeated=repeated, received=received, missing=missing
        )

    def next_restart(self, until: int) -> tuple[int, int, bool] | None:
        """The first end of the server from now to then."""
        return next((one for one in self.day.restarts if self.at <= one[0] <= until), None)

    def live(self) -> None:
        """On WebSocket: for a while all is well, then perhaps not."""
        day = self.day
        mean = 25 * MINUTE if self.kind == "flaky" else 3 * HOUR
        until = min(self.at + round(day.chance.expovariate(1 / mean)) + SECOND, self.until, day.end)
        restart = self.next_restart(until)
        until = restart[0] if restart else until
        while self.at + 12 * MINUTE < until - 3 * MINUTE:
            self.minute(day.ms(2 * MINUTE, 12 * MINUTE))
            if day.is_true(0.3):
                self.report("quality", 10, score=90, level="good", limit=None)
        self.at = until
        if restart:
            self.restart(*restart)
        elif self.at < min(self.until, day.end) and not day.is_off(self.at) and not day.is_off(self.at + MINUTE):
            self.break_off()
        elif soon := self.next_restart(self.at + 5 * SECOND):
            self.at = soon[0]
            self.restart(*soon)
        elif self.at < min(self.until, day.end):
            self.at += 5 * SECOND

    def end_socket(self, after: int, code: int = 1006) -> None:
        """The server notices some ms later."""
        at = self.at + after
        is_dead = any(not clean and self.opened < stop < at for stop, _, clean in self.day.restarts)
        self.day.socket(self.opened, None if is_dead else min(at, self.day.end), self.uuid, self.id, code)
        self.opened = 0

    def back(self, ms: int, probe: bool = False) -> None:
        """WebSocket works again after an attempt."""
        day = self.day
        if self.at + ms > day.end:
            self.at += ms
            return
        self.at += ms
        self.opened = self.at - min(ms // 2, 300)
        is_told = day.is_real and self.has_failed.get("websocket") and day.is_true(0.5)
        more = {"before": day.chance.randrange(1, 5)} if is_told else {}
        self.attempt("websocket", "ready", ms, **({"probe": 1} if probe else {}), **more)
        self.change("connected")

    def restart(self, stop: int, back: int, is_clean: bool) -> None:
        """The server ends, and comes back."""
        day = self.day
        self.at += 20
        reason = "server-restart" if is_clean else "socket-closed"
        self.change("reconnecting", reason)
        if is_clean:
            self.end_socket(day.room, 1012)
        else:
            day.socket(self.opened, None, self.uuid, self.id)
            self.opened = 0
        self.at += 700
        self.attempt("polling", "failed", 5, "server-unreachable")
        self.attempt("websocket", "failed", 5, "upgrade-failed" if not is_clean else "server-restart")
        self.at = max(self.at, back + day.ms(300, 3000))
        self.back(day.ms(50, 600))

    def break_off(self) -> None:
        """The network cuts, falls silent or goes, the device goes offline, or the person signs out."""
        day = self.day
        how = day.chance.choices(["cut", "silent", "offline", "error", "out"], [0.4, 0.3, 0.2, 0.07, 0.03])[0]
        if how == "cut":
            self.change("reconnecting", "socket-closed")
            self.end_socket(day.room)
            self.at += day.ms(50, 3000)
            self.back(day.ms(60, 900))
        elif how == "silent":
            self.change("polling", "socket-silent")
            self.end_socket(day.ms(20_000, 50_000))
            self.kind = self.kind if self.kind != "good" else "flaky"
        elif how == "offline":
            self.change("reconnecting", "offline")
            self.end_socket(max(day.room, day.ms(-9000, 40_000)))
            for _ in range(day.chance.randrange(3)):
                self.at += day.ms(15_000, 18_000)
                self.attempt("websocket", "failed", 40, "offline")
            self.at += day.ms(2000, 9000)
            self.back(day.ms(60, 900))
        elif how == "error":
            self.change("reconnecting", "server-unreachable")
            self.end_socket(day.room)
            self.at += 15_000
            self.attempt("websocket", "failed", 4000, "upgrade-hung")
            self.change("error", "server-unreachable", 10)
            for _ in range(day.chance.randrange(1, 4)):
                self.at += day.ms(50_000, 100_000)
                self.attempt("websocket", "failed", 4000, "upgrade-hung")
            self.at += day.ms(5000, 60_000)
            self.back(day.ms(60, 900))
        else:
            self.change("disconnected", "signed-out")
            self.end_socket(day.room, 4401)
            self.state = "gone"

    def poll(self) -> None:
        """On polling: signs of life, probes, and perhaps WebSocket again, or nothing at all for a moment."""
        day = self.day
        long = 4 * HOUR if self.kind in ("blocked", "remembered", "setting") else 8 * MINUTE
        until = min(self.at + round(day.chance.expovariate(1 / long)) + 30 * SECOND, self.until, day.end)
        while self.at + SIGN < until:
            self.report("alive", SIGN, transport="polling")
            if day.is_true(0.4):
                self.minute(day.ms(1000, 50_000))
            if day.is_true(0.4) and self.kind != "setting":
                reason = "upgrade-hung" if day.is_true(0.3) else "upgrade-refused"
                more = {"before": day.chance.randrange(1, 6)} if day.is_true(0.5) else {}
                self.at += 4000
                self.attempt("websocket", "failed", 4000, reason, probe=1, **more)
        self.at = max(self.at, until)
        is_over = self.at >= min(self.until, day.end)
        if is_over or self.kind == "setting" or any(day.is_off(self.at + wait) for wait in range(0, MINUTE, 5000)):
            self.at += 0 if is_over else 10 * SECOND
        elif day.is_true(0.25):  # polls fail, and the network's next answer is a WebSocket
            self.change("reconnecting", "server-unreachable")
            self.at += 2000
            more = {"before": day.chance.randrange(1, 3)} if day.is_true(0.5) else {}
            self.attempt("polling", "failed", 1500, "server-unreachable", **more)
            self.at += day.ms(1000, 9000)
            self.back(day.ms(60, 900))
        else:
            self.back(day.ms(200, 2500), probe=True)
