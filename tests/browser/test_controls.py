"""Buttons, dialogs and the field: they do what they say, keep the keyboard's focus, and tell before it is too late."""

from collections.abc import Iterator
from typing import Any

import pytest
from lab.browser import messages, new_page, pictures, say, sign_in, wait_for, wait_state
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
LONGEST = 20_000


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all."""
    with Server(tmp_path_factory.mktemp("controls"), assistant_pace=100_000) as running:
        yield running


@pytest.fixture
def chat(server: Server, page: Page) -> Page:
    """A page with a conversation, connected, and nothing under way."""
    sign_in(page, server.url)
    wait_state(page, "connected")
    say(page, "hello")
    page.locator(
        "#messages > [data-author=user][data-state=sent]:nth-last-child(2) + [data-state=completed]"
    ).wait_for()
    return page


def focused(page: Page) -> str:
    """What the keyboard would act on: an id, a class, or a tag."""
    return str(page.evaluate("(e => e.id || e.className || e.tagName)(document.activeElement)"))


def test_code_on_a_knowledge_page_can_be_copied(server: Server, chat: Page) -> None:
    """The button copies, and says so."""
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.goto(f"{server.url}/knowledge/backup-this-product")
    figure = chat.locator("figure.code").first
    button = figure.locator("[data-action=copy-code]")
    button.click()
    wait_for(chat, lambda: button.inner_text() == "Copied", 3, "it says so")
    assert chat.evaluate("navigator.clipboard.readText()") == figure.locator("code").text_content()


def open_dialog(page: Page, name: str) -> Any:
    """By the menu, as a person does."""
    page.locator("header.head [popovertarget=menu]").click()
    page.locator(f"#menu [popovertarget={name}-dialog]").click()
    dialog = page.locator(f"#{name}-dialog")
    dialog.wait_for()
    return dialog


def test_dialogs_are_modal_and_give_the_focus_back(chat: Page) -> None:
    """Nothing behind can be reached; Escape, Cancel and Rename end where the menu was opened."""
    for leave in ("Escape", "Cancel", "Rename"):
        dialog = open_dialog(chat, "rename")
        assert dialog.evaluate("dialog => dialog.matches(':modal')")
        assert focused(chat) == "rename-title"
        for _ in range(6):
            chat.keyboard.press("Tab")
            assert dialog.evaluate(
                "d => d.contains(document.activeElement) || document.activeElement === document.body"
            )
        if leave == "Escape":
            chat.keyboard.press("Escape")
        else:
            chat.locator("#rename-title").fill(f"called {leave}")
            dialog.get_by_role("button", name=leave).click()
        wait_for(chat, lambda d=dialog: not d.is_visible(), 3, "it closes")
        assert "open-menu" in focused(chat), leave


def test_a_dialog_opens_without_javascript(server: Server, chat: Page, browser: Browser) -> None:
    """As a popover."""
    plain = new_page(browser, java_script_enabled=False, storage_state=chat.context.storage_state())
    try:
        plain.goto(chat.url)
        plain.locator("header.head [popovertarget=menu]").click()
        plain.locator("#menu [popovertarget=rename-dialog]").click()
        assert plain.locator("#rename-dialog").is_visible()
    finally:
        plain.context.close()


def test_run_test_keeps_the_focus(server: Server, chat: Page) -> None:
    """While it runs, and a second press meanwhile does nothing."""
    chat.goto(f"{server.url}/connection")
    button = chat.locator("[data-check=run]")
    button.press("Enter")
    wait_for(chat, lambda: button.get_attribute("aria-disabled") == "true", 3, "it runs")
    assert chat.evaluate("document.activeElement.dataset.check") == "run"


def test_a_new_conversation_begins_in_the_field(chat: Page) -> None:
    """Nobody needs to click once more to write."""
    chat.get_by_role("button", name="New conversation").click()
    chat.wait_for_url("**/c/*")
    wait_for(chat, lambda: focused(chat) == "body", 5, "the field has the focus")


def test_the_field_shows_its_focus_in_forced_colours(chat: Page) -> None:
    """Where borders and shadows have one colour, an outline is left."""
    chat.emulate_media(forced_colors="active")
    chat.locator("#body").focus()
    style = "getComputedStyle(document.getElementById('composer')).outlineStyle"
    assert chat.evaluate(style) == "solid"
    chat.locator("#log").focus()
    assert chat.evaluate(style) == "none"


def test_the_length_is_told_before_sending(chat: Page) -> None:
    """Near the end how much, beyond it how much too much, in characters; nothing is sent until it fits."""
    count, field = chat.locator("#count"), chat.locator("#body")
    before = len(messages(chat))
    field.fill("a" * 17_000)
    assert not count.is_visible()
    field.fill("a" * 19_000)
    assert count.inner_text() == "19,000 of 20,000 characters"
    said = chat.locator("#announcer")
    assert said.text_content() == "19,000 of 20,000 characters" and count.get_attribute("aria-live") == "off"
    field.fill("\U0001f600" * (LONGEST - 1) + "  ")
    assert count.inner_text() == "19,999 of 20,000 characters"
    assert said.text_content() == "19,000 of 20,000 characters", "what changes with each key is not said"
    field.fill("b" * (LONGEST + 7))
    assert count.inner_text() == "7 characters too many: at most 20,000" == said.text_content()
    said.evaluate("said => { said.textContent = '' }")
    pictures(chat, "too-long")
    field.press("Enter")
    chat.wait_for_timeout(300)
    assert len(messages(chat)) == before and field.input_value() == "b" * (LONGEST + 7)
    assert said.text_content() == "7 characters too many: at most 20,000", "why nothing is sent"
    field.fill("c" * LONGEST)
    field.press("Enter")
    wait_for(chat, lambda: [m["state"] for m in messages(chat) if m["text"].startswith("ccc")] == ["sent"], 5, "sent")
    assert not count.is_visible()


def test_a_failed_message_can_be_edited(chat: Page) -> None:
    """Back into the field, after what is being written; the failed one is gone."""
    refuse = {
        "status": 422,
        "content_type": "application/json",
        "body": '{"error": {"code": "too-long", "message": ""}}',
    }
    chat.route("**/messages", lambda route: route.fulfill(**refuse))
    say(chat, "this one fails " * 60)  # too long for a frame, hence by POST
    failed = chat.locator(".message[data-state=failed]")
    failed.wait_for()
    assert "20,000" in failed.inner_text()
    assert chat.locator("#announcer").text_content() == failed.locator("[data-slot=reason]").inner_text()
    chat.locator("#body").fill("being written")
    pictures(chat, "failed-edit")
    failed.get_by_role("button", name="Edit").click()
    wait_for(chat, lambda: failed.count() == 0, 3, "it is gone")
    assert chat.locator("#body").input_value() == "being written\n\n" + "this one fails " * 60
    assert focused(chat) == "body"
