"""The store, the bus and the runners of the assistant in a test's own process, with providers that do what it says."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from flask import Flask

from chatapp.assistant import Provider
from chatapp.assistant.provider import NO_WISHES, Wishes
from chatapp.assistant.runner import Runner
from chatapp.bus import Bus
from chatapp.store import ConversationRef, Store, Turn, migrate
from chatapp.store.workers import Worker


class Script:
    """A provider that does what a test says."""

    def __init__(self, play: Callable[[Sequence[Turn]], Iterator[str]]) -> None:
        self.play = play

    def answer(self, history: Sequence[Turn], wishes: Wishes = NO_WISHES) -> Generator[str, None, None]:
        """What the play says."""
        self.wishes = wishes
        yield from self.play(history)


class Workers:
    """A store on disk, a bus, and one conversation in which questions can be queued."""

    def __init__(self, folder: Path) -> None:
        self.bus, self.folder = Bus(), folder
        migrate.migrate(folder)
        self.store = Store(Flask(__name__), folder, self.bus)
        self.person = self.store.people.add_first_admin("Ada", "ada@example.org", "x").id
        self.runners: list[Runner] = []

    def ask(self, question: str) -> ConversationRef:
        """Post a question in a new conversation and queue its answer."""
        conversations = self.store.conversations
        with self.store.database.write() as tx:
            place = conversations.add(tx, self.person, f"c-{question}")
            conversations.post(tx, place, f"m-{question}", question)
            self.store.runs.queue(tx, place)
        return place

    def start(self, provider: Provider, longest: int = 200_000) -> Runner:
        """A runner of these workers."""
        worker = Worker(self.folder / "workers")
        self.runners.append(Runner(self.store.runs, self.bus, provider, worker, longest))
        self.runners[-1].start()
        return self.runners[-1]

    def answer(self, place: ConversationRef) -> Any:
        """The assistant's message, or None."""
        return next((m for m in self.store.conversations.changes(place, 0).items if m.author == "assistant"), None)

    def messages(self, place: ConversationRef) -> Any:
        """All of them."""
        return self.store.conversations.changes(place, 0).items

    def wait(self, place: ConversationRef, state: str, seconds: float = 5.0) -> Any:
        """The assistant's message once it is in that state."""
        with gevent.Timeout(seconds, AssertionError(f"not {state}: {self.answer(place)}")):
            while (answer := self.answer(place)) is None or answer.state != state:
                gevent.sleep(0.02)
        return answer


@contextmanager
def drained(workers: Workers) -> Iterator[Workers]:
    """Workers whose runners are drained, and whose files are closed, at the end."""
    yield workers
    for each in workers.runners:
        each.drain()
    for engine in (workers.store.database.engine, workers.store.events.database.engine):
        engine.dispose()
