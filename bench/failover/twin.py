"""The Python twin of the shipped core as a column of its own, `ours-twin`: for one last comparison."""

import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from failover.lines import say
from lab.server import PASSWORD

from chatapp.client import Client
from chatapp.connection.record import Record

IS_UP = ("connected", "polling")


class Twin:
    """One client of a trial, and what it shows."""

    def __init__(self, name: str, url: str, email: str, conversation: str) -> None:
        self.name = name
        self.conversation = conversation
        self.client = Client(url, email, PASSWORD, on_change=self._on_change)
        self._said = ("", "")
        self._shown: Counter[str] = Counter()
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
                    say("got", client=self.name, id=body)

    def _news(self) -> Iterable[str]:
        found = Counter(one.body for one in self.client.messages(self.conversation) if one.author == "user")
        more = found - self._shown
        self._shown |= found
        return list(more.elements())
