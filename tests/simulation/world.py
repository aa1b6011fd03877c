"""Time, chance and the trace: everything that happens in a schedule happens through here, in one order."""

import hashlib
import heapq
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from chatapp.store import conversations, database, people, runs

BEGIN_MS = 1_700_000_000_000  # what the store's clock shows at the start


class World:
    """A clock in milliseconds, a queue of what is to happen, and a source of chance."""

    def __init__(self, seed: int, show: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.now = 0
        self.random = random.Random(seed)
        self.events = 0
        self._show = show
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def later(self, delay: float, work: Callable[[], None]) -> None:
        """Have something happen after `delay` ms."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + max(0, int(delay)), self._count, work))

    def run(self, until: int) -> None:
        """Let time pass up to a moment."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, work = heapq.heappop(queue)
            self.events += 1
            work()
        self.now = until

    def note(self, what: str) -> None:
        """Write a line into the trace."""
        line = f"{self.now:6} {what}"
        self._trace.update(line.encode())
        if self._show:
            self._show(line)

    def digest(self) -> str:
        """A hash of all that happened."""
        return self._trace.hexdigest()

    def between(self, low: float, high: float) -> float:
        """A number in a range."""
        return low + (high - low) * self.random.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def uuid(self) -> uuid.UUID:
        """A UUID of this schedule."""
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    @contextmanager
    def rules_the_store(self) -> Iterator[None]:
        """The store takes its time and its UUIDs from here; nothing else of it is touched."""
        with ExitStack() as stack:
            for module in (conversations, runs, database, people):
                if hasattr(module, "now_ms"):
                    stack.enter_context(mock.patch.object(module, "now_ms", lambda: BEGIN_MS + self.now))
                if hasattr(module, "uuid4"):
                    stack.enter_context(mock.patch.object(module, "uuid4", self.uuid))
            # Commits to memory are quick; one that was not, on a busy machine, must not change what happens.
            if hasattr(database, "SLOW_COMMIT_S"):
                stack.enter_context(mock.patch.object(database, "SLOW_COMMIT_S", 1e9))
            yield
