"""The real server as a subprocess, with a data directory and a port of its own."""

import atexit
import http.client
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

from werkzeug.security import generate_password_hash

from lab.processes import free_port, kill_group, marked_environment, wait_for

ROOT = Path(__file__).resolve().parents[2]
NAME = "Ada Admin"
EMAIL = "ada@example.org"
PASSWORD = "correct horse battery staple"
START_SECONDS = 30.0
STOP_SECONDS = 25.0
# Many tests are one person in a loop. Those of limits set them (test_limits.py).
UNLIMITED: dict[str, object] = {f"rate_limit_{kind}": "off" for kind in ("sends", "connects", "polls", "pages")} | {
    "max_sockets_per_user": "off"
}
DATABASES = ("chat.db", "metrics.db")


class Server:
    """`chatapp serve` on 127.0.0.1; `settings` are CHATAPP_ names without the prefix, in any case.

    seeded: with an admin, whose database is a copy (`furnished`) unless `from_scratch` asks for a real first start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        seeded: bool = True,
        from_scratch: bool = False,
        prefix: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.port = port or free_port()
        self.prefix = tuple(prefix)
        settings = UNLIMITED | {name.lower(): value for name, value in settings.items()}
        self.settings = {f"CHATAPP_{name.upper()}": str(value) for name, value in settings.items()}
        if seeded:
            seed = {"CHATAPP_ADMIN_NAME": NAME, "CHATAPP_ADMIN_EMAIL": EMAIL, "CHATAPP_ADMIN_PASSWORD": PASSWORD}
            self.settings = seed | self.settings
        self.is_furnished = seeded and not from_scratch
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What the process sees: so that a test can run other `chatapp` commands on the same data."""
        own = {"HOST": "127.0.0.1", "PORT": str(self.port), "DATA_DIR": str(self.data), "PYTHONUNBUFFERED": "1"}
        return marked_environment() | own | self.settings

    def command(self) -> list[str]:
        """The console script next to this interpreter, after the prefix."""
        return [*self.prefix, str(chatapp_command()), "serve"]

    def start(self, timeout: float = START_SECONDS) -> "Server":
        """Starts it and waits until /readyz answers 200; AssertionError with the log if it does not."""
        self.data.mkdir(parents=True, exist_ok=True)
        if self.is_furnished and not (self.data / "chat.db").exists():
            furnish(self.data)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=ROOT, env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_for(self._ready_or_ended, timeout, "the server is ready", every=0.03)
        except AssertionError as problem:
            self.kill9()
            raise AssertionError(f"{problem}\n{self.log_text()}") from None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}\n{self.log_text()}")
        return self

    def _ready_or_ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None or self.status("/readyz") == 200

    def status(self, path: str) -> int:
        """The status of a GET without a session; 0 when nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """TERM, and the exit code; after `timeout` s its process group is killed and AssertionError raised."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended {timeout:g} s after TERM\n{self.log_text()}") from None
        finally:
            kill_group(process.pid)
            process.wait(5)

    def kill9(self) -> None:
        """KILL for the whole process group at once: what a power cut does to processes."""
        process, self.process = self.process, None
        if process is not None:
            kill_group(process.pid)
            process.wait(10)

    def restart(self) -> "Server":
        """Starts again on the same port and data, after a TERM if it still runs."""
        self.stop()
        return self.start()

    def log_text(self, last: int = 12_000) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-last:] if self.log.exists() else ""

    def __enter__(self) -> "Server":
        return self if self.process else self.start()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            print(f"--- {self.log}\n{self.log_text()}", file=sys.stderr)
            self.kill9()
        else:
            self.stop()


@cache
def furnished() -> Path:
    """A data directory with migrated databases and the admin, made once: that takes longer than many copies.

    The password's hash is a cheap one, as tests sign in hundreds of times; `from_scratch` has the product's own.
    """
    directory = Path(tempfile.mkdtemp(prefix="lab-furnished-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    command = [
        os.fspath(chatapp_command()),
        "admin",
        "create",
        "--name",
        NAME,
        "--email",
        EMAIL,
        "--password",
        "-",
    ]
    environment = marked_environment() | {"DATA_DIR": str(directory)}
    subprocess.run(
        command, cwd=ROOT, env=environment, input=PASSWORD.encode(), capture_output=True, timeout=60, check=True
    )
    for name in DATABASES:
        database = sqlite3.connect(directory / name)
        if name == "chat.db":
            cheap = generate_password_hash(PASSWORD, "scrypt:1024:8:1")
            database.execute("UPDATE people SET password_hash = ? WHERE email = ?", (cheap, EMAIL))
            database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
    return directory


def furnish(data: Path) -> None:
    """The databases of `furnished`, under an epoch of their own; secrets are made by the start."""
    for name in DATABASES:
        shutil.copyfile(furnished() / name, data / name)
    database = sqlite3.connect(data / "chat.db")
    database.execute("UPDATE instance SET value = ? WHERE name = 'epoch'", (str(uuid.uuid4()),))
    database.commit()
    database.close()


def chatapp_command() -> Path:
    """The console script next to the interpreter of the tests."""
    return Path(sys.executable).parent / "chatapp"


def run_chatapp(
    server: Server, *arguments: str, timeout: float = 60.0, typed: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Another `chatapp` command on the server's data and settings; `typed` is its standard input."""
    command = [os.fspath(chatapp_command()), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=server.environment(),
        capture_output=True,
        input=typed,
        text=True,
        timeout=timeout,
        check=False,
    )
