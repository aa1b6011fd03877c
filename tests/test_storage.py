"""A database that is locked or full for a while: nothing is lost, nothing ends, and it is said when to come back."""

import json
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, prlimit

import pytest
from lab.http import JSON, Answer, Client
from lab.model import Handler, Scripted
from lab.peer import PollingPeer, WebSocketPeer
from lab.processes import wait_for
from lab.server import Server

from chatapp.transports.long_poll import unavailable


@contextmanager
def locked(server: Server) -> Iterator[None]:
    """Another program writes all the time."""
    other = sqlite3.connect(server.data / "chat.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def log_at_its_end(server: Server) -> Iterator[int]:
    """SQLite's log, written to its file's end and kept from starting over by a reader: its size, in bytes."""
    log = server.data / "chat.db-wal"
    least = max(log.stat().st_size, 256_000)  # more than any other file of the server's
    with closing(sqlite3.connect(server.data / "chat.db", isolation_level=None)) as other:
        while log.stat().st_size <= least:
            other.execute("PRAGMA user_version = 0")  # writes a page
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM people").fetchone()
        yield log.stat().st_size


@contextmanager
def full(server: Server) -> Iterator[None]:
    """No file of the server's grows any more."""
    assert server.process
    pid = server.process.pid
    workers = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    with log_at_its_end(server) as size:
        for each in workers:
            prlimit(each, RLIMIT_FSIZE, (size, RLIM_INFINITY))
        try:
            yield
        finally:
            for each in workers:
                prlimit(each, RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))


@contextmanager
def unreadable(server: Server) -> Iterator[None]:
    """The disk does not give back what is on it."""
    assert server.process
    file, pid = server.data / "chat.db", server.process.pid
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    paths = [word for name in ("chat.db", "chat.db-wal") for word in ("-P", str(server.data / name))]
    fault = ["-e", "trace=pread64", "-e", "inject=pread64:error=ESTALE"]
    traced = [word for worker in workers for word in ("-p", worker)]
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        tracer = subprocess.Popen(["strace", "-f", *traced, *paths, *fault], stderr=subprocess.PIPE, text=True)
        assert tracer.stderr
        try:
            assert "attached" in tracer.stderr.readline()
            rest = threading.Thread(target=tracer.stderr.read, daemon=True)
            rest.start()
            other.execute("PRAGMA user_version = 0")  # what the server has in memory is not the newest any more
            yield
        finally:
            tracer.terminate()
            tracer.wait(10)
            rest.join(10)
            tracer.stderr.close()


class Asked(threading.Thread):
    """One request in a thread; `answer` and the seconds that it took."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.answer: Answer | None = None
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        started = time.monotonic()
        self.answer = self._ask()
        self.seconds = time.monotonic() - started


WORDS = [f"word{number} " for number in range(180)]


def talk(handler: Handler) -> None:
    """The model server: nine seconds of words to a long question, two words to any other."""
    _, _, request = handler.server.requests[-1]
    handler.begin()
    if "long" not in request["messages"][-1]["content"]:
        return handler.say("Very well.", finish="stop", end="[DONE]")
    for word in WORDS:
        handler.say(word)
        time.sleep(0.05)
    handler.say(finish="stop", end="[DONE]")


@pytest.fixture(scope="module")
def model() -> Iterator[Scripted]:
    """A model server."""
    server = Scripted(talk)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, model: Scripted) -> Iterator[Server]:
    """One server for this file."""
    with Server(tmp_path_factory.mktemp("storage"), **model.settings) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test."""


WRITES: dict[str, Callable[[Client, str], Answer]] = {
    "json": lambda client, uuid: client.post_message(uuid, "json"),
    "form": lambda client, uuid: client.post(f"/c/{uuid}/messages", body="form"),
    "htmx": lambda client, uuid: client.post(f"/c/{uuid}/messages", {"HX-Request": "true"}, body="htmx"),
    "new": lambda client, _: client.create(),
    "title": lambda client, uuid: client.post(f"/c/{uuid}/title", JSON, title="another"),
    "stop": lambda client, uuid: client.post(f"/c/{uuid}/stop", JSON),
    "delete": lambda client, uuid: client.post(f"/c/{uuid}/delete", JSON),
}


@pytest.mark.parametrize("fault", [locked, full])
def test_a_write_that_cannot_be_made_now_is_503_and_says_when_to_come_back(
    shared: Server, fault: Callable[[Server], Iterator[None]]
) -> None:
    client = Client(shared.url).sign_in()
    uuid = client.create("first").json["conversation"]
    long = client.create("a long one").json["conversation"]
    reader = PollingPeer(client.clone())
    reader.subscribe({long: 0})
    reader.wait_until(lambda: [m for m in reader.shown(long) if m.text.startswith("word0")])
    with WebSocketPeer(client) as peer, fault(shared):
        asked = {name: Asked(lambda write=write: write(client.clone(), uuid)) for name, write in WRITES.items()}
        sent = peer.send(uuid, "by WebSocket", timeout=9)
        for thread in asked.values():
            thread.join(10)
        assert client.get("/readyz").status in (200, 503) and client.open(uuid), "reading goes on"
        time.sleep(2)  # the answer that is being written has waited for longer than a write waits, too
    assert sent.refused == "storage"
    assert peer.arrived[-1][1].number("retry-after") >= 1
    for name, thread in asked.items():
        answer = thread.answer
        assert answer is not None and answer.status == 503, (name, answer)
        assert int(answer.headers["Retry-After"]) >= 1
        assert thread.seconds < 8, "all wait together, not one after the other"
        if name == "form":
            assert "again in a moment" in answer.page.one("main").text
        else:
            assert answer.json["error"]["code"] == "storage"
    assert client.post_message(uuid, "and now").status == 201
    answer = reader.wait_for_answer(long)
    assert (answer.state, answer.text.split()) == ("completed", "".join(WORDS).split())
    assert "Traceback" not in shared.log_text()


@pytest.mark.parametrize(("fault", "reason"), [(locked, "busy"), (full, "failed")])
def test_not_ready_while_writes_fail_and_ready_again_by_itself(
    shared: Server, fault: Callable[[Server], AbstractContextManager[None]], reason: str
) -> None:
    """Also where nobody writes any more: a balancer has sent everybody elsewhere."""
    client = Client(shared.url).sign_in()
    uuid = client.create("first").json["conversation"]
    assert client.request("GET", "/readyz").json == {"ready": True}
    with fault(shared):
        assert client.post_message(uuid, "not now").status == 503
        answer = client.request("GET", "/readyz")
        assert (answer.status, answer.json) == (503, {"ready": False, "reason": reason})
    wait_for(lambda: shared.status("/readyz") == 200, 20, "ready again")
    assert client.post_message(uuid, "now").status == 201


def test_a_start_while_the_database_is_locked_waits_for_it(tmp_path: Path) -> None:
    """A worker that ended of it would end the whole server, and its siblings."""
    server = Server(tmp_path).start()
    client = Client(server.url).sign_in()
    uuid = client.create("first").json["conversation"]
    server.stop()
    starting = threading.Thread(target=server.start, daemon=True)
    with locked(server):
        starting.start()
        wait_for(lambda: server.status("/healthz") == 200, 20, "it serves")
        assert client.open(uuid) and server.status("/readyz") == 503
    starting.join(20)
    try:
        assert server.status("/readyz") == 200 and client.post_message(uuid, "now").status == 201
        wait_for(lambda: client.get(f"/c/{uuid}").page.all("body")[0].get("data-mark"), 10, "a history has begun")
        assert "Traceback" not in server.log_text()
    finally:
        server.stop()


def upgrade(client: Client) -> Answer:
    """Ask for a WebSocket where none is expected."""
    key = {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    return client.request(
        "GET", "/ws", headers={"Connection": "Upgrade", "Upgrade": "websocket", "Origin": client.url, **key}
    )


READS: dict[str, Callable[[Client, str], Answer]] = {
    "page": lambda client, uuid: client.get(f"/c/{uuid}"),
    "poll": lambda client, uuid: client.poll({uuid: 0}),
    "held": lambda client, uuid: client.poll({uuid: 0}, wait=20),
    "post": lambda client, uuid: client.post_message(uuid, "not now"),
    "upgrade": lambda client, _: upgrade(client),
}


def test_what_cannot_be_read_is_503_whatever_is_asked(shared: Server) -> None:
    """Also where a request is judged before Flask: nobody is signed out, and no network is blamed."""
    client = Client(shared.url).sign_in()
    uuid = client.create("first").json["conversation"]
    Client(shared.url).sign_in().post("/sign-out")  # no session is in memory any more
    before = shared.log_text(1 << 20).count("Traceback")
    with unreadable(shared):
        for name, read in READS.items():
            answer = read(client.clone(), uuid)
            assert (answer.status, int(answer.headers["Retry-After"])) == (503, 2), name
    assert {read(client.clone(), uuid).status for name, read in READS.items() if name != "upgrade"} == {200, 201}
    assert shared.log_text(1 << 20).count("Traceback") == before


def test_a_held_poll_that_cannot_be_answered_is_503_too() -> None:
    status, data = unavailable()
    head, _, body = data.decode().partition("\r\n\r\n")
    lines = head.split("\r\n")
    assert status == 503 and lines[0].startswith("HTTP/1.1 503 ")
    assert {"Connection: close", "Retry-After: 2", "Content-Type: application/json"} <= set(lines)
    assert f"Content-Length: {len(body)}" in lines and json.loads(body)["error"]["code"] == "storage"
