"""Ends and long polls: what holds up TERM, and how much fits into one poll's address."""

import socket
import time
import uuid
from collections.abc import Callable

import pytest
from lab.http import Client
from lab.nginx import Nginx
from lab.server import Server

LONGEST_END_S = 5.0  # beside everything else on this machine; 10.4 s were seen, and gunicorn gives up after 10


def opened(server: Server, said: bytes) -> socket.socket:
    """A connection on which this was said and, where it is a request, answered."""
    connection = socket.create_connection(("127.0.0.1", server.port), 10)
    if said:
        connection.sendall(said)
        if said.endswith(b"\r\n\r\n"):
            text = b""
            while not text.endswith(b"ok\n"):
                text += connection.recv(65536)
    return connection


def test_idle_connections_do_not_hold_up_the_end(start_server: Callable[..., Server]) -> None:
    """Kept for another request after an answer, or opened beforehand as browsers do: closed at TERM, at once."""
    server = start_server(assistant="off")
    kept = [opened(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(3)]
    kept.append(opened(server, b""))
    time.sleep(1.5)  # for its first second, one that says nothing is the kernel's alone
    began = time.monotonic()
    assert server.stop() == 0
    took = time.monotonic() - began
    for connection in kept:
        assert connection.recv(100) == b""
        connection.close()
    assert took < LONGEST_END_S, f"{took:.1f} s"
    assert "graceful timeout" not in server.log_text()


@pytest.mark.parametrize("way", ["direct", "nginx"])
def test_a_poll_of_a_hundred_feeds(
    start_server: Callable[..., Server], start_nginx: Callable[[str, Server], Nginx], way: str
) -> None:
    """As many as are promised, with cursors of 15 digits, encoded as htmx does it."""
    server = start_server(assistant="off")
    client = Client(start_nginx("good", server).url if way == "nginx" else server.url).sign_in()
    feeds = "".join(f"&c={uuid.uuid4()}%3A{999_999_999_999_999}" for _ in range(100))
    person = f"&person={client.get('/').page.all('body')[0].get('data-person')}"
    answer = client.request(
        "GET", f"/changes?epoch={client.epoch}&mark=9f3c21d0.{'9' * 15}{person}&wait=25&armour=1{feeds}"
    )
    assert answer.status in (200, 400), answer.status
    answer = client.request("GET", f"/changes?epoch={client.epoch}{person}&wait=0{feeds}")
    assert (answer.status, answer.text.count("<chat-gone")) == (200, 100)
    assert (
        client.request("GET", f"/changes?epoch={client.epoch}&wait=0{feeds}&c=list%3A0").json["error"]["code"]
        == "bad-poll"
    )
