"""The six states, each by a real fault, with pictures to look at (issue 2, Show 2)."""

from collections.abc import Callable, Iterator

import pytest
from lab.browser import (
    NARROW,
    WIDE,
    ask,
    assert_clean,
    messages,
    new_page,
    pictures,
    say,
    screenshot,
    sign_in,
    state,
    wait_for,
    wait_state,
)
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.server import EMAIL, PASSWORD, Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

LAYOUT = """() => {
  const box = selector => document.querySelector(selector)?.getBoundingClientRect() ?? { top: 0, height: 0, bottom: 0 }
  const status = document.querySelector("#connection-status")
  return {
    header: box("header.head").height, status: box("#connection-status").height,
    composerTop: box("#composer").top, composerHeight: box("#composer").height,
    boxBottom: box("#composer textarea").bottom, boxHeight: box("#composer textarea").height,
    logTop: box("#log").top, logHeight: box("#log").height, scroll: document.querySelector("#log").scrollTop,
    sideways: document.documentElement.scrollWidth - innerWidth, statusRight: box("#connection-status").right,
    height: innerHeight, width: innerWidth, statusLines: status.getClientRects().length,
  }
}"""


@pytest.fixture
def proxy(start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy]) -> FaultProxy:
    """A server that gives up sooner than the default, behind a fault proxy."""
    return start_proxy(start_server(max_reconnect_attempts=3, reconnect_interval=1, poll_max_retries=1))


@pytest.fixture
def chat(proxy: FaultProxy, page: Page) -> Iterator[Page]:
    """A page with a question and its answer in it, connected."""
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    ask(page, "How does the chat survive a network that blocks WebSocket?")
    yield page


def measure(page: Page) -> dict[str, dict[str, float]]:
    """The layout, wide and narrow."""
    found = {}
    for name, (width, height) in (("wide", WIDE), ("narrow", NARROW)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(60)
        found[name] = page.evaluate(LAYOUT)
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    return found


def assert_steady(before: dict[str, dict[str, float]], page: Page, name: str) -> None:
    """The header keeps its height, the composer its place and size, the log its frame; nothing runs off sideways."""
    after = measure(page)
    for size, now in after.items():
        was = before[size]
        for what in ("header", "status", "composerTop", "composerHeight", "boxHeight", "logTop", "logHeight"):
            assert abs(now[what] - was[what]) < 1, f"{name}, {size}: {what} was {was[what]}, is {now[what]}"
        assert now["sideways"] <= 0, f"{name}, {size}: wider than the window"
        assert now["statusRight"] <= now["width"], f"{name}, {size}: the status runs out of the window"
        assert now["boxBottom"] <= now["height"], f"{name}, {size}: the composer is hidden"


def composer_enabled(page: Page) -> bool:
    """Whether one can write and send."""
    box = page.locator("#composer textarea[name=body]")
    return box.is_enabled() and box.is_editable() and page.locator("#composer button[type=submit]").is_enabled()


def shown(page: Page, attribute: str) -> str:
    """An attribute of the status."""
    return page.locator("#connection-status").get_attribute(attribute) or ""


def test_connected_and_polling(chat: Page, proxy: FaultProxy) -> None:
    """Live; then the socket is taken away for good: near real-time, saying why; both write at once."""
    before = measure(chat)
    assert (shown(chat, "data-state"), shown(chat, "data-transport")) == ("connected", "websocket")
    assert shown(chat, "data-last-connected")
    assert composer_enabled(chat)
    pictures(chat, "state-connected")
    proxy.upgrade = "refuse"
    proxy.reset_sockets()
    wait_state(chat, "polling")
    assert shown(chat, "data-transport") == "polling"
    assert shown(chat, "data-reason")
    assert composer_enabled(chat)
    chat.locator("#connection-status").get_by_text("Polling").first.wait_for()
    assert_steady(before, chat, "polling")
    pictures(chat, "state-polling")
    assert ask(chat, "What is a dead letter queue?")["state"] == "completed"
    assert_clean(chat)


def test_connecting(proxy: FaultProxy, page: Page) -> None:
    """The page comes, then neither transport answers: loading, and what is sent waits in the page."""
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    before = measure(page)
    proxy.upgrade, proxy.hang_paths = "hang", ("/changes",)
    page.reload(wait_until="domcontentloaded")
    page.locator("body[data-connection=connecting]").wait_for()
    page.wait_for_timeout(300)
    assert state(page) == "connecting"
    assert composer_enabled(page)
    say(page, "sent while connecting")
    page.locator(".message[data-state=sending]").wait_for()
    screenshot(page, "state-connecting-light-wide")
    assert state(page) == "connecting"
    for size, (width, height) in (("wide", WIDE), ("narrow", NARROW)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate(LAYOUT)["header"] == pytest.approx(before[size]["header"], abs=1)
    proxy.heal()
    wait_state(page, "connected", "polling")
    page.locator(".message[data-author=user][data-state=sent]").wait_for()


@pytest.mark.parametrize(("scheme", "size"), [("dark", WIDE), ("light", NARROW), ("dark", NARROW)])
def test_connecting_pictures(proxy: FaultProxy, browser: Browser, scheme: str, size: tuple[int, int]) -> None:
    """The state is short, so each picture needs a page of its own."""
    page = new_page(browser, color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    try:
        sign_in(page, proxy.url)
        proxy.upgrade, proxy.hang_paths = "hang", ("/changes",)
        page.reload(wait_until="domcontentloaded")
        page.locator("body[data-connection=connecting]").wait_for()
        screenshot(page, f"state-connecting-{scheme}-{'wide' if size == WIDE else '390'}")
        assert composer_enabled(page)
    finally:
        page.context.close()


def test_reconnecting_counts_down_and_tries_now(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page
) -> None:
    """The network is gone: attempt n of 10, a countdown where the wait is long, and a button that does not wait."""
    proxy = start_proxy(start_server(poll_max_retries=0))
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    ask(page, "How is a backup restored?")
    before = measure(page)
    proxy.network_down()
    wait_state(page, "reconnecting")
    assert composer_enabled(page)
    say(page, "sent while it is gone")
    wait_for(page, lambda: messages(page)[-1]["state"] == "sending", 2, "the message waits")
    before_composer = page.evaluate(LAYOUT)["composerTop"]
    countdown = page.locator("#banner [data-slot=countdown]")
    wait_for(page, lambda: countdown.is_visible() and countdown.inner_text().strip(), 40, "a countdown")
    assert 1 <= float(countdown.inner_text()) <= 6
    assert state(page) == "reconnecting"
    assert 1 <= int(shown(page, "data-attempts")) <= 10
    assert page.evaluate(LAYOUT)["composerTop"] == pytest.approx(before_composer, abs=1)
    pictures(page, "state-reconnecting")
    if state(page) == "reconnecting":
        assert_steady(before, page, "reconnecting")
    proxy.heal()
    page.locator("#banner [data-action=retry]").click()
    wait_state(page, "connected", "polling", timeout=3)
    focused = "document.activeElement.name"
    wait_for(page, lambda: page.evaluate(focused) == "body", 3, "the button is gone: one can go on writing")
    wait_for(page, lambda: "sent while it is gone" in [m["text"] for m in messages(page)], 2, "it is shown")
    wait_for(page, lambda: {m["state"] for m in messages(page) if m["author"] == "user"} == {"sent"}, 5, "sent")


def test_error_and_retry(chat: Page, proxy: FaultProxy) -> None:
    """Attempts used up: it says so and keeps writing possible; Retry brings it back, and what waited goes out."""
    before = measure(chat)
    proxy.network_down()
    wait_state(chat, "error", timeout=30)
    assert composer_enabled(chat)
    say(chat, "sent in error")
    retry = chat.locator("#banner [data-action=retry]")
    assert retry.is_visible()
    assert_steady(before, chat, "error")
    pictures(chat, "state-error")
    assert state(chat) == "error", "the state stays while it goes on trying quietly"
    proxy.heal()
    # At once: a quiet try of the page's own may take the button away.
    chat.evaluate("document.querySelector('#banner [data-action=retry]')?.click()")
    wait_state(chat, "connected", timeout=5)
    wait_for(chat, lambda: {m["state"] for m in messages(chat) if m["author"] == "user"} == {"sent"}, 5, "sent")
    assert not retry.is_visible()


def test_disconnected(chat: Page, proxy: FaultProxy) -> None:
    """Signed out in another tab: not connected, how to connect, the composer is off; signed in, back to the draft."""
    before = measure(chat)
    chat.locator("#composer textarea[name=body]").fill("a draft")
    other = chat.context.new_page()
    other.goto(proxy.url)
    token = other.locator("meta[name=csrf-token]").first.get_attribute("content") or ""
    answer = other.request.post(f"{proxy.url}/sign-out", form={"csrf_token": token})
    assert answer.ok
    other.close()
    wait_state(chat, "disconnected", timeout=20)
    assert not composer_enabled(chat)
    assert chat.locator("#banner a", has_text="Sign in").is_visible()
    assert chat.locator("#composer textarea[name=body]").input_value() == "a draft"
    assert_steady(before, chat, "disconnected")  # one line of draft is as high as none
    pictures(chat, "state-disconnected")
    Client(proxy.url).sign_in().create("a newer conversation, which / would open")
    address = chat.url
    chat.locator("dialog input[name=email]").fill(EMAIL)
    chat.locator("dialog input[name=password]").fill(PASSWORD)
    chat.locator("dialog input[name=password]").press("Enter")
    wait_state(chat, "connected")
    assert chat.url == address
    draft = chat.locator("#composer textarea[name=body]")
    wait_for(chat, lambda: draft.input_value() == "a draft", 5, "the draft is there again")


def test_a_switch_leaves_caret_selection_and_scroll_alone(chat: Page, proxy: FaultProxy) -> None:
    """From WebSocket to polling and back while somebody writes: nothing moves under their hands."""
    box = chat.locator("#composer textarea[name=body]")
    box.fill("half a sentence")
    box.evaluate("box => { box.focus(); box.setSelectionRange(5, 9) }")
    chat.locator("#log").evaluate("log => { log.scrollTop = Math.max(0, log.scrollHeight / 3) }")
    chat.wait_for_timeout(100)
    look = """() => { const box = document.querySelector("#composer textarea"), log = document.querySelector("#log")
      return [document.activeElement === box, box.value, box.selectionStart, box.selectionEnd, log.scrollTop] }"""
    before = chat.evaluate(look)
    proxy.upgrade = "refuse"
    proxy.reset_sockets()
    wait_state(chat, "polling")
    assert chat.evaluate(look) == before
    proxy.heal()
    wait_state(chat, "connected", timeout=20)
    assert chat.evaluate(look) == before
