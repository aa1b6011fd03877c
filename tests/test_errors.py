"""Errors by their fingerprint: of the server's code and of browsers, without values, bounded, for operators only."""

import json
import logging
import re
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

from lab.elements import Element
from lab.http import JSON, Client
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.server import Server

from chatapp.monitoring.errors import ErrorLog, browser_error, without_values
from chatapp.parts import Parts
from chatapp.store.error_groups import MOST_GROUPS

StartServer = Callable[..., Server]
CANARY = "canary-91c4"


def groups(client: Client) -> list[Element]:
    answer = client.get("/monitor/errors")
    assert answer.status == 200, answer.text[:300]
    return [row for row in answer.page.one(id="errors").all("tr") if row.has("data-fingerprint")]


def cells(row: Element) -> list[str]:
    return [cell.text.strip() for cell in row.all("td")]


def report(client: Client, page: str, *told: dict[str, Any], start: int = 0) -> int:
    rows = [
        {"client": page, "number": start + number, "at": round(time.time() * 1000), "type": "error", "data": one}
        for number, one in enumerate(told)
    ]
    return client.post("/connection/events", JSON, events=json.dumps(rows)).status


def test_the_page_is_the_operators(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    add_people(server, "grace@example.org")
    for other in (Client(server.url), signed_in(server, "grace@example.org")):
        assert other.request("GET", "/monitor/errors").status == 404
        assert other.request("GET", "/monitor/errors/").status == 404
    operator = Client(server.url).sign_in()
    assert groups(operator) == [] and "None." in operator.get("/monitor/errors").text
    assert operator.get("/monitor").page.one("a", href="/monitor/errors").text == "Errors"


def test_a_real_mistake_of_the_server_is_one_group(start_server: StartServer) -> None:
    """A table is gone: pages answer 500, and the log has it. The list says where, and has no value of a statement."""
    server = start_server(assistant="off", workers=2)
    me = Client(server.url).sign_in()
    with closing(sqlite3.connect(server.data / "chat.db", timeout=10)) as database:
        database.execute("DROP TABLE audit")
    for _ in range(3):
        assert me.request("GET", f"/audit?q={CANARY}").status == 500
    wait_for(lambda: sum(int(cells(row)[2]) for row in groups(me)) >= 3, 15, "they are listed")
    (row,) = groups(me)
    assert row.get("data-side") == "server" and cells(row)[2] == "3"
    assert row.one("summary").text == "OperationalError in page, chatapp/store/audit.py"
    sample = row.one("pre").text
    assert re.search(r"chatapp/views/audit\.py, line \d+, in \w+", sample) and "OperationalError" in sample
    assert CANARY not in me.get("/monitor/errors").text and "SELECT" not in sample
    assert me.get("/healthz").status == 200


def test_a_browsers_errors_are_grouped_and_lose_their_values(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    me, page = Client(server.url).sign_in(), str(uuid.uuid4())
    place = f"{server.url}/static/0-en/js/app.js:7"
    told = [{"message": f"x is not {number} of '{CANARY}'", "at": place} for number in range(3)]
    assert report(me, page, *told) == 204
    assert report(me, page, *told) == 204, "the same again counts once"
    assert report(me, page, {"message": f"at https://x/{CANARY}", "at": f"/c/{CANARY}:9"}, start=10) == 204
    wait_for(lambda: len(groups(me)) == 2, 15, "they are listed")
    known = {row.one("summary").text: row for row in groups(me)}
    assert cells(known["x is not # of …"])[1:3] == ["browser", "3"]
    assert known["x is not # of …"].one("pre").text.split("\n") == ["x is not # of …", "app.js:7"]
    assert known["at …"].get("data-side") == "browser" and CANARY not in me.get("/monitor/errors").text
    with closing(sqlite3.connect(server.data / "metrics.db")) as database:
        stored = database.execute("SELECT data FROM connection_events WHERE type = 'error'").fetchall()
    assert len(stored) == 4 and CANARY not in str(stored), "nor is it in the events"
    for wrong in ([], "text", {"message": {"a": 1}}, {"at": None}, {}):
        assert report(me, page, wrong, start=20) in (204, 400)  # type: ignore[arg-type]


def test_messages_without_values() -> None:
    told = "Unexpected token 'g', \"grace@example.org writes\" is not valid JSON at https://a.example/c/1?x=2 line 17"
    assert without_values(told) == "Unexpected token …, … is not valid JSON at … line #"
    assert without_values("from ada@example.org, 7b36697a-1e8a-41ef-9e0d-d5b477aa44b4") == "from … #"
    assert without_values('cut off "in the mid') == "cut off …"
    assert browser_error({"message": "x" * 900, "at": "javascript:alert(1)"}) == {"message": "x" * 200, "at": ""}
    assert browser_error({"at": "https://x/static/1-en/js/app.js?v=1:10:7"})["at"] == "app.js:10"
    stack = (
        "TypeError: words\n    at f (https://x/static/1-en/js/app.js:3:9)\n    at https://x/static/1-en/js/other.js:5:1"
    )
    assert browser_error({"at": stack})["at"] == "app.js:3"


def mistake(number: int) -> None:
    raise ValueError(f"{CANARY} {number}")


def record(logger: logging.Logger, number: int) -> None:
    try:
        mistake(number)
    except ValueError:
        logger.exception("it failed on %s", CANARY)


def test_the_same_place_is_one_group_and_the_log_waits_for_nobody(parts: Parts) -> None:
    log = ErrorLog(parts.store.error_groups, parts.meters, "1")
    logger = logging.Logger("lab")
    logger.addHandler(log)
    began = time.monotonic()
    for number in range(1000):
        record(logger, number)
    assert time.monotonic() - began < 1
    logger.error("without an exception: %s", CANARY)
    logger.warning("no error")
    assert parts.store.error_groups.newest(10) == [], "nothing is stored while it is logged"
    log.flush_groups()
    first, second = sorted(parts.store.error_groups.newest(10), key=lambda one: one.number)
    assert (first.number, second.number) == (1, 199), "the queue is bounded"
    assert first.title == "lab: without an exception: %s" and second.title == "ValueError"
    assert "in mistake" in second.sample and CANARY not in first.sample + second.sample
    assert parts.meters.counts["errors server"] == 1001
    log.flush_groups()
    record(logger, 1)
    log.flush_groups()
    assert {one.number for one in parts.store.error_groups.newest(10)} == {1, 200}


def test_groups_are_bounded_and_browsers_push_out_none_of_the_servers(parts: Parts) -> None:
    log = ErrorLog(parts.store.error_groups, parts.meters, "1")
    logger = logging.Logger("lab")
    logger.addHandler(log)
    record(logger, 1)
    for number in range(2 * MOST_GROUPS):
        log.note_browser({"message": f"{'a' * number}", "at": "app.js:1"})
        if number % 100 == 99:
            log.flush_groups()
    found = parts.store.error_groups.newest(1000)
    assert [one.side for one in found].count("browser") == MOST_GROUPS
    assert [one.side for one in found].count("server") == 1
    assert any(one.title == "a" * 200 or len(one.title) > 150 for one in found), "the newest are kept"
