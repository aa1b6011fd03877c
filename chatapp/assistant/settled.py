"""The settled part of growing Markdown: the text that no continuation can change.

An unclosed delimiter, half a table row, a line that may become a list or the end of code are held back until their
meaning is known, so that the shown text only grows. After a while they are shown in their likeliest form.
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
"""Most characters held back by an open delimiter; then it is closed (backticks, or within a word: text)."""
MOST_HELD_LINK = 2000
"""The same for a link: addresses are long."""
# A last line of marks alone may still become anything: a list, a heading, a table, the end of code.
# No repetition here overlaps with its successor, which would backtrack: a model may write long runs of blanks.
_MARKS = re.compile(r"(?:[-=*+#>~`|:_ \t]|\d{1,9}[.)][ \t])*+(?:\d{1,9}[.)]?)?")
_CONTAINER_PREFIX = r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t>]+)*"
_FENCE = re.compile(_CONTAINER_PREFIX + r"(?:~~~|```[^`]*\Z)")
_TABLE_ROW = re.compile(_CONTAINER_PREFIX + r"\|")
_CLOSING_FENCE = re.compile(r"[ \t]*(?:`*|~*)[ \t]*")
_BLANK_END = re.compile(r"(?:\A|\n)[ \t>]*\n[ \t>]*\Z")

_SPECIAL = re.compile(r"\\|`+|<|!?\[|\]")
_TICKS = re.compile(r"`+")
_AUTOLINK = re.compile(r"<(?:[A-Za-z][^\s<>]*)?(>?)")
_DESTINATION_PART = r"(?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))"
_TITLE = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\((?:[^()\\]|\\.)*\))"""
# Possessive (`*+`, `++`) against backtracking, here too.
_LINK_TAIL = re.compile(rf"\(\s*+(?:<[^<>\n]*>|(?!<){_DESTINATION_PART}*)(?:\s++{_TITLE})?\s*+\)", re.DOTALL)
_HALF_LINK_TAIL = re.compile(
    r"""\(\s*+(?:<[^<>\n]*+>?+|[^\s<]\S*+)?+(?:\s++(?:"[^"]*+"?+|'[^']*+'?+|\([^()]*+\)?+)?+)?+\s*+"""
)
_ENTITY = re.compile(r"&[#\w]{0,31}\Z")
_UNSURE = " \t\n*_~!\\"
"""Characters at the end that may go on as a delimiter run, or get their meaning from the next character."""


def context(tokens: Sequence[Token]) -> str:
    """Return the context of a block's last whole line: code, inner-code (in a list, a quote), table, heading, words."""
    leaf = next((token for token in reversed(tokens) if token.nesting == 0), None)
    if leaf is None or leaf.type != "inline":
        is_code = leaf is not None and _is_open_fence(leaf)
        return "" if leaf is None or not is_code else "inner-code" if leaf.level else "code"
    return "table" if _is_cell(tokens, leaf) else "heading" if _is_in(tokens, leaf, "heading_open") else "words"


def settled_lines(text: str, context: str) -> tuple[str, bool]:
    """Return the text without an ambiguous last line, and True if its last paragraph may go on."""
    at = text.rfind("\n") + 1
    whole, partial = text[:at], text[at:]
    if context.endswith("code"):
        is_unsure = _CLOSING_FENCE.fullmatch(partial) or (context == "inner-code" and _MARKS.fullmatch(partial))
        return (whole if is_unsure else text), False
    after_blank = bool(_BLANK_END.search(whole))
    is_row = context == "table" and not after_blank
    if not (is_row or _MARKS.fullmatch(partial) or _FENCE.match(partial) or _TABLE_ROW.match(partial)):
        return text, True
    last = whole.rfind("\n", 0, -1) + 1
    if context == "words" and not after_blank and _TABLE_ROW.match(whole[last:]):
        return whole[:last], True  # it may be a table's first row
    return whole, not after_blank and context != "heading"


def _is_in(tokens: Sequence[Token], leaf: Token, *kinds: str) -> bool:
    index = next(index for index, token in enumerate(tokens) if token is leaf)
    return index > 0 and tokens[index - 1].type in kinds


def _is_cell(tokens: Sequence[Token], leaf: Token) -> bool:
    return _is_in(tokens, leaf, "td_open", "th_open")


def _is_open_fence(leaf: Token) -> bool:
    """Return True for a fence without its closing line."""
    if leaf.type != "fence" or leaf.map is None:
        return False
    return leaf.map[1] - leaf.map[0] - 1 <= leaf.content.count("\n")


def settled_words(text: str) -> str:
    """Cut from a paragraph's end any text that may still become code, a link or a delimiter."""
    text = text[: _first_open(text)]
    while True:
        shorter = text.rstrip(_UNSURE)
        entity = _ENTITY.search(shorter[-33:])
        if entity:
            shorter = shorter[: len(shorter) - len(entity.group())]
        if shorter == text:
            return text
        text = shorter


def _first_open(text: str) -> int:
    """Return the start of the first unclosed code span, autolink or link, or the length of the text."""
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
    """Return the next position to scan, and the end of the settled text: the start of an unclosed code span."""
    closing = next((run.end() for run in _TICKS.finditer(text, at) if len(run.group()) == at - start), len(text))
    if closing < len(text):
        return closing, len(text)
    return (start, start) if len(text) - start <= MOST_HELD else (at, len(text))


def _after_angle(text: str, start: int, at: int) -> tuple[int, int]:
    """The same for an autolink."""
    found = _AUTOLINK.match(text, start)
    if found is None or found.group(1):
        return found.end() if found else at, len(text)
    is_open = found.end() == len(text) and len(text) - start <= MOST_HELD_LINK
    return (start, start) if is_open else (at, len(text))


def _after_bracket(text: str, at: int) -> int | None:
    """Return the end of a link with its text up to `at`, `at` itself if it is no link, None if undecided."""
    if at == len(text):
        return None
    if text[at] != "(":
        return at
    whole = _LINK_TAIL.match(text, at, at + MOST_HELD_LINK)
    if whole:
        return whole.end()
    is_half = len(text) - at <= MOST_HELD_LINK and _HALF_LINK_TAIL.fullmatch(text, at)
    return None if is_half else at


def register(markdown: MarkdownIt) -> None:
    """Add the rules that hold back the unsettled end; `env["grows"]`: the last paragraph may go on."""
    markdown.core.ruler.after("block", "set_aside", _set_aside)
    markdown.core.ruler.after("inline", "settle", _settle)
    markdown.inline.ruler2.after("balance_pairs", "hold_open", _hold_unclosed)


def _set_aside(state: StateCore) -> None:
    """Hide the last paragraph from the inline parser."""
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
    """Parse the settled part of the last paragraph."""
    if "held" in state.env:
        leaf, text = state.env.pop("held")
        leaf.content = settled_words(text)
        state.md.inline.parse(leaf.content, state.md, {"held": leaf.content}, leaf.children)


def _hold_unclosed(state: StateInline) -> None:
    """Cut before the first open delimiter, or close the open ones after MOST_HELD characters."""
    # Not in an image's description, which is parsed with the same `env`.
    opened = _unclosed(state.delimiters) if state.src == state.env.get("held") else []
    if not opened:
        return
    first = state.delimiters[opened[0]]
    if sum(len(token.content) for token in state.tokens[first.token :]) > MOST_HELD:
        _close(state, [at for at in opened if not state.delimiters[at].close])
    else:
        cut = first.token
        del state.tokens[cut:], state.delimiters[opened[0] :]
        state.tokens_meta[:] = [meta for meta in state.tokens_meta if not _reaches_past(meta, cut)]


def _reaches_past(meta: dict[str, list[Delimiter]] | None, cut: int) -> bool:
    """Return True if a link's delimiters lie after the cut."""
    return meta is not None and any(delimiter.token >= cut for delimiter in meta["delimiters"])


def _unclosed(delimiters: Sequence[Delimiter]) -> list[int]:
    """Return indices of unmatched openers, except those inside a pair, which can no longer be closed."""
    found, at = [], 0
    while at < len(delimiters):
        if delimiters[at].end >= 0:
            at = delimiters[at].end
        elif delimiters[at].open:
            found.append(at)
        at += 1
    return found


def _close(state: StateInline, opened: Sequence[int]) -> None:
    for at in reversed(opened):
        opener = state.delimiters[at]
        state.push("text", "", 0).content = state.tokens[opener.token].content
        opener.end = len(state.delimiters)
        closing = Delimiter(opener.marker, opener.length, len(state.tokens) - 1, -1, open=False, close=True)
        state.delimiters.append(closing)
