"""What a first visit costs on a slow line: requests, bytes on the wire, and how long until the page is connected."""

import statistics
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from lab.browser import new_page, record, sign_in, wait_state
from lab.http import Client
from lab.processes import wait_for
from lab.server import Server
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
LATENCY_MS, BITS_PER_S = 150, 1_600_000
MOST_REQUESTS, MOST_BYTES, LONGEST_MS = 12, 80_000, 1200
VISITS = 5


@pytest.fixture
def url(server: Server, client: Client) -> str:
    """A conversation of a server that has been running for a while: the smallest forms of its files are made."""
    conversation = str(uuid.uuid4())
    client.create("Thanks", conversation)  # with a short answer: the page is weighed, not what it says
    wait_for(lambda: 'data-state="completed"' in client.get(f"/c/{conversation}").text, 20, "the answer is whole")
    page = client.get(f"/c/{conversation}").text
    files = {part.split('"')[0] for part in page.split('="/static/')[1:]}

    def is_made() -> bool:
        takes = {"Accept-Encoding": "br"}
        answers = [client.request("HEAD", f"/static/{name}", headers=takes) for name in files]
        return all(answer.headers["Content-Encoding"] == "br" for answer in answers)

    wait_for(is_made, 20, "the files are packed")
    return f"{server.url}/c/{conversation}"


@pytest.fixture
def visit(server: Server, browser: Browser, url: str) -> Callable[[], tuple[dict[str, int], float]]:
    """Visits the conversation with an empty cache on a slow line, until the page is connected: bytes on the wire by
    address, and milliseconds. What the service worker fetches for later is not counted."""

    def visited() -> tuple[dict[str, int], float]:
        page = new_page(browser)
        try:
            sign_in(page, server.url)
            page.goto("about:blank")
            return _visited(page, url)
        finally:
            page.context.close()

    return visited


def _visited(page: Page, url: str) -> tuple[dict[str, int], float]:
    devtools = page.context.new_cdp_session(page)
    addresses: dict[str, str] = {}
    received: dict[str, int] = {}

    def ask(event: dict[str, Any]) -> None:
        addresses[event["requestId"]] = event["request"]["url"] if "request" in event else event["url"]
        received.setdefault(event["requestId"], 0)

    def finish(event: dict[str, Any]) -> None:
        received[event["requestId"]] += int(event["encodedDataLength"])

    devtools.on("Network.requestWillBeSent", ask)
    devtools.on("Network.webSocketCreated", ask)
    devtools.on("Network.loadingFinished", finish)
    devtools.send("Network.enable")
    devtools.send("Network.clearBrowserCache")
    bytes_per_s = BITS_PER_S / 8
    line = {"latency": LATENCY_MS, "downloadThroughput": bytes_per_s, "uploadThroughput": bytes_per_s}
    devtools.send("Network.emulateNetworkConditions", {"offline": False, **line})
    page.goto(url, wait_until="commit")
    wait_state(page, "connected", timeout=30)
    began = page.evaluate("performance.timeOrigin")
    took = next(one["at"] for one in record(page, "states") if one["status"] == "connected") - began
    return {f"{number} {addresses[key]}": size for number, (key, size) in enumerate(received.items())}, took


def test_a_first_visit_is_few_requests_and_bytes(visit: Callable[[], tuple[dict[str, int], float]]) -> None:
    asked, took = visit()
    print(f"\n{len(asked)} requests, {sum(asked.values()) / 1000:.1f} kB, connected after {took:.0f} ms")
    print("\n".join(f"{size:7} {address}" for address, size in asked.items()))
    assert len(asked) <= MOST_REQUESTS and sum(asked.values()) <= MOST_BYTES


@pytest.mark.slow
def test_a_first_visit_is_quick(visit: Callable[[], tuple[dict[str, int], float]]) -> None:
    """On a quiet machine: the median of five."""
    took = [visit()[1] for _ in range(VISITS)]
    print(f"\nconnected after {', '.join(f'{one:.0f}' for one in took)} ms")
    assert statistics.median(took) <= LONGEST_MS
