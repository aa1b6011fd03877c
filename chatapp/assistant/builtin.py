"""The built-in assistant: answers from a folder of Markdown, without a network, a key or a model.

It quotes the passages that fit a question best and cites them, or says that it found nothing.
"""

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log as ln
from pathlib import Path

from chatapp.assistant import markdown
from chatapp.concurrency import compute_in_thread
from chatapp.store import Turn

log = logging.getLogger("chatapp.knowledge")

CHECK_FOLDERS_S = 2.0
"""Least seconds between two checks of the folders for changes."""
LEAST_SHARE = 0.5
"""The least share of the question, by weight of its words, in a passage that answers it."""
LEAST_SHARE_WITHOUT_HEADING = 0.75
"""The share if neither the passage's heading nor its document's title has any of the words."""
MANY_WORDS, LEAST_SHARE_OF_MANY = 3, 0.35
"""With so many different words found, this smaller share suffices."""
CHUNK_S = 0.025
"""Seconds between two pieces of a paced answer."""
LONGEST_SECOND_QUOTE = 900
"""Characters up to which a further passage is quoted whole; of a longer one only the beginning."""

# Words without information about a question's subject.
STOP_WORDS = frozenset(
    re.findall(
        r"\S+",
        """a about after again all also am an and any anything are as at be because been before being but by
        can cannot could did do does doing done each else ever for from get gets getting give go goes
        going got had has have having help here hi hello how i if in instead into is it its just kind know
        let like look make many may me might mine more most much must my need needs no not now of off on
        one only or other our out over please question right say see shall she should show so some
        something still such sure take tell than thank thanks that the their them then there these they
        thing things this those though to too try under up us use used using very via want wants was way
        we well were what when where which while who why will with without work works would yes yet you
        playbook playbooks
        your s t don doesn isn re ve ll m d best good new mean means explain happen happens""",
    )
)

# The words of people: the words of the documents. The former also find passages with the latter.
SYNONYMS: dict[str, tuple[str, ...]] = {
    said: tuple(written.split())
    for line in """
    copy save saving: backup
    recover recovery: restore
    login logon: sign
    log: sign logs
    expensive cheaper price bill spend spending money: cost
    slow: latency performance
    outage: incident
    hacked breach: compromised incident
    permissions permission: role iam
    freelancer freelancers external: contractor
    vm server vms: machine server
    downtime: zero-downtime downtime
    rollout release deploy: deployment
    upgrading: upgrade
    domain nameserver: dns
    postgres: postgresql database
    mysql db: database
    socket ws: websocket
    disconnects: closed reset
    offline: disconnected reconnecting
    size big bigger large: sizing size
    env: environment setting
    configure: setting configuration
    install: start installation
    """.strip().splitlines()
    for people_say, _, written in [line.partition(":")]
    for said in people_say.split()
}

SCHEMA = """
CREATE VIRTUAL TABLE passages
USING fts5(title, heading, text, tokenize = "porter unicode61 remove_diacritics 2")
"""


@dataclass(frozen=True)
class Passage:
    """One section of a document: the Markdown under one heading."""

    slug: str
    title: str
    anchor: str
    heading: str
    text: str

    @property
    def link(self) -> str:
        """The URL of its citation, relative to a conversation's page."""
        return f"../knowledge/{self.slug}" + (f"#{self.anchor}" if self.anchor else "")


@dataclass(frozen=True)
class Document:
    """A whole document, ready to show."""

    title: str
    html: str


def informative_words(question: str) -> list[str]:
    """Return the words of a question without stop words: lower case, each once, at most 16."""
    words = [word for word in re.findall(r"[^\W_]+", question.lower()) if len(word) < 40]
    return list(dict.fromkeys(word for word in words if word not in STOP_WORDS and len(word) > 1))[:16]


def _term(word: str) -> str:
    """Return one FTS5 term: quoted, so that no input is syntax; a prefix from four letters on."""
    return f'"{word}"*' if len(word) >= 4 else f'"{word}"'


def _expression(word: str) -> str:
    """Return the FTS5 query for a word or one of its synonyms."""
    return " OR ".join(_term(form) for form in dict.fromkeys((word, *SYNONYMS.get(word, ()))))


def _heading_likeness(question: str, passage: Passage) -> float:
    """Return the likeness of question and heading, stop words included: 0 to 1."""
    asked = set(re.findall(r"[^\W_]+", question.lower()))
    asked.update(form for word in tuple(asked) for form in SYNONYMS.get(word, ()))
    heading, title = (set(re.findall(r"[^\W_]+", text.lower())) for text in (passage.heading, passage.title))
    return max(len(asked & heading) / len(asked | heading), len(asked & title) / len(asked | title) / 2)


def split_document(slug: str, source: str) -> list[Passage]:
    """Return the passages of a document, one for each heading with text under it."""
    lines = source.split("\n")
    marks = markdown.headings(source)
    title = next((mark.text for mark in marks), slug.replace("-", " ").capitalize())
    first = marks[0].line if marks else len(lines)
    found = [Passage(slug, title, "", title, "\n".join(lines[:first]).strip())]
    for at, mark in enumerate(marks):
        end = marks[at + 1].line if at + 1 < len(marks) else len(lines)
        text = "\n".join(lines[mark.after : end]).strip()
        found.append(Passage(slug, title, mark.anchor, mark.text, text))
    return [passage for passage in found if passage.text]


class Knowledge:
    """Folders of Markdown, indexed in memory. A file in a later folder replaces an earlier one of the same name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._passages: list[Passage] = []
        self._sources: dict[str, str] = {}
        self._documents: dict[str, Document] = {}  # rendered; dropped if a file changes
        self._index = self._empty_index()
        self._refresh()

    def titles(self) -> list[tuple[str, str]]:
        """Return (slug, title) of every document, by title."""
        with self._lock:
            self._refresh()
            return sorted({(each.slug, each.title) for each in self._passages}, key=lambda pair: pair[1].lower())

    def document(self, slug: str) -> Document | None:
        """Return the document of that name, or None."""
        with self._lock:
            self._refresh()
            source, documents = self._sources.get(slug), self._documents
        if source is not None and slug not in documents:
            marks = compute_in_thread(markdown.headings, source)
            documents[slug] = Document(marks[0].text if marks else slug, compute_in_thread(markdown.render, source))
        return documents.get(slug)

    def search(self, question: str, limit: int = 3) -> list[Passage]:
        """Return the passages that answer a question, best first."""
        words = informative_words(question)
        with self._lock:
            self._refresh()
            if not words or not self._passages:
                return []
            return [self._passages[row] for row in self._rank(question, words)[:limit]]

    def has_words(self, words: Iterable[str]) -> bool:
        """Return True if each of these words occurs in some passage."""
        with self._lock:
            self._refresh()
            return all(self._matching_rows(word) for word in words)

    def _rank(self, question: str, words: Sequence[str]) -> list[int]:
        """Return the rows above the least share, ranked by BM25, their share of the question, and their heading."""
        rows = {word: self._matching_rows(word) for word in words}
        headed = set().union(*(self._matching_rows(word, "{title heading} : ") for word in words))
        weight = {word: self._weight(len(rows[word])) for word in words}
        whole = sum(weight.values())
        scores: dict[int, float] = {}
        for row, rank in self._bm25(words):
            matched = [word for word in words if row in rows[word]]
            share = sum(weight[word] for word in matched) / whole
            has_many = len(matched) >= MANY_WORDS and share >= LEAST_SHARE_OF_MANY
            if has_many or share >= (LEAST_SHARE if row in headed else LEAST_SHARE_WITHOUT_HEADING):
                scores[row] = -rank * share * share * (1 + _heading_likeness(question, self._passages[row]))
        best = max(scores.values(), default=0.0)
        return sorted((row for row in scores if scores[row] >= best / 3), key=lambda row: -scores[row])

    def _weight(self, passages: int) -> float:
        """Return the weight of a word in that many passages: the rarer the higher, highest for 0."""
        return ln((len(self._passages) + 1) / (passages + 0.5)) * (1 if passages else 1.5) + 0.1

    def _matching_rows(self, word: str, columns: str = "") -> set[int]:
        """Return the rows with the word or one of its synonyms."""
        sql = "SELECT rowid FROM passages WHERE passages MATCH ?"
        return {row for (row,) in self._index.execute(sql, (f"{columns}({_expression(word)})",))}

    def _bm25(self, words: Sequence[str]) -> list[tuple[int, float]]:
        """Return (row, rank) of the passages with any of the words; a lower rank is better."""
        sql = """SELECT rowid, bm25(passages, 3.0, 6.0, 1.0) AS score FROM passages
                 WHERE passages MATCH ? ORDER BY score LIMIT 40"""
        return list(self._index.execute(sql, (" OR ".join(_expression(word) for word in words),)))

    def _refresh(self) -> None:
        """Rebuild the index if a file was added, removed or changed."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_FOLDERS_S:
            return
        self._checked_at = now
        stamps = {path: stamp for folder in self._folders for path, stamp in _files(folder)}
        if stamps != self._stamps:
            self._stamps = stamps
            self._rebuild()

    def _rebuild(self) -> None:
        self._documents = {}
        sources = {_slug(path): _read(path) for path in self._stamps}
        self._sources = {slug: text for slug, text in sources.items() if text.strip()}
        self._passages = [passage for slug, text in self._sources.items() for passage in split_document(slug, text)]
        self._index.close()
        self._index = self._empty_index()
        self._index.executemany(
            "INSERT INTO passages (rowid, title, heading, text) VALUES (?, ?, ?, ?)",
            [(row, each.title, each.heading, each.text) for row, each in enumerate(self._passages)],
        )

    @staticmethod
    def _empty_index() -> sqlite3.Connection:
        index = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        index.execute(SCHEMA)
        return index


def _files(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """Return the Markdown files of a folder, if it exists, with (mtime in ns, size)."""
    found: list[tuple[Path, tuple[int, int]]] = []
    for path in sorted(folder.glob("*.md")):
        try:
            stat = path.stat()
        except OSError:
            continue  # removed since it was listed
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


def _slug(path: Path) -> str:
    """Return the name of a document in URLs."""
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_") or "document"


GREETING = re.compile(r"\W*(hi|hello|hey|good (morning|afternoon|evening|day)|hallo)( there| assistant)?\W*", re.I)
THANKS = re.compile(  # possessive: three \W* in a row would backtrack
    r"(?=.*\w)\W*+((ok|okay|great|perfect|cool|good|got it)\W*+)?"
    r"((thanks|thank you|thx|cheers)( (a lot|so much|very much))?)?\W*+",
    re.I,
)
ABILITIES = re.compile(
    r"\W*(help( me)?|what (can|do) you (do|know)( about)?|(who|what) are you|how can you help( me)?)\W*",
    re.I,
)
FOLLOW_UP = re.compile(r"\s*(and|but|or|so|also|then|what about|how about|more|tell me more|go on|why)\b", re.I)
POINTING = re.compile(r"\b(it|that|this|these|those|them|there)\b", re.I)


class BuiltIn:
    """The provider that answers from the knowledge folder; `pace`: characters a second, 0 or less: at once."""

    def __init__(self, knowledge: Knowledge, pace: float) -> None:
        self._knowledge = knowledge
        self._pace = pace

    def answer(self, history: Sequence[Turn]) -> Iterator[str]:
        """Answer all questions since the last answer; the one before them explains a follow-up."""
        question, previous = _questions(history)
        return paced(self.compose(question, previous), self._pace)

    def compose(self, question: str, previous: str = "") -> str:
        """Return the whole answer as Markdown."""
        if GREETING.fullmatch(question):
            return "Hello! " + self._abilities()
        if ABILITIES.fullmatch(question):
            return self._abilities()
        if THANKS.fullmatch(question):
            return "You are welcome. Ask on whenever you like."
        passages = self._find(question, previous)
        return _quote(passages) if passages else self._nothing()

    def _find(self, question: str, previous: str) -> list[Passage]:
        """Find passages for the question; a short follow-up of known words is searched together with `previous`."""
        words = informative_words(question)
        is_follow_up = FOLLOW_UP.match(question) or POINTING.search(question)
        if previous and is_follow_up and len(words) <= 3 and self._knowledge.has_words(words):
            passages = self._knowledge.search(f"{question} {previous}")
            if passages:
                return passages
        return self._knowledge.search(question)

    def _abilities(self) -> str:
        return (
            "I answer from the knowledge folder of this installation, word for word and with the source. "
            "Ask me about one of these:\n\n" + self._contents()
        )

    def _nothing(self) -> str:
        return "I found nothing about that in the knowledge folder. It has documents about:\n\n" + self._contents()

    def _contents(self) -> str:
        titles = self._knowledge.titles()
        return "\n".join(f"- [{_escape(title)}](../knowledge/{slug})" for slug, title in titles) or "- nothing yet"


def _questions(history: Sequence[Turn]) -> tuple[str, str]:
    """Return (all questions since the last answer, the question before them)."""
    newest: list[str] = []
    earlier = [turn for turn in history if turn.body.strip()]
    while earlier and earlier[-1].author == "assistant":
        earlier.pop()  # a retry: the interrupted answer comes last
    while earlier and earlier[-1].author == "user":
        newest.insert(0, earlier.pop().body.strip())
    before = next((turn.body for turn in reversed(earlier) if turn.author == "user"), "")
    return "\n".join(newest), before


def _escape(text: str) -> str:
    """Escape a title for Markdown."""
    return re.sub(r"([\\\[\]*_`<>])", r"\\\1", text)


def _quote(passages: Sequence[Passage]) -> str:
    """Quote the passages, the first one whole, each with its citation, then list the sources."""
    parts: list[str] = []
    for number, passage in enumerate(passages, 1):
        text = passage.text if number == 1 else _beginning(passage.text)
        parts += [f"**{_escape(passage.heading)}** [{number}]({passage.link})", text]
    sources = [
        f"[{number}]({passage.link}) {_escape(passage.title)}"
        + ("" if passage.heading == passage.title else f", {_escape(passage.heading)}")
        for number, passage in enumerate(passages, 1)
    ]
    return "\n\n".join([*parts, "Sources: " + " · ".join(sources)])


def _beginning(text: str) -> str:
    """Return as many whole blocks as fit, at least one, so that lists and code are never cut."""
    if len(text) <= LONGEST_SECOND_QUOTE:
        return text
    kept = ""
    for block in markdown.sources(text):
        if kept and len(kept) + len(block) > LONGEST_SECOND_QUOTE:
            break
        kept += block
    return kept.strip()


def paced(text: str, pace: float) -> Iterator[str]:
    """Yield pieces of whole words, about one every 25 ms, at `pace` characters a second."""
    if pace <= 0:
        yield text
        return
    started, sent, piece = time.monotonic(), 0, ""
    for word in re.findall(r"\S+\s*|\s+", text):
        piece += word
        if len(piece) < pace * CHUNK_S:
            continue
        yield piece
        sent, piece = sent + len(piece), ""
        # Timed from the start, not from the last piece, so that delays of a busy server do not add up.
        time.sleep(max(0.0, started + sent / pace - time.monotonic()))
    if piece:
        yield piece
