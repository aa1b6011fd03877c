"""What is shown of each feed: the client's rules 2 to 5 of docs/protocol.md, and the reading of elements."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["applied", "known", "gap", "misfit"]

_TAG = re.compile(r"<!--.*?-->|<(/?)([a-zA-Z][^\s/>]*)((?:[^>\"']|\"[^\"]*\"|'[^']*')*)>", re.DOTALL)
_ATTRIBUTE = re.compile(r"([^\s=/>\"']+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+)))?")
_VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)


@dataclass
class Element:
    """One element; `source` is what stands between its tags, character for character."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    source: str = ""

    def get(self, name: str, default: str = "") -> str:
        """An attribute; one without a value is the empty text."""
        return self.attributes.get(name, default)

    def number(self, name: str) -> int:
        """An attribute that must be a whole number."""
        return int(self.attributes[name])

    @property
    def text(self) -> str:
        """All text in it, entities resolved."""
        return html.unescape(_TAG.sub("", self.source) if self.children else self.source)

    def all(self, tag: str) -> Iterator[Element]:
        """Every element of that name below this one, in the document's order."""
        for child in self.children:
            if child.tag == tag:
                yield child
            yield from child.all(tag)


def parse(markup: str) -> list[Element]:
    """The elements of a frame, a poll's answer or a page. Text between them is dropped; unclosed ones are closed."""
    root = Element("", {}, [], markup)
    open_: list[tuple[Element, int]] = [(root, 0)]
    for found in _TAG.finditer(markup):
        slash, name, rest = found.groups()
        if name is None:  # a comment
            continue
        tag = name.lower()
        if slash:
            depth = next((n for n in range(len(open_) - 1, 0, -1) if open_[n][0].tag == tag), len(open_))
            for element, start in open_[depth:]:
                element.source = markup[start : found.start()]
            del open_[depth:]
            continue
        element = Element(tag, _attributes(rest))
        open_[-1][0].children.append(element)
        if tag not in _VOID:
            open_.append((element, found.end()))
    return root.children


def _attributes(text: str) -> dict[str, str]:
    found = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text) if text else ():
        value = double or single or bare
        found[name.lower()] = html.unescape(value) if "&" in value else value
    return found


@dataclass
class Message:
    """One message as a reader sees it: a person's has a `body`, an answer has `blocks` of HTML source."""

    id: str
    client_id: str
    position: int
    revision: int
    author: str
    state: str
    deleted: bool
    body: str = ""
    blocks: dict[int, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What it says, without markup."""
        if self.author == "user":
            return self.body
        return "\n".join(html.unescape(_TAG.sub("", self.blocks[index])) for index in sorted(self.blocks))

    @property
    def is_live(self) -> bool:
        """Whether more is to come."""
        return self.state in ("queued", "running")


@dataclass
class Entry:
    """One conversation in the person's list."""

    id: str
    revision: int
    updated: str
    title: str


def read_message(article: Element) -> Message:
    """The message that an `article` shows."""
    deleted = "data-deleted" in article.attributes
    body = next(one for one in article.children if one.get("class") == "body")
    blocks = {}
    for block in body.children:
        if block.get("class") == "block":
            blocks[block.number("data-index")] = block.get("data-source", block.source)
    is_text = article.get("data-author") == "user" and not deleted
    return Message(
        id=article.get("data-id"),
        client_id=article.get("data-client-id"),
        position=article.number("data-position"),
        revision=article.number("data-revision"),
        author=article.get("data-author"),
        state=article.get("data-state"),
        deleted=deleted,
        body=body.text if is_text else "",
        blocks=blocks,
    )


def cut_utf16(source: str, offset: int) -> str | None:
    """The first `offset` UTF-16 units of a source, or None where it is shorter."""
    if source.isascii():
        return source[:offset] if offset <= len(source) else None
    units = source.encode("utf-16-le", "surrogatepass")
    return units[: 2 * offset].decode("utf-16-le", "surrogatepass") if 2 * offset <= len(units) else None


@dataclass
class Feed:
    """One followed feed: its cursor, and what is shown of it."""

    cursor: int = 0
    messages: dict[int, Message] = field(default_factory=dict)  # by position
    conversations: dict[str, Entry] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)  # positions of answers that are being written
    waiting: set[str] = field(default_factory=set)  # client ids of answers that have not begun

    def forget(self) -> None:
        """Begin from nothing."""
        self.cursor = 0
        self._clear()

    def apply(self, element: Element) -> Verdict:
        """Take a `chat-feed`. "gap": ask again from the cursor. "misfit": ask again from 0."""
        start, end = element.number("from"), element.number("to")
        reset = "reset" in element.attributes
        if end <= self.cursor:
            return "known"
        if reset:
            self._clear()
        elif start > self.cursor:
            return "gap"
        for child in element.children:
            if not self._apply_child(child):
                return "misfit"
        self.cursor = end
        return "applied"

    def _clear(self) -> None:
        self.messages.clear()
        self.conversations.clear()
        self.live.clear()
        self.waiting.clear()

    def _apply_child(self, child: Element) -> bool:
        if child.tag == "article" and "data-position" not in child.attributes:
            self._wait(child)
        elif child.tag == "article":
            self._place(read_message(child))
        elif child.tag == "li":
            self._list(child)
        elif child.tag == "chat-patch":
            return self._patch(child)
        return True

    def _wait(self, article: Element) -> None:
        is_over = article.get("data-state") != "queued"
        (self.waiting.discard if is_over else self.waiting.add)(article.get("data-client-id"))

    def _place(self, new: Message) -> None:
        self.waiting.discard(new.client_id)
        known = self.messages.get(new.position)
        if known is None or self.is_newer(new.revision, known.revision):
            self.messages[new.position] = new
            self._note_life(new)

    def _patch(self, patch: Element) -> bool:
        known, revision = self.messages.get(patch.number("position")), patch.number("revision")
        if known is None or not self.is_newer(revision, known.revision):
            return True
        for piece in patch.all("chat-block"):
            index = piece.number("index")
            start = cut_utf16(known.blocks.get(index, ""), piece.number("offset"))
            if start is None:
                return False
            known.blocks[index] = start + piece.text
        known.revision = revision
        known.state = patch.get("state", known.state)
        self._note_life(known)
        return True

    def _note_life(self, message: Message) -> None:
        if message.is_live:
            self.live.add(message.position)
        else:
            self.live.discard(message.position)

    def _list(self, item: Element) -> None:
        known, revision = self.conversations.get(item.get("data-id")), item.number("data-revision")
        if known is not None and not self.is_newer(revision, known.revision):
            return
        if "data-deleted" in item.attributes:
            self.conversations.pop(item.get("data-id"), None)
        else:
            entry = Entry(item.get("data-id"), revision, item.get("data-updated"), item.text.strip())
            self.conversations[entry.id] = entry

    @staticmethod
    def is_newer(revision: int, shown: int) -> bool:
        """Whether a change is to be applied."""
        return revision > shown

    def ordered(self) -> list[Message]:
        """The messages by position."""
        return [self.messages[position] for position in sorted(self.messages)]
