"""How long until it is usable again: one read confirmed and one send acknowledged (issue 2, Show 3).

Times are Date.now() in the page and time.time() in the proxy: the same clock. A slow machine is not the product's
fault, so a measurement may be taken again, twice at most; each number is printed (pytest -s, or on failure).
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
from lab.browser import new_page, record, sign_in, state, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
TRIES = 3


@pytest.fixture
def proxy(server: Server, start_proxy: Callable[[Server], FaultProxy]) -> FaultProxy:
    """The server with its defaults behind a fault proxy."""
    return start_proxy(server)


def best(measure: Callable[[], float], limit: float, what: str) -> None:
    """The measurement, at most three times, until it is within the limit."""
    found: list[float] = []
    for _ in range(TRIES):
        found.append(measure())
        print(f"{what}: {found[-1] * 1000:.0f} ms (limit {limit * 1000:.0f})")
        if found[-1] <= limit:
            return
    raise AssertionError(f"{what}: {[round(value, 3) for value in found]} s, limit {limit} s")


def first_read(page: Page) -> float:
    """When the first read was confirmed: a poll answered by the server, or a feed heard on a socket; 0: not yet."""
    polls = [n["done"] for n in record(page, "net") if "/changes" in n["url"] and n["status"] in (200, 204)]
    heard = [socket["heard"] for socket in record(page, "sockets") if socket["heard"]]
    return min(polls + heard, default=0) / 1000


def acknowledged(page: Page, since: float = 0) -> float:
    """When the first message said since then was shown as sent; 0: not yet."""
    articles: list[dict[str, Any]] = list(record(page, "articles").values())
    times = [a["states"]["sent"] / 1000 for a in articles if a["author"] == "user" and "sent" in a["states"]]
    return min((at for at in times if at >= since), default=0)


def usable_after_load(browser: Browser, proxy: FaultProxy, upgrade: str) -> tuple[float, float, float]:
    """Opens a fresh page with that fault and speaks at once: first attempt, refusal (0: none), usable."""
    page = new_page(browser)
    try:
        proxy.heal()
        sign_in(page, proxy.url)
        page.evaluate("() => { localStorage.clear() }")
        page.goto("about:blank")
        proxy.upgrade = upgrade
        since = time.time()
        page.goto(proxy.url, wait_until="domcontentloaded")
        wait_for(page, lambda: record(page, "sockets") or record(page, "states"), 10, "the script runs")
        page.evaluate("window.lab.say('hello ' + Date.now())")
        wait_for(page, lambda: first_read(page) and acknowledged(page, since), 15, "usable")
        usable = max(first_read(page), acknowledged(page, since))
        wait_for(page, lambda: record(page, "sockets"), 10, "a WebSocket was tried")
        attempt = record(page, "sockets")[0]["at"] / 1000
        refused = [seen.answered_at for seen in proxy.upgrades(since) if seen.answered_at]
        return attempt, min(refused, default=0), usable
    finally:
        page.context.close()


def test_hung_upgrade_is_usable_within_a_second(browser: Browser, proxy: FaultProxy) -> None:
    """From the first attempt of a WebSocket that is never answered."""

    def measure() -> float:
        attempt, _, usable = usable_after_load(browser, proxy, "hang")
        return usable - attempt

    best(measure, 1.0, "hung upgrade to usable")


@pytest.mark.parametrize("upgrade", ["refuse", "strip"])
def test_refused_upgrade_is_usable_within_300_ms(browser: Browser, proxy: FaultProxy, upgrade: str) -> None:
    """From the moment of the refusal, or of the server's answer to a request whose Upgrade was stripped."""

    def measure() -> float:
        _, refused, usable = usable_after_load(browser, proxy, upgrade)
        assert refused, "the upgrade was not refused"
        return usable - refused

    best(measure, 0.3, f"{upgrade} to usable")


def test_reset_socket_a_message_gets_through_within_a_second(page: Page, proxy: FaultProxy) -> None:
    """From the reset to the acknowledgement of a message that was said right then."""
    sign_in(page, proxy.url)

    def measure() -> float:
        wait_state(page, "connected", timeout=20)
        page.wait_for_timeout(600)
        reset = time.time()
        assert proxy.reset_sockets()
        page.evaluate("window.lab.say('right after the reset ' + Date.now())")
        wait_for(page, lambda: acknowledged(page, reset), 10, "acknowledged")
        return acknowledged(page, reset) - reset

    best(measure, 1.0, "reset to a message through")


def test_blackholed_socket_a_message_gets_through(page: Page, proxy: FaultProxy) -> None:
    """The socket stays open and swallows everything: the send goes out by POST after one RTO (bar 1.5 s)."""
    sign_in(page, proxy.url)

    def measure() -> float:
        wait_state(page, "connected", timeout=30)
        page.wait_for_timeout(600)
        start = time.time()
        assert proxy.blackhole_sockets()
        page.evaluate("window.lab.say('into the hole ' + Date.now())")
        wait_for(page, lambda: acknowledged(page, start), 15, "acknowledged")
        return acknowledged(page, start) - start

    best(measure, 3.0, "blackhole to a message through")


def test_blackholed_socket_is_noticed_while_nothing_happens(page: Page, proxy: FaultProxy) -> None:
    """Within 8 s (bar 5 s), and a poll is answered beside it within 9.75 s."""
    sign_in(page, proxy.url)

    def measure() -> float:
        page.evaluate("window.lab.states.length = 0")
        page.locator("[data-action=retry]").first.evaluate("button => button.click()")  # forgets earlier cuts
        wait_state(page, "connected", timeout=30)
        page.wait_for_timeout(600)
        start = time.time()
        assert proxy.blackhole_sockets()

        def carried() -> float:
            return next((s["at"] for s in record(page, "states") if s["at"] >= 1000 * start and s["poll"] == "up"), 0)

        wait_for(page, carried, 15, "a poll carries")
        suspected = next(s["at"] for s in record(page, "states") if s["at"] >= 1000 * start and s["ws"] == "suspect")
        assert suspected / 1000 - start <= 8
        return float(carried()) / 1000 - start

    best(measure, 9.75, "idle blackhole to a poll answered")


def test_hung_polls_are_noticed_and_websocket_is_tried_at_once(page: Page, proxy: FaultProxy) -> None:
    """From the moment polls hang (the held one, too, brings nothing) to an upgrade tried because of it: bar 8 s."""
    proxy.upgrade = "refuse"
    sign_in(page, proxy.url)
    wait_state(page, "polling", timeout=20)  # else the reset below may hit the page's own scripts

    def held() -> bool:
        return any("wait=25" in seen.head.target and not seen.ended_at for seen in proxy.seen("/changes"))

    def measure() -> float:
        proxy.hang_paths = ()
        proxy.reset_all()
        wait_state(page, "polling", timeout=20)
        wait_for(page, held, 15, "a held poll")
        start = time.time()
        proxy.hang_paths = ("/changes",)

        def noticed() -> float:
            return next((s["at"] for s in record(page, "states") if s["at"] > 1000 * start and s["pollReason"]), 0)

        wait_for(page, noticed, 20, "it is noticed")
        wait_for(page, lambda: proxy.upgrades(since=noticed() / 1000), 5, "WebSocket is tried")
        return float(proxy.upgrades(since=noticed() / 1000)[0].at) - start

    best(measure, 8.0, "hung polls to WebSocket tried")
    proxy.upgrade = "pass"
    wait_state(page, "connected", timeout=20)


def test_waking_brings_a_verdict_within_3_s(page: Page, proxy: FaultProxy) -> None:
    """The page becomes visible with a socket that died meanwhile (bar 2 s)."""
    sign_in(page, proxy.url)
    wait_state(page, "connected", timeout=30)
    page.wait_for_timeout(600)
    assert proxy.blackhole_sockets()
    start = time.time()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    wait_state(page, "polling", "connected", timeout=5)
    seen = wait_for(
        page,
        lambda: [s["at"] for s in record(page, "states") if s["at"] >= 1000 * start and s["status"] != "connected"],
        5,
        "the socket is given up",
    )
    assert seen[0] / 1000 - start <= 3


def test_back_on_websocket_within_12_s(page: Page, proxy: FaultProxy) -> None:
    """From the moment it works again, while somebody is active on the page."""
    sign_in(page, proxy.url)

    def measure() -> float:
        page.locator("[data-action=retry]").first.evaluate("button => button.click()")  # forgets earlier cuts
        wait_state(page, "connected", timeout=20)
        proxy.upgrade = "hang"
        proxy.reset_sockets()
        wait_state(page, "polling", timeout=10)
        page.evaluate("window.lab.say('active ' + Date.now())")
        page.wait_for_timeout(3000)
        assert state(page) == "polling"
        proxy.upgrade = "pass"
        start = time.time()
        wait_state(page, "connected", timeout=40)
        return time.time() - start

    best(measure, 12.0, "back on WebSocket")
