"""How many files and sockets this process may have open, and how they are shared out."""

from __future__ import annotations

import resource

MOST_FILES = 1 << 20  # the kernel's own default limit
RESERVED = 200  # for databases, logs and what is being loaded
MOST_REQUESTS = 10_000  # of a worker at a time; held polls count with the WebSockets
FEWEST = 64  # databases, event loop and listener take some 30
ENOUGH = 4096


def raise_limit() -> None:
    """Have as many as are allowed: the usual soft limit of 1,024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def allowed() -> int:
    """The limit in force."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if files == resource.RLIM_INFINITY else files


def for_requests(files: int) -> int:
    """How many of `files` descriptors requests may take."""
    return min(MOST_REQUESTS, _free(files) // 2)


def for_strangers(files: int) -> int:
    """How many of a worker's requests may be of connections without a session; the rest is kept for known ones."""
    return max(1, for_requests(files) * 2 // 5)


def for_connections(files: int) -> int:
    """How many of `files` descriptors WebSockets and held polls may take."""
    return _free(files) - for_requests(files)


def _free(files: int) -> int:
    return files - min(RESERVED, files // 2)


def advice(files: int) -> str:
    """What to say of a low limit at the start; empty where there are enough."""
    if files >= ENOUGH:
        return ""
    return (
        f"Only {files} files may be open (ulimit -n): room for {for_connections(files)} connections in each worker. "
        "LimitNOFILE=65536 in the systemd unit, or `ulimit -n 65536` before the start, makes more."
    )
