"""`make before`: CPU per operation against another commit, in interleaved pairs, with a control.

The other commit is a git worktree with an environment of its own. Each pair measures three fresh servers in changing
order: the product, the other commit, and the product once more (the control).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contenders import Environment, run_quietly
from bench.load.loop import TimedOut
from bench.load.wire import WireError
from bench.machine import ROOT, Failed, cores, end_on_term, raise_descriptors
from bench.product import Code, Product, Sizes
from bench.rows import ROWS, SHORT, Rig, Row, Scale

LOCK = Path("deploy", "requirements.lock")
PAIRED = ("posts", "polls", "held", "connects")
METRIC = "cpu_us"
BAR = 1.05  # the least end of the interval may be no higher
RESAMPLES, SEED = 10_000, 1
ORDERS = (("product", "before", "again"), ("before", "again", "product"), ("again", "product", "before"))


class NotLoaded(Failed):
    """The other commit's environment loads code from elsewhere."""


@contextlib.contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """A commit's files in a git worktree, taken away afterwards. Raises Failed where git knows no such commit."""
    tree, git = folder / "before", ["git", "-C", str(ROOT), "worktree"]
    run_quietly([*git, "add", "--quiet", "--detach", str(tree), revision])
    try:
        yield tree
    finally:
        run_quietly([*git, "remove", "--force", str(tree)])


def prepare(tree: Path, folder: Path) -> Code:
    """An environment of the commit's own locks; ours where the locks are the same bytes. Raises NotLoaded."""
    home = Path(sys.executable).parent
    if (tree / LOCK).read_bytes() != (ROOT / LOCK).read_bytes():
        home = folder / "before-environment" / "bin"
        run_quietly([sys.executable, "-m", "venv", str(home.parent)])
        pip = [str(home / "python"), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        run_quietly([*pip, "--require-hashes", "-r", str(tree / LOCK)])
        run_quietly([*pip, "--no-deps", "--no-build-isolation", "-e", str(tree)])
    code = Code(home / "chatapp", str(tree))
    run_quietly([str(home / "python"), "-m", "compileall", "-q", str(tree / "chatapp")])
    check(code, home / "python", tree)
    return code


def check(code: Code, python: Path, tree: Path) -> None:
    """Ask the interpreter itself whose files it takes. Raises NotLoaded where they are not the tree's."""
    ask = (
        "import chatapp, chatapp.store as store\n"
        "try: from chatapp.config import asset_dir as found\n"
        "except ImportError: from chatapp.assets import asset_dir as found\n"
        "print(chatapp.__file__, store.__file__, *map(found, ('templates', 'static', 'migrations')), sep='\\n')"
    )
    command = [str(python), "-P", "-c", ask]
    done = subprocess.run(command, env=code.environment(), cwd=tree.parent, capture_output=True, text=True)
    found = [Path(line).resolve() for line in done.stdout.splitlines()]
    if done.returncode or not found or not all(path.is_relative_to(tree.resolve()) for path in found):
        raise NotLoaded(f"{python} does not load {tree}: {done.stdout}{done.stderr}")


def contender(tree: Path, folder: Path, sizes: Sizes) -> Product:
    """The other commit's product, filled by its own commands."""
    product = Product(folder, sizes, prepare(tree, folder), "before-data")
    product.fill()
    return product


def revision_of(tree: Path) -> str:
    """The commit's short name and subject."""
    command = ["git", "-C", str(tree), "log", "-1", "--format=%h %s"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Ratio:
    """Ours to theirs over pairs: of the medians, and the median of the pairs' ratios with its 95 % interval."""

    medians: float
    pairs: float
    low: float
    high: float

    def words(self) -> str:
        """For the table."""
        return f"{self.medians:.3f} | {self.pairs:.3f} ({self.low:.3f}–{self.high:.3f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare pair by pair; the interval is a bootstrap over pairs (10,000 resamples, percentiles)."""
    ratios, chance = [a / b for a, b in zip(ours, theirs, strict=True)], random.Random(SEED)
    drawn = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    low, high = drawn[round(0.025 * RESAMPLES)], drawn[round(0.975 * RESAMPLES) - 1]
    return Ratio(statistics.median(ours) / statistics.median(theirs), statistics.median(ratios), low, high)


def measure(rig: Rig, rows: Sequence[Row], pairs: int) -> dict[str, dict[str, list[float]]]:
    """µs an operation by row and contender, pair by pair. A pair with a failure is reported and repeated."""
    found: dict[str, dict[str, list[float]]] = {row.key: {name: [] for name in ORDERS[0]} for row in rows}
    for number in range(pairs):
        for row in rows:
            taken = _once_more(rig, row, ORDERS[number % len(ORDERS)])
            for name, value in taken.items():
                found[row.key][name].append(value)
            words = ", ".join(f"{name} {taken[name]:.1f}" for name in ORDERS[0])
            print(f"{number + 1}/{pairs} {row.key:9} µs an operation: {words}", flush=True)
    return found


def _once_more(rig: Rig, row: Row, order: Sequence[str]) -> dict[str, float]:
    for last in (False, True):
        try:
            return {name: row.measure(rig, "before" if name == "before" else "product")[METRIC] for name in order}
        except (Failed, TimedOut, WireError, OSError) as problem:
            if last:
                raise
            print(f"{row.key}: {problem}"[:600], flush=True)
    raise AssertionError("the loop returns or raises")


def table(found: dict[str, dict[str, list[float]]], revision: str) -> tuple[str, bool]:
    """The report, and whether every row's interval reaches the bar."""
    pairs = len(next(iter(found.values()))["product"])
    lines = [
        f"{pairs} interleaved pairs beside {revision}; server CPU an operation. A/A: the product beside itself.",
        "",
        f"| row | here, µs | before, µs | ratio of medians | median of pairs (95 %) | reaches {BAR} "
        "| A/A medians | A/A pairs (95 %) |",
        "| --- " * 8 + "|",
    ]
    are_met = []
    for key, numbers in found.items():
        own, same = ratio(numbers["product"], numbers["before"]), ratio(numbers["again"], numbers["product"])
        are_met.append(own.low <= BAR)
        here, then = (statistics.median(numbers[name]) for name in ("product", "before"))
        met = "yes" if are_met[-1] else "no"
        lines.append(f"| {key} | {here:.1f} | {then:.1f} | {own.words()} | {met} | {same.words()} |")
    return "\n".join(lines) + "\n", all(are_met)


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line; an empty value means the default, as make passes it."""
    parser = argparse.ArgumentParser(prog="python -m bench.before", description=__doc__)
    parser.add_argument("--rev", required=True, help="the other commit")
    parser.add_argument("--pairs", default="20")
    parser.add_argument("--rows", default="", help=f"with commas: {', '.join(PAIRED)}")
    parser.add_argument("--seconds", default="", help="length of a measurement in s (2)")
    parser.add_argument("--out", default="", help="folder of before.md and before.json (test-results/before)")
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that it works, says nothing else")
    return parser.parse_args(list(given))


def main(given: Sequence[str]) -> int:
    """Measure and report; 1 where a row's interval lies above the bar."""
    options = arguments(given)
    end_on_term()
    raise_descriptors()
    scale = SHORT if options.short else Scale(seconds=float(options.seconds or 2))
    keys = [key for key in (options.rows or ",".join(PAIRED)).split(",") if key]
    rows = [row for row in ROWS if row.key in keys]
    if len(rows) < len(keys):
        sys.exit(f"unknown among {', '.join(keys)}; there are {', '.join(row.key for row in ROWS)}")
    where = cores()
    os.sched_setaffinity(0, {where.load})
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))
    people = Sizes(max(scale.people, scale.clients, scale.pollers), max(scale.readers, scale.held))
    try:
        with worktree(options.rev, folder) as tree:
            product, before = Product(folder, people), contender(tree, folder, people)
            product.fill()
            rig = Rig(product, Environment(folder / "environment"), folder, where, scale, before)
            return _report(measure(rig, rows, int(options.pairs or 20)), revision_of(tree), options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _report(found: dict[str, dict[str, list[float]]], revision: str, options: argparse.Namespace) -> int:
    out = Path(options.out or "test-results/before")
    out.mkdir(parents=True, exist_ok=True)
    text, is_met = table(found, revision)
    ratios = {
        key: {
            "before": asdict(ratio(numbers["product"], numbers["before"])),
            "a_a": asdict(ratio(numbers["again"], numbers["product"])),
        }
        for key, numbers in found.items()
    }
    report = {"revision": revision, "bar": BAR, "is_met": is_met, "ratios": ratios, "us": found}
    (out / "before.json").write_text(json.dumps(report, indent=1))
    (out / "before.md").write_text(text)
    print(text)
    return 0 if is_met or options.short else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
