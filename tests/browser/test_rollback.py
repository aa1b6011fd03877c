"""The server's database is rolled back while a page is away: the page then shows what is there, and nothing else."""

import shutil
from collections.abc import Callable

import pytest
from lab.browser import messages, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("transports", ["websocket,polling", "polling"])
def test_a_page_that_was_away_shows_what_is_there(
    start_server: Callable[..., Server],
    start_proxy: Callable[[Server], FaultProxy],
    page: Page,
    transports: str,
) -> None:
    """As from a machine's snapshot: ten acknowledged messages are lost, fifteen new ones are written."""
    server = start_server(assistant="off", transports=transports)
    client = Client(server.url).sign_in()
    conversation = str(client.create("kept").json["conversation"])
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    copy = server.directory / "copy"
    server.stop()
    shutil.copytree(server.data, copy, ignore=shutil.ignore_patterns("workers"))
    server.start()
    page.goto(f"{proxy.url}/c/{conversation}")
    for number in range(10):
        client.post_message(conversation, f"lost {number}")
    wait_for(page, lambda: [m for m in messages(page) if m["text"] == "lost 9"], 10, "the page shows all of it")
    proxy.network_down()
    server.stop()
    shutil.rmtree(server.data)
    shutil.copytree(copy, server.data)
    server.start()
    for number in range(15):
        assert client.post_message(conversation, f"new {number}").status == 201
    proxy.heal()
    wait_state(page, "connected", "polling", timeout=20)
    expected = ["kept", *(f"new {number}" for number in range(15))]
    wait_for(page, lambda: [m["text"] for m in messages(page)] == expected, 15, "what is there is shown")
