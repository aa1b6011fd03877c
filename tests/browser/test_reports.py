"""What the page's connection went through reaches the server once, also what happened while it was out of reach."""

import sqlite3
import time
from collections.abc import Callable

import pytest
from lab.browser import ask, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.server import Server
from playwright.sync_api import Page, Route

pytestmark = pytest.mark.browser


def stored(server: Server) -> list[tuple[str, int, str, str]]:
    with sqlite3.connect(server.data / "metrics.db") as database:
        query = "select client, number, state_from, state_to from connection_events where type = 'state' order by id"
        return database.execute(query).fetchall()


def test_transitions_are_stored_once_and_survive_a_closed_page(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy], page: Page
) -> None:
    server = start_server()
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    ask(page, "How is a backup restored?")
    wait_for(page, lambda: ("connecting", "connected") in [row[2:] for row in stored(server)], 6, "the first report")
    proxy.network_down()
    wait_state(page, "reconnecting")
    time.sleep(0.5)
    page.goto("about:blank")  # the page goes while the server is out of reach: its beacon is lost, too
    proxy.heal()
    page.goto(proxy.url)
    wait_state(page, "connected")
    wait_for(page, lambda: ("connected", "reconnecting") in [row[2:] for row in stored(server)], 8, "the lost report")
    wait_for(page, lambda: len({client for client, *_ in stored(server)}) == 2, 8, "this page's own report")
    numbered = [row[:2] for row in stored(server)]
    assert len(numbered) == len(set(numbered))


def test_reports_that_are_too_many_are_kept_and_sent_when_the_server_said(server: Server, page: Page) -> None:
    """429 with Retry-After: nothing is lost, nothing is asked before its time, and no transition is needed for it."""
    asked: list[float] = []

    def answer(route: Route) -> None:
        asked.append(time.monotonic())
        if len(asked) > 1:
            return route.continue_()
        said = '{"error": {"code": "rate", "message": "later"}}'
        return route.fulfill(status=429, headers={"Retry-After": "4"}, content_type="application/json", body=said)

    page.route("**/connection/events", answer)
    sign_in(page, server.url)
    wait_state(page, "connected")
    wait_for(page, lambda: len(asked) == 1, 10, "a first report is refused")
    assert not any(row[2:] == ("connecting", "connected") for row in stored(server))
    wait_for(page, lambda: ("connecting", "connected") in [row[2:] for row in stored(server)], 20, "it is sent again")
    assert asked[1] - asked[0] > 3.9
