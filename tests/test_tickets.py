"""Tickets of the network test: what one opens, what it does not, and what follows when the test passes."""

import json
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from headless.client import Client as Headless
from lab.elements import parse
from lab.faultproxy import FaultProxy
from lab.http import JSON, Client
from lab.peer import WebSocketPeer
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.server import Server
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chatapp.accounts.tickets import BadTicket, Expired, Tickets
from chatapp.transports import retries
from chatapp.transports.retries import Retries

StartServer = Callable[..., Server]
StartClient = Callable[..., Headless]
StartProxy = Callable[[Server], FaultProxy]
TEST = "/connection/test"
PROBES = tuple(f"{TEST}/{name}inside=1" for name in ("mark?", "hold?seconds=0&", "stream?", "large?"))
POLL = "/changes?epoch=test&c=list%3A0&inside=1"
SOCKET = "/ws?inside=1"


def ticket_of(client: Client) -> str:
    """The ticket that Run test puts into the letter."""
    text = client.request("GET", f"{TEST}/mark?ticket=1").text
    found = re.search(r'ticket="([\w.-]+)"', text)
    assert found, text
    return found[1]


def opened(url: str, ticket: str) -> Client:
    """A stranger with an opened ticket."""
    visitor = Client(url)
    answer = visitor.request(
        "POST", "/network-test", f"ticket={ticket}", JSON | {"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.status == 200, answer.text
    name, _, value = answer.headers["Set-Cookie"].partition(";")[0].partition("=")
    visitor.cookies[name] = value
    return visitor


def prove(visitor: Client, pause_s: float = 5.2) -> str:
    """A test's WebSocket; what it is told in the end."""
    with WebSocketPeer(visitor, SOCKET) as peer:
        for n in range(1, 6):
            peer.echo(n)
        time.sleep(pause_s)
        peer.echo(1000)
        told = peer._await(lambda element: element.tag == "chat-mended", 5)
    return told.get("there") or ""


def test_a_ticket_is_signed_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tickets = Tickets(["old", "new"], "c_test")
    text = tickets.make("0123456789ab")
    assert tickets.read(text).network == "0123456789ab"
    assert Tickets(["new", "newest"], "c_test").read(text), "a former key verifies"
    for wrong in ("", "x", text[:-1], text + "A", text.replace(text[3], "B", 1), "é" * 9, "a" * 5000):
        with pytest.raises(BadTicket):
            tickets.read(wrong)
    with pytest.raises(BadTicket):
        Tickets(["other"], "c_test").read(text)
    monkeypatch.setattr("chatapp.accounts.tickets.now_ms", lambda: time.time() * 1000 + 8 * 86_400_000)
    with pytest.raises(Expired):
        tickets.read(text)


def test_a_session_cookie_is_no_ticket_and_a_ticket_no_session(client: Client, server: Server) -> None:
    (session,) = client.cookies.values()
    stranger = Client(server.url)
    for value in (session, ""):
        answer = stranger.request(
            "POST", "/network-test", f"ticket={value}", JSON | {"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert (answer.status, answer.json["error"]["code"]) == (403, "altered")
        assert "Set-Cookie" not in answer.headers
    (name,) = client.cookies
    forger = Client(server.url)
    forger.cookies[name] = ticket_of(client)
    assert forger.request("GET", "/changes?c=list:0", headers=JSON).status == 401


def test_it_opens_the_probes_and_nothing_else(server: Server) -> None:
    """Every route of the app, by every method that it has."""
    me = Client(server.url).sign_in()
    conversation = me.create("secret words").json["conversation"]
    visitor, stranger = opened(server.url, ticket_of(me)), Client(server.url)
    for path in (*PROBES, POLL):
        assert stranger.request("GET", path, headers=JSON).status == 401, path
        answer = visitor.request("GET", path, headers=JSON)
        assert answer.status == 200 and "Set-Cookie" not in answer.headers, path
        assert "ticket=" not in answer.text, path
    assert visitor.request("GET", POLL).text.strip() == "<chat-answer></chat-answer>"
    mark = visitor.request("GET", f"{TEST}/mark?inside=1&ticket=1").text
    assert "ticket=" not in mark, "a ticket makes no ticket"

    from chatapp import create_app
    from chatapp.config import Settings

    app = create_app(Settings(data_dir=server.directory / "routes"))
    free = {
        "/healthz",
        "/readyz",
        "/worker.js",
        "/offline",
        "/network-test",
        "/sign-in",
        "/first-run",
        "/changes",
        "/ws",
    }
    tried = 0
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<uuid:\w+>", conversation, rule.rule)
        path = re.sub(r"<(path:)?\w+>", "x", path)
        if path in free or path.startswith((TEST, "/static/", "/link/")):
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            tried += 1
            with_ticket = visitor.request(method, path)
            without = stranger.request(method, path)
            assert with_ticket.status == without.status and with_ticket.status in (302, 303, 400, 401, 404, 405), path
            assert "secret words" not in with_ticket.text
            if with_ticket.status in (302, 303):
                assert "/sign-in" in with_ticket.headers["Location"], path
    assert tried > 40


def test_the_page_is_the_same_for_everybody_and_a_get_changes_nothing(server: Server) -> None:
    stranger = Client(server.url)
    answer = stranger.request("GET", "/network-test")
    assert answer.status == 200 and "Set-Cookie" not in answer.headers
    assert answer.page.one(id="check").get("data-test") == TEST
    assert "csrf" not in answer.text and "chat-config" not in answer.text


def test_its_websocket_does_hello_and_echo_only(server: Server) -> None:
    me = Client(server.url).sign_in()
    conversation = me.create("secret words").json["conversation"]
    visitor = opened(server.url, ticket_of(me))
    with WebSocketPeer(visitor, SOCKET) as peer:
        assert not peer.hello.get("person") and not peer.hello.get("epoch") and not peer.hello.get("connection")
        assert peer.echo(7) < 2
    for frame in (
        {"type": "subscribe", "epoch": me.epoch, "feeds": {conversation: 0, "list": 0}},
        {"type": "send", "conversation": conversation, "client_id": conversation, "body": "x"},
        {"type": "unsubscribe", "feeds": []},
        {"type": "nonsense"},
    ):
        with WebSocketPeer(visitor, SOCKET) as peer:
            peer.say(**frame)
            with pytest.raises(ConnectionClosed) as closed:
                peer.socket.recv(timeout=5)
            assert closed.value.rcvd and closed.value.rcvd.code == 1008
    assert len(me.history(conversation)) >= 1
    wrong = Client(server.url)
    wrong.cookies = {name: value[:-2] for name, value in visitor.cookies.items()}
    with pytest.raises(InvalidStatus) as refused:
        WebSocketPeer(wrong, SOCKET)
    assert refused.value.response.status_code == 401


def test_it_is_bounded(server: Server) -> None:
    """Four sockets at a time, sixty tests an hour; another ticket has its own."""
    me = Client(server.url).sign_in()
    visitor, other = opened(server.url, ticket_of(me)), opened(server.url, ticket_of(me))
    peers = [WebSocketPeer(visitor, SOCKET) for _ in range(4)]
    with pytest.raises(InvalidStatus) as refused:
        WebSocketPeer(visitor, SOCKET)
    assert refused.value.response.status_code == 429 and refused.value.response.headers["Retry-After"]
    WebSocketPeer(other, SOCKET).close()
    for peer in peers:
        peer.close()
    wait_for(lambda: _opens(visitor), 5, "there is room again")
    statuses = [visitor.request("GET", PROBES[0]).status for _ in range(62)]
    assert statuses[:58] == [200] * 58 and statuses[-1] == 429
    assert visitor.request("GET", PROBES[2]).status == 200, "each probe has its own count"
    assert other.request("GET", PROBES[0]).status == 200


def _opens(client: Client) -> bool:
    try:
        WebSocketPeer(client, SOCKET).close()
    except InvalidStatus:
        return False
    return True


def test_when_it_passes_everybody_there_tries_at_once(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    """Failures are forgiven, a page that polls tries at once, the monitor says so; again only a minute later."""
    server = start_server(assistant="off", workers=2)
    me = Client(server.url).sign_in()
    network = json.loads(
        re.search(r'"network": "(\w+)"', me.get("/connection").text.replace("&#34;", '"'))[0].join("{}")
    )["network"]  # type: ignore[index]
    with closing(sqlite3.connect(server.data / "chat.db")) as db:
        person = db.execute("SELECT id FROM people WHERE kind = 'person'").fetchone()[0]
        for one, key in ((person, network), (person, "f" * 12)):
            row = (one, key, 0.0, 8.0, time.time() * 1000, 0)
            db.execute(
                "INSERT INTO network_memory (person_id, network, worked, failed, at, kill_gap) VALUES (?,?,?,?,?,?)",
                row,
            )
        db.commit()
    proxy = start_proxy(server)
    proxy.upgrade = "refuse"
    page = start_client(proxy.url)
    page.reach("polling")
    page.hint("hidden")
    page.wait(lambda: page.record["timers"].get("probe", 0) - 1000 * time.monotonic() > 9_000, 60, "it would try late")
    page.wait(lambda: page.state["notes"]["networks"][network]["failed"] > 0, 10, "its browser remembers the network")
    proxy.heal()
    assert prove(opened(server.url, ticket_of(me))) == "yes"
    page.reach("connected", within=3)
    assert page.state["notes"]["networks"][network]["failed"] == 0
    with closing(sqlite3.connect(server.data / "chat.db")) as db:
        left = dict(db.execute("SELECT network, failed FROM network_memory").fetchall())
    assert (left[network], left["f" * 12]) == (0.0, 8.0)
    wait_for(lambda: "mended" in me.get("/monitor").text, 10, "the monitor says so")
    assert prove(opened(server.url, ticket_of(me))) == "yes"
    with closing(sqlite3.connect(server.data / "metrics.db")) as db:
        events = db.execute("SELECT network, person FROM connection_events WHERE type = 'server-mended'").fetchall()
    assert events == [(network, "")], "once a minute"


def test_from_elsewhere_it_changes_nothing(start_server: StartServer) -> None:
    """Behind a declared proxy, by its X-Forwarded-For."""
    server = start_server(assistant="off", trusted_proxies="127.0.0.1")
    me = Client(server.url).sign_in()
    there = {"X-Forwarded-For": "198.51.100.7"}
    mark = me.request("GET", f"{TEST}/mark?ticket=1", headers=there).text
    ticket = re.search(r'ticket="([\w.-]+)"', mark)
    assert ticket
    assert prove(opened(server.url, ticket[1])) == "no"
    with closing(sqlite3.connect(server.data / "metrics.db")) as db:
        assert not db.execute("SELECT 1 FROM connection_events WHERE type = 'server-mended'").fetchone()
    answer = Client(server.url).request(
        "POST",
        "/network-test",
        f"ticket={ticket[1]}",
        JSON | there | {"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.json["there"] is True


def test_echoes_without_silence_prove_nothing(server: Server) -> None:
    visitor = opened(server.url, ticket_of(Client(server.url).sign_in()))
    with WebSocketPeer(visitor, SOCKET) as peer:
        for n in range(1, 40):
            peer.echo(n)
        with pytest.raises(TimeoutError):
            peer._await(lambda element: element.tag == "chat-mended", 1)


def test_a_held_poll_is_answered_by_the_hint_once(server: Server) -> None:
    add_people(server, "grace@example.org")
    me, grace = Client(server.url).sign_in(), signed_in(server, "grace@example.org")
    visitor = opened(server.url, ticket_of(me))
    cursor = parse(grace.poll({"list": 0}).text).one("chat-feed").number("to")
    proved = prove(visitor)
    answer = grace.poll({"list": cursor}, wait=20)
    assert proved == "yes" and "<chat-retry></chat-retry>" in answer.text
    began = time.monotonic()
    assert grace.poll({"list": cursor}, wait=2).status == 204 and time.monotonic() - began > 1.5


def test_retries_tell_each_page_once_for_a_minute() -> None:
    now = [0.0]
    news = Retries(lambda address: address[:3], lambda: now[0])
    assert not news.is_affected("10.1") and not news.take("10.1", 1, ("list",))
    news.add("")
    news.add("10.")
    assert news.is_affected("10.1") and not news.is_affected("11.1")
    assert news.take("10.1", 1, ("list",)) and not news.take("10.2", 1, ("list",))
    assert news.take("10.1", 2, ("list",)) and not news.take("11.1", 1, ("list",))
    news.add("10.")
    assert news.take("10.1", 1, ("list",)), "mended again"
    now[0] = retries.TOLD_S + 1
    assert not news.take("10.1", 3, ("list",)) and not news._told


def test_a_chat_in_the_same_browser_is_not_misled(server: Server) -> None:
    """Without `inside=1` a ticket counts for nothing; with a session besides, the test is still a test."""
    me = Client(server.url).sign_in()
    visitor = opened(server.url, ticket_of(me))
    for path in (f"{TEST}/mark", "/changes?epoch=test&c=list:0", "/changes?inside=10&c=list:0"):
        assert visitor.request("GET", path, headers=JSON).status == 401, path
    with pytest.raises(InvalidStatus):
        WebSocketPeer(visitor)
    visitor.cookies |= me.cookies
    assert prove(visitor) == "yes"
    with WebSocketPeer(visitor) as peer:
        assert peer.hello.get("person"), "the chat's own is a session's"


def test_under_a_prefix(start_server: StartServer) -> None:
    """The page's addresses, and the cookie's path."""
    server = start_server(
        url_prefix="/chat", public_url="http://chat.example.org/chat", allowed_origins="http://127.0.0.1"
    )
    answer = Client(server.url).request("GET", "/chat/network-test")
    check = answer.page.one(id="check")
    assert (check.get("data-inside"), check.get("data-test")) == (
        "http://chat.example.org/chat/network-test",
        f"/chat{TEST}",
    )
    made = Tickets([(server.data / "secret-key").read_text().strip()], "x").make("0" * 12)
    form = JSON | {"Content-Type": "application/x-www-form-urlencoded"}
    opening = Client(server.url).request("POST", "/chat/network-test", f"ticket={made}", form)
    assert opening.status == 200 and "; Path=/chat/" in opening.headers["Set-Cookie"]
    assert "HttpOnly" in opening.headers["Set-Cookie"] and "SameSite=Strict" in opening.headers["Set-Cookie"]
    foreign = form | {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}
    assert Client(server.url).request("POST", "/chat/network-test", f"ticket={made}", foreign).status == 403
