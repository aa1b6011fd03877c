"""Servers as processes on a core of their own, and what the kernel says that they cost."""

from __future__ import annotations

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START_S = 30.0
STOP_S = 15.0
DESCRIPTORS = 30_000  # asked for: 10,000 sockets, in a server that holds each twice for a moment
ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A server did not start, or did not do what a measurement needs; the message has the end of its log."""


@dataclass(frozen=True)
class Cores:
    """Where the server runs and where the load: the same one only where the machine has no second."""

    server: int
    load: int


def cores() -> Cores:
    """The first two cores that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[1] if len(allowed) > 1 else allowed[0])


def raise_descriptors() -> int:
    """Allow as many descriptors as the machine lets us; children inherit it. Returns how many."""
    for hard in (DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            break
        except (ValueError, OSError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def end_on_term() -> None:
    """Have TERM end this process as Ctrl+C does, so that no server and no folder stays behind."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def foreign_cpu() -> tuple[float, float]:
    """(seconds that all cores were busy, seconds since boot): two of them say what else ran meanwhile."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(value) for value in fields[:8]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    return busy / os.sysconf("SC_CLK_TCK"), time.monotonic()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process with its children, pinned to one core."""

    def __init__(self, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str], core: int) -> None:
        self.command = list(command)
        self.port = port
        self.log = log
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        marks = {name: value for name, value in os.environ.items() if name.startswith("LAB_")}
        self._output = log.open("ab")
        self._began, self.ready_s = time.monotonic(), 0.0  # s from the start until it answered
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**keep, **marks, "PYTHONUNBUFFERED": "1", **environment},
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        self.pids: tuple[int, ...] = ()

    def wait_ready(self, path: str = "/") -> Server:
        """Wait until this path is answered below 500; without a path, until it listens. Raises Failed."""
        end = time.monotonic() + START_S
        while not self._answers(path):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise Failed(f"not ready: {' '.join(self.command)}\n{self.log_text()}")
            time.sleep(0.02)
        self.ready_s = time.monotonic() - self._began
        self.pids = tuple(tree_of(self.process.pid))
        return self

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            if not path:
                connection.connect()
                return True
            connection.request("GET", path)
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def cpu_s(self) -> float:
        """CPU seconds of the process and its children so far, to the nanosecond."""
        return sum(time.clock_gettime(((~pid) << 3) | 2) for pid in self.pids)

    def memory_kib(self) -> int:
        """What the process and its children have written into memory; kernel socket buffers are not in it.

        Pages of program files are left out: their proportional share falls with every other Python that starts on
        this machine, and rises when it ends, by megabytes.
        """
        return sum(written_kib(pid) for pid in self.pids)

    def descriptors(self) -> tuple[int, int]:
        """Open (sockets, others) of the process and its children."""
        links = [link for pid in self.pids for link in _links(pid)]
        sockets = sum(link.startswith("socket:") for link in links)
        return sockets, len(links) - sockets

    def worker(self) -> int:
        """The process that serves: the one that has used the most CPU."""
        return max(self.pids, key=lambda pid: time.clock_gettime(((~pid) << 3) | 2))

    def log_text(self, last: int = 4000) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-last:]

    def stop(self) -> None:
        """TERM, then KILL for what is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(5)
        self._output.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def tree_of(pid: int) -> list[int]:
    """A process and all that come from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(inner for child in children for inner in tree_of(int(child)))]


def written_kib(pid: int) -> int:
    """What a process has written into memory, in KiB."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    found = [int(line[1]) for line in lines if line[0] in ("Pss_Anon:", "Pss_Shmem:")]
    if len(found) != 2:
        raise Failed(f"the kernel does not say what memory process {pid} has of its own: Linux 5.4 and later do")
    return sum(found)


def _links(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except OSError:
            continue
    return found
