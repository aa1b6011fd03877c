"""A network without WebSocket is remembered between pages; one that allows it again is found out (issue 4)."""

import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from lab.browser import new_page, record, sign_in, state, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


def usable(page: Page) -> float:
    """From the first attempt, which must be a poll's, to its answer (ms)."""
    polls = [n for n in record(page, "net") if "/changes" in n["url"]]
    done = min(n["done"] for n in polls if n["status"] in (200, 204))
    assert all(socket["at"] > done for socket in record(page, "sockets")), "no upgrade before it is usable"
    return float(done - polls[0]["at"])


def remembered(page: Page) -> float:
    """How many failures this browser remembers, of all networks."""
    return float(page.evaluate(REMEMBERED))


REMEMBERED = """() => {
  const key = Object.keys(localStorage).find((name) => name.endsWith(":networks"))
  return Object.values(JSON.parse(localStorage[key] ?? "{}")).reduce((sum, network) => sum + network.failed, 0)
}"""


def test_the_third_page_begins_by_polling_and_websocket_is_found_again(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page
) -> None:
    """Upgrades hang. The third page asks for none before it is usable; allowed again, they carry within seconds."""
    proxy = start_proxy(start_server(assistant="off"))
    proxy.upgrade = "hang"
    sign_in(page, proxy.url)
    for count in (1, 2):
        wait_state(page, "polling")
        wait_for(page, lambda least=count: remembered(page) > least - 0.1, 15, "it is remembered")
        assert page.locator("#connection-status[data-reason=upgrade-hung]").count()
        page.reload()
    times = []
    for _ in range(3):
        wait_state(page, "polling")
        times.append(usable(page))
        page.reload()
    print(f"usable after {times} ms")
    assert statistics.median(times) < 300, "no head start is waited for"
    proxy.upgrade = "pass"
    since = time.time()
    wait_state(page, "connected", timeout=30)
    print(f"back on WebSocket after {time.time() - since:.1f} s, state {state(page)}")


# As if WebSocket had always worked in this browser.
TRUSTING = """() => {
  const key = Object.keys(localStorage).find((name) => name.endsWith(":networks"))
  const networks = JSON.parse(localStorage[key])
  for (const network of Object.values(networks)) Object.assign(network, { worked: 9, failed: 0 })
  localStorage[key] = JSON.stringify(networks)
}"""


def failures(server: Server) -> float:
    """How many failures the server remembers, of all networks."""
    with closing(sqlite3.connect(server.data / "chat.db")) as database:
        return float(database.execute("SELECT total(failed) FROM network_memory").fetchone()[0])


def test_a_persons_next_browser_begins_by_polling(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page, browser: Browser
) -> None:
    """Upgrades are refused to two pages. A new browser, with nothing of its own, asks for none before it is usable."""
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    proxy.upgrade = "refuse"
    sign_in(page, proxy.url)
    for count in (1, 2):
        wait_state(page, "polling")
        wait_for(page, lambda least=count: failures(server) > least - 0.1, 10, "the server knows")
        if count == 1:
            page.reload()
    other = new_page(browser)
    try:
        sign_in(other, proxy.url)
        wait_state(other, "polling")
        print(f"usable after {usable(other)} ms")
        page.evaluate(TRUSTING)
        page.reload()
        wait_state(page, "polling")
        polls = [n["at"] for n in record(page, "net") if "/changes" in n["url"]]
        assert record(page, "sockets")[0]["at"] <= polls[0], "a browser that knows better is not overruled"
        proxy.upgrade = "pass"
        wait_state(other, "connected", timeout=30)
    finally:
        other.context.close()
