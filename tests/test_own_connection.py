"""\"How is my connection?\" is answered from the live records, with and without a model."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import pytest
from headless.client import Client as Headless
from lab.asking import Play, playing
from lab.faultproxy import FaultProxy
from lab.http import JSON, Client
from lab.model import Handler
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.server import Server
from sqlalchemy import text

from chatapp.assistant.questions import asked_for, asks_for_connection
from chatapp.monitoring.alerts import fresh
from chatapp.monitoring.happened import WHAT_HAPPENED, happened_words, span_of
from chatapp.monitoring.incidents import Moment
from chatapp.parts import Parts
from chatapp.store import Turn
from chatapp.store.alerts import Incident

StartServer = Callable[..., Server]


@pytest.fixture
def play() -> Iterator[Play]:
    """Starts scripted model servers."""
    with playing() as start:
        yield start


def answer(client: Client, question: str) -> str:
    conversation = client.create(question).json["conversation"]

    def done() -> str:
        last = client.history(conversation)[-1]
        return last.text if last.get("data-state") == "completed" else ""

    return str(wait_for(done, 15, "the answer"))


@pytest.mark.parametrize(
    ("question", "asks"),
    [
        ("How is my connection?", True),
        ("Am I connected?", True),
        ("Why am I polling?", True),
        ("Wie ist meine Verbindung?", True),
        ("¿Cómo está mi conexión?", True),
        ("How do I configure the connection of my database?", False),
        ("Why is polling slow?", False),
        ("my connection string for postgres", False),
        ("Is my connection string secret?", False),
        ("What is my connection pool size?", False),
        ("Am I connected to the VPN?", False),
        ("Why am I offline in the database?", False),
    ],
)
def test_who_asks_for_the_own_connection(question: str, asks: bool) -> None:
    assert asks_for_connection([Turn("user", question, person=7)]) == (7 if asks else 0)


def test_nobody_elses_connection_is_told() -> None:
    """Only of who asks, and only where it is a question to the assistant."""
    grace = Turn("user", "@assistant how is my connection?", "Grace", True, person=2)
    ada = Turn("user", "lunch at one?", "Ada", False, person=1)
    assert asks_for_connection([grace, ada]) == 2
    assert asks_for_connection([Turn("user", "How is my connection?", "Ada", False, person=1)]) == 0


def test_the_built_in_assistant_tells_the_live_record(
    start_server: StartServer, start_proxy: Callable[[Server], FaultProxy], start_client: Callable[..., Headless]
) -> None:
    server = start_server()
    me = Client(server.url).sign_in()
    assert "no record of your connection" in answer(me, "How is my connection?")
    live = start_client(server.url, reports=True)
    live.reach("connected")
    wait_for(lambda: "live over WebSocket since" in answer(me, "How is my connection?"), 20, "it is known")
    live.close()
    proxy = start_proxy(server)
    proxy.upgrade = "refuse"
    polls = start_client(proxy.url, reports=True)
    polls.reach("polling")
    told = wait_for(lambda: (text := answer(me, "Why am I polling?")).count("refused") and text, 25, "and why")
    assert "polling over HTTP" in str(told) and "HTTP/1.1" in str(told) and "Sources" in str(told)


def test_a_model_gets_the_live_record(
    play: Play, start_server: StartServer, start_client: Callable[..., Headless]
) -> None:
    def script(handler: Handler) -> None:
        handler.begin()
        handler.say("Fine.", finish="stop", end="[DONE]")

    model = play(script)
    server = start_server(**model.settings)
    me = Client(server.url).sign_in()
    live = start_client(server.url, reports=True)
    live.reach("connected")

    def told() -> bool:
        answer(me, "How is my connection?")
        return "live over WebSocket since" in model.requests[-1][2]["messages"][0]["content"]

    wait_for(told, 20, "it is in the request")
    answer(me, "What is a WebSocket?")
    assert "live record" not in model.requests[-1][2]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("question", "asks"),
    [
        ("What happened at 14:02?", True),
        ("what was wrong yesterday?", True),
        ("What happened?", True),
        ("What happened at 9:05 this morning", True),
        ("Was war um 14:02 los?", True),
        ("¿Qué pasó a las 14:02?", True),
        ("What's happened at 14:02?", True),
        ("Why was it slow at 2:15 pm?", True),
        ("Was war gestern los?", True),
        ("What happened with the connections last night?", True),
        ("What happened at 2:15pm?", True),
        ("What's up?", False),
        ("What was it?", False),
        ("what was that?", False),
        ("Was ist?", False),
        ("Was war gestern das Thema?", False),
        ("What happened in the meeting today?", False),
        ("What happened to the project Apollo?", False),
        ("What happened in the database upgrade runbook?", False),
        ("Was ist ein Reverse Proxy?", False),
        ("What was the ratio 4:3 for?", False),
    ],
)
def test_who_asks_what_happened(question: str, asks: bool) -> None:
    assert asked_for([Turn("user", question, person=7)], WHAT_HAPPENED) == (
        (7, question.strip(" \n,:")) if asks else (0, "")
    )


NOON = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("question", "start", "end"),
    [
        ("What happened at 11:02?", "30 10:47", "30 11:17"),
        ("What happened at 14:02?", "29 13:47", "29 14:17"),  # today it is still to come
        ("What happened yesterday at 9:30?", "29 09:15", "29 09:45"),
        ("What went wrong yesterday?", "29 00:00", "30 00:00"),
        ("What happened at 2:15 pm?", "29 14:00", "29 14:30"),
        ("What happened at 12:10 am?", "29 23:55", "30 00:25"),
        ("What happened last night at 2:00?", "30 01:45", "30 02:15"),
        ("What happened last night at 23:00?", "29 22:45", "29 23:15"),
        ("What happened last night?", "29 18:00", "30 09:00"),
        ("What happened?", "29 12:00", "30 12:00"),
        ("What was wrong this morning?", "29 12:00", "30 12:00"),
    ],
)
def test_the_time_that_is_asked_about(question: str, start: str, end: str) -> None:
    assert [f"{one:%d %H:%M}" for one in span_of(question, NOON)[:2]] == [start, end]


def test_incidents_are_told_to_operators(parts: Parts) -> None:
    people, alerts, now = parts.store.people, parts.store.alerts, int(NOON.timestamp() * 1000)
    ada = people.add_admin("Ada", "ada@example.org", "x").id
    grace = people.add_admin("Grace", "grace@example.org", "x").id
    with parts.store.database.write() as tx:
        tx.connection.execute(text("UPDATE people SET is_operator = (id = :ada) WHERE email > ''"), {"ada": ada})
    told = partial(happened_words, parts.store, now=now)
    assert told(ada, "What happened at 11:02?") == (
        "No incident is recorded around 11:02 UTC on Nov 30. None is recorded at all. What else changed is on"
        " **Monitor**."
    )
    at = now - 58 * 60_000
    moment = Moment(5 / 8, 8, "upgrade-refused", ("network", "a1b2c3d4"))
    incident = Incident(at, at + 20 * 60_000, ("polling-share",), {"polling-share": moment.dump()})
    alerts.save(fresh({}).values(), [], incident, {}, at)
    said = told(ada, "What happened at 11:10?")
    assert said.startswith("Around 11:10 UTC on Nov 30:\n\n- Nov 30: From 11:02 to 11:22 UTC, 5 of 8 people polled: in")
    assert "HTTP/1.1" in said, "what helps"
    assert "The last one, of Nov 30: From 11:02" in told(ada, "What happened at 6:10?")
    assert told(grace, "What happened at 11:10?") == "", "not for everybody"


def test_having_an_operators_question_answered_again_tells_nobody_else(start_server: StartServer) -> None:
    server = start_server(assistant="builtin")
    add_people(server, "grace@example.org")
    ada, grace = Client(server.url).sign_in(), signed_in(server, "grace@example.org")
    question = "What happened at 11:02?"
    conversation = ada.create(question).json["conversation"]

    def answers(number: int) -> list[str]:
        found = [one.text for one in ada.history(conversation) if one.get("data-state") == "completed"]
        return found if len(found) == number else []

    (first,) = wait_for(lambda: answers(1), 10, "the operator is told")
    assert "No incident is recorded" in first
    assert ada.post(f"/c/{conversation}/people", JSON, email="grace@example.org").status in (200, 201, 204, 303)
    assert grace.post(f"/c/{conversation}/again", JSON).status == 204
    second = wait_for(lambda: answers(2), 10, "another answer")[1]
    assert "No incident is recorded" not in second
    assert grace.create(question).status == 201
