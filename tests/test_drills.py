"""Drills: the running server fails as asked, for so long, for whom it is meant; clients get over it; it ends."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from lab.http import Client as Web
from lab.peer import Steady
from lab.processes import wait_for
from lab.server import EMAIL, PASSWORD, Server, run_chatapp
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from chatapp.config import DRILL_FAULTS, ConfigError, DrillSlot, load
from chatapp.diagnostics.doctor import Doctor, Way
from chatapp.diagnostics.drills import report
from chatapp.diagnostics.verdicts import RULES
from chatapp.store import ConnectionEvent, Drill

OTHER = ("bo@example.org", "another long password")
NOTICED_S = 10.0  # one worker looks once a second; with room for a busy machine

StartServer = Callable[..., Server]
Open = Callable[[Server, Web], ClientConnection]


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that ask for nothing special."""
    with Server(tmp_path_factory.mktemp("drills")) as running:
        yield running


def begin(server: Server, fault: str, seconds: int = 60, *more: str) -> None:
    """Starts a drill by the command, which returns at once."""
    command = ("drill", "start", fault, "--seconds", str(seconds), "--no-wait", *more)
    run = run_chatapp(server, *command)
    if "is running" in run.stderr:  # a test that failed left it
        stop(server)
        run = run_chatapp(server, *command)
    assert run.returncode == 0, run.stderr


def stop(server: Server) -> None:
    """Ends it."""
    run = run_chatapp(server, "drill", "stop")
    assert run.returncode == 0, run.stderr


@pytest.fixture
def socket() -> Iterator[Open]:
    """Opens WebSockets of a person, and waits for each one's hello."""
    with ExitStack() as stack:

        def opened(server: Server, web: Web) -> ClientConnection:
            url, headers = f"ws://127.0.0.1:{server.port}/ws", {"Cookie": web.cookie_header}
            made = connect(url, additional_headers=headers, origin=server.url)  # type: ignore[arg-type]
            found = stack.enter_context(made)
            assert str(found.recv(timeout=5)).startswith("<chat-hello")
            return found

        yield opened


def upgrade_status(server: Server, web: Web) -> int:
    """101, or the status with which an upgrade is refused."""
    url, headers = f"ws://127.0.0.1:{server.port}/ws", {"Cookie": web.cookie_header}
    try:
        with connect(url, additional_headers=headers, origin=server.url):  # type: ignore[arg-type]
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def said_before_the_cut(opened: ClientConnection, within: float = NOTICED_S) -> str:
    """What still came before it was cut, without a close frame."""
    said = ""
    with pytest.raises(Exception, match="close frame"):
        while True:
            said += str(opened.recv(timeout=within))
    return said


def echoes(opened: ClientConnection, within: float = 3.0) -> bool:
    """Whether an echo is answered."""
    opened.send('{"type":"echo","n":1}')
    try:
        while "chat-drill" in (said := str(opened.recv(timeout=within))):
            pass
        return 'n="1"' in said
    except TimeoutError:
        return False


@pytest.fixture
def other(server: Server) -> Iterator[Web]:
    """A second person."""
    command = ("admin", "create", "--name", "Bo", "--email", OTHER[0], "--password", OTHER[1])
    assert run_chatapp(server, *command).returncode == 0
    yield Web(server.url).sign_in(*OTHER)


def test_refuse_for_one_person_and_stop(server: Server, client: Web, other: Web, socket: Open) -> None:
    """Her sockets are cut and refused, his are not; stopping it lets her in again; both are logged."""
    hers, his = socket(server, client), socket(server, other)
    begin(server, "refuse", 600, "--person", EMAIL)
    wait_for(lambda: upgrade_status(server, client) == 403, NOTICED_S, "her upgrades are refused")
    assert "<chat-drill ms=" in said_before_the_cut(hers)
    assert echoes(his) and upgrade_status(server, other) == 101
    again = run_chatapp(server, "drill", "start", "close", "--no-wait")
    assert again.returncode == 1 and "is running" in again.stderr
    his.close()
    stop(server)
    wait_for(lambda: upgrade_status(server, client) == 101, NOTICED_S, "she is let in again")
    wait_for(lambda: "ended: refuse" in server.log_text(), 2, "the end is logged")
    assert "begins: refuse for" in server.log_text()


def test_it_ends_by_itself(server: Server, client: Web) -> None:
    """Twelve seconds are twelve seconds, with nobody to end it."""
    begin(server, "429", 12)
    poll = {"list": 0}
    answer = wait_for(lambda: (a := client.poll(poll, epoch="x")).status == 429 and a, NOTICED_S, "polls get 429")
    assert 1 <= int(answer.headers["Retry-After"]) <= 5  # type: ignore[attr-defined]
    assert client.create("hello").status == 429
    assert client.get("/connection").status == 200
    wait_for(lambda: client.poll(poll, epoch="x").status == 200, 12 + NOTICED_S, "polls are answered again")
    assert client.create("hello").status == 201


def test_mute_then_cut(server: Server, client: Web, socket: Open) -> None:
    """Nothing passes and the socket stays open; at the end it is cut, for what was swallowed is lost."""
    opened = socket(server, client)
    assert echoes(opened)
    begin(server, "mute", 600)
    wait_for(lambda: "begins: mute" in server.log_text(), NOTICED_S, "it begins")
    time.sleep(0.3)
    assert not echoes(opened, 2)
    stop(server)
    said_before_the_cut(opened)
    assert echoes(socket(server, client))


def test_close_again_and_again(server: Server, client: Web, socket: Open) -> None:
    """Sockets are cut at once; new ones open; ten seconds later they are cut, too."""
    first = socket(server, client)
    begin(server, "close", 600)
    for opened, within in ((first, NOTICED_S), (socket(server, client), 16)):
        said_before_the_cut(opened, within)
    stop(server)


def test_delay(server: Server, client: Web, socket: Open) -> None:
    """Polls and what comes by WebSocket are late by what was asked for; afterwards they are not."""
    opened = socket(server, client)
    begin(server, "delay", 600, "--amount", "1.2")
    wait_for(lambda: "begins: delay" in server.log_text(), NOTICED_S, "it begins")
    time.sleep(0.3)
    started = time.monotonic()
    client.poll({"list": 0}, epoch="x")
    assert time.monotonic() - started >= 1.2
    echoes(opened, 10)
    started = time.monotonic()
    assert echoes(opened, 10)
    assert time.monotonic() - started >= 1.2
    stop(server)
    wait_for(lambda: "ended: delay" in server.log_text(), NOTICED_S, "it ends")
    assert echoes(opened, 5)


def test_every_worker_obeys(start_server: StartServer) -> None:
    """With three of them, each refuses: twenty upgrades in a row."""
    server = start_server(workers=3)
    web = Web(server.url).sign_in()
    begin(server, "refuse", 600)
    wait_for(lambda: server.log_text().count("begins: refuse") == 3, NOTICED_S, "all three begin")
    assert {upgrade_status(server, web) for _ in range(20)} == {403}
    stop(server)
    wait_for(lambda: server.log_text().count("ended: refuse") == 3, NOTICED_S, "all three end")


def test_a_worker_that_starts_meanwhile_obeys_too(server: Server, client: Web) -> None:
    """A restart is no way out of a drill."""
    begin(server, "refuse", 600)
    wait_for(lambda: "begins: refuse" in server.log_text(), NOTICED_S, "it begins")
    server.restart()
    wait_for(lambda: upgrade_status(server, client) == 403, NOTICED_S, "it goes on")
    stop(server)


def test_a_client_loses_nothing(server: Server, client: Web) -> None:
    """Who is connected falls back within seconds, their messages arrive, and they come back after the end."""
    with Steady(client) as person:
        person.wait(lambda: person.way == "websocket", 10, "it is connected")
        begin(server, "refuse", 600)
        person.wait(lambda: person.way == "polling", 10, "it falls back")
        during = person.send("during")
        person.wait(lambda: during in person.acknowledged, 10, "it is taken")
        person.wait(lambda: during in [message.client_id for message in person.shown()], 10, "it is shown")
        assert person.way == "polling"
        stop(server)
        person.wait(lambda: person.way == "websocket", 20, "it comes back")


def test_a_drill_is_shown_and_explains_what_a_test_finds(server: Server, client: Web) -> None:
    """On /connection in words; the doctor's verdict is the drill, not the network."""
    begin(server, "refuse", 600)
    wait_for(lambda: 'class="notice drill"' in client.get("/connection").text, NOTICED_S, "it is shown")
    found = Doctor(Way.to(server.url, "")).examine(EMAIL, PASSWORD, idle_s=1, hold_s=1)
    assert (found.verdict.name, found.verdict.fixes) == ("drill", ("drill",))
    stop(server)
    wait_for(lambda: 'class="notice drill"' not in client.get("/connection").text, NOTICED_S, "it is gone")


@pytest.mark.slow
def test_the_command_waits_and_reports(server: Server) -> None:
    """Until the drill is over and clients had a moment to come back."""
    started = time.monotonic()
    run = run_chatapp(server, "drill", "start", "close", "--seconds", "2", "--json")
    found = json.loads(run.stdout)
    assert (found["fault"], found["running"], found["seconds"], found["still_without"]) == ("close", False, 2.0, 0)
    assert time.monotonic() - started > 2 + 15
    assert "fell back: 0" in run_chatapp(server, "drill", "report").stdout


def test_scheduled(start_server: StartServer) -> None:
    """Three workers, and one drill at its minute."""
    now = datetime.now()
    minutes = now.hour * 60 + now.minute
    slots = [f"daily {m // 60 % 24:02}:{m % 60:02} 429 2" for m in range(minutes, minutes + 3)]
    server = start_server(workers=3, drill_schedule=",".join(slots))
    web = Web(server.url)
    wait_for(lambda: "begins: 429" in server.log_text(), 15, "the minute's drill begins")
    wait_for(lambda: "ended: 429" in server.log_text(), 2 + NOTICED_S, "it ends")
    found = json.loads(run_chatapp(server, "drill", "report", "--json").stdout)
    assert (found["fault"], found["seconds"]) == ("429", 2)
    assert web.get("/healthz").status == 200


@pytest.mark.parametrize(
    "text",
    ["daily", "sun 04:00", "sun 24:00 refuse 60", "sun 04:00 explode 60", "sun 04:00 mute 901", "x 04:00 mute 9"],
)
def test_a_wrong_schedule_stops_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="CHATAPP_DRILL_SCHEDULE"):
        load({"CHATAPP_DRILL_SCHEDULE": text})


def test_a_schedule() -> None:
    """Day or daily, time, fault, seconds; shown as it was given."""
    slots = load({"CHATAPP_DRILL_SCHEDULE": "Sun 04:00 refuse 60, daily 5:30 mute 9"}).drill_schedule
    assert slots == (DrillSlot("sun", 4, 0, "refuse", 60), DrillSlot("daily", 5, 30, "mute", 9))
    assert str(slots[1]) == "daily 05:30 mute 9"
    assert slots[0].is_at(datetime(2026, 11, 22, 4, 0, 59)) and not slots[0].is_at(datetime(2026, 11, 23, 4, 0))
    drilled = [conditions["drill"] for rules in RULES.values() for name, conditions in rules if name == "drill"]
    assert drilled and all(set(faults) == set(DRILL_FAULTS) for faults in drilled), "Run test knows all of them"


def state(page: str, number: int, before: str, after: str, at: int) -> ConnectionEvent:
    """A page's change of state."""
    return ConnectionEvent(page, number, "p", "state", "websocket", before, after, None, at, "{}")


def test_report() -> None:
    """Who fell back and when, the longest time without either way, who came back and when."""
    drill = Drill(1, "u", "refuse", None, None, 0.0, 1000, 61_000)
    events: list[Any] = [
        state("a", 1, "connected", "reconnecting", 1100),
        state("a", 2, "reconnecting", "polling", 1300),
        state("b", 1, "connected", "reconnecting", 1200),
        ConnectionEvent("s", 2, "p", "server-close", "websocket", None, None, None, 1200, "{}"),
        state("b", 2, "reconnecting", "polling", 2000),
        state("c", 1, "connected", "reconnecting", 2000),
        state("a", 3, "polling", "connected", 63_000),
    ]
    found = report(drill, events)
    assert found == {
        "pages": 3,
        "fell_back": 2,
        "fell_back_ms": 650,
        "fell_back_slowest_ms": 1000,
        "longest_gap_ms": 800,
        "still_without": 1,
        "back": 1,
        "back_ms": 2000,
        "back_slowest_ms": 2000,
        "sockets_ended": 1,
    }
    assert report(drill, [])["fell_back_ms"] is None


@pytest.mark.parametrize("command", [("start", "refuse"), ("stop",), ("report",)])
def test_a_folder_that_no_server_used_is_named_and_left_alone(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A forgotten DATA_DIR would drill nobody, and look like a drill without effect."""
    found = run_chatapp(Server(tmp_path, data_dir=tmp_path / "elsewhere"), "drill", *command)
    assert found.returncode == 1 and f"DATA_DIR={tmp_path / 'elsewhere'}: no server has run with it." in found.stderr
    assert not (tmp_path / "elsewhere").exists()
