"""Who is compared: how each is started, and what the load generator must know of it."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.load.dialects import PlainSocket, Seat, Site, SocketIOPoll, SocketIOSocket
from bench.machine import ROOT, Failed, Server, free_port

PEERS = ROOT / "bench" / "peers"
PING_S = 25.0
TITLES = {
    "product": "chatapp",
    "before": "chatapp, another commit",
    "socketio": "Flask-SocketIO, bare",
    "socketio-full": "Flask-SocketIO, commits and renders",
    "node": "Node socket.io",
    "picows": "picows, bare",
    "view": "Flask view with a session",
    "null": "null server (ceiling of the load)",
}

OURS = ("product", "before")


def all_of(who: Sequence[str]) -> list[str]:
    """A row's contenders in order, with the other commit's product right behind the product."""
    return [name for one in who for name in (OURS if one == "product" else (one,))]


class Environment:
    """The throw-away environment of the peers. `missing` says which of them cannot run here, and why."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.py_spy = folder / "bin" / "py-spy"
        self.modules = folder / "node" / "node_modules" / "x.js"  # where Node begins to look
        self.missing: dict[str, str] = {}

    def install(self) -> None:
        """Exact versions, checked by hash; what is installed already, from the same locks, stays."""
        lock = PEERS / "requirements.lock"
        stamp = self.folder / "installed.lock"
        if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
            run_quietly([sys.executable, "-m", "venv", "--clear", str(self.folder)])
            run_quietly([str(self.python), "-m", "pip", "-q", "install", "--require-hashes", "-r", str(lock)])
            shutil.copyfile(lock, stamp)
        if shutil.which("node") is None or shutil.which("npm") is None:
            self.missing["node"] = "node or npm is not there"
        elif not self.modules.parent.exists():
            self.modules.parent.parent.mkdir(exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(PEERS / name, self.modules.parent.parent / name)
            run_quietly(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], self.modules.parent.parent)


def run_quietly(command: list[str], folder: Path = ROOT) -> None:
    """Run a command to its end. Raises Failed with what it said."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


@dataclass(frozen=True)
class Peer:
    """A server of bench/peers."""

    command: Callable[[Environment, int], list[str]]
    dialect: type
    path: str = "/"
    ready: str = "/"
    is_signed_in: bool = False


def _gunicorn(module: str) -> Callable[[Environment, int], list[str]]:
    def command(environment: Environment, port: int) -> list[str]:
        options = ["-k", "gevent", "-w", "1", "--worker-connections", "20000", "--keep-alive", "75"]
        options += ["--backlog", "4096", "--no-control-socket", "--chdir", str(PEERS), "-b", f"127.0.0.1:{port}"]
        return [str(environment.python), "-m", "gunicorn", *options, f"{module}:app"]

    return command


SOCKETIO = "/socket.io/?EIO=4&transport=websocket"
KINDS = {
    "socketio": Peer(_gunicorn("flask_socketio_bare"), SocketIOSocket, SOCKETIO),
    "socketio-full": Peer(_gunicorn("flask_socketio_full"), SocketIOSocket, SOCKETIO, is_signed_in=True),
    "view": Peer(_gunicorn("flask_view"), SocketIOSocket, is_signed_in=True),
    "node": Peer(
        lambda environment, port: ["node", str(PEERS / "node_socketio.mjs"), str(port)],
        SocketIOSocket,
        SOCKETIO,
        ready="",
    ),
    "picows": Peer(
        lambda environment, port: [str(environment.python), str(PEERS / "picows_server.py"), str(port)],
        PlainSocket,
        ready="",
    ),
    "null": Peer(
        lambda environment, port: [sys.executable, "-I", str(PEERS / "null_server.py"), str(port)], PlainSocket
    ),
}


def start(name: str, environment: Environment, folder: Path, core: int, **extra: str) -> tuple[Server, Site]:
    """Start a peer. Raises Failed."""
    kind, port = KINDS[name], free_port()
    known = {
        "BENCH_PING_S": f"{PING_S:g}",
        "BENCH_DATABASE": str(folder / f"{name}-{port}.db"),
        "BENCH_TEMPLATES": str(ROOT / "templates"),
        "BENCH_NODE_MODULES": str(environment.modules),
    }
    log = folder / f"{name}-{port}.log"
    server = Server(kind.command(environment, port), port, log, known | extra, core).wait_ready(kind.ready)
    cookie = _sign_in(port) if kind.is_signed_in else ""
    site = Site(
        port=port,
        dialect=kind.dialect,
        held=SocketIOPoll if kind.dialect is SocketIOSocket else None,
        path=kind.path,
        seats=lambda number: Seat(cookie, f"room-{number}"),
        crowd=lambda number: Seat(cookie, "crowd"),
        poll_path=lambda seat: "/changes",
    )
    return server, site


def _sign_in(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/sign-in")
    cookie = connection.getresponse().headers["Set-Cookie"].split(";")[0]
    connection.close()
    return cookie


def versions(environment: Environment) -> str:
    """What was compared, for the report."""
    lock = (PEERS / "requirements.lock").read_text().splitlines()
    wanted = ("flask-socketio", "python-socketio", "gunicorn", "gevent", "picows", "flask=")
    pins = [line.split(" ")[0].replace("==", " ") for line in lock if line.startswith(wanted)]
    return ", ".join(pins) + ", socket.io 4.8.4" + ("" if os.path.exists(environment.modules.parent) else " (not run)")
