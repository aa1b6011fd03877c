"""An answer that waits, in the browser: last whatever comes, the same in a second tab and after a reload, stoppable."""

from collections.abc import Callable

import pytest
from lab.browser import assert_clean, new_page, say, sign_in, wait_for, wait_state
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser

WAITING = "#messages > article.message.waiting:last-child"


def shown(page: Page) -> list[str]:
    """Author and state of what stands in the log, in order."""
    return page.evaluate(
        "[...document.querySelectorAll('#messages > article')].map(a => `${a.dataset.author} ${a.dataset.state}`)"
    )


def writes_on(page: Page) -> bool:
    """The keyboard is in the field."""
    return bool(page.evaluate("document.activeElement.name === 'body'"))


def test_what_waits_stands_last_until_it_starts_or_is_stopped(start_server: Callable[..., Server], page: Page) -> None:
    server = start_server(assistant_pace=30)
    sign_in(page, server.url)
    wait_state(page, "connected")
    say(page, "How do I let WebSocket through nginx?")
    page.locator("article[data-author=assistant][data-state=running] .block").first.wait_for()
    say(page, "And through HAProxy?")
    page.locator(WAITING).wait_for()
    wait_for(page, lambda: "1 answer before" in page.locator(f"{WAITING} .state").inner_text(), 5, "it says so")
    assert page.locator(WAITING).get_attribute("data-position") is None
    say(page, "And through squid?")
    settled = ["user sent", "assistant running", "user sent", "user sent", "assistant queued"]
    wait_for(page, lambda: shown(page) == settled, 5, "what waits stays last")
    second = page.context.new_page()
    second.goto(page.url)
    second.locator(WAITING).wait_for()
    assert shown(second) == settled
    page.reload()
    wait_for(page, lambda: shown(page) == settled, 5, "after a reload it is the same")
    plain = new_page(page.context.browser, java_script_enabled=False)
    sign_in(plain, server.url)
    assert "1 answer before" in plain.locator(f"{WAITING} .state").inner_text()
    plain.context.close()
    wait_state(page, "connected")
    page.locator(f"{WAITING} [data-action=stop]").press("Enter")
    for each in (page, second):
        wait_for(each, lambda each=each: shown(each) == settled[:-1], 5, "stopped, it is gone, and the other goes on")
    wait_for(page, lambda: writes_on(page), 3, "the keyboard does not go with it")
    say(page, "And without any?")
    page.locator(WAITING).wait_for()
    run = page.locator(WAITING).get_attribute("data-client-id")
    stop = page.locator(f"{WAITING} [data-action=stop]").element_handle()
    stop.focus()
    second.locator("article[data-state=running] [data-action=stop]").click()
    page.locator(f"article[data-client-id='{run}'][data-state=running][data-position]:not(.waiting)").wait_for()
    assert stop.evaluate("button => button === document.activeElement"), "the same button, with the focus"
    page.keyboard.press("Enter")
    page.locator(f"article[data-client-id='{run}'][data-state=stopped] [data-action=again]").wait_for()
    wait_for(page, lambda: writes_on(page), 3, "a second Enter does not ask again")
    assert page.evaluate("document.querySelectorAll('#messages > .day').length") == 1

    second.close()
    assert_clean(page)
