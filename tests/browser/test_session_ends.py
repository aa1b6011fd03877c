"""Renewal as a person meets it: not at all; and where it is refused, a sign-in over the page that costs no word."""

import time
from collections.abc import Callable, Iterator

import pytest
from lab.browser import ask, assert_clean, messages, new_page, pictures, record, say, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.people import add_people, database
from lab.server import EMAIL, PASSWORD, Server
from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser
StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
DIALOG = "dialog.sign-in"
ACCESS_S = 3


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser with room for tabs."""
    context = new_page(browser).context
    yield context
    context.close()


def expire(server: Server, proxy: FaultProxy) -> None:
    """All sessions have expired, and the connections break."""
    with database(server) as connection:
        connection.execute("UPDATE sessions SET access_until = 1, idle_until = 1")
    server.restart()  # it had cached them
    proxy.reset_all()


def fill(page: Page, password: str) -> None:
    page.locator(f"{DIALOG} input[name=password]").fill(password)
    page.locator(f"{DIALOG} input[name=password]").press("Enter")


@pytest.mark.parametrize("transports", ["websocket,polling", "polling"])
def test_nobody_notices_a_renewal(
    start_server: StartServer, start_proxy: StartProxy, page: Page, transports: str
) -> None:
    server = start_server(access_lifetime=ACCESS_S, transports=transports, assistant_pace=150)
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    state = "polling" if transports == "polling" else "connected"
    wait_state(page, state)
    say(page, "Is polling worse?")
    before = len(record(page, "states"))
    wait_for(page, lambda: len(proxy.seen("/session/renew")) >= 3, 20, "it renews by itself")
    wait_for(page, lambda: messages(page)[-1]["state"] == "completed", 30, "the answer ends")
    assert {one["status"] for one in record(page, "states")[before:]} == {state}
    assert page.locator(DIALOG).count() == 0
    page.goto(f"{proxy.url}/connection")
    assert "Session renewed" in page.locator("#connection-history").inner_text()
    assert_clean(page)


def test_ten_tabs_renew_once(start_server: StartServer, start_proxy: StartProxy, context: BrowserContext) -> None:
    server = start_server(access_lifetime=6, assistant="off")
    proxy = start_proxy(server)
    tabs = [context.pages[0]]
    sign_in(tabs[0], proxy.url)
    for _ in range(9):
        tabs.append(context.new_page())
        tabs[-1].goto(f"{proxy.url}/")
    for tab in tabs:
        wait_state(tab, "connected")
    began = time.time()
    tabs[0].wait_for_timeout(12_000)
    found = proxy.seen("/session/renew", since=began)
    assert 1 <= len(found) <= 4, [seen.at - began for seen in found]
    for tab in tabs:
        assert {one["status"] for one in record(tab, "states") if one["at"] > 1000 * began} <= {"connected"}


def test_an_expired_session_costs_nobody_a_word(server: Server, start_proxy: StartProxy, page: Page) -> None:
    """A draft, a selection, the place in the log and a message that waits: all is there after the sign-in."""
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    ask(page, "Is polling worse?")
    shown = [message["text"] for message in messages(page)]
    box = page.locator("#composer textarea[name=body]")
    box.fill("a draft, half written")
    box.evaluate("box => box.setSelectionRange(2, 7)")
    expire(server, proxy)
    page.locator(DIALOG).wait_for()
    assert page.evaluate("document.body.dataset.connection") == "disconnected"
    assert "Your session has ended" in page.locator(DIALOG).inner_text()
    assert "a draft, half written" in page.locator(f"{DIALOG} .draft").inner_text()
    assert page.locator(f"{DIALOG} input[name=email]").input_value() == EMAIL
    assert [message["text"] for message in messages(page)] == shown, "what was shown stays"
    pictures(page, "sign-in-over-the-page")
    fill(page, "wrong")
    wait_for(page, lambda: "wrong" in page.locator(f"{DIALOG} [role=alert]").inner_text(), 10, "it says what is wrong")
    fill(page, PASSWORD)
    wait_state(page, "connected")
    assert page.locator(DIALOG).count() == 0
    assert box.input_value() == "a draft, half written"
    assert box.evaluate("box => [box.selectionStart, box.selectionEnd]") == [2, 7]
    assert box.evaluate("box => document.activeElement === box")
    box.press("End")
    box.press("Enter")
    wait_for(page, lambda: "a draft, half written" in [m["text"] for m in messages(page)], 10, "it is sent")
    page.reload()
    wait_state(page, "connected")
    assert [m["text"] for m in messages(page) if m["author"] == "user"] == [
        "Is polling worse?",
        "a draft, half written",
    ]
    assert_clean(page)


def test_what_waited_goes_out_after_the_sign_in(server: Server, start_proxy: StartProxy, page: Page) -> None:
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    say(page, "the first")
    wait_for(page, lambda: messages(page)[0]["state"] == "sent", 10, "it is sent")
    proxy.network_down()
    wait_state(page, "reconnecting")
    say(page, "written without a connection")
    expire(server, proxy)
    proxy.heal()
    page.locator(DIALOG).wait_for(timeout=20_000)
    fill(page, PASSWORD)
    texts = ["the first", "written without a connection"]
    client = Client(server.url).sign_in()
    conversation = page.url.rsplit("/", 1)[1]

    def stored() -> list[str]:
        found = client.history(conversation)
        return [a.one(css_class="body").text for a in found if a.get("data-author") == "user"]

    wait_for(page, lambda: stored() == texts, 20, "once, in order")


def test_without_signing_in_one_reads_on(server: Server, start_proxy: StartProxy, page: Page) -> None:
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    ask(page, "Is polling worse?")
    expire(server, proxy)
    page.locator(f"{DIALOG} [data-action=later]").click()
    assert not page.locator(DIALOG).is_visible()
    assert len(messages(page)) == 2
    assert page.locator("#banner a", has_text="Sign in").is_visible()
    asked = len(proxy.requests)
    page.wait_for_timeout(3000)
    assert len(proxy.requests) == asked, "nothing is asked any more"


def test_a_session_that_was_ended_takes_what_it_showed(server: Server, page: Page) -> None:
    """The device may be lost. Who signs in again has it all back, the draft too."""
    sign_in(page, server.url)
    wait_state(page, "connected")
    ask(page, "Is polling worse?")
    box = page.locator("#composer textarea[name=body]")
    box.fill("a draft, half written")
    page.wait_for_timeout(600)  # it is stored
    elsewhere = Client(server.url).sign_in()
    elsewhere.learn(elsewhere.get("/account").page)
    assert elsewhere.post("/account/sessions/end").status == 303
    page.locator(DIALOG).wait_for()
    text = page.locator("body").inner_text()
    assert "polling" not in text.lower().replace("http polling", "") and "half written" not in text
    assert not messages(page) and page.title() == "This session was ended."
    assert not box.is_visible(), "the draft stays, and is not seen"
    page.keyboard.press("Escape")
    assert page.locator(DIALOG).is_visible()
    pictures(page, "sign-in-revoked")
    fill(page, PASSWORD)
    wait_state(page, "connected")
    wait_for(page, lambda: len(messages(page)) == 2, 10, "it is shown again")
    wait_for(page, lambda: box.input_value() == "a draft, half written", 5, "the draft")


def test_signing_in_by_one_tab_brings_the_others_back(
    server: Server, start_proxy: StartProxy, context: BrowserContext
) -> None:
    proxy = start_proxy(server)
    one, other = context.pages[0], context.new_page()
    sign_in(one, proxy.url)
    other.goto(f"{proxy.url}/")
    for tab in (one, other):
        wait_state(tab, "connected")
    expire(server, proxy)
    for tab in (one, other):
        tab.locator(DIALOG).wait_for()
    fill(other, PASSWORD)
    for tab in (one, other):
        wait_state(tab, "connected")
        wait_for(tab, lambda tab=tab: tab.locator(DIALOG).count() == 0, 5, "the dialog closes")
    say(one, "from the one")
    wait_for(one, lambda: messages(one)[-1]["text"] == "from the one", 5, "it is there")
    wait_for(one, lambda: messages(one)[0]["state"] == "sent", 10, "it is sent")


@pytest.mark.parametrize("transports", ["websocket,polling", "polling"])
def test_another_person_in_the_same_browser_ends_this_page(
    start_server: StartServer, page: Page, transports: str
) -> None:
    server = start_server(assistant="off", transports=transports)
    add_people(server, "grace@example.org")
    sign_in(page, server.url)
    wait_state(page, "polling" if transports == "polling" else "connected")
    say(page, "mine alone")
    wait_for(page, lambda: messages(page)[0]["state"] == "sent", 10, "it is sent")
    other = page.context.new_page()
    other.goto(server.url)
    other.locator("form.person button").click()
    other.wait_for_url("**/sign-in")
    sign_in(other, server.url, "grace@example.org")
    page.locator(DIALOG).wait_for()
    words = page.locator(DIALOG).inner_text()  # asked before or after the browser forgot the cookie
    assert "You are signed out" in words or "This session was ended" in words
    assert "mine alone" not in page.locator("body").inner_text()
    fill(page, PASSWORD)  # this browser is Grace's now: her page comes, whose password it was or not
    page.locator("form.person", has_text="Grace").wait_for()
    assert "mine alone" not in page.locator("body").inner_text()


# A pause that the server asks for


def test_who_is_limited_sees_the_countdown_and_loses_nothing(start_server: StartServer, page: Page) -> None:
    server = start_server(assistant="off", rate_limit_sends="12/minute")
    sign_in(page, server.url)
    wait_state(page, "connected")
    texts = [f"message {number}" for number in range(14)]
    for text in texts:
        say(page, text)
    waiting = page.locator("article .state", has_text="goes on in")
    waiting.first.wait_for()
    first = waiting.first.inner_text()
    pictures(page, "limited")
    wait_for(page, lambda: waiting.count() == 0 or waiting.first.inner_text() != first, 5, "it counts down")
    wait_for(page, lambda: all(m["state"] == "sent" for m in messages(page)), 40, "all is sent")
    assert [message["text"] for message in messages(page)] == texts
    assert {one["status"] for one in record(page, "states")} <= {"connecting", "connected"}, "nobody blames the network"
    assert_clean(page)
