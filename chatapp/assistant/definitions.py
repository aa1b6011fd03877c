"""Definitions on later lines: links by reference (`[text][id]`, `[id]: url`) and footnotes (`[^1]`, `[^1]: note`).

While an answer grows these are text; they are resolved once it has ended. Footnotes get numbers and no anchors, since
several messages are on one page.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, reference
from markdown_it.rules_inline import StateInline

_NOTE = re.compile(r"\[\^([^\s\[\]]{1,100})\]:[ \t]*")
_MENTION = re.compile(r"\[\^([^\s\[\]]{1,100})\]")


@dataclass
class Definitions:
    """The definitions of a text, and the labels of its footnotes in the order of their numbers."""

    references: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    is_collecting: bool = True

    def env(self) -> dict[str, Any]:
        """Return the parser's `env`, in which the rules find this."""
        return {"references": self.references, "definitions": self}

    def number(self, label: str) -> int:
        """Return the number of a footnote, the next one at its first mention."""
        if label not in self.numbers:
            self.labels.append(label)
            self.numbers[label] = len(self.labels)
        return self.numbers[label]

    def numbered_notes(self) -> Iterator[str]:
        """Yield the footnotes in the order of their numbers, which rendering one may extend; then the unmentioned."""
        self.is_collecting = False
        unmentioned, shown = iter(self.notes), 0
        while shown < len(self.notes):
            while shown == len(self.labels):
                self.number(next(unmentioned))
            yield self.notes[self.labels[shown]]
            shown += 1


def joined_notes(sources: Sequence[str]) -> list[str]:
    """Return the blocks with the indented ones below a footnote joined to it; their own places become empty."""
    found, note = list(sources), -1
    for at, source in enumerate(sources):
        if note >= 0 and source.startswith(("    ", "\t")):
            found[note] += source
            found[at] = ""
        else:
            note = at if "[^" in source and "]:" in source else -1
    return found


def register(markdown: MarkdownIt) -> None:
    """Add the rules. Without `env["definitions"]` they do nothing."""
    alt: RuleOptionsType = {"alt": ["paragraph", "reference"]}
    markdown.block.ruler.before("reference", "note", _note, alt)
    markdown.block.ruler.at("reference", _reference)
    markdown.inline.ruler.before("link", "mention", _mention)


def _reference(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    return "definitions" in state.env and reference(state, first, last, silent)


def _note(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Take a footnote: the rest of its paragraph, and the indented lines below it."""
    definitions: Definitions | None = state.env.get("definitions")
    start = state.bMarks[first] + state.tShift[first]
    if definitions is None or state.is_code_block(first):
        return False
    found = _NOTE.match(state.src, start, state.eMarks[first])
    label = normalizeReference(found.group(1)) if found else ""
    if found is None or not (definitions.is_collecting or label in definitions.notes):
        return False
    if silent:
        return True
    after = _end_of_note(state, first, last)
    if definitions.is_collecting:
        lines = state.getLines(first + 1, after, state.blkIndent + 4, False)
        definitions.notes.setdefault(label, f"{state.src[found.end() : state.eMarks[first]]}\n{lines}")
    state.line = after
    return True


def _end_of_note(state: StateBlock, first: int, last: int) -> int:
    """Return the line after a footnote."""
    rules = state.md.block.ruler.getRules("paragraph")
    old, state.parentType = state.parentType, "paragraph"
    after, line, is_lazy = first + 1, first + 1, True
    while line < last:
        indent = state.sCount[line] - state.blkIndent
        if state.isEmpty(line):
            is_lazy = False
        elif indent >= 4 or (is_lazy and not any(rule(state, line, last, True) for rule in rules)):
            after = line + 1
        else:
            break
        line += 1
    state.parentType = old
    return after


def _mention(state: StateInline, silent: bool) -> bool:
    definitions: Definitions | None = state.env.get("definitions")
    if definitions is None or state.src[state.pos] != "[":
        return False
    found = _MENTION.match(state.src, state.pos, state.posMax)
    label = normalizeReference(found.group(1)) if found else ""
    if found is None or label not in definitions.notes:
        return False
    if not silent:
        state.push("mention", "sup", 0).content = str(definitions.number(label))
    state.pos = found.end()
    return True
