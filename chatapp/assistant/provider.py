"""The interface of an answer provider."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import gevent

from chatapp.store import Turn

SLICE_S = 0.004
"""Seconds after which a provider that never pauses yields to the event loop."""
A_TURN_S = 1e-6
"""A timer, however short, lets the event loop poll its sockets; `sleep(0)` does so only every 50th time."""

Item = TypeVar("Item")


class ProviderError(Exception):
    """No answer; the message is a sentence for the person asking. `instead`: the Markdown in its
    place; `is_fault`: False if the provider would have answered."""

    def __init__(self, sentence: str, instead: str = "", is_fault: bool = True) -> None:
        super().__init__(sentence)
        self.instead, self.is_fault = instead, is_fault


@dataclass(frozen=True)
class Phase:
    """How far an answer is before its first word. `seconds`: of a pause, until the next try."""

    name: Literal["asking", "thinking", "paused"]
    seconds: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.seconds}" if self.seconds else self.name


@dataclass(frozen=True)
class Usage:
    """The figures of an answer. Tokens: the server's count, None if it gives none; times: ms since the request."""

    model: str
    prompt_tokens: int | None
    answer_tokens: int | None
    connected_ms: int  # to the server: the network's part
    first_ms: int | None  # the first word
    whole_ms: int


def _ignore(_: Phase | Usage) -> None:
    """Take no note."""


@dataclass(frozen=True)
class Wishes:
    """The choices of a conversation. `person`: the asking one's id, 0 for nobody; `note`: takes the phases before the
    first word and, at the end, the usage."""

    model: str = ""
    instructions: str = ""
    person: int = 0
    note: Callable[[Phase | Usage], None] = _ignore


NO_WISHES = Wishes()
Tell = Callable[[Sequence[Turn], int], str]
"""From a conversation, and who has it answered, to what the server's own records say to the newest question, as
Markdown; "" if nothing, or not to this person."""


def no_record(_: Sequence[Turn], _person: int) -> str:
    """Tell nothing."""
    return ""


class Provider(Protocol):
    """A source of answers."""

    def answer(self, history: Sequence[Turn], wishes: Wishes = NO_WISHES) -> Generator[str, None, None]:
        """Yield Markdown of the answer to the newest turns, in pieces. Closing the generator stops the work.

        Raises ProviderError if no answer can be given.
        """

    def models(self) -> list[str]:
        """Return the models that people may choose from, the operator's first; [] if there is nothing to choose."""


class SwitchedOff:
    """The provider of a server without an assistant: it ends the answers that were queued before."""

    def answer(self, history: Sequence[Turn], wishes: Wishes = NO_WISHES) -> Generator[str, None, None]:
        """Raise ProviderError."""
        yield from ()
        raise ProviderError("The assistant is switched off on this server.")

    def models(self) -> list[str]:
        """Return nothing."""
        return []


def asked(history: Sequence[Turn]) -> list[Turn]:
    """Return the turns with text, up to the last question: in a retry, the interrupted answer follows it."""
    turns = [turn for turn in history if turn.body.strip()]
    while turns and turns[-1].author == "assistant":
        turns.pop()
    return turns


def with_pauses(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, with pauses for other greenlets, also from a source that never pauses."""
    until = time.monotonic() + SLICE_S
    for item in items:
        yield item
        if time.monotonic() > until:
            gevent.sleep(A_TURN_S)
            until = time.monotonic() + SLICE_S
