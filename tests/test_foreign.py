"""Answers that others gave in the server's place, and what the Python client makes of each."""

import json
import random
from collections.abc import Callable, Iterator

import pytest
from lab.faultproxy import FaultProxy
from lab.http import Client as Person
from lab.server import EMAIL, PASSWORD, Server

from chatapp.client import Client
from chatapp.client.actions import Answer
from chatapp.client.core import MOST_OUTCOMES, Core, Settings
from chatapp.client.feeds import parse
from chatapp.client.outbox import Ack, Again, Refusal
from chatapp.client.polling import Urls, failure

PAGE = "<html>Blocked by policy</html>"


def refusal(code: object) -> str:
    return json.dumps({"error": {"code": code, "message": "words"}})


def make_core() -> Core:
    machine = {"transports": ["polling"], "reconnect_ms": 5000, "max_attempts": 10, "poll_ms": 3000}
    machine |= {"poll_retries": 3, "poll_backoff": 1.5, "latency_ms": 0}
    return Core(Settings(machine=machine, urls=Urls("/changes", "/c", "/c/{id}/messages")), random.random)


@pytest.mark.parametrize(
    ("status", "text", "is_final"),
    [
        (422, refusal("too-long"), "too-long"),
        (404, refusal("gone"), "gone"),
        (403, refusal("origin"), "origin"),
        (413, PAGE, "too-long"),
        (403, PAGE, "network-filter"),
        (403, refusal(7), "network-filter"),
        (404, PAGE, ""),
        (410, PAGE, ""),
        (400, "{}", ""),
        (451, json.dumps({"error": "blocked"}), ""),
        (400, refusal(None), ""),
        (200, PAGE, ""),
        (407, PAGE, ""),
    ],
)
def test_only_ours_and_a_filter_refuse_a_message_for_good(status: int, text: str, is_final: str) -> None:
    outcome = make_core().polling.outcome(Answer(status, text))
    assert isinstance(outcome, Refusal if is_final else Again)
    assert (outcome.code if isinstance(outcome, Refusal) else outcome.reason) == (is_final or "foreign-page")
    assert not isinstance(outcome, Refusal) or outcome.words or status == 413


@pytest.mark.parametrize("text", [PAGE, refusal("blocked"), "{}"])
def test_a_poll_that_is_forbidden_is_asked_again(text: str) -> None:
    """The server never answers a poll so: a filter does."""
    assert failure(Answer(403, text)) == {"type": "poll_failed", "reason": "foreign-page"}


def test_outcomes_are_remembered_in_bounds() -> None:
    core = make_core()
    for number in range(MOST_OUTCOMES + 5):
        markup = f'<chat-ack client-id="{number}" conversation="c" id="i" position="1" revision="1"></chat-ack>'
        core.receive(parse(markup)[0], "websocket")
    assert len(core.acks) == MOST_OUTCOMES
    assert "4" not in core.acks and core.acks["5"] == Ack("i", 1, 1)


@pytest.fixture
def reached(server: Server, start_proxy: Callable[[Server], FaultProxy]) -> Iterator[tuple[Client, FaultProxy, Server]]:
    """A client behind a proxy."""
    proxy = start_proxy(server)
    with Client(proxy.url, EMAIL, PASSWORD) as client:
        client.wait(lambda: client.record["status"] == "connected", 10)
        yield client, proxy, server


def test_a_conversation_that_was_not_made_says_so(reached: tuple[Client, FaultProxy, Server]) -> None:
    client, proxy, server = reached
    proxy.http_error, proxy.http_error_on = (502, {}), "/c"
    with pytest.raises(OSError, match="502"):
        client.create()
    proxy.http_error = None
    gone = client.create()
    Person(server.url).sign_in().post(f"/c/{gone}/delete")
    with pytest.raises(ValueError, match="gone"):
        client.create(conversation=gone)
    with pytest.raises(ValueError, match="too-long"):
        client.create("x" * 20_001)


def test_sockets_that_ended_are_forgotten(reached: tuple[Client, FaultProxy, Server]) -> None:
    client, proxy, _ = reached
    proxy.reset_sockets()
    client.wait(lambda: len(proxy.upgrades()) > 1, 15, "it dials again")
    client.wait(lambda: client.record["status"] == "connected", 20)
    client.wait(lambda: len(client._sockets) == 1, 5, "one is left")
