"""From an empty installation to the first answer, as a person goes through it."""

import re
from collections.abc import Callable

import pytest
from lab.browser import ask, assert_clean, messages, new_page, record, screenshot, wait_state
from lab.http import Client
from lab.server import EMAIL, NAME, PASSWORD, Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


def printed(server: Server) -> str:
    """The address that the start printed, with the code."""
    found = re.search(r"\S+/first-run#code=\S+", server.log_text())
    assert found, server.log_text()
    return found[0]


def test_first_run_to_first_answer(start_server: Callable[..., Server], page: Page) -> None:
    """Any page leads to the form; the account is made; the chat opens; a question is answered as it streams."""
    server = start_server(seeded=False)
    page.goto(server.url)
    assert page.url.endswith("/first-run")
    page.goto(printed(server))
    assert page.locator("input[name=code]").input_value(), "the printed address brings the code along"
    assert page.url.endswith("/first-run"), "and it does not stay in the address"
    screenshot(page, "first-run")
    page.locator("input[name=name]").fill(NAME)
    page.locator("input[name=email]").fill(EMAIL)
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("button[type=submit]").click()
    wait_state(page, "connected")
    answer = ask(page, "WebSocket behind nginx")
    assert answer["state"] == "completed"
    assert page.url.startswith(f"{server.url}/c/"), "the first message gave the conversation its address"
    lengths = record(page, "articles")[answer["client_id"] or answer["id"]]["lengths"]
    assert len(lengths) >= 4, f"it did not stream: {lengths}"
    page.wait_for_timeout(300)
    screenshot(page, "first-answer")
    before = [(message["id"], message["text"]) for message in messages(page)]
    page.reload()
    page.locator("#messages article.message").first.wait_for()
    assert [(message["id"], message["text"]) for message in messages(page)] == before
    assert_clean(page)


def test_first_run_is_over_once_there_is_an_admin(server: Server, page: Page) -> None:
    """Nobody makes a second first account."""
    page.goto(f"{server.url}/first-run")
    assert not page.url.endswith("/first-run") or page.locator("input[name=name]").count() == 0
    page.goto(server.url)
    assert page.url.split("?")[0].endswith("/sign-in")


def test_without_javascript_one_types_the_code(start_server: Callable[..., Server], browser: Browser) -> None:
    """The form is plain; what it says is wrong stays beside the field."""
    server = start_server(seeded=False)
    page = new_page(browser, java_script_enabled=False)
    page.goto(printed(server))
    for code in ("wrong", printed(server).partition("code=")[2]):
        page.locator("input[name=code]").fill(code)
        page.locator("input[name=name]").fill(NAME)
        page.locator("input[name=email]").fill(EMAIL)
        page.locator("input[name=password]").fill(PASSWORD)
        page.locator("button[type=submit]").click()
        if code == "wrong":
            assert "the server printed" in page.locator("#code-error").inner_text()
    page.locator("#composer").wait_for()
    page.context.close()


def test_of_two_first_runs_one_wins(start_server: Callable[..., Server]) -> None:
    """The second submission of the form, prepared in time, makes no second admin."""
    server = start_server(seeded=False)
    first, second, code = Client(server.url), Client(server.url), printed(server).partition("code=")[2]
    for client in (first, second):
        client.learn(client.get("/first-run").page)
    assert first.post("/first-run", name=NAME, email=EMAIL, password=PASSWORD, code=code).status in (302, 303)
    second.post("/first-run", name="Eve", email="eve@example.org", password=PASSWORD, code=code)
    page = Client(server.url)
    page.learn(page.get("/sign-in").page)
    assert page.post("/sign-in", email="eve@example.org", password=PASSWORD).status not in (302, 303)
    assert Client(server.url).sign_in().epoch
