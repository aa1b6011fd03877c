"""Answers that are not ours, are cut, or get lost: none of them loses a message or says what is not true."""

import re
import uuid
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest
from lab.browser import messages, new_page, record, say, sign_in, state, wait_for, wait_state
from lab.http import Client
from lab.server import Server
from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.browser
Answer = Callable[[Route], None]
JSON = "application/json"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page without a service worker, so that every request passes the test's hands."""
    page = new_page(browser, service_workers="block")
    yield page
    page.context.close()


def once(answer: Answer) -> Answer:
    """The first request is answered so, all others pass."""
    answers = chain([answer], repeat(lambda route: route.fallback()))
    return lambda route: next(answers)(route)


def cut(route: Route) -> None:
    """Half of the answer, as a proxy that dies passes it on where nothing says how long it is."""
    answer = route.fetch()
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    route.fulfill(status=answer.status, headers=headers, body=answer.text()[: len(answer.text()) // 2])


def from_the_beginning(route: Route) -> None:
    """The page as it is, but as one that must read its conversation again."""
    answer = route.fetch()
    route.fulfill(response=answer, body=re.sub(r'(id="messages"[^>]*data-cursor=)"\d+"', r'\1"0"', answer.text()))


def is_sent(page: Page, text: str) -> bool:
    """Whether this one is shown as sent."""
    return (text, "sent") in [(m["text"], m["state"]) for m in messages(page)]


def test_nothing_is_lost_to_answers_that_are_not_ours(start_server: Callable[..., Server], page: Page) -> None:
    """On polls and sends: a lost renewal of the token, a stranger's 404, 403 and 503, and half an answer."""
    server = start_server(assistant="off", transports="polling", poll_interval=1)
    client = Client(server.url).sign_in()
    sign_in(page, server.url)
    wait_state(page, "polling")
    say(page, "first")
    wait_for(page, lambda: is_sent(page, "first"), 5, "sent")
    conversation = page.url.rsplit("/", 1)[1]

    page.evaluate("document.querySelector('meta[name=csrf-token]').content = 'of an older session'")
    page.route(page.url, once(lambda route: route.abort("connectionreset")))
    say(page, "with an old token")
    wait_for(page, lambda: is_sent(page, "with an old token"), 10, "the token is renewed at the second try")

    page.route("**/messages", once(lambda route: route.fulfill(status=404, body="<h1>No such site</h1>")))
    say(page, "while the server is swapped")
    wait_for(page, lambda: is_sent(page, "while the server is swapped"), 10, "a stranger's 404 is final for nobody")

    page.route("**/changes?*", once(cut))
    text = "never cut " * 40
    client.post_message(conversation, text)
    wait_for(page, lambda: messages(page)[-1]["text"] == text.strip(), 10, "what half an answer lacked comes")

    refuse = {"status": 403, "body": '{"blocked": true}', "content_type": JSON}
    page.route("**/changes?*", lambda route: route.fulfill(**refuse))
    client.post_message(conversation, "ends the held poll")
    reason = page.locator("#connection-status[data-reason=foreign-page]")
    wait_for(page, lambda: reason.count() or state(page) != "polling", 5, "it is noticed")
    assert state(page) == "polling" and page.locator("#composer textarea").is_enabled()

    page.unroute("**/changes?*")
    busy = {"status": 503, "body": "<h1>Busy</h1>", "headers": {"Retry-After": "3000000"}}
    page.route("**/changes?*", once(lambda route: route.fulfill(**busy)))
    left = "Number(document.querySelector('#banner [data-slot=countdown]')?.textContent)"
    wait_for(page, lambda: 30 < page.evaluate(left) <= 60, 10, "a minute at most is obeyed")
    assert record(page, "errors") == []


def open_dialog(page: Page, name: str) -> None:
    """Opens one of the menu's dialogs, unless it is open."""
    if not page.locator(f"#{name}-dialog").is_visible():
        page.locator("header.head [popovertarget=menu]").click()
        page.locator(f"#menu [popovertarget={name}-dialog]").click()


def test_buttons_say_when_nothing_was_done(start_server: Callable[..., Server], page: Page) -> None:
    """Delete behind a portal's 200 and Stop without a network say so; Rename with an old token works all the same."""
    server = start_server(assistant_pace=20)
    sign_in(page, server.url)
    wait_state(page, "connected")
    say(page, "How is a backup restored?")
    stop = page.locator("[data-action=stop]")
    page.route("**/stop", once(lambda route: route.abort()))
    stop.click()
    said = page.locator("[data-author=assistant] .state")
    wait_for(page, lambda: "did not work" in said.inner_text() and stop.is_enabled(), 5, "Stop says so")
    stop.click()
    page.locator("[data-author=assistant][data-state=stopped]").wait_for()

    page.route("**/delete", once(lambda route: route.fulfill(status=200, body="<h1>Welcome to the hotel</h1>")))
    open_dialog(page, "delete")
    page.locator("#delete-dialog [type=submit]").click()
    problem = page.locator("#delete-dialog [role=alert]")
    wait_for(page, lambda: "did not work" in problem.inner_text(), 5, "Delete says so")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")

    page.evaluate("document.querySelector('meta[name=csrf-token]').content = 'of an older session'")
    open_dialog(page, "rename")
    page.locator("#rename-title").fill("Restoring")
    page.locator("#rename-title").press("Enter")
    wait_for(page, lambda: page.locator("#title").inner_text() == "Restoring", 5, "renamed with a fresh token")
    wait_for(page, lambda: not page.locator("#rename-dialog").is_visible(), 3, "and closed")
    assert record(page, "errors") == []


def test_older_messages_that_do_not_come_are_asked_for_ever_less_often(
    start_server: Callable[..., Server], page: Page
) -> None:
    """A server that is busy is not asked three times a second; what a reset took away can be loaded again."""
    server = start_server(assistant="off")
    client, conversation = Client(server.url).sign_in(), str(uuid.uuid4())
    client.create("message 000", conversation)
    for number in range(1, 60):
        client.post_message(conversation, f"message {number:03d}")
    sign_in(page, server.url)
    wait_state(page, "connected")
    asked: list[Route] = []
    page.route("**/messages?before=*", lambda route: asked.append(route) or route.fulfill(status=503))
    page.locator("#log").evaluate("log => { log.scrollTop = 0 }")
    page.wait_for_timeout(3000)
    assert 1 <= len(asked) <= 3
    page.unroute("**/messages?before=*")
    wait_for(page, lambda: len(messages(page)) == 60, 12, "then they come")
    oldest = f"{server.url}/c/{conversation}?before=20"
    page.route(oldest, from_the_beginning)
    page.goto(oldest)
    wait_for(page, lambda: messages(page)[-1]["text"] == "message 059", 5, "the newest")
    page.locator("#log").evaluate("log => { log.scrollTop = 0 }")
    wait_for(page, lambda: len(messages(page)) == 60, 5, "and all before it")
    assert [m["text"] for m in messages(page)] == [f"message {number:03d}" for number in range(60)]
    assert page.locator("#messages .day").count() == 1
