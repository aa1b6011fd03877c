"""Lines of Markdown that are in a fenced block of code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})(.*)")


def with_fences(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield each line, and whether it is of a fenced block, its fences included."""
    before = ""
    for line, opened in _opened(lines):
        yield line, bool(before or opened)
        before = opened


def open_fence(text: str) -> str:
    """Return the fence that a text leaves open; "" for none."""
    states = [opened for _, opened in _opened(text.splitlines())]
    return states[-1] if states else ""


def _opened(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each line, and the fence that is open behind it."""
    opened = ""
    for line in lines:
        found = FENCE.match(line)
        if not opened and found and not (found[1][0] == "`" and "`" in found[2]):
            opened = found[1]
        elif opened and found and found[1].startswith(opened) and not found[2].strip():
            opened = ""
        yield line, opened
