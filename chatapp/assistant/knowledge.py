"""Folders of Markdown, indexed in memory: the documents of the assistant, and the search for passages.

Each section is a passage. A word of the question counts once in a passage, by its best form there: the word itself,
another name of the glossary, a longer word, a mended typing mistake. All work happens in one thread.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log as ln
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from chatapp.assistant import markdown
from chatapp.assistant.fences import with_fences
from chatapp.assistant.words import (
    GLOSSARY,
    STOP_WORDS,
    WEAK_WORDS,
    WORD,
    Language,
    Reader,
    Term,
    fold,
    split,
)
from chatapp.concurrency import SingleThread, compute_in_thread

log = logging.getLogger("chatapp.knowledge")

CHECK_FOLDERS_S = 2.0
"""Least seconds between two checks of the folders for changes."""
MOST_RENDERED = 100
"""Documents kept as HTML."""
LONGEST_QUESTION = 2000
"""Characters of a question that are read."""
MOST_FOUND = 3
"""Passages of an answer."""
MOST_ROWS = 100
"""Passages looked at for each form of a word."""
FIELDS = (2.0, 6.0, 4.0, 1.0)
"""Weights of title, heading, "Asked as:" lines and text."""
LIKE_HEADING, LIKE_WORDS = 1.0, 1.0
"""How much a heading adds that is all of the question: by its terms, and word by word with its stop words."""
SURE = {2: 0.4, 1: 0.71, 0: 0.9}
"""The least share of the question, by weight of its words, in a passage that is quoted as its answer: by how many of
them are in its heading, its document's title or its "Asked as:" lines."""
SHARED = 0.3
"""The power of a form's weight that counts for the share: another name of a word has most of its meaning."""
UNKNOWN = 0.5
"""The weight of a word that no document has, beside that of a word in a single passage."""
MOST_WEIGHED = 40
"""Passages whose headings are compared."""
LEAST_BEGINNING = 4
"""Letters from which on a word also finds longer ones."""
STEM = 6
"""Letters by which words of a heading are compared."""
FURTHER = 0.5
"""The least score of a further passage that is quoted, beside the best one's."""

ASKED_AS = re.compile(r"Asked as:[ \t]*(.*)")
SCHEMA = """
CREATE VIRTUAL TABLE passages
USING fts5(title, heading, asked, text, tokenize = "porter unicode61 remove_diacritics 2")
"""


@dataclass(frozen=True)
class Passage:
    """One section of a document: the Markdown under one heading. `asked`: how people ask for it, never shown."""

    slug: str
    title: str
    anchor: str
    heading: str
    text: str
    asked: str = ""

    @property
    def link(self) -> str:
        """The URL of its citation, relative to a conversation's page."""
        return f"../knowledge/{self.slug}" + (f"#{self.anchor}" if self.anchor else "")


@dataclass(frozen=True)
class Document:
    """A whole document, ready to show."""

    title: str
    html: str


@dataclass(frozen=True)
class Hit:
    """A passage that fits a question. `share`: how much of the question it has, 0 to 1."""

    passage: Passage
    score: float
    share: float
    is_sure: bool


@dataclass(frozen=True)
class Found:
    """The passages nearest to a question, best first."""

    hits: Sequence[Hit] = ()

    @property
    def is_sure(self) -> bool:
        """True if the best one answers the question."""
        return bool(self.hits) and self.hits[0].is_sure

    @property
    def quotable(self) -> list[Passage]:
        """The passages that answer the question; none if that is not sure."""
        least = FURTHER * self.hits[0].score if self.is_sure else 0.0
        return [hit.passage for hit in self.hits if hit.is_sure and hit.score >= least] if self.is_sure else []

    @property
    def passages(self) -> list[Passage]:
        """The passages."""
        return [hit.passage for hit in self.hits]


def split_document(slug: str, source: str) -> list[Passage]:
    """Return the passages of a document, one for each heading with text under it."""
    lines = source.split("\n")
    marks = markdown.headings(source)
    title = next((mark.text for mark in marks), slug.replace("-", " ").capitalize())
    starts = [markdown.Heading(0, 0, title, ""), *marks]  # text may come before the first heading
    ends = [*(mark.line for mark in marks), len(lines)]
    texts = ["\n".join(lines[mark.after : end]) for mark, end in zip(starts, ends, strict=True)]
    found = [(mark, *asked_apart(text)) for mark, text in zip(starts, texts, strict=True)]
    return [
        Passage(slug, title, mark.anchor, mark.text, text.strip(), asked) for mark, text, asked in found if text.strip()
    ]


def asked_apart(text: str) -> tuple[str, str]:
    """Return a text without its "Asked as:" lines, and these. Lines of code stay."""
    lines = [(line, None if is_code else ASKED_AS.match(line)) for line, is_code in with_fences(text.split("\n"))]
    return "\n".join(line for line, asked in lines if not asked), " ".join(asked[1] for _, asked in lines if asked)


class Knowledge:
    """Folders of Markdown. A file in a later folder replaces an earlier one of the same name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._thread = SingleThread()
        self._checked_at = float("-inf")
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._index = Index()
        self._refresh()

    def look_again(self) -> None:
        """Notice changes of the folders with the next call."""
        self._checked_at = float("-inf")

    def titles(self) -> list[tuple[str, str]]:
        """Return (slug, title) of every document, by title."""
        return self._thread.run(self._titles)

    def document(self, slug: str) -> Document | None:
        """Return the document of that name, or None."""
        source = self._thread.run(self._source, slug)
        return None if source is None else _rendered(slug, source)

    def find(self, question: str, most: int = MOST_FOUND) -> Found:
        """Return the passages that are nearest to a question."""
        return self._thread.run(self._find, question, most)

    def informative(self, question: str) -> list[str]:
        """Return the words of a question without stop words."""
        return self._thread.run(lambda: self._fresh().reader.informative(question[:LONGEST_QUESTION]))

    def has_words(self, words: Sequence[str]) -> bool:
        """Return True if each of these words, or another name of it, occurs in some passage."""
        return self._thread.run(lambda: all(self._fresh().knows(word) for word in words))

    def _fresh(self) -> Index:
        self._refresh()
        return self._index

    def _find(self, question: str, most: int) -> Found:
        return self._fresh().find(question[:LONGEST_QUESTION], most)

    def _titles(self) -> list[tuple[str, str]]:
        titles = {each.slug: each.title for each in self._fresh().passages.values()}
        return sorted(titles.items(), key=lambda pair: pair[1].lower())

    def _source(self, slug: str) -> str | None:
        return self._fresh().sources.get(slug)

    def _refresh(self) -> None:
        """Index new and changed files, and forget removed ones."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_FOLDERS_S:
            return
        self._checked_at = now
        stamps = {path: stamp for folder in self._folders for path, stamp in _files(folder)}
        if stamps == self._stamps:
            return
        sources = {slug_of(path): path for path in stamps if path.suffix == ".md"}
        before = {slug_of(path): path for path in self._stamps if path.suffix == ".md"}
        for slug in before.keys() | sources.keys():
            path = sources.get(slug)
            if path is None or path != before.get(slug) or stamps[path] != self._stamps.get(path):
                self._index.put(slug, _read(path) if path else "")
        self._stamps = stamps
        self._index.settle(Language.read((path for path in stamps if path.suffix == ".txt"), _read))


class Index:
    """The passages of documents, by word. Not for several threads at once."""

    def __init__(self) -> None:
        self.passages: dict[int, Passage] = {}
        self.sources: dict[str, str] = {}
        self.reader = Reader(Language(), (), self._has)
        self._language = Language()
        self._rows: dict[str, list[int]] = {}  # of each document
        self._heads: dict[int, tuple[frozenset[str], frozenset[str]]] = {}  # words of the heading, of all that names it
        self._words: Counter[str] = Counter()
        self._next = 1
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.execute(SCHEMA)

    def put(self, slug: str, source: str) -> None:
        """Index a document in place of the former one of its name; "" removes it. `settle` must follow."""
        for row in self._rows.pop(slug, ()):
            self._words.subtract(_words_of(self.passages.pop(row)))
            del self._heads[row]
            self._database.execute("DELETE FROM passages WHERE rowid = ?", (row,))
        self.sources.pop(slug, None)
        if not source.strip():
            return
        self.sources[slug] = asked_apart(source)[0]
        for passage in split_document(slug, source):
            row, self._next = self._next, self._next + 1
            self._rows.setdefault(slug, []).append(row)
            self.passages[row] = passage
            heads = _stems(f"{passage.title} {passage.heading} {passage.asked}")
            self._heads[row] = _stems(passage.heading), heads
            self._words.update(_words_of(passage))
            texts = [fold(text) for text in (passage.title, passage.heading, passage.asked, passage.text)]
            self._database.execute(
                "INSERT INTO passages (rowid, title, heading, asked, text) VALUES (?, ?, ?, ?, ?)", (row, *texts)
            )

    def settle(self, language: Language) -> None:
        """Read questions with this language and the words of now."""
        self._words = +self._words
        self._language = language
        self.reader = Reader(language, self._words, self._has)

    def knows(self, word: str) -> bool:
        """Return True if the word or another name of it occurs."""
        return self._has(word) or any(self._has(name) for name in self._language.called(word))

    def find(self, question: str, most: int) -> Found:
        """Return the passages that are nearest to a question."""
        terms = self.reader.terms(question)
        if not terms or not self.passages:
            return Found()
        scores: defaultdict[int, float] = defaultdict(float)
        shares: defaultdict[int, float] = defaultdict(float)
        whole = 0.0
        for term in terms:
            rows = self._rows_of(term)
            weight = term.weight * self._rarity(len(rows))
            whole += weight
            for row, (score, share) in rows.items():
                scores[row] += term.weight * score
                shares[row] += weight * share
        best = sorted(scores, key=lambda row: -scores[row] * shares[row])[:MOST_WEIGHED]
        said = _stems(question)
        hits = [
            self._hit(row, scores[row] * self._likeness(row, terms, said), shares[row] / whole, terms) for row in best
        ]
        hits.sort(key=lambda hit: -hit.score)
        return Found(hits[:most])

    def _hit(self, row: int, score: float, share: float, terms: Sequence[Term]) -> Hit:
        passage = self.passages[row]
        headed = _common(self._heads[row][1], terms)
        return Hit(passage, score * share, share, share >= SURE[min(headed, max(SURE))])

    def _likeness(self, row: int, terms: Sequence[Term], said: frozenset[str]) -> float:
        """Return a factor for how much the heading is like the question: in terms, and in the very words."""
        heading = self._heads[row][0]
        common = _common(heading, terms)
        in_terms = common / max(1, len(terms) + len(heading) - common)
        return 1 + LIKE_HEADING * in_terms + LIKE_WORDS * len(heading & said) / max(1, len(heading | said))

    def _rows_of(self, term: Term) -> dict[int, tuple[float, float]]:
        """Return the score of the term in each row that has it, and how much of it that is."""
        best: dict[int, tuple[float, float]] = {}
        for query, factor in _queries(term):
            for row, rank in self._database.execute(SEARCH, (query, MOST_ROWS)):
                score, share = best.get(row, (0.0, 0.0))
                best[row] = max(score, -rank * factor), max(share, min(1.0, factor**SHARED))
        return best

    def _rarity(self, rows: int) -> float:
        """Return the weight of a word in so many passages: the rarer the higher; of one in none, something between."""
        return ln((len(self.passages) + 1) / (rows + 0.5)) + 0.1 if rows else UNKNOWN * ln(len(self.passages) + 1)

    def _has(self, word: str) -> bool:
        sql = "SELECT 1 FROM passages WHERE passages MATCH ? LIMIT 1"
        query = f'"{word.removesuffix("*")}"' + "*" * word.endswith("*")
        return self._database.execute(sql, (query,)).fetchone() is not None


SEARCH = f"""SELECT rowid, bm25(passages, {", ".join(map(str, FIELDS))}) AS score FROM passages
WHERE passages MATCH ? ORDER BY score LIMIT ?"""


def _queries(term: Term) -> list[tuple[str, float]]:
    """Return the FTS5 queries of a term's forms, each with its factor: quoted, so that no input is syntax."""
    words = [(form, factor) for form, factor in term.forms.items() if WORD.fullmatch(form)]
    return [(f'"{form}"*' if len(form) >= LEAST_BEGINNING else f'"{form}"', factor) for form, factor in words]


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:STEM] for word in split(text))


def _common(stems: frozenset[str], terms: Sequence[Term]) -> int:
    """Return the number of terms that are among these words."""
    return sum(any(form[:STEM] in stems for form in term.forms) for term in terms)


def _words_of(passage: Passage) -> set[str]:
    text = " ".join((passage.title, passage.heading, passage.asked, passage.text))
    return {word for word in split(text) if len(word) >= 4 and word.isalpha()}


@lru_cache(MOST_RENDERED)
def _rendered(slug: str, source: str) -> Document:
    marks = compute_in_thread(markdown.headings, source)
    return Document(marks[0].text if marks else slug, compute_in_thread(markdown.render, source))


def _files(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """Return the documents and word lists of a folder, if it exists, with (mtime in ns, size)."""
    found: list[tuple[Path, tuple[int, int]]] = []
    for path in [*sorted(folder.glob("*.md")), *(folder / name for name in (STOP_WORDS, WEAK_WORDS, GLOSSARY))]:
        try:
            stat = path.stat()
        except OSError:
            continue  # not there, or removed since it was listed
        if S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode):  # a pipe would be waited for
            found.append((path, (stat.st_mtime_ns, stat.st_size)))
    return found


def _read(path: Path) -> str:
    """Return the file's text: empty if it cannot be read, with U+FFFD if it is not UTF-8; both are logged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        log.warning("%s cannot be read (%s); the assistant answers without it", path, error.strerror)
        return ""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        log.warning("%s is not UTF-8 (line %d): letters are missing until it is saved as UTF-8", path, line)
        text = data.decode("utf-8-sig", errors="replace")
    return text.replace("\r", "")


def slug_of(path: Path) -> str:
    """Return the name of a document in URLs."""
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_") or "document"
