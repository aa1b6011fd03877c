"""A real HAProxy in front of the server, in the configurations that people meet."""

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from lab.processes import free_port, kill_group, marked_environment, wait_for

HAPROXY = "/usr/sbin/haproxy"

MAIN = """
defaults
    mode http
    timeout connect 5s
    timeout client  CLIENT
    timeout server  SERVER
    timeout tunnel  TUNNEL
frontend web
    bind 127.0.0.1:LISTEN
    RULES
    option forwardfor
    default_backend chat
backend chat
    server chat1 127.0.0.1:TARGET
"""

# kind → timeouts of client, server and tunnel, and rules of the frontend
KINDS = {
    "good": ("75s", "75s", "1h", ""),  # as docs/operations.md has it
    "tunnel": ("75s", "75s", "4s", ""),  # cuts silent WebSockets
    "server": ("75s", "3s", "1h", ""),  # cuts held polls
    "deny": ("75s", "75s", "1h", "http-request deny if { hdr(Upgrade) -m found }"),  # no upgrades here
    "strip": ("75s", "75s", "1h", "http-request del-header Upgrade"),
}


class HAProxy:
    """`kind` is one of KINDS; `target` the port of the server behind it."""

    def __init__(self, kind: str, target: int) -> None:
        client, server, tunnel, rules = KINDS[kind]
        self.port = free_port()
        text = MAIN.replace("CLIENT", client).replace("SERVER", server).replace("TUNNEL", tunnel)
        self.text = text.replace("RULES", rules).replace("LISTEN", str(self.port)).replace("TARGET", str(target))
        self.directory = Path(tempfile.mkdtemp(prefix="chatapp-haproxy-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach the server through it."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HAProxy":
        """Starts it and waits until it listens."""
        config = self.directory / "haproxy.cfg"
        config.write_text(self.text)
        log = (self.directory / "log").open("wb")
        command = [HAPROXY, "-db", "-f", str(config)]
        self.process = subprocess.Popen(
            command, env=marked_environment(), stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        try:
            wait_for(self._listens, 10, "haproxy listens")
        except AssertionError as problem:
            said = (self.directory / "log").read_text()
            self.__exit__()
            raise AssertionError(f"{problem}\n{said}") from None
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __exit__(self, *_: object) -> None:
        process, self.process = self.process, None
        if process is not None:
            kill_group(process.pid)
            process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)
