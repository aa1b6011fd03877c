"""`python -m simulation SEED` replays one schedule; `--schedules N` runs many on all cores."""

import argparse
import sys

from simulation.many import run_many
from simulation.schedule import Lab


def main() -> int:
    """The command. Exit code 0 only without violations."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="replay this one, with its trace")
    parser.add_argument("--schedules", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quiet", action="store_true", help="no trace")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = Lab().run(options.seed, None if options.quiet else print)
        print(f"seed {outcome.seed}: {outcome.digest}, {outcome.events} events, {dict(outcome.facts)}")
        print("\n".join(outcome.problems) or "all promises held")
        return bool(outcome.problems)
    summary = run_many(range(options.first, options.first + options.schedules), options.workers)
    print(summary.text())
    return bool(summary.failures)


if __name__ == "__main__":
    sys.exit(main())
