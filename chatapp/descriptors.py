"""The limit of open file descriptors, and its shares for requests and connections."""

import resource

MOST_FILES = 1 << 20  # Linux's default for fs.nr_open
RESERVED = 200  # for databases, logs and modules
MOST_REQUESTS = 10_000  # concurrent, in a worker; without long polls
FEWEST = 64  # databases, event loop and listener take some 30
ENOUGH = 4096


def raise_limit() -> None:
    """Raise the soft limit to the hard one: the usual 1,024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def allowed() -> int:
    """Return the soft limit, at most MOST_FILES if unlimited."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if files == resource.RLIM_INFINITY else files


def for_requests(files: int) -> int:
    """Return the share of requests in `files` descriptors."""
    return min(MOST_REQUESTS, _free(files) // 2)


def for_strangers(files: int) -> int:
    """Return the share of connections without a session in those of `for_requests`."""
    return max(1, for_requests(files) * 2 // 5)


def for_connections(files: int) -> int:
    """Return the share of WebSockets and long polls in `files` descriptors."""
    return _free(files) - for_requests(files)


def _free(files: int) -> int:
    return files - min(RESERVED, files // 2)


def advice(files: int) -> str:
    """Return a warning about a low limit, or an empty string."""
    if files >= ENOUGH:
        return ""
    return (
        f"Only {files} files may be open (ulimit -n): room for {for_connections(files)} connections in each worker. "
        "LimitNOFILE=65536 in the systemd unit, or `ulimit -n 65536` before the start, makes more."
    )
