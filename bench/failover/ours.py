"""Many of our own clients in one process, each the shipped core without a page: `python -m failover.ours`.

A system's name may add what is to go wrong: `ours-ws-only` has no fallback; `ours-lossy` reports every fifth message
not at all, every seventh twice and every ninth after the next: with these two the rig must find something.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from failover.lines import orders, say
from headless.client import Client, Loop
from lab.server import PASSWORD

SIGN_INS_AT_ONCE = 8
TRANSPORTS = {"connected": "websocket", "polling": "polling"}


class Subject:
    """One client of a trial, and what it shows."""

    def __init__(self, loop: Loop, name: str, system: str, url: str, email: str, conversation: str) -> None:
        self.name = name
        self.is_lossy = system == "ours-lossy"
        self.conversation = conversation
        transports = ("websocket",) if system == "ours-ws-only" else ("websocket", "polling")
        self.client = Client(
            loop,
            url,
            email,
            PASSWORD,
            transports,
            follows=[conversation or "list"],
            on_record=self._on_record,
            on_shown=self._on_shown,
        )
        self._said = ""
        self._late: list[str] = []

    def start(self) -> None:
        """Sign in, connect, and tell of everything."""
        self.client.start()
        say("started", client=self.name)

    def send(self, body: str) -> None:
        """A message of its own."""
        say("sent", client=self.name, id=body)
        self.client.send(self.conversation, body)

    def stop(self) -> None:
        """The end."""
        self.client.close()

    def _on_record(self, record: dict[str, Any]) -> None:
        status, reason = record["status"], record["reason"]
        if status == self._said:
            return
        self._said = status
        state, transport = "up" if status in TRANSPORTS else "down", TRANSPORTS.get(status, "")
        say("state", client=self.name, state=state, transport=transport, status=status, why=reason)

    def _on_shown(self, _feed: str, row: dict[str, Any]) -> None:
        if row.get("author") == "user":
            self._tell(row["body"])

    def _tell(self, body: str) -> None:
        number = int(body.partition("-")[2])
        if not self.is_lossy:
            say("got", client=self.name, id=body)
            return
        if number % 9 == 1:
            self._late.append(body)
        elif number % 5 != 4:
            for told in [body] * (2 if number % 7 == 6 else 1) + self._late:
                say("got", client=self.name, id=told)
            self._late.clear()


def main() -> None:
    """Obey until told to stop."""
    sys.setswitchinterval(0.001)
    subjects: dict[str, Subject] = {}
    loop = Loop()
    with ThreadPoolExecutor(SIGN_INS_AT_ONCE) as pool:
        for order in orders():
            name = order["client"]
            if order["do"] == "ping":
                say("pong")
            elif order["do"] == "start":
                names = ("system", "url", "email", "conversation")
                subjects[name] = Subject(loop, name, *(order[field] for field in names))
                pool.submit(_start, subjects[name])
            elif order["do"] == "send" and name in subjects:
                subjects[name].send(order["id"])
        for subject in subjects.values():
            subject.stop()
        loop.stop()
        say("stopped")


def _start(subject: Subject) -> None:
    try:
        subject.start()
    except Exception as problem:  # any error: the rig must see that this client never came
        say("failed", client=subject.name, why=repr(problem))


if __name__ == "__main__":
    main()
