"""The JavaScript example (docs/examples/client.mjs), written from docs/protocol.md alone, against the real server."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.processes import kill_group, marked_environment, wait_for
from lab.server import EMAIL, PASSWORD, ROOT, Server
from lab.whales import PACE, QUESTION, teach

EXAMPLE = ROOT / "docs/examples/client.mjs"
NODE = shutil.which("node")
LONGEST = 200  # lines, as docs/protocol.md says
PATIENCE = 60
CONNECTED = {"websocket": "connected", "polling": "polling"}

pytestmark = pytest.mark.skipif(NODE is None and not os.environ.get("CI"), reason="node is not installed")


@pytest.fixture
def whales(start_server: Callable[..., Server], tmp_path: Path) -> Server:
    """A server whose assistant knows characters beyond U+FFFF and writes slowly enough to be disturbed."""
    teach(tmp_path / "server1")
    return start_server(assistant_pace=PACE)


@contextmanager
def example(url: str, transport: str, messages: int, patience: int = PATIENCE) -> Iterator[subprocess.Popen[str]]:
    """The example client, running."""
    assert NODE, "node is not installed, and CI must run this test"
    command = [NODE, str(EXAMPLE), url, EMAIL, PASSWORD, f"--transport={transport}", f"--messages={messages}"]
    command += [f"--ask={QUESTION}", f"--patience={patience}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=marked_environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_group(process.pid)
        process.communicate(timeout=10)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Its one line of JSON, once it has ended well."""
    out, err = process.communicate(timeout=PATIENCE + 20)
    assert process.returncode == 0, f"{process.returncode}\n{out}\n{err}"
    assert out.count("\n") == 1, out
    return dict(json.loads(out))


def assert_right(found: dict[str, Any], transport: str, messages: int) -> None:
    """All of it arrived, once and in order, and the patches made the same answers as the server has."""
    counts = {name: value for name, value in found.items() if name != "states"}
    assert counts == {
        "transport": transport,
        "sent": messages,
        "acknowledged": messages,
        "lost": 0,
        "doubled": 0,
        "reordered": 0,
        "differing": 0,
    }


def test_it_is_short_and_needs_no_package() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= LONGEST
    assert not [line for line in lines if len(line) > 120]
    assert [line for line in lines if line.startswith("import")] == [
        'import { createHash, randomBytes, randomUUID } from "node:crypto";'
    ]
    assert not EXAMPLE.with_name("package.json").exists()


@pytest.mark.parametrize("transport", sorted(CONNECTED))
def test_a_quiet_network(whales: Server, transport: str) -> None:
    with example(whales.url, transport, 4) as process:
        found = result(process)
    assert_right(found, transport, 4)
    assert found["states"] == ["connecting", CONNECTED[transport]]
    shown = Client(whales.url).sign_in()
    page = shown.get("/").headers["Location"]
    assert "🦑" in shown.get(page).text, "the answers were to have characters beyond U+FFFF"


def sent(proxy: FaultProxy) -> list[str]:
    """The client_ids that went to the server so far, over either transport, repeated ones again."""
    posted = [parse_qs(seen.body.decode()) for seen in list(proxy.requests) if seen.path.endswith("/messages")]
    frames = [json.loads(frame.text) for frame in list(proxy.frames) if frame.up and '"send"' in frame.text]
    return [fields["client_id"][0] for fields in posted] + [frame["client_id"] for frame in frames]


def reset(proxy: FaultProxy, transport: str) -> bool:
    """Resets what the client reads by, and waits until it goes on; False where there was nothing to reset."""
    if transport == "websocket":
        return proxy.reset_sockets() > 0
    before = time.time()
    if not any(seen.status == 0 and not seen.ended_at for seen in proxy.seen("/changes")):
        return False  # no poll is under way: a reset would disturb the sends alone
    proxy.reset_all()

    def is_cut() -> bool:
        return any(seen.status == 0 and seen.ended_at > before for seen in proxy.seen("/changes"))

    while not is_cut():  # a busy machine notes it late
        if time.time() > before + 1:
            return False  # the answer was quicker
        time.sleep(0.01)
    # Only after an answer is it polling again, and a second reset a second loss.
    wait_for(lambda: any(seen.status and seen.at > before for seen in proxy.seen("/changes")), 20, "it polls again")
    return True


@pytest.mark.parametrize("transport", sorted(CONNECTED))
def test_two_resets_meanwhile(whales: Server, start_proxy: Callable[[Server], FaultProxy], transport: str) -> None:
    proxy, messages = start_proxy(whales), 30
    with example(proxy.url, transport, messages) as process:
        wait_for(lambda: len(sent(proxy)) >= 4, 30, "messages are sent", every=0.005)
        if transport == "polling":
            proxy.lose_replies = 1  # to a POST: the message is stored, and the client does not learn it
            wait_for(lambda: not proxy.lose_replies, 20, "a reply is lost", every=0.005)
        wait_for(lambda: reset(proxy, transport), 20, "the first reset", every=0.005)
        wait_for(lambda: len(sent(proxy)) >= 12, 30, "further messages are sent", every=0.005)
        wait_for(lambda: reset(proxy, transport), 20, "the second reset", every=0.005)
        found = result(process)
    assert_right(found, transport, messages)
    assert found["states"].count("reconnecting") >= 2, found["states"]
    assert found["states"][-1] == CONNECTED[transport]
    assert len(set(sent(proxy))) == messages
    assert transport == "websocket" or len(sent(proxy)) > messages, "a lost answer: the message goes out again"


def test_answers_that_were_cut(whales: Server, start_proxy: Callable[[Server], FaultProxy]) -> None:
    proxy = start_proxy(whales)
    proxy.cut_news = [0.5, 0.01, 0.8]
    with example(proxy.url, "polling", 4) as process:
        found = result(process)
    assert_right(found, "polling", 4)
    assert sum(seen.done_to_it == "cut" for seen in proxy.requests) == 3
