"""The same evening on five networks: sign in, ask, see it stream, open the passage (issue 2, Show 1)."""

from collections.abc import Callable

import pytest
from lab.browser import ask, assert_clean, record, screenshot, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.nginx import Nginx
from lab.server import Server
from playwright.sync_api import Page, Response

pytestmark = pytest.mark.browser
QUESTION = "WebSocket behind nginx"

StartServer = Callable[..., Server]


def whole_evening(page: Page, url: str, state: str, name: str) -> None:
    """Sign in, ask, watch it stream to its end, open what it cites."""
    sign_in(page, url)
    wait_state(page, state)
    answer = ask(page, QUESTION)
    assert answer["state"] == "completed"
    assert record(page, "articles")[answer["client_id"] or answer["id"]]["lengths"][3:], "it did not stream"
    screenshot(page, f"path-{name}")
    citation = page.locator(".message[data-author=assistant] a.citation").first
    target = citation.get_attribute("href") or ""
    assert_clean(page)
    # A citation may open beside the conversation or instead of it: here the passage itself is of interest.
    page.goto(page.evaluate("href => new URL(href, document.baseURI).href", target))
    anchor = target.partition("#")[2]
    assert anchor
    passage = page.locator(f'[id="{anchor}"]')
    assert passage.is_visible()
    screenshot(page, f"passage-{name}")


def assert_polled_by_htmx(answers: list[Response]) -> None:
    """HTML elements with the product's mark, each asked for by htmx."""
    filled = [answer for answer in answers if answer.status == 200]
    assert filled, "no poll of htmx brought anything"
    for answer in filled:
        assert answer.headers["content-type"].startswith("text/html")
        assert "epoch=" in answer.request.url


def test_websocket(server: Server, page: Page) -> None:
    """The open network: one socket, and no poll of content once it carries."""
    whole_evening(page, server.url, "connected", "websocket")


def test_websocket_through_a_good_nginx(
    server: Server, page: Page, start_nginx: Callable[[str, Server], Nginx]
) -> None:
    """With the configuration that deploy/ gives to operators."""
    whole_evening(page, start_nginx("good", server).url, "connected", "nginx-good")


def test_polling_only(start_server: StartServer, page: Page, start_proxy: Callable[[Server], FaultProxy]) -> None:
    """CHATAPP_TRANSPORTS=polling: no socket is tried; htmx polls, and what it gets is HTML elements."""
    proxy = start_proxy(start_server(transports="polling"))
    whole_evening(page, proxy.url, "polling", "polling-only")
    assert proxy.upgrades() == []
    # A poll that the page gave up (a new subscription starts it anew) may have a head without its body.
    polls = [seen for seen in proxy.seen("/changes") if seen.status == 200 and "hx-request" in seen.head.headers]
    filled = [seen for seen in polls if seen.answer_body]
    assert filled, "no poll of htmx brought anything"
    for seen in filled:
        assert seen.answer is not None
        assert seen.answer.headers["content-type"].startswith("text/html")
        assert b"<chat-answer" in seen.answer_body


@pytest.mark.parametrize("kind", ["strip", "headers"])
def test_through_nginx_that_breaks_websocket(
    kind: str, server: Server, page: Page, start_nginx: Callable[[str, Server], Nginx]
) -> None:
    """Upgrade stripped and answers buffered; or all unusual headers stripped: polling carries all of it."""
    polls: list[Response] = []
    page.on("response", lambda answer: polls.append(answer) if "/changes" in answer.url else None)
    whole_evening(page, start_nginx(kind, server).url, "polling", f"nginx-{kind}")
    assert_polled_by_htmx([answer for answer in polls if "hx-request" in answer.request.headers])


def test_hanging_upgrade(server: Server, page: Page, start_proxy: Callable[[Server], FaultProxy]) -> None:
    """The upgrade is never answered: polling carries, and an attempt that is given up is closed."""
    proxy = start_proxy(server)
    proxy.upgrade = "hang"
    whole_evening(page, proxy.url, "polling", "hanging-upgrade")
    page.goto(proxy.url)
    wait_state(page, "polling")
    since = len(proxy.upgrades())

    def given_up() -> bool:
        return all(seen.ended_at for seen in proxy.upgrades()[: max(since, 1)])

    wait_for(page, given_up, 20, "the hanging attempts are closed")
