"""A wall clock that is set while programs run: their `time.time` and `time_ns` are shifted, monotonic ones are not."""

from pathlib import Path

SHIFT = """
import os, time
_time, _time_ns, _file = time.time, time.time_ns, {file!r}

def _shift():
    with open(_file) as file:
        return int(file.read())

time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + _shift() * 1_000_000_000
"""


class Clock:
    """The clock of what is started with its `directory` on PYTHONPATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / "shift"
        directory.mkdir(parents=True)
        (directory / "sitecustomize.py").write_text(SHIFT.format(file=str(self._file)))
        self.set(0)

    def set(self, seconds: int) -> None:
        """Show a time that is so much later (or, below 0, earlier) than the true one."""
        made = self._file.with_suffix(".new")
        made.write_text(str(seconds))
        made.replace(self._file)
