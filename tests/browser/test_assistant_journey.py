"""What a person does with a model's answers, by keyboard on a phone: over WebSocket, and where only polls pass."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.asking import Play
from lab.browser import (
    NARROW,
    assert_clean,
    messages,
    new_page,
    press_to,
    say,
    screenshot,
    sign_in,
    wait_for,
    wait_state,
)
from lab.model import Handler, Script
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


WAYS = {"websocket": "connected", "polling": "polling"}
ANSWER = "The upgrade must pass [1].\n\n```nginx\nproxy_set_header Upgrade $http_upgrade; # both\n```\n\nThat is *all*."


def answer(handler: Handler) -> None:
    """Thinks a moment, then answers, with a citation and code."""
    handler.begin()
    handler.event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    handler.server.gone.wait(1.5)
    for start in range(0, len(ANSWER), 7):
        handler.say(ANSWER[start : start + 7])
        handler.server.gone.wait(0.05)
    handler.event({"choices": [], "usage": {"prompt_tokens": 812, "completion_tokens": 40}})
    handler.say(finish="stop", end="[DONE]")


def endless(handler: Handler) -> None:
    """Goes on until it is stopped."""
    handler.begin()
    while not handler.server.gone.is_set():
        handler.say("and so on ")
        handler.server.gone.wait(0.1)


def broken(handler: Handler) -> None:
    """What a server says whose model is not there."""
    handler.begin(500, "application/json")
    handler.wfile.write(b'{"error":{"message":"no model"}}')


@pytest.fixture(params=WAYS)
def phone(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    page = new_page(browser, viewport={"width": NARROW[0], "height": NARROW[1]})
    if request.param == "polling":
        page.add_init_script("window.WebSocket = class { constructor() { throw new Error('blocked') } }")
    yield page
    page.context.close()


def last(page: Page) -> dict[str, object]:
    return [one for one in messages(page) if one["author"] == "assistant"][-1]


def footer(page: Page) -> str:
    return page.locator("article[data-author=assistant] .meta").last.inner_text()


def wait_last(page: Page, state: str) -> None:
    wait_for(page, lambda: last(page)["state"] == state, 20, f"the newest answer is {state}")


def test_ask_stop_go_on_again_edit_attach_by_keyboard(
    play: Play, start_server: Callable[..., Server], phone: Page, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    way = request.node.callspec.params["phone"]
    scripts: list[Script] = [answer, endless, answer, answer, answer, answer, broken]  # the last one again and again
    model = play(*scripts)
    server = start_server(**model.settings)

    def wait_answered(number: int) -> None:
        """Until the model was asked so often, and its newest answer is there."""
        wait_for(phone, lambda: len(model.requests) == number, 20, f"request {number}")
        wait_last(phone, "completed")

    sign_in(phone, server.url)
    wait_state(phone, WAYS[way])

    # It says what it does before its first word, then streams, cites what it was given, and says what it cost.
    say(phone, "How do I let WebSocket through nginx?")
    wait_for(phone, lambda: "Thinking" in footer(phone), 10, "the phase")
    screenshot(phone, f"journey-{way}-thinking")
    wait_last(phone, "completed")
    assert "812 + 40 tokens" in footer(phone)
    body = phone.locator("article[data-author=assistant] .body").last
    assert body.locator("pre i").inner_text() == "# both" and body.locator("p a.citation").first.inner_text() == "1"
    screenshot(phone, f"journey-{way}-answered")

    # Stop, by keyboard from the field; what was written stays, and it goes on.
    say(phone, "And then?")
    wait_for(phone, lambda: "and so on" in str(last(phone)["text"]), 10, "it streams")
    press_to(phone, "Stop", "Shift+Tab")
    wait_last(phone, "stopped")
    stopped = last(phone)["text"]
    press_to(phone, "Go on")
    wait_for(phone, lambda: last(phone)["text"] != stopped and last(phone)["state"] == "completed", 20, "it went on")

    press_to(phone, "Answer again", "Shift+Tab")
    wait_answered(4)

    # Edit the last message: the old one and its answers are folded.
    phone.locator("#composer textarea").focus()
    press_to(phone, "This conversation", "Shift+Tab")
    press_to(phone, "Edit my last message")
    phone.locator("#text").wait_for()
    phone.keyboard.press("Control+A")
    phone.keyboard.type("And behind HAProxy?")
    press_to(phone, "Send again")
    wait_state(phone, WAYS[way])
    wait_for(phone, lambda: phone.locator("article[data-folded]").count() >= 2, 10, "the old ones are folded")
    wait_answered(5)
    place = "log => log.scrollHeight - log.clientHeight - log.scrollTop"
    wait_for(
        phone, lambda: phone.locator("#log").evaluate(place) < 60, 5, "the page is at its end, where the new one is"
    )
    screenshot(phone, f"journey-{way}-edited")

    # Attach a file: it can be downloaded.
    press_to(phone, "This conversation", "Shift+Tab")
    press_to(phone, "Attach a file")
    notes = tmp_path / "notes.csv"
    notes.write_text("port,open\n443,yes\n")
    phone.locator("#file").set_input_files(notes)
    phone.locator("#words").focus()
    phone.keyboard.type("What is open?")
    press_to(phone, "Send")
    wait_state(phone, WAYS[way])
    wait_for(phone, lambda: phone.locator("a.file").count() == 1, 10, "the file is in the message")
    wait_answered(6)
    assert "port,open" in str(model.requests[-1][2]), "the model has read it"

    # Where the model fails, the documents are quoted, and it says so.
    say(phone, "How do I let WebSocket through nginx?")
    wait_for(phone, lambda: "500" in footer(phone), 20, "what the server said")
    assert last(phone)["state"] == "completed" and "proxy_set_header Upgrade" in str(last(phone)["text"])
    screenshot(phone, f"journey-{way}-instead")
    assert_clean(phone)
