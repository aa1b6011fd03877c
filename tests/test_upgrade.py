"""New code under a running server: HUP does not load it, USR2 does, and nobody notices (docs/operations.md)."""

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.http import Client
from lab.processes import wait_for
from lab.server import ROOT, Server

PARTS = ("chatapp", "templates", "static", "migrations")


class Upgraded(Server):
    """A server that runs a copy of the code, so that the copy can change."""

    def __init__(self, directory: Path) -> None:
        self.code = directory / "code"
        for name in PARTS:
            shutil.copytree(ROOT / name, self.code / name, ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(directory, prefix=("env", f"PYTHONPATH={self.code}"), assistant="off")

    def write_new_code(self) -> None:
        """Another answer of /healthz."""
        file = self.code / "chatapp" / "views/site.py"
        changed = file.read_text().replace('"ok\\n"', '"ok, new\\n"')
        assert changed != file.read_text()
        file.write_text(changed)

    def health(self) -> str:
        """What /healthz says."""
        return Client(self.url, timeout=20).get("/healthz").text.strip()

    def children(self) -> set[int]:
        """Its processes: workers, and a new master."""
        assert self.process
        pid = self.process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[Upgraded]:
    """A server of its own code."""
    with Upgraded(tmp_path) as server:
        yield server


class Busy(threading.Thread):
    """Posts and asks for pages all the while; everything must be answered."""

    def __init__(self, client: Client, conversation: str) -> None:
        super().__init__(daemon=True)
        self._client, self._conversation = client, conversation
        self._stopped = threading.Event()
        self.sent: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            name = str(uuid.uuid4())
            try:
                posted = self._client.post_message(self._conversation, "all the while", name)
                page = self._client.get("/healthz")
            except OSError as error:
                self.failures.append(f"{name}: {error!r}")
                continue
            if (posted.status, page.status) != (201, 200):
                self.failures.append(f"{name}: {posted.status}, {page.status}")
            self.sent.append(name)

    def end(self) -> None:
        self._stopped.set()
        self.join(30)


@pytest.mark.timeout(180)
def test_usr2_brings_new_code_and_nobody_notices(upgraded: Upgraded) -> None:
    assert upgraded.process
    old = upgraded.process.pid
    client, conversation = Client(upgraded.url, timeout=30).sign_in(), str(uuid.uuid4())
    client.create("before", conversation)
    upgraded.write_new_code()

    workers = upgraded.children()
    os.kill(old, signal.SIGHUP)
    wait_for(lambda: upgraded.children() and not upgraded.children() & workers, 60, "HUP replaced the worker")
    assert upgraded.health() == "ok", "with the code that the master has loaded"

    busy = Busy(client.clone(), conversation)
    busy.start()
    workers = upgraded.children()
    os.kill(old, signal.SIGUSR2)
    wait_for(lambda: upgraded.health() == "ok, new", 60, "new and old serve side by side")
    (new,) = upgraded.children() - workers
    try:
        count = len(busy.sent)
        wait_for(lambda: len(busy.sent) > count + 10, 60, "both take messages")
        upgraded.process.send_signal(signal.SIGTERM)
        assert upgraded.process.wait(30) == 0
        count = len(busy.sent)
        wait_for(lambda: len(busy.sent) > count + 10, 60, "the new one takes them")
        busy.end()
        assert {upgraded.health() for _ in range(5)} == {"ok, new"}
        assert not busy.failures, busy.failures
        there = [article.get("data-client-id") for article in client.history(conversation)]
        assert there[1:] == busy.sent, "each once, in order"
    finally:
        busy.end()
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: _has_ended(new), 30, "the new one ends")


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
