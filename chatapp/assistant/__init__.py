"""The assistant: a member of the conversation that answers.

provider.py     the interface of a provider
builtin.py      the default provider: answers from a folder of Markdown, without network or key
openai.py       an OpenAI-compatible server as provider; imported only if chosen
completions.py  parser of its responses
markdown.py     Markdown to sanitised HTML, block by block, as it grows
settled.py      the part of growing Markdown that can no longer change
cjk.py          emphasis next to CJK text
runner.py       durable runs: claims queued runs, writes each answer as it grows, ends it once
"""

from importlib import import_module
from pathlib import Path

from chatapp.assistant.builtin import BuiltIn, Knowledge
from chatapp.assistant.provider import Provider, ProviderError
from chatapp.config import Settings

__all__ = ["SHIPPED_KNOWLEDGE", "Provider", "ProviderError", "make_knowledge", "make_provider"]

SHIPPED_KNOWLEDGE = Path(__file__).resolve().parent.parent / "knowledge"


def make_knowledge(settings: Settings) -> Knowledge:
    """Index the shipped documents and the operator's (`DATA_DIR/knowledge`), which take precedence."""
    return Knowledge([SHIPPED_KNOWLEDGE, settings.data_dir / "knowledge"])


def make_provider(settings: Settings, knowledge: Knowledge) -> Provider | None:
    """Return the configured provider, or None if the assistant is off."""
    if settings.assistant == "off":
        return None
    if settings.assistant == "openai":  # imported late: its HTTP client is slow to import
        provider: Provider = import_module("chatapp.assistant.openai").OpenAI(settings)
        return provider
    return BuiltIn(knowledge, settings.assistant_pace)
