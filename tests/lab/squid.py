"""A real squid: in front of the server as a reverse proxy, or as a company's forward proxy."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from lab.processes import free_port, kill_group, marked_environment, wait_for

SQUID = "/usr/sbin/squid"

COMMON = """
visible_hostname lab
pid_filename none
cache_log DIR/cache.log
access_log stdio:DIR/access.log
cache deny all
cache_mem 8 MB
coredump_dir DIR
shutdown_lifetime 0 seconds
max_filedescriptors 1024
pinger_enable off
EXTRA
"""

REVERSE = """
http_port 127.0.0.1:LISTEN accel no-vhost defaultsite=127.0.0.1:LISTEN
cache_peer 127.0.0.1 parent TARGET 0 no-query originserver name=chat
http_access allow all
cache_peer_access chat allow all
"""
UPGRADES = "http_upgrade_request_protocols websocket allow all\n"
FORWARD = "http_port 127.0.0.1:LISTEN\nhttp_access allow all\n"

KINDS = {
    "good": REVERSE + UPGRADES,  # as docs/operations.md has it
    "plain": REVERSE,  # squid's own default: upgrades are dropped
    "short": REVERSE + UPGRADES + "read_timeout 4 seconds\n",
    "forward": FORWARD,
    "forward-no-connect": "acl tunnel method CONNECT\nhttp_access deny tunnel\n" + FORWARD,
}


class Squid:
    """`kind` is one of KINDS; `target` the port of the server (a forward proxy goes wherever it is asked to)."""

    def __init__(self, kind: str, target: int) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="chatapp-squid-"))
        extra = ""
        if os.geteuid() == 0:  # squid refuses to run as root
            users = {entry.pw_name for entry in pwd.getpwall()}
            user = next(name for name in ("proxy", "squid", "nobody") if name in users)
            extra = f"cache_effective_user {user}\n"
            shutil.chown(self.directory, user)
        text = KINDS[kind] + COMMON.replace("EXTRA", extra).replace("DIR", str(self.directory))
        self.text = text.replace("LISTEN", str(self.port)).replace("TARGET", str(target))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach the server through it, where it is a reverse proxy."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """host:port of a forward proxy."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Squid":
        """Starts it and waits until it listens."""
        config = self.directory / "squid.conf"
        config.write_text(self.text)
        said = (self.directory / "said").open("wb")
        command = [SQUID, "-N", "-n", f"lab{self.port}", "-f", str(config)]
        self.process = subprocess.Popen(
            command, env=marked_environment(), stdout=said, stderr=said, start_new_session=True
        )
        said.close()
        try:
            wait_for(self._listens, 15, "squid listens")
        except AssertionError as problem:
            logs = [self.directory / name for name in ("said", "cache.log")]
            text = "\n".join(log.read_text() for log in logs if log.exists())
            self.__exit__()
            raise AssertionError(f"{problem}\n{text}") from None
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
