"""The knowledge folder in Chromium: by an operator, with JavaScript and without, wide and narrow, light and dark."""

from collections.abc import Iterator

import pytest
from lab.browser import NARROW, assert_clean, new_page, pictures, sign_in
from lab.http import JSON, Client
from lab.people import unconfirm
from lab.processes import wait_for
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

FILE = {"name": "office-handbook.md", "mimeType": "text/markdown"}
HANDBOOK = "# Office handbook\n\n## Espresso machine\nIt stands on the second floor.\n\nAsked as: where is the coffee\n"


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all."""
    with Server(tmp_path_factory.mktemp("knowledge"), assistant_pace=100000) as running:
        yield running


@pytest.fixture
def plain(browser: Browser) -> Iterator[Page]:
    """A page without JavaScript, as narrow as a phone."""
    page = new_page(browser, java_script_enabled=False, viewport={"width": NARROW[0], "height": NARROW[1]})
    yield page
    page.context.close()


def assert_fits(page: Page) -> None:
    """Nothing is wider than a phone."""
    page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    page.wait_for_timeout(60)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= NARROW[0], f"{width} px wide"


def test_an_operator_without_javascript(server: Server, plain: Page) -> None:
    """Upload, find, replace, be refused, preview, remove."""
    sign_in(plain, server.url)
    plain.goto(f"{server.url}/knowledge")
    plain.locator("#upload_files").set_input_files({**FILE, "buffer": HANDBOOK.encode()})
    plain.get_by_role("button", name="Upload").click()
    assert "Added: office-handbook.md" in plain.locator(".outcome").inner_text()
    plain.locator("#q").fill("where is the coffee")
    plain.get_by_role("button", name="Find").click()
    assert plain.locator(".verdict").inner_text().startswith("Quoted.")
    plain.locator("#upload_files").set_input_files({**FILE, "name": "Büro.md", "buffer": b"x"})
    plain.get_by_role("button", name="Upload").click()
    assert "Rename it" in plain.locator(".alert").inner_text()
    plain.locator("#source").fill(HANDBOOK)
    plain.get_by_role("button", name="Preview").click()
    assert "second floor" in plain.locator("article").inner_text()
    plain.get_by_role("button", name="Remove office-handbook.md").click()
    assert plain.locator(".outcome").inner_text() == "Removed: office-handbook.md."


def test_the_page_in_pictures(server: Server, page: Page) -> None:
    """With files, questions and a preview on it."""
    client = Client(server.url).sign_in()
    for body in ("Where do we keep the zzyzx?", "How do I cook a backup soup for twelve hungry guests?", "quux? " * 60):
        client.create(body)
    client.post("/knowledge/start", JSON, words="Nothing about single sign-on.")
    sign_in(page, server.url)
    page.goto(f"{server.url}/knowledge")
    files = [("office-handbook.md", HANDBOOK), ("privacy.md", "# Our privacy\n\nAsk Jo.\n"), ("sizing.md", "")]
    files += [
        ("A document with a long name and with spaces in it.md", "# A document whose title is rather long\n\nText.")
    ]
    files += [("glossary.txt", "brew: espresso\n")]
    page.locator("#upload_files").set_input_files(
        [{**FILE, "name": name, "buffer": text.encode()} for name, text in files]
    )
    page.get_by_role("button", name="Upload").click()
    page.locator(".outcome").wait_for()
    assert_fits(page)
    pictures(page, "knowledge")
    wait_for(lambda: page.reload() and page.locator("a[href*='asked=']").count() == 3, 20, "the questions are counted")
    page.locator("a[href*='asked=']", has_text="backup soup").click()
    page.locator(".verdict").wait_for()
    assert page.locator("#q").input_value().startswith("how do i cook")
    assert_fits(page)
    page.locator("#try_it").scroll_into_view_if_needed()
    page.locator("#asked_for").evaluate("e => e.scrollIntoView()")
    pictures(page, "knowledge-asked")
    page.locator("#source").fill(HANDBOOK)
    page.get_by_role("button", name="Preview").click()
    page.locator("article").wait_for()
    assert_fits(page)
    page.locator("#preview_it").evaluate("e => e.scrollIntoView()")
    pictures(page, "knowledge-preview")
    page.locator("#try_it").evaluate("e => e.scrollIntoView()")
    page.locator("#q").fill("where is the coffee")
    page.get_by_role("button", name="Find").click()
    page.locator(".verdict").wait_for()
    page.locator("#try_it").evaluate("e => e.scrollIntoView()")
    pictures(page, "knowledge-try")
    unconfirm(server)
    page.goto(f"{server.url}/knowledge")
    assert page.locator("#upload_files").count() == 0 and page.locator("input[name=password]").is_visible()
    assert_fits(page)
    page.goto(f"{server.url}/knowledge/start")
    page.locator("#words").fill("The screenshots are missing.")
    page.locator("#words").scroll_into_view_if_needed()
    assert_fits(page)
    pictures(page, "knowledge-did-not-help")
    page.get_by_role("button", name="Did not help").click()
    page.locator(".outcome").wait_for()
    assert_fits(page)
    assert_clean(page)
