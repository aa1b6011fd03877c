"""One envelope for both transports (docs/protocol.md): clients say JSON, the server says elements."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import escape

from chatapp.store import Posted
from chatapp.store.histories import Histories


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
