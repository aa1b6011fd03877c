"""What requests leave in the server's memory is bounded in bytes, whoever sends them and however large they are."""

import http.client
import uuid
from collections.abc import Iterator

import pytest
from lab.http import Client
from lab.server import Server

from bench.machine import tree_of, written_kib
from chatapp.cache import Cache

POLLS, REFUSED = 1200, 200  # with distinct cookies; the long form is `make hostile`
LARGE = 7_900  # bytes of a Cookie header, just below what is taken
MOST_MIB = 8


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("bounded"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def polls(server: Server, session: str, size: int, times: int, path: str) -> set[int]:
    """The statuses of polls whose Cookie headers differ, with this session's cookie last."""
    found, connection = set(), http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for number in range(times):
        junk = f"sso{number}={uuid.uuid4()}".ljust(size - len(session) - 2, "x")
        connection.request("GET", path.format(number=number), headers={"Cookie": f"{junk}; {session}"})
        answer = connection.getresponse()
        answer.read()
        found.add(answer.status)
    connection.close()
    return found


def memory_mib(server: Server) -> float:
    assert server.process is not None
    return sum(written_kib(pid) for pid in tree_of(server.process.pid)) / 1024


def test_distinct_cookies_of_polls_are_not_kept(shared: Server, me: Client) -> None:
    ended = Client(shared.url).sign_in()
    ended_session = ended.cookie_header
    path = f"/changes?epoch={me.epoch}&c=list:0"
    assert polls(shared, ended_session, LARGE, 1, path) == {200}
    ended.post("/sign-out")
    for session in (me.cookie_header, ended_session, "chatapp=none"):
        polls(shared, session, LARGE, 50, path)
    before = memory_mib(shared)
    assert polls(shared, me.cookie_header, LARGE, POLLS, path) == {200}
    for session in (ended_session, "chatapp=none"):
        assert polls(shared, session, LARGE, REFUSED, path) == {401}
    assert memory_mib(shared) - before < MOST_MIB


def test_distinct_queries_are_kept_within_bounds(shared: Server, me: Client) -> None:
    """A poll of 80 feeds is 3 kB of text and far more as parsed; another epoch is answered with few words."""
    feeds = "".join(f"&c={uuid.uuid4()}:1" for _ in range(80))
    path = f"/changes?epoch=another{feeds}&c=list:{{number}}"
    polls(shared, me.cookie_header, 500, 50, path)
    before = memory_mib(shared)
    assert polls(shared, me.cookie_header, 500, POLLS, path) == {200}
    assert memory_mib(shared) - before < MOST_MIB


def test_clearing_a_cache_forgets_its_bytes() -> None:
    cache: Cache[str, int] = Cache(3, 100)
    cache.put("a", 1, 60)
    cache.clear()
    cache.put("b", 2, 60)
    assert (dict(cache), cache.bytes) == ({"b": 2}, 60)
