"""What the lab starts is marked in its environment, so that a test which leaves something running is found out."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "LAB_OF_CHATAPP"
_VALUE = f"{MARK}={os.getpid()}"


def marked_environment() -> dict[str, str]:
    """The environment for a process of the lab: this one's, without the product's settings, with the mark."""
    private = ("CHATAPP_",)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    for name in ("PORT", "HOST", "DATA_DIR", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        inherited.pop(name, None)
    return inherited | {MARK: str(os.getpid())}


def left_running() -> list[int]:
    """Process ids that carry this test run's mark and still run (zombies do not count)."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_ours(entry)]


def _is_ours(entry: Path) -> bool:
    try:
        environment = (entry / "environ").read_bytes().split(b"\0")
        state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:  # it ended while we looked, or belongs to somebody else
        return False
    return _VALUE.encode() in environment and state != "Z"


def describe(pid: int) -> str:
    """The command line of a process, for a message."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(ended)"


def written_bytes(group: int) -> int:
    """What the processes of a group have given to write() so far: files, not sockets."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == group:
                counts = dict(line.split(": ") for line in (entry / "io").read_text().splitlines())
                found += int(counts["wchar"])
        except OSError:  # it ended while we looked
            continue
    return found


def kill_group(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signals the process group that was started with `pid` as its leader; gone already is fine."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses; none that the system gives to outgoing connections meanwhile."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(condition: Callable[[], object], timeout: float, what: str, every: float = 0.05) -> object:
    """Waits until `condition()` is true and returns its value; AssertionError with `what` after `timeout` s."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(every)
