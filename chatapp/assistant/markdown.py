"""Markdown to safe HTML, block by block, while the text grows.

A block is one top-level Markdown block. It is made safe twice: markdown-it escapes raw HTML and rejects other
links, then nh3 keeps only the elements and attributes listed here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from chatapp.assistant import cjk, settled

CITATION = re.compile(r"\.\./knowledge/[a-z0-9][a-z0-9_-]*(#[\w-]+)?", re.ASCII)
EXTERNAL = re.compile(r"(https?://[^/\\]|mailto:.)", re.IGNORECASE)
LARGE = 6000
"""Characters. A longer open block is parsed once it has grown by a twentieth or rests: parsing costs its length."""
HUGE = 40_000
"""From this length on once it has grown by a quarter or rests: a list or table of that size takes a second."""
MOST_BLOCKS = 2000
"""Further finished blocks are joined to the last one: each is a row that every page reads."""
DELETED_AT_ONCE = 500
"""Tokens deleted at once: about 0.2 ms during which no greenlet runs."""
MOST_QUIET = 4
"""Calls of `changed()` without a new character before the block counts as resting: about 0.6 s."""
MANY_TOKENS = 400
"""A list of more tokens is sanitised in chunks of about this size: about 2 ms each."""
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")

TAGS = {
    *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", *HEADINGS),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "span", "button"),
}
ATTRIBUTES = {
    "a": {"href", "class", "rel", "title"},
    "ol": {"start"},
    "th": {"align"},
    "td": {"align"},
    "button": {"type", "data-action"},
    "figure": {"class"},
    **{heading: {"id"} for heading in HEADINGS},
}


@dataclass(frozen=True)
class Heading:
    """A top-level heading: its first line (from 0), the first line after it, level 1-6, text and anchor."""

    line: int
    after: int
    level: int
    text: str
    anchor: str


def allowed_link(url: str) -> bool:
    """Return True if an answer may link to it: http, https, mailto, or a passage of the knowledge folder."""
    return bool(CITATION.fullmatch(url) or EXTERNAL.match(url))


class _Renderer(RendererHTML):
    """HTML renderer: code as a figure with a copy button, images as links, citations marked."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render a code block with its language."""
        language = (tokens[idx].info.split() or ["text"])[0]
        return (
            f'<figure class="code"><figcaption><span>{escape(language)}</span>'
            '<button type="button" data-action="copy-code">Copy</button></figcaption>'
            f"<pre><code>{escape(tokens[idx].content, quote=False)}</code></pre></figure>\n"
        )

    code_block = fence

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render the description, as a link unless already inside one: no image is ever loaded."""
        words = escape(self.renderInlineAsText(tokens[idx].children, options, env) or "image")
        depth = sum(token.nesting for token in tokens[:idx] if token.type.startswith("link_"))
        source = str(tokens[idx].attrGet("src") or "")
        return words if depth else f"<a {_link_attributes(source)}>{words}</a>"

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render the start of a citation or an external link."""
        return f"<a {_link_attributes(str(tokens[idx].attrGet('href') or ''))}>"


def _link_attributes(url: str) -> str:
    if CITATION.fullmatch(url):
        return f'class="citation" href="{escape(url)}"'
    return f'href="{escape(url)}" rel="noopener noreferrer nofollow"'


def _keep_attribute(tag: str, name: str, value: str) -> str | None:
    """Drop the `href` of a link that is not allowed."""
    return value if name != "href" or allowed_link(value) else None


def _parser() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}, renderer_cls=_Renderer)
    # Without reference definitions no later line can change a finished block.
    markdown.enable(["table", "strikethrough"]).disable(["reference", "html_block", "html_inline"])
    vars(markdown)["validateLink"] = allowed_link
    cjk.register(markdown)
    settled.register(markdown)
    return markdown


_MARKDOWN = _parser()


def _sanitise(html: str) -> str:
    return nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=_keep_attribute,
        link_rel=None,
        url_schemes={"http", "https", "mailto"},
    ).strip()


def _html(tokens: Sequence[Token]) -> str:
    """Render one top-level block. Column alignment becomes ``align``: the CSP allows no style attribute."""
    for token in tokens:
        style = token.attrs.pop("style", None)
        if style:
            token.attrs["align"] = str(style).removeprefix("text-align:")
    return "".join(_sanitise(part) for part in _parts(tokens))


def _parts(tokens: Sequence[Token]) -> Iterator[str]:
    """Yield HTML; a long list in chunks, because the sanitiser is native code and blocks the event loop."""
    long_lists = ("bullet_list_open", "ordered_list_open") if len(tokens) > MANY_TOKENS else ()
    at = 0
    while at < len(tokens):
        end = _end_of_element(tokens, at)
        if tokens[at].type in long_lists:
            yield from _list_parts(tokens[at:end])
        else:
            yield _render_tokens(tokens[at:end])
        at = end


def _list_parts(tokens: Sequence[Token]) -> Iterator[str]:
    """Yield a list's items in chunks, each a complete list with continued numbers."""
    opening, closing, at = tokens[0], tokens[-1], 1
    while at < len(tokens) - 1:
        start = at
        while at < len(tokens) - 1 and at - start < MANY_TOKENS:
            at = _end_of_element(tokens, at)
        if opening.type == "ordered_list_open":
            opening = opening.copy(attrs={"start": int(tokens[start].info or 1)})
        yield _render_tokens([opening, *tokens[start:at], closing])


def _end_of_element(tokens: Sequence[Token], at: int) -> int:
    """Return the index after the element that starts at `at`."""
    depth = 0
    for end in range(at, len(tokens)):
        depth += tokens[end].nesting
        if depth == 0:
            return end + 1
    return len(tokens)


def _render_tokens(tokens: Sequence[Token]) -> str:
    html: str = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return html


def _demote_headings(tokens: Sequence[Token]) -> Sequence[Token]:
    """Lower headings by two levels: the page's title is the h1."""
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    return tokens


def _top_level(text: str, grows: bool = False) -> list[tuple[int, list[Token]]]:
    """Parse into top-level blocks: (first line, tokens) of each. `grows`: the last paragraph may go on."""
    found: list[tuple[int, list[Token]]] = []
    for token in _MARKDOWN.parse(text, {"grows": grows}):
        token.hidden = False  # else a blank line between two items would change the whole list
        if token.level == 0 and token.nesting >= 0 and token.map is not None:
            found.append((token.map[0], []))
        found[-1][1].append(token)
    return found


class GrowingAnswer:
    """An answer being written: text goes in, changed blocks come out."""

    def __init__(self) -> None:
        self._body: list[str] = []
        self._tail = ""
        self._unparsed = 0
        self._quiet_calls = 0  # calls of `changed()` since the last character
        self._finished: list[str] = []
        self._open: list[str] = []
        self._returned: list[str] = []  # by the last `changed()`
        self._is_complete = False

    @property
    def body(self) -> str:
        """The Markdown so far."""
        self._body = ["".join(self._body)]
        return self._body[0]

    @property
    def open_length(self) -> int:
        """Length in characters of the unfinished text, which the next parse reads."""
        return len(self._tail)

    def feed(self, text: str) -> None:
        """Append a piece of Markdown, cut anywhere. Cheap: does not parse."""
        # Lone surrogates cannot be stored as UTF-8; carriage returns would shift the line numbers.
        text = text.replace("\r", "").replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
        if text:
            self._body.append(text)
            self._tail += text
            self._unparsed += len(text)
            self._quiet_calls = 0

    def finish(self) -> None:
        """End the text: the open block is rendered as it stands, unclosed delimiters included."""
        self._is_complete = True
        self._parse()

    def changed(self) -> list[tuple[int, str]]:
        """Return the blocks that changed since the last call: (index, HTML), in order.

        A shown block that turned out to belong to its predecessor comes with empty HTML.
        """
        length = len(self._tail)
        self._quiet_calls += 1
        is_due = length < LARGE or self._unparsed * (20 if length < HUGE else 4) > length
        if self._unparsed and (is_due or self._quiet_calls > MOST_QUIET):
            self._parse()
        now = self._finished + self._open
        now += [""] * (len(self._returned) - len(now))
        before = self._returned
        self._returned = now
        return [(index, html) for index, html in enumerate(now) if index >= len(before) or html != before[index]]

    def _parse(self) -> None:
        """Close finished blocks and render the settled part of the rest."""
        self._unparsed = 0
        context = self._close_blocks()
        shown, grows = (self._tail, False) if self._is_complete else settled.settled_lines(self._tail, context)
        self._open = [_render_block(tokens) for _, tokens in _top_level(shown, grows)]

    def _close_blocks(self) -> str:
        """Finish every block that has a successor, and return the open block's context (`settled.context`).

        Only whole lines count: "#" may become a heading or text ("#1"), and a row a table.
        """
        whole = self._tail[: self._tail.rfind("\n") + 1]
        blocks = _top_level(whole)
        if len(blocks) > 1:
            for _, tokens in blocks[:-1]:
                self._add_finished(_render_block(tokens))
            self._tail = _from_line(self._tail, blocks[-1][0])
        context = settled.context(blocks[-1][1] if blocks else [])
        for _, tokens in blocks:
            _delete_in_chunks(tokens)
        return context

    def _add_finished(self, html: str) -> None:
        if len(self._finished) < MOST_BLOCKS:
            self._finished.append(html)
        else:
            self._finished[-1] += f"\n{html}"


def _render_block(tokens: list[Token]) -> str:
    """Render a block of an answer and delete its tokens."""
    html = _html(_demote_headings(tokens))
    _delete_in_chunks(tokens)
    return html


def _delete_in_chunks(tokens: list[Token]) -> None:
    """Delete tokens in chunks: freeing a hundred thousand at once blocks the event loop for 0.1 s."""
    while tokens:
        del tokens[-DELETED_AT_ONCE:]


def _from_line(text: str, line: int) -> str:
    """Return the text from that line (from 0) on."""
    at = 0
    for _ in range(line):
        at = text.index("\n", at) + 1
    return text[at:]


def answer_html(markdown: str) -> list[str]:
    """Render a whole answer into the blocks that ``GrowingAnswer`` ends with."""
    answer = GrowingAnswer()
    answer.feed(markdown)
    answer.finish()
    return [html for _, html in answer.changed()]


def sources(markdown: str) -> list[str]:
    """Return the Markdown of each top-level block, in order; joined they are the text again."""
    starts = [line for line, _ in _top_level(markdown)][1:]
    lines = re.findall(r"[^\n]*\n|[^\n]+", markdown)
    return ["".join(lines[a:b]) for a, b in pairwise([0, *starts, len(lines)])]


def _anchor(text: str, taken: set[str]) -> str:
    """Make an anchor from the heading's text, unique within ``taken``, and add it there."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
    anchor, number = slug, 1
    while anchor in taken:
        number += 1
        anchor = f"{slug}-{number}"
    taken.add(anchor)
    return anchor


def _plain_text(inline: Token) -> str:
    """Return a heading's text without its delimiters."""
    return "".join(child.content for child in inline.children or [])


def _mark_headings(tokens: Sequence[Token]) -> list[Heading]:
    """Return the top-level headings and give each its ``id``."""
    found: list[Heading] = []
    taken: set[str] = set()
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            text = _plain_text(inline)
            anchor = _anchor(text, taken)
            token.attrSet("id", anchor)
            found.append(Heading(token.map[0], token.map[1], int(token.tag[1]), text, anchor))
    return found


def headings(markdown: str) -> list[Heading]:
    """Return the top-level headings of a document, with the anchors that ``render`` gives them."""
    return _mark_headings(_MARKDOWN.parse(markdown))


def render(markdown: str) -> str:
    """Render a whole document as safe HTML; each top-level heading has an ``id`` to link to."""
    tokens = _MARKDOWN.parse(markdown.replace("\r", ""))
    _mark_headings(tokens)
    return _html(tokens)
