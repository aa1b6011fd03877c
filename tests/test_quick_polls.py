"""Polls that are answered before Flask: the same answers, the same headers, and nobody gets in by that door."""

import threading
import time
import uuid
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

import pytest
from lab.http import Client
from lab.server import Server

from chatapp import create_app
from chatapp.accounts.auth import hash_token
from chatapp.config import Settings
from chatapp.parts import Parts
from chatapp.store import Lives

HELD = 30


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("polls"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def test_its_headers_are_those_of_every_answer(me: Client) -> None:
    page = me.get("/connection").headers
    answer = me.poll({"list": 0})
    assert answer.status == 200
    names = ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control", "Vary")
    names += ("Cross-Origin-Opener-Policy", "Permissions-Policy")
    assert {name: answer.headers[name] for name in names} == {name: page[name] for name in names}
    assert answer.headers["Set-Cookie"] is None


def test_nothing_is_said_in_few_bytes(me: Client) -> None:
    cursor = int(me.poll({"list": 0}).page.one("chat-feed").get("to"))
    answer = me.poll({"list": cursor})
    assert (answer.status, answer.headers["Cache-Control"], answer.headers["Vary"]) == (
        204,
        "no-store, no-transform",
        "Cookie",
    )
    assert len(str(answer.headers)) < 200


def another(text: str) -> str:
    """With another first letter: the last ones may say the same in base64."""
    return ("B" if text[0] == "A" else "A") + text[1:]


def test_a_forged_or_foreign_cookie_opens_nothing(me: Client) -> None:
    (name, value), *_ = me.cookies.items()
    payload, signature = value.rsplit(".", 1)
    forged = [f"{payload}.{another(signature)}", f"{another(payload)}.{signature}", payload, "", "x.y", "x.y.z"]
    for cookie in forged:
        copy = me.clone()
        copy.cookies = {name: cookie}
        assert copy.poll({"list": 0}).status == 401, cookie
    copy = me.clone()
    copy.cookies = {f"{name}x": value}
    assert copy.poll({"list": 0}).status == 401


def test_wrong_queries_are_refused_in_words_and_other_people_are_not_answered(me: Client) -> None:
    for query in ("c=list:x", "wait=1", "c=list:1&wait=-1", "c=list:1&wait=nan", "c=:1", "c=list:1&c=%ff:1&wait=x"):
        answer = me.get(f"/changes?epoch={me.epoch}&{query}")
        assert (answer.status, answer.json["error"]["code"]) == (400, "bad-poll"), query
    answer = me.get(f"/changes?epoch={me.epoch}&c=list:0&person={uuid.uuid4()}")
    assert (answer.status, answer.json["error"]["code"]) == (401, "signed-out")


def test_a_session_that_ended_is_not_answered_from_memory(shared: Server) -> None:
    me = Client(shared.url).sign_in()
    copy = me.clone()
    cursor = int(copy.poll({"list": 0}).page.one("chat-feed").get("to"))
    assert copy.poll({"list": cursor}).status == 204
    me.post("/sign-out")
    assert copy.poll({"list": cursor}).status == 401
    assert copy.poll({"list": cursor}, wait=1).status == 401


def test_one_post_wakes_all_held_polls_at_once(me: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    cursor = int(me.poll({conversation: 0}).page.one("chat-feed").get("to"))
    answers: list[tuple[int, float]] = []

    def hold() -> None:
        answer = me.clone().poll({conversation: cursor}, wait=20)
        answers.append((answer.status if "news" in answer.text else 0, time.monotonic()))

    threads = [threading.Thread(target=hold) for _ in range(HELD)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    started = time.monotonic()
    assert me.post_message(conversation, "news").status == 201
    for thread in threads:
        thread.join(10)
    assert [status for status, _ in answers] == [200] * HELD
    assert max(at for _, at in answers) - started < 3


def test_nothing_new_touches_neither_flask_nor_the_database(tmp_path: Path) -> None:
    """In the process itself, with the real app: nothing behind the door is called."""
    app = create_app(Settings(data_dir=tmp_path, assistant="off"))
    parts = app.extensions["chatapp"]
    ada = parts.store.people.add_first_admin("Ada", "ada@example.org", "x")
    parts.store.people.add_session(ada.id, hash_token("secret"), Lives(3600, 3600, 3600), "127.0.0.1", "")
    serializer = app.session_interface.get_signing_serializer(app)
    cookie = SimpleCookie({app.config["SESSION_COOKIE_NAME"]: serializer.dumps({"token": "secret"})})
    headers = [("Cookie", cookie.output(header="", sep=";").strip())]
    query = urlencode([("epoch", parts.epoch), ("c", "list:1"), ("wait", "0")])
    client = app.test_client(use_cookies=False)
    assert client.get(f"/changes?{query}", headers=headers).status_code == 204
    statements: list[str] = []
    connection = parts.store.database.engine.raw_connection()
    connection.driver_connection.set_trace_callback(statements.append)
    connection.close()
    app.full_dispatch_request = None  # type: ignore[method-assign,assignment]
    for _ in range(3):
        assert client.get(f"/changes?{query}", headers=headers).status_code == 204
    assert statements == []
    parts.store.database.engine.dispose()
    parts.store.events.database.engine.dispose()


def test_a_session_is_read_once_for_all_and_again_when_any_ends(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """And few enter by a handshake; one that has expired makes room."""
    people, sessions, looks = parts.store.people, parts.auth.sessions, list[str]()
    read = people.session
    monkeypatch.setattr(people, "session", lambda hashed: looks.append(hashed) or read(hashed))  # type: ignore[func-returns-value]
    ada = people.add_first_admin("Ada", "ada@example.org", "x")
    seal = sessions._serializer.dumps  # type: ignore[union-attr]
    headers = []
    for number, lifetime_s in enumerate((0.5, 3600, 3600)):
        people.add_session(
            ada.id, hash_token(f"secret{number}"), Lives(lifetime_s, lifetime_s, lifetime_s), "127.0.0.1", ""
        )
        headers.append(f"a=b; {sessions.cookie_name}={seal({'token': f'secret{number}'})}; c=d")
    for _ in range(3):
        assert sessions.find(headers[0], most=1) and sessions.find(headers[0])
        assert sessions.find(headers[1], most=1)
    assert [looks.count(hash_token(f"secret{number}")) for number in range(2)] == [1, 3]
    time.sleep(0.6)
    assert not sessions.find(headers[0])
    looks.clear()
    assert sessions.find(headers[1], most=1) and sessions.find(headers[1], most=1) and sessions.find(headers[2])
    assert len(looks) == 2
    people.end_session(hash_token("secret2"))
    assert sessions.find(headers[1]) and not sessions.find(headers[2])
    assert len(looks) == 4
