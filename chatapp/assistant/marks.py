"""Small marks of GitHub's Markdown: task lists, callouts, and `<br>`, the only HTML that is read.

They are shown as characters and words, which every screen reader reads and every copy keeps: ☐, ☑, "Note".
"""

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

BREAK = re.compile(r"<br[ \t]*/?>", re.IGNORECASE)
HALF_BREAK = re.compile(r"<(?:b(?:r[ \t]*/?)?)?\Z", re.IGNORECASE)
"""At the end of a text: it may become a line break."""
_TASK = re.compile(r"\[([ xX])\]\s+(?=\S)")
_CALLOUT = re.compile(r"\[!(NOTE|TIP|IMPORTANT|WARNING|CAUTION)\][ \t]*(?:\n|\Z)", re.IGNORECASE)


def register(markdown: MarkdownIt) -> None:
    """Add the rules, around those of `settled`."""
    markdown.inline.ruler.before("autolink", "break", _break)
    markdown.core.ruler.before("set_aside", "take_marks", _take_marks)
    markdown.core.ruler.after("settle", "put_marks", _put_marks)


def _break(state: StateInline, silent: bool) -> bool:
    found = BREAK.match(state.src, state.pos, state.posMax) if state.src[state.pos] == "<" else None
    if found is None:
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos = found.end()
    return True


def _take_marks(state: StateCore) -> None:
    """Take the mark from the first words of a list's item or a quote; `token.meta` keeps it."""
    tokens = state.tokens
    last = next((at for at in reversed(range(len(tokens))) if tokens[at].nesting == 0), 0)
    for at in range(len(tokens) - 2):
        if tokens[at].type == "list_item_open" and tokens[at + 1].type == "paragraph_open":
            _take(tokens[at + 2], _TASK, "task")
        elif tokens[at].type == "blockquote_open" and _is_text(tokens[at + 1]):
            is_growing = state.env.get("grows", False) and at + 2 == last
            if not is_growing or "\n" in tokens[at + 2].content:
                _take(tokens[at + 2], _CALLOUT, "callout")


def _is_text(opening: Token) -> bool:
    """Return True for a paragraph, also one that a line below it makes a heading."""
    return opening.type == "paragraph_open" or (opening.type == "heading_open" and opening.markup in ("-", "="))


def _take(inline: Token, pattern: re.Pattern[str], kind: str) -> None:
    found = pattern.match(inline.content)
    if found:
        inline.content = inline.content[found.end() :]
        inline.meta[kind] = found.group(1)


def _put_marks(state: StateCore) -> None:
    """Put ☐, ☑ or the callout's name before the words."""
    for token in state.tokens:
        if token.meta and token.children is not None:
            if "task" in token.meta:
                sign = "\u2610" if token.meta["task"] == " " else "\u2611"
                token.children[:0] = [_element("span", "task", sign), _text(" ")]
            elif "callout" in token.meta:
                name = token.meta["callout"].lower()
                rest = [Token("hardbreak", "br", 0)] if token.children else []
                token.children[:0] = [_element("strong", name, name.capitalize()), *rest]


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _element(tag: str, css_class: str, content: str) -> Token:
    return Token("mark", tag, 0, content=content, attrs={"class": css_class})


def render_mark(tokens: Sequence[Token], at: int) -> str:
    """Render one of these marks."""
    token = tokens[at]
    return f'<{token.tag} class="{token.attrs["class"]}">{token.content}</{token.tag}>'
