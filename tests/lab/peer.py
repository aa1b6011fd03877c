"""A second client of the protocol, for tests and bench: it imports nothing of the product.

`Applied` is the reader's side, by the rules of docs/protocol.md; it keeps count of what it had to ignore. A `Peer` is
one connection that does what a test says, with the same methods over WebSocket and over polling. `Steady` stays in
touch by what works, and sends until it is acknowledged: for tests of what happens to people meanwhile.
"""

import json
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from lab.elements import Element, parse
from lab.http import Answer, Client
from lab.processes import wait_for

CHANGES = ("chat-feed", "chat-reload", "chat-gone")
COLOUR = re.compile("</?(?:b|i|u|var)>")  # of code
BROKEN = (OSError, WebSocketException, AssertionError)  # what a peer meets whose server or network is gone


@dataclass
class Shown:
    """One message as a reader would see it."""

    id: str
    client_id: str
    position: int
    revision: int
    author: str
    state: str
    deleted: bool
    text: str
    blocks: list[str] = field(default_factory=list)


@dataclass
class Feed:
    """What is shown of one feed, and up to which revision."""

    cursor: int = 0
    messages: dict[str, Shown] = field(default_factory=dict)
    conversations: dict[str, Element] = field(default_factory=dict)
    waiting: dict[str, Element] = field(default_factory=dict)

    def ordered(self) -> list[Shown]:
        """The messages in the order of the page."""
        return sorted(self.messages.values(), key=lambda message: message.position)


@dataclass(frozen=True)
class Sent:
    """What became of a send: acknowledged, or refused with a code."""

    client_id: str
    id: str = ""
    position: int = 0
    revision: int = 0
    refused: str = ""
    status: int = 0


class Applied:
    """The reader's side of the protocol: feeds by name, each with its cursor."""

    def __init__(self) -> None:
        self.feeds: dict[str, Feed] = {}
        self.ignored = 0
        self.gaps = 0
        self.gone: set[str] = set()
        self.must_resubscribe: dict[str, int] = {}

    def apply(self, element: Element) -> None:
        """One chat-feed, chat-reload or chat-gone; anything else is left alone."""
        name = element.get("feed")
        if element.tag == "chat-gone":
            self.gone.add(name)
        elif element.tag == "chat-reload":
            self.feeds[name] = Feed()
            self.must_resubscribe[name] = 0
        elif element.tag == "chat-feed":
            self._apply_feed(self.feeds.setdefault(name, Feed()), element)

    def _apply_feed(self, feed: Feed, element: Element) -> None:
        name, start, end = element.get("feed"), element.number("from"), element.number("to")
        assert start <= end, f"a feed that goes backwards: {start} to {end}"
        if end <= feed.cursor:  # also a reset that is late
            self.ignored += bool(element.elements)
            return
        if element.has("reset"):
            feed.messages.clear()
            feed.conversations.clear()
            feed.waiting.clear()
        elif start > feed.cursor:
            self.gaps += 1
            self.must_resubscribe[name] = feed.cursor
            return
        for child in element.elements:
            if not self._apply_child(feed, child):
                self.must_resubscribe[name] = 0
                return
        feed.cursor = end

    def _apply_child(self, feed: Feed, child: Element) -> bool:
        if child.tag == "article" and child.has("data-position"):
            feed.waiting.pop(child.get("data-client-id"), None)
            return self._apply_article(feed, read_article(child))
        if child.tag == "article":
            self._apply_waiting(feed, child)
        if child.tag == "chat-patch":
            return self._apply_patch(feed, child)
        if child.tag == "li":
            self._apply_conversation(feed, child)
        return True

    def _apply_article(self, feed: Feed, new: Shown) -> bool:
        known = feed.messages.get(new.id)
        if known and known.revision >= new.revision:
            self.ignored += 1
        else:
            feed.messages[new.id] = new
        return True

    def _apply_waiting(self, feed: Feed, child: Element) -> None:
        name = child.get("data-client-id")
        known = feed.waiting.pop(name, None)
        if known is not None and known.number("data-revision") >= child.number("data-revision"):
            feed.waiting[name] = known
            self.ignored += 1
        elif child.get("data-state") == "queued":
            feed.waiting[name] = child

    def _apply_patch(self, feed: Feed, patch: Element) -> bool:
        position = patch.number("position")
        known = next((message for message in feed.messages.values() if message.position == position), None)
        if known is None or known.revision >= patch.number("revision"):
            self.ignored += 1
            return True
        blocks = list(known.blocks)
        for piece in patch.all("chat-block"):
            place = piece.get("at") or f"{piece.get('index')},{piece.get('offset')},0"
            index, offset, kept = map(int, place.split(","))
            blocks += [""] * (index + 1 - len(blocks))
            known_html = COLOUR.sub("", blocks[index]) if piece.has("html") else blocks[index]
            units = known_html.encode("utf-16-le")  # offsets count UTF-16 units, as JavaScript does
            if len(units) < 2 * (offset + kept):
                return False
            source = piece.get("html") if piece.has("html") else piece.text
            after = units[len(units) - 2 * kept :].decode("utf-16-le")
            html = units[: 2 * offset].decode("utf-16-le") + source + after
            blocks[index] = painted(html, piece.get("paint"))
        known.blocks, known.revision = blocks, patch.number("revision")
        known.state = patch.get("state", known.state)
        known.text = "\n".join(parse(block).text for block in blocks)
        return True

    def _apply_conversation(self, feed: Feed, row: Element) -> None:
        known = feed.conversations.get(row.get("data-id"))
        if known is not None and known.number("data-revision") >= row.number("data-revision"):
            self.ignored += 1
        elif row.has("data-deleted"):
            feed.conversations.pop(row.get("data-id"), None)
        else:
            feed.conversations[row.get("data-id")] = row


def read_article(article: Element) -> Shown:
    """What an article shows; the source of a running answer's last block is in its data-source."""
    blocks = [b.get("data-source", b.source) for b in article.all("div", css_class="block")]
    body = article.one("div", css_class="body")
    return Shown(
        id=article.get("data-id"),
        client_id=article.get("data-client-id"),
        position=article.number("data-position"),
        revision=article.number("data-revision"),
        author=article.get("data-author"),
        state=article.get("data-state"),
        deleted=article.has("data-deleted"),
        text="\n".join(parse(block).text for block in blocks) if blocks else body.text.strip(),
        blocks=blocks,
    )


def unfolded(element: Element, feeds: Mapping[str, Feed]) -> Element:
    """What an answer grew by as a chat-feed, if it came in the short form."""
    if not element.has("at"):
        return element
    [feed] = [name for name in feeds if name.startswith(element.get("feed"))]
    end, (position, _, place) = element.get("to"), element.get("at").partition(",")
    block = Element("chat-block", {"at": place})
    block.attributes |= {name: element.get(name) for name in ("html", "paint")}
    patch = Element("chat-patch", {"position": position, "revision": end}, [block])
    checked = element.get("at") + element.get("html") + element.get("paint")
    assert f"{crc32(checked.encode()):08x}" == element.get("check"), "the check"
    return Element("chat-feed", {"feed": feed, "from": element.get("from") or str(int(end) - 1), "to": end}, [patch])


def painted(html: str, paint: str) -> str:
    """HTML with the colours of its code, from its short form."""
    units, at, parts = html.encode("utf-16-le"), 0, []
    for gap, tag, length in re.findall(r"(\d+)([a-z]+)(\d+)", paint):
        start, end = at + 2 * int(gap), at + 2 * (int(gap) + int(length))
        parts += [units[at:start], f"<{tag}>".encode("utf-16-le"), units[start:end], f"</{tag}>".encode("utf-16-le")]
        at = end
    return b"".join([*parts, units[at:]]).decode("utf-16-le")


class Peer:
    """One connection of one signed-in client. `arrived` keeps (seconds, element) of everything that came."""

    transport = ""
    is_short = False  # ask for what an answer grows by in the short form

    def __init__(self, client: Client) -> None:
        self.client = client
        self.applied = Applied()
        self.arrived: list[tuple[float, Element]] = []
        self.bytes_in = 0

    def cursor(self, feed: str) -> int:
        """Up to where a feed is shown."""
        return self.applied.feeds.setdefault(feed, Feed()).cursor

    def shown(self, conversation: str) -> list[Shown]:
        """The messages of a conversation in order."""
        return self.applied.feeds.setdefault(conversation, Feed()).ordered()

    def waiting(self, conversation: str) -> list[Element]:
        """The answers of a conversation that have not begun."""
        return list(self.applied.feeds.setdefault(conversation, Feed()).waiting.values())

    def subscribe(self, cursors: Mapping[str, int]) -> None:
        """Begins (or begins again) to follow these feeds from these cursors."""
        raise NotImplementedError

    def send(self, conversation: str, body: str, client_id: str = "", timeout: float = 10.0) -> Sent:
        """Sends and waits for the word of the server; TimeoutError or OSError if none comes."""
        raise NotImplementedError

    def next(self, timeout: float = 5.0) -> list[Element]:
        """Waits for the next elements that change something, applies them, returns them; [] after `timeout` s."""
        raise NotImplementedError

    def prove(self) -> None:
        """Shows that it works, there and back; TimeoutError or OSError where it does not."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends it."""

    def wait_until(self, condition: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
        """Applies what comes until the condition holds; AssertionError if it does not in time."""
        end = time.monotonic() + timeout
        while not condition():
            left = end - time.monotonic()
            assert left > 0, f"not within {timeout:g} s over {self.transport}: {what}"
            self.next(min(left, 1.0))

    def wait_for_answer(self, conversation: str, timeout: float = 20.0, after: int = 0) -> Shown:
        """Waits until the newest message, at a position beyond `after`, is an answer that has ended; returns it."""
        ended = ("completed", "stopped", "interrupted", "failed")

        def newest_has_ended() -> bool:
            messages = self.shown(conversation)
            newest = messages[-1] if messages and messages[-1].position > after else None
            return newest is not None and newest.author == "assistant" and newest.state in ended

        self.wait_until(newest_has_ended, timeout, "the answer ends")
        return self.shown(conversation)[-1]

    def _take(self, markup: str) -> list[Element]:
        """Applies a frame or the inside of a poll's answer."""
        self.bytes_in += len(markup.encode())
        elements = [unfolded(element, self.applied.feeds) for element in parse(markup).elements]
        now = time.monotonic()
        for element in elements:
            self.arrived.append((now, element))
            self.applied.apply(element)
        if self.applied.must_resubscribe:
            again, self.applied.must_resubscribe = self.applied.must_resubscribe, {}
            self.subscribe(again)
        return elements

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WebSocketPeer(Peer):
    """Over WebSocket: one element a frame."""

    transport = "websocket"

    def __init__(self, client: Client, path: str = "/ws", **options: Any) -> None:
        super().__init__(client)
        address = client.url.replace("http", "ws", 1) + path
        options = {"compression": None, "proxy": None, "ping_interval": None, "open_timeout": 10} | options
        headers = {"Cookie": client.cookie_header}
        self._open = ExitStack()
        self.socket: ClientConnection = self._open.enter_context(
            connect(address, origin=client.url, additional_headers=headers, **options)
        )
        self.hello = self._await(lambda element: element.tag == "chat-hello", 10.0)
        assert self.arrived[0][1].tag == "chat-hello", "the first frame is not the hello"

    def subscribe(self, cursors: Mapping[str, int]) -> None:
        for feed, cursor in cursors.items():
            self.applied.feeds.setdefault(feed, Feed()).cursor = cursor
        short = {"short": True} if self.is_short else {}
        self.say(type="subscribe", epoch=self.client.epoch, feeds=dict(cursors), **short)

    def say(self, **message: Any) -> None:
        """Any frame of the client, as JSON."""
        self.socket.send(json.dumps(message, ensure_ascii=False, separators=(",", ":")))

    def send(self, conversation: str, body: str, client_id: str = "", timeout: float = 10.0) -> Sent:
        client_id = client_id or str(uuid.uuid4())
        self.say(type="send", conversation=conversation, client_id=client_id, body=body)
        word = self._await(lambda e: e.tag in ("chat-ack", "chat-refused") and e.get("client-id") == client_id, timeout)
        if word.tag == "chat-refused":
            return Sent(client_id, refused=word.get("code"))
        return Sent(client_id, word.get("id"), word.number("position"), word.number("revision"))

    def echo(self, number: int = 1, timeout: float = 10.0) -> float:
        """The seconds one echo takes."""
        start = time.monotonic()
        self.say(type="echo", n=number)
        self._await(lambda e: e.tag == "chat-echo" and e.get("n") == str(number), timeout)
        return time.monotonic() - start

    def prove(self) -> None:
        self.echo()

    def next(self, timeout: float = 5.0) -> list[Element]:
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            elements = self._receive(left)
            if any(element.tag in CHANGES for element in elements):
                return elements
        return []

    def _receive(self, timeout: float) -> list[Element]:
        try:
            frame = self.socket.recv(timeout=timeout)
        except TimeoutError:
            return []
        assert isinstance(frame, str), "a binary frame"
        elements = self._take(frame)
        assert len(elements) == 1, f"a frame with {len(elements)} elements: {frame[:300]}"
        return elements

    def _await(self, condition: Callable[[Element], bool], timeout: float) -> Element:
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            for element in self._receive(left):
                if condition(element):
                    return element
        raise TimeoutError(f"the awaited frame did not come within {timeout:g} s")

    def wait_closed(self, timeout: float = 10.0) -> tuple[int, str]:
        """Reads on until the server closes; the close code and reason (1006 where there was none)."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                self._receive(end - time.monotonic())
            except ConnectionClosed as closed:
                return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")
        raise TimeoutError(f"not closed within {timeout:g} s")

    def close(self) -> None:
        self._open.close()


class PollingPeer(Peer):
    """Over HTTP: held polls, and sends by POST."""

    transport = "polling"

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.following: set[str] = set()
        self.answers: list[tuple[float, int]] = []

    def subscribe(self, cursors: Mapping[str, int]) -> None:
        for feed, cursor in cursors.items():
            self.applied.feeds.setdefault(feed, Feed()).cursor = cursor
        self.following |= set(cursors)

    def send(self, conversation: str, body: str, client_id: str = "", timeout: float = 10.0) -> Sent:
        client_id = client_id or str(uuid.uuid4())
        answer = self.client.post_message(conversation, body, client_id)
        if answer.status in (200, 201):
            word = answer.json
            return Sent(client_id, word["id"], word["position"], word["revision"], status=answer.status)
        code = answer.json["error"]["code"] if answer.text.startswith("{") else str(answer.status)
        return Sent(client_id, refused=code, status=answer.status)

    def poll(self, wait: float = 0) -> Answer:
        """One poll from the cursors; what it brings is applied."""
        cursors = {feed: self.cursor(feed) for feed in sorted(self.following)}
        answer = self.client.poll(cursors, wait, is_short=self.is_short)
        self.answers.append((time.monotonic(), answer.status))
        if answer.status == 200:
            assert answer.text.startswith("<chat-answer"), f"not the product's answer: {answer.text[:200]}"
            is_growth = answer.page.one("chat-answer").has("at")
            self._take(answer.text if is_growth else answer.page.one("chat-answer").source)
        return answer

    def prove(self) -> None:
        answer = self.poll()
        if answer.status not in (200, 204):
            raise ConnectionError(f"the poll was answered {answer.status}")

    def next(self, timeout: float = 5.0) -> list[Element]:
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            before = len(self.arrived)
            answer = self.poll(wait=min(left, 20.0))
            assert answer.status in (200, 204), f"the poll answered {answer.status}: {answer.text[:300]}"
            changes = [element for _, element in self.arrived[before:] if element.tag in CHANGES]
            if changes:
                return changes
        return []


PEERS: dict[str, type[WebSocketPeer] | type[PollingPeer]] = {"websocket": WebSocketPeer, "polling": PollingPeer}


class Steady(threading.Thread):
    """Somebody who stays in touch while servers and networks fail, by the first of `ways` that works.

    Reads on from its cursors, whatever connection comes next; keeps one message under way, and repeats it until it is
    acknowledged. All that happens in its thread, in one `conversation`: that which is given, or a new one.
    """

    PAUSE_S = 0.05  # between attempts
    BACK_S = 1.0  # from one attempt to get back to a better way to the next

    def __init__(self, client: Client, ways: Sequence[str] = ("websocket", "polling"), conversation: str = "") -> None:
        super().__init__(daemon=True)
        self.ways = ways
        self.way = ""  # by which it is connected now
        self.applied = Applied()
        self.acknowledged: dict[str, Sent] = {}
        self.conversation = conversation or str(client.create("hello").json["conversation"])
        self.repeats = 0  # of messages
        self.broken = 0  # connections, and attempts to get one
        self._client = client.clone(timeout=5)
        self._outbox: deque[tuple[str, str]] = deque()
        self._back_at = 0.0
        self._stopping = threading.Event()

    def send(self, body: str) -> str:
        """Have it sent, after what waits already; its client_id."""
        client_id = str(uuid.uuid4())
        self._outbox.append((client_id, body))
        return client_id

    @property
    def unsent(self) -> int:
        """How many messages are not acknowledged yet."""
        return len(self._outbox)

    def shown(self) -> list[Shown]:
        """The messages that it shows, in order."""
        feed = self.applied.feeds.get(self.conversation, Feed())
        return sorted(list(feed.messages.values()), key=lambda message: message.position)

    def wait(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        """Until the condition holds; AssertionError if it does not in time, or its thread has ended."""
        wait_for(lambda: condition() or not self.is_alive(), timeout, what)
        assert self.is_alive() or self._stopping.is_set(), "its thread has ended"

    def run(self) -> None:
        """Connect and do what is to be done, again and again."""
        peer: Peer | None = None
        while not self._stopping.is_set():
            try:
                peer = self._connected(peer)
                if self._outbox:
                    self._send(peer, *self._outbox[0])
                peer.next(0.01 if self._outbox else 0.1)
                self.heard()
            except BROKEN:
                _hang_up(peer)
                peer, self.way = None, ""
                self.broken += 1
                time.sleep(self.PAUSE_S)
        _hang_up(peer)

    def heard(self) -> None:
        """What a test does whenever something may have come; nothing here."""

    def _connected(self, peer: Peer | None) -> Peer:
        """The peer, or one that takes its place: the first that works, of all ways or of those that are better."""
        if peer is not None and (self.way == self.ways[0] or time.monotonic() < self._back_at):
            return peer
        self._back_at = time.monotonic() + self.BACK_S
        for way in self.ways[: self.ways.index(self.way)] if peer else self.ways:
            try:
                better = PEERS[way](self._client)
                better.applied = self.applied
                better.subscribe({self.conversation: better.cursor(self.conversation)})
                better.prove()
            except BROKEN:
                continue
            _hang_up(peer)
            self.way = way
            return better
        if peer is None:
            raise ConnectionError("no way works")
        return peer

    def _send(self, peer: Peer, client_id: str, body: str) -> None:
        try:
            sent = peer.send(self.conversation, body, client_id, timeout=5)
            if sent.refused:
                raise ConnectionError(f"refused: {sent}")
        except BROKEN:
            self.repeats += 1
            raise
        self.acknowledged[client_id] = sent
        self._outbox.popleft()

    def close(self) -> None:
        """End it."""
        self._stopping.set()
        self.join(15)

    def __enter__(self) -> "Steady":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hang_up(peer: Peer | None) -> None:
    """Close what may be broken already."""
    if peer is not None:
        try:
            peer.close()
        except BROKEN:
            pass
