"""What strangers can ask for stands behind the work of people: 40 who try passwords beside one who writes."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from lab.http import Client
from lab.peer import WebSocketPeer
from lab.server import EMAIL, PASSWORD, Server
from lab.strangers import strangers

STRANGERS = 40
MESSAGES = 25


def peak_kb(server: Server) -> int:
    """The most memory that the worker had since it began."""
    assert server.process is not None
    found = [
        int(text) for text in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    ]
    return max(int(Path(f"/proc/{one}/status").read_text().partition("VmHWM:")[2].split()[0]) for one in found)


def echoes(peer: WebSocketPeer, conversation: str, count: int) -> list[float]:
    """How long each message took until it was acknowledged, s."""
    took = []
    for number in range(count):
        began = time.monotonic()
        assert peer.send(conversation, f"message {number}").position
        took.append(time.monotonic() - began)
        time.sleep(0.03)
    return took


def sign_in(server: Server) -> None:
    """Sign in; who is asked to come back later does so then, three times at most."""
    client = Client(server.url)
    client.learn(client.get("/sign-in").page)
    for _ in range(3):
        answer = client.post("/sign-in", email=EMAIL, password=PASSWORD)
        if answer.status == 303:
            return
        assert answer.status == 503 and "Too many people are signing in" in answer.text
        time.sleep(int(answer.headers["Retry-After"]))
    raise AssertionError("refused three times")


def test_wrong_passwords_wait_for_each_other_and_nobody_for_them(start_server: Callable[..., Server]) -> None:
    server = start_server(assistant="off", from_scratch=True)
    me = Client(server.url).sign_in()
    conversation = me.create("hello").json["conversation"]
    with WebSocketPeer(me) as peer:
        alone = echoes(peer, conversation, MESSAGES)
        before = peak_kb(server)
        with strangers(server.port, STRANGERS, STRANGERS) as answers:
            time.sleep(1.5)  # until they are at it
            beside = echoes(peer, conversation, MESSAGES)
            began = time.monotonic()
            sign_in(server)
            signed_in_s = time.monotonic() - began
        grown = peak_kb(server) - before
    figures = f"median {median(alone) * 1000:.1f} ms alone, {median(beside) * 1000:.1f} beside; +{grown} kB"
    print(figures, f"in after {signed_in_s:.2f} s;", dict(answers))
    assert answers[422] and answers[503], "some were looked at, and most were refused"
    assert median(beside) < median(alone) + 0.5, figures  # a bound for busy machines; `make hostile` measures
    assert grown < 64 << 10, figures
