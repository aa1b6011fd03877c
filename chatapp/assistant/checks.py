"""Questions with the passages that should be found: a test of a knowledge folder.

A file of them has a line for each question: `question => slug#anchor, slug#other`, or `question => -` for one that must
not be answered. Empty lines and lines that begin with `#` are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatapp.assistant.knowledge import Found, Knowledge, Passage

NONE = "-"


class UnreadableCheck(ValueError):
    """A line of the file that is no question with its passages."""


@dataclass(frozen=True)
class Check:
    """A question, and the passages (`slug#anchor`) of which one should be found; none: nothing should be quoted."""

    question: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The passages found for a check."""

    check: Check
    found: Found

    @property
    def place(self) -> int:
        """The place of the first expected passage, from 1; 0: it is not among those found."""
        names = [name(passage) for passage in self.found.passages]
        return next((place for place, one in enumerate(names, 1) if one in self.check.expected), 0)

    @property
    def is_right(self) -> bool:
        """True if an expected passage is among those found, or rightly none is quoted."""
        return bool(self.place) if self.check.expected else not self.found.is_sure


def name(passage: Passage) -> str:
    """Return the name of a passage in such a file."""
    return f"{passage.slug}#{passage.anchor}" if passage.anchor else passage.slug


def parse(text: str) -> list[Check]:
    """Return the checks of a file. Raises UnreadableCheck."""
    found: list[Check] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        question, arrow, expected = line.rpartition("=>")
        names = tuple(one.strip() for one in expected.split(",") if one.strip())
        if not arrow or not question.strip() or not names:
            raise UnreadableCheck(f"line {number}: write `question => document#section`, or `question => -`.")
        found.append(Check(question.strip(), () if names == (NONE,) else names))
    return found


def run(knowledge: Knowledge, checks: Sequence[Check]) -> Iterator[Outcome]:
    """Ask each question."""
    for check in checks:
        yield Outcome(check, knowledge.find(check.question))


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes in a line."""
    asked = [one for one in outcomes if one.check.expected]
    others = [one for one in outcomes if not one.check.expected]
    first = sum(one.place == 1 for one in asked)
    quoted = sum(one.place == 1 and one.found.is_sure for one in asked)
    there = sum(one.place > 0 for one in asked)
    words = [f"{len(asked)} questions: right first {first}, and quoted {quoted}; among those found {there}"]
    if others:
        words.append(f"{len(others)} of no document: quoted {sum(one.found.is_sure for one in others)}")
    return "; ".join(words) + "."
