"""Processes that hold clients: orders go in as JSON lines, what happened comes out, with time.time() of the event."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.processes import kill_group, marked_environment

BENCH = Path(__file__).resolve().parents[1]
Happened = dict[str, Any]


class Driver:
    """One such process, and everything that it said so far in `events`."""

    def __init__(self, command: Sequence[str], log: Path, directory: Path | None = None) -> None:
        self.events: list[Happened] = []
        paths = os.pathsep.join((str(BENCH), str(BENCH.parent / "tests")))
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=directory,
            env=marked_environment() | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self._asleep: list[str] | None = None  # orders kept while it is stopped: its pipe would fill, and we would hang
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def order(self, verb: str, **fields: object) -> bool:
        """Tell it to do something; False where it has ended."""
        with self._lock:
            try:
                self._say([json.dumps({"do": verb, **fields}) + "\n"])
            except (OSError, ValueError):
                return False
        return True

    def _say(self, lines: list[str]) -> None:
        assert self.process.stdin is not None
        if self._asleep is not None:
            self._asleep += lines
            return
        self.process.stdin.writelines(lines)
        self.process.stdin.flush()

    def wait(self, condition: Callable[[], object], timeout: float) -> bool:
        """Whether this became true in time."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end or self.process.poll() is not None:
                return bool(condition())
            time.sleep(0.05)
        return True

    def has_said(self, event: str, at_least: int = 1) -> bool:
        """Whether an event came so often."""
        return sum(one["event"] == event for one in list(self.events)) >= at_least

    def signal(self, number: signal.Signals) -> None:
        """Stop it, let it go on, kill it."""
        with self._lock:
            if number == signal.SIGSTOP:
                self._asleep = []
            kill_group(self.process.pid, number)
            if number == signal.SIGCONT and self._asleep is not None:
                said, self._asleep = self._asleep, None
                self._say(said)

    def stop(self, timeout: float = 15.0) -> None:
        """Ask it to end, and see to it."""
        if self.order("stop"):
            self.wait(lambda: self.has_said("stopped"), timeout)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        kill_group(self.process.pid)
        self.process.wait(10)
        self._reader.join(5)
        for pipe in (self.process.stdin, self.process.stdout, self._log):
            with suppress(OSError):  # what was not written yet goes nowhere
                pipe.close()  # type: ignore[union-attr]
