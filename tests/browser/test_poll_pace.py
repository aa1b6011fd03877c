"""Polls in the browser: a pause that the server asks for, and an interval that says why (issue 4)."""

import time
from collections.abc import Callable

import pytest
from lab.browser import say, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser
StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]


def test_a_pause_that_is_asked_for_is_kept_and_counted_down(
    start_server: StartServer, start_proxy: StartProxy, page: Page
) -> None:
    """429 with Retry-After 7: no request before 7 s, one within 9 s; a message typed meanwhile goes then."""
    proxy = start_proxy(start_server(assistant="off"))
    proxy.upgrade = "refuse"
    sign_in(page, proxy.url)
    wait_state(page, "polling")
    page.wait_for_timeout(3000)  # reports of the first moments are sent
    proxy.http_error, proxy.http_error_on = (429, {"Retry-After": "7"}), "/"
    proxy.reset_all()  # the poll that is held just now
    asked = wait_for(page, lambda: [seen for seen in proxy.requests if seen.status == 429], 6, "a refused request")
    say(page, "during the pause")
    countdown = page.locator("#banner [data-slot=countdown]")
    wait_for(page, lambda: countdown.is_visible() and countdown.inner_text().strip(), 5, "a countdown")
    assert 1 <= int(countdown.inner_text()) <= 7
    page.wait_for_timeout(1000)
    proxy.http_error = None
    first = asked[0].answered_at
    refused = [seen for seen in proxy.requests if seen.status == 429]
    assert len(refused) == 1, [seen.head.target for seen in refused]
    wait_for(page, lambda: any(seen.at > first + 1 for seen in list(proxy.requests)), 12, "it asks again")
    pause = min(seen.at - first for seen in proxy.requests if seen.at > first and seen not in refused)
    assert 7 <= pause <= 9, pause
    page.locator('.message[data-author=user][data-state=sent]:not([data-revision="0"])').wait_for()


def test_a_person_who_does_nothing_is_polled_for_less_often_and_reads_why(
    start_server: StartServer, start_proxy: StartProxy, page: Page
) -> None:
    """Plain polls every second while somebody is there, slower later, quick again at a touch."""
    proxy = start_proxy(start_server(assistant="off", transports="polling", poll_longest_hold=0, poll_interval=1))
    page.clock.install()
    sign_in(page, proxy.url)
    page.clock.resume()
    wait_state(page, "polling")
    assert "every 1 s" in page.locator("#connection-status").inner_text()
    page.clock.fast_forward(11 * 60_000)
    page.wait_for_timeout(9000)
    since = time.time()
    assert "every 1 s" not in page.locator("#connection-status").inner_text()
    page.wait_for_timeout(3000)
    assert len(proxy.seen("/changes", since=since)) <= 1
    page.mouse.click(400, 300)
    page.wait_for_timeout(2500)
    assert len(proxy.seen("/changes", since=since + 3)) >= 2
    page.goto(f"{proxy.url}/connection")
    wait_state(page, "polling")
    page.get_by_text("this server does not hold requests open").wait_for()
