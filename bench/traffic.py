"""The network traffic of one open page, by transport and activity: the traffic sheet's figures.

A real Chromium for each line, real servers, and between them a relay that counts bytes and requests. No TLS: with it,
add some 2 % and its handshakes. Run: `make traffic` (SECONDS=n; 180). Prints the sheet as Markdown, or JSON.
"""

import argparse
import json
import re
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.browser import launched, new_page, say, sign_in, wait_state
from lab.processes import free_port
from lab.server import PASSWORD, Server, run_chatapp
from playwright.sync_api import Page

START_S = 120.0
SETTLE_S = 12.0  # from the page's start to the first count
ASK_EVERY_S = 60.0  # what "active" means: a question a minute, answered in 1,100 characters
QUESTION = "WebSocket behind nginx"
HOUR_S = 3600.0
HEAD = re.compile(rb"(GET|POST) (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)

# The page sees the event of being hidden; Chromium does not slow its timers, as it does with truly hidden pages.
HIDDEN = """
Object.defineProperty(document, "hidden", { get: () => window.isHidden === true })
Object.defineProperty(document, "visibilityState", { get: () => window.isHidden ? "hidden" : "visible" })
"""
HIDE = "window.isHidden = true; document.dispatchEvent(new Event('visibilitychange'))"


@dataclass
class Count:
    """What went by, both ways."""

    up: int = 0
    down: int = 0
    requests: int = 0
    connections: int = 0
    longest_s: float = 0.0
    methods: dict[str, int] = field(default_factory=dict)
    headers: set[str] = field(default_factory=set)


class Relay:
    """Passes everything on to a port and counts it from `reset` on."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.count = Count()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> Count:
        """Start over; returns what was counted."""
        counted, self.count = self.count, Count()
        return counted

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self.count.connections += 1
            asked: list[float] = []
            for source, sink, is_up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, sink, is_up, asked), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_up: bool, asked: list[float]) -> None:
        try:
            while data := source.recv(65536):
                if is_up:
                    self._note_request(data, asked)
                else:
                    self._note_answer(data, asked)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _note_request(self, data: bytes, asked: list[float]) -> None:
        count = self.count
        count.up += len(data)
        for method, path, lines in HEAD.findall(data):
            asked.append(time.monotonic())
            name = f"{method.decode()} {re.sub(r'[0-9a-f-]{36}', '<id>', path.decode().split('?')[0])}"
            count.requests += 1
            count.methods[name] = count.methods.get(name, 0) + 1
            count.headers |= {line.split(b":")[0].decode().lower() for line in lines.split(b"\r\n")}

    def _note_answer(self, data: bytes, asked: list[float]) -> None:
        self.count.down += len(data)
        if asked and data.startswith(b"HTTP/1."):
            self.count.longest_s = max(self.count.longest_s, time.monotonic() - asked.pop(0))


@dataclass
class Line:
    """One page under observation."""

    transport: str
    mode: str
    page: Page
    relay: Relay


SERVERS: dict[str, dict[str, Any]] = {
    "WebSocket": {},
    "held polls": {"transports": "polling"},
    "plain polls": {"transports": "polling", "poll_longest_hold": 0},
}
STATES = {"WebSocket": "connected", "held polls": "polling", "plain polls": "polling"}
MODES = ("idle", "hidden", "active")


def measure(seconds: float) -> list[dict[str, Any]]:
    """One row for each transport and mode, scaled to an hour."""
    with ExitStack() as stack:
        servers = {}
        for transport, settings in SERVERS.items():
            server = Server(Path(tempfile.mkdtemp(prefix="chatapp-traffic-")), **settings)
            servers[transport] = stack.enter_context(server.start(START_S))
        browser = stack.enter_context(launched())
        lines = [_open(browser, server, name, mode) for name, server in servers.items() for mode in MODES]
        time.sleep(SETTLE_S)
        for line in lines:
            line.relay.reset()
        _live(lines, seconds)
        rows = [_row(line, line.relay.reset(), seconds) for line in lines]
        for line in lines:
            line.relay.close()
            line.page.context.close()
        return rows


def _open(browser: Any, server: Server, transport: str, mode: str) -> Line:
    relay = Relay(server.port)
    page = new_page(browser)
    page.add_init_script(HIDDEN)
    email = f"{mode}@example.org"  # an account for each page: nobody sees another one's conversations
    made = run_chatapp(server, "admin", "create", "--name", mode, "--email", email, "--password", PASSWORD)
    assert made.returncode == 0, made.stderr
    sign_in(page, f"http://127.0.0.1:{relay.port}", email, PASSWORD)
    wait_state(page, STATES[transport])
    say(page, QUESTION)  # the conversation exists, as it does for people
    page.wait_for_timeout(3000)
    if mode == "hidden":
        page.evaluate(HIDE)
    return Line(transport, mode, page, relay)


def _live(lines: list[Line], seconds: float) -> None:
    """Let time pass; the active ones ask."""
    started = time.monotonic()
    active = [line for line in lines if line.mode == "active"]
    for number in range(int(seconds // ASK_EVERY_S)):
        for line in active:
            say(line.page, f"{QUESTION} {number}")
        while time.monotonic() - started < (number + 1) * ASK_EVERY_S:
            active[0].page.wait_for_timeout(500)
    time.sleep(max(0.0, seconds - (time.monotonic() - started)))


def _row(line: Line, count: Count, seconds: float) -> dict[str, Any]:
    scale = HOUR_S / seconds
    return {
        "transport": line.transport,
        "mode": line.mode,
        "requests_an_hour": round(count.requests * scale),
        "kB_up_an_hour": round(count.up * scale / 1000),
        "kB_down_an_hour": round(count.down * scale / 1000),
        "longest_request_s": round(count.longest_s, 1),
        "methods": dict(count.methods),
        "headers": sorted(count.headers),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = measure(given.seconds)
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    print(
        "| transport | page | requests an hour | kB an hour, up + down | longest request |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for row in rows:
        size = f"{row['kB_up_an_hour']} + {row['kB_down_an_hour']}"
        cells = [row["transport"], row["mode"], row["requests_an_hour"], size, f"{row['longest_request_s']} s"]
        print("| " + " | ".join(str(cell) for cell in cells) + " |")
    print(sorted({header for row in rows for header in row["headers"]}))
    print([row["methods"] for row in rows])


if __name__ == "__main__":
    main()
