"""The question in a conversation, and the passages for it: the same for every assistant."""

import re
from collections.abc import Callable, Sequence

from chatapp.assistant.knowledge import MOST_FOUND, Found, Knowledge
from chatapp.assistant.provider import asked
from chatapp.store import Turn
from chatapp.store.attachments import REFERENCE
from chatapp.store.members import ADDRESSED
from chatapp.store.runs import GO_ON

FOLLOW_UP = re.compile(
    r"\s*(and|but|or|so|also|then|what about|how about|more|tell me more|go on|why|und|aber|y|pero)\b", re.I
)
POINTING = re.compile(r"\b(it|that|this|these|those|them|there)\b", re.I)
_END = r"( status| quality)?( now| right now| today| doing| ok(ay)?| good| like| at the moment)?\W*$"
OWN_CONNECTION = re.compile(
    r"(\b(how|what|is|how's|what's|check|test|show|show me|status of)( is| about)? my (own |present )?connection|"
    r"^\W*my connection|"
    r"\bam i (still |always )?(connected|live|online|offline|polling|disconnected))" + _END + "|"
    r"\bwie (ist|steht es um|gut ist) meine (internet)?verbindung\W*$|"
    r"\b(warum )?bin ich (verbunden|online|offline)\W*$|"
    r"\b(c[oó]mo (est[aá]|va)|qu[eé] tal) mi conexi[oó]n\W*$|\b(por qu[eé] )?estoy (conectad[oa]|en l[ií]nea)\W*$",
    re.I,
)
Note = Callable[[str, Found], None]
"""Called with each question and the passages for it."""
MOST_POINTING = 3  # words of a follow-up


def find(knowledge: Knowledge, history: Sequence[Turn], most: int = MOST_FOUND) -> Found:
    """Find passages for the question; a short follow-up of known words is searched with the question before it."""
    question, previous = questions(history)
    words = knowledge.informative(question)
    is_follow_up = FOLLOW_UP.match(question) or POINTING.search(question)
    if previous and is_follow_up and len(words) <= MOST_POINTING and knowledge.has_words(words):
        found, alone = knowledge.find(f"{question} {previous}", most), knowledge.find(question, most)
        if found.is_sure and (POINTING.search(question) or not alone.is_sure):
            return found
        return alone
    return knowledge.find(question, most)


def asks_for_connection(history: Sequence[Turn]) -> int:
    """Return the id of the person who asks for their own connection; 0 if nobody does."""
    return asked_for(history, OWN_CONNECTION)[0]


def asked_for(history: Sequence[Turn], pattern: re.Pattern[str]) -> tuple[int, str]:
    """Return the newest question since the last answer that a pattern finds, after its person; (0, "") for none."""
    newest = [(turn.person, _question(turn)) for turn in reversed(_newest(history)[0]) if turn.is_asked]
    return next((one for one in newest if pattern.search(one[1])), (0, ""))


def ignore(question: str, found: Found) -> None:
    """Note nothing."""


def questions(history: Sequence[Turn]) -> tuple[str, str]:
    """Return (all questions since the last answer, the question before them). Where only some of them are to the
    assistant, these; if they say nothing by themselves, all."""
    newest, earlier = _newest(history)
    texts = [_question(turn) for turn in newest if turn.is_asked and _question(turn)]
    texts = texts or [text for turn in newest if (text := _question(turn))]
    before = next((turn.body for turn in reversed(earlier) if turn.author == "user"), "")
    return "\n".join(texts), before


def _newest(history: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Return the turns since the last answer, and those before; where an answer goes on, those of its question."""
    if history and history[-1].body == GO_ON:
        history = history[:-1]
    newest: list[Turn] = []
    earlier = asked(history)
    while earlier and earlier[-1].author == "user":
        newest.insert(0, earlier.pop())
    return newest, earlier


def _question(turn: Turn) -> str:
    return REFERENCE.sub("", ADDRESSED.sub("", turn.body)).strip(" \n,:")
