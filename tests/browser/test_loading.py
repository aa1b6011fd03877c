"""The page comes alive whatever becomes of one of its files; where it cannot, it says so, and works as a plain page."""

import uuid
from collections.abc import Callable, Iterator

import pytest
from lab.browser import assert_clean, messages, new_page, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy, Seen
from lab.http import Client
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
ALIVE_S = 60  # some 1.5 s until the watchdog looks, pauses, a busy machine
HOW = ["429", "503", "cut"]
FILES = ["js/app.js", "js/check/check.js", "js/watchdog/watchdog.js", "vendor/htmx-4.0.1.min.js", "css/all.css"]
SOME = {
    ("js/app.js", "429"),
    ("js/app.js", "cut"),
    ("js/check/check.js", "503"),
    ("js/watchdog/watchdog.js", "cut"),
    ("vendor/htmx-4.0.1.min.js", "429"),
    ("css/all.css", "503"),
}
EACH = [
    pytest.param(name, how, marks=() if (name, how) in SOME else pytest.mark.slow, id=f"{name}-{how}")
    for name in FILES
    for how in HOW
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all."""
    with Server(tmp_path_factory.mktemp("loading"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def proxy(shared: Server) -> Iterator[FaultProxy]:
    """What stands before it."""
    with FaultProxy(shared.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def visit(shared: Server, proxy: FaultProxy, browser: Browser) -> Iterator[Callable[[], Page]]:
    """Makes pages of browsers that are signed in and have none of the product's files; they close with the next one."""
    first = new_page(browser)
    sign_in(first, proxy.url)
    state = first.context.storage_state()
    pages = [first]

    def make() -> Page:
        pages.pop().context.close()
        proxy.spoil = lambda _: ""
        pages.append(new_page(browser, storage_state=state))
        return pages[0]

    yield make
    pages[0].context.close()


@pytest.fixture
def url(proxy: FaultProxy, me: Client) -> str:
    """A conversation's page."""
    conversation = str(uuid.uuid4())
    me.create("A conversation", conversation)
    return f"{proxy.url}/c/{conversation}"


def once(name: str, how: str) -> Callable[[Seen], str]:
    """The first request for this file fails, whatever stands before its name."""
    left = [how]
    return lambda seen: left.pop() if left and seen.path.endswith(f"/{name}") else ""


def always(*names: str) -> Callable[[Seen], str]:
    return lambda seen: "429" if seen.path.endswith(names) else ""


def assert_alive(page: Page, text: str) -> None:
    """Scripts, styles and polls are there, and what is written goes out once."""
    wait_state(page, "connected", timeout=ALIVE_S)
    styled = (
        "() => [...document.querySelectorAll('link[rel=stylesheet]')].every(link => link.sheet?.cssRules.length > 0)"
    )
    wait_for(page, lambda: page.evaluate(styled), ALIVE_S, "all styles")
    wait_for(page, lambda: page.evaluate("Boolean(window.htmx)"), ALIVE_S, "htmx")
    assert not page.locator(".late").is_visible()
    page.locator("#composer textarea").press("End")
    page.locator("#composer textarea").press("Enter")
    wait_for(page, lambda: [(m["text"], m["state"]) for m in messages(page)][1:] == [(text, "sent")], 10, "sent, once")


@pytest.mark.parametrize(("name", "how"), EACH)
def test_one_file_that_fails_once_is_asked_for_again(
    visit: Callable[[], Page], proxy: FaultProxy, url: str, name: str, how: str
) -> None:
    """Each file of the page in turn: rate-limited, refused, or cut. What is typed meanwhile stays."""
    page = visit()
    proxy.spoil = once(name, how)
    page.goto(url if not name.startswith("js/check/") else f"{proxy.url}/connection")
    if name.startswith("js/check/"):
        page.locator("#check[data-alive]").wait_for(timeout=ALIVE_S * 1000, state="attached")
        return
    page.locator("#composer textarea").fill("typed meanwhile")
    assert_alive(page, "typed meanwhile")
    assert page.evaluate("window.lab.violations") == []


def test_a_proxy_that_lets_few_requests_through_only_slows_it(
    visit: Callable[[], Page], proxy: FaultProxy, url: str
) -> None:
    """Three static files at first, then one a second: as nginx's limit_req does it."""
    page = visit()
    room = [3.0, 0.0]

    def limit(seen: Seen) -> str:
        if not seen.path.startswith("/static/"):
            return ""
        room[0] = min(3.0, room[0] + (seen.at - room[1]))
        room[1] = seen.at
        room[0] -= 1 if room[0] >= 1 else 0
        return "" if room[0] >= 1 else "429"

    proxy.spoil = limit
    page.goto(url)
    page.locator("#composer textarea").fill("slowly")
    wait_state(page, "connected", timeout=60)
    assert_alive(page, "slowly")


def test_one_that_is_never_there_is_said_and_the_form_works(
    visit: Callable[[], Page], proxy: FaultProxy, url: str
) -> None:
    """Neither the app nor the watchdog: the page as it is served says how to go on."""
    page = visit()
    proxy.spoil = always("app.js", "watchdog.js")
    page.goto(url)
    late = page.locator(".late")
    assert not late.is_visible(), "not at once"
    late.wait_for(timeout=20_000)
    assert "You can write and send all the same" in late.inner_text()
    page.locator("#composer textarea").fill("by form")
    page.locator("#composer button[type=submit]").click()
    wait_for(page, lambda: [m["text"] for m in messages(page)][1:] == ["by form"], 10, "it is sent and shown")
    proxy.spoil = lambda _: ""
    page.reload()
    wait_state(page, "connected")
    assert_clean(page)


def test_one_that_ran_and_failed_is_not_asked_for_for_ever(visit: Callable[[], Page], url: str) -> None:
    """It would fail again; each round would be some thirty files under a name that browsers keep for a year. One can
    write and send all the same."""
    page, again = visit(), []
    page.add_init_script("window.ResizeObserver = class { constructor() { throw new Error('planted') } }")
    page.on("request", lambda request: again.append(request.url) if "js/app.js" in request.url else None)
    page.goto(url)
    page.wait_for_selector("body[data-started]")
    page.wait_for_timeout(4000)  # the watchdog has looked by then, and would have begun a second round
    assert len(again) <= 1, again
    page.locator("#composer textarea").fill("by form")
    page.locator("#composer textarea").press("Enter")
    wait_for(page, lambda: [m["text"] for m in messages(page)][1:] == ["by form"], 10, "it is sent and shown")
