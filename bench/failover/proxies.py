"""Real proxies before the fault proxy: what they do to connections needs no imitation."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

from lab.nginx import Nginx, good_site
from lab.processes import free_port, kill_group, marked_environment, wait_for

HAPROXY = """
global
    maxconn 2000
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    timeout tunnel 10s
listen chat
    bind 127.0.0.1:LISTEN
    server chat 127.0.0.1:TARGET
"""

# It strips upgrades, as squid does unless told otherwise, and keeps answers to polls, which must not be kept.
SQUID = """
http_port 127.0.0.1:LISTEN accel defaultsite=127.0.0.1:LISTEN no-vhost
cache_peer 127.0.0.1 parent TARGET 0 no-query originserver no-digest name=chat
acl all_of_them src all
http_access allow all_of_them
cache_peer_access chat allow all_of_them
never_direct allow all_of_them
acl polls urlpath_regex /changes\\? transport=polling
cache allow polls
cache deny all_of_them
refresh_pattern . 1 100% 1 override-expire override-lastmod ignore-no-store ignore-private ignore-reload
cache_mem 16 MB
pid_filename PREFIX/squid.pid
access_log none
cache_log PREFIX/cache.log
coredump_dir PREFIX
pinger_enable off
shutdown_lifetime 0 seconds
USER
"""
SYSTEM_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"


class Front(Protocol):
    """A proxy that runs."""

    port: int

    def stop(self) -> None:
        """End it."""


class Real:
    """haproxy or squid with a configuration of ours."""

    def __init__(self, program: str, arguments: list[str], text: str, target: int) -> None:
        self.port = free_port()
        self.prefix = Path(tempfile.mkdtemp(prefix=f"chatapp-{program}-"))
        self.prefix.chmod(0o777)  # squid drops its rights
        user = "cache_effective_user proxy" if program == "squid" else ""
        for name, value in (("LISTEN", self.port), ("TARGET", target), ("PREFIX", self.prefix), ("USER", user)):
            text = text.replace(name, str(value))
        (self.prefix / "conf").write_text(text)
        found = shutil.which(program, path=SYSTEM_FOLDERS)
        assert found, f"{program} is not installed"
        self.process = subprocess.Popen(
            [found, *arguments, str(self.prefix / "conf")],
            env=marked_environment(),
            stdout=subprocess.DEVNULL,
            stderr=(self.prefix / "log").open("wb"),
            start_new_session=True,
        )
        wait_for(self._listens, 15, f"{program} listens; {self.prefix / 'log'}")

    def _listens(self) -> bool:
        """Looked up and not dialled: a connection would count as a client."""
        wanted = f"0100007F:{self.port:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()
        return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in lines[1:])

    def stop(self) -> None:
        """End it and remove its files."""
        kill_group(self.process.pid)
        self.process.wait(10)
        shutil.rmtree(self.prefix, ignore_errors=True)


def _nginx(kind: str, target: int, **changes: str) -> Nginx:
    nginx = Nginx(kind, target)
    for pattern, value in changes.items():
        nginx.site = re.sub(rf"{pattern} \w+;", f"{pattern} {value};", nginx.site)
    return nginx.start()


def missing(kind: str) -> str:
    """The program that this proxy needs and that is not there."""
    program = kind.partition("-")[0]
    return "" if not program or shutil.which(program, path=SYSTEM_FOLDERS) else program


def front(kind: str, target: int) -> Front:
    """One of: haproxy-10, nginx-60, nginx-headers, nginx-strip, squid."""
    if kind == "haproxy-10":
        return Real("haproxy", ["-f"], HAPROXY, target)
    if kind == "squid":
        return Real("squid", ["-N", "-f"], SQUID, target)
    if kind == "nginx-60":
        assert "proxy_read_timeout" in good_site()
        return _nginx("good", target, proxy_read_timeout="60s", proxy_send_timeout="60s")
    return _nginx(kind.removeprefix("nginx-"), target)
