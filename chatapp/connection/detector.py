"""The failure detector of one WebSocket: pure, without a clock; the same rules are in static/js/detector.js.

Any byte is life; echoes are asked for only to have something to wait for. Times are milliseconds of any one clock.
`tests/vectors/detector.json` runs in both languages.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import InitVar, dataclass, field

from chatapp.connection.delays import rtt_estimate

# How often to ask, by what the person does. `hidden` is the heartbeat setting; `proving` is a socket not yet carrying.
ECHO_MS = {"proving": 500, "awaiting": 2000, "active": 5000, "visible": 5000, "offline": 5000, "idle": 15_000}
FIRST_RTO_MS = 1000
VERDICT_MS = 2000  # after a hint (wake, online, resume) the old socket has so long to say something
DEAD_RTOS = 3
# A line that was only late gets that long and a quarter more before it is suspected again; half an hour of echoes that
# are in time halves it. Of the suspicions on a mobile line that stalls, three quarters prove true instead of a quarter.
PATIENCE, MOST_PATIENCE_MS, FADE = 1.25, 3000, 0.998
UPSTREAM_MS = 6000  # bytes come, but echoes are not answered for so long: nothing of ours gets through
BUFFERED_MS = 1000  # the browser's send buffer does not shrink for so long
SLOW_RATIO, SLOW_SAMPLES, SLOW_MS = 3, 3, 1000  # the newest round trips against the usual ones
KILL_MARGIN_MS = 3000  # before the moment at which a proxy is known to cut silent sockets
# What may start a poll beside a socket before the socket is given up; each can be switched off (CHATAPP_PREDICT).
TRIGGERS = ("echo", "send", "buffered", "slow", "idle-kill", "network")


@dataclass
class Pace:
    """Fast and slow averages of the round trip, and for how many samples the fast one has been far above."""

    fast: float = 0.0
    slow: float = 0.0
    above: int = 0

    def take(self, sample: float) -> None:
        """One more round trip."""
        if not self.slow:
            self.fast = self.slow = sample
            return
        self.fast += (sample - self.fast) / 2
        is_above = self.fast > SLOW_RATIO * self.slow and self.fast > SLOW_MS
        self.above = self.above + 1 if is_above else 0
        self.slow += (sample - self.slow) / 16


@dataclass
class Detector:
    """What is known of one socket's life. `tick` says what to do; everything else only tells it what happened."""

    heartbeat_ms: float
    last_in: float
    triggers: Collection[str] = TRIGGERS
    before: InitVar[Detector | None] = None  # of the socket before: what it learned of the line still holds
    kill_gap: float = 0  # a proxy cuts sockets that are silent for so long; 0: none is known
    estimate: dict[str, float] | None = None
    suspicion: str = ""  # the trigger, or empty
    count: int = 0
    last_echo: float = 0
    verdict_at: float | None = None
    pending: list[float] = field(default_factory=list)  # when it was asked since the last byte
    probes: dict[int, float] = field(default_factory=dict)  # echo number → when it was asked
    sends: dict[str, float] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    buffered: float = 0
    buffered_at: float | None = None
    base: float = 0  # since when the suspected socket owes an answer
    patience: float = 0

    def __post_init__(self, before: Detector | None) -> None:
        """Take over what is known of the line."""
        if before:
            self.estimate, self.patience = before.estimate, before.patience

    @property
    def rto(self) -> float:
        """The time-out of one round trip."""
        return self.estimate["rto"] if self.estimate else FIRST_RTO_MS

    @property
    def allowance(self) -> float:
        """How long an answer may take before it is missed."""
        return max(self.rto, self.patience)

    def ask(self, now: float) -> int:
        """An echo goes out; its number."""
        self.count += 1
        self.last_echo = self.probes[self.count] = now
        self.pending.append(now)
        return self.count

    def sent(self, client_id: str, now: float) -> None:
        """A message went out and is to be acknowledged."""
        self.sends[client_id] = now

    def settled(self, client_id: str) -> None:
        """Nothing is awaited for this message any more."""
        self.sends.pop(client_id, None)

    def heard(self, now: float) -> bool:
        """Something came. True where that ends a suspicion."""
        self.last_in, self.verdict_at = now, None
        self.pending.clear()
        recovered = bool(self.suspicion)
        if recovered:
            self.patience = max(self.patience, min(MOST_PATIENCE_MS, PATIENCE * (now - self.base)))
        self.suspicion = ""
        return recovered

    def echoed(self, number: int, now: float, is_clean: bool) -> float | None:
        """An echo was answered; the smoothed round trip, or None where it says nothing (Karn's rule)."""
        asked = self.probes.get(number)
        self.probes = {n: at for n, at in self.probes.items() if n > number}
        if asked is None or not is_clean:
            return None
        self.pace.take(now - asked)
        self.patience *= FADE
        self.estimate = rtt_estimate(self.estimate, now - asked)
        return self.estimate["srtt"]

    def verify(self, now: float) -> None:
        """After sleep or on a hint: what was outstanding says nothing. Ask again (the caller does), judge soon."""
        self.pending.clear()
        self.probes.clear()
        self.sends = dict.fromkeys(self.sends, now)
        self.buffered_at, self.base = None, now
        self.verdict_at = now + VERDICT_MS

    def expect(self, now: float) -> None:
        """A poll brought what this silent socket should have: it has two time-outs left to say anything."""
        if self.verdict_at is None:
            self.verdict_at = now + 2 * self.rto

    def buffer(self, amount: float, now: float) -> None:
        """How many bytes wait to be written."""
        if amount == 0:
            self.buffered_at = None
        elif self.buffered_at is None or amount < self.buffered:
            self.buffered_at = now
        self.buffered = amount

    def interval(self, activity: str) -> float:
        """How long to be silent before asking."""
        usual = ECHO_MS.get(activity, self.heartbeat_ms)
        return max(1000, min(usual, self.kill_gap / 2)) if self.kill_gap else usual

    def due(self, activity: str) -> float:
        """When `tick` has something to do."""
        times = [self._echo_at(activity), *self._verdicts(activity), *self._suspicions(activity).values()]
        return min(times)

    def tick(self, now: float, activity: str) -> list[str]:
        """What is due, in order: `dead`, `suspect` (see `suspicion`), `echo` (call `ask` and send it)."""
        if any(at <= now for at in self._verdicts(activity)):
            return ["dead"]
        reasons = self._suspicions(activity)
        found = [name for name, at in reasons.items() if at <= now]
        if found:
            self.suspicion = found[0]
            oldest = min([*self.pending, *self.sends.values()], default=now)
            self.base = max(self.last_in, oldest)
            self.sends.clear()  # the connection repeats them by POST
            self.pace.above, self.buffered_at = 0, None
            return ["suspect", "echo"]
        return ["echo"] if self._echo_at(activity) <= now else []

    def _echo_at(self, activity: str) -> float:
        if self.suspicion and activity != "hidden":
            return self.last_echo + self.rto
        if activity in ("awaiting", "proving"):
            return self.last_echo + self.interval(activity)
        return max(self.last_echo, self.last_in) + self.interval(activity)

    def _verdicts(self, activity: str) -> list[float]:
        """When it is dead; a hidden page judges nothing, for its timers are throttled."""
        if activity == "hidden":
            return []
        times = [] if self.verdict_at is None else [self.verdict_at]
        if self.suspicion and len(self.pending) >= 2:
            times.append(self.base + self.allowance + (DEAD_RTOS - 1) * self.rto)
        if len(self.probes) >= 2:
            oldest = min(self.probes.values())
            times.append(oldest + max(UPSTREAM_MS, 2 * DEAD_RTOS * self.rto))
        return times

    def _suspicions(self, activity: str) -> dict[str, float]:
        """When which trigger fires."""
        if self.suspicion or activity in ("hidden", "offline"):
            return {}
        times = {}
        if self.pending:
            times["echo"] = self.pending[0] + self.allowance
        if self.sends:
            times["send"] = min(self.sends.values()) + self.allowance
        if self.buffered_at is not None:
            times["buffered"] = self.buffered_at + BUFFERED_MS
        if self.pace.above >= SLOW_SAMPLES:
            times["slow"] = self.last_in
        if self.kill_gap and self.pending:
            times["idle-kill"] = max(self.pending[0] + 500, self.last_in + self.kill_gap - KILL_MARGIN_MS)
        return {name: at for name, at in times.items() if name in self.triggers}
