"""`python -m failover`: all cells, or those that are named; writes failover.json and failover.md."""

import argparse
import os
import platform
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from failover import proxies, report
from failover.cells import CELLS, Cell
from failover.drained import Drained, drained
from failover.measure import Result, measure
from failover.peer import installed
from failover.stage import OURS, PEERS, Servers, Thinking
from failover.trial import Run, batches

TRIALS = 20
IN_CHROMIUM = 5
DRAINED = 200
MOST_AT_ONCE = 20
OPEN_FILES = 16_384
DRAIN_CELL = "drained"
Sides = dict[str, list[Result]]


class Rig:
    """Everything that lives as long as the run."""

    def __init__(self, options: argparse.Namespace, directory: Path, peer: Path | None) -> None:
        self.options, self.directory, self.peer = options, directory, peer
        self.systems = [OURS, *(PEERS if peer else ())] if not options.systems else options.systems.split(",")
        # With few trials several cells go on at once, each with other people.
        self.lanes = options.lanes or max(1, min(6, MOST_AT_ONCE // (2 * options.trials)))
        ours = sum(system.startswith(OURS) for system in self.systems)
        self.people = max(options.trials, IN_CHROMIUM) * max(1, ours)
        self.lane: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(self.lanes):
            self.lane.put(number * self.people)
        self.awaiting = threading.Lock()  # the server answers only so many questions at once
        self.stack = ExitStack()
        self._shared: dict[bool, Servers] = {}
        self._making = threading.Lock()

    def shared(self, awaiting: bool) -> Servers:
        """The servers that cells have in common: without an assistant, or with one that thinks for ever."""
        with self._making:
            if awaiting not in self._shared:
                self._shared[awaiting] = self.servers(f"shared-{awaiting:d}", awaiting)
            return self._shared[awaiting]

    def servers(self, name: str, awaiting: bool = False) -> Servers:
        """New servers, which end with the run."""
        thinking = Thinking() if awaiting else None
        servers = Servers(self.directory / name, self.peer, self.people * self.lanes, thinking)
        self.stack.callback(servers.stop)
        if thinking:
            self.stack.callback(thinking.stop)
        return servers

    def cell(self, cell: Cell, browser: bool) -> Sides:
        """One cell, in as many batches as it takes."""
        if wanted := proxies.missing(cell.front):
            say(f"{cell.name}: left out, {wanted} is not installed")
            return {}
        person = self.lane.get()
        try:
            if cell.activity == "awaiting":
                with self.awaiting:
                    return self._batches(cell, browser, person)
            return self._batches(cell, browser, person)
        finally:
            self.lane.put(person)

    def _batches(self, cell: Cell, browser: bool, person: int) -> Sides:
        # Two sides are compared in the browser: the peer's best configuration for each bar is seen without one.
        systems = [system for system in self.systems if not browser or system in (OURS, "sio", "sio-first")]
        count = min(IN_CHROMIUM, self.options.trials) if browser else self.options.trials
        sides: Sides = {system: [] for system in systems}
        place = "-chromium" if browser else ""
        servers = self.servers(cell.name + place) if cell.server else self.shared(cell.activity == "awaiting")
        for number, size in enumerate(batches(cell, count, MOST_AT_ONCE)):
            run = Run(cell, systems, servers, person, f"{cell.name}{place}-{number}")
            trials = run.go(size, browser)
            for result in measure(cell, trials, run.stage.proxy.requests, run.bytes_before):
                sides[result.system].append(result)
            if servers.thinking:
                servers.thinking.forget()
        return sides


def say(words: str) -> None:
    """Print progress."""
    print(time.strftime("%H:%M:%S"), words, flush=True)


def chosen(names: str) -> list[Cell]:
    """The cells to do, in the order of the table."""
    wanted = {name for name in names.split(",") if name}
    known = {cell.name for cell in CELLS} | {DRAIN_CELL}
    if wanted - known:
        sys.exit(f"no such cell: {', '.join(sorted(wanted - known))}. There are: {', '.join(sorted(known))}")
    return [cell for cell in CELLS if not wanted or cell.name in wanted]


def run_all(rig: Rig, cells: Sequence[Cell], keep: Callable[[dict[str, Sides]], object]) -> dict[str, Sides]:
    """Every cell, headless first, then in Chromium."""
    jobs = [(cell.name, cell, False) for cell in cells if not cell.browser_only]
    has_browser = shutil.which("chromium") and not rig.options.no_browser
    jobs += [(f"{cell.name} in Chromium", cell, True) for cell in cells if cell.browser and has_browser]
    found: dict[str, Sides] = {}
    with ThreadPoolExecutor(rig.lanes) as pool:
        running = {pool.submit(_one, rig, cell, browser): name for name, cell, browser in jobs}
        for future in as_completed(running):
            if sides := future.result():
                found[running[future]] = sides
                keep({name: found[name] for name, _, _ in jobs if name in found})
    return {name: found[name] for name, _, _ in jobs if name in found}


def _one(rig: Rig, cell: Cell, browser: bool) -> Sides:
    name, began = f"{cell.name} in Chromium" if browser else cell.name, time.monotonic()
    try:
        sides = rig.cell(cell, browser)
    except Exception:  # one cell that breaks must not cost the other forty their results
        traceback.print_exc()
        say(f"{name}: BROKEN")
        BROKEN.append(name)
        return {}
    figures = (f"{system} {report.brief(results)}" for system, results in sides.items())
    say(f"{name} ({time.monotonic() - began:.0f} s): {'; '.join(figures)}")
    return sides


BROKEN: list[str] = []


def about(options: argparse.Namespace, peer: str, lanes: int) -> dict[str, object]:
    """Under which conditions it was measured."""
    version = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "at": time.strftime("%Y-%m-%d %H:%M %Z"),
        "version": version.stdout.strip(),
        "peer": peer,
        "trials a cell": options.trials,
        "cells at once": lanes,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "load at the end": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    """Run; 0 if every cell ended, met or not."""
    parser = argparse.ArgumentParser(prog="failover", description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS, help="trials a cell")
    parser.add_argument("--cells", default="", help="names, with commas between them; all where empty")
    parser.add_argument("--systems", default="", help="ours, sio, sio-recovery, sio-first, ours-ws-only, ours-lossy")
    parser.add_argument("--lanes", type=int, default=0, help="cells at once; 0: by the number of trials")
    parser.add_argument("--drained", type=int, default=DRAINED, help="clients of the drain")
    parser.add_argument("--no-browser", action="store_true", help="leave Chromium out")
    parser.add_argument("--output", type=Path, default=Path("test-results/failover"), help="where the report goes")
    options = parser.parse_args()
    cells = chosen(options.cells)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (OPEN_FILES, max(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    )
    sys.setswitchinterval(0.001)
    drain: Drained | None = None
    with tempfile.TemporaryDirectory(prefix="failover-") as name, ExitStack() as stack:
        wants_peer = not options.systems or "sio" in options.systems
        peer = (None, "not asked for")
        if wants_peer:
            say("installing the peer")
            peer = stack.enter_context(installed(Path(name)))
        rig = Rig(options, Path(name), peer[0])
        windows = {cell.name: cell.window for cell in CELLS}

        def keep(found: dict[str, Sides]) -> str:
            return report.write(options.output, about(options, peer[1], rig.lanes), found, windows, drain)

        with rig.stack:
            found = run_all(rig, cells, keep)
        if not options.cells or DRAIN_CELL in options.cells.split(","):
            say(f"{options.drained} clients and a drain")
            drain = drained(Path(name) / "drained", options.drained)
        print(keep(found))
    say(f"{options.output}/failover.json, failover.md" + (f"; BROKEN: {', '.join(BROKEN)}" if BROKEN else ""))
    return 1 if BROKEN else 0


if __name__ == "__main__":
    sys.exit(main())
