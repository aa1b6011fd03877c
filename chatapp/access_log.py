"""Gunicorn's log, with access lines that cost little: its own collects some 60 values for each, a third of a poll."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import gevent
from gunicorn.glogging import Logger

LONGEST_PATH = 200  # characters of a path in a line; the product's own are shorter
WRITE_AFTER_S = 0.1  # lines that come together are written together


class AccessLog(Logger):  # type: ignore[misc]
    """Address, method, path, status, bytes and duration. No query: it may say who reads what."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._lines: list[str] = []

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Gunicorn calls it after every request."""
        if not self.access_log_enabled:
            return
        path = environ.get("PATH_INFO", "")
        if len(path) > LONGEST_PATH:
            path = f"{path[:LONGEST_PATH]}…"
        if not path.isprintable() or '"' in path:  # else a request could write lines of its own
            path = path.encode("unicode_escape").decode().replace('"', "%22")
        status, ms = resp.status.split(None, 1)[0], request_time // timedelta(milliseconds=1)
        line = f'{environ.get("REMOTE_ADDR", "-")} "{environ.get("REQUEST_METHOD")} {path}" {status} {resp.sent} {ms}ms'
        self.note(line)

    def note(self, line: str) -> None:
        """Have a line written soon."""
        if not self._lines:
            gevent.spawn_later(WRITE_AFTER_S, self.write_out)
        self._lines.append(line)

    def write_out(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        if lines:
            self.access_log.info("%s", "\n".join(lines))
