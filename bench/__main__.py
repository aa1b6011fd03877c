"""`python -m bench`: run the comparison and write the report. `make bench` calls it; nothing of it stays running."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import before, contenders, profile, report
from bench.contenders import TITLES, Environment
from bench.load.loop import TimedOut
from bench.load.wire import WireError
from bench.machine import ROOT, Failed, cores, end_on_term, raise_descriptors
from bench.product import Product
from bench.rows import ROWS, SHORT, Rig, Row, Scale

PROFILE = "profile"


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line; an empty value means the default, as make passes it."""
    names = ", ".join([*(row.key for row in ROWS), PROFILE])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", default="", help=f"which, with commas: {names}")
    parser.add_argument("--who", default="", help=f"which contenders, with commas: {', '.join(TITLES)}")
    parser.add_argument("--runs", default="3", help="interleaved runs (3)")
    parser.add_argument("--seconds", default="", help="length of a measurement in s (4)")
    parser.add_argument("--out", default="test-results/bench", help="folder of report.md and report.json")
    parser.add_argument("--keep", default="", help="folder of the peers' environment, kept for the next time")
    parser.add_argument("--before", default="", help="another commit, measured beside the product (a git worktree)")
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that the rig works, says nothing else")
    parser.add_argument("--set", default="", help="other sizes, such as readers=200,idle_s=10 (see rows.Scale)")
    return parser.parse_args(list(given))


def scale_of(options: argparse.Namespace) -> Scale:
    """The sizes that were asked for."""
    scale = SHORT if options.short else Scale()
    changes: dict[str, object] = {"seconds": float(options.seconds)} if options.seconds else {}
    for pair in filter(None, options.set.split(",")):
        name, _, value = pair.partition("=")
        old = getattr(scale, name)
        changes[name] = tuple(int(part) for part in value.split("/")) if isinstance(old, tuple) else type(old)(value)
    return dataclasses.replace(scale, **changes)  # type: ignore[arg-type]


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """The names asked for, in their own order; all of them where none is named."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if not names or name in names]


def run(rig: Rig, rows: Sequence[Row], who: Sequence[str], runs: int, results: report.Results) -> None:
    """Everybody in turn, and all of it again: what changes on the machine meets all alike."""
    for number in range(runs):
        for row in rows:
            for name in contenders.all_of(row.who):
                if name not in who or name in rig.environment.missing:
                    continue
                try:
                    numbers = row.measure(rig, name)
                    results.add(row.key, name, numbers)
                    results.failures += [
                        f"{row.key}, {TITLES[name]}, run {number + 1}: of {key[8:]} sockets {value:,.0f} were reached"
                        for key, value in numbers.items()
                        if key.startswith("reached_")
                    ]
                except (Failed, TimedOut, WireError, OSError, ArithmeticError) as problem:
                    results.failures.append(f"{row.key}, {TITLES[name]}, run {number + 1}: {problem}"[:600])
                gc.collect()
                found = results.numbers.get(row.key, {}).get(name, [{}])[-1]
                value = found.get(report.named(row.metric, rig.scale))
                words = f"{report.shown(value)} {row.unit}" if value is not None else "not measured"
                print(f"{number + 1}/{runs} {row.key:9} {TITLES[name]}: {words}", flush=True)


def main(given: Sequence[str]) -> int:
    """Measure and report; 1 where something could not be measured."""
    options = arguments(given)
    end_on_term()
    scale, names = scale_of(options), [*(row.key for row in ROWS), PROFILE]
    keys, who = chosen(options.rows, names), chosen(options.who, list(TITLES))
    who = [name for name in who if name != "before" or options.before]
    rows = [row for row in ROWS if row.key in keys]
    where, descriptors = cores(), raise_descriptors()
    # In the checkout and not in /tmp, which may be memory: a FULL commit must reach a disk.
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        environment = Environment(Path(options.keep).resolve() if options.keep else folder / "environment")
        if set(who) - {*contenders.OURS, "null"} or PROFILE in keys:
            print("Installing the peers …", flush=True)
            environment.install()
        os.sched_setaffinity(0, {where.load})
        product = Product(folder, scale.sizes())
        if "product" in who:
            print("Filling the product's database …", flush=True)
            product.fill()
        rig = Rig(product, environment, folder, where, scale)
        if "before" in who:
            tree = stack.enter_context(before.worktree(options.before, folder))
            rig.before = before.contender(tree, folder, scale.sizes())
        disk = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip()
        facts = report.facts((where.server, where.load), descriptors, contenders.versions(environment), disk)
        results = report.Results(scale, int(options.runs or 3), facts)
        facts |= {"before": before.revision_of(tree)} if rig.before else {}
        facts |= {f"left out: {TITLES[name]}": why for name, why in environment.missing.items() if name in who}
        run(rig, rows, who, results.runs, results)
        profiles = profile.take(rig) if PROFILE in keys and "product" in who else []
        return write(results, rows, profiles, Path(options.out))


def write(results: report.Results, rows: Sequence[Row], profiles: list[profile.Profile], out: Path) -> int:
    """The report, to files and to the terminal."""
    out.mkdir(parents=True, exist_ok=True)
    profiled = {one.title: dataclasses.asdict(one) for one in profiles}
    (out / "report.json").write_text(json.dumps(report.as_json(results, rows, profiled), indent=1))
    text = report.markdown(results, rows, profile.markdown(profiles) if profiles else "")
    (out / "report.md").write_text(text)
    print(text)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
