"""The settled part of growing Markdown: the text that no continuation can change.

An unclosed delimiter, half a table row, a line that may become a list or the end of code are held back until their
meaning is known, so that the shown text only grows. After a while they are shown in their likeliest form.
"""

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token

from chatapp.assistant import addresses
from chatapp.assistant.formulas import end_of_formula
from chatapp.assistant.marks import HALF_BREAK

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
_CELLS = ("td_open", "th_open")
_BLANK_END = re.compile(r"(?:\A|\n)[ \t>]*\n[ \t>]*\Z")

_SPECIAL = re.compile(r"\\[(\[]|\\|`+|<|!?\[|\]|\$+|" + addresses.STARTS)
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
    leaf, parent = _last_leaf(tokens)
    if leaf is not None and leaf.type == "inline":
        return "table" if parent in _CELLS else "heading" if parent == "heading_open" else "words"
    if leaf is None or not is_open_fence(leaf):
        return ""
    return "inner-code" if leaf.level else "code"


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


def _last_leaf(tokens: Sequence[Token]) -> tuple[Token | None, str]:
    """Return the last token with content, and the type of its parent, which opens just before it."""
    at = next((at for at in reversed(range(len(tokens))) if tokens[at].nesting == 0), None)
    return (None, "") if at is None else (tokens[at], tokens[at - 1].type if at else "")


def is_open_fence(leaf: Token) -> bool:
    """Return True for a fence without its closing line."""
    if leaf.type != "fence" or leaf.map is None:
        return False
    is_partial = not leaf.content.endswith("\n") and bool(leaf.content)
    return is_partial or leaf.map[1] - leaf.map[0] - 1 <= leaf.content.count("\n")


def settled_words(text: str) -> str:
    """Cut from a paragraph's end any text that may still become code, a link or a delimiter."""
    end = _first_open(text)
    text = text[:end] if end < len(text) else text[: addresses.start_of_half_address(text)]
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
        elif mark[0] in "$\\":
            at, end = _after(end_of_formula(text, start, is_whole=False), start, at, end)
        elif mark[0].isalpha():
            at, end = _after(addresses.end_of_address(text, start, is_whole=False), start, at, end)
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


def _after(found: int | None, start: int, at: int, end: int) -> tuple[int, int]:
    """Return the next position to scan, and the end of the settled text: `start` if it is undecided (None)."""
    return (start, start) if found is None else (max(found, at), end)


def _after_ticks(text: str, start: int, at: int) -> tuple[int, int]:
    """The same for a code span."""
    closing = next((run.end() for run in _TICKS.finditer(text, at) if len(run.group()) == at - start), len(text))
    if closing < len(text):
        return closing, len(text)
    return (start, start) if len(text) - start <= MOST_HELD else (at, len(text))


def _after_angle(text: str, start: int, at: int) -> tuple[int, int]:
    """The same for an autolink."""
    if HALF_BREAK.match(text, start):
        return start, start
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
    leaf, parent = _last_leaf(state.tokens)
    if state.env.pop("grows", False) and leaf is not None and leaf.type == "inline" and parent not in _CELLS:
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
