"""Mistakes of the page in a real browser reach the operators' list: what broke and where, nobody's words."""

from collections.abc import Callable

import pytest
from lab.browser import sign_in, wait_for, wait_state
from lab.http import Client
from lab.server import Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser
CANARY = "canary-44d0"
BREAK = f"""
import("/static/broken.js").catch(() => {{}});
setTimeout(() => {{ JSON.parse("{CANARY} writes") }});
Promise.reject(new TypeError("it is no '{CANARY}'"));
for (let number = 0; number < 30; number += 1) setTimeout(() => {{ throw new Error(`again ${{number}}`) }}, 1500);
"""
SCRIPT = f"export const fail = () => {{ throw new RangeError(`beyond '{CANARY}' 17`) }}\nsetTimeout(fail)\n"


def test_an_error_and_a_rejection_are_listed(start_server: Callable[..., Server], page: Page) -> None:
    server = start_server(assistant="off")
    operator = Client(server.url).sign_in()
    page.route("**/static/broken.js", lambda route: route.fulfill(content_type="text/javascript", body=SCRIPT))
    sign_in(page, server.url)
    wait_state(page, "connected")
    page.evaluate(BREAK)

    def listed() -> dict[str, tuple[str, str]]:
        rows = operator.get("/monitor/errors").page.one(id="errors").all("tr")
        cells = {row.one("summary").text: row for row in rows if row.has("data-fingerprint")}
        return {title: (row.all("td")[2].text, row.one("pre").text) for title, row in cells.items()}

    wait_for(page, lambda: any("RangeError" in title for title in listed()), 20, "it is listed")
    wait_for(page, lambda: sum(int(number) for number, _ in listed().values()) == 10, 10, "a page reports ten at most")
    found = listed()
    assert found["Uncaught RangeError: beyond … #"] == ("1", "Uncaught RangeError: beyond … #\nbroken.js:1")
    assert found["it is no …"][0] == "1" and any("is not valid JSON" in title for title in found)
    assert found["Uncaught Error: again #"][0] == "7"
    assert CANARY not in operator.get("/monitor/errors").text
