"""The other person of each conversation: posts and reads at the server itself, past all proxies."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from lab.http import Client

Done = Callable[[float], None]
Answer = TypeVar("Answer")
ASK_AGAIN_S = 20.0
PATIENCE_S = 180.0


class Helper:
    """Signed in as everybody; each person's posts go one after another, in a thread of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._queues: dict[str, queue.SimpleQueue[Callable[[Client], None] | None]] = {}
        self._threads: list[threading.Thread] = []

    def know(self, emails: Iterable[str]) -> None:
        """Sign in as these, where that is not done yet."""
        for email in emails:
            if email not in self._queues:
                jobs = self._queues[email] = queue.SimpleQueue()
                self._threads.append(threading.Thread(target=self._work, args=(email, jobs), daemon=True))
                self._threads[-1].start()

    def _work(self, email: str, jobs: "queue.SimpleQueue[Callable[[Client], None] | None]") -> None:
        client = Client(self.url, timeout=10)
        while (job := jobs.get()) is not None:
            try:
                if not client.token:
                    client.sign_in(email)
                job(client)
            except (OSError, AssertionError):  # the server is down: this post was not made
                continue

    def create(self, email: str) -> str:
        """A new, empty conversation of a person."""

        def make(client: Client) -> str:
            answer = client.create()
            if "conversation" not in answer.json:  # busy: it is asked again
                raise ConnectionError(f"answered {answer.status}")
            return str(answer.json["conversation"])

        return self._ask(email, make)

    def post(self, email: str, conversation: str, body: str, done: Done) -> None:
        """Post, soon; `done` is told when it began, once the server has it."""

        def job(client: Client) -> None:
            began = time.time()
            if client.post_message(conversation, body).status in (200, 201):
                done(began)

        self._queues[email].put(job)

    def history(self, email: str, conversation: str) -> list[str]:
        """What people said there, in order, as the server has it."""

        def read(client: Client) -> list[str]:
            articles = client.history(conversation)
            people = [article for article in articles if article.get("data-author") == "user"]
            return [article.one("div", css_class="body").text.strip() for article in people]

        return self._ask(email, read)

    def _ask(self, email: str, question: Callable[[Client], Answer]) -> Answer:
        """The answer to a question, asked again where the server is busy or starting. TimeoutError."""
        found: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self._queues[email].put(lambda client: found.put(question(client)))
            with suppress(queue.Empty):
                return found.get(timeout=ASK_AGAIN_S)
        raise TimeoutError(f"no answer for {email} in {PATIENCE_S:g} s")

    def stop(self) -> None:
        """End the threads."""
        for jobs in self._queues.values():
            jobs.put(None)
        for thread in self._threads:
            thread.join(15)
