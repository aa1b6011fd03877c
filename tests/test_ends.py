"""Every end of access is noticed at once, on both transports; a clock that is set back is no such end."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from lab.clock import Clock
from lab.http import Answer, Client
from lab.peer import WebSocketPeer
from lab.processes import wait_for
from lab.server import EMAIL, PASSWORD, Server, run_chatapp
from websockets.exceptions import ConnectionClosed, InvalidStatus

StartServer = Callable[..., Server]
EXPIRES_S = 6.0
SOON_S = 4.0  # a look of the watcher (1 s), on a busy machine


def change(server: Server, statement: str, *values: object) -> None:
    """As somebody with a shell would, beside the running server."""
    with closing(sqlite3.connect(server.data / "chat.db", timeout=20)) as database:
        database.execute(statement, values)
        database.commit()


def ended_as(peer: WebSocketPeer, within_s: float) -> int:
    """The code that a WebSocket is closed with."""
    try:
        return peer.wait_closed(within_s)[0]
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code


class HeldPoll:
    """A poll that waits in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client.clone()
        cursor = client.poll({"list": 0}).page.one("chat-feed").number("to")
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=self._ask, args=(cursor,))
        self._thread.start()

    def _ask(self, cursor: int) -> None:
        self._answers.append(self._client.poll({"list": cursor}, wait=25))

    def is_answered(self, within_s: float) -> bool:
        """Whether it was answered soon, with nothing."""
        self._thread.join(within_s)
        return [answer.status for answer in self._answers] == [204]


def test_an_expired_session_ends_both_transports_on_time(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    me = Client(server.url).sign_in()
    server.stop()  # else it would keep in mind when the session was to end
    change(server, "UPDATE sessions SET expires_at = ?", round((time.time() + 3600) * 1000))
    server.start()
    change(server, "UPDATE sessions SET expires_at = ?", round((time.time() + EXPIRES_S) * 1000))
    expires_at = time.monotonic() + EXPIRES_S
    with WebSocketPeer(me) as peer:
        held = HeldPoll(me)
        assert ended_as(peer, EXPIRES_S + SOON_S) == 4401
        assert held.is_answered(SOON_S)
        assert -1 < time.monotonic() - expires_at < SOON_S
    assert me.poll({"list": 0}).status == 401


def test_a_disabled_person_is_out_at_once_by_whatever_means(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    for means in ("sql", "command"):
        me = Client(server.url).sign_in()
        with WebSocketPeer(me) as peer:
            held = HeldPoll(me)
            if means == "sql":
                change(server, "UPDATE people SET disabled_at = 1 WHERE email = ?", EMAIL)
            else:
                assert run_chatapp(server, "admin", "disable", "--email", EMAIL).returncode == 0
            assert ended_as(peer, SOON_S) == 4401, means
            assert held.is_answered(SOON_S), means
        assert me.poll({"list": 0}).status == 401
        stranger = Client(server.url)
        stranger.learn(stranger.get("/sign-in").page)
        assert stranger.post("/sign-in", email=EMAIL, password=PASSWORD).status == 422
        assert run_chatapp(server, "admin", "enable", "--email", EMAIL).returncode == 0
    Client(server.url).sign_in()
    assert run_chatapp(server, "admin", "disable", "--email", "nobody@example.org").returncode == 1


def test_a_conversation_that_was_left_is_not_offered(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    me = Client(server.url).sign_in()
    first, second = (me.create(text).json["conversation"] for text in ("one", "two"))
    change(
        server,
        "UPDATE memberships SET left_at = 1 WHERE conversation_id = (SELECT id FROM conversations WHERE uuid = ?)",
        second,
    )
    assert me.request("GET", "/").headers["Location"] == f"/c/{first}"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(tmp_path / "clock")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(clock.directory), os.environ.get("PYTHONPATH", "")]))
    return clock


def test_a_clock_that_is_set_back_signs_nobody_out(clock: Clock, start_server: StartServer) -> None:
    server = start_server(assistant="off", ws_ping_interval=1)
    me = Client(server.url).sign_in()
    conversation = me.create("hello").json["conversation"]
    with WebSocketPeer(me) as peer:
        for seconds in (-2, -30, -86400):
            clock.set(seconds)
            page = me.request("GET", f"/c/{conversation}")
            assert page.status == 200 and "Set-Cookie" not in page.headers, f"{seconds} s"
            assert me.poll({"list": 0}).status == 200
            assert peer.send(conversation, f"after {seconds}").position
            with WebSocketPeer(me):
                pass
            Client(server.url).sign_in()


def test_the_newest_conversation_is_where_one_wrote_last(clock: Clock, start_server: StartServer) -> None:
    server = start_server(assistant="off")
    me = Client(server.url).sign_in()
    first, _ = (me.create(text).json["conversation"] for text in ("one", "two"))
    clock.set(-3600)
    for _ in range(2):
        assert me.post_message(first, "three").status == 201
        assert me.request("GET", "/").headers["Location"] == f"/c/{first}"
        first = me.create("four").json["conversation"]
        assert me.request("GET", "/").headers["Location"] == f"/c/{first}"
        server.restart()


def test_a_drill_ends_in_time_whatever_the_clock_says(clock: Clock, start_server: StartServer) -> None:
    server = start_server(assistant="off")
    me = Client(server.url).sign_in()
    began = run_chatapp(server, "drill", "start", "refuse", "--seconds", "5", "--no-wait")
    assert began.returncode == 0, began.stderr

    def is_refused() -> bool:
        try:
            with WebSocketPeer(me):
                return False
        except InvalidStatus as refused:
            return refused.response.status_code == 403

    wait_for(is_refused, 5, "the drill begins")
    clock.set(-86400)
    wait_for(lambda: not is_refused(), 5 + SOON_S, "the drill ends")
    again = run_chatapp(server, "drill", "start", "refuse", "--seconds", "1", "--no-wait")
    assert again.returncode == 0, again.stderr


def test_the_session_cookie_lasts_by_the_browsers_clock(clock: Clock, start_server: StartServer) -> None:
    """A server whose clock is years behind (no battery) must not set a cookie that is over before it arrives."""
    clock.set(-5 * 365 * 86400)
    server = start_server(assistant="off")
    client = Client(server.url)
    client.learn(client.get("/sign-in").page)
    answer = client.post("/sign-in", email=EMAIL, password=PASSWORD)
    assert answer.status == 303 and f"Max-Age={(90 + 7) * 86400}" in answer.headers["Set-Cookie"]
    assert client.get("/").page.one("form", id="composer")
