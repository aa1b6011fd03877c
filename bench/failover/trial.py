"""One cell from beginning to end: clients of every system side by side, the same fault for all, the same messages."""

import itertools
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from failover.cells import Cell
from failover.drivers import Driver, Happened
from failover.faults import FAULTS
from failover.people import email
from failover.proxies import front
from failover.stage import OURS, Servers, Stage
from lab.faultproxy import Seen

UP_S = 25.0
SETTLE_S = {"chat": 8.0, "outstanding": 8.0, "awaiting": 12.0, "idle": 14.0, "quiet": 14.0}
QUIET_BEFORE_S = (6.0, 11.0)
QUIET_AFTER_S = 20.0
FIRST_MESSAGE_S = 6.0
"""If the fault comes first, messages begin this time after the start: none is lost for being too early."""
GRACE_S = 15.0
LAST_WORDS_S = 4.0
PATIENCE_S = 60.0


@dataclass(eq=False)
class Trial:
    """One client through one cell, and everything that was seen of it. Times are time.time()."""

    system: str
    client: str
    email: str = ""
    conversation: str = ""
    t0: float = 0.0
    healed: float = 0.0
    end: float = 0.0
    posted: dict[str, float] = field(default_factory=dict)  # by the other person: id → when
    sent: dict[str, float] = field(default_factory=dict)  # by the client itself
    received: list[str] = field(default_factory=list)  # of those, what the server has, in its order
    events: list[Happened] = field(default_factory=list)
    requests: list[Seen] = field(default_factory=list)
    numbers: tuple[Iterator[int], Iterator[int]] = field(default_factory=lambda: (itertools.count(), itertools.count()))

    def of(self, event: str) -> list[Happened]:
        """Its events of one kind, in order."""
        return sorted((one for one in self.events if one["event"] == event), key=lambda one: one["at"])

    def states(self) -> list[Happened]:
        """What it said of its connection until the end of the trial; stopping it says more."""
        return [one for one in self.of("state") if one["at"] <= self.end]


def batches(cell: Cell, count: int, most: int) -> list[int]:
    """How many trials at once, and then again, until all are done."""
    size = min(most, cell.most)
    return [min(size, count - start) for start in range(0, count, size)]


class Run:
    """One batch of trials of one cell."""

    def __init__(self, cell: Cell, systems: Iterable[str], servers: Servers, first_person: int, name: str) -> None:
        self.cell, self.systems, self.servers, self.name = cell, list(systems), servers, name
        self.first_person = first_person
        self.chance = random.Random(name)
        self.trials: list[Trial] = []
        self.bytes_before: dict[int, int] = {}

    def go(self, count: int, browser: bool = False) -> list[Trial]:
        """Do it; the trials with everything that was seen."""
        people = itertools.count(self.first_person)
        for system in self.systems:
            for number in range(count):
                trial = Trial(system, f"{self.name}.{system}.{number}")
                trial.email = email(next(people)) if system.startswith(OURS) else ""
                self.trials.append(trial)
        clients = len(self.trials)
        self.stage = Stage(self.servers, self.name, clients, SETTLE_S[self.cell.activity])
        with ExitStack() as stack:
            self.stage.proxy.start()
            stack.callback(self.stage.stop)
            url = self.stage.proxy.url
            if self.cell.front:
                proxy = front(self.cell.front, self.stage.proxy.port)
                stack.callback(proxy.stop)
                url = f"http://127.0.0.1:{proxy.port}"
            self._start_drivers(browser)
            self._run(url, browser)
        self._gather()
        return self.trials

    # --- before the fault

    def _start_drivers(self, browser: bool) -> None:
        log = self.stage.directory / "drivers.log"
        python = [sys.executable, "-m", "failover.chromium" if browser else "failover.ours"]
        self._by_system: dict[str, Driver] = {}
        shared: dict[str, Driver] = {}
        for system in self.systems:
            kind = "browser" if browser else "python" if system.startswith(OURS) else "node"
            if kind not in shared:
                command, directory = (python, None) if kind != "node" else (["node", "clients.mjs"], self._peer())
                shared[kind] = Driver(command, log, directory)
                self.stage.drivers.append(shared[kind])
            self._by_system[system] = shared[kind]
        self.stage.browsers = [shared["browser"]] if browser else []

    def _peer(self) -> Path:
        peer = self.servers.peer
        assert peer is not None
        return peer

    def _start_clients(self, url: str) -> None:
        helper = self.servers.helper
        ours = [trial for trial in self.trials if trial.email]
        helper.know(trial.email for trial in ours)
        for trial in ours:
            trial.conversation = helper.create(trial.email)
        now = time.time()
        for number, trial in enumerate(self.trials):
            names = {"email": trial.email, "conversation": trial.conversation}
            order = {"client": trial.client, "system": trial.system, "url": url} | names
            when = now + self.cell.spread * (number + self.chance.random()) / len(self.trials)
            self.stage.at(when, lambda order=order, t=trial: self._by_system[t.system].order("start", **order))
        self.stage.run_until(now + self.cell.spread)

    def _all_up(self) -> bool:
        up = {e["client"] for d in self.stage.drivers for e in list(d.events) if e["event"] in ("state", "started")}
        return len(up & {trial.client for trial in self.trials}) == len(self.trials)

    # --- the fault

    def _run(self, url: str, browser: bool) -> None:
        cell, stage = self.cell, self.stage
        fault = FAULTS[cell.fault]
        undo = fault(stage, cell.argument) if cell.place == "start" else None
        if cell.place == "start":
            stage.t0 = time.time()
        self._start_clients(url)
        stage.drivers[0].wait(self._all_up, UP_S)
        began = time.time()
        strikes_at = began if cell.place == "start" else began + stage.settle
        end = strikes_at + cell.window
        self._plan_messages(began + (FIRST_MESSAGE_S if cell.place == "start" else 0.0), strikes_at, end)
        if cell.activity != "quiet" and cell.every <= 1:
            stage.on_strike = self._post_to_all
        heals_at = end if cell.place == "start" else strikes_at
        if cell.lasts:
            heals_at = strikes_at + cell.lasts
        if cell.place == "session":
            stage.run_until(strikes_at)
            self.bytes_before = {id(one): one.bytes_up + one.bytes_down for one in list(stage.proxy.requests)}
            stage.strike(lambda: stage.at(heals_at if cell.lasts else end, self._healer(fault(stage, cell.argument))))
        elif undo:
            stage.at(heals_at, self._healer(undo))
        stage.run_until(end)
        stage.forget()
        stage.proxy.heal()
        for trial in self.trials:
            trial.t0, trial.healed, trial.end = stage.t0, heals_at, end
        self._wait_for_the_rest(browser)

    def _healer(self, undo: Callable[[], None]) -> Callable[[], None]:
        def heal() -> None:
            self.stage.is_over = True
            undo()

        return heal

    def _plan_messages(self, start: float, t0: float, end: float) -> None:
        for trial in self.trials:
            for when in self._times(start, t0, end, down=True):
                self.stage.at(when, lambda t=trial: self._post(t))
            for when in self._times(start, t0, end, down=False):
                self.stage.at(when, lambda t=trial: self._send(t))

    def _times(self, start: float, t0: float, end: float, *, down: bool) -> list[float]:
        """When one client gets or says something."""
        activity, every, chance = self.cell.activity, self.cell.every, self.chance
        if activity == "quiet":
            return []
        first = start + every * chance.random()
        regular = [first + every * number for number in range(int((end - first - LAST_WORDS_S) / every) + 1)]
        if activity == "outstanding":
            return regular if down else [*regular, t0 + chance.uniform(0.01, 0.1)]
        if activity == "chat":
            return regular
        silent_from = t0 - chance.uniform(*QUIET_BEFORE_S)
        after = t0 if down else t0 + QUIET_AFTER_S
        times = [when for when in regular if when < silent_from or when > after]
        is_question = activity == "awaiting" and not down
        return [*times, t0 - chance.uniform(1, 4)] if is_question else times

    def _post_to_all(self) -> None:
        for trial in self.trials:
            self._post(trial)

    def _post(self, trial: Trial) -> None:
        body = f"d-{next(trial.numbers[0])}"
        if not trial.email:
            if self.servers.post(trial.client, trial.system, body):
                trial.posted[body] = time.time()
        else:
            note = trial.posted.__setitem__
            self.servers.helper.post(trial.email, trial.conversation, body, lambda at: note(body, at))

    def _send(self, trial: Trial) -> None:
        body = f"u-{next(trial.numbers[1])}"
        self._by_system[trial.system].order("send", client=trial.client, id=body)

    # --- after it

    def _wait_for_the_rest(self, browser: bool) -> None:
        for driver in self.stage.drivers:  # a loaded machine obeys late: what was ordered is said first
            if driver.order("ping", client=""):
                driver.wait(lambda d=driver: d.has_said("pong"), PATIENCE_S)
        time.sleep(LAST_WORDS_S)
        until = time.time() + GRACE_S - LAST_WORDS_S
        while time.time() < until:
            self._take_events()
            if not any(self._unsent(t) or (not browser and self._unseen(t)) for t in self.trials):
                break
            time.sleep(1)

    def _unseen(self, trial: Trial) -> bool:
        return bool(set(trial.posted) - {event["id"] for event in trial.of("got")})

    def _unsent(self, trial: Trial) -> bool:
        self._take_received(trial)
        return bool(set(trial.sent) - set(trial.received))

    def _gather(self) -> None:
        self._take_events()
        for trial in self.trials:
            self._take_received(trial)

    def _take_events(self) -> None:
        by_client: dict[str, list[Happened]] = {}
        for driver in self.stage.drivers:
            for event in list(driver.events):
                by_client.setdefault(str(event.get("client")), []).append(event)
        for trial in self.trials:
            trial.events = by_client.get(trial.client, [])
            trial.sent = {event["id"]: event["at"] for event in trial.of("sent")}

    def _take_received(self, trial: Trial) -> None:
        if trial.email:
            history = self.servers.helper.history(trial.email, trial.conversation)
            trial.received = [body for body in history if body.startswith("u-")]
        else:
            said = [event for node in self.servers.received for event in list(node.events)]
            trial.received = [e["id"] for e in said if e["event"] == "received" and e["client"] == trial.client]
