"""One envelope for both transports: what the server says, as HTML elements (docs/protocol.md).

The same partials draw the page and the frames. A frame is the same text for whoever reads it, so it is rendered
and encoded once for all readers at the same cursor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from sys import getsizeof
from typing import Any

from flask import Flask
from markupsafe import Markup, escape

from chatapp.cache import Cache
from chatapp.store import ChangedMessage, Changes, Entry, Posted, Waiting
from chatapp.store.histories import Histories
from chatapp.transports import rfc6455
from chatapp.transports.integrity import check_of, message_check
from chatapp.transports.rfc6455 import deflated
from chatapp.transports.subscriptions import StaleCursor, Update

MOST_RENDERED = 2000  # cached messages; a rendering is some 2 kB
MOST_RENDERED_BYTES = 16 << 20  # of them together: a long one has 20,000 characters, each up to six as HTML


class BadFrame(Exception):
    """What a client sent is no frame; the message says why."""


@dataclass(frozen=True)
class Subscribe:
    """Follow these feeds from these cursors."""

    epoch: str
    feeds: dict[str, int]
    mark: str = ""  # see store/histories.py


@dataclass(frozen=True)
class Unsubscribe:
    """Follow these feeds no longer."""

    feeds: tuple[str, ...]


@dataclass(frozen=True)
class Send:
    """Post a message."""

    conversation: str
    client_id: str
    body: str


@dataclass(frozen=True)
class Echo:
    """Answer with the same number."""

    n: int


ClientFrame = Subscribe | Unsubscribe | Send | Echo


def decode(text: str) -> ClientFrame:
    """A client's frame from its JSON. Raises BadFrame."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise BadFrame("A frame must be JSON.") from None
    if not isinstance(data, dict):
        raise BadFrame("A frame must be a JSON object.")
    match data:
        case {"type": "echo", "n": int(n)} if not isinstance(n, bool):
            return Echo(n)
        case {"type": "send", "conversation": str(conversation), "client_id": str(client_id), "body": str(body)}:
            return Send(_whole(conversation), _whole(client_id), body)
        case {"type": "subscribe", "epoch": str(epoch), "feeds": dict(feeds)}:
            cursors = {_whole(name): checked_cursor(cursor) for name, cursor in feeds.items()}
            return Subscribe(epoch, cursors, str(data.get("mark", "")))
        case {"type": "unsubscribe", "feeds": list(names)} if all(isinstance(name, str) for name in names):
            return Unsubscribe(tuple(_whole(name) for name in names))
        case {"type": str(kind)}:
            raise BadFrame(f"A frame of type {kind[:40]!r} is unknown or incomplete.")
    raise BadFrame("A frame needs a type.")


def _whole(text: str) -> str:
    """A name, without halves of characters, which no answer could repeat. Raises BadFrame."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadFrame("A name holds half a character (a lone surrogate).") from None
    return text


def checked_cursor(cursor: object) -> int:
    """A cursor is a revision: a whole number from 0. Raises BadFrame."""
    if isinstance(cursor, bool) or not isinstance(cursor, int) or not 0 <= cursor < 1 << 53:
        raise BadFrame("A cursor must be a whole number from 0.")
    return cursor


def element(name: str, content: str = "", **attributes: object) -> str:
    """An element in one string. A value of None leaves its attribute out, True writes it bare."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is True:
            parts.append(f" {key.replace('_', '-')}")
        elif value is not None and value is not False:
            parts.append(f' {key.replace("_", "-")}="{escape(value)}"')
    return "".join((*parts, ">", content, f"</{name}>"))


def hello(epoch: str, person: str, connection: str, max_message: int, ping_s: float, drill_ms: int = 0) -> str:
    """The first frame on a WebSocket."""
    who = {"epoch": epoch, "person": person, "connection": connection}
    limits = {"max_message": max_message, "ping": f"{ping_s:g}"}
    return element("chat-hello", "", **who, **limits, drill_ms=drill_ms or None)


def drill(ms: int) -> str:
    """A drill runs for so long: the server fails on purpose, and nothing is to be learned from it."""
    return element("chat-drill", ms=ms)


def echo(n: int) -> str:
    """The answer to an echo."""
    return element("chat-echo", n=n)


def ack(posted: Posted) -> str:
    """The message is on disk. In one go, as every message needs it: ids are UUIDs, the rest are numbers."""
    return (
        f'<chat-ack client-id="{posted.client_id}" conversation="{posted.conversation}" id="{posted.id}"'
        f' position="{posted.position}" revision="{posted.revision}"></chat-ack>'
    )


def refused(client_id: str, code: str, words: str, retry_after_s: int | None = None) -> str:
    """The message was not taken; `retry_after_s`: not for good."""
    return element("chat-refused", escape(words), client_id=client_id, code=code, retry_after=retry_after_s)


def error(code: str, words: str) -> str:
    """A frame was not understood."""
    return element("chat-error", escape(words), code=code)


def reload(feed: str, reason: str, epoch: str | None = None, mark: str | None = None) -> str:
    """The cursor means nothing here: begin again from 0; `epoch` names the database where it is another one, `mark`
    starts over where it is of a future that this one does not have."""
    return element("chat-reload", feed=feed, reason=reason, epoch=epoch, mark=mark)


def stale(histories: Histories | None, epoch: str, own: str, mark: str) -> Callable[[str], str] | None:
    """What to say of a feed whose cursor is of another database, or of a future that this one lost; None: nothing."""
    if epoch != own:
        return lambda name: reload(name, "epoch", own, (histories.mark(0) if histories else "") or None)
    if histories is not None and not histories.holds(mark):
        return lambda name: reload(name, "history", None, histories.mark(0))
    return None


def gone(feed: str) -> str:
    """The feed is deleted, or not this person's."""
    return element("chat-gone", feed=feed)


def nothing(feed: str, cursor: int) -> str:
    """The reader has all there is: the proof that a subscription stands."""
    return element("chat-feed", **{"feed": feed, "from": cursor, "to": cursor})  # type: ignore[arg-type]


def answer(frames: list[str]) -> str:
    """A poll's answer: the frames, in the wrapper that marks them as ours, which a proxy's or a portal's page lacks."""
    return element("chat-answer", "\n".join(frames))


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
        text = reload(name, "cursor") if isinstance(update, StaleCursor) else gone(name)
        return rfc6455.frame(text.encode())
    if update.frame is None:
        return rfc6455.frame(nothing(name, update.cursor).encode())
    if deflates:
        if update.deflated is None:
            update.deflated = (
                deflated(update.frame.encode()) if update.compresses else rfc6455.frame(update.frame.encode())
            )
        return update.deflated
    update.encoded = update.encoded or rfc6455.frame(update.frame.encode())
    return update.encoded
