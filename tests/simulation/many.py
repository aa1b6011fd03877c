"""Many schedules, on several processes."""

import gc
import multiprocessing
import time
from collections import Counter
from dataclasses import dataclass, field

from simulation.schedule import Lab, Outcome

CHUNK = 50


@dataclass
class Summary:
    """What many schedules showed."""

    schedules: int = 0
    events: int = 0
    seconds: float = 0.0
    failures: dict[int, list[str]] = field(default_factory=dict)
    facts: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        self.schedules += 1
        self.events += outcome.events
        self.facts += outcome.facts
        if outcome.problems:
            self.failures[outcome.seed] = outcome.problems

    def text(self) -> str:
        """For people: each failing seed with the command that replays it."""
        lines = [f"{self.schedules} schedules, {self.events} events, {self.seconds:.1f} s,"]
        lines[0] += f" {self.schedules / max(0.001, self.seconds):.0f} a second; {len(self.failures)} violations"
        lines.append(", ".join(f"{name} {count}" for name, count in sorted(self.facts.items())))
        for seed, problems in sorted(self.failures.items())[:20]:
            lines.append(f"seed {seed} (replay: PYTHONPATH=tests python -m simulation {seed})")
            lines += [f"  {problem[:300]}" for problem in problems[:5]]
        return "\n".join(lines)


def run_many(seeds: range, workers: int = 2) -> Summary:
    """Run these seeds in so many processes."""
    summary, began = Summary(), time.monotonic()
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    # Spawned, not forked: the caller may have threads.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for outcomes in pool.imap_unordered(_run_chunk, chunks):
            for outcome in outcomes:
                summary.add(outcome)
    summary.seconds = time.monotonic() - began
    return summary


_lab: Lab | None = None


def _prepare() -> None:
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)  # few objects live long here


def _run_chunk(seeds: range) -> list[Outcome]:
    global _lab
    if _lab is None:
        _prepare()
        _lab = Lab()
    outcomes = [_lab.run(seed) for seed in seeds]
    gc.collect()  # cycles of a whole schedule: without this, 40,000 of them took 3.5 GB
    return outcomes
