"""Account, people and audit in Chromium: by keyboard and without JavaScript, wide and at 390 px, light and dark."""

from collections.abc import Iterator

import pytest
from lab.browser import NARROW, assert_clean, new_page, pictures, screenshot, sign_in
from lab.http import Client
from lab.people import unconfirm
from lab.server import EMAIL, PASSWORD, Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all."""
    with Server(tmp_path_factory.mktemp("people"), assistant="off") as running:
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


def tab_to(page: Page, words: str) -> None:
    """Press Tab until the focus is on a control with these words."""
    focus = "e => e.matches('a, button, input, select') ? e.innerText || e.name : ''"
    for _ in range(60):
        page.keyboard.press("Tab")
        if words in str(page.evaluate(f"({focus})(document.activeElement)")):
            return
    raise AssertionError(f"Tab never reaches {words!r}")


def test_own_sessions_by_keyboard(server: Server, page: Page) -> None:
    """From the chat to the page, to the end of another session."""
    agents = ["Mozilla/5.0 (iPhone) Version/19.0 Mobile Safari/604", "Mozilla/5.0 (Windows) Firefox/145.0", "curl/8"]
    others = [Client(server.url) for _ in agents]
    for other, agent in zip(others, agents, strict=True):
        other.learn(other.get("/sign-in").page)
        other.post("/sign-in", {"User-Agent": agent}, email=EMAIL, password=PASSWORD)
    sign_in(page, server.url)
    tab_to(page, "Ada Admin")
    page.keyboard.press("Enter")
    page.locator(".row").first.wait_for()
    assert page.url.endswith("/account")
    assert_fits(page)
    pictures(page, "account")
    tab_to(page, "curl")
    page.keyboard.press("Enter")
    page.locator(".outcome").wait_for()
    assert page.locator(".row").count() == 3
    tab_to(page, "End all others")
    page.keyboard.press("Enter")
    page.locator(".row + .row").wait_for(state="detached")
    assert page.locator(".row").count() == 1
    assert_clean(page)


def test_an_invitation_from_the_form_to_the_chat(server: Server, page: Page, plain: Page) -> None:
    """The operator by keyboard, with JavaScript; the invited person without, on a phone."""
    sign_in(page, server.url)
    tab_to(page, "People")
    page.keyboard.press("Enter")
    page.locator("#invite").wait_for()
    tab_to(page, "email")
    page.keyboard.type("grace@example.org")
    tab_to(page, "Make the link")
    page.keyboard.press("Enter")
    made = page.locator("#made-link")
    made.wait_for()
    assert page.evaluate("document.activeElement.id") == "made-link", "ready to be copied"
    assert_fits(page)
    pictures(page, "people-link-made")
    path = made.input_value()
    assert "CHATAPP_PUBLIC_URL" in page.locator(".outcome").inner_text()
    plain.goto(server.url + path)
    assert "grace@example.org" in plain.locator(".lead").inner_text()
    screenshot(plain, "people-invited-390")
    plain.locator("input[name=name]").fill("Grace Hopper " + "with a long name" * 8)
    plain.locator("input[name=password]").fill("password that is new")
    plain.locator("input[name=password]").press("Enter")
    plain.locator("#composer textarea[name=body]").wait_for()
    assert plain.goto(f"{server.url}/people").status == 404
    page.reload()
    page.locator(".row-link", has_text="Grace").click()
    page.locator("h1", has_text="Grace").wait_for()
    assert_fits(page)
    pictures(page, "people-person")
    page.locator("form[action$='/delete']").scroll_into_view_if_needed()
    pictures(page, "people-person-end")
    page.select_option("#role", "operator")
    page.locator("form[action$='/role'] button").click()
    page.locator(".outcome").wait_for()
    assert plain.goto(f"{server.url}/people").status == 200
    assert_clean(page)


def test_the_own_password_is_asked_for_in_the_page(server: Server, page: Page) -> None:
    """Where it was entered long ago, a form for it stands in the place of what needs it."""
    sign_in(page, server.url)
    unconfirm(server)
    page.goto(f"{server.url}/people")
    assert page.locator("#role").count() == 0
    page.locator("input[name=password]").fill("wrong")
    page.locator("input[name=password]").press("Enter")
    page.locator("input[name=password][aria-invalid]").wait_for()
    assert_fits(page)
    pictures(page, "people-confirm")
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("input[name=password]").press("Enter")
    page.locator("#role").wait_for()
    assert page.url == f"{server.url}/people"
    assert_clean(page)


def test_the_audit_is_filtered_and_exported(server: Server, page: Page) -> None:
    """By keyboard, from the people's page."""
    stranger = Client(server.url)
    stranger.learn(stranger.get("/sign-in").page)
    for _ in range(8):
        stranger.post("/sign-in", email=EMAIL, password="wrong")
    sign_in(page, server.url)
    page.goto(f"{server.url}/people")
    tab_to(page, "Audit")
    page.keyboard.press("Enter")
    page.locator(".events li").first.wait_for()
    assert_fits(page)
    pictures(page, "audit")
    page.locator("#action").select_option("sign-in-failed")
    tab_to(page, "Filter")
    page.keyboard.press("Enter")
    page.wait_for_url("**/audit?*action=sign-in-failed*")
    assert page.locator(".events li").count() == 5
    with page.expect_download() as download:
        page.locator("form[action$='/export'] button").click()
    assert download.value.suggested_filename.endswith(".csv")
    assert len(download.value.path().read_text().splitlines()) == 6
    assert_clean(page)
