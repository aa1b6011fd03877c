"""An external program on a free port, with a new directory: started, awaited, ended, cleaned up."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from lab.processes import free_port, kill_group, marked_environment, wait_for

FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"  # a person's PATH often lacks the first
LISTENING = "0A"  # the state in /proc/net/tcp


class Program:
    """A proxy in front of `target`, the port of the server behind it. Subclasses give its name and how it is called."""

    name = ""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix=f"chatapp-{self.name}-"))
        self.process: subprocess.Popen[bytes] | None = None

    def configuration(self) -> str:
        """The text of its file; LISTEN, TARGET and DIR are filled in."""
        raise NotImplementedError

    def arguments(self, file: Path) -> list[str]:
        """What it is called with."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Where clients reach the server through it."""
        return f"http://127.0.0.1:{self.port}"

    def filled(self, text: str) -> str:
        """Put ports and directory in."""
        for name, value in (("LISTEN", self.port), ("TARGET", self.target), ("DIR", self.directory)):
            text = text.replace(name, str(value))
        return text

    def start(self) -> Self:
        """Start it and wait until it listens; AssertionError with what it said if it does not."""
        file = self.directory / "conf"
        file.write_text(self.filled(self.configuration()))
        program = shutil.which(self.name, path=FOLDERS)
        assert program, f"{self.name} is not installed"
        with (self.directory / "said.log").open("wb") as said:
            self.process = subprocess.Popen(
                [program, *self.arguments(file)],
                env=marked_environment(),
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            wait_for(self._listens, 15, f"{self.name} listens")
        except AssertionError as problem:
            logs = "\n".join(log.read_text() for log in self.directory.glob("*.log"))
            self.stop()
            raise AssertionError(f"{problem}\n{logs}") from None
        return self

    def _listens(self) -> bool:
        """Looked up and not dialled: a connection would count as a client."""
        wanted = f"0100007F:{self.port:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return any(line.split()[1] == wanted and line.split()[3] == LISTENING for line in lines)

    def stop(self) -> None:
        """End it and remove its directory."""
        process, self.process = self.process, None
        if process is not None:
            kill_group(process.pid)
            process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
