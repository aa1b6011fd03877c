"""200 vectors in Chromium, over both transports: nothing runs, no other host is asked; a planted one is found.

As answers that stream, whole and cut; as messages and titles of people.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lab.asking import Play
from lab.browser import messages, record, say, sign_in, wait_for, wait_state
from lab.http import Client
from lab.model import Handler, Script
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser
StartServer = Callable[..., Server]
VECTORS = [json.loads(line) for line in (Path(__file__).parents[1] / "vectors/xss.jsonl").read_text().splitlines()]
BATCH = 40
SPLITS = int(os.environ.get("XSS_SPLITS", "1"))  # `make xss`: 10
WAYS = {"websocket": "connected", "polling": "polling"}
# What a pointer, a key and a page that loads would do to each element.
POKE = """() => {
  const types = "mouseover mouseenter pointerenter focus load error toggle animationstart begin copy click".split(" ")
  for (const one of document.querySelectorAll("#messages *, #conversations *")) {
    for (const type of types) {
      const isOurs = type === "click" && one.closest("a, button")
      if (!isOurs) one.dispatchEvent(new Event(type, { bubbles: true, cancelable: true }))
    }
  }
}"""


class Watch:
    """What a page does that no text may make it do."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._asked: list[str] = []
        page.on("request", lambda request: self._asked.append(request.url))

    def found(self) -> list[str]:
        """Scripts that ran, breaches of the policy, requests to other hosts; of all so far."""
        self._page.evaluate(POKE)
        self._page.wait_for_timeout(100)
        own = urlsplit(self._page.url).netloc
        foreign = [url for url in self._asked if urlsplit(url).netloc not in ("", own)]
        hit = ["it ran"] if self._page.evaluate("window.hit") else []
        return [*hit, *record(self._page, "violations"), *foreign]


def answer(*pieces: str) -> Script:
    """A model that says so."""

    def play(handler: Handler) -> None:
        handler.begin()
        handler.say(*pieces, finish="stop", end="[DONE]")

    return play


def cut(text: str, seed: int) -> list[str]:
    """The text in some twenty pieces."""
    places = sorted(random.Random(seed).sample(range(1, len(text)), 20))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_inert(start_server: StartServer, play: Play, page: Page, way: str) -> None:
    batches = ["\n\n".join(VECTORS[at : at + BATCH]) for at in range(0, len(VECTORS), BATCH)]
    scripts = [answer(text) for text in batches]
    scripts += [answer(*cut(text, seed)) for seed in range(SPLITS) for text in batches]
    model = play(*scripts)
    transports = "websocket,polling" if way == "websocket" else "polling"
    server = start_server(**model.settings, transports=transports)
    sign_in(page, server.url)
    wait_state(page, WAYS[way])
    watch = Watch(page)

    def answers() -> list[str]:
        return [message["state"] for message in messages(page) if message["author"] == "assistant"]

    for number in range(len(scripts)):
        say(page, f"question {number}")
        wait_for(page, lambda n=number: answers() == ["completed"] * (n + 1), 30, f"answer {number}")  # type: ignore[misc]
        assert watch.found() == []
    page.reload()
    wait_state(page, WAYS[way])
    assert watch.found() == []
    text = page.locator("#messages").inner_text()
    assert "<script>window.hit=1</script>" in text and "onerror=window.hit=1" in text, "it is shown as what it is"


@pytest.mark.parametrize("way", WAYS)
def test_messages_and_titles_are_inert(start_server: StartServer, page: Page, way: str) -> None:
    server = start_server(assistant="off", transports="websocket,polling" if way == "websocket" else "polling")
    client = Client(server.url).sign_in()
    conversation = client.create("begin").json["conversation"]
    sign_in(page, server.url)
    page.goto(f"{server.url}/c/{conversation}")
    wait_state(page, WAYS[way])
    watch = Watch(page)
    sent = [vector for vector in VECTORS if client.post_message(conversation, vector).status == 201]
    assert len(sent) > 190
    for vector in VECTORS[::10]:
        client.post(f"/c/{conversation}/title", title=vector)
    wait_for(page, lambda: len(messages(page)) == 1 + len(sent), 30, "all have come")
    assert watch.found() == []
    page.reload()
    wait_state(page, WAYS[way])
    assert watch.found() == []


def test_what_is_planted_is_found(server: Server, page: Page) -> None:
    """A renderer without its walls: the policy still holds, and the watch sees it."""
    sign_in(page, server.url)
    wait_state(page, "connected")
    watch = Watch(page)
    seen = 0
    for vector in [vector for vector in VECTORS[::3] if "refresh" not in vector]:  # these would leave the page
        before = len(watch.found())
        page.evaluate("html => { document.getElementById('messages').innerHTML = html }", vector)
        seen += len(watch.found()) > before
    assert seen > 20
