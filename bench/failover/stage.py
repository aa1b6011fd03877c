"""The stage of one cell: servers of both sides, one fault proxy before them, clients, and a clock that does things."""

import heapq
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from failover.drivers import Driver
from failover.helper import Helper
from lab.faultproxy import FaultProxy
from lab.processes import free_port
from lab.server import Server

OURS = "ours"
PEERS = ("sio", "sio-recovery", "sio-first")
START_S = 120.0
"""A loaded machine may take long; what is measured begins later."""


class Thinking:
    """A model that thinks for ever: it takes the question and says nothing, so an answer is awaited."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._held.append(self._listener.accept()[0])

    def forget(self) -> None:
        """Hang up on every question asked so far, so that the next ones are taken."""
        held, self._held = self._held, []
        for one in held:
            one.close()

    def stop(self) -> None:
        """Hang up for good."""
        self._listener.close()
        self.forget()


class Servers:
    """One server of ours and, where Node is there, one of the peer's for each configuration."""

    def __init__(self, directory: Path, peer: Path | None, people: int, thinking: Thinking | None = None) -> None:
        self.directory, self.peer = directory, peer
        directory.mkdir(parents=True, exist_ok=True)
        answers: dict[str, object] = {"assistant": "off"}
        if thinking:
            answers = {"assistant": "openai", "openai_base_url": thinking.url, "openai_model": "thinking"}
        self.thinking = thinking
        self.ours = Server(directory, **answers)
        self.ports = {name: free_port() for name in PEERS} if peer else {}
        self.node: Driver | None = None
        self.received: list[Driver] = []  # every process of the peer's that there was: their events
        self.start()
        command = [sys.executable, "-m", "failover.people", str(people)]
        paths = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "tests")]
        environment = self.ours.environment() | {"PYTHONPATH": ":".join(paths)}
        subprocess.run(command, env=environment, check=True, timeout=120)
        self.helper = Helper(self.ours.url)

    @property
    def routes(self) -> dict[str, int]:
        """Which paths are the peer's."""
        return {f"/{place}/{name}/": port for name, port in self.ports.items() for place in ("socket.io", "peer")}

    def start(self) -> None:
        """Start all, and wait until they serve."""
        self._start_peer()
        self.ours.start(START_S)

    def _start_peer(self) -> None:
        if self.peer is None:
            return
        node = self.node = Driver(
            ["node", "server.mjs", json.dumps(self.ports)], self.directory / "peer.log", self.peer
        )
        self.received.append(node)
        if not node.wait(lambda: node.has_said("ready"), START_S):
            raise RuntimeError(f"the peer's server did not start: {(self.directory / 'peer.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """KILL, for all."""
        if self.node:
            self.node.kill()
        self.ours.kill9()

    def restart(self) -> None:
        """TERM, wait for the end, start: ours. The peer's server knows no goodbye and does not wait for ours."""
        if self.node:
            self.node.kill()
            self._start_peer()
        self.ours.stop()
        self.ours.start(START_S)

    def drain(self) -> None:
        """HUP: a new worker takes over while the old one says goodbye. The peer closes its connections."""
        if self.node:
            self.node.order("drain")
        if self.ours.process:
            subprocess.run(["kill", "-HUP", str(self.ours.process.pid)], check=False)

    def post(self, client: str, system: str, body: str) -> bool:
        """A message from the peer's server to one of its clients."""
        return bool(self.node) and self.node.order("post", system=system, client=client, id=body)

    def stop(self) -> None:
        """End all."""
        self.helper.stop()
        if self.node:
            self.node.kill()
        self.ours.kill9()


class Stage:
    """What a cell's faults can reach: the proxy, the servers, the drivers, and `later`."""

    def __init__(self, servers: Servers, name: str, clients: int, settle: float) -> None:
        self.servers, self.clients, self.settle, self.seed = servers, clients, settle, name
        self.proxy = FaultProxy(servers.ours.port, routes=servers.routes, keep_frames=False)
        self.drivers: list[Driver] = []
        self.browsers: list[Driver] = []
        self.directory = Path(tempfile.mkdtemp(prefix=f"failover-{name}-", dir=servers.directory))
        self.t0 = 0.0
        self.is_over = False
        self.on_strike: Callable[[], None] = lambda: None
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._beside: list[threading.Thread] = []

    def at(self, when: float, act: Callable[[], object]) -> None:
        """Do this at a time.time()."""
        heapq.heappush(self._agenda, (when, next(self._count), act))

    def later(self, delay: float, act: Callable[[], object]) -> None:
        """Do this part of the fault in so many seconds, unless the fault is over by then."""
        self.at(time.time() + delay, lambda: None if self.is_over else act())

    def beside(self, act: Callable[[], object]) -> None:
        """Do this without holding up the agenda."""
        thread = threading.Thread(target=act, daemon=True)
        self._beside.append(thread)
        thread.start()

    def run_until(self, end: float) -> None:
        """Do what is on the agenda until then."""
        while self._agenda and self._agenda[0][0] < end:
            when, _, act = heapq.heappop(self._agenda)
            time.sleep(max(0.0, when - time.time()))
            act()
        time.sleep(max(0.0, end - time.time()))

    def forget(self) -> None:
        """Nothing of the agenda is done any more."""
        self._agenda.clear()

    def strike(self, act: Callable[[], object]) -> None:
        """T0: the fault begins, or its end does where the clients slept."""
        act()
        self.t0 = time.time()
        self.on_strike()

    def tell_browsers(self, event: str) -> None:
        """What the browser or its system would say: offline, online, network, freeze, wake."""
        for driver in self.browsers:
            driver.order("network", event=event)

    def stop(self) -> None:
        """Clients first, then the proxy."""
        for driver in self.drivers:
            driver.stop()
        for thread in self._beside:
            thread.join(60)
        self.proxy.stop()
