"""The assistant: a member of the conversation that answers. Here: who answers; ``runner`` says when."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from chatapp.assistant.builtin import BuiltIn, Knowledge
    from chatapp.config import Settings
    from chatapp.store import Turn

SHIPPED_KNOWLEDGE = Path(__file__).resolve().parent.parent / "knowledge"


class ProviderError(Exception):
    """The answer cannot be given; the message is a sentence for the person who asked."""


class Provider(Protocol):
    """Whoever writes answers."""

    def answer(self, history: "Sequence[Turn]") -> Iterator[str]:
        """Markdown of the answer to the newest turns, in pieces. Closing the iterator stops the work.

        Raises ``ProviderError`` where no answer can be given.
        """
        ...


def make_knowledge(settings: "Settings") -> "Knowledge":
    """The shipped documents and the operator's own (``DATA_DIR/knowledge``), which go first."""
    from chatapp.assistant.builtin import Knowledge

    return Knowledge([SHIPPED_KNOWLEDGE, Path(settings.data_dir) / "knowledge"])


def make_provider(settings: "Settings") -> "BuiltIn | None":
    """The provider that the settings ask for; None where the assistant is off."""
    from chatapp.assistant.builtin import BuiltIn

    if settings.assistant == "off":
        return None
    return BuiltIn(make_knowledge(settings), settings.assistant_pace)
