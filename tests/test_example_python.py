"""The Python example (docs/examples/client.py), written from docs/protocol.md alone, against the real server."""

import ast
import asyncio
import gc
import importlib.util
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import pytest
from lab.faultproxy import FaultProxy, Seen
from lab.http import Client as Person
from lab.processes import marked_environment, wait_for
from lab.server import EMAIL, PASSWORD, ROOT, Server
from lab.whales import QUESTION, teach

EXAMPLE = ROOT / "docs/examples/client.py"
LONGEST = 250  # lines, as docs/protocol.md says
EVERY_S = 0.1  # from one message's acknowledgement to the next message
PATIENCE = 60

# A request that is cancelled while it connects, as in the end, leaves its socket to the garbage collector (anyio).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def load() -> Any:
    """The example as a module; it is no part of a package."""
    spec = importlib.util.spec_from_file_location("example_client", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


example = load()


class Talk(threading.Thread):
    """Somebody who says so many things by the example's client, and reads on until `enough` is set."""

    def __init__(self, url: str, messages: int) -> None:
        super().__init__(daemon=True)
        self.client = example.Client(url, EMAIL, PASSWORD)
        self.conversation, self.messages = str(uuid.uuid4()), messages
        self.sent: list[tuple[str, dict[str, Any]]] = []  # client_id and acknowledgement
        self.enough = threading.Event()
        self.problem: BaseException | None = None

    def run(self) -> None:
        """All of it; what went wrong is in `problem`."""
        try:
            asyncio.run(self._talk())
        except BaseException as problem:  # shown by the test's own thread
            self.problem = problem

    async def _talk(self) -> None:
        await self.client.send("c", id=self.conversation)
        self.client.feeds[self.conversation] = example.Feed()
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self.client.read())
            for number in range(self.messages):
                name, path = str(uuid.uuid4()), f"c/{self.conversation}/messages"
                self.sent.append((name, await self.client.send(path, client_id=name, body=f"{QUESTION} ({number})")))
                await asyncio.sleep(EVERY_S)
            while not self.enough.is_set():
                await asyncio.sleep(0.02)
            reading.cancel()
        await self.client.http.aclose()

    @property
    def by_websocket(self) -> bool:
        """Whether a WebSocket works, as the client sees it."""
        return not self.client.no_socket.is_set()

    def shown(self) -> list[tuple[str, ...]]:
        """What it shows of the conversation, in order."""
        items = list(self.client.feeds[self.conversation].items.values())
        items.sort(key=lambda item: int(item.attrs["data-position"]))
        return [(*(item.attrs[name] for name in NAMES), *item.blocks.values()) for item in items]


NAMES = ("data-id", "data-client-id", "data-position", "data-author", "data-state")


def stored(server: Server, conversation: str) -> list[tuple[str, ...]]:
    """The same as a page has it that is loaded now."""
    found = []
    for article in Person(server.url).sign_in().history(conversation):
        blocks = article.all("div", css_class="block") or [article.one("div", css_class="body")]
        sources = [block.get("data-source", block.source) for block in blocks]
        found.append((*(article.get(name) for name in NAMES), *sources))
    return found


@contextmanager
def talk(server: Server, url: str, messages: int) -> Iterator[Talk]:
    """Somebody talks; in the end everything has arrived, once and in order, and is shown as the server has it."""
    talking = Talk(url, messages)
    talking.start()

    def is_at_rest() -> bool:
        assert talking.problem is None, repr(talking.problem)
        shown = talking.shown() if len(talking.sent) == messages else []
        return bool(shown) and shown[-1][3:5] == ("assistant", "completed")

    try:
        yield talking
        wait_for(is_at_rest, PATIENCE, "all is said and answered")
        there = stored(server, talking.conversation)
        wait_for(lambda: talking.shown() == there, 20, "it shows what the server has")
        mine = [(row[1], row[0], int(row[2])) for row in there if row[3] == "user"]
        assert mine == [(name, ack["id"], ack["position"]) for name, ack in talking.sent]
        assert talking.conversation in talking.client.feeds["list"].items
    finally:
        talking.enough.set()
        talking.join(20)
        gc.collect()
    assert talking.problem is None and not talking.is_alive()


@pytest.fixture(scope="module")
def whales(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose assistant knows characters beyond U+FFFF and writes slowly enough to be disturbed."""
    directory = tmp_path_factory.mktemp("whales")
    teach(directory)
    with Server(directory, assistant_pace=600) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture
def proxy(whales: Server, start_proxy: Callable[[Server], FaultProxy]) -> FaultProxy:
    """A fault proxy before it."""
    return start_proxy(whales)


def subscribed(proxy: FaultProxy) -> list[int]:
    """The cursors of all subscriptions so far."""
    frames = [json.loads(frame.text) for frame in list(proxy.frames) if frame.up and '"subscribe"' in frame.text]
    return [cursor for frame in frames for cursor in frame["feeds"].values()]


def posted(proxy: FaultProxy) -> list[str]:
    """The client_ids that went to the server so far, repeated ones again."""
    requests = [seen for seen in list(proxy.requests) if seen.path.endswith("/messages")]
    return [parse_qs(seen.body.decode())["client_id"][0] for seen in requests]


def polls(proxy: FaultProxy, since: float = 0.0) -> list[Seen]:
    """The polls that were answered."""
    return [seen for seen in proxy.seen("/changes", since=since) if seen.status in (200, 204)]


def test_it_is_short_and_knows_only_two_libraries() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert max(map(len, text.splitlines())) <= 120
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
    others = {str(name).split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"httpx", "websockets"}


def test_as_a_program_it_prints_the_answer(whales: Server) -> None:
    command = [sys.executable, str(EXAMPLE), whales.url, EMAIL, PASSWORD, QUESTION]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=marked_environment())
    assert (run.returncode, run.stderr) == (0, "")
    assert "🦑 squids instead" in run.stdout and run.stdout.startswith("<p>")


def test_a_wrong_password_is_the_last_word(whales: Server) -> None:
    command = [sys.executable, str(EXAMPLE), whales.url, EMAIL, "a wrong one", QUESTION]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=marked_environment())
    assert run.returncode == 1 and "Refused: POST 422" in run.stderr


def test_sockets_that_are_cut(whales: Server, proxy: FaultProxy) -> None:
    """Twice; each time it comes back from its cursor."""
    with talk(whales, proxy.url, 20) as talking:
        for count in (5, 12):
            wait_for(lambda: talking.by_websocket, 20, "it is connected")
            wait_for(lambda n=count: len(talking.sent) >= n, 20, "it has said something", every=0.01)  # type: ignore[misc]
            before = len(subscribed(proxy))
            assert proxy.reset_sockets() == 1
            wait_for(lambda n=before: len(subscribed(proxy)) > n, 20, "it comes back")  # type: ignore[misc]
            assert 0 not in subscribed(proxy)[before:], "from its cursor"


def test_upgrades_that_are_refused_and_later_let_through(whales: Server, proxy: FaultProxy) -> None:
    proxy.upgrade = "refuse"
    with talk(whales, proxy.url, 20) as talking:
        wait_for(lambda: len(talking.sent) >= 10 and len(proxy.upgrades()) >= 2, 20, "it goes on, and tries again")
        assert not talking.by_websocket and polls(proxy)
        proxy.heal()
        wait_for(lambda: talking.by_websocket, 20, "it goes back to WebSocket")
        connected = time.time() + 1  # one may be under way
        wait_for(lambda: len(talking.sent) == talking.messages, 20, "all is said")
    assert not polls(proxy, since=connected), "no poll begins while a WebSocket works"


@pytest.mark.parametrize("direction", ["both", pytest.param("up", marks=pytest.mark.slow)])
def test_a_socket_that_goes_silent(whales: Server, proxy: FaultProxy, direction: str) -> None:
    """It stays open and passes nothing, or only what the server says: it is polled, and another one is opened."""
    with talk(whales, proxy.url, 20) as talking:
        wait_for(lambda: talking.by_websocket and len(talking.sent) >= 5, 20, "it is connected")
        assert proxy.blackhole_sockets(direction) == 1
        proxy.upgrade = "mute"  # and the next ones as well
        silent = time.time()
        wait_for(lambda: polls(proxy, since=silent), 15, "it polls")
        assert not talking.by_websocket
        proxy.heal()
        wait_for(lambda: talking.by_websocket, 30, "it goes back to WebSocket")


def test_polls_that_are_cut_and_replies_that_are_lost(whales: Server, proxy: FaultProxy) -> None:
    """A message whose acknowledgement is lost goes out again, and is there once."""
    proxy.upgrade = "refuse"
    with talk(whales, proxy.url, 12) as talking:
        wait_for(lambda: len(talking.sent) >= 3, 20, "messages are sent", every=0.01)
        proxy.cut_news = [0.5, 0.01, 0.8]
        proxy.lose_replies = 2
        wait_for(lambda: not proxy.cut_news and not proxy.lose_replies, 40, "it happens")
    assert len(set(posted(proxy))) == talking.messages < len(posted(proxy))


def test_it_is_silent_for_as_long_as_a_retry_after_says(whales: Server, proxy: FaultProxy) -> None:
    proxy.upgrade = "refuse"
    with talk(whales, proxy.url, 25) as talking:
        wait_for(lambda: len(talking.sent) >= 3 and polls(proxy), 20, "it polls")
        proxy.http_error = (429, {"Retry-After": "4"})
        refused = wait_for(lambda: [s for s in proxy.seen("/changes") if s.status == 429], 20, "it is to wait")[0]  # type: ignore[index]
        proxy.http_error = None
        wait_for(lambda: polls(proxy, since=refused.answered_at), 20, "it polls again")
    after = [seen.at - refused.answered_at for seen in proxy.requests if seen.at > refused.answered_at]
    assert not [seconds for seconds in after if 1 < seconds < 3.9], "not even a message, once it knows"
    assert len([seconds for seconds in after if seconds >= 3.9]) > 5, "then it goes on"
