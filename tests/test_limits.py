"""What one person can have stored is bounded: connection events, conversations; and old events go by themselves."""

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from lab.http import JSON, Client
from lab.processes import wait_for
from lab.server import Server

from chatapp.accounts.limits import Limits, Quota, Rate
from chatapp.config import Settings
from chatapp.store.leases import LeaseTable

REPORTS = 30  # of 200 events of 2 kB: 12 MB in a few seconds
CONVERSATIONS = 340


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("limits"), assistant="off") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url).sign_in()


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def size_of(server: Server) -> int:
    """Bytes of all databases with their logs."""
    return sum(path.stat().st_size for path in server.data.glob("*.db*"))


def event(number: int, client: str, padding: int = 1900) -> dict[str, object]:
    now = round(time.time() * 1000)
    return {"client": client, "number": number, "at": now, "type": "state", "data": {"x": "x" * padding}}


def report(client: Client, numbers: range, name: str, padding: int = 1900) -> tuple[int, str, str]:
    """Status, Retry-After and text of one report."""
    answer = client.post("/connection/events", JSON, events=json.dumps([event(n, name, padding) for n in numbers]))
    return answer.status, answer.headers["Retry-After"] or "", answer.text


def test_reports_without_end_meet_a_quota_and_fill_no_disk(server: Server, client: Client) -> None:
    name, before, refused = str(uuid.uuid4()), size_of(server), []
    for number in range(REPORTS):
        status, retry, text = report(client, range(number * 200, number * 200 + 200), name)
        if status != 204:
            refused.append((status, json.loads(text)["error"]["code"]))
            assert 0 < int(retry) < 3600
    assert len(refused) > REPORTS / 2 and set(refused) == {(429, "rate")}
    assert size_of(server) - before < 8 << 20
    with sqlite3.connect(server.data / "metrics.db") as database:
        (longest,) = database.execute("SELECT max(length(data)) FROM connection_events").fetchone()
    assert longest <= 2000
    assert client.post_message(client.create("hello").json["conversation"], "still here").status == 201
    status, retry, _ = report(client, range(8000, 8001), name, padding=200)
    if status == 429:  # else a slow machine has waited meanwhile
        time.sleep(int(retry))
        assert report(client, range(8000, 8001), name, padding=200)[0] == 204, "who waits as long as was said is taken"


def test_connections_without_end_are_stored_within_the_same_quota() -> None:
    """A socket that is opened again and again leaves events, too."""
    now = [0.0]
    quota = Quota(Rate(10, 1), Rate(100, 50), clock=lambda: now[0])
    assert [quota.consume("ada", 1, 1) for _ in range(12)] == [0.0] * 10 + [1.0, 1.0]
    assert quota.consume("bob", 1, 1) == 0, "others have their own"
    now[0] = 1.0
    assert quota.consume("ada", 1, 1) == 0
    assert quota.consume("bob", 1, 150) == pytest.approx(1.0)
    now[0] = 2.0
    assert quota.consume("bob", 1, 150) == pytest.approx(1.0), "more than fits at once is never taken"


def test_text_of_messages_has_a_bound_that_no_person_meets(server: Server, client: Client) -> None:
    """A separate bucket: a megabyte of messages is nothing, a loop that fills the disk is stopped."""
    limits = Limits(Settings(data_dir=server.data), LeaseTable(None))  # type: ignore[arg-type]
    assert {limits.send(1, "x" * 20_000) for _ in range(900)} == {0.0}
    assert limits.stored.wait_s(1, 90_000_000) > 100 and limits.stored.wait_s(2, 90_000_000) == 0
    conversation = client.create("hello").json["conversation"]
    assert {client.post_message(conversation, "x" * 20_000).status for _ in range(50)} == {201}


def test_conversations_without_end_meet_a_quota_in_words(server: Server, client: Client) -> None:
    answers: list[int] = []
    last = [""]

    def begin(copy: Client, count: int) -> None:
        for _ in range(count):
            answer = copy.create()
            answers.append(answer.status)
            if answer.status == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                assert answer.json["error"]["code"] == "rate" and "conversations" in answer.json["error"]["message"]
            else:
                last[0] = answer.json["conversation"]

    threads = [threading.Thread(target=begin, args=(client.clone(), CONVERSATIONS // 4)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == CONVERSATIONS and set(answers) == {201, 429}
    assert answers.count(201) < 330
    assert client.create(conversation=last[0]).status == 201, "what was begun is known, and costs nothing"
    assert client.post_message(last[0], "goes on").status == 201


def test_old_events_are_deleted_and_young_ones_stay(server: Server) -> None:
    server.stop()
    old = round(time.time() * 1000) - 15 * 86_400_000
    insert = (
        "INSERT INTO connection_events (client, number, person, type, happened_at, received_at) VALUES (?,?,?,?,?,?)"
    )
    with sqlite3.connect(server.data / "metrics.db") as database:
        rows = [("old", number, "", "state", old, old) for number in range(1000)]
        database.executemany(insert, [*rows, ("young", 1, "", "state", old, old + 2 * 86_400_000)])
    server.start()

    def left() -> list[str]:
        with sqlite3.connect(server.data / "metrics.db") as database:
            return [row[0] for row in database.execute("SELECT client FROM connection_events")]

    wait_for(lambda: "old" not in left(), 30, "what is older than 14 days is deleted", every=0.3)
    assert "young" in left()
