"""The list of conversations to its end, and what the composer does not take."""

import uuid
from collections.abc import Callable

import pytest
from lab.browser import assert_clean, messages, say, sign_in, wait_for, wait_state
from lab.filled import many_conversations
from lab.http import Client
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_the_list_goes_on_to_the_first_conversation(start_server: Callable[..., Server], page: Page) -> None:
    server = start_server(assistant="off")
    Client(server.url).sign_in().create("number 0", str(uuid.uuid4()))
    many_conversations(server, 405)
    sign_in(page, server.url)
    wait_state(page, "connected")
    here = page.url
    entries = page.locator("#conversations > li")
    more = page.locator("#older-conversations a")
    for shown in (200, 400, 405):
        wait_for(page, lambda n=shown: entries.count() == n, 5, f"{shown} are shown")
        if shown < 405:
            more.click()
    wait_for(page, lambda: not more.is_visible(), 3, "that is all")
    assert page.url == here, "the page stays"
    last = entries.last
    title = last.inner_text().strip()
    last.locator("a").click()
    page.wait_for_url(lambda url: url != here)
    assert page.locator("#title").inner_text() == title
    assert_clean(page)


def test_what_shows_nothing_does_not_leave_the_composer(start_server: Callable[..., Server], page: Page) -> None:
    sign_in(page, start_server(assistant="off").url)
    wait_state(page, "connected")
    box = page.locator("#composer textarea[name=body]")
    say(page, "\u200b\u3164 \u2066")
    assert "can be seen" in box.evaluate("box => box.validationMessage")
    assert messages(page) == []
    say(page, "now something")
    wait_for(page, lambda: [m["state"] for m in messages(page)] == ["sent"], 5, "it is sent")
    assert_clean(page)
