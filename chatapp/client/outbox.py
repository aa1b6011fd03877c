"""The outbox: what is to be sent waits here until the server acknowledges it, or refuses it for good.

One entry of a conversation is in flight at a time, so order is kept; the server knows each by its id, so sending one
twice is harmless. `entries` is all that must survive: whoever wants that stores it and gives it to the next outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chatapp.connection.delays import Random

RETRIES_MS = (500, 1000, 2000, 4000, 5000)


@dataclass
class Outgoing:
    """One message on its way. `create`: its conversation is made with it."""

    id: str
    conversation: str
    body: str
    create: bool = False
    tries: int = 0
    refused: str = ""  # the server's code, where it was refused for good


@dataclass(frozen=True)
class Ack:
    """The message is on disk, at this place."""

    id: str
    position: int
    revision: int


@dataclass(frozen=True)
class Refusal:
    """The message will never be taken."""

    code: str
    words: str


@dataclass(frozen=True)
class Again:
    """It did not work; nothing is known."""

    reason: str
    advice_ms: int = 0


Outcome = Ack | Refusal | Again


class Outbox:
    """Entries in the order of sending; `deliver(entry)` starts a flight, `ended` tells how it went."""

    def __init__(self, deliver: Callable[[Outgoing], None], random: Random, entries: Iterable[Outgoing] = ()) -> None:
        self.entries: dict[str, Outgoing] = {entry.id: entry for entry in entries}
        self._deliver = deliver
        self._random = random
        self._busy: set[str] = set()
        self._waits: dict[str, int] = {}
        self._is_open = False

    def waiting(self) -> int:
        """How many are not acknowledged and not refused."""
        return sum(not entry.refused for entry in self.entries.values())

    def add(self, entry: Outgoing) -> None:
        """Take a message, and send it as soon as its turn comes."""
        self.entries[entry.id] = entry
        self._pump(entry.conversation)

    def open(self, is_open: bool) -> None:
        """Messages flow, or do not; closing lets what is in flight land."""
        opened, self._is_open = is_open and not self._is_open, is_open
        if opened:
            self.flush()

    def flush(self) -> None:
        """Whatever waits for its retry goes at once."""
        self._waits.clear()
        for conversation in dict.fromkeys(entry.conversation for entry in self.entries.values()):
            self._pump(conversation)

    def ended(self, entry: Outgoing, outcome: Outcome, now: int) -> None:
        """A flight is over: the next one of the conversation begins, or this one waits for its retry."""
        self._busy.discard(entry.conversation)
        self.settled(entry.id, outcome)
        if isinstance(outcome, Again) and entry.id in self.entries:
            base = RETRIES_MS[min(entry.tries, len(RETRIES_MS) - 1)]
            entry.tries += 1
            delay = int(base * (0.75 + 0.5 * self._random()))
            self._waits[entry.conversation] = now + max(outcome.advice_ms, delay)
        else:
            self._pump(entry.conversation)

    def settled(self, client_id: str, outcome: Outcome) -> None:
        """An acknowledgement or refusal, also one that comes after its flight had ended."""
        entry = self.entries.get(client_id)
        if entry is None:
            return
        if isinstance(outcome, Ack):
            del self.entries[client_id]
            for other in self.entries.values():
                if other.conversation == entry.conversation:
                    other.create = False
        elif isinstance(outcome, Refusal):
            entry.refused = outcome.code

    def due(self) -> int | None:
        """When the next retry is due."""
        return min(self._waits.values(), default=None)

    def tick(self, now: int) -> None:
        """Begin the retries that are due."""
        for conversation in [name for name, at in self._waits.items() if at <= now]:
            del self._waits[conversation]
            self._pump(conversation)

    def _pump(self, conversation: str) -> None:
        if not self._is_open or conversation in self._busy or conversation in self._waits:
            return
        for entry in self.entries.values():
            if entry.conversation == conversation and not entry.refused:
                self._busy.add(conversation)
                self._deliver(entry)
                return
