"""The assistant: a member of the conversation that answers.

provider.py     the interface of a provider
knowledge.py    folders of Markdown, their passages, and which of them answer a question
words.py        the words of a question: stop words, other names, typing mistakes
builtin.py      the default provider: answers from the knowledge, without network or key
openai.py       an OpenAI-compatible server as provider; imported only if chosen
completions.py  parser of its responses
budget.py       tokens that a person may use in a day
window.py       its context window, and the turns that fit into it
context.py      passages as it gets them, and its citations
questions.py    the question in a conversation, and the passages for it
unanswered.py   questions that the knowledge folder did not answer, counted
own_files.py    the operator's files of the knowledge folder
checks.py       questions with the passages that should be found
markdown.py     Markdown to sanitised HTML, block by block, as it grows
settled.py      the part of growing Markdown that can no longer change
cjk.py          emphasis next to CJK text
runner.py       durable runs: claims queued runs, writes each answer as it grows, ends it once
"""

from importlib import import_module
from pathlib import Path

from chatapp.assistant.budget import Budget
from chatapp.assistant.builtin import BuiltIn
from chatapp.assistant.knowledge import Knowledge
from chatapp.assistant.own_files import OwnFiles
from chatapp.assistant.provider import Provider, ProviderError, SwitchedOff, Tell, no_record
from chatapp.assistant.questions import Note, ignore
from chatapp.config import Settings
from chatapp.store.leases import LeaseTable

__all__ = ["SHIPPED_KNOWLEDGE", "Provider", "ProviderError", "make_knowledge", "make_own_files", "make_provider"]

SHIPPED_KNOWLEDGE = Path(__file__).resolve().parent.parent / "knowledge"
OWN_KNOWLEDGE = "knowledge"  # in the data directory


def make_knowledge(settings: Settings) -> Knowledge:
    """Index the shipped documents and the operator's (`DATA_DIR/knowledge`), which take precedence."""
    return Knowledge([SHIPPED_KNOWLEDGE, settings.data_dir / OWN_KNOWLEDGE])


def make_own_files(settings: Settings) -> OwnFiles:
    """Return the operator's documents and word lists."""
    return OwnFiles(settings.data_dir / OWN_KNOWLEDGE, SHIPPED_KNOWLEDGE)


def make_provider(
    settings: Settings,
    knowledge: Knowledge,
    leases: LeaseTable | None = None,
    tell: Tell = no_record,
    note: Note = ignore,
) -> Provider:
    """Return the configured provider.

    `leases`: the store of people's budgets of tokens; `tell`: what the server's own records say to a question;
    `note` is called with each question and its passages."""
    if settings.assistant == "off":
        return SwitchedOff()
    if settings.assistant == "openai":  # imported late: its HTTP client is slow to import
        budget = Budget(leases, settings.openai_tokens_a_day)
        module = import_module("chatapp.assistant.openai")
        provider: Provider = module.OpenAI(settings, knowledge, budget, tell, note)
        return provider
    return BuiltIn(knowledge, settings.assistant_pace, tell, note)
