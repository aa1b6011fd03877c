"""A real Prometheus that scrapes the server each second, and its query language."""

import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab.processes import wait_for
from lab.program import Program

CONFIGURATION = """
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: chat
    authorization:
      credentials: SECRET
    static_configs:
      - targets: ["127.0.0.1:TARGET"]
"""


class Prometheus(Program):
    """Scrapes /metrics with a bearer token, as docs/monitoring.md has it."""

    name = "prometheus"

    def __init__(self, target: int, token: str) -> None:
        super().__init__(target)
        self.token = token

    def configuration(self) -> str:
        return CONFIGURATION.replace("SECRET", self.token)

    def arguments(self, file: Path) -> list[str]:
        listen = f"--web.listen-address=127.0.0.1:{self.port}"
        return [f"--config.file={file}", f"--storage.tsdb.path={self.directory}/data", listen]

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The results of an expression now; a mistake in it raises HTTPError."""
        wait_for(self.is_ready, 30, "Prometheus has begun")
        with urllib.request.urlopen(f"{self.url}/api/v1/query?query={quote(expression)}", timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def is_ready(self) -> bool:
        """Whether it answers questions yet: it listens before."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
