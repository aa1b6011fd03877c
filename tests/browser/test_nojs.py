"""Without JavaScript: reading and sending by form and redirect; the page says so and refreshes itself."""

from collections.abc import Iterator

import pytest
from lab.browser import new_page, screenshot, sign_in
from lab.processes import wait_for
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture
def plain(browser: Browser) -> Iterator[Page]:
    """A page of a browser whose JavaScript is off."""
    page = new_page(browser, java_script_enabled=False)
    yield page
    page.context.close()


def test_reads_and_sends(server: Server, plain: Page) -> None:
    """Sign in, send, and see the answer appear without touching anything."""
    sign_in(plain, server.url)
    plain.locator("textarea[name=body]").fill("WebSocket behind nginx")
    plain.locator("#composer button[type=submit]").click()
    plain.locator(".message[data-author=user]").wait_for()
    assert plain.url.startswith(f"{server.url}/c/")
    # Playwright's text selectors pass over <noscript>, so the note is found by its class.
    note = plain.locator(".noscript-note")
    assert note.is_visible()
    assert "JavaScript is off" in note.inner_text()
    plain.locator(".message[data-author=assistant][data-state=completed]").wait_for(timeout=20_000)
    screenshot(plain, "no-javascript")
    plain.locator("textarea[name=body]").fill("How is a backup made?")
    plain.locator("#composer button[type=submit]").click()
    wait_for(lambda: plain.locator(".message[data-author=user]").count() == 2, 5, "the second message")
    assert plain.locator(".message[data-author=user] .body").all_inner_texts()[-1] == "How is a backup made?"


def test_the_composer_and_the_log_show_without_script(server: Server, plain: Page) -> None:
    """What is served is usable as it is: enabled, visible, with a plain form behind it."""
    sign_in(plain, server.url)
    assert plain.locator("#composer textarea[name=body]").is_enabled()
    assert plain.locator("#composer button[type=submit]").is_enabled()
    form = plain.locator("#composer")
    assert form.get_attribute("method") == "post"
    assert form.get_attribute("action")
