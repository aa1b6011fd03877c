r"""Formulas: `$…$`, `$$…$$`, `\(…\)` and `\[…\]`, shown as they are written, delimiters included.

Nothing inside is read as Markdown. Prices and shell variables are no formulas: single dollars enclose no prose and no
backtick, touch no space on their inner side and no letter or digit on their outer side.
"""

import re

from markdown_it import MarkdownIt
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

LONGEST = 1000
"""Most characters of a formula, which is held back until it ends."""
LONGEST_IN_DOLLARS = 200
"""The same between single dollars, which may be prices."""
_MARK = re.compile(r"\$\$?|\\[(\[]")
_IN_DOLLARS = re.compile(r"(?:[^\\$`\n]|\\[^\n])*+")
_IN_DOUBLE_DOLLARS = re.compile(r"(?:[^\\$`]|\\[\s\S]|\$(?!\$))*+")
_GROUP = re.compile(r"\{[^{}]*(?:\}|\Z)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}[,.;:]? \(?[A-Za-z]{2}")
_CLOSING = {"\\(": "\\)", "\\[": "\\]"}


def end_of_formula(text: str, start: int, is_whole: bool) -> int | None:
    """Return the index after the formula at `start`; `start` if there is none, None if further text decides.

    `is_whole`: no further text comes.
    """
    found = _MARK.match(text, start)
    if found is None:
        return start
    if text[start] == "$":
        return _end_after_dollars(text, start, found.group(), is_whole)
    closing = text.find(_CLOSING[found.group()], found.end(), start + LONGEST)
    if closing < 0:
        return start if is_whole or len(text) - start >= LONGEST else None
    return closing + 2 if text[found.end() : closing].strip() else start


def _end_after_dollars(text: str, start: int, mark: str, is_whole: bool) -> int | None:
    if start and (text[start - 1].isalnum() or text[start - 1] == "$"):
        return start
    first, is_single = start + len(mark), mark == "$"
    pattern, most = (_IN_DOLLARS, LONGEST_IN_DOLLARS) if is_single else (_IN_DOUBLE_DOLLARS, LONGEST)
    found = pattern.match(text, first, first + most)
    content, end = (found.group(), found.end()) if found else ("", first)
    if is_single and (content[:1].isspace() or _PROSE.search(_GROUP.sub("", content))):
        return start
    if end == len(text) or text[end:] == "\\":
        return start if is_whole or len(content) >= most - 1 else None
    after = text[end + len(mark) : end + len(mark) + 1]
    if not text.startswith(mark, end) or not content.strip():
        return start
    if is_single and not after and not is_whole:
        return None
    return start if is_single and (content[-1].isspace() or after.isalnum() or after == "$") else end + len(mark)


def register(markdown: MarkdownIt) -> None:
    """Add the rules. `env["is_partial"]`: the text ends with a whole line and may go on."""
    markdown.inline.ruler.before("escape", "formula", _formula)
    alt: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    markdown.block.ruler.before("fence", "formula", _formula_of_lines, alt)


def _formula(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\" or not _MARK.match(state.src, state.pos, state.posMax):
        return False
    before = max(0, state.pos - 1)
    window = state.src[before : min(state.posMax, state.pos + LONGEST + 8)]
    end = before + (end_of_formula(window, state.pos - before, is_whole=True) or 0)
    if end <= state.pos:
        return False
    if not silent:
        state.push("formula", "code", 0).content = state.src[state.pos : end]
    state.pos = end
    return True


def _formula_of_lines(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""Make a formula of several lines, from `$$` or `\[` on, a paragraph, even if they look like other blocks.

    At the end of a partial text an open formula hides itself, and `env["open_formula"]` is its first line.
    """
    start = state.bMarks[first] + state.tShift[first]
    if state.is_code_block(first) or not state.src.startswith(("$$", "\\["), start):
        return False
    after, length = first + 1, state.eMarks[first] - start
    while after < last and _goes_on(state, after) and length <= LONGEST:
        length += state.eMarks[after] - state.bMarks[after] + 1
        after += 1
    is_last = after == len(state.bMarks) - 1 and state.env.get("is_partial", False)
    text = state.getLines(first, after, state.blkIndent, False).strip()
    end = end_of_formula(text, 0, is_whole=not is_last)
    if end is None:
        state.env["open_formula"] = min(first, state.env.get("open_formula", first))
    else:
        after = first + 1 + text.count("\n", 0, end)
        if after == first + 1:
            return False  # a paragraph like any other
    if not silent:
        _push(state, first, after, is_hidden=end is None)
    return True


def _goes_on(state: StateBlock, line: int) -> bool:
    return not state.isEmpty(line) and state.sCount[line] >= state.blkIndent


def _push(state: StateBlock, first: int, after: int, is_hidden: bool) -> None:
    state.line = after
    if is_hidden:
        return
    state.push("paragraph_open", "p", 1).map = [first, after]
    inline = state.push("inline", "", 0)
    inline.content = state.getLines(first, after, state.blkIndent, False).strip()
    inline.map, inline.children = [first, after], []
    state.push("paragraph_close", "p", -1)
