"""The words of a question: stop words, weak words, other names, typing mistakes.

Stop words, weak words and the glossary are text files in the folders of knowledge, so that an operator adds to them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rapidfuzz import process
from rapidfuzz.distance import OSA

STOP_WORDS, WEAK_WORDS, GLOSSARY = "stopwords.txt", "weakwords.txt", "glossary.txt"
MOST_WORDS = 16  # of a question
LONGEST_WORD = 40
CALLED = 0.6  # the weight of another name, beside the word itself
WEAK = 0.2
INFLECTED = 0.8  # of a word with another ending
REPAIRED = {1: 0.8, 2: 0.6}  # by the number of typing mistakes
LEAST_REPAIRED = {1: 4, 2: 8}  # letters of a word in which so many are looked for
MOST_NEAR, MOST_REPAIRS = 12, 3
LEAST_STEM = 5  # letters
LEAST_PART, LEAST_COMPOUND = 4, 9  # letters of a part, and of a word that is split

WORD = re.compile(r"[^\W_]+")


def fold(text: str) -> str:
    """Return the text in lower case without accents; `ß` as `ss`."""
    if text.isascii():
        return text.lower()
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def split(text: str) -> list[str]:
    """Return the words of a text, folded, but for over-long ones."""
    return [word for word in WORD.findall(fold(text)) if len(word) < LONGEST_WORD]


@dataclass(frozen=True)
class Term:
    """A word of a question: `weight`, and its forms in documents, each with its share of the weight."""

    word: str
    weight: float
    forms: Mapping[str, float]


@dataclass
class Language:
    """Stop words, weak words and the glossary of some folders."""

    stop: set[str] = field(default_factory=set)
    weak: set[str] = field(default_factory=set)
    names: dict[str, list[str]] = field(default_factory=dict)  # what people say: what documents say
    stems: dict[str, list[str]] = field(default_factory=dict)  # beginnings of what people say
    phrases: dict[str, dict[tuple[str, ...], list[str]]] = field(default_factory=dict)  # by their first word

    @classmethod
    def read(cls, paths: Iterable[Path], read: Callable[[Path], str]) -> Language:
        """Return the language of such files."""
        found = cls()
        for path in paths:
            lines = [line.partition("#")[0].strip() for line in read(path).splitlines()]
            if path.name == GLOSSARY:
                for line in lines:
                    found._add(line)
            else:
                known = found.stop if path.name == STOP_WORDS else found.weak
                known.update(word for line in lines for one in _spellings(line) for word in split(one))
        return found

    def _add(self, line: str) -> None:
        """Add a line of a glossary: `said, said otherwise, beginning*: written, words`."""
        said, colon, written = line.partition(":")
        words = split(written)
        if not colon or not words:
            return
        for one in said.split(","):
            for spelled in {fold(spelling) for spelling in _spellings(one)}:
                parts = tuple(WORD.findall(spelled))
                if not parts:
                    continue
                if len(parts) > 1:
                    self.phrases.setdefault(parts[0], {}).setdefault(parts, []).extend(words)
                elif one.rstrip().endswith("*"):
                    self.stems.setdefault(parts[0], []).extend(words)
                else:
                    self.names.setdefault(parts[0], []).extend(words)

    def called(self, word: str) -> list[str]:
        """Return the other names of a word."""
        stems = (self.stems.get(word[:length], ()) for length in range(len(word), 2, -1))
        return [*self.names.get(word, ()), *next((one for one in stems if one), ())]

    def is_said(self, word: str) -> bool:
        """Return True if the glossary knows the word."""
        return word in self.names or bool(self.called(word))


def _spellings(text: str) -> tuple[str, str]:
    """Return the text, and its spelling without umlauts."""
    return text, text.lower().translate({ord("ä"): "ae", ord("ö"): "oe", ord("ü"): "ue"})


class Reader:
    """Reads questions, with a language and the words that occur in documents."""

    def __init__(self, language: Language, vocabulary: Collection[str], has: Callable[[str], bool]) -> None:
        """`has`: whether some document has this word in some form."""
        self._language, self._has = language, has
        said = (word for word in (*language.names, *language.stop) if len(word) >= LEAST_REPAIRED[1])
        self._by_length: defaultdict[int, list[str]] = defaultdict(list)
        for word in sorted({*vocabulary, *said}):
            self._by_length[len(word)].append(word)

    def informative(self, question: str) -> list[str]:
        """Return the words of a question that are no stop words, each once."""
        return list(
            dict.fromkeys(word for word in split(question) if word not in self._language.stop and len(word) > 1)
        )[:MOST_WORDS]

    def terms(self, question: str) -> list[Term]:
        """Return the question as terms."""
        said = split(question)
        found: list[Term] = []
        covered: set[str] = set()
        for at, word in enumerate(said):
            for phrase, names in self._language.phrases.get(word, {}).items():
                if tuple(said[at : at + len(phrase)]) == phrase:
                    found.append(Term(" ".join(phrase), 1.0, dict.fromkeys(names, 2 * CALLED)))
                    covered.update(phrase)
        for word in self.informative(question):
            if word not in covered:
                found += self._terms_of(word)
        return found[:MOST_WORDS]

    def _terms_of(self, word: str) -> Sequence[Term]:
        weight = WEAK if word in self._language.weak else 1.0
        names = self._language.called(word)
        if self._has(word) or names:
            return [Term(word, weight, {**dict.fromkeys(names, CALLED), word: 1.0})]
        if parts := self._parts(word):
            return [term for part in parts for term in self._terms_of(part)]
        meant = self._repaired(word, 1) or self._inflected(word) or self._repaired(word, 2)
        return [] if self._language.stop & meant.keys() else [Term(word, weight, meant)]

    def _parts(self, word: str) -> tuple[str, str] | None:
        """Return the two known words that a compound is made of, the longest first one."""
        if len(word) < LEAST_COMPOUND:
            return None
        for at in range(len(word) - LEAST_PART, LEAST_PART - 1, -1):
            first, last = word[:at], word[at:]
            if self._is_known(last):
                for one in (first, first.removesuffix("s")):
                    if self._is_known(one):
                        return one, last
        return None

    def _is_known(self, word: str) -> bool:
        return word not in self._language.stop and (self._language.is_said(word) or self._has(word))

    def _inflected(self, word: str) -> dict[str, float]:
        """Return the beginning that the word has in common with words of documents, in languages without a stemmer."""
        for ending in (1, 2):
            start = word[:-ending]
            if len(start) >= LEAST_STEM and self._has(f"{start}*"):
                return {start: INFLECTED}
        return {}

    def _repaired(self, word: str, mistakes: int) -> dict[str, float]:
        """Return the known words that were meant, if this one has so many typing mistakes."""
        if len(word) < LEAST_REPAIRED[mistakes] or not word.isalpha():
            return {}
        near: list[str] = []
        for length in range(len(word) - mistakes, len(word) + mistakes + 1):
            known = self._by_length.get(length, ())
            found = process.extract(word, known, scorer=OSA.distance, score_cutoff=mistakes, limit=MOST_NEAR)
            near += (one for one, distance, _ in found if distance == mistakes)
        best = sorted(near, key=lambda one: one[0] != word[0])
        forms: dict[str, float] = {}
        for one in best[:MOST_REPAIRS]:
            for name in self._language.called(one):
                forms.setdefault(name, CALLED * REPAIRED[mistakes])
            forms[one] = REPAIRED[mistakes]
        return forms
