"""Held polls, on the wire: their connection leaves gunicorn and ends with the answer; none is lost on the way."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.http import Client
from lab.processes import wait_for
from lab.server import Server

POLLS = 40


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("held"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


class Kept:
    """A connection that stays open as long as the server lets it, and then another one, as a browser's."""

    def __init__(self, me: Client) -> None:
        self._me = me
        self.connection = http.client.HTTPConnection(me.host, me.port, timeout=10)

    def __enter__(self) -> "Kept":
        self.connection.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, path: str) -> None:
        self.connection.request("GET", path, headers={"Cookie": self._me.cookie_header})

    def answer(self) -> tuple[int, str]:
        response = self.connection.getresponse()
        return response.status, response.read().decode()


@pytest.fixture
def conversation(me: Client) -> str:
    return str(me.create("hello").json["conversation"])


def held_path(me: Client, conversation: str, wait: float = 8) -> str:
    cursor = me.poll({conversation: 0}).page.one("chat-feed").get("to")
    return f"/changes?epoch={me.epoch}&c={conversation}:{cursor}&wait={wait:g}"


def test_poll_after_poll_is_answered_each_on_its_own_connection(me: Client, conversation: str) -> None:
    with Kept(me) as kept:
        for number in range(5):
            kept.ask(held_path(me, conversation))
            time.sleep(0.1)
            me.post_message(conversation, f"news {number}")
            status, text = kept.answer()
            assert (status, f"news {number}" in text) == (200, True)
            assert kept.connection.sock is None, "the answer says close"
            kept.ask("/healthz")
            assert kept.answer() == (200, "ok\n")
            assert kept.connection.sock is not None, "what is not held stays open"


def test_an_answer_larger_than_the_kernel_takes_arrives_whole(me: Client, conversation: str) -> None:
    """The server has closed by then: what the kernel has of it is delivered all the same."""
    path = held_path(me, conversation)
    head = f"GET {path} HTTP/1.1\r\nHost: {me.host}\r\nCookie: {me.cookie_header}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect((me.host, me.port))
        connection.sendall(head.encode())
        time.sleep(0.3)
        me.post_message(conversation, "x" * 20_000)
        time.sleep(1)
        text = b""
        while part := connection.recv(4096):
            text += part
    answer, _, body = text.partition(b"\r\n\r\n")
    length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert len(body) == length > 20_000


def test_nothing_new_is_said_when_the_time_is_over(me: Client, conversation: str) -> None:
    with Kept(me) as kept:
        kept.ask(held_path(me, conversation, wait=1))
        began = time.monotonic()
        assert kept.answer() == (204, "")
        assert 0.9 < time.monotonic() - began < 4
        kept.ask("/healthz")
        assert kept.answer()[0] == 200


def descriptors(server: Server) -> int:
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in children)


def test_whoever_goes_away_is_forgotten_at_once(shared: Server, me: Client, conversation: str) -> None:
    path = held_path(me, conversation, wait=20)
    before = descriptors(shared)
    polls = [Kept(me) for _ in range(POLLS)]
    for poll in polls:
        poll.ask(path)
    # Those of earlier tests may still be on their way out: hence not to the last one.
    wait_for(lambda: descriptors(shared) > before + POLLS / 2, 5, "they are held")
    for poll in polls:
        poll.connection.close()
    wait_for(lambda: descriptors(shared) < before + POLLS / 4, 5, "they are forgotten")


def test_a_request_before_the_answer_is_told_to_come_again(me: Client, conversation: str) -> None:
    """Nothing may be answered twice or swallowed: the connection says that it closes, and closes."""
    head = f"Host: {me.host}:{me.port}\r\nCookie: {me.cookie_header}\r\n\r\n"
    with socket.create_connection((me.host, me.port), 10) as connection:
        connection.sendall(f"GET {held_path(me, conversation)} HTTP/1.1\r\n{head}".encode())
        time.sleep(0.3)
        connection.sendall(f"GET /healthz HTTP/1.1\r\n{head}".encode())
        time.sleep(0.3)
        me.post_message(conversation, "news")
        text = b""
        while part := connection.recv(65536):
            text += part
    assert text.startswith(b"HTTP/1.1 200 OK\r\n") and b"Connection: close\r\n" in text and b"news" in text
    assert text.count(b"HTTP/1.1") == 1


def test_two_requests_in_one_packet_are_both_answered(me: Client, conversation: str) -> None:
    head = f"Host: {me.host}:{me.port}\r\nCookie: {me.cookie_header}\r\n\r\n"
    poll = f"GET {held_path(me, conversation, wait=1)} HTTP/1.1\r\n{head}"
    with socket.create_connection((me.host, me.port), 10) as connection:
        connection.sendall(f"{poll}GET /healthz HTTP/1.1\r\nConnection: close\r\n{head}".encode())
        text = b""
        while part := connection.recv(65536):
            text += part
    assert text.startswith(b"HTTP/1.1 204") and text.endswith(b"ok\n") and text.count(b"HTTP/1.1") == 2


def test_the_end_of_a_session_ends_the_wait(shared: Server) -> None:
    me = Client(shared.url).sign_in()
    conversation = str(me.create("hello").json["conversation"])
    with Kept(me) as kept:
        kept.ask(held_path(me, conversation, wait=20))
        time.sleep(0.3)
        path = held_path(me, conversation)
        me.post("/sign-out")
        assert kept.answer() == (204, "")
        kept.ask(path)
        assert kept.answer()[0] == 401


def test_a_deleted_conversation_is_told_to_all_who_wait(me: Client, conversation: str) -> None:
    path, answers = held_path(me, conversation, wait=20), []

    def hold() -> None:
        with Kept(me) as kept:
            kept.ask(path)
            answers.append(kept.answer())

    threads = [threading.Thread(target=hold) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    me.post(f"/c/{conversation}/delete")
    for thread in threads:
        thread.join(10)
    assert [(status, "chat-gone" in text) for status, text in answers] == [(200, True)] * 5


def test_a_worker_that_closes_lets_them_go(tmp_path: Path) -> None:
    with Server(tmp_path / "server", assistant="off") as server:
        me = Client(server.url).sign_in()
        conversation = str(me.create("hello").json["conversation"])
        with Kept(me) as kept:
            kept.ask(held_path(me, conversation, wait=20))
            time.sleep(0.3)
            began = time.monotonic()
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            assert kept.answer()[0] == 204
            stopping.join(15)
            assert time.monotonic() - began < 6


def test_the_access_log_has_them(shared: Server, me: Client, conversation: str) -> None:
    with Kept(me) as kept:
        kept.ask(held_path(me, conversation, wait=0.3))
        kept.answer()
    wait_for(lambda: '"GET /changes" 204 ' in shared.log_text(), 3, "the line is written")


def test_a_connection_that_says_nothing_costs_nothing_at_first(server: Server) -> None:
    """Its first second is the kernel's, as far as this kernel can: who speaks is served at once all the same."""
    before = descriptors(server)
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5)) for _ in range(50)]
        assert Client(server.url).request("GET", "/healthz").status == 200
        assert descriptors(server) - before < 10
        silent[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert silent[0].recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: descriptors(server) - before >= 50, 10, "they are looked after as others are")
