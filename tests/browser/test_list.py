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


# The newest socket, and a word of the server that is rare.
SOCKETS = """lab.reload = '<chat-reload feed="list" reason="cursor"></chat-reload>'
window.WebSocket = class extends window.WebSocket {
  constructor(...given) {
    super(...given)
    lab.socket = this
  }
}"""


def test_the_list_goes_on_to_the_first_conversation(start_server: Callable[..., Server], page: Page) -> None:
    server = start_server(assistant="off")
    Client(server.url).sign_in().create("number 0", str(uuid.uuid4()))
    many_conversations(server, 405)
    page.add_init_script(SOCKETS)
    sign_in(page, server.url)
    wait_state(page, "connected")
    here = page.url
    entries = page.locator("#conversations > li")
    more = page.locator("#older-conversations a")
    for fail in (lambda route: route.abort(), lambda route: route.fulfill(status=502, body="<p>Bad gateway")):
        page.route("**/conversations?*", fail)
        more.press("Enter")
        problem = page.locator("#older-conversations [data-slot=problem]")
        wait_for(page, lambda p=problem: "did not work" in p.inner_text(), 3, "that nothing came is said")
        assert "did not work" in (page.locator("#announcer").text_content() or "")
        page.unroute("**/conversations?*")
    focused = "[...document.querySelectorAll('#conversations > li')].findIndex(e => e.contains(document.activeElement))"
    wait_for(page, lambda: entries.count() == 200, 5, "the first ones are shown")
    for shown, new in ((400, 200), (405, 400)):
        more.press("Enter")
        wait_for(page, lambda n=shown: entries.count() == n, 5, f"{shown} are shown")
        wait_for(page, lambda n=new: page.evaluate(focused) == n, 3, "the keyboard is on the first new one")
    wait_for(page, lambda: not more.is_visible(), 3, "that is all")
    page.evaluate("lab.socket.dispatchEvent(new MessageEvent('message', { data: lab.reload }))")
    wait_for(page, more.is_visible, 5, "the list came whole, and the way on is there again")
    for shown in (200, 400, 405):
        wait_for(page, lambda n=shown: entries.count() == n, 5, f"{shown} are shown")
        if shown < 405:
            more.click()
    ids = "new Set([...document.querySelectorAll('#conversations > li')].map(entry => entry.dataset.id)).size"
    assert page.evaluate(ids) == 405
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
