"""How polls are paced: held open where the network lets them, shorter where a proxy cuts them, plain where it buffers.

Pure, without a clock; the same rules are in static/js/connection/pacing.js, and `tests/vectors/pacing.json` runs in
both. Milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GAP_MS = 20  # after an answer with news, or a hold that ran its length
EARLY_MS = 1000  # a hold that ends with nothing new sooner than this was not held
LEARNED_FOR_MS = 5 * 60_000  # after that, what was learned about holds is tried again
SHORTEST_HOLD_MS = 4000  # shorter holds cost more than plain polls
SIMILAR = 0.2  # two cuts that differ by no more show a proxy's time-out
SHARE = 0.8  # of that time-out is held
ANSWERING_SHARE = 3  # of the interval, while an answer runs
SLOWER = 1.5  # for each poll that brought nothing, once nobody has done anything for a while
SLOWEST = {"visible": 5, "idle": 10, "hidden": 20}  # times the interval


@dataclass
class Pacing:
    """What is known of polls on this network. `why`: held, cut, buffered, unheld, setting."""

    poll_ms: int
    hold_ms: int  # the longest that the server offers; 0: never
    why: str = "held"
    factor: float = 1.0
    early: int = 0
    cuts: list[float] = field(default_factory=list)
    learned_hold: int = 0
    learned_until: float = 0

    def hold(self, now: float) -> int:
        """How long the next poll asks to be held; 0: not at all."""
        if self.hold_ms == 0:
            self.why = "setting"
            return 0
        if now >= self.learned_until:
            self.why, self.learned_hold = "held", 0
            return self.hold_ms
        return self.learned_hold

    def held(self, took: float, news: bool) -> None:
        """A held poll was answered."""
        if news or took >= EARLY_MS:
            self.early = 0
            if took >= (self.learned_hold or self.hold_ms) - EARLY_MS:
                self.cuts.clear()

    def ended_early(self, now: float) -> None:
        """A held poll was answered at once with nothing new; the second time, holds are given up."""
        self.early += 1
        if self.early >= 2:
            self._learn(now, "unheld", 0)

    def cut(self, now: float, after: float) -> None:
        """A held poll broke. Twice after the same time: shorter holds; otherwise none.

        One that broke later than it was to be held was silent, not cut.
        """
        if after > (self.learned_hold or self.hold_ms):
            return
        self.cuts = [*self.cuts, after][-2:]
        if len(self.cuts) < 2:
            return
        shortest, longest = sorted(self.cuts)
        hold = int(SHARE * shortest)
        is_time_out = longest - shortest <= SIMILAR * longest and hold >= SHORTEST_HOLD_MS
        self._learn(now, "cut", hold if is_time_out else 0)

    def buffered(self, now: float) -> None:
        """Something on the way keeps held answers back."""
        self._learn(now, "buffered", 0)

    def gap(self, now: float, activity: str, news: bool, is_sound: bool = True) -> float:
        """Until the next poll. `is_sound`: what came moved a cursor, or nothing was said."""
        self.factor = 1.0 if news else min(self.factor * SLOWER, SLOWEST["hidden"])
        return GAP_MS if self.hold(now) and is_sound else self.interval(activity)

    def interval(self, activity: str) -> float:
        """Between polls that are not held."""
        if activity == "awaiting":
            return max(500, self.poll_ms / ANSWERING_SHARE)
        slowest = SLOWEST.get(activity)
        if slowest is None:
            self.factor = 1.0
            return self.poll_ms
        return self.poll_ms * min(self.factor, slowest)

    def _learn(self, now: float, why: str, hold: int) -> None:
        self.why, self.learned_hold, self.learned_until = why, hold, now + LEARNED_FOR_MS
        self.early = 0
        self.cuts.clear()
