"""The application protocol of both transports (docs/protocol.md): JSON from the client, elements from the server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import escape

from chatapp.store import Posted
from chatapp.store.histories import Histories

REVISION = 2
"""Of this protocol: one more where a client must know of a change. 2: several people, `data-author-id`."""


GROWTH, GROWTH_END = "<chat-feed", "</chat-feed>"
"""Around the short form of a feed of which only one block of an answer grew. In a poll it is the wrapper itself."""


class BadFrame(Exception):
    """An invalid frame; the message is for the client."""


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to feeds from cursors."""

    epoch: str
    feeds: dict[str, int]
    mark: str = ""  # see store/histories.py
    short: bool = False  # the client reads the short form of what an answer grows by


@dataclass(frozen=True)
class Unsubscribe:
    """Unsubscribe from feeds."""

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
    """Parse a client's frame. Raises BadFrame."""
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
            return Send(_valid_name(conversation), _valid_name(client_id), body)
        case {"type": "subscribe", "epoch": str(epoch), "feeds": dict(feeds)}:
            cursors = {_valid_name(name): _valid_cursor(cursor) for name, cursor in feeds.items()}
            return Subscribe(epoch, cursors, str(data.get("mark", "")), data.get("short") is True)
        case {"type": "unsubscribe", "feeds": list(names)} if all(isinstance(name, str) for name in names):
            return Unsubscribe(tuple(_valid_name(name) for name in names))
        case {"type": str(kind)}:
            raise BadFrame(f"A frame of type {kind[:40]!r} is unknown or incomplete.")
    raise BadFrame("A frame needs a type.")


def _valid_name(text: str) -> str:
    """Return a name. Raises BadFrame for a lone surrogate, which no UTF-8 answer could repeat."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadFrame("A name holds half a character (a lone surrogate).") from None
    return text


def _valid_cursor(cursor: object) -> int:
    if isinstance(cursor, bool) or not isinstance(cursor, int) or not 0 <= cursor < 1 << 53:
        raise BadFrame("A cursor must be a whole number from 0.")
    return cursor


def element(name: str, content: str = "", **attributes: object) -> str:
    """Return an element. An attribute of None or False is left out; True writes it without a value."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is True:
            parts.append(f" {key.replace('_', '-')}")
        elif value is not None and value is not False:
            parts.append(f' {key.replace("_", "-")}="{escape(value)}"')
    return "".join((*parts, ">", content, f"</{name}>"))


def hello(epoch: str, person: str, connection: str, max_message: int, ping_s: float, drill_ms: int = 0) -> str:
    """Return the first frame on a WebSocket."""
    ids = {"epoch": epoch, "person": person, "connection": connection}
    limits = {"max_message": max_message, "ping": f"{ping_s:g}"}
    return element("chat-hello", "", **ids, **limits, protocol=REVISION, drill_ms=drill_ms or None)


def drill(ms: int) -> str:
    """Announce a drill of `ms`: clients must not learn from its failures."""
    return element("chat-drill", ms=ms)


def retry() -> str:
    """Tell a page that polls to try WebSocket now: it works again on its network."""
    return element("chat-retry")


def mended(is_there: bool) -> str:
    """Tell a network test that its WebSocket works, and whether it came from the network in question."""
    return element("chat-mended", there="yes" if is_there else "no")


def echo(n: int) -> str:
    """Answer an echo."""
    return element("chat-echo", n=n)


def ack(posted: Posted) -> str:
    """Acknowledge a stored message."""
    # Formatted without `element`, for speed. Nothing to escape: the values are UUIDs and numbers.
    return (
        f'<chat-ack client-id="{posted.client_id}" conversation="{posted.conversation}" id="{posted.id}"'
        f' position="{posted.position}" revision="{posted.revision}"></chat-ack>'
    )


def refused(client_id: str, code: str, message: str, retry_after_s: int | None = None) -> str:
    """Reject a message; with `retry_after_s` the client sends it again."""
    return element("chat-refused", escape(message), client_id=client_id, code=code, retry_after=retry_after_s)


def error(code: str, message: str) -> str:
    """Report an invalid frame."""
    return element("chat-error", escape(message), code=code)


def reload(feed: str, reason: str, epoch: str | None = None, mark: str | None = None) -> str:
    """Make the client read a feed again from 0. `epoch` and `mark`: the server's, for a client of another database
    (both) or of a history that a restore has undone (`mark`)."""
    return element("chat-reload", feed=feed, reason=reason, epoch=epoch, mark=mark)


def stale(histories: Histories, epoch: str, own: str, mark: str) -> Callable[[str], str] | None:
    """Return a function from a feed to its reload frame, or None if the client's epoch and mark are valid."""
    if epoch != own:
        return lambda name: reload(name, "epoch", own, histories.mark(0) or None)
    if not histories.holds(mark):
        return lambda name: reload(name, "history", None, histories.mark(0))
    return None


def gone(feed: str) -> str:
    """Report a feed as deleted, or not readable by this person."""
    return element("chat-gone", feed=feed)


def nothing(feed: str, cursor: int) -> str:
    """Confirm a subscription without changes."""
    return element("chat-feed", **{"feed": feed, "from": cursor, "to": cursor})  # type: ignore[arg-type]


def named_in_full(frames: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return frames with the whole names of their feeds, for a poll's answer of several. `names`: of its feeds."""

    def whole(found: re.Match[str]) -> str:
        return next(f'feed="{name}"' for name in names if name.startswith(found[1]))

    return [
        re.sub(r'feed="(\w+)"', whole, frame, count=1) if frame.startswith(f"{GROWTH} at=") else frame
        for frame in frames
    ]


def answer(frames: list[str]) -> str:
    """Return a poll's body: the frames in an element that no proxy's or captive portal's page has."""
    if len(frames) == 1 and frames[0].startswith(f"{GROWTH} at="):
        return f"<chat-answer{frames[0].removeprefix(GROWTH).removesuffix(GROWTH_END)}</chat-answer>"
    return element("chat-answer", "\n".join(frames))
