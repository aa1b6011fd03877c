"""What everyone who writes answers has in common."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from chatapp.store import Turn


class ProviderError(Exception):
    """The answer cannot be given; the message is a sentence for the person who asked."""


class Provider(Protocol):
    """Whoever writes answers."""

    def answer(self, history: Sequence[Turn]) -> Iterator[str]:
        """Markdown of the answer to the newest turns, in pieces. Closing the iterator stops the work.

        Raises ProviderError where no answer can be given.
        """
