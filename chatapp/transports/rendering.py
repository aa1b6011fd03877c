"""Draws what the server says: the same partials draw the page and the frames.

A frame is the same text for whoever reads it, so it is rendered and encoded once for all readers at the same cursor.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from sys import getsizeof
from typing import Any

from flask import Flask
from markupsafe import Markup, escape

from chatapp.cache import Cache
from chatapp.store import ChangedMessage, Changes, Entry, Waiting
from chatapp.transports import protocol, rfc6455
from chatapp.transports.integrity import check_of, message_check
from chatapp.transports.protocol import element
from chatapp.transports.rfc6455 import deflated
from chatapp.transports.subscriptions import StaleCursor, Update

MOST_RENDERED = 2000  # cached messages; a rendering is some 2 kB
MOST_RENDERED_BYTES = 16 << 20  # of them together: a long one has 20,000 characters, each up to six as HTML
PLAIN = ("sent", None, False, False)  # state, error, deleted, edited of a message that a form can draw
MARKED = ChangedMessage(
    id=0,
    uuid="\ue000uuid\ue001",
    client_id="\ue000client_id\ue001",
    position=9_000_000_000_000_001,
    revision=9_000_000_000_000_002,
    author="user",
    state="sent",
    state_revision=0,
    body="\ue000body\ue001",
    error=None,
    deleted=False,
    edited=False,
    created_at=datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC),
    blocks=(),
)
MARKS = {
    MARKED.uuid: "uuid",
    MARKED.client_id: "client_id",
    str(MARKED.position): "position",
    str(MARKED.revision): "revision",
    MARKED.body: "body",
    message_check(MARKED): "check",
    f"{MARKED.created_at:%Y-%m-%dT%H:%M:%SZ}": "time",
}


class Form:
    """A person's message as its template draws it, with gaps for what differs: to draw another one is to fill them.

    The template takes some 80 µs, and what people write is most of what is drawn.
    """

    def __init__(self, drawn: str) -> None:
        parts = re.split(f"({'|'.join(MARKS)})", drawn)
        texts, gaps = [text.replace("%", "%%") for text in parts[::2]], [f"%({MARKS[mark]})s" for mark in parts[1::2]]
        self._format = "".join(text + gap for text, gap in zip(texts, [*gaps, ""], strict=True))

    def filled(self, message: ChangedMessage) -> Markup:
        """The message's HTML."""
        what = {
            "uuid": message.uuid,
            "client_id": message.client_id,
            "position": message.position,
            "revision": message.revision,
            "body": escape(message.body),
            "check": message_check(message),
            "time": message.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return Markup(self._format % what)


class Renderer:
    """Draws messages and list entries with the partials of the page."""

    def __init__(self, app: Flask, base: str, mark: Callable[[int], str] = lambda _: "") -> None:
        self._app = app
        app.jinja_env.filters.update(check=check_of, message_check=message_check)
        self._mark = mark  # of a change
        self._base = base  # the URL prefix, ending in a slash
        self._macros: dict[str, Any] = {}
        self._forms: dict[str, Form] = {}  # by language
        self._rendered: Cache[tuple[int, int, str], str] = Cache(MOST_RENDERED, MOST_RENDERED_BYTES)

    def feed(self, name: str, changes: Changes[Any]) -> str:
        """The frame of what changed in a feed."""
        html = "\n".join([self._item(item, changes) for item in changes.items])
        html += "".join([self.waiting(waiting) for waiting in changes.waiting])
        flags = f"{' more' if changes.more else ''}{' reset' if changes.reset else ''}"
        if mark := self._mark(changes.change):
            flags += f' mark="{mark}"'
        # In one go, as every message needs it: a feed's name is a UUID or "list", the rest are numbers.
        return f'<chat-feed feed="{name}" from="{changes.start}" to="{changes.end}"{flags}>{html}</chat-feed>'

    def older(self, name: str, changes: Changes[ChangedMessage]) -> str:
        """The element of a page of older messages."""
        articles = "\n".join(self.message(item) for item in changes.items)
        return element("chat-older", articles, feed=name, cursor=changes.end, more=changes.more)

    def message(self, message: ChangedMessage) -> Markup:
        """A whole message, cached by what it depends on."""
        if message.author == "user" and (message.state, message.error, message.deleted, message.edited) == PLAIN:
            return self._form().filled(message)
        key = (message.id, message.revision, self._language())
        html = self._rendered.get(key)
        if html is None:
            html = str(self._macro("_message.html", "message")(message)).strip()
            self._rendered.put(key, html, getsizeof(html))
        return Markup(html)

    def waiting(self, waiting: Waiting) -> Markup:
        """An answer that has not begun."""
        return Markup(str(self._macro("_message.html", "waiting")(waiting)).strip())

    def _form(self) -> Form:
        form = self._forms.get(self._language())
        if form is None:
            form = self._forms[self._language()] = Form(str(self._macro("_message.html", "message")(MARKED)).strip())
        return form

    def entry(self, entry: Entry) -> Markup:
        """A line of the list of conversations."""
        return Markup(str(self._macro("_conversation.html", "entry")(entry, self._base)).strip())

    def _item(self, item: ChangedMessage | Entry, changes: Changes[Any]) -> str:
        if isinstance(item, Entry):
            return self.entry(item)
        is_known = not changes.reset and item.position <= changes.start
        if is_known and item.author == "assistant" and not item.deleted:
            return self._patch(item, changes.start)
        return self.message(item)

    def _patch(self, message: ChangedMessage, cursor: int) -> str:
        """What a reader at `cursor` lacks of an answer that it shows already."""
        parts, tails = [], ""
        for block in message.blocks:
            if block.revision > cursor:
                offset = block.offset(cursor)
                start, tail = block.html[:offset], block.html[offset:]
                tails += tail
                parts.append(element("chat-block", _text(tail), index=block.index, offset=utf16_length(start)))
        if message.state_revision > cursor:
            parts.append(str(self._macro("_message.html", "footer")(message)).strip())
        # By position, and the state only where it changed: a long answer is hundreds of patches.
        state = message.state if message.state_revision > cursor else None
        place = {"position": message.position, "revision": message.revision}
        return element("chat-patch", "".join(parts), **place, state=state, check=check_of(tails) if tails else None)

    def _macro(self, template: str, name: str) -> Any:
        key = f"{template}:{name}:{self._language()}"
        if key not in self._macros:
            module = self._app.jinja_env.get_template(f"conversation/{template}").module
            self._macros[key] = getattr(module, name)
        return self._macros[key]

    def _language(self) -> str:
        return "en"  # the only catalogue so far; the key keeps its place for others


def _text(html: str) -> str:
    """HTML source as an element's text. Quotes stay: this is no attribute, and they are many."""
    return html.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def utf16_length(text: str) -> int:
    """Length in UTF-16 units: what JavaScript counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2 if not text.isascii() else len(text)


def encoded(name: str, update: Update | Exception, deflates: bool) -> bytes:
    """The frame with its header; of news once for all its readers, and once for those who take it compressed."""
    if not isinstance(update, Update):
        text = protocol.reload(name, "cursor") if isinstance(update, StaleCursor) else protocol.gone(name)
        return rfc6455.frame(text.encode())
    if update.frame is None:
        return rfc6455.frame(protocol.nothing(name, update.cursor).encode())
    if deflates:
        if update.deflated is None:
            update.deflated = (
                deflated(update.frame.encode()) if update.compresses else rfc6455.frame(update.frame.encode())
            )
        return update.deflated
    update.encoded = update.encoded or rfc6455.frame(update.frame.encode())
    return update.encoded
