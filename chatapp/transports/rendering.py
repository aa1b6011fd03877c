"""Rendering of changes to frames, with the partials of the page.

A frame is the same for all readers at the same cursor, so it is rendered and encoded once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from html import unescape
from sys import getsizeof
from typing import Any
from zlib import crc32

from flask import Flask
from markupsafe import Markup, escape

from chatapp.cache import Cache
from chatapp.store import Block, ChangedMessage, Changes, Entry, Waiting
from chatapp.store.attachments import MARK, REFERENCE
from chatapp.store.steps import COLOUR, without_colours
from chatapp.transports.protocol import GROWTH, GROWTH_END, element

_TAG = re.compile(r'<(?:[^<>"]|"[^"]*")*>')
_LINK = re.compile(r'<a (?:[^>"]|"[^"]*")*?\bhref="([^"]*)"')
_FILE = r'<a class="file" href="../attachments/\3" download>[file: \1, \2<span class="visually-hidden">, \3</span>]</a>'
MOST_RENDERED = 2000  # cached messages; a rendering is some 2 kB
MOST_RENDERED_BYTES = 16 << 20  # in total: a long one has 20,000 characters, each up to six as HTML
SHORT = 4  # characters of a feed's name in the short form; of 10 feeds two are alike once in 1,500 times
UUID_LENGTH = 36
PLAIN = ("sent", None, False, False, True)  # state, error, deleted, edited, named: what MessageTemplate can render
SAMPLE = ChangedMessage(
    id=0,
    uuid="\ue000uuid\ue001",
    client_id="\ue000client_id\ue001",
    position=9_000_000_000_000_001,
    revision=9_000_000_000_000_002,
    author="user",
    author_id="\ue000author_id\ue001",
    author_name="\ue000author_name\ue001",
    state="sent",
    state_revision=0,
    body="\ue000body\ue001",
    error=None,
    deleted=False,
    edited=False,
    created_at=datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC),
    blocks=(),
)


def checksum(text: str) -> str:
    """Return the CRC-32 of the UTF-8, as eight hexadecimal digits: against accidents, not against attackers."""
    return f"{crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def with_files(text: str) -> Markup:
    """Return a person's text as HTML, with links to the files that it names. The text stays the same."""
    return Markup(REFERENCE.sub(_FILE, str(escape(text))))


def message_checksum(message: ChangedMessage) -> str:
    """Return the checksum of a message: of its text as a browser shows it, its links' targets, and its open block's
    HTML.
    """
    if message.author == "user":
        return checksum(message.body)
    text = "".join([_shown_text(block) for block in message.blocks])
    source = message.blocks[-1].html if message.blocks and message.state == "running" else ""
    return checksum(text + "".join(_links(message.blocks)) + source)


def _shown_text(block: Block) -> str:
    return unescape(_TAG.sub("", block.html))


def _links(blocks: tuple[Block, ...]) -> list[str]:
    return [unescape(target) for block in blocks for target in _LINK.findall(block.html)]


def _fields(message: ChangedMessage) -> dict[str, object]:
    """Return the parts of a person's message that differ from others'."""
    return {
        "uuid": message.uuid,
        "client_id": message.client_id,
        "position": message.position,
        "revision": message.revision,
        "author_id": message.author_id,
        "author_name": escape(message.author_name),
        "body": escape(message.body),
        "check": message_checksum(message),
        "time": message.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


PLACEHOLDERS = {str(value): name for name, value in _fields(SAMPLE).items()}


class MessageTemplate:
    """A format string made from the rendered SAMPLE, for people's messages: Jinja takes some 80 µs for each."""

    def __init__(self, sample: str) -> None:
        parts = re.split(f"({'|'.join(PLACEHOLDERS)})", sample)
        texts, fields = [text.replace("%", "%%") for text in parts[::2]], [PLACEHOLDERS[mark] for mark in parts[1::2]]
        gaps = [*(f"%({field})s" for field in fields), ""]
        self._format = "".join(text + gap for text, gap in zip(texts, gaps, strict=True))

    def render(self, message: ChangedMessage) -> Markup:
        """Return the message's HTML."""
        return Markup(self._format % _fields(message))


class Renderer:
    """A renderer of feeds, messages and list entries, with a cache."""

    def __init__(self, app: Flask, base: str, mark: Callable[[int], str]) -> None:
        self._app = app
        app.jinja_env.filters.update(with_files=with_files, check=checksum, message_check=message_checksum)
        self._mark = mark  # of a change's number
        self._base = base  # URL prefix with a final slash
        self._macros: dict[tuple[str, str, str], Any] = {}
        self._templates: dict[str, MessageTemplate] = {}  # by language
        self._rendered: Cache[tuple[int, int, str], str] = Cache(MOST_RENDERED, MOST_RENDERED_BYTES)

    def feed(self, name: str, changes: Changes[Any], is_short: bool = False) -> str:
        """Return the frame of a feed's changes, for a client that asked for it in its short form."""
        if is_short and (frame := self._growth(name, changes)) is not None:
            return frame
        html = "\n".join([self._item(item, changes, is_short) for item in changes.items])
        html += "".join([self.waiting(waiting) for waiting in changes.waiting])
        flags = f"{' more' if changes.more else ''}{' reset' if changes.reset else ''}"
        if mark := self._mark(changes.change):
            flags += f' mark="{mark}"'
        # Formatted without `element`, for speed. Nothing to escape: a feed's name is a UUID or "list".
        return f'<chat-feed feed="{name}" from="{changes.start}" to="{changes.end}"{flags}>{html}</chat-feed>'

    def older(self, name: str, changes: Changes[ChangedMessage]) -> str:
        """Return the element of a page of older messages."""
        articles = "\n".join(self.message(item) for item in changes.items)
        return element("chat-older", articles, feed=name, cursor=changes.end, more=changes.more)

    def message(self, message: ChangedMessage) -> Markup:
        """Return a whole message, cached by id, revision and language."""
        is_edited = message.edited or message.folded or MARK in message.body
        form = (
            message.state,
            message.error,
            message.deleted,
            is_edited,
            message.author_name != "",
        )
        if message.author == "user" and form == PLAIN:
            return self._template().render(message)
        key = (message.id, message.revision, self._language())
        html = self._rendered.get(key)
        if html is None:
            html = self._draw("_message.html", "message", message)
            self._rendered.put(key, html, getsizeof(html))
        return Markup(html)

    def waiting(self, waiting: Waiting) -> Markup:
        """Return the element of a queued answer."""
        return Markup(self._draw("_message.html", "waiting", waiting))

    def _template(self) -> MessageTemplate:
        template = self._templates.get(self._language())
        if template is None:
            template = MessageTemplate(self._draw("_message.html", "message", SAMPLE))
            self._templates[self._language()] = template
        return template

    def entry(self, entry: Entry) -> Markup:
        """Return an entry of the list of conversations."""
        return Markup(self._draw("_list_entry.html", "entry", entry, self._base))

    def _item(self, item: ChangedMessage | Entry, changes: Changes[Any], is_short: bool) -> str:
        if isinstance(item, Entry):
            return self.entry(item)
        if _is_known_answer(item, changes):
            return self._patch(item, changes.start, is_short)
        return self.message(item)

    def _growth(self, name: str, changes: Changes[Any]) -> str | None:
        """Return the frame of an answer that grew in one block: the most frequent one, and nearly all of an answer's
        bytes. None if there is more to say."""
        item = changes.items[0] if len(changes.items) == 1 else None
        if isinstance(item, Entry) or item is None or not _is_known_answer(item, changes) or len(name) != UUID_LENGTH:
            return None
        start, end = changes.start, changes.end
        grown = [block for block in item.blocks if block.revision > start]
        has_more = changes.more or changes.waiting or item.state_revision > start or item.revision != end
        if has_more or len(grown) != 1:
            return None
        offset, kept, piece, paint = _piece(grown[0], start)
        since = "" if start == end - 1 else f' from="{start}"'
        mark = self._mark(changes.change)
        marked = f' mark="{mark}"' if mark else ""
        at = f"{item.position},{grown[0].index},{offset},{kept}"
        if paint and len(paint) > len(grown[0].html) - grown[0].offset(start):
            return None  # the plain form is shorter
        feed = f'feed="{name[:SHORT]}"{since} to="{end}"{marked}'
        return f'{GROWTH} at="{at}" {feed} check="{checksum(at + piece + paint)}"{_html(piece, paint)}>{GROWTH_END}'

    def _patch(self, message: ChangedMessage, cursor: int, is_short: bool) -> str:
        """Return the changes after `cursor` of an answer that the reader already shows."""
        parts, tails = [], ""
        for block in message.blocks:
            if block.revision > cursor:
                text, part = _short_block(block, cursor) if is_short else _block(block, cursor)
                if " paint=" in part:  # of a long code they may be more than what grew after it
                    text, part = min((text, part), _block(block, cursor), key=lambda one: len(one[1]))
                tails += text
                parts.append(part)
        if message.state_revision > cursor:
            parts.append(self._draw("_message.html", "footer", message))
        # Small, because a long answer is hundreds of patches: the state only if it changed.
        state = message.state if message.state_revision > cursor else None
        numbers = {"position": message.position, "revision": message.revision}
        return element("chat-patch", "".join(parts), **numbers, state=state, check=checksum(tails) if tails else None)

    def _draw(self, template: str, macro: str, *values: object) -> str:
        key = (template, macro, self._language())
        if key not in self._macros:
            module = self._app.jinja_env.get_template(f"conversation/{template}").module
            self._macros[key] = getattr(module, macro)
        return str(self._macros[key](*values)).strip()

    def _language(self) -> str:
        return "en"  # the only catalogue so far


def _is_known_answer(item: ChangedMessage, changes: Changes[Any]) -> bool:
    is_known = not changes.reset and item.position <= changes.start
    return is_known and item.author == "assistant" and not item.deleted and not item.folded


def _block(block: Block, cursor: int) -> tuple[str, str]:
    """Return the end of a block that a reader at `cursor` lacks, and its element."""
    offset = block.offset(cursor)
    start, tail = block.html[:offset], block.html[offset:]
    return tail, element("chat-block", _text(tail), index=block.index, offset=utf16_length(start))


def _short_block(block: Block, cursor: int) -> tuple[str, str]:
    """Return the part of a block that a reader at `cursor` lacks, and its element in the short form."""
    offset, kept, piece, paint = _piece(block, cursor)
    at = f"{block.index},{offset},{kept}"
    return at + piece + paint, f'<chat-block at="{at}"{_html(piece, paint)}></chat-block>'


def _piece(block: Block, cursor: int) -> tuple[int, int, str, str]:
    """Return the part of a block without colours that a reader at `cursor` lacks: UTF-16 units before it, UTF-16 units
    after it, HTML; and the colours of the whole block.
    """
    html = without_colours(block.html)
    start, end = block.known(cursor)
    end = len(html) - end
    paint = _paint(block.html) if html is not block.html else ""
    return utf16_length(html[:start]), utf16_length(html[end:]), html[start:end], paint


def _paint(html: str) -> str:
    """Return the colours of code: for each, UTF-16 units since the one before, the element, UTF-16 units in it."""
    parts, at = [], 0
    for tag in COLOUR.finditer(html):
        parts.append(f"{utf16_length(html[at : tag.start()])}{'' if tag[1] else tag[2]}")
        at = tag.end()
    return "".join(f"{part} " if n % 2 else part for n, part in enumerate(parts)).strip()


def _html(piece: str, paint: str) -> str:
    """Return the attributes with a part of a block."""
    return f" html={_quoted(piece)}" + (f' paint="{paint}"' if paint else "")


def _quoted(html: str) -> str:
    """Return HTML as an attribute's value, in the quotes that occur less often in it."""
    text = html.replace("&", "&amp;")
    if text.count('"') > text.count("'"):
        return "'" + text.replace("'", "&#39;") + "'"
    return '"' + text.replace('"', "&#34;") + '"'


def _text(html: str) -> str:
    # Quotes stay: this is no attribute, and HTML has many.
    return html.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def utf16_length(text: str) -> int:
    """Return the length in UTF-16 code units, as in JavaScript."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2 if not text.isascii() else len(text)
