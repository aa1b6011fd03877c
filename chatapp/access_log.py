"""Cheap access log lines for gunicorn: its own collect some 60 values each, a third of a poll's cost."""

from datetime import timedelta
from typing import Any

import gevent
from gunicorn.glogging import Logger

from chatapp.logs import JsonFormatter, access_json

LINK = "/link/"
LONGEST_PATH = 200  # characters; the product's own paths are shorter
FLUSH_AFTER_S = 0.1


class AccessLog(Logger):  # type: ignore[misc]
    """Address, method, path, status, bytes and duration, written in batches. No query: it may name conversations. No
    token of a link: it is as good as a password."""

    is_json = False  # set before gunicorn makes one

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._lines: list[str] = []

    def setup(self, cfg: Any) -> None:
        """Add the handlers. Called by gunicorn."""
        super().setup(cfg)
        for handler in self.error_log.handlers if self.is_json else ():
            handler.setFormatter(JsonFormatter())

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Log an answered request. Called by gunicorn."""
        if not self.access_log_enabled:
            return
        path = environ.get("PATH_INFO", "")
        if LINK in path:
            path = f"{path.partition(LINK)[0]}{LINK}…"
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
        if self.is_json:
            lines = list(map(access_json, lines))
        if lines:
            self.access_log.info("%s", "\n".join(lines))
