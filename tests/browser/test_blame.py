"""Who is to blame: the server's own faults and its drills teach no page anything about WebSocket or the network."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from lab.browser import messages, record, say, sign_in, wait_for, wait_state
from lab.server import Server, run_chatapp
from playwright.sync_api import Page, WebSocketRoute

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all."""
    with Server(tmp_path_factory.mktemp("blame"), assistant="off") as running:
        yield running


@pytest.fixture
def chat(server: Server, page: Page) -> Page:
    """A page with a message in it, connected. The server may know others; this one must be acknowledged."""
    sign_in(page, server.url)
    wait_state(page, "connected")
    say(page, text := f"hello, {time.time_ns()}")
    wait_for(page, lambda: [m["state"] for m in messages(page) if m["text"] == text] == ["sent"], 15, "it is sent")
    wait_for(page, lambda: record(page, "states")[-1]["queued"] == 0, 15, "and acknowledged")
    return page


@contextmanager
def drill(server: Server, fault: str) -> Iterator[None]:
    """A drill for everybody."""
    run = run_chatapp(server, "drill", "start", fault, "--seconds", "120", "--no-wait")
    assert run.returncode == 0, run.stderr
    try:
        yield
    finally:
        assert run_chatapp(server, "drill", "stop").returncode == 0


def penalties(page: Page) -> list[float]:
    """What WebSocket was blamed for, at each change of the record."""
    return sorted({one["penalty"] + one["blame"] for one in record(page, "states")})


def failures(page: Page, server: Server) -> list[float]:
    """Failures that the browser and the server remember of any network."""
    stored = "Object.entries(localStorage).filter(([k]) => k.endsWith(':networks')).map(([, v]) => JSON.parse(v))"
    found: list[Any] = [one["failed"] for networks in page.evaluate(stored) for one in networks.values()]
    with closing(sqlite3.connect(server.data / "chat.db")) as database:
        found += [failed for (failed,) in database.execute("select failed from network_memory")]
    return [failed for failed in found if failed]


def reason(page: Page) -> str:
    """Why it is not live."""
    return page.locator("#connection-status").get_attribute("data-reason") or ""


@pytest.mark.parametrize("fault", ["refuse", "close", pytest.param("mute", marks=pytest.mark.slow)])
def test_a_drill_teaches_nothing(server: Server, chat: Page, fault: str) -> None:
    """Cut, refused or mute on purpose: the page falls back and says so; WebSocket is as trusted after it as before."""
    with drill(server, fault):
        wait_for(chat, lambda: any(one["status"] == "polling" for one in record(chat, "states")), 25, "it falls back")
        told = [one["reason"] for one in record(chat, "states") if one["status"] == "polling"]
        assert set(told) <= {"drill", None}, told
        say(chat, f"during {fault}")
        wait_for(chat, lambda: messages(chat)[-1]["state"] == "sent", 10, "messages go on")
    # Try now, unless it has come back by itself: by a script, because the button may go at any moment.
    chat.evaluate("document.querySelector('#connection-status [data-action=retry]:not([hidden])')?.click()")
    wait_state(chat, "connected")
    assert penalties(chat) == [0]
    assert failures(chat, server) == []


def test_a_page_that_is_loaded_during_a_drill_knows_it(server: Server, chat: Page) -> None:
    """Refused from its first attempt on: the network is not blamed, not even by a page that found out by asking."""
    with drill(server, "refuse"):
        wait_state(chat, "polling")
        chat.reload()
        wait_state(chat, "polling")
        wait_for(chat, lambda: reason(chat) == "drill", 5, "the drill is named")
        assert failures(chat, server) == []


@pytest.mark.parametrize(
    ("said", "named"), [("storage", "server-storage"), ("the server made a mistake", "server-error")]
)
def test_a_fault_of_the_server_costs_websocket_nothing(server: Server, chat: Page, said: str, named: str) -> None:
    """Three young sockets closed with 1011 in a row: named, not blamed, and the next one carries at once."""
    closed = 0

    def pass_on(socket: WebSocketRoute) -> None:
        nonlocal closed
        upstream = socket.connect_to_server()

        def from_server(message: str | bytes) -> None:
            nonlocal closed
            socket.send(message)
            if "<chat-echo" in str(message) and closed < 3:
                closed += 1
                socket.close(code=1011, reason=said)

        upstream.on_message(from_server)

    chat.route_web_socket("**/ws*", pass_on)
    chat.reload()
    wait_for(chat, lambda: closed == 3, 20, "three were closed")
    wait_state(chat, "connected", timeout=20)
    assert named in {one["reason"] for one in record(chat, "states")}
    assert penalties(chat) == [0] and failures(chat, server) == []


def test_a_locked_database_is_no_fault_of_the_network(server: Server, chat: Page) -> None:
    """What is written meanwhile waits; the socket stays, and nothing is blamed."""
    with closing(sqlite3.connect(server.data / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        say(chat, "while it is locked")
        wait_for(chat, lambda: "the database is busy" in server.log_text(), 15, "the log says it")
        waits = chat.locator(".message[data-state=sending] .state").last
        said: list[str] = []

        def says_so() -> bool:
            if (word := waits.inner_text()) not in said[-1:]:
                said.append(word)
            return "the server cannot store" in word

        try:
            wait_for(chat, says_so, 15, "the message says it")
        except AssertionError as problem:
            raise AssertionError(f"{problem}; it said {said}; the server: {server.log_text()[-1500:]}") from None
        say(chat, "behind it")
        waiting = chat.locator(".message[data-state=sending] .state")
        wait_for(
            chat,
            lambda: [word for word in waiting.all_inner_texts() if "the server cannot store" in word][1:],
            20,
            "the one behind it does not blame the connection either",
        )
        other.execute("ROLLBACK")
    wait_for(chat, lambda: messages(chat)[-1]["state"] == "sent", 15, "what waited is stored")
    assert penalties(chat) == [0] and failures(chat, server) == []
