"""The built-in assistant: answers from a folder of Markdown, without a network, a key or a model.

It quotes the passages that answer a question and cites them. Without enough evidence it says so, and names the nearest.
"""

import re
import time
from collections.abc import Generator, Sequence

from chatapp.assistant import markdown
from chatapp.assistant.knowledge import Found, Knowledge, Passage
from chatapp.assistant.provider import NO_WISHES, Tell, Wishes, no_record
from chatapp.assistant.questions import Note, find, ignore, questions
from chatapp.store import Turn

CHUNK_S = 0.025
"""Seconds between two pieces of a paced answer."""
LONGEST_SECOND_QUOTE = 900
"""Characters up to which a further passage is quoted whole; of a longer one only the beginning."""

NOTHING = (
    "I found nothing about that in the knowledge folder. Ask in other words, or see [what is in it](../knowledge)."
)
NEAREST = "I am not sure that the knowledge folder answers this. These are nearest:"

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


class BuiltIn:
    """The provider that answers from the knowledge folder; `pace`: characters a second, 0 or less: at once."""

    def __init__(self, knowledge: Knowledge, pace: float, tell: Tell = no_record, note: Note = ignore) -> None:
        self._knowledge = knowledge
        self._pace = pace
        self._tell = tell
        self._note = note

    def answer(self, history: Sequence[Turn], wishes: Wishes = NO_WISHES) -> Generator[str, None, None]:
        """Answer all questions since the last answer."""
        if record := self._tell(history, wishes.person):
            found = find(self._knowledge, history)
            more = _quote(found.quotable) if found.is_sure else ""
            return paced(f"{record}\n\n{more}".rstrip(), self._pace)
        return paced(self.compose(history), self._pace)

    def models(self) -> list[str]:
        """Return nothing."""
        return []

    def compose(self, history: Sequence[Turn]) -> str:
        """Return the whole answer as Markdown."""
        question, _previous = questions(history)
        if GREETING.fullmatch(question):
            return "Hello! " + self._abilities()
        if ABILITIES.fullmatch(question):
            return self._abilities()
        if THANKS.fullmatch(question):
            return "You are welcome. Ask on whenever you like."
        found = find(self._knowledge, history)
        self._note(question, found)
        return answer_of(found)

    def _abilities(self) -> str:
        return (
            "I answer from the knowledge folder of this installation, word for word and with the source. "
            "Ask me about one of these:\n\n" + self._contents()
        )

    def _contents(self) -> str:
        titles = self._knowledge.titles()
        return "\n".join(f"- [{_escape(title)}](../knowledge/{slug})" for slug, title in titles) or "- nothing yet"


def is_small_talk(question: str) -> bool:
    """Return True for a greeting, thanks or a question about the assistant itself."""
    return any(pattern.fullmatch(question) for pattern in (GREETING, ABILITIES, THANKS))


def _escape(text: str) -> str:
    """Escape a title for Markdown."""
    return re.sub(r"[\\\[\]*_`<>$]", lambda found: f"&#{ord(found.group())};", text)


def answer_of(found: Found) -> str:
    """Return the passages as Markdown: quoted if they answer the question, else only named."""
    if found.is_sure:
        return _quote(found.quotable)
    if not found.hits:
        return NOTHING
    lines = (f"{number}. {_named(passage)}" for number, passage in enumerate(found.passages, 1))
    return "\n".join([NEAREST, "", *lines])


def _named(passage: Passage) -> str:
    where = "" if passage.heading == passage.title else f", {_escape(passage.title)}"
    return f"[{_escape(passage.heading)}]({passage.link}){where}"


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


def paced(text: str, pace: float) -> Generator[str, None, None]:
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
