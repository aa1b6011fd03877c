"""Several people in one conversation, each in their own browser: by keyboard, at 390 px, one of them by polling."""

from collections.abc import Callable, Iterator

import pytest
from lab.browser import (
    NARROW,
    assert_clean,
    messages,
    new_page,
    pictures,
    press_to,
    say,
    screenshot,
    sign_in,
    wait_for,
    wait_state,
)
from lab.http import JSON, Client
from lab.people import add_people, signed_in
from lab.server import PASSWORD, Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

GRACE = "grace@example.org"


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers, and a link's address."""
    settings = {"workers": 2, "assistant_pace": 4000, "public_url": "http://chat.example.org"}
    with Server(tmp_path_factory.mktemp("together"), **settings) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture
def other(browser: Browser) -> Iterator[Page]:
    """Another person's phone, on which WebSocket does not work."""
    page = new_page(browser, viewport={"width": NARROW[0], "height": NARROW[1]})
    page.add_init_script("window.WebSocket = class { constructor() { throw new Error('blocked') } }")
    yield page
    page.context.close()


def texts(page: Page) -> list[str]:
    return [one["text"] for one in messages(page) if one["author"] == "user"]


def test_invite_join_share_write_and_remove(server: Server, page: Page, other: Page) -> None:
    """The whole way, by keyboard; the joined one has a phone and polls."""
    op = Client(server.url).sign_in()
    url = op.post("/people/invite", JSON, email=GRACE, role="admin").json["url"]
    path = url.removeprefix("http://chat.example.org")
    for _ in range(2):  # a mail scanner opens it
        assert Client(server.url).get(path).status == 200
    other.goto(server.url + path)
    other.locator("input[name=name]").fill("Grace")
    other.locator("input[name=password]").fill(PASSWORD)
    other.keyboard.press("Enter")
    other.locator("#composer textarea[name=body]").wait_for()
    wait_state(other, "polling")

    sign_in(page, server.url)
    wait_state(page, "connected")
    say(page, "How is a backup made?")
    page.locator("article[data-author=assistant][data-state=completed]").wait_for()
    wait_for(page, lambda: "/c/" in page.url, 5, "the conversation's own address")
    conversation = page.url.rpartition("/")[2]
    page.goto(f"{page.url}/people")
    page.locator("input[name=email]").focus()
    page.keyboard.type(GRACE)
    page.keyboard.press("Enter")
    page.locator(".outcome").wait_for()
    pictures(page, "people-of-a-conversation")
    press_to(page, "Back to the conversation")
    wait_state(page, "connected")

    entry = other.locator(f'#conversations li[data-id="{conversation}"] a')
    wait_for(other, lambda: entry.count() == 1, 10, "the conversation is in the list")
    other.locator(".open-side").click()
    entry.click()
    wait_state(other, "polling")
    say(other, "And how is it put back?")
    wait_for(page, lambda: texts(page)[-1:] == ["And how is it put back?"], 10, "it is on the other's screen")
    theirs = page.locator("article[data-author=user]").last
    assert theirs.locator(".who").inner_text() == "Grace" and theirs.get_attribute("data-mine") is None
    assert page.locator("article[data-author=user]").first.get_attribute("data-mine") == ""
    assert page.locator("#people").inner_text().split() == ["2", "people"]
    say(page, "That is the next question.")
    wait_for(other, lambda: texts(other)[-1:] == ["That is the next question."], 10, "it came by a poll")
    assert texts(page) == texts(other)
    assert other.locator("article[data-mine]").count() == 1
    wait_for(page, lambda: page.locator("article[data-state=running], .waiting").count() == 0, 15, "answers end")
    pictures(page, "together")
    screenshot(other, "together-390-polling")
    assert other.evaluate("document.documentElement.scrollWidth") <= NARROW[0]

    other.locator("#composer textarea[name=body]").fill("half a thought")
    page.locator("#people").focus()
    page.keyboard.press("Enter")
    page.locator("h1").wait_for()
    press_to(page, "Remove")
    page.locator(".outcome").wait_for()
    other.locator("#gone:not([hidden])").wait_for(timeout=5000)
    assert other.locator("#composer textarea[name=body]").input_value() == "half a thought"
    assert other.locator("#people").count() == 0
    screenshot(other, "removed-390")
    op.post_message(conversation, "now that we are alone")
    other.wait_for_timeout(1500)
    assert "now that we are alone" not in other.content()
    assert other.goto(f"{server.url}/c/{conversation}").status == 404  # type: ignore[union-attr]
    for one in (page, other):
        assert_clean(one)


def test_anothers_message_with_my_client_id_replaces_nothing(server: Server, page: Page) -> None:
    """On the screen, live and after a reload; also where mine still waits."""
    add_people(server, "eve@example.org", "ann@example.org")
    eve, owner = signed_in(server, "eve@example.org"), signed_in(server, "ann@example.org")
    sign_in(page, server.url, "ann@example.org")
    wait_state(page, "connected")
    say(page, "mine")
    page.locator("article[data-state=completed]").wait_for()
    wait_for(page, lambda: "/c/" in page.url, 5, "the conversation's own address")
    conversation = page.url.rpartition("/")[2]
    assert owner.post(f"/c/{conversation}/people", JSON, email="eve@example.org").status == 204
    chosen = page.locator("article[data-mine]").get_attribute("data-client-id")
    assert eve.post_message(conversation, "stolen", client_id=chosen or "").status == 201
    wait_for(page, lambda: texts(page) == ["mine", "stolen"], 5, "both are shown")
    page.reload()
    wait_state(page, "connected")
    assert texts(page) == ["mine", "stolen"]
    assert page.locator("article[data-mine]").count() == 1
    assert page.evaluate("[...document.querySelectorAll('article')].map(e => e.id).length") == page.evaluate(
        "new Set([...document.querySelectorAll('article')].map(e => e.id)).size"
    )


def test_the_rule_shows_in_the_field_at_once(server: Server, page: Page) -> None:
    add_people(server, "rule@example.org")
    sign_in(page, server.url, "rule@example.org")
    wait_state(page, "connected")
    say(page, "hello")
    page.locator("article[data-state=completed]").wait_for()
    wait_for(page, lambda: "/c/" in page.url, 5, "the conversation's own address")
    conversation = page.url.rpartition("/")[2]
    owner = signed_in(server, "rule@example.org")
    assert owner.post(f"/c/{conversation}/answers", JSON, answers="addressed").status == 204
    box = page.locator("#composer textarea")
    wait_for(page, lambda: "@assistant" in (box.get_attribute("placeholder") or ""), 5, "the field says it")
    say(page, "nobody asked")
    page.locator("article[data-state=sent]", has_text="nobody asked").wait_for()
    page.wait_for_timeout(500)
    assert page.locator("article[data-author=assistant]").count() == 1


KEPT = """async (id) => {
  for (const name of await caches.keys()) {
    for (const { url } of await (await caches.open(name)).keys()) if (url.includes(id)) return true
  }
  return false
}"""


@pytest.mark.parametrize("is_open", [True, False], ids=["while it is open", "at the next visit"])
def test_a_copy_for_reading_offline_goes_with_the_membership(server: Server, page: Page, is_open: bool) -> None:
    """An error of the server's takes none."""
    email = f"kay{int(is_open)}@example.org"
    (number,) = add_people(server, email)
    owner, kay = Client(server.url).sign_in(), signed_in(server, email)
    conversation = owner.create("a secret").json["conversation"]
    own = kay.create("my own").json["conversation"]
    assert owner.post(f"/c/{conversation}/people", JSON, email=email).status == 204
    sign_in(page, server.url, email)
    for one in (own, conversation):
        page.goto(f"{server.url}/c/{one}")
        wait_state(page, "connected")
        wait_for(page, lambda one=one: page.evaluate(KEPT, one), 15, "it is kept")  # type: ignore[misc]
    if not is_open:
        page.goto("about:blank")
    assert owner.post(f"/c/{conversation}/people/{number}/remove", JSON).status == 204
    if not is_open:
        page.goto(f"{server.url}/c/{own}")
    wait_for(page, lambda: not page.evaluate(KEPT, conversation), 15, "the copy is gone")
    assert page.evaluate(KEPT, own)


# The page says that it speaks the first protocol: once, or whenever it is loaded and asked for.
OLD = """
(() => {
  const old = text => text.replace(/("|&#34;)protocol\\1: 2/, "$1protocol$1: 1")
  if (ONCE && sessionStorage.getItem("old")) return
  new MutationObserver(() => {
    const meta = document.querySelector("meta[name=chat-config]")
    if (!meta || meta.content === old(meta.content)) return
    meta.content = old(meta.content)
    sessionStorage.setItem("old", "yes")
  }).observe(document, {childList: true, subtree: true})
  if (ONCE) return
  const ask = window.fetch
  window.fetch = async (url, options) => {
    const answer = await ask(url, options)
    return url === location.href ? new Response(old(await answer.text())) : answer
  }
})()
"""


@pytest.fixture
def old_page(server: Server, page: Page) -> Callable[[str], Page]:
    """Opens a page of the first protocol, and stops its clock: `once` "true", or "false" for a network that serves
    nothing newer."""

    def opened(once: str) -> Page:
        email = f"old-{once}@example.org"
        add_people(server, email)
        conversation = signed_in(server, email).create("").json["conversation"]
        sign_in(page, server.url, email)
        page.add_init_script(OLD.replace("ONCE", once))
        page.clock.install()
        page.goto(f"{server.url}/c/{conversation}")
        wait_state(page, "connected")
        page.evaluate("window.isOld = true")
        return page

    return opened


def test_a_page_of_an_older_protocol_loads_the_new_one_when_it_rests(old_page: Callable[[str], Page]) -> None:
    """At a quiet moment, with what was being written."""
    page = old_page("true")
    assert page.locator("body").get_attribute("data-protocol") == "2"
    page.locator("#composer textarea").fill("half a thought")
    page.clock.run_for(40_000)
    assert page.evaluate("window.isOld"), "somebody is at it"
    with page.expect_navigation():
        page.clock.run_for(40_000)
    wait_for(page, lambda: page.locator("#composer textarea").input_value() == "half a thought", 10, "the draft")


def test_a_page_that_would_come_old_again_stays(old_page: Callable[[str], Page]) -> None:
    page = old_page("false")
    for _ in range(20):
        page.clock.run_for(10_000)
        page.wait_for_timeout(50)
    assert page.evaluate("window.isOld")
