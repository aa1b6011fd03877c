"""Patterns that run over what people and models write take time in proportion to it: they run on the event loop."""

import time
from collections.abc import Callable

import pytest

from chatapp.assistant.builtin import ABILITIES, GREETING, THANKS
from chatapp.assistant.questions import FOLLOW_UP
from chatapp.assistant.settled import settled_lines, settled_words

SHORT, LONG = 2000, 20_000  # characters; the longest message has so many
MOST = 4 * LONG / SHORT  # in proportion it is ten times as long, with the square a hundred times


def seconds(work: Callable[[str], object], text: str) -> float:
    """The quickest of some runs, in processor time: others may use the machine, too."""
    found = []
    for _ in range(5):
        began = time.process_time()
        work(text)
        found.append(time.process_time() - began)
    return min(found)


@pytest.mark.parametrize("piece", ["!", " ", "\n", "ok ", "! ok", "thanks ", "and "])
@pytest.mark.parametrize("pattern", [GREETING, THANKS, ABILITIES, FOLLOW_UP], ids=lambda pattern: pattern.pattern[:12])
def test_small_talk(pattern, piece: str) -> None:
    short, long = ((piece * size)[:size] + "x?x" for size in (SHORT, LONG))
    assert seconds(pattern.fullmatch, long) < MOST * max(seconds(pattern.fullmatch, short), 20e-6)


def settled(text: str) -> str:
    """What is shown of an open block."""
    return settled_words(settled_lines(text, "")[0])


@pytest.mark.parametrize("piece", ["\n", " ", "\n ", "\t", "> ", "- ", "1", "1. ", "```\n", "[", "](", "|", "`", "*"])
def test_the_end_of_an_open_block(piece: str) -> None:
    short, long = ("a\n" + (piece * size)[:size] + "x" for size in (SHORT, LONG))
    assert seconds(settled, long) < MOST * max(seconds(settled, short), 20e-6)


@pytest.mark.parametrize(
    ("text", "is_thanks"),
    [
        ("Thanks!", True),
        ("…ok, thank you so much :-)", True),
        ("Great.", True),
        ("  got it!! cheers", True),
        ("!!!", False),
        ("thanks for nothing", False),
        ("ok computer", False),
    ],
)
def test_thanks_are_still_understood(text: str, is_thanks: bool) -> None:
    assert bool(THANKS.fullmatch(text)) == is_thanks
