"""A check that the port to serve on is free, with the process that holds it otherwise."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LISTENING = "0A"  # a state in /proc/net/tcp
INHERITED = ("GUNICORN_FD", "LISTEN_FDS")  # the socket comes from the previous gunicorn, or from systemd
LONGEST_COMMAND = 80  # characters shown


class PortUnusable(Exception):
    """The port cannot be listened on; the message has the reason and a remedy."""


def check(host: str, port: int) -> None:
    """Raise PortUnusable if a server could not listen on the port now."""
    if any(name in os.environ for name in INHERITED):
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise PortUnusable(_explain(host, port, error)) from error


def _explain(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"PORT={port} is taken{_holder(port)}. End that, or choose another PORT."
        case errno.EACCES:
            return f"PORT={port}: only root may listen below 1024. Choose another, and put a proxy before it."
        case errno.EADDRNOTAVAIL:
            return f"HOST={host} is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for all of its addresses."
        case _:
            return f"HOST={host}, PORT={port}: {error.strerror}."


def _holder(port: int) -> str:
    """Describe the process that holds the port, if this user may see it."""
    inodes = set(_listening_inodes(port))
    holders = sorted(process for process in _processes() if inodes & set(_socket_inodes(process)))
    if not holders:
        return " by a process of another user" if inodes else ""
    process = holders[0]  # the parent of its workers
    return f" by {_read(process, 'comm') or 'a process'} (pid {process}{_command(process)})"


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets listening on a port; none except on Linux."""
    for table in ("tcp", "tcp6"):
        for line in _read("net", table).splitlines()[1:]:
            local, state, inode = (fields := line.split())[1], fields[3], fields[9]
            if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                yield inode


def _processes() -> Iterator[int]:
    return (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))


def _socket_inodes(process: int) -> Iterator[str]:
    """Yield the inodes of a process's sockets; none if it has ended or is another user's."""
    try:
        for descriptor in os.scandir(f"/proc/{process}/fd"):
            link = os.readlink(descriptor.path)
            if link.startswith("socket:["):
                yield link[len("socket:[") : -1]
    except OSError:
        return


def _command(process: int) -> str:
    command = _read(process, "cmdline").replace("\0", " ").strip()
    return f": {command[:LONGEST_COMMAND]}" if command else ""


def _read(*parts: object) -> str:
    try:
        return Path("/proc", *map(str, parts)).read_text(errors="replace").strip()
    except OSError:
        return ""
