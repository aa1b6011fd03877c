"""Cheap access log lines for gunicorn: its own collect some 60 values each, a third of a poll's cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import gevent
from gunicorn.glogging import Logger

LONGEST_PATH = 200  # characters; the product's own paths are shorter
FLUSH_AFTER_S = 0.1


class AccessLog(Logger):  # type: ignore[misc]
    """Address, method, path, status, bytes and duration, written in batches. No query: it may name conversations."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._lines: list[str] = []

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Log an answered request. Called by gunicorn."""
        if not self.access_log_enabled:
            return
        path = environ.get("PATH_INFO", "")
        if len(path) > LONGEST_PATH:
            path = f"{path[:LONGEST_PATH]}…"
        if not path.isprintable() or '"' in path:  # else a request could forge lines
            path = path.encode("unicode_escape").decode().replace('"', "%22")
        status, ms = resp.status.split(None, 1)[0], request_time // timedelta(milliseconds=1)
        line = f'{environ.get("REMOTE_ADDR", "-")} "{environ.get("REQUEST_METHOD")} {path}" {status} {resp.sent} {ms}ms'
        self.add_line(line)

    def add_line(self, line: str) -> None:
        """Queue a line; it is written within 0.1 s."""
        if not self._lines:
            gevent.spawn_later(FLUSH_AFTER_S, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write the queued lines."""
        lines, self._lines = self._lines, []
        if lines:
            self.access_log.info("%s", "\n".join(lines))
