"""What a person may ask in a time: one budget over both transports and all workers, refused with the wait."""

import multiprocessing
import os
import random
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from headless.client import Client as Headless
from lab.faultproxy import FaultProxy
from lab.http import JSON, Answer, Client
from lab.peer import WebSocketPeer
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.server import Server, run_chatapp
from websockets.exceptions import InvalidStatus

StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
StartClient = Callable[..., Headless]
PEOPLE = int(os.environ.get("BUDGETS", "3"))  # `make budgets`: 20 limited ones, and as many honest ones
SECONDS = 8 if PEOPLE < 10 else 40
BUDGET_PER_S = 2


@pytest.mark.parametrize("workers", [1, 2])
def test_sends_have_one_budget_over_both_transports(start_server: StartServer, workers: int) -> None:
    server = start_server(assistant="off", rate_limit_sends="6/minute", workers=workers)
    client = Client(server.url).sign_in()
    conversation = client.create().json["conversation"]
    with WebSocketPeer(client) as peer:
        peer.subscribe({conversation: 0})
        by_socket = [peer.send(conversation, f"socket {n}") for n in range(3)]
        by_post = [client.post_message(conversation, f"post {n}") for n in range(5)]
        late = peer.send(conversation, "one more")
    assert [sent.refused for sent in by_socket] == ["", "", ""]
    assert [answer.status for answer in by_post] == [201, 201, 201, 429, 429]
    refused = by_post[-1]
    assert refused.json["error"]["code"] == "rate" and 1 <= int(refused.headers["Retry-After"]) <= 10
    assert late.refused == "rate"
    (other,) = add_people(server, "grace@example.org")
    grace = signed_in(server, "grace@example.org")
    assert other and grace.post_message(grace.create().json["conversation"], "mine").status == 201, "others have theirs"


@pytest.mark.parametrize("workers", [1, 3])
def test_who_waits_as_long_as_was_said_is_taken(start_server: StartServer, workers: int) -> None:
    server = start_server(assistant="off", rate_limit_sends="6/second", workers=workers)
    client = Client(server.url).sign_in()
    conversation = client.create().json["conversation"]

    def send_until_refused(_: int) -> tuple[int, int]:
        """How many were taken, each by a new connection (any worker), and the wait that the refused one is told."""
        taken, until = 0, time.monotonic() + 20
        while (answer := client.clone().post_message(conversation, "x")).status == 201 and time.monotonic() < until:
            taken += 1
        assert answer.status == 429
        return taken, int(answer.headers["Retry-After"])

    began, sent = time.monotonic(), 0
    for _ in range(3):
        with ThreadPoolExecutor(4) as senders:  # together they outrun the budget on a slow machine as well
            answers = list(senders.map(send_until_refused, range(4)))
        time.sleep(max(wait for _, wait in answers))
        assert client.clone().post_message(conversation, "y").status == 201
        sent += sum(taken for taken, _ in answers) + 1
    assert sent <= 6 * (1 + time.monotonic() - began) + 6 * workers, "together, not each"


@pytest.mark.parametrize(
    ("setting", "path", "statuses"),
    [
        ("rate_limit_polls", "/changes?epoch=x&c=list:0&wait=0", {200, 429}),
        ("rate_limit_pages", "/connection", {200, 429}),
        ("rate_limit_pages", "/account", {200, 429}),
        ("rate_limit_pages", "/connection/test/mark", {200, 429}),
    ],
)
def test_polls_and_pages_have_theirs(start_server: StartServer, setting: str, path: str, statuses: set[int]) -> None:
    server = start_server(assistant="off", **{setting: "5/minute"})
    client = Client(server.url).sign_in()
    answers = [client.request("GET", path, headers=JSON) for _ in range(9)]
    assert {answer.status for answer in answers} == statuses
    assert answers[-1].status == 429 and int(answers[-1].headers["Retry-After"]) > 0
    client.token = client.token or client.sign_in().token
    assert client.request("GET", "/healthz").status == 200
    assert client.post("/sign-out").status == 303, "nobody is kept from leaving"


def test_connects_and_sockets_are_limited_and_say_so(start_server: StartServer) -> None:
    server = start_server(assistant="off", rate_limit_connects="4/minute", max_sockets_per_user=3)
    client = Client(server.url).sign_in()

    def mark() -> str:
        return client.request("GET", "/connection/test/mark").text

    peers = [WebSocketPeer(client) for _ in range(3)]
    for peer in peers:
        peer.echo()
    assert 'limited="yes"' in mark()
    with pytest.raises(InvalidStatus) as many:
        WebSocketPeer(client).echo()
    assert many.value.response.status_code == 429 and many.value.response.headers["Retry-After"] == "60"
    for peer in peers:
        peer.close()
    with WebSocketPeer(client) as peer:
        peer.echo()
    with pytest.raises(InvalidStatus) as fast:
        WebSocketPeer(client).echo()
    assert fast.value.response.status_code == 429
    assert 1 <= int(fast.value.response.headers["Retry-After"]) <= 15
    assert 'limited="yes"' in mark() and 'room="yes"' in mark()


def test_a_client_waits_loses_nothing_and_blames_nobody(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    """A socket and a poller of one person: both wait out what is said, in order; none asks before."""
    server = start_server(assistant="off", rate_limit_sends="30/minute")
    proxy = start_proxy(server)
    client = start_client(proxy.url, "polling")
    client.reach("polling")
    conversation = client.create("the first")
    texts = [f"message {number}" for number in range(35)]
    for text in texts:
        client.send(conversation, text)
    client.wait(lambda: not client.state["waiting"], 40, "all is sent")
    client.wait(lambda: [m.text for m in client.messages(conversation)] == ["the first", *texts], 10, "in order")
    assert client.record["status"] == "polling"
    posts = [seen for seen in proxy.requests if seen.path.endswith("/messages") and seen.status]
    refused = [number for number, seen in enumerate(posts) if seen.status == 429]
    assert refused
    for number in refused:
        answer, after = posts[number].answer, posts[number + 1].at - posts[number].answered_at
        assert answer is not None and after >= int(answer.headers["retry-after"]) - 0.05, "never before Retry-After"


def test_limits_on_connects_leave_polling(start_server: StartServer, start_client: StartClient) -> None:
    server = start_server(assistant="off", max_sockets_per_user=1)
    one, other = start_client(server.url), start_client(server.url)
    one.reach("connected")
    other.reach("polling")
    other.wait(lambda: other.record["reason"] == "rate-limited", 10, "it is said")
    conversation = other.create("over polls")
    one.follow(conversation)
    one.wait(lambda: [m.text for m in one.messages(conversation)] == ["over polls"], 10)


@pytest.mark.parametrize(("what", "workers"), [("poll", 1), ("send", 1), ("send", 2)])
def test_what_is_refused_before_flask_is_answered_as_flask_does_it(
    start_server: StartServer, what: str, workers: int
) -> None:
    """During a drill Flask answers; the headers and the body are the same."""
    budgets = {"rate_limit_polls": "2/minute", "rate_limit_sends": "2/minute"}
    server = start_server(assistant="off", workers=workers, **budgets)
    client = Client(server.url).sign_in()
    conversation = client.create().json["conversation"]

    def ask() -> Answer:
        return client.poll({"list": 0}) if what == "poll" else client.post_message(conversation, "more")

    def refused() -> Answer:
        """The second of two refusals in a row: of a send, the first one is Flask's, which asks the leases."""
        answers = [ask() for _ in range(6)]
        assert [answer.status for answer in answers[-2:]] == [429, 429]
        return answers[-1]

    before = refused()
    add_people(server, "drilled@example.org")
    drill = ("drill", "start", "mute", "--seconds", "60", "--no-wait", "--person", "drilled@example.org")
    assert run_chatapp(server, *drill).returncode == 0
    wait_for(lambda: "begins: mute" in server.log_text(), 10, "the drill, of somebody else, has begun")
    by_flask = refused()
    assert before.json == by_flask.json and before.json["error"]["code"] == "rate"
    changing = ("Date", "Retry-After", "Content-Length", "Connection")
    first, second = ({k: v for k, v in one.headers.items() if k not in changing} for one in (before, by_flask))
    assert first == second | {"Vary": "Cookie"}
    assert 0 < int(before.headers["Retry-After"]) <= 30


@pytest.mark.parametrize("kind", ["length", "chunked"])
@pytest.mark.parametrize("size", [1, 20_000, 400_000])
def test_the_body_of_a_refused_message_is_no_request(start_server: StartServer, kind: str, size: int) -> None:
    """It is refused before its body is read: what stands in it must not be taken for the connection's next request."""
    server = start_server(assistant="off", rate_limit_sends="1/minute")
    client = Client(server.url).sign_in()
    conversation = client.create().json["conversation"]
    while client.post_message(conversation, "x").status != 429:
        pass
    inner = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    body = inner * (size // len(inner) + 1)
    connection = HTTPConnection(client.host, client.port, timeout=20)
    form = "application/x-www-form-urlencoded"
    headers = {**JSON, "Cookie": client.cookie_header, "X-CSRFToken": client.token, "Content-Type": form}
    path = f"/c/{conversation}/messages"
    with closing(connection):
        for _ in range(3):
            chunked = kind == "chunked"
            connection.request("POST", path, iter([body]) if chunked else body, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            assert answer.status == 429 and b'"rate"' in answer.read()
        connection.request("GET", "/healthz")
        assert (answer := connection.getresponse()).status == 200 and answer.read() == b"ok\n"


def test_a_locked_database_holds_up_no_poll(start_server: StartServer) -> None:
    server = start_server(assistant="off", workers=2, rate_limit_polls="200/second", rate_limit_pages="200/second")
    client = Client(server.url).sign_in()
    cursor = client.poll({"list": 0}).page.one("chat-feed").number("to")
    copies = [client.clone() for _ in range(4)]
    for copy in copies:
        copy.poll({"list": cursor})
    with closing(sqlite3.connect(server.data / "chat.db", timeout=20, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert {copy.poll({"list": cursor}).status for copy in copies for _ in range(20)} == {204}
        assert time.monotonic() - began < 2
        database.execute("ROLLBACK")


def test_people_over_their_budget_do_not_slow_the_others(start_server: StartServer) -> None:
    """Behind one address, at three times their budget. Compared in one run, by turns: the honest ones alone, and with
    the others, who go to another server in between: so their own work weighs on the machine in both."""
    limit = f"{60 * BUDGET_PER_S}/minute"
    servers = [start_server(assistant="off", rate_limit_sends=limit, rate_limit_polls=limit) for _ in range(2)]
    honest = in_rooms(servers[0], [f"honest{number}@example.org" for number in range(PEOPLE)])
    greedy_ones = [in_rooms(server, [f"greedy{number}@example.org" for number in range(PEOPLE)]) for server in servers]
    context = multiprocessing.get_context("spawn")
    greedy, stop, refused = context.Event(), context.Event(), context.Value("i", 0)
    others = context.Process(target=ask_too_much, args=(*greedy_ones, greedy, stop, refused))
    others.start()
    p95: dict[bool, list[float]] = {True: [], False: []}
    try:
        wait_for(lambda: refused.value >= 2 * PEOPLE, 60, "their budgets are spent beforehand")
        for turn in range(2 * max(2, SECONDS // 8)):
            is_loaded = bool(turn % 2)
            (greedy.set if is_loaded else greedy.clear)()
            time.sleep(0.5)
            p95[is_loaded].append(percentile_of_sends(honest))
    finally:
        stop.set()
        others.join(20)
    assert refused.value > 2 * PEOPLE
    turns = list(zip(p95[True], p95[False], strict=True))
    ratio = statistics.median(loaded / alone for loaded, alone in turns)
    more_ms = 1000 * statistics.median(loaded - alone for loaded, alone in turns)
    print(f"p95 loaded / alone: {ratio:.2f}, {more_ms:+.1f} ms ({PEOPLE} and {PEOPLE} people, {refused.value} refused)")
    if PEOPLE >= 10:
        assert ratio <= 1.3 or more_ms <= 5


def in_rooms(server: Server, emails: list[str]) -> list[tuple[Client, str]]:
    """These people, signed in, each with a conversation of their own."""
    add_people(server, *emails)
    clients = [signed_in(server, email) for email in emails]
    return [(client, client.create().json["conversation"]) for client in clients]


def percentile_of_sends(pairs: list[tuple[Client, str]]) -> float:
    """The 95th percentile of the seconds that a message of each person takes, within their budget."""
    times = []
    for _ in range(4):
        for client, room in pairs:
            began = time.monotonic()
            assert client.post_message(room, "honest").status == 201
            times.append(time.monotonic() - began)
        time.sleep(1 / BUDGET_PER_S)
    return sorted(times)[int(0.95 * (len(times) - 1))]


def ask_too_much(
    here: list[tuple[Client, str]], elsewhere: list[tuple[Client, str]], greedy: Any, stop: Any, refused: Any
) -> None:
    """Spend the budgets of these people, then send and poll at three times of them: here while `greedy` is set."""

    def go_on(*pairs: tuple[Client, str]) -> None:
        for client, room in pairs:
            while client.post_message(room, "more").status != 429:
                pass
            refused.value += 1
        while not stop.wait(random.uniform(0, 2 / (3 * BUDGET_PER_S))):  # else all of them come at one moment
            client, room = pairs[0 if greedy.is_set() else 1]
            statuses = [client.post_message(room, "more").status, client.poll({room: 0}).status]
            with refused.get_lock():
                refused.value += statuses.count(429)

    threads = [threading.Thread(target=go_on, args=pair) for pair in zip(here, elsewhere, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
