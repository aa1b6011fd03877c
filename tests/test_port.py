"""A port that cannot be listened on stops the start in one sentence; the address is printed once it is listened on."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.processes import free_port
from lab.server import Server, run_chatapp

from chatapp import port


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A listener of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_who_holds_the_port_is_named(taken: socket.socket, tmp_path: Path) -> None:
    """Exit code 1, name and pid, no other word: nothing was served, migrated or retried."""
    number = taken.getsockname()[1]
    run = run_chatapp(Server(tmp_path, port=number), "serve", timeout=20)
    assert run.returncode == 1
    assert f"PORT={number} is taken by" in run.stderr and f"(pid {os.getpid()}: " in run.stderr
    assert "serves on" not in run.stdout and len(run.stderr.splitlines()) == 1, run.stderr + run.stdout
    assert not (tmp_path / "data" / "chat.db").exists()


def test_another_chatapp_is_named(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """The usual case: it runs already. The line of the first was printed when it listened."""
    first = start_server()
    assert first.process is not None and first.log_text().count("serves on") == 1
    run = run_chatapp(Server(tmp_path, port=first.port), "serve", timeout=20)
    assert run.returncode == 1 and f"(pid {first.process.pid}: " in run.stderr and "chatapp serve" in run.stderr


@pytest.mark.parametrize(("host", "said"), [("192.0.2.1", "HOST=192.0.2.1 is no address of this machine")])
def test_a_host_that_is_not_ours(host: str, said: str) -> None:
    with pytest.raises(port.PortUnusable, match=said):
        port.check(host, free_port())


def test_an_inherited_socket_is_not_looked_at(taken: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """USR2 and systemd hand the listening socket over."""
    monkeypatch.setenv("GUNICORN_FD", "5")
    port.check("127.0.0.1", taken.getsockname()[1])
