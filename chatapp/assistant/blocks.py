"""Markdown to safe HTML, block by block, while the text is still growing.

One block is one top-level Markdown block. Two walls keep it safe: markdown-it writes raw HTML as text and
refuses foreign links, then nh3 lets through only the elements and attributes listed here.
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
"""An open block of more characters is parsed once it has grown by a twentieth or rests: parsing costs its length."""
VAST = 40_000
"""One of more characters only once it has grown by a quarter: a list or table of that size takes a second."""
MOST_BLOCKS = 2000
"""What follows so many finished blocks is joined to the last of them: each is a row to read with every page."""
BUNCH = 500
"""Tokens that are let go of at once: some 0.2 ms, in which nobody else can run."""
PATIENCE = 4
"""Looks at it without a new character until it counts as resting: some 0.6 s."""
MANY_TOKENS = 400
"""A list of more tokens is sanitised in bunches of about as many: some 2 ms each."""
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
    """A top-level heading: its first line (from 0), the first line after it, level 1-6, words and anchor."""

    line: int
    after: int
    level: int
    text: str
    anchor: str


def allowed_link(url: str) -> bool:
    """Whether an answer may link there: http, https, mailto, or a passage of the knowledge folder."""
    return bool(CITATION.fullmatch(url) or EXTERNAL.match(url))


class _Renderer(RendererHTML):
    """HTML of this product: code as a figure with a copy button, images as links, citations marked."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A code block with its language; ``code_block`` (indented) has none."""
        language = (tokens[idx].info.split() or ["text"])[0]
        return (
            f'<figure class="code"><figcaption><span>{escape(language)}</span>'
            '<button type="button" data-action="copy-code">Copy</button></figcaption>'
            f"<pre><code>{escape(tokens[idx].content, quote=False)}</code></pre></figure>\n"
        )

    code_block = fence

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The picture's words, as a link where they are not inside one already: nothing is ever loaded."""
        words = escape(self.renderInlineAsText(tokens[idx].children, options, env) or "image")
        depth = sum(token.nesting for token in tokens[:idx] if token.type.startswith("link_"))
        source = str(tokens[idx].attrGet("src") or "")
        return words if depth else f"<a {_link_attributes(source)}>{words}</a>"

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A citation or an external link."""
        return f"<a {_link_attributes(str(tokens[idx].attrGet('href') or ''))}>"


def _link_attributes(url: str) -> str:
    if CITATION.fullmatch(url):
        return f'class="citation" href="{escape(url)}"'
    return f'href="{escape(url)}" rel="noopener noreferrer nofollow"'


def _keep_attribute(tag: str, name: str, value: str) -> str | None:
    """The second wall's word on one attribute: links only where they may lead."""
    return value if name != "href" or allowed_link(value) else None


def _parser() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}, renderer_cls=_Renderer)
    # Without reference definitions no later line can change an earlier block: finished stays finished.
    markdown.enable(["table", "strikethrough"]).disable(["reference", "html_block", "html_inline"])
    vars(markdown)["validateLink"] = allowed_link
    cjk.register(markdown)
    settled.register(markdown)
    return markdown


_MARKDOWN = _parser()


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=_keep_attribute,
        link_rel=None,
        url_schemes={"http", "https", "mailto"},
    ).strip()


def _html(tokens: Sequence[Token]) -> str:
    """HTML of one top-level block. Column alignment goes as ``align``: the CSP allows no style attribute."""
    for token in tokens:
        style = token.attrs.pop("style", None)
        if style:
            token.attrs["align"] = str(style).removeprefix("text-align:")
    return "".join(_clean(part) for part in _parts(tokens))


def _parts(tokens: Sequence[Token]) -> Iterator[str]:
    """HTML of the tokens; a long list item by item: the sanitiser, which is native code, lets nobody else run."""
    long_lists = ("bullet_list_open", "ordered_list_open") if len(tokens) > MANY_TOKENS else ()
    at = 0
    while at < len(tokens):
        end = _closing(tokens, at)
        if tokens[at].type in long_lists:
            yield from _list_parts(tokens[at:end])
        else:
            yield _rendered(tokens[at:end])
        at = end


def _list_parts(tokens: Sequence[Token]) -> Iterator[str]:
    """A list's items in bunches, each bunch a list of its own: numbers go on where they were."""
    opening, closing, at = tokens[0], tokens[-1], 1
    while at < len(tokens) - 1:
        start = at
        while at < len(tokens) - 1 and at - start < MANY_TOKENS:
            at = _closing(tokens, at)
        if opening.type == "ordered_list_open":
            opening = opening.copy(attrs={"start": int(tokens[start].info or 1)})
        yield _rendered([opening, *tokens[start:at], closing])


def _closing(tokens: Sequence[Token], at: int) -> int:
    """Where what begins at `at` has ended."""
    depth = 0
    for end in range(at, len(tokens)):
        depth += tokens[end].nesting
        if depth == 0:
            return end + 1
    return len(tokens)


def _rendered(tokens: Sequence[Token]) -> str:
    html: str = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return html


def _demoted(tokens: Sequence[Token]) -> Sequence[Token]:
    """Headings of an answer start two levels lower: the page's own title is the h1."""
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    return tokens


def _top_level(text: str, grows: bool = False) -> list[tuple[int, list[Token]]]:
    """The top-level blocks: (first line, tokens) of each, in order. `grows`: the last words may go on."""
    found: list[tuple[int, list[Token]]] = []
    for token in _MARKDOWN.parse(text, {"grows": grows}):
        token.hidden = False  # else a blank line between two items would change all of their list
        if token.level == 0 and token.nesting >= 0 and token.map is not None:
            found.append((token.map[0], []))
        found[-1][1].append(token)
    return found


class GrowingAnswer:
    """An answer that is still being written: text goes in, changed blocks come out."""

    def __init__(self) -> None:
        self._body: list[str] = []
        self._tail = ""
        self._unparsed = 0
        self._rests = 0
        self._finished: list[str] = []
        self._open: list[str] = []
        self._taken: list[str] = []
        self._ended = False

    @property
    def body(self) -> str:
        """All Markdown so far."""
        self._body = ["".join(self._body)]
        return self._body[0]

    @property
    def open_length(self) -> int:
        """Characters that the next parse must read."""
        return len(self._tail)

    def feed(self, text: str) -> None:
        """Append a piece of Markdown, cut anywhere. Cheap: nothing is parsed here."""
        # Lone surrogates cannot be stored as UTF-8; carriage returns would shift the line numbers.
        text = text.replace("\r", "").replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
        if text:
            self._body.append(text)
            self._tail += text
            self._unparsed += len(text)
            self._rests = 0

    def finish(self) -> None:
        """Nothing more comes: the open block is shown as it stands, half-typed marks included."""
        self._ended = True
        self._parse()

    def changed(self) -> list[tuple[int, str]]:
        """Blocks that changed since the last call: (index, HTML), in order.

        A block that was shown and turned out to belong to its predecessor comes with empty HTML.
        """
        length = len(self._tail)
        self._rests += 1
        is_due = self._rests > PATIENCE or length < LARGE or self._unparsed * (20 if length < VAST else 4) > length
        if self._unparsed and is_due:
            self._parse()
        now = self._finished + self._open
        now += [""] * (len(self._taken) - len(now))
        news = [(at, html) for at, html in enumerate(now) if at >= len(self._taken) or html != self._taken[at]]
        self._taken = now
        return news

    def _parse(self) -> None:
        """Close what can no longer change, and show the rest as it stands."""
        self._unparsed = 0
        context = self._close_blocks()
        shown, grows = (self._tail, False) if self._ended else settled.settled_lines(self._tail, context)
        self._open = [_drawn(tokens) for _, tokens in _top_level(shown, grows)]

    def _close_blocks(self) -> str:
        """Move to the finished ones every block after which another one has begun. Returns where the open one ends.

        Only whole lines count: "# " may still become a heading or the words "#1", a row a table.
        """
        whole = self._tail[: self._tail.rfind("\n") + 1]
        blocks = _top_level(whole)
        if len(blocks) > 1:
            for _, tokens in blocks[:-1]:
                self._finish(_drawn(tokens))
            self._tail = _from_line(self._tail, blocks[-1][0])
        context = settled.context(blocks[-1][1] if blocks else [])
        for _, tokens in blocks:
            _let_go(tokens)
        return context

    def _finish(self, html: str) -> None:
        if len(self._finished) < MOST_BLOCKS:
            self._finished.append(html)
        else:
            self._finished[-1] += f"\n{html}"


def _drawn(tokens: list[Token]) -> str:
    """HTML of a block of an answer; its tokens are used up."""
    html = _html(_demoted(tokens))
    _let_go(tokens)
    return html


def _let_go(tokens: list[Token]) -> None:
    """Forget tokens in bunches: to forget a hundred thousand of them in one go holds everybody up for 0.1 s."""
    while tokens:
        del tokens[-BUNCH:]


def _from_line(text: str, line: int) -> str:
    """The text from that line (from 0) on."""
    at = 0
    for _ in range(line):
        at = text.index("\n", at) + 1
    return text[at:]


def answer_html(markdown: str) -> list[str]:
    """The blocks of a whole answer at once, as ``GrowingAnswer`` ends up with."""
    answer = GrowingAnswer()
    answer.feed(markdown)
    answer.finish()
    return [html for _, html in answer.changed()]


def sources(markdown: str) -> list[str]:
    """The Markdown of each top-level block, in order; joined they are the text again."""
    starts = [line for line, _ in _top_level(markdown)][1:]
    lines = re.findall(r"[^\n]*\n|[^\n]+", markdown)
    return ["".join(lines[a:b]) for a, b in pairwise([0, *starts, len(lines)])]


def _anchor(text: str, taken: set[str]) -> str:
    """An anchor made of the heading's words, unique within ``taken``, to which it is added."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
    anchor, number = plain, 1
    while anchor in taken:
        number += 1
        anchor = f"{plain}-{number}"
    taken.add(anchor)
    return anchor


def _plain(inline: Token) -> str:
    """A heading's words without its marks."""
    return "".join(child.content for child in inline.children or [])


def _mark_headings(tokens: Sequence[Token]) -> list[Heading]:
    """Find the top-level headings and give each its ``id``."""
    found: list[Heading] = []
    taken: set[str] = set()
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            text = _plain(inline)
            anchor = _anchor(text, taken)
            token.attrSet("id", anchor)
            found.append(Heading(token.map[0], token.map[1], int(token.tag[1]), text, anchor))
    return found


def headings(markdown: str) -> list[Heading]:
    """The top-level headings of a document, with the anchors that ``render`` gives them."""
    return _mark_headings(_MARKDOWN.parse(markdown))


def render(markdown: str) -> str:
    """Safe HTML of a whole document; each top-level heading has an ``id`` to link to."""
    tokens = _MARKDOWN.parse(markdown.replace("\r", ""))
    _mark_headings(tokens)
    return _html(tokens)
