"""The other side of a driver's pipe: orders from stdin, events to stdout."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()


def say(event: str, at: float | None = None, **fields: object) -> None:
    """One event, with its time in seconds since 1970."""
    line = json.dumps({"at": time.time() if at is None else at, "event": event, **fields})
    with _lock:
        print(line, flush=True)


def orders() -> Iterator[dict[str, Any]]:
    """The orders as they come; ends with `stop` or with the pipe."""
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "stop":
            return
        yield order
