"""The interface of an answer provider."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from chatapp.store import Turn


class ProviderError(Exception):
    """No answer; the message is a sentence for the person asking."""


class Provider(Protocol):
    """A source of answers."""

    def answer(self, history: Sequence[Turn]) -> Iterator[str]:
        """Yield Markdown of the answer to the newest turns, in pieces. Closing the iterator stops the work.

        Raises ProviderError if no answer can be given.
        """
