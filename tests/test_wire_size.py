"""What a streamed answer costs on the wire, against the HTML that is shown in the end, before compression.

A model writes some 30 tokens a second; the longer texts come faster, so that this ends. `make wire` reads every kind of
text in every size, and 10 kB at 30 tokens a second.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from itertools import product

import pytest
from lab.http import Client
from lab.model import Handler, Scripted
from lab.peer import PEERS
from lab.processes import written_bytes
from lab.server import Server

WHOLE = os.environ.get("WIRE") == "whole"
A_TOKEN = 4  # characters
TICK_S = 1 / 30
# kB, and how many tokens come at once, thirty times a second
PACES = {1.5: 1, 10: 1 if WHOLE else 10, 60: 30, 200: 100}
SHORT = [(1.5, "prose"), (10, "table"), (60, "mixed")]
AN_UPDATE = 120  # bytes
MOST_WRITTEN = 15 << 20  # bytes, by the server, for 200 kB

SENTENCE = (
    "the server holds each poll open until there is news so a proxy that ends quiet connections sooner isn't noticed"
    " and what was sent waits in the browser's storage until it's acknowledged by `client_id` or **refused** in words"
)
WORDS = SENTENCE.split()


def prose(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randrange(40, 90))).capitalize() + ".\n\n"


def table(chance: random.Random) -> str:
    def row() -> str:
        return f"| {' '.join(chance.choices(WORDS, k=2))} | {chance.randrange(9999)} | `{chance.choice(WORDS)}` |"

    return "\n".join(["| Setting | Value | Where |", "|:---|---:|:---:|", *[row() for _ in range(30)]]) + "\n\n"


def code(chance: random.Random) -> str:
    def line() -> str:
        words = " ".join(chance.choices(WORDS, k=4))
        return (
            f'    if {chance.choice("abc")} < {chance.randrange(99)} and name != "{chance.choice(WORDS)}":  # {words}'
        )

    return "\n".join(["```python", "def check(a, b, c, name):", *[line() for _ in range(20)], "```"]) + "\n\n"


KINDS = {"prose": [prose], "table": [table], "code": [code], "mixed": [prose, prose, table, code]}


def document(kilobytes: float, kind: str) -> str:
    chance, text = random.Random(f"{kilobytes} {kind}"), ""
    while len(text) < kilobytes * 1000:
        text += chance.choice(KINDS[kind])(chance)
    return text[: int(kilobytes * 1000)]


def telling(text: str, tokens: int):
    """A script that says the text, `tokens` at a time."""

    def script(handler: Handler) -> None:
        handler.begin()
        size, next_at = A_TOKEN * tokens, time.monotonic()
        for start in range(0, len(text), size):
            handler.say(text[start : start + size])
            next_at += TICK_S
            time.sleep(max(0.0, next_at - time.monotonic()))
        handler.say(finish="stop", end="[DONE]")

    return script


Text = tuple[float, str]


@pytest.fixture(params=product(PACES, KINDS) if WHOLE else SHORT, ids=lambda text: f"{text[0]:g} kB of {text[1]}")
def text(request: pytest.FixtureRequest) -> Text:
    return request.param


@pytest.fixture
def server(tmp_path, text: Text) -> Iterator[Server]:
    with Scripted(telling(document(*text), PACES[text[0]])) as model:
        threading.Thread(target=model.serve_forever, daemon=True).start()
        with Server(tmp_path, **model.settings) as server:
            yield server
        model.shutdown()


@pytest.mark.timeout(240)
def test_a_streamed_answer_costs_little_more_than_its_html(server: Server, text: Text) -> None:
    client, name = Client(server.url).sign_in(), f"{text[0]:g} kB of {text[1]}"
    conversation = client.create("Tell me everything.").json["conversation"]
    assert server.process is not None
    written = written_bytes(server.process.pid)
    peers = {transport: PEERS[transport](client.clone()) for transport in PEERS}
    answers = {}

    def read(transport: str) -> None:
        peer = peers[transport]
        peer.is_short = True
        peer.subscribe({conversation: 0})
        peer.next()
        peer.bytes_in, peer.arrived = 0, []
        answers[transport] = peer.wait_for_answer(conversation, timeout=200)
        peer.close()

    readers = [threading.Thread(target=read, args=[transport]) for transport in peers]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(220)
    written = written_bytes(server.process.pid) - written
    print(f"\n{name}: {written} bytes written")
    for transport, peer in peers.items():
        answer = answers[transport]
        html, updates = sum(len(block.encode()) for block in answer.blocks), len(peer.arrived)
        ratio = (peer.bytes_in - AN_UPDATE * updates) / html
        print(f"{name} over {transport}: HTML {html}, updates {updates}, bytes {peer.bytes_in}: {ratio:.2f}")
        assert answer.state == "completed"
        assert updates > 10, "it was streamed"
        assert peer.bytes_in <= 1.3 * html + AN_UPDATE * updates, (transport, html, updates, peer.bytes_in)
        assert peer.applied.gaps == 0
        assert answer.blocks == fresh(client, conversation), "what grew is what a new reader gets"
    assert written <= MOST_WRITTEN


def fresh(client: Client, conversation: str) -> list[str]:
    with PEERS["polling"](client.clone()) as peer:
        peer.subscribe({conversation: 0})
        return peer.wait_for_answer(conversation).blocks
