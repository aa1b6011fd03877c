"""The status and the banner: they say why, answer each press, and do not jump."""

import signal
from collections.abc import Iterator

import pytest
from lab.browser import NARROW, WIDE, pictures, record, say, sign_in, state, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Page, Route

pytestmark = pytest.mark.browser
GRACE_S = 2.5


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared servers outlive each test; they end with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that gives up soon."""
    options = {"assistant": "off", "max_reconnect_attempts": 7, "reconnect_interval": 1, "poll_max_retries": 0}
    with Server(tmp_path_factory.mktemp("status"), **options) as running:
        yield running


@pytest.fixture(scope="module")
def polling_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Polling is the set-up."""
    options = {"assistant": "off", "transports": "polling", "poll_longest_hold": 0, "poll_interval": 2}
    with Server(tmp_path_factory.mktemp("polling"), **options) as running:
        yield running


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """Before the server."""
    with FaultProxy(server.port) as between:
        yield between


@pytest.fixture
def chat(proxy: FaultProxy, page: Page) -> Page:
    """Connected."""
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    return page


def banner(page: Page) -> str:
    """What the banner says."""
    found = page.locator("#banner:not([hidden]) .notice")
    return " ".join(found.inner_text().split()) if found.count() else ""


def status(page: Page) -> str:
    """What the header says."""
    return " ".join(page.locator("#connection-status").inner_text().split())


# Why


def test_reconnecting_says_that_nothing_answers_and_that_this_device_is_offline(chat: Page, proxy: FaultProxy) -> None:
    """Unreachable, then offline: the record knows, so the banner says it."""
    proxy.network_down()
    wait_state(chat, "reconnecting")
    both = lambda: "The server cannot be reached." in banner(chat) and state(chat) == "reconnecting"  # noqa: E731
    wait_for(chat, both, GRACE_S + 5, "why, before it gives up")
    chat.context.set_offline(True)
    wait_for(chat, lambda: "This device is offline." in banner(chat), 5, "why")
    chat.context.set_offline(False)


def test_a_pause_is_said_and_try_now_says_how_long_it_is(chat: Page, proxy: FaultProxy) -> None:
    """429 with Retry-After: the reason, and a press that cannot be obeyed is answered with the seconds left."""
    proxy.upgrade, proxy.http_error, proxy.http_error_on = "refuse", (429, {"Retry-After": "40"}), "/changes"
    proxy.reset_sockets()
    wait_state(chat, "reconnecting")
    wait_for(chat, lambda: "asked for a pause" in banner(chat), GRACE_S + 5, "why")
    asked = len(proxy.requests)
    chat.locator("#banner [data-action=retry]").click()
    wait_for(chat, lambda: "Wait " in banner(chat) and "Wait " in status(chat), 2, "the press is answered")
    assert len(proxy.requests) == asked, "and the pause is kept"


def test_a_restart_is_called_so_until_the_server_is_back(chat: Page, server: Server) -> None:
    """It said so when it closed; that nothing answers meanwhile is no other reason."""
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    try:
        wait_state(chat, "reconnecting")
        wait_for(chat, lambda: "The server is restarting." in banner(chat), GRACE_S + 5, "why")
        assert {one["reason"] for one in record(chat, "states") if one["status"] == "reconnecting"} == {
            "server-restart"
        }
    finally:
        server.restart()
    wait_state(chat, "connected", "polling", timeout=30)


def test_the_network_is_not_blamed_before_the_server_was_asked(proxy: FaultProxy, page: Page) -> None:
    """Refused upgrades: neutral words first, "blocked" once the server says that it did not refuse."""
    held: list[Route] = []
    page.route("**/connection/test/mark?*", lambda route: held.append(route))
    proxy.upgrade = "refuse"
    sign_in(page, proxy.url)
    wait_state(page, "polling")
    wait_for(page, lambda: banner(page), GRACE_S + 5, "a banner")
    assert "blocked" not in banner(page) and "do not get through at the moment" in banner(page)
    wait_for(page, lambda: held, 5, "the server is asked")
    held[0].continue_()
    wait_for(page, lambda: "blocked on this network" in banner(page), 5, "the network it is")


def test_a_proxy_that_changes_the_address_is_named(proxy: FaultProxy, page: Page) -> None:
    """Host without its port: the server's own refusal is no fault of the network."""
    proxy.host = "127.0.0.1"
    sign_in(page, proxy.url)
    wait_state(page, "polling")
    wait_for(page, lambda: "A proxy changes the server's address" in banner(page), GRACE_S + 5, "who it is")
    assert "this network" not in banner(page)
    page.goto(f"{proxy.url}/connection")
    mend = page.locator("#connection-record [data-slot=mend]")
    wait_for(page, lambda: f"set CHATAPP_PUBLIC_URL to {proxy.url}" in mend.inner_text(), 5, "who can mend it, and how")


def test_a_sign_in_page_in_front_of_the_server_is_named_and_reached_by_reload(chat: Page, proxy: FaultProxy) -> None:
    """302 to another host, as companies' sign-in proxies answer: no dead server, and a way to that page."""
    proxy.upgrade, proxy.http_error, proxy.http_error_on = "refuse", (302, {"Location": "http://127.0.0.2:9/"}), "/"
    proxy.reset_sockets()
    wait_state(chat, "error", timeout=20)
    wait_for(chat, lambda: "asks for a sign-in" in banner(chat), 2, "what it is")
    assert "cannot be reached" not in banner(chat) and not chat.locator("#banner [data-action=retry]").is_visible()
    proxy.heal()
    chat.locator("#banner a", has_text="Reload").click()
    wait_state(chat, "connected")


def test_a_poor_line_says_why(chat: Page) -> None:
    """Next to Live, in words."""
    poor = "{ ...lab.states.at(-1), qualityLevel: 'poor', quality: 30, qualityLimit: 'delay' }"
    # In one go: the next measurement redraws.
    text = chat.evaluate(
        f"""() => {{
          document.dispatchEvent(new CustomEvent('connection:changed', {{ detail: {poor} }}))
          return document.getElementById('connection-status').innerText
        }}"""
    )
    assert " ".join(text.split()).startswith("Live poor: long round trips")


# Presses


def test_retry_is_answered_while_the_server_is_away(chat: Page, proxy: FaultProxy) -> None:
    """It tries, visibly, and says that there was no answer."""
    proxy.network_down()
    wait_state(chat, "error", timeout=20)
    button = chat.locator("#banner [data-action=retry]")
    button.hover()  # which waits until the banner has come to rest
    size = button.bounding_box()
    button.click()
    assert button.inner_text().strip() == "Trying…" and button.get_attribute("aria-busy") == "true"
    assert chat.locator("#connection-status [data-action=retry]").get_attribute("aria-busy") == "true"
    wait_for(chat, lambda: button.inner_text().strip() == "No answer", 6, "what came of it")
    assert button.bounding_box() == size, "nothing moves meanwhile"
    pictures(chat, "retry-answered")
    wait_for(chat, lambda: button.inner_text().strip().startswith("Retry"), 6, "itself again")


def test_try_now_is_answered_where_polling_is_the_set_up(polling_only: Server, page: Page) -> None:
    """There is nothing better to be had: it says that all is up to date."""
    sign_in(page, polling_only.url)
    wait_state(page, "polling")
    page.locator("#connection-status [data-action=retry]").click()
    wait_for(page, lambda: "Up to date" in status(page), 4, "the press is answered")


def test_try_now_is_answered_when_signed_out(polling_only: Server, page: Page) -> None:
    """Still signed out, it says."""
    sign_in(page, polling_only.url)
    wait_state(page, "polling")
    page.context.clear_cookies()
    wait_state(page, "disconnected")
    page.locator("#connection-status [data-action=retry]").dispatch_event("click")  # a dialog lies over it
    wait_for(page, lambda: "Still signed out" in status(page), 6, "the press is answered")
    assert page.locator("#banner a", has_text="Sign in").is_visible()


# The notice of polling


def test_a_hidden_notice_stays_hidden_on_the_next_page(polling_only: Server, page: Page, proxy: FaultProxy) -> None:
    """Where polling is the set-up, and on a network that blocks WebSocket; another network is told once."""
    sign_in(page, polling_only.url)
    wait_for(page, lambda: "switched off" in banner(page), GRACE_S + 5, "the notice")
    page.locator("#banner [data-action=dismiss]").click()
    assert not banner(page)
    page.reload()
    wait_state(page, "polling")
    page.wait_for_timeout(1000 * GRACE_S + 500)
    assert not banner(page)


def test_a_hidden_notice_is_remembered_by_network_and_reason(proxy: FaultProxy, page: Page) -> None:
    """Blocked here: not told again here, but on another network."""
    proxy.upgrade = "refuse"
    sign_in(page, proxy.url)
    wait_for(page, lambda: "blocked on this network" in banner(page), GRACE_S + 5, "the notice")
    page.locator("#banner [data-action=dismiss]").click()
    page.reload()
    wait_state(page, "polling")
    page.wait_for_timeout(1000 * GRACE_S + 500)
    assert not banner(page)
    page.route(page.url, lambda route: route.fulfill(response=(a := route.fetch()), body=elsewhere(a.text())))
    page.reload()
    wait_for(page, lambda: "blocked on this network" in banner(page), GRACE_S + 5, "another network")


def elsewhere(page: str) -> str:
    """The same page, asked from another network."""
    before, _, after = page.partition("&#34;network&#34;: &#34;")
    assert after
    return f"{before}&#34;network&#34;: &#34;000000000000{after[12:]}"


# Standing still

EVERY_BANNER = """() => {
  const found = [], banner = document.getElementById("banner")
  banner.hidden = false
  const reasons = [...document.getElementById("words").content.querySelectorAll("[data-word^=reason-]")]
  for (const state of ["polling", "reconnecting", "error", "disconnected"]) for (const { textContent } of reasons) {
    banner.replaceChildren(document.getElementById(`banner-${state}`).content.cloneNode(true))
    const fill = { reason: textContent, countdown: "58", waiting: "12" }
    for (const slot of banner.querySelectorAll("[data-slot]")) {
      slot.textContent = fill[slot.dataset.slot] ?? slot.textContent
    }
    for (const part of banner.querySelectorAll("[data-if]")) part.hidden = part.dataset.if === "reload"
    const notice = banner.querySelector(".notice"), text = notice.querySelector("p")
    const isCut = text.getBoundingClientRect().height > notice.clientHeight || notice.scrollWidth > notice.clientWidth
    found.push({ state, textContent, height: notice.getBoundingClientRect().height, isCut })
  }
  banner.hidden = true
  return found
}"""


def test_every_banner_has_one_height_and_shows_all_of_its_words(chat: Page) -> None:
    """Each state with each reason, from wide to 320 px."""
    for width, height in (WIDE, (1024, 800), (820, 900), (769, 900), NARROW, (360, 700), (320, 640)):
        chat.set_viewport_size({"width": width, "height": height})
        found = chat.evaluate(EVERY_BANNER)
        assert len({one["height"] for one in found}) == 1, width
        possible = [one for one in found if one["state"] != "error" or "live" not in one["textContent"].lower()]
        assert [one for one in possible if one["isCut"]] == [], width


WATCH = """() => {
  window.heights = new Set()
  const look = () => {
    const notice = document.querySelector("#banner:not([hidden]) .notice")
    if (notice) heights.add(Math.round(notice.offsetHeight))
    requestAnimationFrame(look)
  }
  look()
}"""


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_banner_keeps_its_height_through_an_outage(chat: Page, proxy: FaultProxy, size: tuple[int, int]) -> None:
    """Countdowns, tries, a message that waits, a press, the end: one height."""
    chat.set_viewport_size({"width": size[0], "height": size[1]})
    chat.evaluate(WATCH)
    proxy.network_down()
    wait_state(chat, "reconnecting")
    say(chat, "meanwhile")
    wait_state(chat, "error", timeout=20)
    chat.locator("#banner [data-action=retry]").click()
    chat.wait_for_timeout(1500)
    proxy.upgrade = "refuse"
    proxy.accept_connections()
    wait_state(chat, "polling", timeout=30)
    wait_for(chat, lambda: "blocked" in banner(chat), GRACE_S + 5, "polling is told")
    assert len(chat.evaluate("[...heights]")) == 1
