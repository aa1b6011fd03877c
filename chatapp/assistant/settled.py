"""What of a Markdown text that still grows can no longer change, however it goes on.

A mark that is not closed yet, half a table row, a line that may become a list or the end of code: they wait until it is
known what they are, so that what is shown only grows. What stays open for long is shown as it will most likely be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token

MOST_HELD = 200
"""Characters that wait for the end of an open mark; after more it counts as closed (within a word, as none)."""
MOST_HELD_LINK = 2000
"""The same for a link: addresses are long."""
# A last line that is nothing but marks may still become anything: a list, a heading, a table, the end of code.
# Nothing here repeats what the part behind it could take as well: a model may write nothing but blanks for long.
_MARKS = re.compile(r"(?:[-=*+#>~`|:_ \t]|\d{1,9}[.)][ \t])*+(?:\d{1,9}[.)]?)?")
_CONTAINERS = r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t>]+)*"
_FENCE = re.compile(_CONTAINERS + r"(?:~~~|```[^`]*\Z)")
_ROW = re.compile(_CONTAINERS + r"\|")
_CLOSING_FENCE = re.compile(r"[ \t]*(?:`*|~*)[ \t]*")
_BLANK_END = re.compile(r"(?:\A|\n)[ \t>]*\n[ \t>]*\Z")

_SPECIAL = re.compile(r"\\|`+|<|!?\[|\]")
_TICKS = re.compile(r"`+")
_AUTOLINK = re.compile(r"<(?:[A-Za-z][^\s<>]*)?(>?)")
_PART = r"(?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))"
_TITLE = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\((?:[^()\\]|\\.)*\))"""
# Nor here: blanks are taken whole (`*+`, `++`), or many of them would be tried in every way.
_LINK_TAIL = re.compile(rf"\(\s*+(?:<[^<>\n]*>|(?!<){_PART}*)(?:\s++{_TITLE})?\s*+\)", re.DOTALL)
_HALF_LINK_TAIL = re.compile(
    r"""\(\s*+(?:<[^<>\n]*+>?+|[^\s<]\S*+)?+(?:\s++(?:"[^"]*+"?+|'[^']*+'?+|\([^()]*+\)?+)?+)?+\s*+"""
)
_ENTITY = re.compile(r"&[#\w]{0,31}\Z")
_UNSURE = " \t\n*_~!\\"
"""At its end: a run of marks may go on, and what follows decides what it is."""


def context(tokens: Sequence[Token]) -> str:
    """Where the last of a block's whole lines stands: code, inner-code (of a list, a quote), table, heading, words."""
    leaf = next((token for token in reversed(tokens) if token.nesting == 0), None)
    if leaf is None or leaf.type != "inline":
        is_code = leaf is not None and _is_open_fence(leaf)
        return "" if leaf is None or not is_code else "inner-code" if leaf.level else "code"
    return "table" if _is_cell(tokens, leaf) else "heading" if _is_in(tokens, leaf, "heading_open") else "words"


def settled_lines(text: str, context: str) -> tuple[str, bool]:
    """The text without a last line that may still become anything, and whether its last words may go on."""
    at = text.rfind("\n") + 1
    whole, partial = text[:at], text[at:]
    if context.endswith("code"):
        is_unsure = _CLOSING_FENCE.fullmatch(partial) or (context == "inner-code" and _MARKS.fullmatch(partial))
        return (whole if is_unsure else text), False
    is_over = bool(_BLANK_END.search(whole))
    is_row = context == "table" and not is_over
    if not (is_row or _MARKS.fullmatch(partial) or _FENCE.match(partial) or _ROW.match(partial)):
        return text, True
    last = whole.rfind("\n", 0, -1) + 1
    if context == "words" and not is_over and _ROW.match(whole[last:]):
        return whole[:last], True  # it may be a table's first row
    return whole, not is_over and context != "heading"


def _is_in(tokens: Sequence[Token], leaf: Token, *kinds: str) -> bool:
    """Whether the leaf stands right in one of these."""
    at = next(at for at, token in enumerate(tokens) if token is leaf)
    return at > 0 and tokens[at - 1].type in kinds


def _is_cell(tokens: Sequence[Token], leaf: Token) -> bool:
    return _is_in(tokens, leaf, "td_open", "th_open")


def _is_open_fence(leaf: Token) -> bool:
    """Whether the code goes on: no line of it is its end."""
    if leaf.type != "fence" or leaf.map is None:
        return False
    return leaf.map[1] - leaf.map[0] - 1 <= leaf.content.count("\n")


def settled_words(text: str) -> str:
    """A paragraph's text without what could still become another thing at its end: code, a link, a mark."""
    text = text[: _undecided(text)]
    while True:
        shorter = text.rstrip(_UNSURE)
        entity = _ENTITY.search(shorter[-33:])
        if entity:
            shorter = shorter[: len(shorter) - len(entity.group())]
        if shorter == text:
            return text
        text = shorter


def _undecided(text: str) -> int:
    """Where the first thing begins of which the end is not there yet."""
    brackets: list[int] = []
    at, end = 0, len(text)
    while at < end and (found := _SPECIAL.search(text, at)):
        start, at, mark = found.start(), found.end(), found.group()
        if mark == "\\":
            at = start + 2
        elif mark[0] == "`":
            at, end = _after_ticks(text, start, at)
        elif mark == "<":
            at, end = _after_angle(text, start, at)
        elif mark != "]":
            brackets.append(start)
        elif brackets and (after := _after_bracket(text, at)) is not None:
            brackets.pop()
            at = after
        elif brackets:
            break
    return min([end, *(start for start in brackets if end - start <= MOST_HELD_LINK)])


def _after_ticks(text: str, start: int, at: int) -> tuple[int, int]:
    """Where to go on after code, and where the text must end: before code that is not closed yet."""
    closing = next((run.end() for run in _TICKS.finditer(text, at) if len(run.group()) == at - start), len(text))
    if closing < len(text):
        return closing, len(text)
    return (start, start) if len(text) - start <= MOST_HELD else (at, len(text))


def _after_angle(text: str, start: int, at: int) -> tuple[int, int]:
    """The same for an address in angle brackets."""
    found = _AUTOLINK.match(text, start)
    if found is None or found.group(1):
        return found.end() if found else at, len(text)
    is_open = found.end() == len(text) and len(text) - start <= MOST_HELD_LINK
    return (start, start) if is_open else (at, len(text))


def _after_bracket(text: str, at: int) -> int | None:
    """Where a link ends whose words end at `at`, or `at` where it is none; None while that is not known."""
    if at == len(text):
        return None
    if text[at] != "(":
        return at
    whole = _LINK_TAIL.match(text, at, at + MOST_HELD_LINK)
    if whole:
        return whole.end()
    is_half = len(text) - at <= MOST_HELD_LINK and _HALF_LINK_TAIL.fullmatch(text, at)
    return None if is_half else at


# In the parser: `env["grows"]` says that the last paragraph may go on.


def register(markdown: MarkdownIt) -> None:
    """Hang into a parser what holds back the unsettled end of a text that grows."""
    markdown.core.ruler.after("block", "set_aside", _set_aside)
    markdown.core.ruler.after("inline", "settle", _settle)
    markdown.inline.ruler2.after("balance_pairs", "hold_open", _hold_open)


def _set_aside(state: StateCore) -> None:
    """Keep the last paragraph from the inline parser."""
    leaf = next((token for token in reversed(state.tokens) if token.nesting == 0), None)
    if (
        state.env.pop("grows", False)
        and leaf is not None
        and leaf.type == "inline"
        and not _is_cell(state.tokens, leaf)
    ):
        state.env["held"] = leaf, leaf.content
        leaf.content = ""


def _settle(state: StateCore) -> None:
    """Parse what of it is settled."""
    if "held" in state.env:
        leaf, text = state.env.pop("held")
        leaf.content = settled_words(text)
        state.md.inline.parse(leaf.content, state.md, {"held": leaf.content}, leaf.children)


def _hold_open(state: StateInline) -> None:
    """Cut before the first mark that may still find its end, or close those that have waited for too long."""
    # Not within a picture's words, which are parsed with the same `env`.
    opened = _open_marks(state.delimiters) if state.src == state.env.get("held") else []
    if not opened:
        return
    first = state.delimiters[opened[0]]
    if sum(len(token.content) for token in state.tokens[first.token :]) > MOST_HELD:
        _close(state, [at for at in opened if not state.delimiters[at].close])
    else:
        cut = first.token
        del state.tokens[cut:], state.delimiters[opened[0] :]
        state.tokens_meta[:] = [meta for meta in state.tokens_meta if not _reaches(meta, cut)]


def _reaches(meta: dict[str, list[Delimiter]] | None, cut: int) -> bool:
    """Whether marks within a link stand behind the cut."""
    return meta is not None and any(mark.token >= cut for mark in meta["delimiters"])


def _open_marks(marks: Sequence[Delimiter]) -> list[int]:
    """Those that can open something and have no end; not those within a pair, which nothing can reach any more."""
    found, at = [], 0
    while at < len(marks):
        if marks[at].end >= 0:
            at = marks[at].end
        elif marks[at].open:
            found.append(at)
        at += 1
    return found


def _close(state: StateInline, opened: Sequence[int]) -> None:
    for at in reversed(opened):
        mark = state.delimiters[at]
        state.push("text", "", 0).content = state.tokens[mark.token].content
        mark.end = len(state.delimiters)
        closing = Delimiter(mark.marker, mark.length, len(state.tokens) - 1, -1, open=False, close=True)
        state.delimiters.append(closing)
