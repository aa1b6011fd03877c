"""Questions that the knowledge folder did not answer, and documents that did not help: counted, never with a person.

Noting one only puts it into a queue. Apparent secrets, addresses and long numbers are taken out before it is stored,
some seconds later.
"""

from __future__ import annotations

import logging
import re
from collections import deque

from chatapp.assistant.knowledge import Found, Knowledge
from chatapp.assistant.words import fold
from chatapp.store import STORAGE_ERRORS, CountedQuestion, now_ms
from chatapp.store.questions import LONGEST_QUESTION, NO_HELP, QuestionTable

MOST_QUEUED = 200  # between two flushes; of more, the older ones are lost
MOST_READ = 2000  # characters of a question
GONE = "…"
"""Stands for a word that was taken out."""

LONG_NUMBER = re.compile(r"\+?\d(?:[ ./()-]?\d){6,}")
SAID_SECRET = re.compile(
    r"\b((?:pass(?:word|wort|phrase)?|passwd|pwd|pin|contrase[nñ]a|kennwort|token|secret|[\w-]*key)s?)"
    r"( ?[:=]+ ?| (?:is|ist|es|lautet):? )(\S+)",
    re.I,
)
MIXED, RANDOM, LONGEST_PLAIN = 10, 16, 40
"""Letters from which on a word looks random: in both cases and with digits; with digits; without."""

log = logging.getLogger("chatapp.knowledge")


class Unanswered:
    """The queue of questions to be counted."""

    def __init__(self, table: QuestionTable, knowledge: Knowledge, is_kept: bool) -> None:
        """`is_kept`: False if nothing is to be counted."""
        self.is_kept = is_kept
        self._table, self._knowledge = table, knowledge
        self._queue: deque[CountedQuestion] = deque(maxlen=MOST_QUEUED)
        self._has_failed = False

    def note(self, question: str, found: Found) -> None:
        """Queue a question unless its answer is sure."""
        if self.is_kept and not found.is_sure:
            kind = "not-sure" if found.hits else "not-found"
            self._queue.append(CountedQuestion(kind, "", question[:MOST_READ], 1, now_ms()))

    def note_no_help(self, slug: str, words: str) -> None:
        """Queue that a document did not help, with words that may be empty."""
        if self.is_kept:
            self._queue.append(CountedQuestion(NO_HELP, slug, words[:MOST_READ], 1, now_ms()))

    def flush(self) -> None:
        """Store the queue. If that fails it is lost, and the first failure is logged."""
        found: dict[tuple[str, str], CountedQuestion] = {}
        while self._queue:
            one = self._queue.popleft()
            text = stored_form(one.text)
            if one.kind == NO_HELP or self._knowledge.informative(text.replace(GONE, " ")):
                text = text if one.kind == NO_HELP else _folded(text)
                known = found.get((one.slug, text))
                number = known.number + 1 if known else 1
                found[one.slug, text] = CountedQuestion(one.kind, one.slug, text, number, one.last_at)
        if not found:
            return
        try:
            self._table.add(found.values())
            self._has_failed = False
        except STORAGE_ERRORS as error:
            if not self._has_failed:
                log.warning("unanswered questions cannot be counted for now: %s", error)
            self._has_failed = True


def _folded(text: str) -> str:
    """Return a question as it is counted; folding would make three dots of GONE."""
    return GONE.join(map(fold, text.split(GONE)))[:LONGEST_QUESTION]


def stored_form(text: str) -> str:
    """Return the text in one line, without apparent secrets, addresses and long numbers."""
    words = " ".join(GONE if is_secret(word) else word for word in text[:MOST_READ].split())
    return LONG_NUMBER.sub(GONE, SAID_SECRET.sub(_hide, words))[:LONGEST_QUESTION].strip()


def is_secret(word: str) -> bool:
    """Return True if a word looks like an address of a person or a page, or like a key."""
    bare = word.strip(".,;:!?()[]{}\"'")
    if "@" in word or "://" in word or len(bare) > LONGEST_PLAIN:
        return True
    if not any(letter.isdigit() for letter in bare):
        return False
    has_cases = any(map(str.islower, bare)) and any(map(str.isupper, bare))
    return len(bare) >= (MIXED if has_cases else RANDOM)


def _hide(said: re.Match[str]) -> str:
    """Hide the word after "password:" always, after "password is" unless it has letters only, as in "is wrong"."""
    is_plain = said[3].rstrip(".,;:!?").isalpha() and not set(":=") & set(said[2])
    return said[0] if is_plain else f"{said[1]}{said[2]}{GONE}"
