"""What is remembered of networks: the vectors that JavaScript runs too, keys, and clients that come again."""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from headless.client import Client
from lab.elements import parse
from lab.faultproxy import FaultProxy
from lab.http import Client as HttpClient
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.server import Server, run_chatapp

from chatapp.network_memory import MOST_NETWORKS, Network, Networks, common_lesson, network_key, note

NOW = 1_800_000_000_000

VECTORS = json.loads((Path(__file__).parent / "vectors" / "memory.json").read_text())


@pytest.mark.parametrize("scenario", VECTORS, ids=lambda scenario: scenario["name"])
def test_scenario(scenario: dict[str, Any]) -> None:
    """What is kept after each experience."""
    networks: Networks = {}
    for step in scenario["steps"]:
        note(networks, step["key"], step["now"], step["has_worked"], step["kill_gap"])
        assert networks[step["key"]] == pytest.approx(step["entry"]), step
        assert len(networks) == step["count"]


def test_keys_tell_networks_apart_and_name_none() -> None:
    """The same for a /24 or /48, another for another secret; nothing of the address in it."""
    key = network_key("secret", "192.0.2.7")
    assert key == network_key("secret", "192.0.2.200") == network_key("secret", "::ffff:192.0.2.9")
    assert key != network_key("secret", "192.0.3.7") and key != network_key("other", "192.0.2.7")
    assert (
        network_key("s", "2001:db8:1:2::3")
        == network_key("s", "2001:db8:1:ffff::9")
        != network_key("s", "2001:db8:2::")
    )
    assert len(key) == 12 and "192" not in key[:3]
    assert network_key("secret", "") == network_key("secret", "unix") == ""


def test_the_page_carries_the_key(start_server: Callable[..., Server]) -> None:
    """Rendered by the server, the same on each page, without the address."""
    server = start_server(assistant="off")
    client = HttpClient(server.url).sign_in()
    pages = [client.get("/").text for _ in range(2)]
    keys = {json.loads(_config(page))["network"] for page in pages}
    assert len(keys) == 1 and len(keys.pop()) == 12


def _config(page: str) -> str:
    return parse(page).one("meta", name="chat-config").get("content")


def shown(client: HttpClient, name: str = "remembered") -> Any:
    """What the page's config says."""
    return json.loads(_config(client.get("/connection").text))[name]


def report(client: HttpClient, *events: dict[str, Any], number: int = 1, name: str = "") -> int:
    """Events `network` of one page, numbered from `number`, a second apart; the answer's status."""
    now = time.time_ns() // 1_000_000 - 1000 * len(events)
    page = name or str(uuid.uuid4())
    rows = [
        {"client": page, "number": number + count, "at": now + 1000 * count, "type": "network", "data": data}
        for count, data in enumerate(events)
    ]
    return client.post("/connection/events", {"Accept": "application/json"}, events=json.dumps(rows)).status


def lesson(key: str, worked: bool | None = False, kill_gap: float = 0) -> dict[str, Any]:
    """The data of one event."""
    return {"network": key, "worked": worked, "killGap": kill_gap}


@pytest.fixture
def quiet(start_server: Callable[..., Server]) -> Server:
    """A server where nobody answers."""
    return start_server(assistant="off")


def keys(server: Server) -> set[str]:
    """The networks that are remembered of anybody."""
    with closing(sqlite3.connect(server.data / "chat.db")) as database:
        return {row[0] for row in database.execute("SELECT network FROM network_memory")}


def test_what_one_browser_learned_the_next_page_of_the_person_is_told(quiet: Server) -> None:
    """By the rules of `note`, once for each event; nobody else is told, and of no other network."""
    client = HttpClient(quiet.url).sign_in()
    here, page = shown(client, "network"), str(uuid.uuid4())
    assert shown(client) is None
    assert report(client, lesson("0123456789ab")) == 204
    wait_for(lambda: keys(quiet) == {"0123456789ab"}, 5, "another network is remembered")
    assert shown(client) is None
    for _ in range(2):  # the answer to the first was lost: the second changes nothing
        assert report(client, lesson(here), lesson(here), lesson(here, None, 20_000.4), name=page) == 204
    wait_for(lambda: shown(client), 5, "this one is remembered")
    assert report(client, lesson("ffffffffffff")) == 204
    wait_for(lambda: "ffffffffffff" in keys(quiet), 5, "all before it is written, too")
    found = shown(client)
    assert found["failed"] == pytest.approx(2, abs=0.01) and found["worked"] == 0 and found["killGap"] == 20_000
    assert found["at"] <= time.time_ns() // 1_000_000
    assert report(client, lesson(here, True), number=4, name=page) == 204
    wait_for(lambda: shown(client)["worked"] == 1, 5, "a success")
    assert shown(client)["failed"] == pytest.approx(1, abs=0.01)
    other = ("bo@example.org", "a fine long password")
    command = ("admin", "create", "--name", "Bo", "--email", other[0], "--password", other[1])
    assert run_chatapp(quiet, *command).returncode == 0
    assert shown(HttpClient(quiet.url).sign_in(*other)) is None


def test_a_late_report_neither_turns_back_nor_runs_ahead(quiet: Server) -> None:
    """Of a clock that is years fast, and of a page that was closed long ago."""
    client = HttpClient(quiet.url).sign_in()
    here, now = shown(client, "network"), time.time_ns() // 1_000_000
    for at, failures in ((1 << 52, 1), (1000, 2)):
        row = {"client": str(uuid.uuid4()), "number": 1, "at": at, "type": "network", "data": lesson(here)}
        client.post("/connection/events", {"Accept": "application/json"}, events=json.dumps([row]))
        wait_for(lambda count=failures: (shown(client) or {"failed": 0})["failed"] > count - 0.1, 5, "noted")
        assert now <= shown(client)["at"] <= time.time_ns() // 1_000_000


def test_the_oldest_network_makes_room(quiet: Server) -> None:
    """MOST_NETWORKS a person. That a deleted person takes them along: test_people.py."""
    client = HttpClient(quiet.url).sign_in()
    names = [f"{number:012x}" for number in range(MOST_NETWORKS + 1)]
    report(client, *map(lesson, names[:-1]))
    wait_for(lambda: keys(quiet) == set(names[:-1]), 5, "as many as there may be")
    report(client, lesson(names[-1]))
    wait_for(lambda: keys(quiet) == set(names[1:]), 5, "the oldest is gone")


BAD: dict[str, Any] = {
    "no data": None,
    "not an object": "0123456789ab",
    "no key": {"worked": True, "killGap": 0},
    "a long key": lesson("0123456789abc"),
    "not hex": lesson("0123456789aG"),
    "a key with a line's end": lesson("0123456789ab\n"),
    "a number as key": lesson(123456789012),  # type: ignore[arg-type]
    "worked a number": lesson("0123456789ab", 1),  # type: ignore[arg-type]
    "a gap below zero": lesson("0123456789ab", None, -1),
    "an endless gap": lesson("0123456789ab", None, float("inf")),
    "no number as gap": lesson("0123456789ab", None, float("nan")),
    "a gap in words": lesson("0123456789ab", None, "20"),  # type: ignore[arg-type]
}


def test_a_bad_lesson_is_refused_as_other_bad_fields_are(quiet: Server) -> None:
    """With 400, and all that came with it."""
    client = HttpClient(quiet.url).sign_in()
    for name, data in BAD.items():
        assert report(client, lesson("0123456789ab"), data) == 400, name
    assert report(client, lesson("ffffffffffff")) == 204
    wait_for(lambda: keys(quiet), 5, "a good one is remembered")
    assert keys(quiet) == {"ffffffffffff"}


def _failures(client: Client) -> float:
    """How many failures of WebSocket a client remembers, of all networks."""
    return float(sum(one["failed"] for one in client.state["notes"].get("networks", {}).values()))


def test_the_third_client_begins_by_polling_and_still_finds_websocket_again(
    start_server: Callable[..., Server],
    start_proxy: Callable[[Server], FaultProxy],
    start_client: Callable[..., Client],
) -> None:
    """Hung upgrades: the third one does not wait for them; once they work, it is back on WebSocket within seconds."""
    proxy = start_proxy(start_server(assistant="off"))
    proxy.upgrade = "hang"
    notes: dict[str, Any] = {}
    for count in (1, 2):
        with start_client(proxy.url, notes=notes) as client:
            client.reach("polling")
            client.wait(lambda least=count: _failures(client) > least - 0.1, 12, "it is remembered")
            assert client.record["wsReason"] == "upgrade-hung"
    client = start_client(proxy.url, notes=notes)
    client.reach("polling")
    assert not proxy.requests[-1].is_upgrade and client.record["wsReason"] is None, "polls first, nothing tried yet"
    proxy.upgrade = "pass"
    client.reach("connected", within=12)


def test_a_site_learns_from_two_and_no_liar_changes_it() -> None:
    def one(worked: float, failed: float, age_ms: int = 0, gap: int = 0) -> Network:
        return {"worked": worked, "failed": failed, "at": NOW - age_ms, "killGap": gap}

    week = 7 * 24 * 3_600_000
    assert common_lesson([], NOW) is None
    assert common_lesson([one(0, 8)], NOW) is None, "one person, however often"
    found = common_lesson([one(0, 1, gap=60_000), one(0, 2, gap=60_000), one(3, 1)], NOW)
    assert found is not None and found["killGap"] == 60_000
    assert (found["worked"], found["failed"]) == (0.0, 2.0)
    assert common_lesson([one(0, 1)] * 5 + [one(9, 0)], NOW) is not None, "one says that it works"
    assert common_lesson([one(5, 0)] * 5 + [one(0, 9)], NOW) is None, "one says that it does not"
    assert common_lesson([one(0, 1)] * 3 + [one(1, 0.5)] * 3, NOW) is None, "mended: half of them have seen it"
    assert common_lesson([one(0, 1, week), one(0, 1, week + 1)], NOW) is None, "long ago"


@pytest.mark.parametrize("declared", ["127.0.0.1", ""])
def test_the_third_person_of_an_office_starts_by_polling(start_server: Callable[..., Server], declared: str) -> None:
    server = start_server(assistant="off", trusted_proxies=declared, workers=2)
    emails = [f"person{number}@example.org" for number in range(4)]
    add_people(server, *emails)
    office = {"X-Forwarded-For": "203.0.113.7"}

    def config(email: str, headers: dict[str, str]) -> tuple[HttpClient, dict[str, Any]]:
        client = signed_in(server, email)
        meta = client.get("/", headers).page.one("meta", name="chat-config")
        found: dict[str, Any] = json.loads(meta.get("content"))
        return client, found

    def fail(email: str) -> None:
        client, found = config(email, office)
        data = {"network": found["network"], "worked": False, "killGap": 0}
        report = {
            "client": str(uuid.uuid4()),
            "number": 1,
            "at": round(time.time() * 1000),
            "type": "network",
            "data": data,
        }
        assert client.post("/connection/events", office, events=json.dumps([report])).status == 204

    def remembers(email: str, headers: dict[str, str]) -> bool:
        return config(email, headers)[1]["remembered"] is not None

    fail(emails[0])
    time.sleep(0.5)
    assert not remembers(emails[2], office), "one person is not enough"
    fail(emails[1])
    if declared:
        wait_for(lambda: remembers(emails[2], office), 5, "two are")
        assert not remembers(emails[3], {"X-Forwarded-For": "198.51.100.7"}), "of this network alone"
    else:
        time.sleep(1)
        assert not remembers(emails[2], office), "nobody's address is known"
        assert "addresses unknown" in HttpClient(server.url).sign_in().get("/monitor").text


def test_when_one_has_a_websocket_again_all_of_the_office_try_it(
    start_server: Callable[..., Server],
    start_proxy: Callable[[Server], FaultProxy],
    start_client: Callable[..., Client],
) -> None:
    server = start_server(assistant="off", trusted_proxies="127.0.0.1", workers=2)
    emails = [f"person{number}@example.org" for number in range(4)]
    add_people(server, *emails)
    proxy = start_proxy(server)
    proxy.upgrade = "refuse"
    clients = [start_client(proxy.url, email=email, reports=True) for email in emails]
    for client in clients:
        client.reach("polling")
        client.wait(lambda client=client: client.record["reason"] == "upgrade-refused", 30, "found out")
    time.sleep(2)
    proxy.upgrade = "pass"
    clients[0].hint("retry")
    began = time.monotonic()
    for client in clients:
        client.reach("connected", within=30)
    print(f"all back after {time.monotonic() - began:.1f} s")
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as database:
        told = database.execute("SELECT count(*) FROM connection_events WHERE type = 'server-heard'").fetchone()
    assert told == (1,)
