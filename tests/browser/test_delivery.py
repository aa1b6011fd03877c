"""Nothing lost, doubled or reordered while the socket is harmed again and again (issue 2, Show 4).

The short form runs with all tests; `make failover` runs the whole: 1,000 messages, 50 faults (or LAB_MESSAGES
and LAB_FAULTS of them).
"""

import os
import random
import time
from collections.abc import Callable

import pytest
from lab.browser import messages, record, sign_in, wait_for, wait_state
from lab.elements import Element
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser
MESSAGES = int(os.environ.get("LAB_MESSAGES", "60"))
FAULTS = int(os.environ.get("LAB_FAULTS", "5"))
GAP = 0.2


def harm(proxy: FaultProxy, kind: str) -> int:
    """One fault; how many live sockets it hit."""
    if kind in ("refuse", "hang"):
        proxy.upgrade = kind
    if kind == "reply":
        proxy.lose_replies = 1
    return proxy.blackhole_sockets() if kind in ("blackhole", "hang") else proxy.reset_sockets()


def live_socket(page: Page, proxy: FaultProxy) -> int:
    """How many there are. After so many deaths the page leaves WebSocket alone for minutes: a person ends that."""
    # Whatever the last reason was: the death that was one too many may have been followed by a refusal.
    if not proxy.sockets and record(page, "states")[-1]["dampedUntil"] > time.time() * 1000:
        page.evaluate("document.querySelector('#connection-status [data-action=retry]')?.click()")
    return proxy.sockets


def squeezed(text: str) -> str:
    """As `messages` gives text."""
    return " ".join(text.split())


def in_history(article: Element) -> tuple[str, str, str]:
    """Id, author and text of a message as the server has it."""
    text = article.one("div", css_class="body").text
    return article.get("data-id"), article.get("data-author"), squeezed(text)


@pytest.mark.timeout(max(480, 24 * FAULTS))
def test_messages_survive_faults(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page
) -> None:
    """Every message once and in order, in the page and in the history, in both directions."""
    server = start_server(assistant_pace=20000)
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    said = [f"message {number:03d}: why is a load balancer idle timeout a problem?" for number in range(MESSAGES)]
    kinds = ["reset", "refuse", "blackhole", "hang", "reply"] * (FAULTS // 5 + 1)
    random.Random(4).shuffle(kinds)
    struck = 0
    for number in range(FAULTS):
        part = said[MESSAGES * number // FAULTS : MESSAGES * (number + 1) // FAULTS]
        speak(page, part[: len(part) // 2])
        # Only a fault that hits a live socket counts, so the way back is waited for each time.
        wait_for(page, lambda: live_socket(page, proxy), 40, "a live socket to harm")
        struck += harm(proxy, kinds[number])
        speak(page, part[len(part) // 2 :])
        proxy.upgrade = "pass"
    assert struck >= FAULTS
    proxy.heal()
    shown = settled(page)
    users = [message for message in shown if message["author"] == "user"]
    assert [message["text"] for message in users] == said
    assert len({message["id"] for message in shown}) == len(shown), "a message is shown twice"
    positions = [message["position"] for message in shown]
    assert positions == sorted(positions)
    conversation = page.url.rstrip("/").split("/")[-1].split("?")[0]
    history = [in_history(article) for article in Client(server.url).sign_in().history(conversation)]
    assert [(m["id"], m["author"], m["text"]) for m in shown] == history
    answers = [message for message in shown if message["author"] == "assistant"]
    assert answers and {message["state"] for message in answers} == {"completed"}
    assert all(message["text"] for message in answers)
    hits = [seen for seen in proxy.requests if seen.done_to_it]
    codes = [socket["code"] for socket in record(page, "sockets") if socket["closed"]]
    print(f"{len(said)} said, {len(answers)} answers, {len(codes)} sockets closed, {len(hits)} requests harmed")
    assert record(page, "errors") == []


def speak(page: Page, texts: list[str]) -> None:
    """Says these one after another, whatever becomes of them."""
    for text in texts:
        page.evaluate("text => { window.lab.say(text) }", text)
        page.wait_for_timeout(GAP * 1000)


def settled(page: Page) -> list[dict[str, object]]:
    """Waits until everything said is sent and the last answer has ended; what is shown then."""

    def quiet() -> list[dict[str, object]] | None:
        shown = messages(page)
        users = {message["state"] for message in shown if message["author"] == "user"}
        answers = {message["state"] for message in shown if message["author"] == "assistant"}
        done = users == {"sent"} and answers == {"completed"} and shown[-1]["author"] == "assistant"
        return shown if done else None

    wait_for(page, quiet, 60 + MESSAGES / 4, "all is sent and answered")
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        page.wait_for_timeout(100)
    shown: list[dict[str, object]] = wait_for(page, quiet, 30, "it stays so")
    return shown
