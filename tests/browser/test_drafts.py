"""What is typed has an owner: it survives a closed or killed browser, other tabs, and the end of its conversation."""

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.browser import messages, record, say, sign_in, stored, wait_for, wait_state
from lab.http import Client
from lab.profile import Profile
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server; each test has a conversation of its own."""
    with Server(tmp_path_factory.mktemp("drafts"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture
def url(shared: Server, me: Client) -> str:
    """A conversation's page."""
    conversation = str(uuid.uuid4())
    me.create("A conversation", conversation)
    return f"{shared.url}/c/{conversation}"


def draft(page: Page) -> str:
    return page.locator("#composer textarea").input_value()


def type_in(page: Page, text: str) -> None:
    """Key by key, at the end of what is there."""
    page.locator("#composer textarea").press("End")
    page.locator("#composer textarea").press_sequentially(text)


def shows(page: Page, text: str) -> None:
    wait_for(page, lambda: draft(page) == text, 5, f"the draft is {text!r}, not {draft(page)!r}")


LAST_WORDS = "typed just now, and then the lights went out"


def test_a_browser_that_is_killed_right_after_the_last_key_keeps_the_draft(
    shared: Server, url: str, browser: Browser, tmp_path: Path
) -> None:
    profile = Profile(browser, tmp_path / "profile")
    try:
        page = profile.open()
        sign_in(page, shared.url)
        page.goto(url)
        wait_state(page, "connected")
        type_in(page, LAST_WORDS)
        page.wait_for_timeout(50)
        profile.kill9()
        page = profile.open()
        page.goto(url)
        if "/sign-in" in page.url:  # it wrote its cookies too late
            sign_in(page, shared.url)
            page.goto(url)
        shows(page, LAST_WORDS)
    finally:
        profile.close()


def test_a_page_that_is_closed_right_after_the_last_key_keeps_the_draft(shared: Server, url: str, page: Page) -> None:
    sign_in(page, shared.url)
    page.goto(url)
    wait_state(page, "connected")
    later = page.context.new_page()
    type_in(page, LAST_WORDS)
    page.close()
    later.goto(url)
    shows(later, LAST_WORDS)


def test_two_tabs_of_one_conversation_never_lose_a_draft(shared: Server, url: str, page: Page) -> None:
    """Every order of typing, reloading and leaving: what a tab wrote is there for it again, and never in the other."""
    sign_in(page, shared.url)
    page.goto(url)
    other = page.context.new_page()
    other.goto(url)
    for number, (first, then) in enumerate(itertools.product(("one", "other"), ("reload", "leave"))):
        tabs = {"one": page, "other": other}
        last = tabs["other" if first == "one" else "one"]
        for tab in tabs.values():
            tab.goto(url)
            wait_state(tab, "connected")
            tab.locator("#composer textarea").fill("")
        tabs[first].locator("#composer textarea").fill(f"{number}: written first")
        if number == 0:  # nothing was typed there yet: it is to take that over before it is filled, not meanwhile
            shows(last, f"{number}: written first")
        last.locator("#composer textarea").fill(f"{number}: written last")
        for tab in (tabs[first], last, tabs[first]):
            if then == "reload":
                tab.reload()
            else:
                tab.goto(f"{shared.url}/connection")
                tab.goto(url)
        shows(tabs[first], f"{number}: written first")
        shows(last, f"{number}: written last")
    assert record(page, "errors") == []


def test_a_tab_in_which_nothing_was_typed_shows_what_is_typed_in_another(shared: Server, url: str, page: Page) -> None:
    sign_in(page, shared.url)
    page.goto(url)
    other = page.context.new_page()
    other.goto(url)
    wait_state(other, "connected")
    type_in(page, "begun here")
    shows(other, "begun here")
    type_in(page, ", and more")
    shows(other, "begun here, and more")
    type_in(other, ", ended there")  # from now on it has its own
    type_in(page, "!")
    shows(page, "begun here, and more!")
    shows(other, "begun here, and more, ended there")
    wait_for(page, lambda: len(stored(page, "drafts")) == 2, 5, "both are kept")
    other.locator("#composer textarea").press("Enter")
    wait_for(other, lambda: messages(other)[-1]["state"] == "sent", 5, "sent")
    shows(other, "")
    shows(page, "begun here, and more!")
    other.reload()
    shows(other, "begun here, and more!")
    other.locator("#composer textarea").press("Enter")  # as the first one wrote it
    shows(page, "")
    shows(other, "")
    wait_for(page, lambda: stored(page, "drafts") == [], 5, "nothing is left of it")
    page.reload()
    wait_state(page, "connected")
    assert draft(page) == ""


def hide(page: Page) -> None:
    """As if the page went into the browser's cache, which the driver switches off."""
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")


def wait_written(page: Page, texts: list[str]) -> None:
    wait_for(page, lambda: [row["text"] for row in stored(page, "drafts")] == texts, 5, f"{texts} is what is kept")


def test_a_page_from_the_browsers_cache_shows_what_a_later_page_of_its_tab_wrote(
    shared: Server, url: str, page: Page
) -> None:
    sign_in(page, shared.url)
    page.goto(url)
    wait_state(page, "connected")
    type_in(page, "abc")
    wait_written(page, ["abc"])
    for then, texts in (("write", ["abc, and a paragraph"]), ("send", [])):
        hide(page)
        with page.expect_popup() as popup:  # has a copy of the tab's memory: its name
            page.evaluate("url => { window.open(url) }", url)
        later = popup.value
        wait_state(later, "connected")
        shows(later, "abc" if then == "write" else "abc, and a paragraph")
        if then == "write":
            type_in(later, ", and a paragraph")
        else:
            later.locator("#composer textarea").press("Enter")
        wait_written(later, texts)
        later.close()
        page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        shows(page, "".join(texts))
    type_in(page, "!")
    wait_written(page, ["!"])


def test_a_closed_tab_leaves_its_draft_to_the_next_one(shared: Server, url: str, page: Page) -> None:
    sign_in(page, shared.url)
    page.goto(url)
    wait_state(page, "connected")
    page.locator("#composer textarea").fill("left behind")
    later = page.context.new_page()
    page.close()
    later.goto(url)
    shows(later, "left behind")
    type_in(later, ", taken up")
    wait_for(
        later, lambda: [row["text"] for row in stored(later, "drafts")] == ["left behind, taken up"], 5, "one draft"
    )
    later.locator("#composer textarea").press("Enter")
    wait_for(later, lambda: stored(later, "drafts") == [], 5, "sent is sent")


def test_what_the_browser_itself_remembers_of_the_field_is_not_typed(shared: Server, url: str, page: Page) -> None:
    """Sent from another tab meanwhile: the way back does not bring it up again."""
    sign_in(page, shared.url)
    page.goto(url)
    wait_state(page, "connected")
    type_in(page, "sent from elsewhere")
    other = page.context.new_page()
    other.goto(url)
    shows(other, "sent from elsewhere")
    page.goto(f"{shared.url}/connection")
    other.locator("#composer textarea").press("Enter")
    wait_for(other, lambda: stored(other, "drafts") == [], 5, "sent is sent")
    page.go_back()
    wait_state(page, "connected")
    assert draft(page) == "" and stored(page, "drafts") == []


def test_a_conversation_deleted_elsewhere_leaves_page_text_and_focus(
    shared: Server, me: Client, url: str, page: Page
) -> None:
    sign_in(page, shared.url)
    page.goto(url)
    wait_state(page, "connected")
    type_in(page, "half a question")
    assert me.post(f"{url.removeprefix(shared.url)}/delete").status in (204, 303)
    notice = page.locator("#gone")
    notice.wait_for()
    assert "This conversation was deleted" in notice.inner_text()
    assert page.url == url and draft(page) == "half a question"
    assert page.evaluate("document.activeElement.name") == "body", "one can write on"
    type_in(page, ", now whole")
    page.locator("#composer textarea").press("Enter")  # there is nowhere to send it: a new conversation begins
    page.wait_for_url(lambda address: "/c/" in address and address != url)
    shows(page, "half a question, now whole")
    wait_state(page, "connected")
    page.locator("#composer textarea").press("Enter")
    wait_for(page, lambda: [m["state"] for m in messages(page)] == ["sent"], 5, "it is sent there")
    assert messages(page)[0]["text"] == "half a question, now whole"
    assert stored(page, "drafts") == []


def test_what_was_written_in_a_deleted_conversation_is_in_the_next_new_one(
    shared: Server, me: Client, url: str, page: Page
) -> None:
    """The person leaves the page by another way than the one that it offers."""
    sign_in(page, shared.url)
    page.goto(url)
    wait_state(page, "connected")
    type_in(page, "nobody's text")
    assert me.post(f"{url.removeprefix(shared.url)}/delete").status in (204, 303)
    page.locator("#gone").wait_for()
    page.locator("#gone a").click()
    page.wait_for_url(lambda address: address != url)
    page.locator("form.new button").click()
    shows(page, "nobody's text")
    say(page, "somebody's text")
    wait_for(page, lambda: messages(page)[-1]["state"] == "sent", 5, "sent")
    wait_for(page, lambda: stored(page, "drafts") == [], 5, "nothing is left")


def test_what_is_left_of_a_deleted_conversation_is_not_for_one_under_way(
    shared: Server, me: Client, url: str, page: Page
) -> None:
    """A page that began empty has its own conversation now: only one that is still empty shows the text."""
    sign_in(page, shared.url)
    page.locator("form.new button").click()
    page.wait_for_url("**/c/*")
    wait_state(page, "connected")
    say(page, "under way")
    wait_for(page, lambda: [m["state"] for m in messages(page)] == ["sent"], 5, "it has begun")
    deleted, empty = page.context.new_page(), page.context.new_page()
    deleted.goto(url)
    wait_state(deleted, "connected")
    empty.goto(shared.url)
    empty.locator("form.new button").click()
    wait_state(empty, "connected")
    type_in(deleted, "from elsewhere")
    assert me.post(f"{url.removeprefix(shared.url)}/delete").status in (204, 303)
    deleted.locator("#gone").wait_for()
    shows(empty, "from elsewhere")
    rows = [
        (row["conversation"], row["text"]) for row in stored(page, "drafts")
    ]  # read after what the page itself reads
    assert rows == [("new", "from elsewhere")], "and none is left of what was being typed"
    assert draft(page) == ""
