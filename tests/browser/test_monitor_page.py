"""The monitor in a browser: it renews itself, says who polls and why, shows a page's story; what pages report."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from lab.browser import (
    NARROW,
    ask,
    assert_clean,
    new_page,
    pictures,
    screenshot,
    sign_in,
    wait_for,
    wait_state,
)
from lab.faultproxy import FaultProxy
from lab.people import add_people
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

GRACE = "grace@example.org"


@pytest.fixture
def other(browser: Browser) -> Iterator[Page]:
    """Another person's browser."""
    page = new_page(browser)
    yield page
    page.context.close()


def reported(server: Server, kind: str) -> list[dict[str, Any]]:
    """The stored events of a type, with their data."""
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM connection_events WHERE type = ? ORDER BY id", (kind,)).fetchall()
    return [{**dict(row), **json.loads(row["data"])} for row in rows]


def test_a_page_reports_its_attempts_its_messages_and_its_end(server: Server, page: Page) -> None:
    sign_in(page, server.url)
    wait_state(page, "connected")
    ask(page, "How is a backup restored?")
    ask(page, "And how is it made?")
    page.goto(f"{server.url}/knowledge")
    (end,) = wait_for(page, lambda: reported(server, "end"), 5, "its end, by a beacon")
    (attempt,) = (one for one in reported(server, "attempt") if one["page"] == end["page"])
    assert (attempt["transport"], attempt["outcome"]) == ("websocket", "ready") and 0 < attempt["ms"] < 10_000
    (minute,) = (one for one in reported(server, "minute") if one["page"] == end["page"])
    assert sum(minute["sent"]["websocket"].values()) == 2 and minute["repeated"] == 0 and minute["missing"] == 0
    assert sum(minute["received"].values()) >= 2, "the answers"
    (opened,) = (one for one in reported(server, "server-open") if one["page"] == end["page"])
    assert opened["network"] == attempt["network"] != "" and "Chrome" in attempt["agent"]
    assert abs(attempt["at"] - opened["at"]) < 2000


def test_it_renews_itself_and_says_who_polls_and_why(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page, other: Page
) -> None:
    server = start_server(assistant="off")
    add_people(server, GRACE)
    proxy = start_proxy(server)
    proxy.upgrade = "refuse"
    sign_in(page, server.url)
    page.locator(".open-side").click() if page.locator(".open-side").is_visible() else None
    page.get_by_role("link", name="Monitor").click()
    verdict = page.locator("#verdict")
    assert verdict.get_attribute("data-level") == "ok"
    sign_in(other, proxy.url, GRACE)
    wait_state(other, "polling")
    found = page.locator("#verdict[data-level=degraded][data-cause=upgrade-refused]")
    found.wait_for(timeout=20_000)
    assert "1 of 1 people polls" in verdict.inner_text() and "refused" in verdict.inner_text()
    assert page.locator("[data-metric=people-polling]").get_attribute("data-value") == "1"
    pictures(page, "monitor-polling")
    page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    screenshot(page, "monitor-390")
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW[0]
    page.get_by_role("link", name="Grace").first.click()
    page.locator("h1", has_text="Grace").wait_for()
    assert "polling" in page.locator(".server-line").inner_text()
    screenshot(page, "monitor-page-390")
    proxy.upgrade = "pass"
    wait_state(other, "connected", timeout=40)
    page.go_back()
    page.locator("#verdict[data-level=ok]").wait_for(timeout=15_000)
    assert_clean(page)
    assert_clean(other)


def test_it_works_without_scripts_and_by_keyboard(server: Server, browser: Browser) -> None:
    page = new_page(browser, java_script_enabled=False)
    page.goto(f"{server.url}/sign-in")
    sign_in_plainly(page)
    page.goto(f"{server.url}/monitor")
    assert page.locator("#verdict h1").inner_text()
    page.get_by_role("link", name="24h").click()
    assert page.locator('.ranges [aria-current="true"]').inner_text() == "24h"
    page.context.close()


def sign_in_plainly(page: Page) -> None:
    from lab.server import EMAIL, PASSWORD

    page.locator("input[name=email]").fill(EMAIL)
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("[type=submit]").first.click()
    page.wait_for_load_state()
