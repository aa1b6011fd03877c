"""The assistant: a member of the conversation that answers.

provider.py  what everyone who writes answers has in common
builtin.py   the default: answers from a folder of Markdown, without network or key
blocks.py    Markdown to sanitised HTML, block by block, as it grows
runner.py    durable runs: claims what is queued, writes it as it grows, ends it once
"""

from pathlib import Path

from chatapp.assistant.builtin import BuiltIn, Knowledge
from chatapp.assistant.provider import Provider, ProviderError
from chatapp.config import Settings

__all__ = ["SHIPPED_KNOWLEDGE", "Provider", "ProviderError", "make_knowledge", "make_provider"]

SHIPPED_KNOWLEDGE = Path(__file__).resolve().parent.parent / "knowledge"


def make_knowledge(settings: Settings) -> Knowledge:
    """The shipped documents and the operator's own (`DATA_DIR/knowledge`), which go first."""
    return Knowledge([SHIPPED_KNOWLEDGE, settings.data_dir / "knowledge"])


def make_provider(settings: Settings, knowledge: Knowledge) -> Provider | None:
    """The provider that the settings ask for; None where the assistant is off."""
    return None if settings.assistant == "off" else BuiltIn(knowledge, settings.assistant_pace)
