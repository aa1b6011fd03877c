"""Detection of blank text: white space, direction marks, joiners and fillers alone would make an empty bubble."""

import unicodedata

UNSEEN = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))
"""Unicode categories without a glyph: controls, formats, separators."""
FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
"""Letters, marks and a Braille pattern with an empty glyph."""


def is_blank(text: str) -> bool:
    """Return True if the text is empty or has no visible character."""
    if "!" <= text[:1] <= "~":
        return False  # nearly every message begins like this
    return all(_is_unseen(char) for char in text)


def without_unseen(text: str) -> str:
    """Return the text without characters that have no glyph; white space stays."""
    return "".join(char for char in text if char.isspace() or not _is_unseen(char))


def is_assistants(name: str) -> bool:
    """Return True if a person's name reads as the assistant's."""
    return without_unseen(unicodedata.normalize("NFKC", name)).strip().casefold() == "assistant"


def _is_unseen(char: str) -> bool:
    is_selector = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"  # variation selector
    return is_selector or char in FILLERS or unicodedata.category(char) in UNSEEN
