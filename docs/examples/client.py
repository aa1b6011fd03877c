"""A client written from docs/protocol.md alone, for Python 3.11 or newer with httpx and websockets.

    python client.py URL EMAIL PASSWORD QUESTION    asks in a new conversation, and prints the answer

Left out: marks, checks (for networks that rewrite pages), older messages, storing what is not acknowledged yet.
"""

import asyncio
import json
import random
import re
import sys
import time
import uuid
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

HOLD_S = 10  # that the server may wait with its answer to a poll
PAUSES_S = [0.3, 0.5, 1, 2, 4, 5, 10, 20, 40, 60]  # between attempts
SOCKET: dict[str, Any] = dict(open_timeout=5, ping_interval=2, ping_timeout=5, close_timeout=1, max_size=None)
ENDED = {"completed", "stopped", "interrupted", "failed"}  # states of an answer
FOR_GOOD = {"empty", "too-long", "bad-id", "bad-body", "conflict", "gone", "origin", "http-413", "POST 403", "POST 422"}
TROUBLE = (OSError, httpx.HTTPError, WebSocketException, json.JSONDecodeError)  # another attempt may succeed


class Refused(Exception):
    """The server will never take this."""


@dataclass
class Element:
    """An element. `source` is what the server sent between its tags, to the letter."""

    name: str
    attrs: dict[str, str]
    start: int = 0
    source: str = ""
    children: list["Element"] = field(default_factory=list)
    blocks: dict[int, str] = field(default_factory=dict)  # of a message: its HTML by index, as far as it is written


def parse(html: str) -> list[Element]:
    """Read elements. Attributes of this server stand in double quotes; elsewhere it escapes `<` and `>`."""
    unclosed = [Element("", {})]
    for tag in re.finditer(r'<(/?)([a-z][\w-]*)((?:"[^"]*"|[^">])*)>', html):
        slash, name, rest = tag.groups()
        if not slash:
            attrs = {key: unescape(value) for key, value in re.findall(r'([^\s=/"]+)(?:="([^"]*)")?', rest)}
            element = Element(name, attrs, tag.end())
            unclosed[-1].children.append(element)
            if name not in ("br", "col", "hr", "img", "input", "wbr"):
                unclosed.append(element)
        elif len(unclosed) > 1:
            element = unclosed.pop()
            element.source = html[element.start : tag.start()]
    return unclosed[0].children


@dataclass
class Feed:
    """What is shown of a conversation, or of the list of them, by data-id. `cursor`: up to which revision."""

    cursor: int = 0
    items: dict[str, Element] = field(default_factory=dict)

    def apply(self, feed: Element) -> bool:
        """Apply a chat-feed by the client's rules 2 to 5. False: ask for it again, from the cursor."""
        start, end = int(feed.attrs["from"]), int(feed.attrs["to"])
        if end <= self.cursor or start > self.cursor:
            return end <= self.cursor  # it is late; else there is a gap
        self.items = {} if "reset" in feed.attrs else self.items
        for child in feed.children:
            try:
                if child.name == "chat-patch":
                    self._grow(child)
                elif child.name == "li" or "data-position" in child.attrs:  # an answer without one has not begun
                    self._put(child)
            except IndexError:
                self.cursor, self.items = 0, {}
                return False
            except (KeyError, ValueError):  # rule 8: one broken element must not stop the others
                continue
        self.cursor = end
        return True

    def _put(self, new: Element) -> None:
        known = self.items.get(new.attrs["data-id"])
        if known is None or int(known.attrs["data-revision"]) < int(new.attrs["data-revision"]):
            body = next((child for child in new.children if child.attrs.get("class") == "body"), new)
            blocks = [child for child in body.children if child.attrs.get("class") == "block"] or [body]
            new.blocks = {int(b.attrs.get("data-index", 0)): b.attrs.get("data-source", b.source) for b in blocks}
            self.items[new.attrs["data-id"]] = new

    def _grow(self, patch: Element) -> None:
        for item in self.items.values():
            at_it = item.attrs["data-position"] == patch.attrs["position"]
            if at_it and int(item.attrs["data-revision"]) < int(patch.attrs["revision"]):
                for piece in (child for child in patch.children if child.name == "chat-block"):
                    index, end = int(piece.attrs["index"]), 2 * int(piece.attrs["offset"])
                    old = item.blocks.get(index, "").encode("utf-16-le")  # offsets count UTF-16 units, of two bytes
                    if end > len(old):
                        raise IndexError("rule 5: it does not fit")
                    item.blocks[index] = old[:end].decode("utf-16-le") + unescape(piece.source)
                state = patch.attrs.get("state", item.attrs["data-state"])
                item.attrs |= {"data-revision": patch.attrs["revision"], "data-state": state}


class Client:
    """One person's connection. `feeds`: what is followed, by name. It sends by POST, and reads by what works."""

    def __init__(self, url: str, email: str, password: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, headers={"Accept": "application/json"}, timeout=10)
        self.account, self.feeds = {"email": email, "password": password}, {"list": Feed()}
        self.token, self.epoch, self.silent_until = "", "", 0.0
        self.signing_in, self.no_socket = asyncio.Lock(), asyncio.Event()
        self.no_socket.set()

    async def read(self) -> None:
        """Follow the feeds, for ever. Both ways may be open at once: what was applied is not applied again."""
        await asyncio.gather(self._keep_socket(), self._poll_meanwhile())

    async def _keep_socket(self) -> None:
        failures = 0
        while True:
            began, asked = time.monotonic(), ""
            try:
                await self._read_socket()
            except InvalidStatus as refusal:
                asked = refusal.response.headers.get("Retry-After", "")
            except ConnectionClosed as closed:
                asked = closed.rcvd.reason.removeprefix("retry=") if closed.rcvd else ""
            except TROUBLE:
                pass
            self.no_socket.set()
            failures = 0 if time.monotonic() - began > 10 else failures + 1
            await asyncio.sleep(pause(failures, asked))

    async def _read_socket(self) -> None:
        await asyncio.sleep(max(0, self.silent_until - time.monotonic()))
        url, cookie = self.http.base_url, self.http.build_request("GET", "").headers.get("Cookie", "")
        headers = {"Cookie": cookie, "Origin": f"{url.scheme}://{url.netloc.decode()}"}
        async with connect(
            str(url.join("ws")).replace("http", "ws", 1), additional_headers=headers, **SOCKET
        ) as socket:
            unproved = {"chat-hello", *self.feeds}  # a proxy may let it open, and then let nothing pass
            async for frame in socket:
                for element in parse(str(frame)):
                    for name in list(self.feeds) if element.name == "chat-hello" else self._apply(element):
                        words = {"type": "subscribe", "epoch": self.epoch, "feeds": {name: self.feeds[name].cursor}}
                        await socket.send(json.dumps(words))
                    unproved.discard(element.attrs.get("feed", element.name))
                if not unproved:
                    self.no_socket.clear()

    async def _poll_meanwhile(self) -> None:
        failures = 0
        while await self.no_socket.wait():
            began, wait = time.monotonic(), 0 if failures else HOLD_S
            try:
                await self.sign_in()
                cursors = [f"{name}:{feed.cursor}" for name, feed in self.feeds.items()]
                asked = {"epoch": self.epoch, "c": cursors, "wait": wait}
                answer = await self._request("GET", "changes", params=asked, timeout=wait + 6)
                whole = re.fullmatch(r"<chat-answer>(.*)</chat-answer>\s*", answer.text, re.S)
                if not whole and answer.status_code != 204:
                    raise ConnectionError("cut, or somebody else's page")
                for element in parse(whole[1] if whole else ""):
                    self._apply(element)
                failures = 0
                rest = 0.02 if whole or time.monotonic() - began > 1 else 3  # s; else something cuts holds short
            except TROUBLE:
                failures, rest = failures + 1, 3 * 1.5 ** min(failures, 2)
            await asyncio.sleep(rest)

    def _apply(self, element: Element) -> list[str]:
        """Apply what is said of a feed. Returns which feeds are to be asked for again."""
        name = element.attrs.get("feed", "")
        if element.name == "chat-feed" and name in self.feeds:
            return [] if self.feeds[name].apply(element) else [name]
        if element.name == "chat-reload":
            self.epoch, self.feeds = element.attrs.get("epoch", self.epoch), {name: Feed() for name in self.feeds}
            return list(self.feeds)
        if element.name == "chat-gone":
            self.feeds.pop(name, None)
        return []

    async def sign_in(self) -> None:
        """Sign in, unless we are. Raises Refused."""
        async with self.signing_in:
            if not self.token:
                page = await self._request("GET", "sign-in")
                if form := re.search(r'name="csrf_token" value="([^"]+)"', page.text):
                    await self._request("POST", "sign-in", data={"csrf_token": form[1], **self.account})
                page = await self._request("GET", "", follow_redirects=True)
                found = re.search(r'"csrf-token" content="([^"]+)".*data-epoch="([^"]+)"', page.text, re.S)
                if not found:
                    raise ConnectionError("not the chat's page")
                self.token, self.epoch = found.groups()

    async def send(self, path: str, **fields: str) -> dict[str, Any]:
        """POST until it is acknowledged. The ids among the fields make repeating harmless. Raises Refused."""
        failures = 0
        while True:
            try:
                await self.sign_in()
                return dict((await self._request("POST", path, data={"csrf_token": self.token, **fields})).json())
            except TROUBLE:
                failures += 1
                await asyncio.sleep(pause(failures))

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        await asyncio.sleep(max(0, self.silent_until - time.monotonic()))
        answer = await self.http.request(method, path, **options)
        if answer.status_code in (429, 503):
            self.silent_until = time.monotonic() + pause(0, answer.headers.get("Retry-After", ""))
        if answer.status_code < 400:
            return answer
        try:
            code = str(answer.json()["error"]["code"])
        except (ValueError, KeyError, TypeError):
            code = f"{method} {answer.status_code}"  # "POST 403": a filter; "POST 422": a wrong password
        self.token = "" if code in ("csrf", "signed-out") else self.token
        raise Refused(code) if code in FOR_GOOD else ConnectionError(code)


def pause(failures: int, asked: str = "") -> float:
    """How many seconds until the next attempt: as the server asks, or longer each time."""
    return float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else PAUSES_S[min(failures, 9)] * random.uniform(0.5, 1)


async def main(url: str, email: str, password: str, question: str) -> None:
    """Ask, and print the answer."""
    client, conversation = Client(url, email, password), str(uuid.uuid4())
    await client.send("c", id=conversation, client_id=str(uuid.uuid4()), body=question)
    client.feeds[conversation] = Feed()
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(client.read())
        while not (ended := [m for m in client.feeds[conversation].items.values() if m.attrs["data-state"] in ENDED]):
            await asyncio.sleep(0.1)
        reading.cancel()
    print(*ended[0].blocks.values(), sep="\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
