"""The defaults that the browser owns, observed on the wire: as they are, and changed (issue 2, Show 6)."""

import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from lab.browser import record, say, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser
OK = (200, 204)
HIDDEN = """() => {
  Object.defineProperty(document, "hidden", { get: () => true, configurable: true })
  document.dispatchEvent(new Event("visibilitychange"))
}"""

StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]


def gaps(times: list[float]) -> list[float]:
    return [round(after - before, 2) for before, after in pairwise(times)]


@pytest.mark.parametrize(("settings", "interval"), [({}, 3.0), ({"poll_interval": 1.2}, 1.2)])
def test_polls_that_cannot_be_held_come_at_the_interval(
    start_server: StartServer, start_proxy: StartProxy, page: Page, settings: dict[str, Any], interval: float
) -> None:
    proxy = start_proxy(start_server(transports="polling", poll_longest_hold=0, assistant="off", **settings))
    sign_in(page, proxy.url)
    wait_state(page, "polling")
    since = time.time()
    page.wait_for_timeout(1000 * (4 * interval + 1))
    found = gaps([seen.at for seen in proxy.seen("/changes", since=since)])
    assert len(found) >= 2
    assert all(interval <= gap < interval + 0.7 for gap in found), found


@pytest.mark.parametrize(
    ("settings", "waits"),
    [({}, [3.0, 4.5, 6.75]), ({"poll_interval": 0.6, "poll_backoff": 2, "poll_max_retries": 2}, [0.6, 1.2])],
)
def test_a_poll_that_fails_is_retried_before_polling_counts_as_lost(
    start_server: StartServer, start_proxy: StartProxy, page: Page, settings: dict[str, Any], waits: list[float]
) -> None:
    proxy = start_proxy(start_server(transports="polling", assistant="off", **settings))
    sign_in(page, proxy.url)
    wait_state(page, "polling")
    proxy.http_error = (500, {})
    proxy.reset_all()  # the poll that is held just now
    wait_state(page, "reconnecting", timeout=sum(waits) + 10)
    lost_at = time.time()
    failed = [s.at for s in proxy.seen("/changes") if s.status == 500 and s.at < lost_at]
    found = gaps(failed)[: len(waits)]
    assert len(found) == len(waits), found
    # Jittered by a tenth; a busy machine only makes it later.
    assert all(0.9 * wait - 0.05 <= gap < 1.1 * wait + 0.7 for gap, wait in zip(found, waits, strict=True)), found


@pytest.mark.parametrize(
    ("settings", "attempts", "ceiling"),
    [({}, 10, 5.0), ({"max_reconnect_attempts": 3, "reconnect_interval": 1}, 3, 1.0)],
)
def test_attempts_come_with_growing_jittered_waits_until_they_are_used_up(
    start_server: StartServer,
    start_proxy: StartProxy,
    page: Page,
    settings: dict[str, Any],
    attempts: int,
    ceiling: float,
) -> None:
    proxy = start_proxy(start_server(transports="websocket", assistant="off", **settings))
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    since = time.time()
    proxy.upgrade = "refuse"
    proxy.reset_sockets()
    wait_state(page, "error", timeout=45)
    found = gaps([since, *[seen.at for seen in proxy.upgrades(since=since)][:attempts]])
    assert len(found) == attempts, found
    assert found[0] < 0.8, "the first attempt comes at once"
    expected = [min(ceiling, 0.5 * 2**n) for n in range(attempts - 1)]
    assert all(0.7 * wait <= gap <= wait + 0.5 for wait, gap in zip(expected, found[1:], strict=True)), found
    assert len(set(found[-3:])) > 1 or attempts < 4, "jittered at the ceiling, too"


@pytest.mark.parametrize(
    ("settings", "interval"), [({"heartbeat_interval": 1.5}, 1.5), pytest.param({}, 30.0, marks=pytest.mark.slow)]
)
def test_a_hidden_page_echoes_at_the_heartbeat(
    start_server: StartServer, start_proxy: StartProxy, page: Page, settings: dict[str, Any], interval: float
) -> None:
    proxy = start_proxy(start_server(assistant="off", **settings))
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    page.wait_for_timeout(1500)
    page.evaluate(HIDDEN)
    since = time.time()
    page.wait_for_timeout(1000 * (2 * interval + 1.5))
    echoes = [f.at for f in proxy.frames if f.up and f.at >= since + 0.3 and '"echo"' in f.text]
    found = gaps([since, *echoes])
    assert 1 <= len(echoes) <= 3, found
    assert all(interval - 0.3 <= gap <= interval + 1 for gap in found[1:]), found


def test_a_send_beyond_the_limit_goes_by_post_and_nobody_notices(
    start_server: StartServer, start_proxy: StartProxy, page: Page
) -> None:
    """512 bytes is the limit of a frame, envelope included; the message beyond arrives all the same."""
    proxy = start_proxy(start_server(assistant="off"))
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    say(page, "the first one makes the conversation")
    wait_for(page, lambda: sent(page) == 1, 5, "the first is sent")
    for number, text in enumerate(["short", "ü" * 150, "ü" * 250], start=2):
        say(page, text)
        wait_for(page, lambda n=number: sent(page) == n, 5, f"{text[:10]} is sent")
    sends = [json.loads(f.text) for f in proxy.frames if f.up and '"send"' in f.text]
    assert [send["body"] for send in sends] == ["short", "ü" * 150]
    posts = [s for s in proxy.requests if s.head.method == "POST" and s.path.endswith("/messages")]
    assert len(posts) == 1
    assert {socket["closed"] for socket in record(page, "sockets")[-1:]} == {0}, "and the socket stays"


def sent(page: Page) -> int:
    return page.locator('.message[data-author=user][data-state=sent][data-revision]:not([data-revision="0"])').count()
