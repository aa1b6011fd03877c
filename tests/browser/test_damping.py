"""A socket that keeps breaking, in the browser: left alone, said in words, and Try now; what it foresaw is reported."""

import json
import sqlite3
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from lab.browser import ask, assert_clean, record, say, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser
StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]


def reported(server: Server, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The reason and the data of each event of a type."""
    with sqlite3.connect(server.data / "metrics.db") as database:
        query = "select reason, data from connection_events where type = ? order by id"
        return [(reason, json.loads(data)) for reason, data in database.execute(query, (kind,))]


def test_a_socket_that_is_cut_again_and_again_is_left_alone_until_try_now(
    start_server: StartServer, start_proxy: StartProxy, page: Page
) -> None:
    """101, then cut after 300 ms, for ever: one visible switch at most, then polls in peace, and a reason."""
    proxy = start_proxy(start_server(assistant_pace=3000))
    proxy.upgrade = "cut"
    sign_in(page, proxy.url)
    wait_for(page, lambda: page.locator("#connection-status[data-reason=unstable]").count(), 25, "it is left alone")
    left = sum(one["status"] != "connected" for one in record(page, "states")[1:])
    assert left, "it did poll"
    visible = [one["status"] for one in record(page, "states")]
    switches = sum(before == "connected" != after for before, after in pairwise(visible))
    assert switches <= 1, visible
    page.locator("#banner", has_text="kept breaking").wait_for()
    opened = len(proxy.upgrades())
    assert ask(page, "What is a dead letter queue?")["state"] == "completed"
    page.wait_for_timeout(6000)
    assert len(proxy.upgrades()) == opened, "no further attempt"
    proxy.upgrade = "pass"
    page.locator("#connection-status [data-action=retry]").click()
    wait_state(page, "connected", timeout=6)
    assert_clean(page)


def test_what_was_foreseen_and_the_quality_reach_the_server(
    start_server: StartServer, start_proxy: StartProxy, page: Page
) -> None:
    """A message into a black hole: suspected by `send`, confirmed, with a lead; and a sample of the quality."""
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    say(page, "the first one makes the conversation")
    page.locator(".message[data-author=user][data-state=sent]").wait_for()
    page.wait_for_timeout(600)
    assert proxy.blackhole_sockets()
    say(page, "into the hole")
    [(reason, data)] = wait_for(page, lambda: reported(server, "predict"), 15, "the outcome is reported")
    assert (reason, data["outcome"]) == ("send", "confirmed") and data["lead"] >= 1500
    [(_, quality), *_] = wait_for(page, lambda: reported(server, "quality"), 30, "a sample of the quality")
    assert quality["level"] in ("poor", "fair", "good", "excellent") and 0 < quality["score"] <= 100
    assert page.locator("#connection-status").get_attribute("data-quality")
