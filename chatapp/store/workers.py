"""Which processes of this host live: each holds a lock on a file of its own, which the kernel lets go of at its end.

No clock is asked: those of two processes differ, and one that is set back would keep the dead alive for hours.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


class Worker:
    """This process, as what it has begun names it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        self.name = uuid4().hex

    def begin(self) -> None:
        """Show that this process lives; called after the fork. What earlier ones left is taken away."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.glob("[!.]*"):
            if not _is_locked(path):
                path.unlink(missing_ok=True)
        unseen = self._folder / f".{self.name}"
        self._file = os.open(unseen, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with suppress(OSError):  # a full disk must not end the server
            os.write(self._file, f"{os.getpid()}\n".encode())  # for people who look
        unseen.rename(self._folder / self.name)  # from its first moment under this name it is locked

    def end(self) -> None:
        """What this process has begun is anybody's from now on."""
        if self._file is not None:
            (self._folder / self.name).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def is_alive(self, name: str) -> bool:
        """Whether the process of that name lives."""
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
