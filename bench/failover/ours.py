"""Many of our own Python clients in one process: `python -m failover.ours`.

A system's name may add what is to go wrong: `ours-ws-only` has no fallback; `ours-lossy` reports every fifth message
not at all, every seventh twice and every ninth after the next: with these two the rig must find something.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from failover.lines import orders, say
from lab.server import PASSWORD

from chatapp.client import Client
from chatapp.connection.record import Record

SIGN_INS_AT_ONCE = 8
IS_UP = ("connected", "polling")


class Subject:
    """One client of a trial, and what it shows."""

    def __init__(self, name: str, system: str, url: str, email: str, conversation: str) -> None:
        self.name = name
        self.is_lossy = system == "ours-lossy"
        self.conversation = conversation
        transports = ("websocket",) if system == "ours-ws-only" else ("websocket", "polling")
        self.client = Client(url, email, PASSWORD, transports, self._on_change)
        self._said = ("", "")
        self._shown: Counter[str] = Counter()
        self._late: list[str] = []
        self._stopped = False

    def start(self) -> None:
        """Sign in, connect, and tell of everything."""
        self.client.start()
        if self.conversation:
            self.client.unfollow("list")
            self.client.follow(self.conversation)
            threading.Thread(target=self._watch, daemon=True).start()
        say("started", client=self.name)

    def send(self, body: str) -> None:
        """A message of its own."""
        say("sent", client=self.name, id=body)
        self.client.send(self.conversation, body)

    def stop(self) -> None:
        """The end."""
        self._stopped = True
        with suppress(RuntimeError):  # it never started
            self.client.close()

    def _on_change(self, record: Record) -> None:
        is_up = record["status"] in IS_UP
        transport = {"connected": "websocket", "polling": "polling"}.get(record["status"], "")
        if self._said != (record["status"], transport):
            self._said = (record["status"], transport)
            state, why = "up" if is_up else "down", record["reason"]
            say("state", client=self.name, state=state, transport=transport, status=record["status"], why=why)

    def _watch(self) -> None:
        while not self._stopped:
            with suppress(TimeoutError):
                new = self.client.wait(self._news, 5)
                for body in new:
                    self._tell(body)

    def _news(self) -> Iterable[str]:
        found = Counter(one.body for one in self.client.messages(self.conversation) if one.author == "user")
        more = found - self._shown
        self._shown |= found
        return list(more.elements())

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
    with ThreadPoolExecutor(SIGN_INS_AT_ONCE) as pool:
        for order in orders():
            name = order["client"]
            if order["do"] == "ping":
                say("pong")
            elif order["do"] == "start":
                names = ("system", "url", "email", "conversation")
                subjects[name] = Subject(name, *(order[field] for field in names))
                pool.submit(_start, subjects[name])
            elif order["do"] == "send" and name in subjects:
                with suppress(RuntimeError):  # not signed in yet: it cannot say anything
                    subjects[name].send(order["id"])
        for subject in subjects.values():
            subject.stop()
        say("stopped")


def _start(subject: Subject) -> None:
    try:
        subject.start()
    except Exception as problem:  # whatever it is, the rig must see that this client never came
        say("failed", client=subject.name, why=repr(problem))


if __name__ == "__main__":
    main()
