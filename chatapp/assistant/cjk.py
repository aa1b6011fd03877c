"""Emphasis next to Chinese, Japanese and Korean text, which has no spaces around its punctuation.

CommonMark takes `**` after punctuation and before a letter for an opening delimiter: `**重要）**です` stays plain text.
As in many parsers, characters of these scripts count here neither as punctuation nor as letters.
"""

import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline import StateInline, emphasis, strikethrough
from markdown_it.rules_inline.state_inline import Scanned

Rule = Callable[[StateInline, bool], bool]


def register(markdown: MarkdownIt) -> None:
    """Replace a parser's emphasis and strikethrough rules."""
    markdown.inline.ruler.at("emphasis", partial(_with_cjk_scan, emphasis.tokenize))
    markdown.inline.ruler.at("strikethrough", partial(_with_cjk_scan, strikethrough.tokenize))


def _with_cjk_scan(rule: Rule, state: StateInline, silent: bool) -> bool:
    """Run the library's rule with `_scan_delimiters` in place of its method; there is no option for it."""
    vars(state).setdefault("scanDelims", partial(_scan_delimiters, state))
    return rule(state, silent)


def _scan_delimiters(state: StateInline, start: int, can_split_word: bool) -> Scanned:
    """Scan a delimiter run as `StateInline.scanDelims` does, with a third kind of neighbour: CJK."""
    marker, end = state.src[start], start
    while end < state.posMax and state.src[end] == marker:
        end += 1
    before = _kind(state.src[start - 1] if start else " ")
    after = _kind(state.src[end] if end < state.posMax else " ")
    left = after != "space" and (after != "mark" or before != "word")
    right = before != "space" and (before != "mark" or after != "word")
    can_open = left and (can_split_word or not right or before.endswith("mark"))
    can_close = right and (can_split_word or not left or after.endswith("mark"))
    return Scanned(can_open, can_close, end - start)


@lru_cache(maxsize=4096)
def _kind(char: str) -> str:
    """Classify a character: space, mark (punctuation), word, cjk or cjk-mark."""
    if isWhiteSpace(ord(char)):
        return "space"
    is_mark = isMdAsciiPunct(ord(char)) or isPunctChar(char)
    is_symbol = unicodedata.category(char) == "So" and not "\u3000" <= char <= "\u33ff"  # emoji are wide too
    if unicodedata.east_asian_width(char) in "WFH" and not is_symbol:
        return "cjk-mark" if is_mark else "cjk"
    return "mark" if is_mark else "word"
