"""Strangers, with real sockets: nobody may hold the server up, or fill it, before it is known whose session it is."""

import http.client
import resource
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import socket as gevent_socket
from lab.http import Client
from lab.processes import wait_for
from lab.server import Server

from chatapp.gunicorn_bridge import Connection, Limits, assign_connection, note_session
from chatapp.middleware import FILE_INTERVAL_S, PAGE_INTERVAL_S
from chatapp.strangers import MOST_SHARING, SHARED, Strangers, advice

STATIC = Path(__file__).parent.parent / "static"
TIMEOUT_S = 1.0  # CHATAPP_REQUEST_TIMEOUT of the server here
GONE_S = 4.0  # by then whoever is slower than that is gone
SIGN_IN = "POST /sign-in HTTP/1.1\r\nHost: chat\r\nContent-Type: application/x-www-form-urlencoded\r\n"
FILES = 300  # ulimit -n of the small server: room for 75 requests, of which 30 may be strangers'
CROWD = 200


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"assistant": "off", "request_timeout": TIMEOUT_S}
    with Server(tmp_path_factory.mktemp("strangers"), **settings) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def dial(server: Server, sends: str = "", timeout: float = 10) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout)
    connection.sendall(sends.encode())
    return connection


def ends_within(connection: socket.socket, seconds: float, drip: bytes = b"") -> float:
    """After how long the server ends it, while we send `drip` five times a second; AssertionError if it does not."""
    began = time.monotonic()
    connection.settimeout(0.2)
    while time.monotonic() - began < seconds:
        try:
            if drip:
                connection.sendall(drip)
            if not connection.recv(65536):
                return time.monotonic() - began
        except TimeoutError:
            continue
        except ConnectionError:
            return time.monotonic() - began
    raise AssertionError(f"still open after {seconds} s")


def answer(connection: socket.socket) -> str:
    """What comes until the head and body of one answer are there, or the end."""
    text = b""
    while b"\r\n\r\n" not in text and (data := connection.recv(65536)):
        text += data
    return text.decode(errors="replace")


@pytest.mark.parametrize(
    ("sends", "drip"),
    [
        ("", b""),
        ("GET / HTTP/1.1\r\nHost: chat\r\n", b""),
        ("GET / HTTP/1.1\r\nHost: chat\r\nX-Long: ", b"x"),
        (f"{SIGN_IN}Content-Length: 100\r\n\r\n", b""),
        (f"{SIGN_IN}Content-Length: 10000\r\n\r\n", b"x"),
        (f"{SIGN_IN}Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ("GET /healthz HTTP/1.1\r\nHost: chat\r\nContent-Length: 10000\r\n\r\n", b"x"),
    ],
    ids=[
        "idle",
        "half a head",
        "dripping head",
        "no body",
        "dripping body",
        "dripping chunks",
        "dripping unwanted body",
    ],
)
def test_who_is_too_slow_is_gone(shared: Server, sends: str, drip: bytes) -> None:
    with dial(shared, sends) as connection:
        assert ends_within(connection, GONE_S + TIMEOUT_S, drip) < GONE_S
    assert "Traceback" not in shared.log_text()


def test_who_sends_a_head_without_end_gets_one_answer_and_one_line_and_is_gone(tmp_path: Path) -> None:
    with Server(tmp_path / "server", assistant="off", request_timeout=60) as server:
        head = "GET /sign-in HTTP/1.1\r\nHost: chat\r\n" + f"X-Long: {'x' * 7000}\r\n" * 12
        with dial(server, head) as connection:
            connection.sendall(b"x" * 5000)
            assert answer(connection).startswith("HTTP/1.1 431")
            for _ in range(3):  # what is on its way does not take the answer back
                connection.sendall(b"x" * 5000)
                time.sleep(0.1)
        with dial(server, "nonsense\r\n\r\n") as connection:
            assert answer(connection).startswith("HTTP/1.1 400")
            connection.settimeout(0.1)
            while connection.recv(65536):
                pass
            began = time.monotonic()
            with pytest.raises(ConnectionError):
                while time.monotonic() - began < 10:
                    connection.sendall(b"x")
                    time.sleep(0.1)
        lines = [line for line in server.log_text().splitlines() if "127.0.0.1" in line and "whole head" in line]
        assert len(lines) == 1 and "Traceback" not in server.log_text(), server.log_text()[-2000:]


def test_who_is_slow_but_steady_is_served(shared: Server) -> None:
    """Longer than the time-out, at four times the least rate."""
    with dial(shared, f"{SIGN_IN}Content-Length: 8000\r\n\r\n") as connection:
        for _ in range(8):
            connection.sendall(b"x" * 1000)
            time.sleep(0.25)
        assert answer(connection).startswith("HTTP/1.1 400")


def test_between_requests_a_connection_may_be_idle(shared: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    ports = set()
    for _ in range(3):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        ports.add(connection.sock.getsockname())
        time.sleep(1.5 * TIMEOUT_S)
    connection.close()
    assert len(ports) == 1


def test_who_does_not_take_a_large_page_is_cut_and_who_takes_it_slowly_gets_it(shared: Server, me: Client) -> None:
    conversation = str(me.create("hello").json["conversation"])
    for _ in range(40):
        assert me.post_message(conversation, "&" * 16_000).status == 201
    get = f"GET /c/{conversation} HTTP/1.1\r\nHost: chat\r\nCookie: {me.cookie_header}\r\nConnection: close\r\n\r\n"

    def reader() -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", shared.port))
        connection.sendall(get.encode())
        return connection

    with reader() as mute, reader() as slow:
        taken, began = 0, time.monotonic()
        while data := slow.recv(65536):
            taken += len(data)
            time.sleep(0.02 if time.monotonic() - began < 2 * TIMEOUT_S else 0)
        assert taken > 3_000_000 and time.monotonic() - began > TIMEOUT_S
        time.sleep(max(0.0, began + GONE_S - time.monotonic()))
        got = 0
        with pytest.raises(ConnectionResetError):
            while data := mute.recv(65536):
                got += len(data)
        assert got < 3_000_000


@pytest.mark.parametrize("ends", ["", "Connection: close\r\n"], ids=["kept", "closed"])
def test_who_takes_an_answer_slowly_gets_it_also_where_the_kernel_has_all_of_it(shared: Server, ends: str) -> None:
    """Three times longer than the time-out, at twelve times the least rate."""
    file = max((STATIC / "vendor").glob("htmx*.js"), key=lambda path: path.stat().st_size)
    page = Client(shared.url).get("/sign-in").text
    path = page[page.index("/static/") :].split("/")[2]
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(10)
        slow.connect(("127.0.0.1", shared.port))
        slow.sendall(f"GET /static/{path}/vendor/{file.name} HTTP/1.1\r\nHost: chat\r\n{ends}\r\n".encode())
        began, taken = time.monotonic(), 0
        while taken < file.stat().st_size and (data := slow.recv(1200)):
            taken += len(data)
            time.sleep(0.1 if time.monotonic() - began < 3 * TIMEOUT_S else 0)
        assert taken >= file.stat().st_size and time.monotonic() - began > 3 * TIMEOUT_S


def test_a_strangers_body_is_not_waited_for_where_a_session_is_needed(shared: Server, me: Client) -> None:
    conversation = str(me.create("hello").json["conversation"])
    head = f"POST /c/{conversation}/messages HTTP/1.1\r\nHost: chat\r\nAccept: application/json\r\n"
    with dial(shared, f"{head}Content-Length: 500000\r\n\r\n") as connection:
        text = answer(connection)
        assert text.startswith(("HTTP/1.1 400", "HTTP/1.1 401")) and "Connection: close" in text


@pytest.mark.parametrize(
    ("path", "known", "bytes_"),
    [("/sign-in", False, 20_000), ("/c/{}/title", True, 20_000), ("/c/{}/messages", True, 600_000)],
)
def test_a_body_that_does_not_fit_is_refused_before_it_comes(
    shared: Server, me: Client, path: str, known: bool, bytes_: int
) -> None:
    conversation = me.create("hello").json["conversation"]
    head = f"POST {path.format(conversation)} HTTP/1.1\r\nHost: chat\r\nX-CSRFToken: {me.token}\r\n"
    head += "Content-Type: application/x-www-form-urlencoded\r\nAccept: application/json\r\n"
    head += f"Cookie: {me.cookie_header}\r\n" if known else ""
    with dial(shared, f"{head}Content-Length: {bytes_}\r\n\r\n") as connection:
        text = answer(connection)
        assert text.startswith("HTTP/1.1 413") and "Connection: close" in text
        connection.sendall(b"x" * 10_000)  # what is on its way does not make the kernel forget the answer


def test_whose_session_has_ended_is_told_so(shared: Server) -> None:
    one = Client(shared.url).sign_in()
    conversation = str(one.create("hello").json["conversation"])
    old = one.clone()
    one.post("/sign-out")
    refused = old.post_message(conversation, "late")
    assert (refused.status, refused.json["error"]["code"]) == (401, "signed-out")


def memory_kib(server: Server) -> int:
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in children]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in statuses)


def test_large_bodies_of_strangers_take_no_memory(tmp_path: Path) -> None:
    with Server(tmp_path / "server", assistant="off", request_timeout=20) as server:
        before, body = memory_kib(server), "x" * 499_000
        connections = []
        for number in range(300):
            path = "/sign-in" if number % 2 else f"/c/{uuid.uuid4()}/messages"
            head = f"POST {path} HTTP/1.1\r\nHost: chat\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            try:
                connections.append(dial(server, f"{head}Content-Length: 500000\r\n\r\n{body}"))
            except ConnectionError:
                continue  # refused already
        grown, until = 0, time.monotonic() + 3
        while time.monotonic() < until:  # it reads what has come
            grown = max(grown, memory_kib(server) - before)
            time.sleep(0.1)
        print(f"{grown} KiB for {len(connections)} connections")
        for connection in connections:
            connection.close()
        assert grown < 30_000, f"{grown} KiB"


def test_a_pool_full_of_strangers_leaves_room_for_people(tmp_path: Path) -> None:
    prlimit = shutil.which("prlimit")
    assert prlimit and resource.getrlimit(resource.RLIMIT_NOFILE)[0] > FILES
    settings = {"assistant": "off", "request_timeout": 60, "prefix": [prlimit, f"--nofile={FILES}"]}
    with Server(tmp_path / "server", **settings) as server:
        me = Client(server.url, timeout=5).sign_in()
        conversation = str(me.create("hello").json["conversation"])
        page = me.get("/connection").text
        file = page[page.index("/static/") :].split('"')[0]
        kept = []
        for path in ("/connection", file):
            kept.append(dial(server, f"GET {path} HTTP/1.1\r\nHost: chat\r\nCookie: {me.cookie_header}\r\n\r\n"))
            assert answer(kept[-1]).startswith("HTTP/1.1 200")
        crowd = [dial(server, "GET / HTTP/1.1\r\n") for _ in range(CROWD)]
        for number in range(10):
            assert me.post_message(conversation, f"message {number}").status == 201
        for one in kept:
            one.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while one.recv(65536):  # the rest of the page or file, and then silence: it is not cut
                    pass
        assert len([one for one in crowd if is_open(one)]) <= 30
        assert Client(server.url, timeout=5).get("/sign-in").status == 200
        for one in [*crowd, *kept]:
            one.close()


@pytest.mark.parametrize(
    ("method", "path", "apart"),
    [
        ("GET", "/static/x/nope.js", PAGE_INTERVAL_S),
        ("POST", "/static/x/js/app.js", PAGE_INTERVAL_S),
        ("GET", "/healthz/x", PAGE_INTERVAL_S),
        ("GET", "/static/x/js/app.js", FILE_INTERVAL_S),
    ],
)
def test_whatever_takes_the_servers_time_is_paced(shared: Server, method: str, path: str, apart: float) -> None:
    """Also the page that says that there is no such file."""
    stranger, began = Client(shared.url), time.monotonic()
    for _ in range(61):
        stranger.request(method, path)
    assert time.monotonic() - began >= 59 * apart


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return bool(connection.recv(1))
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def test_the_start_says_who_shares_a_budget(tmp_path: Path) -> None:
    with Server(tmp_path / "server", assistant="off") as server:
        wait_for(lambda: "share one budget" in server.log_text(), 5, "the start says so")
        Client(server.url).request("GET", "/healthz", headers={"X-Forwarded-For": "203.0.113.7"})
        wait_for(lambda: "CHATAPP_TRUSTED_PROXIES" in server.log_text(), 5, "and who forwards")
    assert advice("127.0.0.1", True, 7) == advice("0.0.0.0", False, 7) == "" != advice("localhost", False, 7)


# The counting itself


class Guest:
    def __init__(self, address: str) -> None:
        self.address = address
        self.unread = 0
        self.is_cut = False

    def cut(self) -> None:
        self.is_cut = True


def test_the_oldest_of_an_address_goes_where_it_has_too_many() -> None:
    strangers = Strangers(each=3, most=100)
    others, crowd = [Guest("192.0.2.1") for _ in range(3)], [Guest("192.0.2.2") for _ in range(5)]
    for guest in [*others, *crowd]:
        strangers.add(guest)
    assert [guest.is_cut for guest in crowd] == [True, True, False, False, False]
    assert not any(guest.is_cut for guest in others) and len(strangers) == 6


def test_the_oldest_of_all_goes_where_there_are_too_many_and_whoever_is_known_does_not_count() -> None:
    strangers = Strangers(each=100, most=4)
    first, *crowd = [Guest(f"192.0.2.{number}") for number in range(7)]
    strangers.add(first)
    strangers.remove(first)  # it is known now
    for guest in crowd:
        strangers.add(guest)
    assert [guest.is_cut for guest in crowd] == [True, True, False, False, False, False] and not first.is_cut


def test_unread_bytes_of_an_address_are_bounded() -> None:
    strangers = Strangers(each=2, most=100)
    first, second, other = Guest("192.0.2.1"), Guest("192.0.2.1"), Guest("192.0.2.2")
    for guest in (first, second, other):
        strangers.add(guest)
    strangers.has_read(other, 64 << 10)
    strangers.has_read(first, 40 << 10)
    assert not first.is_cut
    strangers.has_read(second, 40 << 10)
    assert first.is_cut and not second.is_cut and not other.is_cut


def test_an_address_of_ipv6_counts_by_what_its_owner_was_given() -> None:
    strangers = Strangers(each=2, most=5)
    budgets = {strangers.budget_of(f"2001:db8:1:2::{number}") for number in range(1, 9)}
    assert len(budgets) == 1 and strangers.budget_of("2001:db8:1:3::1") not in budgets


def test_peers_that_share_are_bounded_and_the_newest_stay() -> None:
    strangers = Strangers(each=2, most=5)
    for number in range(MOST_SHARING + 1):
        strangers.share(f"10.0.{number // 256}.{number % 256}")
        strangers.share("192.0.2.9")
    peers = ("10.0.0.0", "192.0.2.9", f"10.0.{MOST_SHARING // 256}.{MOST_SHARING % 256}")
    assert [strangers.budget_of(peer) for peer in peers] == ["10.0.0.0", SHARED, SHARED]


def test_who_says_that_it_forwards_shares_only_once_a_live_session_came_by_it() -> None:
    strangers = Strangers(each=2, most=5)
    ends = [gevent_socket.socketpair() for _ in range(4)]
    peer, limits = "192.0.2.9", Limits(strangers, TIMEOUT_S, 75)
    crowd = [Connection(ours, limits, strangers.budget_of(peer)) for ours, _ in ends]
    for connection in crowd:
        connection.begin_request(None)
        environ = {"gunicorn.socket": connection, "REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": "203.0.113.7"}
        assign_connection(environ, peer)
    assert {connection.address for connection in crowd} == {peer} and len(strangers) == 2
    note_session(environ)
    assert strangers.budget_of(peer) == crowd[-1].address == SHARED and len(strangers) == 1
    for connection, (_, theirs) in zip(crowd, ends, strict=True):
        connection.cut()
        theirs.close()


def test_peers_that_stand_for_many_share_a_budget() -> None:
    strangers = Strangers(each=2, most=5)
    strangers.share("192.0.2.9")
    peers = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "", "192.0.2.9", "192.0.2.1")
    assert [strangers.budget_of(peer) for peer in peers] == [SHARED] * 5 + ["192.0.2.1"]
    crowd = [Guest(SHARED) for _ in range(6)]
    for guest in crowd:
        strangers.add(guest)
    assert [guest.is_cut for guest in crowd] == [True] + [False] * 5
