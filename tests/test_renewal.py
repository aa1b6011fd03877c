"""Renewal of sessions: who is there stays signed in and notices nothing; who is not is signed out in time."""

import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from headless.client import Client as Headless
from lab.faultproxy import FaultProxy
from lab.http import JSON, Client
from lab.peer import PollingPeer, WebSocketPeer
from lab.people import database, value
from lab.processes import wait_for
from lab.server import EMAIL, PASSWORD, Server

StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
StartClient = Callable[..., Headless]
CLIENTS = int(os.environ.get("RENEWALS", "8"))  # `make renewals`: 50
SECONDS = 75 if CLIENTS > 8 else 9
ACCESS_S = 20 if CLIENTS > 8 else 3
DAY_S = 86400


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with an admin."""
    with Server(tmp_path_factory.mktemp("renewal"), assistant="off") as server:
        yield server


@pytest.fixture
def person(shared: Server) -> Client:
    """A new session; the others are ended."""
    with database(shared) as connection:
        connection.execute("UPDATE sessions SET revoked_at = coalesce(revoked_at, 1)")
    return Client(shared.url).sign_in()


def ends(server: Server, **columns: int) -> None:
    """Set ends of all sessions, ms from now."""
    with database(server) as connection:
        for column, left_ms in columns.items():
            connection.execute(f"UPDATE sessions SET {column} = ?", (round(time.time() * 1000) + left_ms,))


def poll(client: Client) -> int:
    return client.request("GET", "/changes?epoch=x&wait=0&c=list:0").status


# What a renewal does


def test_it_extends_the_access_up_to_the_end_of_all(shared: Server, person: Client) -> None:
    ends(shared, access_until=-1000)
    answer = person.post("/session/renew", JSON)
    assert answer.status == 200 and abs(answer.json["access_ms"] - 3_600_000) < 5000
    ends(shared, access_until=0, idle_until=0, expires_at=50_000)
    ends(shared, idle_until=40_000)
    assert 45_000 < person.post("/session/renew", JSON).json["access_ms"] <= 50_000
    assert value(shared, "SELECT idle_until - expires_at FROM sessions ORDER BY id DESC") == 0


def test_a_fresh_one_is_not_written_again(shared: Server, person: Client) -> None:
    query = "SELECT access_until FROM sessions ORDER BY id DESC"
    before = value(shared, query)
    assert [person.post("/session/renew", JSON).status for _ in range(5)] == [200] * 5
    assert value(shared, query) == before


def test_access_ends_a_minute_late_for_programs_and_is_renewed_by_pages(server: Server, client: Client) -> None:
    conversation = client.create("hello").json["conversation"]
    for left_ms, status in ((-50_000, 200), (-61_000, 401)):
        ends(server, access_until=left_ms)
        server.restart()  # it had cached the session
        assert poll(client) == status
    assert client.request("GET", f"/c/{conversation}").status == 200
    assert poll(client) == 200, "the page has renewed it"
    ends(server, access_until=-61_000)
    server.restart()
    assert client.post(f"/c/{conversation}/messages", body="by a plain form").status == 303


def test_without_access_programs_are_refused_until_they_renew(start_server: StartServer) -> None:
    with_workers = start_server(assistant="off", workers=2)
    client = Client(with_workers.url).sign_in()
    conversation = client.create("hello").json["conversation"]
    ends(with_workers, access_until=-61_000)
    with_workers.restart()  # it had cached the session
    assert poll(client) == 401
    assert client.request("POST", f"/c/{conversation}/messages", headers=JSON).status in (400, 401)
    with pytest.raises(Exception, match="401"):
        WebSocketPeer(client).prove()
    assert client.post("/session/renew", JSON).status == 200
    for _ in range(6):
        assert poll(client) in (200, 204), "each worker knows at once"
    with WebSocketPeer(client) as peer:
        peer.echo()


def test_where_the_database_cannot_be_written_people_read_on(server: Server, client: Client) -> None:
    """A full disk would else shut everybody out an hour later, from reading, too."""
    conversation = client.create("hello").json["conversation"]
    ends(server, access_until=-61_000)
    server.restart()
    with closing(sqlite3.connect(server.data / "chat.db", timeout=20, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert poll(client) == 401
        assert client.post("/session/renew", JSON).json["access_ms"] > 3_000_000
        assert poll(client) == 200
        assert client.request("GET", f"/c/{conversation}").status == 200
        with WebSocketPeer(client) as peer:
            peer.echo()
        writer.execute("ROLLBACK")
    assert client.post_message(conversation, "written again").status == 201
    with database(server) as connection:
        connection.execute("UPDATE sessions SET revoked_at = 1")
    wait_for(lambda: poll(client) == 401, 5, "an end of the session is an end all the same")


@pytest.mark.parametrize(
    ("columns", "code"),
    [({"idle_until": -1}, "session-expired"), ({"expires_at": -1}, "session-expired"), ({}, "session-revoked")],
)
def test_it_is_refused_once_the_session_has_ended(
    shared: Server, person: Client, columns: dict[str, int], code: str
) -> None:
    if columns:
        ends(shared, access_until=-61_000, **columns)
    else:
        with database(shared) as connection:
            connection.execute("UPDATE sessions SET revoked_at = coalesce(revoked_at, 1)")
    answer = person.post("/session/renew", JSON)
    assert (answer.status, answer.json["error"]["code"]) == (401, code)
    page = person.request("GET", "/")
    assert page.status == 302 and "/sign-in" in page.headers["Location"], "nor is it by a page"


def test_strangers_and_other_sites_renew_nothing(shared: Server, person: Client) -> None:
    ends(shared, access_until=-61_000)
    before = value(shared, "SELECT access_until FROM sessions ORDER BY id DESC")
    stranger = Client(shared.url)
    stranger.learn(stranger.get("/sign-in").page)
    assert stranger.post("/session/renew", JSON).status == 400, "it has no cookie that its token fits"
    without_token = person.request("POST", "/session/renew", headers=JSON)
    assert without_token.status == 400 and without_token.json["error"]["code"] == "csrf"
    assert value(shared, "SELECT access_until FROM sessions ORDER BY id DESC") == before
    assert person.request("GET", "/session/renew").status == 405


def test_sign_in_is_a_form_also_for_programs(shared: Server) -> None:
    """As ever: clients tell by the status, 422 or 303, whatever they accept."""
    stranger = Client(shared.url)
    stranger.learn(stranger.get("/sign-in").page)
    answer = stranger.post("/sign-in", JSON, email=EMAIL, password="wrong")
    assert answer.status == 422 and "text/html" in answer.headers["Content-Type"]
    assert stranger.post("/sign-in", JSON, email=EMAIL, password=PASSWORD).status == 303


def test_what_is_not_renewed_ends_on_every_way_in_time(start_server: StartServer) -> None:
    server = start_server(assistant="off", session_idle=6 / DAY_S, workers=2)
    client = Client(server.url).sign_in()
    end = time.monotonic() + 6
    with WebSocketPeer(client) as socket, PollingPeer(client) as polls:
        socket.echo()
        polls.subscribe({"list": 0})
        polls.poll()
        began = time.monotonic()
        held = polls.poll(wait=20)
        assert abs(time.monotonic() - end) < 1.5 and time.monotonic() > began and held.status in (204, 401)
        assert socket.wait_closed(2)[0] == 4401
    assert poll(client) == 401


# Clients


def test_clients_whose_access_ends_together_go_on_and_renew_once_each(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    """Both transports, in mid answer: nothing lost, doubled or reordered, and no state but connected and polling."""
    server = start_server(assistant_pace=300, access_lifetime=ACCESS_S, session_idle=60 / DAY_S)
    proxy = start_proxy(server)
    seen: list[list[str]] = []
    clients = []
    for number in range(CLIENTS):
        states: list[str] = []
        seen.append(states)
        ways = ("polling",) if number % 2 else ("websocket", "polling")
        clients.append(start_client(proxy.url, *ways, on_record=lambda record, to=states: to.append(record["status"])))
    for number, client in enumerate(clients):
        client.reach("polling" if number % 2 else "connected")
    conversation = clients[0].create("Is polling worse?")
    for client in clients[1:]:
        client.follow(conversation)
    for states in seen:
        states.clear()
    began, sent = time.monotonic(), []
    while time.monotonic() < began + SECONDS:
        client = clients[len(sent) % CLIENTS]
        sent.append(f"message {len(sent)}")
        client.wait_sent(client.send(conversation, sent[-1]))
        time.sleep(SECONDS / 40)
    for number, client in enumerate(clients):
        client.wait(lambda client=client: shown(client, conversation) == ["Is polling worse?", *sent], 15, "all of it")
        assert set(seen[number]) <= {"connected", "polling"}, seen[number]
    expected = SECONDS / ACCESS_S * CLIENTS
    query = "SELECT count(*) FROM sessions WHERE access_until > ?"
    assert value(server, query, round(time.time() * 1000)) == CLIENTS
    assert 0.9 * expected < renewals(proxy) < 1.7 * expected, "each before its end, and not oftener"


def renewals(proxy: FaultProxy) -> int:
    """How often clients have renewed."""
    return len(proxy.seen("/session/renew"))


def shown(client: Headless, conversation: str) -> list[str]:
    """The person's messages, in order."""
    return [message.text for message in client.messages(conversation) if message.author == "user"]


def test_a_network_that_answers_posts_itself_ends_no_session(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    """WebSocket and pages get through: so a page renews."""
    server = start_server(assistant="off", access_lifetime=3)
    proxy = start_proxy(server)
    proxy.spoil = lambda seen: "403" if seen.path == "/session/renew" else ""
    client = start_client(proxy.url)
    client.reach("connected")
    time.sleep(7)
    left_ms = value(server, "SELECT access_until FROM sessions ORDER BY id DESC LIMIT 1")
    assert isinstance(left_ms, int) and left_ms > time.time() * 1000, "it is renewed as ever"
    assert client.record["status"] == "connected" and proxy.seen("/session/renew")[0].status == 403


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_a_client_that_slept_over_the_end_of_its_access_renews_and_goes_on(
    start_server: StartServer, start_client: StartClient, transport: str
) -> None:
    server = start_server(assistant="off")
    client = start_client(server.url, *(["polling"] if transport == "polling" else ["websocket", "polling"]))
    client.reach("polling" if transport == "polling" else "connected")
    conversation = client.create("before")
    ends(server, access_until=-61_000)
    server.restart()
    client.wait_sent(client.send(conversation, "after"), 30)
    client.wait(lambda: shown(client, conversation) == ["before", "after"], 10)
    assert value(server, "SELECT count(*) FROM sessions WHERE access_until > ?", round(time.time() * 1000)) == 1


def test_a_session_that_has_expired_stops_the_client_without_a_loop(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    client = start_client(proxy.url)
    client.reach("connected")
    conversation = client.create("before")
    ends(server, access_until=-61_000, idle_until=-1)
    server.restart()
    client.reach("disconnected", within=20)
    assert client.record["reason"] == "session-expired"
    client.send(conversation, "kept")
    before = len(proxy.requests)
    time.sleep(3)
    assert len(proxy.requests) == before, "nothing is asked any more"
    assert client.state["waiting"]
    wait_for(lambda: client.record["status"] == "disconnected", 1, "it stays so")


def test_ids_of_unknown_sessions_cost_nothing_but_a_read(shared: Server) -> None:
    """A cookie that is not ours is not looked up; the request waits its turn as a stranger's."""
    stranger = Client(shared.url)
    name = next(iter(Client(shared.url).sign_in().cookies))
    stranger.cookies[name] = str(uuid.uuid4())
    assert poll(stranger) == 401
