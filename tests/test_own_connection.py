"""\"How is my connection?\" is answered from the live records, with and without a model."""

from collections.abc import Callable, Iterator

import pytest
from headless.client import Client as Headless
from lab.asking import Play, playing
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.model import Handler
from lab.processes import wait_for
from lab.server import Server

from chatapp.assistant.questions import asks_for_connection
from chatapp.store import Turn

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
