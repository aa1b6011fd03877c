"""The newest changes of an answer's block: how much of its HTML each left as it was, at the start and at the end.

Colours of code come when a block has ended, all over it. So what was left is also counted without them: a reader has
the code already, and gets only where the colours are.

Stored as JSON: [revision before, revision after, length of the common prefix], then [revision after, 0, length of the
common suffix] and, where there are colours, [revision after, -1, length of the common prefix without them]. A version
that knows only the first, which may run at the same time, ignores the others: no cursor is below 0.
"""

import json
import re
from dataclasses import dataclass

MOST_STEPS = 20  # a reader further behind gets the block whole
LONGEST_END = 200  # characters: room for the closing tags of nested lists in a table, and a copy button
CODE = '<figure class="code">'
COLOUR = re.compile(r"<(/?)(b|i|u|var)>")  # only in code (see assistant/colours.py)


@dataclass(frozen=True)
class Step:
    """A change, from one revision to another: lengths in characters that it left as they were."""

    before: int
    after: int
    start: int
    plain_start: int  # without colours
    plain_end: int


def read_steps(text: str) -> tuple[Step, ...]:
    """Parse stored steps, oldest first."""
    found = json.loads(text)
    ends = {at: length for at, mark, length in found if mark == 0}
    plain = {at: length for at, mark, length in found if mark == -1}
    return tuple(
        # Of an older version's step it is not known what it left without colours.
        Step(a, b, start, plain.get(b, start) if b in ends else 0, ends.get(b, 0))
        for a, b, start in found
        if b > 0
    )


def add_step(steps: str, before: int, after: int, old: str, new: str) -> str:
    """Return the stored steps with the change from `old` to `new`."""
    found = [*json.loads(steps), [before, after, common_start(old, new)]]
    if CODE in new:
        old, new = without_colours(old), without_colours(new)
        found.append([after, -1, common_start(old, new)])
    start = common_start(old, new)
    found.append([after, 0, common_end(old[start:], new[start:])])
    return json.dumps(found[-3 * MOST_STEPS :], separators=(",", ":"))


def without_colours(html: str) -> str:
    """Return HTML without the colours of its code."""
    return COLOUR.sub("", html) if CODE in html else html


def common_start(a: str, b: str) -> int:
    """Return the length in characters of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_end(a: str, b: str) -> int:
    """Return the length in characters of the longest common suffix, LONGEST_END at most."""
    most = min(len(a), len(b), LONGEST_END)
    return common_start(a[len(a) - most :][::-1], b[len(b) - most :][::-1])
