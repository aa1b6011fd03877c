"""Is it mended? A real nginx refuses WebSocket; its admin sees that without an account, mends it, and all are live."""

import re
import time
from collections.abc import Callable

import pytest
from lab.browser import assert_clean, new_page, pictures, sign_in, wait_for, wait_state
from lab.nginx import Nginx
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
IDLE_S = 6  # of silence: more than the 5 s that prove a WebSocket
StartServer = Callable[..., Server]
StartNginx = Callable[[str, Server], Nginx]


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """One whose polls are held for a short time, so that a test of them is short."""
    return start_server(poll_longest_hold=6, trusted_proxies="127.0.0.1")


def run_test(page: Page) -> str:
    """Presses Run test; the verdict."""
    page.evaluate(f"document.getElementById('check').dataset.idleS = '{IDLE_S}'")
    page.locator("[data-check=run]").click()
    page.locator("#check[aria-busy=true]").wait_for(timeout=5000)
    page.locator("#check[aria-busy=false]").wait_for(timeout=60_000)
    return page.locator("#check-verdict").get_attribute("data-verdict") or ""


def letter_of(page: Page, url: str) -> str:
    """The letter to the network's admin, after a test that failed."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{url}/connection")
    assert run_test(page) == "polling"
    page.locator("[data-check=copy]").click()
    wait_for(page, lambda: "Copied" in (page.locator("[data-check=copy]").text_content() or ""), 3, "it is copied")
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_mended(server: Server, browser: Browser, page: Page, start_nginx: StartNginx) -> None:
    """From the letter to "live again"."""
    proxy = start_nginx("deny", server)
    sign_in(page, proxy.url)
    wait_state(page, "polling", timeout=30)
    link = re.search(rf"{re.escape(proxy.url)}/network-test#[\w.-]+", letter_of(page, proxy.url))
    assert link, "the letter has the link"
    page.goto(proxy.url)
    wait_state(page, "polling", timeout=30)

    admin = new_page(browser)  # without an account
    admin.goto(link[0])
    admin.locator("#ticket[data-state=there]").wait_for()
    assert run_test(admin) == "polling"
    upper, lower = admin.locator("[data-line=socket]"), admin.locator("[data-line=requests]")
    assert (upper.get_attribute("data-state"), lower.get_attribute("data-state")) == ("broken", "open")
    assert upper.locator(".gap").get_attribute("x") == "50%"
    assert (admin.locator("#way-words").text_content() or "").startswith("3. Does WebSocket open? No")
    assert "nginx" in (admin.locator("[data-slot=product]").text_content() or "")
    assert "proxy_set_header Upgrade $http_upgrade;" in admin.locator("#check-verdict").inner_text()
    assert admin.locator("#ticket").get_attribute("data-state") == "not-yet"
    pictures(admin, "network-test-broken")

    proxy.change("good")
    passed = 0
    while run_test(admin) != "live" and passed < 3:  # an old worker of nginx may answer once more
        passed += 1
    assert admin.locator("#ticket").get_attribute("data-state") == "mended", admin.locator("#ticket").text_content()
    mended_at = time.monotonic()
    wait_state(page, "connected", timeout=10)
    print(f"\nthe polling page was live {time.monotonic() - mended_at:.1f} s after the verdict")
    assert upper.get_attribute("data-state") == "open"
    assert admin.locator("#way-words").text_content() == "No break: both ways are open."
    pictures(admin, "network-test-mended")
    assert_clean(admin)

    operator = page.context.new_page()

    def says() -> bool:
        operator.goto(f"{proxy.url}/monitor")
        return bool(
            re.search(r"mended \d\d:\d\d, 1 person live again", operator.locator("#monitor .feed").inner_text())
        )

    wait_for(operator, says, 20, "the monitor says so")
    pictures(operator, "network-test-monitor")
    cookies = {cookie["name"]: cookie for cookie in admin.context.cookies()}
    assert [name.rpartition("_")[2] for name in cookies] == ["test"], "and no other cookie"
    assert "#" not in proxy.access_log() and link[0].partition("#")[2] not in proxy.access_log() + server.log_text(
        10**7
    )
    admin.context.close()


def test_links_that_do_not_work(server: Server, page: Page) -> None:
    """Each says what to do, and tests nothing."""
    for fragment, state, words in (("", "missing", "Copy all of it"), ("#WyJ4.abc", "altered", "ask who sent it")):
        page.goto(f"{server.url}/healthz")
        page.goto(f"{server.url}/network-test{fragment}")
        page.locator(f"#ticket[data-state={state}]").wait_for()
        assert words in (page.locator("#ticket").text_content() or "")
        page.locator("[data-check=run]").click()
        page.wait_for_timeout(300)
        assert page.locator("li[data-probe=http]").get_attribute("data-level") == "waiting"
    pictures(page, "network-test-altered")
    assert_clean(page)
