"""Boxes that rewrite HTML on the way, permanently: what is shown is the server's text, at the price of one request."""

import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from lab.browser import assert_clean, messages, new_page, record, say, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy, Seen
from lab.filled import many_conversations
from lab.http import Client
from lab.rewriting import REWRITERS
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
QUESTION = "Whom do I write to about plankton?"
# Many addresses, numbers, references and white space that counts, in blocks that grow over some forty updates.
KNOWLEDGE = """# Plankton desk

## Whom to write to about plankton

For plankton write to ada@example.org, then to grace.hopper@plankton.example.com & say "it's urgent" <now>, or call
4000-1234-5678 between 9 and 5. After hours the plankton desk is night@example.org, whose number is 4000-8765-4321.

```text
desk    = ada@example.org
night   =     night@example.org
number  = 4000-1234-5678
```

- plankton in summer: summer.desk@example.org
- plankton in winter: winter.desk@example.org, who isn't there on Sundays
- plankton by hand: [desk@example.org](mailto:desk@example.org), in one piece, so that every box meets an address
- all other plankton: [the office](mailto:office@example.org), and lin@example.org & co
"""


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Servers that know of plankton, slow enough to be followed: one that polls only, one with WebSocket."""
    servers = {}
    for name, settings in (("polling", {"transports": "polling"}), ("websocket", {})):
        directory = tmp_path_factory.mktemp(name)
        (directory / "data/knowledge").mkdir(parents=True)
        (directory / "data/knowledge/plankton.md").write_text(KNOWLEDGE)
        servers[name] = Server(directory, assistant_pace=300, **settings)  # type: ignore[arg-type]
    with servers["polling"], servers["websocket"]:
        yield servers


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The servers outlive each test; they end with the module."""


def sources(server: Server, conversation: str) -> list[str]:
    """The words of each message as the server has them."""
    articles = Client(server.url).sign_in().history(conversation)
    return [" ".join(article.one(css_class="body").text.split()) for article in articles]


def words_shown(page: Page) -> list[str]:
    """The words of each message as the page has them."""
    return [" ".join(message["text"].split()) for message in messages(page)]


def is_whole(page: Page, server: Server) -> bool:
    """Whether the page shows what the server has, word for word."""
    return words_shown(page) == sources(server, page.url.rsplit("/", 1)[1])


def wait_whole(page: Page, server: Server, seconds: float) -> None:
    """Waits until the page is whole; says otherwise how it differs."""
    end = time.monotonic() + seconds
    while True:
        there, shown = sources(server, page.url.rsplit("/", 1)[1]), words_shown(page)
        if there == shown or time.monotonic() > end:
            break
        page.wait_for_timeout(200)
    assert shown == there  # of one moment: an answer may be growing still


def answered(page: Page) -> bool:
    """Whether the last message is a whole answer."""
    shown = messages(page)
    return bool(shown) and (shown[-1]["author"], shown[-1]["state"]) == ("assistant", "completed")


def polls(proxy: FaultProxy) -> list[Seen]:
    """The polls with an answer, heartbeats apart."""
    return [seen for seen in proxy.seen("/changes") if "hx-request" in seen.head.headers and seen.status == 200]


@pytest.mark.parametrize("kind", REWRITERS)
def test_an_answer_streams_through_a_box_that_rewrites(
    desks: dict[str, Server], browser: Browser, start_proxy: Callable[[Server], FaultProxy], kind: str
) -> None:
    """On polling, from the first page on, for ever: the text is right, and one request was for nothing."""
    server = desks["polling"]
    proxy = start_proxy(server)
    proxy.rewrite = REWRITERS[kind]
    page = new_page(browser, service_workers="block")
    sign_in(page, proxy.url)
    since = time.time()
    page.goto(f"{proxy.url}/c/{new_conversation(server)}")
    wait_state(page, "polling")
    say(page, QUESTION)
    wait_for(page, lambda: answered(page), 40, "the answer is there")
    assert is_whole(page, server), messages(page)[-1]["text"]
    assert record(page, "articles")[messages(page)[-1]["client_id"]]["lengths"][3:], "it did not stream"
    asked = [seen.head.target for seen in polls(proxy) if seen.at >= since]
    plain = [target for target in asked if "armour=1" not in target]
    assert plain == asked[: len(plain)] and len(plain) < len(asked), "from one answer on all come in armour"
    cursors = [tuple(parse_qs(urlsplit(target).query)["c"]) for target in asked]
    assert len(cursors) - len(set(cursors)) <= 1, "one altered answer is asked for again"
    # Another page in this network: what it was served is wrong, and the first poll puts it right.
    since = time.time()
    page.reload()
    wait_state(page, "polling")
    wait_whole(page, server, 15)
    later = [seen for seen in polls(proxy) if seen.at >= since]
    assert all("armour=1" in seen.head.target for seen in later), "the network is remembered"
    assert len(later) <= 2
    assert not [entry for entry in record(page, "states") if entry["status"] in ("reconnecting", "error")]
    page.context.close()


def new_conversation(server: Server) -> str:
    """An empty one."""
    return str(Client(server.url).sign_in().create().json["conversation"])


def test_frames_of_a_websocket_too(
    desks: dict[str, Server], browser: Browser, start_proxy: Callable[[Server], FaultProxy]
) -> None:
    """Hardly anything does it; but where something does, a frame that was altered is asked for once by HTTP."""
    server = desks["websocket"]
    proxy = start_proxy(server)
    page = new_page(browser, service_workers="block")
    sign_in(page, proxy.url)
    page.goto(f"{proxy.url}/c/{new_conversation(server)}")
    wait_state(page, "connected")
    proxy.rewrite = REWRITERS["obfuscate"]
    say(page, QUESTION)
    wait_for(page, lambda: answered(page), 40, "the answer is there")
    wait_whole(page, server, 15)
    assert len(proxy.seen("/changes")) <= len([frame for frame in proxy.frames if frame.text.startswith("<chat-feed")])
    assert page.evaluate("document.body.dataset.connection") == "connected"
    page.context.close()


def test_older_messages_and_the_copy_for_offline(
    desks: dict[str, Server], browser: Browser, start_proxy: Callable[[Server], FaultProxy]
) -> None:
    """What scrolling up brings is right, and so is what the service worker keeps."""
    server = desks["polling"]
    client = Client(server.url).sign_in()
    conversation = new_conversation(server)
    for number in range(45):
        client.post_message(conversation, f"{number}: write to  desk{number}@example.org")
    proxy = start_proxy(server)
    proxy.rewrite = REWRITERS["obfuscate"]
    page = new_page(browser)
    sign_in(page, proxy.url)
    page.goto(f"{proxy.url}/c/{conversation}")
    wait_state(page, "polling")

    def reached_the_top() -> bool:
        page.locator("#log").evaluate("log => log.scrollTo(0, 0)")  # what still grows may have gone back to its end
        return any(message["text"].startswith("0:") for message in messages(page))

    wait_for(page, reached_the_top, 20, "older messages come")
    wait_whole(page, server, 60)  # both answers have ended, which takes a busy machine long
    assert len(proxy.seen(f"/c/{conversation}/messages")) <= 2
    kept = """async url => {
      for (const name of await caches.keys()) if (name.includes(":pages:"))
        for (const request of await (await caches.open(name)).keys()) if (request.url === url)
          return (await (await caches.match(request)).text())
      return ""
    }"""
    wait_for(page, lambda: "desk44@example.org" in page.evaluate(kept, page.url), 30, "the copy is the server's")
    assert not re.search(r"email.160;protected", page.evaluate(kept, page.url))
    assert_clean(page)
    page.context.close()


def test_older_conversations(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page
) -> None:
    """Their titles are the server's, and a foreign page in their place changes nothing."""
    server = start_server(assistant="off")
    Client(server.url).sign_in().create("the first")
    many_conversations(server, 405)
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    entries, more = page.locator("#conversations > li"), page.locator("#older-conversations a")
    proxy.rewrite = lambda body: PORTAL
    more.click()
    wait_for(page, lambda: proxy.seen("/conversations"), 5, "it was asked for")
    page.wait_for_timeout(200)
    assert entries.count() == 200 and more.is_visible()
    proxy.rewrite = REWRITERS["obfuscate"]
    for shown in (400, 405):
        more.click()
        wait_for(page, lambda n=shown: entries.count() == n, 5, f"{shown} are shown")
    titles = page.evaluate("[...document.querySelectorAll('#conversations > li')].slice(200).map(li => li.textContent)")
    assert len(titles) == 205 and all(re.fullmatch(r"number \d+ of desk@example.org", title) for title in titles)
    assert_clean(page)


PORTAL = b"<!doctype html><title>Welcome</title><p>Accept the terms of this network.</p>"
