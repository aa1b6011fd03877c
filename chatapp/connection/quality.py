"""How good a connection is: a score from 0 to 100, a level that does not flicker, and what limits it most.

Pure, without a clock; also in static/js/connection/quality.js, and `tests/vectors/quality.json` runs in both.
Milliseconds. Unknown is not good: with too few measurements there is no score and no level.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chatapp.connection.record import Event, Record

TICK_MS = 5000
WINDOW_MS = 60_000
FEWEST_SAMPLES = 3
HALF_LIFE_MS = 300_000  # of a drop
LEVELS = ("lost", "poor", "fair", "good", "excellent")
FLOORS = {"lost": 0, "poor": 1, "fair": 45, "good": 70, "excellent": 85}
DOWN, UP = 3, 5  # so far beyond a level's floor before it changes
TICKS_DOWN, TICKS_UP = 2, 3  # and for so many ticks


@dataclass
class Verdict:
    """What is shown: `score` None and level `unknown` where nothing can be said."""

    score: int | None = None
    level: str = "unknown"
    limit: str | None = None


@dataclass
class Quality:
    """The last minute of a connection, judged every five seconds by `tick`."""

    rtt: float = 0
    jitter: float = 0
    verdict: Verdict = field(default_factory=Verdict)
    samples: list[tuple[float, bool]] = field(default_factory=list)  # when, was it answered
    drops: list[float] = field(default_factory=list)
    smooth: float | None = None
    below: int = 0
    above: int = 0

    def answered(self, now: float, rtt: float, jitter: float) -> None:
        """A round trip: the smoothed one, and its deviation."""
        self.rtt, self.jitter = rtt, jitter
        self.samples.append((now, True))

    def lost(self, now: float) -> None:
        """Something was not answered within its time-out."""
        self.samples.append((now, False))

    def dropped(self, now: float) -> None:
        """A connection broke."""
        self.drops.append(now)

    def tick(self, now: float, is_live: bool, is_hidden: bool, extra: float) -> Verdict:
        """Judge. `extra`: how much later news comes than the round trip says (half the interval of plain polls)."""
        self.samples = [(at, good) for at, good in self.samples if now - at <= WINDOW_MS]
        self.drops = [at for at in self.drops if now - at <= 6 * HALF_LIFE_MS]
        if not is_live and not is_hidden:
            self.smooth, self.verdict = 0.0, Verdict(0, "lost", "drops")
        elif is_hidden or len(self.samples) < FEWEST_SAMPLES:
            self.smooth, self.verdict = None, Verdict()
        else:
            costs = self._costs(now, extra)
            self._smooth(max(0.0, 100 - sum(costs.values())))
            worst = max(costs, key=lambda name: costs[name])
            limit = worst if costs[worst] >= 1 else None
            self.verdict = Verdict(round_half_up(self.smooth or 0), self._level(), limit)
        return self.verdict

    def _costs(self, now: float, extra: float) -> dict[str, float]:
        lost = sum(not good for _, good in self.samples) / len(self.samples)
        breaks = sum(2 ** (-(now - at) / HALF_LIFE_MS) for at in self.drops)
        return {
            "delay": min(50.0, max(0.0, self.rtt + extra - 100) / 20),
            "jitter": min(15.0, self.jitter / 20),
            "loss": min(40.0, 250 * lost),
            "drops": min(40.0, 15 * breaks),
        }

    def _smooth(self, raw: float) -> None:
        """Quickly down, slowly up."""
        if self.smooth is None:
            self.smooth = raw
        elif raw < self.smooth:
            self.smooth += 0.8 * (raw - self.smooth)
        else:
            self.smooth += min(10.0, 0.4 * (raw - self.smooth))

    def _level(self) -> str:
        score, level = self.smooth or 0.0, self.verdict.level
        plain = _level_of(score)
        if level == "unknown":
            return plain
        if LEVELS.index(plain) <= LEVELS.index(level) - 2:
            self.below = self.above = 0
            return plain
        higher = _level_of(score - UP)
        self.below = self.below + 1 if score < FLOORS[level] - DOWN else 0
        self.above = self.above + 1 if LEVELS.index(higher) > LEVELS.index(level) else 0
        if self.below >= TICKS_DOWN:
            self.below, level = 0, plain
        elif self.above >= TICKS_UP:
            self.above, level = 0, higher
        return level


@dataclass
class Watch:
    """Feeds the connection's events to its quality, and says when to judge."""

    quality: Quality = field(default_factory=Quality)
    due: float = 0

    def begin(self, now: float) -> None:
        """The connection starts."""
        self.due = now + TICK_MS

    def note(self, now: float, event: Event, before: Record, after: Record) -> None:
        """Every event of the connection, with the record before and after it."""
        kind = event["type"]
        if kind == "measured":
            self.quality.answered(now, event.get("rtt", 0), event.get("jitter", 0))
        elif kind in ("ws_suspect", "poll_failed"):
            self.quality.lost(now)
        is_cut = kind == "ws_closed" and before["status"] == "connected" and not after["offline"]
        if is_cut and "advice_ms" not in event:
            self.quality.dropped(now)

    def judge(self, now: float, record: Record, extra: float) -> Event:
        """The event that tells the machine."""
        self.due = now + TICK_MS
        is_live = record["status"] not in ("reconnecting", "error")
        found = self.quality.tick(now, is_live, record["activity"] == "hidden", extra)
        return {"type": "quality", "score": found.score, "level": found.level, "limit": found.limit}


def _level_of(score: float) -> str:
    return next(level for level in reversed(LEVELS) if score >= FLOORS[level] or level == "lost")


def round_half_up(value: float) -> int:
    """As JavaScript rounds."""
    return int(value + 0.5)
