"""Alerts in a real Chromium: a network without WebSocket is told to an operator who sits in it, and polls like all."""

from collections.abc import Callable
from contextlib import ExitStack, closing

from lab.browser import new_page, sign_in, wait_state
from lab.nginx import Nginx
from lab.people import add_people
from lab.processes import wait_for
from lab.server import EMAIL, Server
from playwright.sync_api import Browser
from test_alerts_served import LOOK_S, MINUTE, hurry, measures, state_of

from chatapp.store import now_ms

StartServer = Callable[..., Server]


def roll_up(server: Server) -> None:
    """As if the server had run for a minute."""
    now = now_ms()
    with measures(server) as connection:
        newest = now - now % MINUTE - MINUTE
        connection.execute("INSERT OR IGNORE INTO rollups (span, start, data) VALUES ('m', ?, '{}')", (newest,))


def test_a_network_without_websocket_is_told_to_an_operator_in_it(
    start_server: StartServer, start_nginx: Callable[[str, Server], Nginx], browser: Browser
) -> None:
    server = start_server(assistant="off")
    emails = [f"person{number}@example.org" for number in range(4)]
    add_people(server, *emails)
    nginx = start_nginx("headers", server)
    with ExitStack() as stack:
        pages = {one: new_page(browser) for one in (EMAIL, *emails)}
        for email, page in pages.items():
            stack.enter_context(closing(page.context))
            sign_in(page, nginx.url, email)
        for page in pages.values():
            wait_state(page, "polling")
        roll_up(server)
        wait_for(lambda: state_of(server, "polling-share") == "pending", 2 * LOOK_S, "reports, and a look of the rules")
        hurry(server, "polling-share")
        ada = pages[EMAIL]
        entry = ada.locator("#conversations a", has_text="Operations")
        entry.wait_for(timeout=1000 * LOOK_S)  # by a poll, without a reload
        entry.click()
        message = ada.locator("article.message .body")
        message.wait_for()
        words = message.inner_text()
        assert "5 of 5 people poll: in network" in words and "WebSocket" in words, words
        assert "with the headers Upgrade and Connection" in words, "the setting that helps"

        ada.goto(f"{nginx.url}/monitor")
        ada.get_by_role("button", name="I take care").click()
        ada.get_by_text("Ada Admin takes care").wait_for()
        ada.get_by_role("button", name="Silence 1 h").click()
        ada.get_by_text("silent until").wait_for()
        ada.wait_for_timeout(6000)  # the page renews itself by htmx
        ada.get_by_role("button", name="End the silence").click()
        ada.get_by_role("button", name="Silence 1 h").wait_for()
        ada.get_by_role("link", name="All incidents").click()
        assert "5 of 5 people poll" in ada.locator(".incidents").inner_text()
