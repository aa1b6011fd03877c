"""Whether a text shows anything: white space, marks of direction, joiners and fillers alone make an empty bubble."""

import unicodedata

UNSEEN = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))
"""Categories of which nothing is drawn: controls, formats, separators."""
FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
"""Letters, marks and a Braille pattern that are drawn as nothing."""


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen; the empty text is blank, too."""
    return all(_is_unseen(char) for char in text)


def _is_unseen(char: str) -> bool:
    is_selector = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"  # of a variant of the one before
    return is_selector or char in FILLERS or unicodedata.category(char) in UNSEEN
