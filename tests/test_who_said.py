"""Who said it: no client speaks for the server, no header for an address, and no other site reads what is said."""

import json
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from lab.http import JSON, Answer, Client
from lab.peer import WebSocketPeer
from lab.processes import wait_for
from lab.server import Server, run_chatapp

from chatapp.middleware import forwarded_address


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Behind a declared proxy that ends TLS."""
    settings = {"public_url": "https://chat.example.org", "trusted_proxies": "127.0.0.1", "poll_longest_hold": 1}
    with Server(tmp_path_factory.mktemp("said"), assistant="off", **settings) as server:
        yield server


def report(web: Client, **event: object) -> Answer:
    """One connection event."""
    known = {"client": str(uuid.uuid4()), "number": 1, "at": round(time.time() * 1000), "type": "state"}
    return web.post("/connection/events", JSON, events=json.dumps([known | event]))


def events_of(server: Server, client: str) -> list[str]:
    with closing(sqlite3.connect(server.data / "metrics.db")) as database:
        rows = database.execute("SELECT type FROM connection_events WHERE client = ? ORDER BY number", (client,))
        return [str(row[0]) for row in rows]


@pytest.mark.parametrize("name", ["server-close", "server-open", " Server-close", "server-anything"])
def test_no_client_reports_what_only_the_server_can_know(shared: Server, me: Client, name: str) -> None:
    page = str(uuid.uuid4())
    answer = report(me, client=page, type=name)
    assert answer.status == 400 and "server's own" in answer.json["error"]["message"]
    assert events_of(shared, page) == []


def test_no_client_takes_the_place_of_the_servers_events(shared: Server, me: Client) -> None:
    with WebSocketPeer(me) as peer:
        name = peer.hello.get("connection")
        for number in (1, 2):
            assert report(me, client=name, number=number).status == 204
    wait_for(lambda: "server-close" in events_of(shared, name), 5, "the server's own account is stored")
    assert events_of(shared, name) == ["server-open", "server-close", "state", "state"]


FORWARDED = {
    "203.0.113.9": "203.0.113.9",
    "10.0.0.1, 203.0.113.10": "203.0.113.10",
    "203.0.113.11:4711": "203.0.113.11",
    '"[2001:db8::7]:4711"': "2001:db8::7",
    "2001:DB8::8": "2001:db8::8",
    "::ffff:203.0.113.12": "203.0.113.12",
    "203.0.113.13, evil": "127.0.0.1",
    'x" 200 0 0ms': "127.0.0.1",
    "fe80::1%2 200": "127.0.0.1",
    "": "127.0.0.1",
}


def test_only_addresses_are_believed_and_logged(shared: Server) -> None:
    client = Client(shared.url)
    for number, said in enumerate(FORWARDED):
        assert client.request("GET", f"/healthz/{number}", headers={"X-Forwarded-For": said}).status in (302, 404)
    last = rf'^(\S+) "GET /healthz/{len(FORWARDED) - 1}"'
    wait_for(lambda: re.search(last, shared.log_text(), re.M), 5, "the requests are logged")
    found = re.findall(r'^(\S+) "GET /healthz/(\d+)"', shared.log_text(), re.M)
    logged = {number: address for address, number in found}
    assert [logged.get(str(number)) for number in range(len(FORWARDED))] == list(FORWARDED.values())


def test_what_is_no_address_is_none() -> None:
    for text in ("fe80::1%eth0", "1.2.3", "1.2.3.4:x", "[::1", "unknown", "_hidden", "1.2.3.4\n5.6.7.8"):
        assert forwarded_address(text) == "", text


def test_no_other_site_may_embed_anything_and_https_is_kept(shared: Server, me: Client) -> None:
    page = me.get("/")
    script = re.search(r'src="(/static/[^"]+\.js)"', page.text)
    assert script
    cursor = me.poll({"list": 0}).page.one("chat-feed").number("to")
    answers = {
        "page": page,
        "frames": me.poll({"list": 0}),
        "nothing new": me.poll({"list": cursor}),
        "held": me.poll({"list": cursor}, wait=1),
        "script": me.request("GET", script[1]),
        "health": me.request("GET", "/healthz"),
        "nowhere": me.request("GET", "/nowhere"),
        "signed out": Client(shared.url).poll({"list": 0}),
        "nonsense": me.request("GET", "/", headers={"Host": "a..b"}),
        "no upgrade": me.request("GET", "/ws"),
    }
    for name, answer in answers.items():
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin", name
    for name in ("page", "frames", "script", "health", "signed out"):
        assert answers[name].headers["Strict-Transport-Security"] == "max-age=31536000", name


def test_a_password_comes_by_standard_input(shared: Server) -> None:
    person = ["admin", "create", "--name", "Bo", "--email", "bo@example.org"]
    missing = run_chatapp(shared, *person, typed="")
    assert (missing.returncode, "--password -" in missing.stderr) == (1, True), missing.stderr
    made = run_chatapp(shared, *person, "--password", "-", typed="correct horse battery\n")
    assert (made.returncode, made.stderr) == (0, ""), made.stderr
    Client(shared.url).sign_in("bo@example.org", "correct horse battery")
    reset = ["admin", "reset-password", "--email", "bo@example.org", "--password"]
    seen = run_chatapp(shared, *reset, "another horse battery")
    assert (seen.returncode, "list processes" in seen.stderr) == (0, True)
    Client(shared.url).sign_in("bo@example.org", "another horse battery")
