"""Run test on /connection in a real browser: the same verdicts as the shell's doctor, in plain words."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from lab.browser import assert_clean, record, screenshot, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.haproxy import HAProxy
from lab.http import Client
from lab.nginx import Nginx
from lab.server import Server, run_chatapp
from playwright.sync_api import Page

from chatapp.diagnostics.verdicts import rules_json

pytestmark = pytest.mark.browser
IDLE_S = 6  # of silence: longer than the 4 s after which the lab's proxies cut
HOLD_S = 6

StartServer = Callable[..., Server]


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """One whose polls are held for a short time, so that a test of them is short."""
    return start_server(poll_longest_hold=HOLD_S)


def run_test(page: Page, url: str, before: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Presses Run test; the verdict, the outcome of each probe, what helps and the settings."""
    if not page.context.cookies():  # which are those of the host, whatever the port
        sign_in(page, url)
    page.goto(f"{url}/connection")
    page.evaluate(f"document.getElementById('check').dataset.idleS = '{IDLE_S}'")
    before()
    page.locator("[data-check=run]").click()
    page.locator("#check[aria-busy=false]").wait_for(timeout=60_000)
    assert page.locator("#check-verdict").is_visible()
    found: dict[str, Any] = page.evaluate(
        """() => ({
          verdict: document.getElementById("check-verdict").dataset.verdict,
          worth: document.getElementById("check-verdict").dataset.worth,
          outcomes: Object.fromEntries([...document.querySelectorAll("[data-probe]")].map(
            row => [row.dataset.probe, row.dataset.outcome])),
          answers: [...document.querySelectorAll(".probes .answer")].map(one => one.textContent),
          fixes: [...document.querySelectorAll("[data-slot=fixes] li")].map(one => one.textContent),
          settings: [...document.querySelectorAll("#check-verdict code")].map(one => one.textContent),
        })"""
    )
    assert all(found["answers"]), found
    return found


def test_the_page_judges_by_the_shells_rules(client: Client) -> None:
    """By which rules: tests/test_shipped.py runs the page's judgement of them."""
    [section] = [one for one in client.get("/connection").page.walk() if one.get("id") == "check"]
    assert json.loads(section.get("data-rules") or "") == json.loads(rules_json())


def test_a_good_nginx(server: Server, page: Page, start_nginx: Callable[[str, Server], Nginx]) -> None:
    """All is well, and said so; the figures are there; nothing breaks the page's policy."""
    found = run_test(page, start_nginx("good", server).url)
    assert (found["verdict"], found["worth"], found["fixes"]) == ("live", "good", [])
    assert set(found["outcomes"].values()) == {"ok"}
    assert page.locator("[data-probe=echo] .figure").text_content()
    assert_clean(page)
    screenshot(page, "check-good")


def test_nginx_that_drops_the_upgrade(server: Server, page: Page, start_nginx: Callable[[str, Server], Nginx]) -> None:
    """Polling is left; the fix names nginx's own settings, and the text for the admin has it all."""
    found = run_test(page, start_nginx("strip", server).url)
    assert (found["verdict"], found["outcomes"]["upgrade"]) == ("polling", "stripped")
    assert "proxy_set_header Upgrade $http_upgrade;" in "\n".join(found["settings"])
    assert not any("ProxyPass" in setting for setting in found["settings"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-check=copy]").click()
    wait_for(page, lambda: "Copied" in (page.locator("[data-check=copy]").text_content() or ""), 3, "it is copied")
    letter = page.evaluate("navigator.clipboard.readText()")
    for part in (page.url.split("/connection")[0], "by polling", "drops the upgrade", "proxy_http_version 1.1;", "/ws"):
        assert part in letter, letter


@pytest.mark.slow
def test_short_timeouts(server: Server, page: Page, start_nginx: Callable[[str, Server], Nginx]) -> None:
    """nginx cuts a silent socket and a held poll; HAProxy only the socket."""
    found = run_test(page, start_nginx("short", server).url)
    assert (found["verdict"], found["outcomes"]["idle"], found["outcomes"]["hold"]) == ("unsteady", "cut", "cut")
    with HAProxy("tunnel", server.port) as proxy:
        found = run_test(page, proxy.url)
    assert (found["verdict"], found["outcomes"]["idle"], found["outcomes"]["hold"]) == ("unsteady", "cut", "ok")
    assert "timeout tunnel  1h" in "\n".join(found["settings"])


@pytest.mark.slow
def test_faults(server: Server, page: Page, start_proxy: Callable[[Server], FaultProxy]) -> None:
    """A hung upgrade, a 101 and silence; and what a captive portal, a redirect and a filter look like in a browser."""
    proxy = start_proxy(server)

    def order(**faults: Any) -> Callable[[], None]:
        return lambda: [setattr(proxy, name, value) for name, value in faults.items()] and None

    for mode in ("hang", "mute"):
        found = run_test(page, proxy.url, order(upgrade=mode))
        assert (found["verdict"], found["outcomes"]["upgrade"][:4]) == ("polling", mode.replace("hang", "hung"))
        proxy.heal()
    proxy.http_error_on = "/connection/test"
    for error, verdict in (((200, {}), "portal"), ((302, {"Location": "/x"}), "portal"), ((403, {}), "filtered")):
        found = run_test(page, proxy.url, order(http_error=error))
        assert (found["verdict"], found["worth"]) == (verdict, "unreachable"), found
        proxy.heal()


def test_a_server_that_went_away(server: Server, page: Page, start_proxy: Callable[[Server], FaultProxy]) -> None:
    """The page tests and says so although nothing answers any more."""
    proxy = start_proxy(server)
    found = run_test(page, proxy.url, proxy.network_down)
    assert (found["verdict"], found["outcomes"]["http"], found["outcomes"]["idle"]) == (
        "unreachable",
        "unreachable",
        "skipped",
    )


def test_what_happened_lately(server: Server, page: Page, start_proxy: Callable[[Server], FaultProxy]) -> None:
    """The page shows what earlier pages reported, and what happens while one looks."""
    proxy = start_proxy(server)
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    page.wait_for_timeout(2500)  # reports are sent two seconds after the change
    page.goto(f"{proxy.url}/connection")
    wait_state(page, "connected")
    rows = page.locator("#connection-history li")
    assert rows.last.locator(".chip").get_attribute("data-state") == "connected"
    proxy.upgrade = "refuse"
    proxy.reset_sockets()
    wait_state(page, "polling")
    first = rows.first
    wait_for(page, lambda: first.locator(".chip").get_attribute("data-state") == "polling", 3, "it is shown")
    assert first.locator(".why").text_content()
    assert record(page, "errors") == []


def test_a_drill_in_the_browser(server: Server, page: Page) -> None:
    """The page falls back and returns; /connection shows the drill; the report says what the page did."""
    sign_in(page, server.url)
    wait_state(page, "connected")
    run_chatapp(server, "drill", "start", "refuse", "--seconds", "600", "--no-wait")
    wait_state(page, "polling")
    page.wait_for_timeout(2500)  # reports are sent two seconds after the change
    page.goto(f"{server.url}/connection")
    assert page.locator(".notice.drill").is_visible()
    wait_state(page, "polling")
    screenshot(page, "check-drill")
    page.goto(server.url)
    wait_state(page, "polling")
    run_chatapp(server, "drill", "stop")
    page.evaluate("window.dispatchEvent(new Event('online'))")  # tries WebSocket at once, unless it did already
    wait_state(page, "connected", timeout=30)
    page.wait_for_timeout(2500)
    found = json.loads(run_chatapp(server, "drill", "report", "--json").stdout)
    assert found["fell_back"] >= 1 and found["back"] >= 1, found
    assert found["sockets_ended"] >= 1 and found["fell_back_ms"] < 10_000, found
