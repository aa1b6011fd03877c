"""The monitor, seen by operators only: what the events of real clients make of it, and what the page says."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import uuid4

from headless.client import Client as Headless
from lab.elements import Element
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.server import Server

StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
StartClient = Callable[..., Headless]


def monitor(client: Client, query: str = "") -> Element:
    """The page."""
    answer = client.get(f"/monitor{query}")
    assert answer.status == 200, answer.text[:500]
    return answer.page


def test_nobody_else_sees_it(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    (_,) = add_people(server, "grace@example.org")
    stranger, grace, operator = Client(server.url), signed_in(server, "grace@example.org"), Client(server.url).sign_in()
    nowhere = f"/monitor/pages/{'0' * 8}-0000-4000-8000-{'0' * 12}"
    for path in ("/monitor", "/monitor/", "/monitor?range=1h", nowhere):
        assert stranger.request("GET", path).status == 404, path
        assert grace.request("GET", path).status == 404, path
    assert operator.request("GET", "/monitor").status == 200
    assert operator.request("GET", nowhere).status == 404


def test_an_empty_one_says_so(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    page = monitor(Client(server.url).sign_in())
    verdict = page.one(id="verdict")
    assert (verdict.get("data-level"), verdict.get("data-cause")) == ("ok", "none")
    assert "Nobody is here" in verdict.text
    assert page.one(data_metric="people").get("data-value") == "0"
    for unknown in ("delivery", "round-trip-p95", "session-success"):
        assert page.one(data_metric=unknown).get("data-value") == "", "no data is not 0"
    for name in ("15m", "6h", "24h", "7d", "30d", "never", "%00"):
        monitor(Client(server.url).sign_in(), f"?range={name}")


def events_of(server: Server, kind: str) -> list[dict[str, Any]]:
    """The stored events of a type: their columns, and their data."""
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM connection_events WHERE type = ? ORDER BY id", (kind,)).fetchall()
    return [{**dict(row), **json.loads(row["data"])} for row in rows]


def test_people_who_fall_to_polling_are_seen_with_the_reason(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    server = start_server(assistant="off", workers=2)
    operator = Client(server.url).sign_in()
    add_people(server, "grace@example.org", "bo@example.org")
    proxy = start_proxy(server)
    proxy.upgrade = "refuse"
    live = start_client(server.url, reports=True)
    live.reach("connected")
    wait_for(lambda: "live. Nothing to do" in monitor(operator).one(id="verdict").text, 15, "one is live")
    blocked = [start_client(proxy.url, email=email, reports=True) for email in ("grace@example.org", "bo@example.org")]
    for client in blocked:
        client.reach("polling")

    def refused() -> Element | None:
        page = monitor(operator)  # of either worker: each looks every 2 s
        verdict = page.one(id="verdict")
        is_whole = "2 of 3 people poll" in verdict.text
        return page if is_whole and verdict.get("data-cause") == "upgrade-refused" else None

    page = wait_for(refused, 20, "the cause is found out, and said")
    assert isinstance(page, Element)
    assert page.one(id="verdict").get("data-level") == "degraded"
    assert "the upgrade to WebSocket is refused" in page.one(id="verdict").text
    counts = {name: page.one(data_metric=f"people-{name}").get("data-value") for name in ("live", "polling", "lost")}
    assert counts == {"live": "1", "polling": "2", "lost": "0"}
    story = next(link.get("href") for link in page.all("a") if "/monitor/pages/" in link.get("href"))
    assert "connecting → " in monitor(operator, story.removeprefix("/monitor")).text


def test_the_sentence_leads_to_its_events(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    operator = Client(server.url).sign_in()
    uuids = add_people(server, "grace@example.org", "bo@example.org")
    now = round(time.time() * 1000)
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as database:
        names = "client, number, person, type, transport, state_from, state_to, reason, happened_at, received_at, page"
        for number in range(250):
            page, at = str(uuid4()), now - 1000 * number
            row = (
                page,
                1,
                uuids[number % 2],
                "state",
                "polling",
                "connecting",
                "polling",
                "upgrade-refused",
                at,
                at,
                page,
            )
            more = ("a1b2c3d4e5f6" if number % 2 else "f0f0f0f0f0f0", at)
            database.execute(
                f"INSERT INTO connection_events ({names}, network, at) VALUES ({'?, ' * 12}?)", (*row, *more)
            )
        database.commit()
    seen, path = 0, "/monitor/events?network=a1b2"
    while path:
        page = operator.get(path).page
        rows = page.one("table").all("tr")[1:]
        seen += len(rows)
        assert all("a1b2" in row.text for row in rows)
        older = [link for link in page.all("a") if link.text == "Older events"]
        path = older[0].get("href") if older else ""
    assert seen == 125
    assert len(operator.get(f"/monitor/events?person={uuids[0]}&type=state").page.one("table").all("tr")) == 101
    for odd in (
        "network=%25",
        "before=-1",
        "before=99999999999999999999",
        "since=x",
        "type=';--",
        "reason=%00",
        "agent=a" * 99,
    ):
        answer = operator.request("GET", f"/monitor/events?{odd}")
        assert answer.status == 200, odd
    assert "Nothing." in operator.get("/monitor/events?network=%25").text, "no wildcards"


def test_a_change_that_the_state_machine_does_not_know_is_flagged(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    operator = Client(server.url).sign_in()
    now, page = round(time.time() * 1000), str(uuid4())
    steps = [
        ("disconnected", "connecting", ""),
        ("connecting", "connected", ""),
        ("connected", "connecting", "illegal"),  # planted: nothing leads back
        ("polling", "connected", "gap"),  # planted: the change to polling is missing
    ]
    reports = [
        {"client": page, "number": number, "at": now + number, "type": "state", "from": before, "to": after}
        for number, (before, after, _wrong) in enumerate(steps)
    ]
    assert operator.post("/connection/events", events=json.dumps(reports), now=str(now)).status == 204
    shown = operator.get(f"/monitor/pages/{page}").page
    rows = shown.one("table", css_class="steps").all("tr")[1:]
    assert [row.get("data-wrong") for row in rows][::-1] == [wrong for *_, wrong in steps]
    assert "2 changes do not fit the state machine" in shown.text
