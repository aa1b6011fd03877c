"""Markdown to safe HTML, block by block, while the text grows.

A block is one top-level Markdown block. It is made safe twice: markdown-it escapes raw HTML and rejects other
links, then nh3 keeps only the elements and attributes listed here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from chatapp.assistant import addresses, cjk, colours, definitions, formulas, marks, settled
from chatapp.assistant.definitions import Definitions
from chatapp.assistant.links import CITATION, allowed_link, destination

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
WIDE = re.compile("<(pre|table)>")
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")

TAGS = {
    *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", *HEADINGS),
    *(
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "span",
        "button",
        "sup",
        "b",
        "i",
        "u",
        "var",
    ),
}
ATTRIBUTES = {
    "a": {"href", "class", "rel", "title"},
    "code": {"class"},
    "span": {"class"},
    "strong": {"class"},
    "ol": {"start"},
    "th": {"align"},
    "td": {"align"},
    "button": {"type", "data-action"},
    "figure": {"class"},
    **{heading: {"id"} for heading in HEADINGS},
}


@dataclass(frozen=True)
class Heading:
    """A top-level heading: its first line (from 0), the first line after it, text and anchor."""

    line: int
    after: int
    text: str
    anchor: str


class _Renderer(RendererHTML):
    """HTML renderer: code as a figure with a copy button, images as links, citations marked."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render a code block with its language, in colours once it is finished."""
        language = (tokens[idx].info.split() or ["text"])[0]
        content = tokens[idx].content
        is_open = "is_open" in tokens[idx].meta
        code = escape(content, quote=False) if is_open else colours.coloured(content, language)
        return (
            f'<figure class="code"><figcaption><span>{escape(language)}</span>'
            '<button type="button" data-action="copy-code">Copy</button></figcaption>'
            f"<pre><code>{code}</code></pre></figure>\n"
        )

    code_block = fence

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render the description, as a link unless already inside one: no image is ever loaded."""
        words = escape(self.renderInlineAsText(tokens[idx].children, options, env) or "image")
        depth = sum(token.nesting for token in tokens[:idx] if token.type.startswith("link_"))
        source = str(tokens[idx].attrGet("src") or "")
        return words if depth else f"<a {_link_attributes(source)}>{words}</a>{_destination(words, source)}"

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render the start of a citation or an external link."""
        return f"<a {_link_attributes(str(tokens[idx].attrGet('href') or ''))}>"

    def link_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render the end of a link, and its host if its text names another one."""
        start = next(at for at in range(idx, -1, -1) if tokens[at].type == "link_open")
        text = self.renderInlineAsText(tokens[start:idx], options, env)
        text += "".join(token.content for token in tokens[start:idx] if token.type in ("code_inline", "formula"))
        return f"</a>{_destination(text, str(tokens[start].attrGet('href') or ''))}"

    def formula(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render a formula as it is written."""
        return f'<code class="math">{escape(tokens[idx].content, quote=False)}</code>'

    def mention(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render the number of a footnote."""
        return f"<sup>[{tokens[idx].content}]</sup>"

    def mark(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Render the sign of a task or the name of a callout."""
        return marks.render_mark(tokens, idx)


def _destination(text: str, url: str) -> str:
    found = "" if CITATION.fullmatch(url) else destination(text, url)
    return f" ({escape(found)})" if found else ""


def _link_attributes(url: str) -> str:
    if CITATION.fullmatch(url):
        return f'class="citation" href="{escape(url)}"'
    return f'href="{escape(url)}" rel="noopener noreferrer nofollow"'


def _keep_attribute(tag: str, name: str, value: str) -> str | None:
    """Drop the `href` of a link that is not allowed."""
    return value if name != "href" or allowed_link(value) else None


def _parser() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}, renderer_cls=_Renderer)
    markdown.enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    vars(markdown)["validateLink"] = allowed_link
    cjk.register(markdown)
    addresses.register(markdown)
    formulas.register(markdown)
    settled.register(markdown)
    marks.register(markdown)
    definitions.register(markdown)
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


def _top_level(text: str, env: EnvType | None = None) -> list[tuple[int, list[Token]]]:
    """Parse into top-level blocks: (first line, tokens) of each. `env` is for the rules of `settled` and `formulas`."""
    found: list[tuple[int, list[Token]]] = []
    for token in _MARKDOWN.parse(text, env):
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
        self._ends: list[int] = []  # of the finished blocks, in the body
        self._open: list[str] = []
        self._returned: list[str] = []  # by the last `changed()`

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
        """End the text: the open block is rendered as it stands, unclosed delimiters included.

        Definitions hold for the whole text, so blocks with brackets are rendered again.
        """
        self._parse(is_complete=True)
        if "]:" in self.body:
            self._resolve()

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

    def _parse(self, is_complete: bool = False) -> None:
        """Close finished blocks and render the settled part of the rest."""
        self._unparsed = 0
        context, hidden = self._close_blocks()
        end = len(self._tail) - hidden
        shown, grows = (self._tail, False) if is_complete else settled.settled_lines(self._tail[:end], context)
        self._open = [
            _render_block(tokens, is_open=not is_complete) for _, tokens in _top_level(shown, {"grows": grows})
        ]

    def _close_blocks(self) -> tuple[str, int]:
        """Finish every block that has a successor; return the open block's context and the length of an open formula.

        Only whole lines count: "#" may become a heading or text ("#1"), and a row a table. (`settled.context`)
        """
        whole = self._tail[: self._tail.rfind("\n") + 1]
        env: EnvType = {"is_partial": True}
        blocks = _top_level(whole, env)
        hidden = 0
        if "open_formula" in env:
            hidden = len(_from_line(self._tail, env["open_formula"]))
            blocks = _top_level(self._tail[: len(self._tail) - hidden])
        if len(blocks) > 1:
            ends = _starts(self._tail, blocks)[1:]
            offset = self._ends[-1] if self._ends else 0
            for (_, tokens), end in zip(blocks, ends, strict=False):
                self._add_finished(_render_block(tokens), offset + end)
            self._tail = self._tail[ends[-1] :]
        context = settled.context(blocks[-1][1] if blocks else [])
        for _, tokens in blocks:
            _delete_in_chunks(tokens)
        return context, hidden

    def _add_finished(self, html: str, end: int) -> None:
        if len(self._finished) < MOST_BLOCKS:
            self._finished.append(html)
            self._ends.append(end)
        else:
            self._finished[-1] += f"\n{html}"
            self._ends[-1] = end

    def _resolve(self) -> None:
        """Collect the definitions, render every block with brackets again, and add the footnotes as a last block."""
        found = Definitions()
        texts = definitions.joined_notes([self.body[a:b] for a, b in pairwise([0, *self._ends])] + sources(self._tail))
        for text in texts:
            if "]:" in text:
                _MARKDOWN.block.parse(text, _MARKDOWN, found.env(), [])
        if not found.references and not found.notes:
            return
        found.is_collecting = False
        blocks = [*self._finished, *self._open]
        for at, text in enumerate(texts[: len(blocks)]):  # after the last block may be blank lines
            if "[" in text or not text:
                blocks[at] = "\n".join(_render_block(tokens) for _, tokens in _top_level(text, found.env()))
        count = len(self._finished)
        self._finished, self._open = blocks[:count], blocks[count:] + _footnotes(found)


def _from_line(text: str, line: int) -> str:
    return text.split("\n", line)[-1]


def _starts(text: str, blocks: Sequence[tuple[int, list[Token]]]) -> list[int]:
    """Return the first character of each block; blank lines before the first one belong to it."""
    lines = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    return [0, *(lines[line] for line, _ in blocks[1:])]


def _footnotes(found: Definitions) -> list[str]:
    """Render the footnotes, if there are any."""
    parse = _MARKDOWN.parse
    items = "".join(f"<li>{_render_block(parse(text, found.env()))}</li>\n" for text in found.numbered_notes())
    return [f"<hr>\n<ol>\n{items}</ol>"] if items else []


def _render_block(tokens: list[Token], is_open: bool = False) -> str:
    """Render a block of an answer and delete its tokens. Headings are two levels lower: the page's title is the h1."""
    for token in tokens:
        if is_open and settled.is_open_fence(token):
            token.meta["is_open"] = True
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    html = _html(tokens)
    _delete_in_chunks(tokens)
    return html


def _delete_in_chunks(tokens: list[Token]) -> None:
    """Delete tokens in chunks: freeing a hundred thousand at once blocks the event loop for 0.1 s."""
    while tokens:
        del tokens[-DELETED_AT_ONCE:]


def sources(markdown: str) -> list[str]:
    """Return the Markdown of each top-level block, in order; joined they are the text again."""
    return [markdown[a:b] for a, b in pairwise([*_starts(markdown, _top_level(markdown)), len(markdown)])]


def _anchor(text: str, taken: set[str]) -> str:
    """Make an anchor from the heading's text, unique within ``taken``, and add it there."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
    anchor, number = slug, 1
    while anchor in taken:
        number += 1
        anchor = f"{slug}-{number}"
    taken.add(anchor)
    return anchor


def _mark_headings(tokens: Sequence[Token]) -> list[Heading]:
    """Return the top-level headings and give each its ``id``."""
    found: list[Heading] = []
    taken: set[str] = set()
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            text = "".join(child.content for child in inline.children or [] if child.type != "mention")
            anchor = _anchor(text, taken)
            token.attrSet("id", anchor)
            found.append(Heading(token.map[0], token.map[1], text, anchor))
    return found


def headings(markdown: str) -> list[Heading]:
    """Return the top-level headings of a document, with the anchors that ``render`` gives them."""
    return _mark_headings(_MARKDOWN.parse(markdown, Definitions().env()))


def render(markdown: str) -> str:
    """Render a whole document as safe HTML; each top-level heading has an ``id`` to link to, and what may be wider than
    the page can be reached with the keyboard, to be scrolled."""
    found = Definitions()
    tokens = _MARKDOWN.parse(markdown.replace("\r", ""), found.env())
    _mark_headings(tokens)
    return WIDE.sub(r'<\1 tabindex="0">', "\n".join([_html(tokens), *_footnotes(found)]))
