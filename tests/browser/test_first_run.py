"""From an empty installation to the first answer, as a person goes through it."""

import re
from collections.abc import Callable

import pytest
from lab.browser import ask, assert_clean, messages, record, screenshot, wait_state
from lab.http import Client
from lab.server import EMAIL, NAME, PASSWORD, Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_first_run_to_first_answer(start_server: Callable[..., Server], page: Page) -> None:
    """Any page leads to the form; the account is made; the chat opens; a question is answered as it streams."""
    server = start_server(seeded=False)
    page.goto(server.url)
    assert page.url.endswith("/first-run")
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


def test_a_stranger_needs_the_code_that_the_start_printed(start_server: Callable[..., Server]) -> None:
    """A local proxy makes every peer loopback, so a forwarded request counts as a stranger's."""
    server = start_server(seeded=False)
    stranger = Client(server.url)
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    page = stranger.learn(stranger.get("/first-run", forwarded).page)
    assert page.all("input", name="code")
    fields = {"name": NAME, "email": EMAIL, "password": PASSWORD}
    refused = stranger.post("/first-run", forwarded, **fields, code="wrong")
    assert refused.status in (400, 403, 422)
    codes = re.findall(r"\bcode\b\W+(\S+)", server.log_text(), re.I)
    assert codes, server.log_text()
    code = codes[0].strip(".,\"'`")
    assert stranger.post("/first-run", forwarded, **fields, code=code).status in (302, 303)


def test_of_two_first_runs_one_wins(start_server: Callable[..., Server]) -> None:
    """The second submission of the form, prepared in time, makes no second admin."""
    server = start_server(seeded=False)
    first, second = Client(server.url), Client(server.url)
    for client in (first, second):
        client.learn(client.get("/first-run").page)
    assert first.post("/first-run", name=NAME, email=EMAIL, password=PASSWORD).status in (302, 303)
    second.post("/first-run", name="Eve", email="eve@example.org", password=PASSWORD)
    page = Client(server.url)
    page.learn(page.get("/sign-in").page)
    assert page.post("/sign-in", email="eve@example.org", password=PASSWORD).status not in (302, 303)
    assert Client(server.url).sign_in().epoch
