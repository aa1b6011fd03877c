"""The rig of `make bench`, at tiny sizes and without the network: its numbers hang together, and planted costs show."""

import json
import os
import random
import struct
import subprocess
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lab.processes import marked_environment

from bench.before import NotLoaded, Ratio, check, ratio
from bench.before import table as pairs_table
from bench.load.wire import TEXT, Answers, Frames, WireError, encode
from bench.machine import Server, free_port
from bench.product import Code
from bench.report import Results, table, verdict
from bench.rows import ROWS, SHORT

ROOT = Path(__file__).resolve().parents[1]
PLANTED_S = 0.05  # far above what the null server needs, far below what makes a test slow


def bench(out: Path, rows: str, who: str, seconds: float = SHORT.seconds, **planted: str) -> dict[str, Any]:
    """The report of a run at tiny sizes."""
    command = [sys.executable, "-m", "bench", "--short", "--runs", "1", "--rows", rows, "--who", who, "--out", str(out)]
    command += ["--seconds", str(seconds)]
    environment = marked_environment() | planted
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((out / "report.json").read_text()))


def test_deliveries_of_the_product_are_exact(tmp_path: Path) -> None:
    """Every message reaches every reader once, in a frame of its own; every post is acknowledged and seen."""
    report = bench(tmp_path, "posts,delivery", "product,null", seconds=2)  # a busy machine is slow
    for who in ("product", "null"):
        (numbers,) = report["rows"]["delivery"][who]
        assert numbers["messages"] > 0
        assert numbers["operations"] == numbers["expected"] == numbers["messages"] * SHORT.readers
        assert numbers["frames"] == numbers["operations"], "a delivery that shares a frame is cheaper than it looks"
        assert numbers["extra"] == 0
        assert numbers["cpu_us"] > 0
        assert 0 < numbers["p50_ms"] <= numbers["p99_ms"]
    (posts,) = report["rows"]["posts"]["product"]
    assert posts["lost"] == 0
    assert posts["operations"] > 0
    assert report["rows"]["delivery"]["product"][0]["bytes_a_delivery"] > 400, "the product sends HTML"
    assert [found["bar_met"] for found in report["verdicts"]] == [None] * 5, "without peers nothing is met"
    text = (tmp_path / "report.md").read_text()
    assert f"| {SHORT.clients} clients, own conversations: durable posts, posts/s |" in text
    assert report["failures"] == []


def test_planted_costs_show(tmp_path: Path) -> None:
    """A sleep in the server shows in the round trip and not in its CPU; computing shows in both."""
    (plain,) = bench(tmp_path / "plain", "posts", "null")["rows"]["posts"]["null"]
    (slept,) = bench(tmp_path / "slept", "posts", "null", BENCH_SLEEP_S=str(PLANTED_S))["rows"]["posts"]["null"]
    (burnt,) = bench(tmp_path / "burnt", "posts", "null", BENCH_BURN_S=str(PLANTED_S / 2))["rows"]["posts"]["null"]
    # One thread serves all clients in turn, so each waits for the others' sleep, too.
    assert slept["p50_ms"] >= (SHORT.clients - 1) * PLANTED_S * 1000
    assert slept["per_s"] < plain["per_s"] / 3
    assert slept["cpu_us"] < PLANTED_S * 1e6 / 5
    assert burnt["cpu_us"] > 5 * plain["cpu_us"]
    assert burnt["p50_ms"] > plain["p50_ms"]


@pytest.mark.timeout(240)
def test_another_commit_is_measured_beside_the_product(tmp_path: Path) -> None:
    """It is loaded from its own worktree, measured pair by pair with a control, and taken away afterwards."""
    command = [sys.executable, "-m", "bench.before", "--short", "--rev", "HEAD", "--pairs", "1", "--rows", "polls"]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=marked_environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "before.json").read_text())
    assert {name: len(values) for name, values in report["us"]["polls"].items()} == dict(product=1, before=1, again=1)
    assert "| polls |" in (tmp_path / "before.md").read_text()
    kept = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{ROOT}/.bench-" not in kept
    with pytest.raises(NotLoaded):
        check(Code(), Path(sys.executable), tmp_path)


@pytest.mark.timeout(240)
def test_attacks_are_made_and_judged(tmp_path: Path) -> None:
    """Strangers are at work beside people who write; every bar gets a value, and none of the people is cut."""
    command = [sys.executable, "-m", "bench.hostile", "--short", "--attacks", "office,polls", "--set", "pairs=1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        env=marked_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "hostile.json").read_text())["rows"]}
    assert len(rows) == 5
    assert rows["of them signed out or cut"]["value"] == 0
    assert rows["8 people and 8 strangers behind one address: a message's p95"]["value"] > 0
    assert "431" in rows["60 polls with distinct cookies of 64,000 bytes: memory"]["said"]
    assert "| of them signed out or cut | 0 people | ≤ 0 people | met |" in (tmp_path / "hostile.md").read_text()


def test_ratios_of_pairs() -> None:
    """Known pairs give known ratios; a planted cost is found outside the interval, and noise alone is not."""
    chance = random.Random(3)
    machine = [chance.uniform(50, 150) for _ in range(20)]  # what each pair has in common
    theirs = [value * chance.uniform(0.95, 1.05) for value in machine]
    same, dearer = ([value * cost * chance.uniform(0.95, 1.05) for value in machine] for cost in (1, 1.3))
    assert ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == Ratio(2.0, 2.0, 2.0, 3.0)
    alike, found = ratio(same, theirs), ratio(dearer, theirs)
    assert alike.low < 1 < alike.high
    assert 1.2 < found.low < 1.3 < found.high < 1.4
    _, is_met = pairs_table({"polls": {"product": dearer, "before": theirs, "again": dearer}}, "x")
    assert not is_met


def test_memory_is_the_servers_own(tmp_path: Path) -> None:
    """Others that run the same program change nothing; what the server keeps shows."""
    port = free_port()
    keeps = f"import http.server as h; kept = bytearray(8 << 20); h.test(h.BaseHTTPRequestHandler, port={port})"
    other = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    server = Server([sys.executable, "-c", keeps], port, tmp_path / "log", marked_environment(), 0)
    with server.wait_ready(""), ExitStack() as others:
        alone = server.memory_kib()
        for _ in range(4):
            process = others.enter_context(subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert abs(server.memory_kib() - alone) < 256
    assert 8 << 10 < alone < 64 << 10


def test_frames_in_any_pieces() -> None:
    """Frames of every length come out whole, however the stream is cut; a server's frame must not be masked."""
    payloads = [b"", b"a", b"b" * 125, b"c" * 126, b"d" * 65_535, b"e" * 65_536]
    stream = b"".join(b"\x81" + _length(len(payload)) + payload for payload in payloads)
    chance = random.Random(1)
    for _ in range(20):
        frames, found, at = Frames(), [], 0
        while at < len(stream):
            size = chance.choice((1, 2, 3, 7, 1000, 70_000))
            found += list(frames.feed(stream[at : at + size]))
            at += size
        assert found == [(TEXT, payload) for payload in payloads]
    with pytest.raises(WireError):
        list(Frames().feed(encode(TEXT, b"hello")))


def test_compressed_frames_are_inflated() -> None:
    """With no_context_takeover each message stands alone."""
    text = b"<chat-feed>" * 20
    packed = zlib.compressobj(wbits=-15)
    payload = packed.compress(text) + packed.flush(zlib.Z_SYNC_FLUSH)
    frame = b"\xc1" + _length(len(payload) - 4) + payload[:-4]
    assert list(Frames(compressed=True).feed(frame + frame)) == [(TEXT, text)] * 2
    with pytest.raises(WireError):
        list(Frames().feed(frame))


def test_answers_in_any_pieces() -> None:
    """With a length, in chunks, and without a body; after a 101 the rest is left for the frames."""
    stream = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n"
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x01x"
    )
    for size in (1, 5, len(stream)):
        answers = Answers()
        found = []
        for at in range(0, len(stream), size):
            found += [(status, body) for status, _, body in answers.feed(stream[at : at + size])]
        assert found == [(200, b"abc"), (204, b""), (200, b"def"), (101, b"")]
        assert answers.take() == b"\x81\x01x"


def test_verdicts_are_ratios_of_medians() -> None:
    """A bar is met, or not, by the medians of all runs; a stretch is judged apart; a missing peer is no verdict."""
    results = Results(SHORT, 3, {})
    row = next(row for row in ROWS if row.key == "posts")
    for own, bare in ((100, 90), (300, 100), (150, 5000)):
        results.add("posts", "product", {"per_s": own, "load_bound": 0.0})
        results.add("posts", "socketio", {"per_s": bare, "load_bound": 1.0})
    bare, full = (verdict(results, row, bar) for bar in row.bars)
    assert (bare["ratio"], bare["bar_met"], bare["stretch_met"]) == (1.5, True, False)
    assert (full["ratio"], full["bar_met"], full["stretch_met"]) == (None, None, None)
    text = table(results, [row])
    assert "150 (100–300)" in text
    assert "100† (90–5,000)" in text
    assert "1.5 × Flask-SocketIO, bare (≥ 1 met, stretch ≥ 2 not met)" in text


def test_every_bar_of_the_issue_has_its_row() -> None:
    """Eleven kinds of work and three of growth, and a contender for each peer that a bar names."""
    assert len(ROWS) == 14
    assert all(bar.peer in row.who for row in ROWS for bar in row.bars if bar.peer)
    assert os.path.exists(ROOT / "bench/peers/requirements.lock")


def _length(size: int) -> bytes:
    if size < 126:
        return bytes([size])
    return b"\x7e" + struct.pack("!H", size) if size < 1 << 16 else b"\x7f" + struct.pack("!Q", size)
