"""Addresses typed as text: `https://…`, `http://…`, `mailto:…` and `www.…` become links, bare names do not."""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

LONGEST = 2000
"""Most characters of an address, which is held back until it ends."""
_NOT_AFTER = r"(?<![A-Za-z0-9+.\-@/])"
# Ends an address: spaces, delimiters of Markdown and HTML, quotes, and marks of scripts without spaces.
_RUN = re.compile(r'[^\s<>"`\\\[\]*|\u2000-\u206f\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]*+')
STARTS = _NOT_AFTER + r"(?:[hH][tT]{2}[pP][sS]?://|[wW]{3}\.|[mM][aA][iI][lL][tT][oO]:)"
"""A pattern for the first characters of an address."""
_STARTS = re.compile(STARTS)
_HALF_START = re.compile(
    _NOT_AFTER + r"(?:h(?:t(?:t(?:ps?(?::/?)?)?)?)?|w(?:ww?)?|m(?:a(?:i(?:l(?:to?)?)?)?)?)\Z", re.IGNORECASE
)
_HOST = r"[\w-]++(?:\.[\w-]++)*+"
_ADDRESS = re.compile(
    rf"(?:https?://(?![^/?#]*@){_HOST}(?::\d{{1,5}})?|www\.(?![^/?#]*@)[\w-]++(?:\.[\w-]++)++(?::\d{{1,5}})?"
    rf"|mailto:[\w.+-]++@[\w-]++(?:\.[\w-]++)++)(?:[/?#].*)?",
    re.IGNORECASE,
)
_LAST = re.compile(r"&[A-Za-z0-9]+;\Z")


def end_of_address(text: str, start: int, is_whole: bool) -> int | None:
    """Return the index after the address at `start`; `start` if there is none, None if further text decides.

    `is_whole`: no further text comes.
    """
    run = _RUN.match(text, start, start + LONGEST)
    if run is None or run.end() == start + LONGEST:
        return start
    if run.end() == len(text) and not is_whole:
        return None
    found = _ADDRESS.match(run.group())
    return start + len(_without_punctuation(found.group())) if found else start


def start_of_half_address(text: str) -> int:
    """Return the start of a word at the end that may become an address, or the length of the text."""
    found = _HALF_START.search(text, max(0, len(text) - len("https:/")))
    return found.start() if found else len(text)


def _without_punctuation(address: str) -> str:
    """Cut punctuation of the sentence around it, and parentheses that it does not open."""
    surplus = address.count(")") - address.count("(")
    while True:
        if address[-1] in "?!.,:;'_~":
            entity = _LAST.search(address, max(0, len(address) - 32)) if address[-1] == ";" else None
            address = address[: entity.start() if entity else -1]
        elif address[-1] == ")" and surplus > 0:
            address, surplus = address[:-1], surplus - 1
        else:
            return address


def register(markdown: MarkdownIt) -> None:
    """Add the rule; plain text stops at the possible beginning of an address."""
    markdown.inline.ruler.before("newline", "address", _address)
    special = markdown.inline.terminator_re.pattern
    markdown.inline.terminator_re = re.compile(f"{special}|{STARTS}")


def _address(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "hHwWmM" or state.linkLevel or not _STARTS.match(state.src, state.pos):
        return False
    window = state.src[state.pos : min(state.posMax, state.pos + LONGEST)]
    text = window[: end_of_address(window, 0, is_whole=True)]
    url = state.md.normalizeLink(f"http://{text}" if text[:4].lower() == "www." else text)
    if not text or not state.md.validateLink(url):
        return False
    if not silent:
        _push(state, text, url)
    state.pos += len(text)
    return True


def _push(state: StateInline, text: str, url: str) -> None:
    opening = state.push("link_open", "a", 1)
    opening.attrs, opening.markup, opening.info = {"href": url}, "linkify", "auto"
    state.push("text", "", 0).content = text
    closing = state.push("link_close", "a", -1)
    closing.markup, closing.info = "linkify", "auto"
