"""Liveness of the processes of one host: each holds a lock on its file, which the kernel releases at its end.

No clock is used: one that is set back would keep a dead process alive for hours.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


class Worker:
    """This process; its name is the lease of its runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        self.name = uuid4().hex
        self.dead: list[str] = []  # processes that ended without `stop`, found at the start

    def start(self) -> None:
        """Take the lock, and remove the files of dead processes. Call it after the fork."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.glob("[!.]*"):
            if not _is_locked(path):
                self.dead.append(path.name)
                path.unlink(missing_ok=True)
        unseen = self._folder / f".{self.name}"
        self._file = os.open(unseen, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with suppress(OSError):  # a full disk must not end the server
            os.write(self._file, f"{os.getpid()}\n".encode())  # for an operator
        unseen.rename(self._folder / self.name)  # locked before it is visible under its name

    def stop(self) -> None:
        """Release the lock: other processes may take over this one's runs."""
        if self._file is not None:
            (self._folder / self.name).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def is_alive(self, name: str) -> bool:
        """Return True if the process of that name is running."""
        return name == self.name or (name.isalnum() and _is_locked(self._folder / name))


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
