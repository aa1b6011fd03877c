"""The assistant: a member of the conversation that answers.

provider.py  what everyone who writes answers has in common
builtin.py   the default: answers from a folder of Markdown, without network or key
openai.py    answers from an OpenAI-compatible server; imported only where it is chosen
blocks.py    Markdown to sanitised HTML, block by block, as it grows
runner.py    durable runs: claims what is queued, writes it as it grows, ends it once
"""

from importlib import import_module
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
    if settings.assistant == "off":
        return None
    if settings.assistant == "openai":  # its HTTP client takes a moment to import: the others start without it
        provider: Provider = import_module("chatapp.assistant.openai").OpenAI(settings)
        return provider
    return BuiltIn(knowledge, settings.assistant_pace)
