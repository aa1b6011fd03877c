"""From `error`, a page that somebody looks at is back soon after the server, and at once where something is sent."""

import time
from collections.abc import Callable

import pytest
from lab.browser import messages, say, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_a_visible_page_is_back_within_ten_seconds_and_enter_is_try_now(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page
) -> None:
    server = start_server(assistant="off", max_reconnect_attempts=2)
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    proxy.network_down()
    wait_state(page, "error", timeout=30)
    proxy.heal()
    began = time.monotonic()
    wait_state(page, "connected", "polling", timeout=20)
    assert time.monotonic() - began < 13, "ten seconds, and an attempt"
    wait_state(page, "connected")
    proxy.network_down()
    wait_state(page, "error", timeout=30)
    proxy.heal()
    began = time.monotonic()
    say(page, "are you there?")
    wait_state(page, "connected", "polling", timeout=20)
    assert time.monotonic() - began < 5, "what is sent asks at once"
    wait_for(page, lambda: [m["state"] for m in messages(page)] == ["sent"], 10, "and it is sent")
