"""Every page, with something on it, as axe-core sees it: light and dark, wide and on a phone. No violations."""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import pytest
from lab.browser import NARROW, WIDE, ask, new_page, say, sign_in, wait_for, wait_state
from lab.http import JSON, Client
from lab.people import add_people
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

OFFICE = """# Office

| Room | Seats |
|---|---:|
| Blue | 12 |

> [!WARNING]
> Close the windows.

- [x] heated
- [ ] painted

```python
def rooms(): return 12  # all
```

Asked as: where do we meet
"""
FOUND = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations.map(
  ({ id, nodes }) => [id, nodes.map(({ target, failureSummary }) => [target.join(" "), failureSummary])]
)"""


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("axe"), public_url="http://chat.example.org") as running:
        add_people(running, "grace@example.org")
        (running.data / "knowledge").mkdir(exist_ok=True)
        (running.data / "knowledge" / "office.md").write_text(OFFICE)
        yield running


@pytest.fixture(scope="module")
def signed_in(server: Server, browser: Browser) -> Iterator[Page]:
    """Somebody who has asked, been answered, shared, invited."""
    page = new_page(browser)
    sign_in(page, server.url)
    wait_state(page, "connected")
    ask(page, "Where do we meet?")
    ask(page, "zeppelin quantum lasagne")
    wait_for(page, lambda: "/c/" in page.url, 5, "the conversation's own address")
    op = Client(server.url).sign_in()
    op.post("/people/invite", JSON, email="eve@example.org", role="admin")
    op.post(f"/c/{page.url.rpartition('/')[2]}/people", JSON, email="grace@example.org")
    yield page
    page.context.close()


@cache
def axe() -> str:
    return (files("axe_playwright_python") / "axe.min.js").read_text()


def violations(page: Page) -> str:
    """What axe finds, in four looks."""
    found: dict[str, None] = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        for width, height in (WIDE, NARROW):
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(50)
            page.evaluate(axe())
            for rule, places in page.evaluate(FOUND):
                found |= {f"{rule}: {' '.join([where, *why.split()])}": None for where, why in places}
    return "\n".join(found)


def assert_none(page: Page) -> None:
    found = violations(page)
    assert not found, found


PAGES = [
    "/connection",
    "/account",
    "/account/confirm",
    "/audit",
    "/knowledge",
    "/knowledge/office",
    "/knowledge/settings",
    "/monitor",
    "/monitor?range=30d",
    "/monitor/errors",
    "/monitor/events",
    "/monitor/incidents",
    "/people",
    "/network-test",
    "/offline",
    "/nowhere",
]


@pytest.mark.parametrize("path", PAGES)
def test_a_page(server: Server, signed_in: Page, path: str) -> None:
    signed_in.goto(server.url + path)
    assert_none(signed_in)


@pytest.mark.parametrize("path", ["", "/people", "/edit", "/attachments"])
def test_a_conversation(server: Server, signed_in: Page, path: str) -> None:
    signed_in.goto(server.url)
    wait_state(signed_in, "connected")
    signed_in.goto(signed_in.url + path)
    assert_none(signed_in)


def test_menus_and_dialogs(server: Server, signed_in: Page) -> None:
    signed_in.goto(server.url)
    wait_state(signed_in, "connected")
    for dialog in ("rename-dialog", "delete-dialog"):
        signed_in.locator(".open-menu").click()
        assert_none(signed_in)
        signed_in.locator(f"[popovertarget={dialog}]").first.click()
        assert_none(signed_in)
        signed_in.keyboard.press("Escape")


def test_without_a_connection(server: Server, browser: Browser) -> None:
    """What waits to be sent, and the words about it."""
    page = new_page(browser)
    sign_in(page, server.url)
    wait_state(page, "connected")
    page.context.set_offline(True)
    say(page, "This waits.")
    wait_state(page, "reconnecting", "error", "connecting")
    assert_none(page)
    page.context.close()


def test_signing_in(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/sign-in")
    assert_none(page)
    page.locator("input[name=email]").fill("ada@example.org")
    page.locator("input[name=password]").fill("wrong")
    page.keyboard.press("Enter")
    page.locator(".error, .alert").first.wait_for()
    assert_none(page)
