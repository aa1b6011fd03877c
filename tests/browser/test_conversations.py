"""What people do with conversations in the browser: list, rename, delete, scroll up, fail, draft, come back."""

import uuid
from collections.abc import Callable

import pytest
from lab.browser import ask, assert_clean, messages, say, sign_in, stored, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.server import Server
from playwright.sync_api import Page, Route

pytestmark = pytest.mark.browser


def titles(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#conversations .conversation").all_inner_texts()]


def test_the_list_updates_itself_and_the_menu_renames_and_deletes(server: Server, client: Client, page: Page) -> None:
    sign_in(page, server.url)
    wait_state(page, "connected")
    ask(page, "How is a backup restored?")
    wait_for(page, lambda: titles(page) == ["How is a backup restored?"], 3, "the title comes from the first message")
    order = page.evaluate("[...document.querySelector('#messages').children].map(one => one.className)")
    assert order == ["day", "message", "message"], "one separator, and before the day's first message"
    client.create("From elsewhere", str(uuid.uuid4()))
    wait_for(page, lambda: titles(page) == ["From elsewhere", "How is a backup restored?"], 3, "the newest on top")
    page.locator("header.head [popovertarget=menu]").click()
    page.locator("#menu [popovertarget=rename-dialog]").click()
    assert page.locator("#rename-title").input_value() == "How is a backup restored?", "what it is called now"
    page.locator("#rename-title").fill("Restoring")
    page.locator("#rename-title").press("Enter")
    wait_for(page, lambda: "Restoring" in titles(page), 3, "the list has the new name")
    wait_for(page, lambda: page.locator("#title").inner_text() == "Restoring", 3, "so has the page")
    wait_for(page, lambda: not page.locator("#rename-dialog").is_visible(), 3, "the dialog closes")
    page.locator("header.head [popovertarget=menu]").click()
    page.locator("#menu [popovertarget=delete-dialog]").click()
    page.locator("#delete-dialog button[type=submit]").click()
    page.wait_for_url("**/c/*")
    page.locator("h1", has_text="From elsewhere").wait_for()
    wait_for(page, lambda: titles(page) == ["From elsewhere"], 5, "it is gone from the list")
    wait_for(page, lambda: page.locator("#title").inner_text() == "From elsewhere", 5, "another one is open")
    wait_state(page, "connected")
    page.locator("#connection-status a.chip[title='Why?']").click()
    page.wait_for_url("**/connection")
    page.locator("h2#why").wait_for()
    assert_clean(page)


def test_older_messages_come_by_scrolling_up(start_server: Callable[..., Server], page: Page) -> None:
    server = start_server(assistant="off")
    client, conversation = Client(server.url).sign_in(), str(uuid.uuid4())
    client.create("message 000", conversation)
    for number in range(1, 100):
        client.post_message(conversation, f"message {number:03d}")
    sign_in(page, server.url)
    wait_state(page, "connected")
    assert [m["text"] for m in messages(page)] == [f"message {number:03d}" for number in range(60, 100)]
    for shown in (80, 100):
        first = page.locator("#messages article").first
        page.locator("#log").evaluate("log => { log.scrollTop = 0 }")
        wait_for(page, lambda n=shown: len(messages(page)) >= n, 5, f"{shown} are shown")
        assert first.bounding_box()["y"] < 3000, "what was read stays near where it was"
    assert [m["text"] for m in messages(page)] == [f"message {number:03d}" for number in range(100)]
    assert not page.locator("#older").is_visible()
    client.post_message(conversation, "while reading above")
    page.locator("#jump").wait_for(state="visible")
    page.locator("#jump").click()
    wait_for(page, lambda: messages(page)[-1]["text"] == "while reading above", 2, "the newest")
    assert_clean(page)


def test_a_message_that_is_refused_fails_alone_in_plain_words(start_server: Callable[..., Server], page: Page) -> None:
    server = start_server(assistant="off")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sign_in(page, server.url)
    wait_state(page, "connected")
    say(page, "before")
    too_long = "y" * 20_001
    page.evaluate("document.getElementById('count').dataset.most = 30000")  # as if the page did not know the limit
    say(page, too_long)
    say(page, "after")
    wait_for(page, lambda: [m["state"] for m in messages(page)].count("sent") == 2, 5, "the others pass")
    failed = page.locator(".message[data-state=failed]")
    assert "too long" in failed.inner_text().lower()
    failed.locator("[data-action=retry-message]").click()
    wait_for(page, lambda: failed.count() == 1, 3, "it fails again")
    failed.locator("[data-action=copy-message]").click()
    wait_for(page, lambda: page.evaluate("navigator.clipboard.readText()") == too_long, 3, "it is copied")
    failed.locator("[data-action=discard-message]").click()
    wait_for(page, lambda: [m["text"] for m in messages(page)] == ["before", "after"], 3, "it is discarded")


def test_a_draft_and_what_waits_survive_a_reload_with_the_server_away(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    unanswered = f"{proxy.url}/c"  # what makes the conversation
    page.route(unanswered, lambda route: None)
    say(page, "one")
    page.locator("#composer textarea").fill("begun on a page that was not saved")
    box = page.locator("#composer textarea")
    page.reload()
    wait_for(page, lambda: box.input_value() == "begun on a page that was not saved", 3, "the draft is there")
    wait_for(page, lambda: [m["text"] for m in messages(page)] == ["one"], 3, "what waits is shown")
    page.goto("about:blank")  # unroute lets go what is held: the page would hear of its conversation as it goes
    page.unroute(unanswered)
    page.goto(proxy.url)
    wait_for(page, lambda: [m["state"] for m in messages(page)] == ["sent"], 5, "sent")
    page.wait_for_url("**/c/*")
    own = [page.url.rsplit("/", 1)[1]]
    wait_for(
        page, lambda: [r["conversation"] for r in stored(page, "drafts")] == own, 5, "the draft goes with the page"
    )
    page.reload()
    wait_for(page, lambda: box.input_value() == "begun on a page that was not saved", 3, "the draft is there")
    box.fill("")
    proxy.hang_paths = (page.url.split(str(proxy.port))[1] + "/messages",)
    proxy.upgrade = "refuse"
    proxy.reset_sockets()
    for text in ("two", "three"):
        say(page, text)
    box.fill("a draft")
    page.reload()
    wait_for(page, lambda: box.input_value() == "a draft", 3, "the draft is there")
    wait_for(page, lambda: [m["text"] for m in messages(page)] == ["one", "two", "three"], 3, "still there")
    proxy.heal()
    wait_for(page, lambda: [m["state"] for m in messages(page)] == ["sent"] * 3, 20, "sent in order")
    assert [m["text"] for m in messages(page)] == ["one", "two", "three"]


SLOW_TO_MOVE = """
  // A draft that becomes a conversation's takes a while to be written; where the page goes meanwhile, it is not.
  const put = IDBObjectStore.prototype.put
  IDBObjectStore.prototype.put = function (row) {
    const until = performance.now() + (row.owner && row.conversation !== "new" ? 1500 : 0)
    const wait = () => { if (performance.now() < until) this.count().onsuccess = wait }
    const request = put.call(this, row)
    wait()
    return request
  }
  delete IDBTransaction.prototype.commit
"""


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
def test_a_page_that_goes_while_its_conversation_is_made_keeps_the_draft(
    start_server: Callable[..., Server], page: Page, heard: bool
) -> None:
    """What was begun after the first message is there again, whether or not the page heard of its conversation."""
    server = start_server(assistant="off")
    sign_in(page, server.url)
    wait_state(page, "connected")
    page.add_init_script(SLOW_TO_MOVE)
    page.reload()
    wait_state(page, "connected")
    making = f"{server.url}/c"
    asked: list[Route] = []
    page.route(making, lambda route: asked.append(route))
    say(page, "the first message")
    wait_for(page, lambda: asked, 5, "it is on its way")
    box = page.locator("#composer textarea")
    box.fill("begun since")
    if heard:
        asked[0].continue_()
        wait_for(page, lambda: messages(page)[-1]["state"] == "sent", 5, "sent")
    else:
        assert asked[0].fetch().ok, "the server has it"
        asked[0].abort()
        page.unroute(making)
    page.reload()
    wait_for(page, lambda: box.input_value() == "begun since", 3, "the draft is there")
    wait_for(page, lambda: [m["state"] for m in messages(page)] == ["sent"], 5, "sent")
    page.wait_for_url("**/c/*")
    own = page.url.rsplit("/", 1)[1]
    wait_for(page, lambda: [r["conversation"] for r in stored(page, "drafts")] == [own], 5, "it has moved")
    page.reload()
    wait_for(page, lambda: box.input_value() == "begun since", 3, "the draft is there")


def test_two_tabs_leave_each_others_drafts_alone(start_server: Callable[..., Server], page: Page) -> None:
    """One writes, the other goes: the draft stays. The one sends it, the other goes: it stays away."""
    server = start_server(assistant="off")
    Client(server.url).sign_in().create("Two tabs", str(uuid.uuid4()))
    sign_in(page, server.url)
    other = page.context.new_page()
    other.goto(page.url)
    page.locator("#composer textarea").fill("a draft")
    wait_for(page, lambda: stored(page, "drafts"), 3, "it is stored")
    other.reload()
    wait_for(other, lambda: other.locator("#composer textarea").input_value() == "a draft", 3, "the other one has it")
    page.locator("#composer textarea").press("Enter")
    wait_for(page, lambda: messages(page)[-1]["state"] == "sent", 5, "sent")
    wait_for(other, lambda: other.locator("#composer textarea").input_value() == "", 3, "sent is sent")
    other.reload()
    wait_state(other, "connected")
    assert other.locator("#composer textarea").input_value() == ""
