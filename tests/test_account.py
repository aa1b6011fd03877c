"""The own account: sessions in words, their end, another password; when a session was last used."""

import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask_babel import Babel
from lab.http import JSON, Answer, Client
from lab.peer import WebSocketPeer
from lab.people import add_people
from lab.processes import wait_for
from lab.server import EMAIL, PASSWORD, Server

from chatapp.accounts.devices import device_words
from chatapp.parts import Parts
from chatapp.store import Lives, now_ms

NEW = "an entirely different one"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Safari/537.36"
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605 (KHTML) Version/19.0 Mobile/15 Safari/604"
)
NOBODYS = "00000000-0000-4000-8000-000000000000"
WITHIN_S = 1.0  # from the end of a session to the end of its connections


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with an admin."""
    with Server(tmp_path_factory.mktemp("account"), assistant="off") as server:
        yield server


@pytest.fixture
def me(shared: Server) -> Client:
    """The only session of the admin."""
    client = Client(shared.url).sign_in()
    client.post("/account/sessions/end")
    return client


def signed_in_as(server: Server, agent: str, password: str = PASSWORD) -> Client:
    """Another session, from a browser that calls itself so."""
    client = Client(server.url)
    client.learn(client.get("/sign-in").page)
    assert client.post("/sign-in", {"User-Agent": agent}, email=EMAIL, password=password).status == 303
    client.learn(client.get("/").page)
    return client


def ends(answer: Answer) -> list[str]:
    """Where each session of the list is ended."""
    return re.findall(r'action="(/account/sessions/[0-9a-f-]{36}/end)"', answer.text)


def rows(answer: Answer) -> list[str]:
    """The sessions of the list as text."""
    return [re.sub(r"\s+", " ", row.text).strip() for row in answer.page.all("li", css_class="row")]


def test_the_list_names_device_address_and_times(shared: Server, me: Client) -> None:
    signed_in_as(shared, FIREFOX)
    signed_in_as(shared, PHONE)
    shown = rows(me.get("/account"))
    assert len(shown) == 3
    assert shown[0].startswith("Safari on iPhone 127.0.0.1 signed in just now last seen just now End")
    assert shown[1].startswith("Firefox on Linux")
    assert "This one" in shown[2] and "Sign out" in shown[2]


def test_one_session_ends_at_once_and_the_others_stay(shared: Server, me: Client) -> None:
    phone, laptop = signed_in_as(shared, PHONE), signed_in_as(shared, FIREFOX)
    with WebSocketPeer(phone) as peer:
        peer.echo()
        page = me.get("/account")
        (phones,) = [end for end, row in zip(ends(page), rows(page), strict=True) if "iPhone" in row]
        assert me.post(phones).headers["Location"] == "/account?done=ended"
        assert peer.wait_closed(WITHIN_S) == (4401, "signed out")
    assert phone.poll({"list": 0}).status == 401
    assert laptop.poll({"list": 0}).status == 200
    assert me.post(phones).status == 404, "it is over"


def test_all_others_end_and_this_one_stays(shared: Server, me: Client) -> None:
    others = [signed_in_as(shared, FIREFOX) for _ in range(3)]
    assert me.post("/account/sessions/end", JSON).status == 204
    assert [other.poll({"list": 0}).status for other in others] == [401] * 3
    assert me.poll({"list": 0}).status == 200
    assert "End all others" not in me.get("/account").text


def test_this_session_ends_as_by_signing_out(me: Client) -> None:
    (own,) = ends(me.get("/account"))
    answer = me.post(own)
    assert (answer.status, answer.headers["Location"]) == (303, "/sign-in")
    assert me.poll({"list": 0}).status == 401


def test_a_foreign_session_is_as_if_it_did_not_exist(shared: Server, me: Client) -> None:
    """Of another person, expired, malformed or invented: the same answer."""
    bo = add_person(shared, "bo@example.org")
    foreign = str(uuid.uuid4())
    with closing(sqlite3.connect(shared.data / "chat.db", timeout=20)) as database:
        row = (foreign, bo, "x" * 64, "", "", 1, now_ms() + 10**9)
        names = "uuid, person_id, token_hash, address, user_agent, created_at, expires_at"
        database.execute(f"INSERT INTO sessions ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        database.commit()
    answers = [me.post(f"/account/sessions/{number}/end") for number in (foreign, str(uuid.uuid4()))]
    assert [answer.status for answer in answers] == [404, 404]
    assert re.sub("[0-9a-f]{40,}", "", answers[0].text) == re.sub("[0-9a-f]{40,}", "", answers[1].text)
    with closing(sqlite3.connect(shared.data / "chat.db", timeout=20)) as database:
        found = database.execute("SELECT revoked_at FROM sessions WHERE uuid = ?", (foreign,)).fetchone()
    assert found == (None,), "it lives"


def add_person(server: Server, email: str) -> int:
    """A person in the database; their number."""
    with closing(sqlite3.connect(server.data / "chat.db", timeout=20)) as database:
        feed = database.execute("INSERT INTO feeds (revision, change) VALUES (1, 1)").lastrowid
        names = "uuid, kind, name, email, is_admin, feed_id, created_at"
        values = (str(uuid.uuid4()), "person", "Bo", email, 1, feed, 1)
        number = database.execute(f"INSERT INTO people ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", values).lastrowid
        database.commit()
    assert number is not None
    return number


@pytest.mark.parametrize("path", ["/account/password", "/account/sessions/end", f"/account/sessions/{NOBODYS}/end"])
def test_nothing_changes_without_the_pages_token(me: Client, path: str) -> None:
    assert me.post(path, csrf_token="x", current=PASSWORD, password=NEW).status == 400
    assert Client(me.url).post(path).status in (400, 401)
    assert me.request("GET", path).status == 405


def test_the_password_changes_and_other_sessions_end(shared: Server, me: Client) -> None:
    other = signed_in_as(shared, FIREFOX)
    answer = me.post("/account/password", current=PASSWORD, password=NEW)
    assert (answer.status, answer.headers["Location"]) == (303, "/account?done=password")
    assert other.poll({"list": 0}).status == 401
    assert me.poll({"list": 0}).status == 200
    assert "The new password holds" in me.get("/account?done=password").text
    signed_in_as(shared, FIREFOX, NEW)
    assert me.post("/account/password", current=NEW, password=PASSWORD).status == 303
    signed_in_as(shared, FIREFOX)


@pytest.mark.parametrize(
    ("current", "new", "field"),
    [("wrong", NEW, "current"), ("", NEW, "current"), (PASSWORD, "x" * 9, "password"), (PASSWORD, EMAIL, "password")],
)
def test_a_password_that_cannot_be_changed_says_why_at_the_field(
    me: Client, current: str, new: str, field: str
) -> None:
    answer = me.post("/account/password", current=current, password=new)
    assert answer.status == 422
    wrong = answer.page.one("input", name=field)
    assert wrong.get("aria-invalid") == "true" and wrong.get("aria-describedby")
    assert not answer.page.one("input", name="current").has("value")


def test_guessing_the_own_password_is_bounded(shared: Server) -> None:
    """A stolen session must not become a password."""
    add_person(shared, "guess@example.org")
    with closing(sqlite3.connect(shared.data / "chat.db", timeout=20)) as database:
        (known,) = database.execute("SELECT password_hash FROM people WHERE email = ?", (EMAIL,)).fetchone()
        database.execute("UPDATE people SET password_hash = ? WHERE email = ?", (known, "guess@example.org"))
        database.commit()
    thief = Client(shared.url).sign_in("guess@example.org")
    answers = [thief.post("/account/password", current=f"guess {n}", password=NEW) for n in range(12)]
    assert [answer.status for answer in answers] == [422] * 10 + [429] * 2
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert thief.post("/account/password", current=PASSWORD, password=NEW).status == 429, "even with the right one"


def test_three_hundred_sessions_are_paged(shared: Server, me: Client) -> None:
    with closing(sqlite3.connect(shared.data / "chat.db", timeout=20)) as database:
        (person,) = database.execute("SELECT id FROM people WHERE email = ?", (EMAIL,)).fetchone()
        names = "uuid, person_id, token_hash, address, user_agent, created_at, expires_at, idle_until"
        many = [
            (str(uuid.uuid4()), person, f"many {n}", f"192.0.2.{n % 256}", CHROME, 1, *[now_ms() + 10**9] * 2)
            for n in range(300)
        ]
        database.executemany(f"INSERT INTO sessions ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", many)
        database.commit()
    seen: list[str] = []
    path = "/account"
    while path:
        page = me.get(path)
        seen += ends(page)
        found = re.search(r'href="(/account\?after=[0-9a-f-]+)"', page.text)
        path = found[1] if found else ""
    assert len(seen) == len(set(seen)) == 301
    assert me.post("/account/sessions/end", JSON).status == 204
    assert len(ends(me.get("/account"))) == 1
    assert me.get("/account?after=x").status == 200


def test_a_stranger_is_asked_to_sign_in_and_comes_back(shared: Server) -> None:
    assert Client(shared.url).request("GET", "/account").headers["Location"] == "/sign-in?next=/account"


def test_a_user_agent_is_text(shared: Server, me: Client) -> None:
    signed_in_as(shared, "<script>alert(1)</script>")
    signed_in_as(shared, "curl/8.5.0 <b>")
    page = me.get("/account")
    assert "<script>alert" not in page.text
    assert any(row.startswith("curl ") for row in rows(page)) and any(
        row.startswith("Unknown dev") for row in rows(page)
    )


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (FIREFOX, "Firefox on Linux"),
        (CHROME, "Chrome on Linux"),
        (PHONE, "Safari on iPhone"),
        (CHROME.replace("X11; Linux x86_64", "Windows NT 10.0; Win64; x64") + " Edg/143.0", "Edge on Windows"),
        (CHROME.replace("X11; Linux x86_64", "Linux; Android 16"), "Chrome on Android"),
        ("python-httpx/0.28.1", "python-httpx"),
        ("", "Unknown device"),
    ],
)
def test_devices_in_words(agent: str, words: str) -> None:
    app = Flask("devices")
    Babel(app)
    with app.test_request_context():
        assert device_words(agent) == words


def test_a_used_session_is_written_once_in_minutes_and_never_by_a_request(parts: Parts) -> None:
    people, seen = parts.store.people, parts.store.people.last_seen
    ada = people.add_admin("Ada", "ada@example.org", "x").id
    people.add_session(ada, "hash", Lives(3600, 3600, 3600), "127.0.0.1", "")
    session = people.session("hash")
    assert session is not None and seen.write() == 0, "signing in is a use"
    long_ago = now_ms() - 3_600_000
    with parts.store.database.write() as tx:
        tx.connection.exec_driver_sql(f"UPDATE sessions SET last_seen_at = {long_ago}")
    for _ in range(5):
        people.session("hash")
        people.left_s(session.id)
    assert stored(parts, ada) == long_ago, "nothing was written while it was used"
    assert seen.write() == 1
    assert stored(parts, ada) > long_ago
    people.session("hash")
    assert seen.write() == 0


def test_the_list_says_what_carries_each_session_now(
    start_server: Callable[..., Server],
) -> None:
    """Of both workers; and nothing of what has ended."""
    server = start_server(workers=2)
    me = Client(server.url).sign_in()
    socket, poller, silent = (Client(server.url).sign_in() for _ in range(3))
    peer = WebSocketPeer(socket)
    peer.echo()
    poller.poll({"list": 0})
    assert silent.get("/account").status == 200
    wait_for(lambda: carried(me) == ["", "by polling", "over WebSocket", ""], 35, "it is written")
    peer.close()
    wait_for(lambda: carried(me) == ["", "by polling", "", ""], 35, "the socket's end is written")


def carried(client: Client) -> list[str]:
    """What the list says of each session, the newest first."""
    found = [re.search(r"now (by polling|over WebSocket)", row) for row in rows(client.get("/account"))]
    return [one[1] if one else "" for one in found]


@pytest.mark.parametrize(("transport", "holds_ms"), [("websocket", 660_000), ("polling", 150_000)])
def test_a_transport_that_is_noted_no_more_is_no_longer_said(parts: Parts, transport: str, holds_ms: int) -> None:
    """Its worker was killed, or the clock set back."""
    people = parts.store.people
    ada = people.add_admin("Ada", "ada@example.org", "x").id
    people.add_session(ada, "hash", Lives(3600, 3600, 3600), "127.0.0.1", "")
    session = people.session("hash")
    assert session is not None
    for _ in range(3):
        people.last_seen.note_transport(session.id, transport)
    assert people.last_seen.write() == 1, "as it is known"
    assert parts.store.sessions.live(ada)[0][0].transport_now() == transport
    for at in (now_ms() - holds_ms - 1, now_ms() + 10_000):
        with parts.store.database.write() as tx:
            tx.connection.exec_driver_sql(f"UPDATE sessions SET transport_at = {at}")
        found = parts.store.sessions.live(ada)[0][0].transport_now()
        assert found == ("" if at < now_ms() else transport)


def stored(parts: Parts, person: int) -> int:
    """When the only session was last seen, as stored."""
    (session,), _more = parts.store.sessions.live(person)
    return session.last_seen_at


def test_it_is_written_by_itself(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatapp.store.last_seen.WRITE_EVERY_S", 0.05)
    people = parts.store.people
    ada = people.add_admin("Ada", "ada@example.org", "x").id
    people.add_session(ada, "hash", Lives(3600, 3600, 3600), "127.0.0.1", "")
    people.last_seen.start()
    people.last_seen.note(1, 0)
    with parts.store.database.write() as tx:
        tx.connection.exec_driver_sql("UPDATE sessions SET last_seen_at = 1")
    wait_for(lambda: stored(parts, ada) > 1, 5, "it is written")
    people.last_seen.stop()


# A sign-in from a new device


FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0"


def signed_in_by(server: Server, email: str, agent: str) -> Callable[..., Answer]:
    """A session of a device; a function that asks by it: a path, and for a form its fields."""
    client = Client(server.url)
    client.learn(client.request("GET", "/sign-in", headers={"User-Agent": agent}).page)
    done = client.post("/sign-in", {"User-Agent": agent}, email=email, password=PASSWORD)
    assert done.status == 303
    client.token = ""
    client.learn(client.get("/").page)

    def ask(path: str, **fields: str) -> Answer:
        if not fields:
            answer = client.request("GET", path, headers={"User-Agent": agent})
            client.token = ""
            client.learn(answer.page)
            return answer
        return client.post(path, {"User-Agent": agent}, **fields)

    return ask


def test_a_sign_in_from_a_new_device_is_told_to_the_others(shared: Server) -> None:
    email = "newcomer@example.org"
    add_people(shared, email)
    here = signed_in_by(shared, email, CHROME)
    conversation = urlsplit(here("/c", body="hello").headers["Location"]).path
    assert 'id="newcomer"' not in here(conversation).text, "the first device is none to tell of"
    signed_in_by(shared, email, CHROME.replace("Chrome/1", "Chrome/2"))
    assert 'id="newcomer"' not in here(conversation).text, "an update makes no new device"
    there = signed_in_by(shared, email, FIREFOX)
    page = here(conversation)
    notice = page.page.one("form", id="newcomer")
    assert "New sign-in: Firefox on Linux." in notice.text and "127.0.0.1" in notice.text
    assert 'id="newcomer"' not in there(conversation).text, "not to itself"
    assert there(notice.get("action"), next="/").status == 303
    assert 'id="newcomer"' in here(conversation).text, "nor can it say that it is known"
    answer = here(notice.get("action"), next=conversation)
    assert (answer.status, answer.headers["Location"]) == (303, conversation)
    assert 'id="newcomer"' not in here(conversation).text
    signed_in_by(shared, email, FIREFOX)
    assert 'id="newcomer"' not in here(conversation).text, "it is known now"
