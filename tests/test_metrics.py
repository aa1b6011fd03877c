"""/metrics: who may read it, that it moves and never falls, names nobody, and that a real Prometheus takes it."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from lab.http import JSON, Client
from lab.peer import PollingPeer, WebSocketPeer
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.prometheus import Prometheus
from lab.server import EMAIL, NAME, ROOT, Server
from prometheus_client.parser import text_string_to_metric_families

from chatapp.bus import Bus
from chatapp.monitoring.counters import counters
from chatapp.monitoring.exposition import LATENCY, buckets, total_s
from chatapp.monitoring.figures import Figures
from chatapp.monitoring.present import Present, ServerState
from chatapp.store import Store
from chatapp.store.measures import HOUR_MS, MINUTE_MS
from chatapp.store.migrate import migrate
from chatapp.store.totals import most

StartServer = Callable[..., Server]
TOKEN = "a-token-of-the-lab-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ROW_S = 5.5  # a worker says its figures at least so often
DASHBOARD = ROOT / "deploy/grafana-dashboard.json"
ALWAYS = {
    "chat_people_live",
    "chat_sessions_live",
    "chat_connect_attempts_total",
    "chat_session_connect_total",
    "chat_connected_seconds_total",
    "chat_recoveries_total",
    "chat_message_roundtrip_seconds_bucket",
    "chat_message_server_seconds_bucket",
    "chat_commit_seconds_bucket",
    "chat_deliveries_total",
    "chat_errors_total",
    "chat_worker_resident_memory_bytes",
    "chat_workers_cpu_seconds_total",
    "chat_worker_start_time_seconds",
    "chat_build_info",
    "chat_ready",
}

Samples = dict[tuple[str, frozenset[str]], float]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers; nobody answers."""
    with Server(tmp_path_factory.mktemp("shared"), assistant="off", workers=2, metrics_token=TOKEN) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def text_of(server: Server) -> str:
    answer = Client(server.url).request("GET", "/metrics", headers=BEARER)
    assert answer.status == 200, answer.text[:500]
    return answer.text


def scrape(server: Server) -> Samples:
    """Every sample, by its name and the values of its labels."""
    families = text_string_to_metric_families(text_of(server))
    return {key(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def key(name: str, *labels: str) -> tuple[str, frozenset[str]]:
    return name, frozenset(labels)


def report(client: Client, page: str, *events: dict[str, Any]) -> None:
    """The reports of a page, as a browser sends them."""
    now = round(time.time() * 1000)
    rows = [{"client": page, "number": number, "at": now - 10, **one} for number, one in enumerate(events)]
    answer = client.post("/connection/events", JSON, events=json.dumps(rows), now=str(now))
    assert answer.status == 204, answer.text


def ready(transport: str = "websocket") -> dict[str, Any]:
    return {"type": "attempt", "transport": transport, "data": {"outcome": "ready", "ms": 40}}


def state(before: str, after: str, reason: str | None = None) -> dict[str, Any]:
    return {"type": "state", "from": before, "to": after, "reason": reason}


def minute(**facts: Any) -> dict[str, Any]:
    return {"type": "minute", "data": facts}


# Who may


def test_it_is_there_for_operators_and_the_token_only(shared: Server) -> None:
    add_people(shared, "grace@example.org")
    stranger, grace, operator = Client(shared.url), signed_in(shared, "grace@example.org"), Client(shared.url).sign_in()
    for path in ("/metrics", "//metrics", "/metrics/"):
        assert stranger.request("GET", path).status == 404, path
        assert grace.request("GET", path).status == 404, path
        assert stranger.request("POST", path).status in (400, 404), path
    assert operator.request("GET", "/metrics").status == 200
    assert stranger.request("GET", "/metrics", headers=BEARER).status == 200
    assert stranger.request("GET", "/metrics", headers={"Authorization": f"bearer  {TOKEN} "}).status == 200
    for wrong in ("", TOKEN[:-1], f"{TOKEN}0", "é" * 20, TOKEN.upper()):
        headers = {"Authorization": f"Bearer {wrong}".encode().decode("latin-1")}
        answer = grace.request("GET", "/metrics", headers=headers)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="metrics"'), wrong
    assert stranger.request("GET", "/metrics", headers={"Authorization": "Basic YTpi"}).status == 404
    answer = stranger.request("GET", "/metrics", headers=BEARER)
    assert answer.headers["Content-Type"].startswith("text/plain") and "no-store" in answer.headers["Cache-Control"]


def test_without_a_token_no_bearer_is_one(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    for given in ("", "x", TOKEN):
        assert Client(server.url).request("GET", "/metrics", headers={"Authorization": f"Bearer {given}"}).status == 404
    assert Client(server.url).sign_in().get("/metrics").status == 200


# The values


def test_the_values_move(shared: Server) -> None:
    me, page, other = Client(shared.url).sign_in(), str(uuid.uuid4()), str(uuid.uuid4())
    wait_for(lambda: scrape(shared).get(key("chat_workers")) == 2, 15, "both workers have said something")
    before = scrape(shared)
    assert {name for name, _ in before} >= ALWAYS
    conversation = str(me.create("hello").json["conversation"])
    with WebSocketPeer(me, f"/ws?page={page}") as socket:
        report(
            me,
            page,
            ready(),
            state("connecting", "connected"),
            minute(sent={"websocket": {"28": 3}}, received={"1": 4, "45": 1}, missing=2),
        )
        report(
            me,
            other,
            {"type": "attempt", "transport": "websocket", "reason": "upgrade-refused", "data": {"outcome": "failed"}},
            ready("polling"),
            state("connecting", "polling", "upgrade-refused"),
            state("polling", "reconnecting", "socket-closed"),
            state("reconnecting", "connected"),
        )
        for number in range(5):
            assert not socket.send(conversation, f"message {number}").refused
        PollingPeer(me).poll()
        time.sleep(ROW_S)
        after = scrape(shared)

    def rise(name: str, *labels: str) -> float:
        return after.get(key(name, *labels), 0) - before.get(key(name, *labels), 0)

    assert rise("chat_connect_attempts_total", "websocket", "success") == 1
    assert rise("chat_connect_attempts_total", "websocket", "failure") == 1
    assert rise("chat_connect_failures_total", "websocket", "upgrade-refused") == 1
    assert rise("chat_connect_attempts_total", "polling", "success") == 1
    assert rise("chat_session_connect_total", "success") == 2
    assert rise("chat_connect_duration_seconds_bucket", "websocket", "0.05") == 1
    assert rise("chat_fallbacks_total", "upgrade-refused") == 1
    assert rise("chat_disconnects_total", "socket-closed") == 1
    assert rise("chat_recoveries_total") == 1
    assert rise("chat_deliveries_total", "delivered") == 4 and rise("chat_deliveries_total", "late") == 1
    assert rise("chat_message_roundtrip_seconds_count", "websocket") == 3
    assert rise("chat_message_roundtrip_seconds_bucket", "websocket", "0.15") == 3  # 2^7 ms
    assert rise("chat_message_roundtrip_seconds_bucket", "websocket", "0.1") == 0
    assert rise("chat_message_server_seconds_count") >= 5 and rise("chat_commit_seconds_count") >= 5
    assert rise("chat_connected_seconds_total", "websocket") > 1
    assert after[key("chat_sessions_live", "websocket")] == 2 and after[key("chat_connections_open", "websocket")] == 1
    assert after[key("chat_people_live", "connected")] == 1
    assert after[key("chat_ready")] == after[key("chat_metrics_complete")] == 1
    assert after[key("chat_worker_resident_memory_bytes", "1")] > 1 << 20
    assert abs(after[key("chat_worker_start_time_seconds", "0")] - time.time()) < 3600


def worker_rows(server: Server) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=10)) as database:
        return {name: json.loads(data) for name, data in database.execute("SELECT worker, data FROM worker_rows")}


def assert_nothing_fell(before: Samples, after: Samples) -> None:
    known = [one for one in before if one[0].endswith(("_total", "_bucket", "_count", "_sum"))]
    fell = {one: (before[one], after.get(one)) for one in known if after[one] < before[one]}
    assert not fell, fell


def test_counters_do_not_fall_when_a_worker_is_killed_or_the_server_restarts(start_server: StartServer) -> None:
    server = start_server(assistant="off", workers=2, metrics_token=TOKEN)
    me, page = Client(server.url).sign_in(), str(uuid.uuid4())
    report(me, page, ready(), state("connecting", "connected"), state("connected", "polling", "mute"))
    conversation = str(me.create("hello").json["conversation"])
    for number in range(20):
        assert me.post_message(conversation, f"message {number}").status in (200, 201)
    wait_for(lambda: len(worker_rows(server)) == 2, 10, "both have a row")
    time.sleep(ROW_S)
    before = scrape(server)
    assert before[key("chat_message_server_seconds_count")] == 20 and before[key("chat_fallbacks_total", "mute")] == 1
    dead = worker_rows(server)
    for row in dead.values():
        os.kill(row["pid"], signal.SIGKILL)
    wait_for(lambda: len(worker_rows(server)) == 4, 20, "others have taken their place")
    killed = scrape(server)
    assert_nothing_fell(before, killed)
    assert killed[key("chat_message_server_seconds_count")] == 20
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=10)) as database:
        database.execute("UPDATE worker_rows SET at = 1 WHERE worker IN (?, ?)", list(dead))
        database.commit()
    wait_for(lambda: not dead.keys() & worker_rows(server).keys(), 10, "the dead are forgotten")
    forgotten = scrape(server)
    assert_nothing_fell(killed, forgotten)
    assert forgotten[key("chat_message_server_seconds_count")] == 20
    assert forgotten[key("chat_worker_resident_memory_bytes", "1")] > 0
    assert key("chat_worker_resident_memory_bytes", "2") not in forgotten
    server.restart()
    assert_nothing_fell(forgotten, scrape(server))


def test_whoever_is_asked_nothing_falls_while_people_come_and_go(shared: Server) -> None:
    """Both workers answer in turn, reports pour in, and the minute's end may come between."""
    me, kinds = Client(shared.url).sign_in(), ("mute", "socket-closed", "upgrade-refused")
    conversation = str(me.create("hello").json["conversation"])
    before, began, rounds = scrape(shared), time.monotonic(), 0
    while time.monotonic() - began < 12:
        page, reason = str(uuid.uuid4()), kinds[rounds % 3]
        left = [state("polling", "reconnecting", reason)] if rounds % 2 else [{"type": "end", "data": {}}]
        came = [ready(), state("connecting", "connected"), state("connected", "polling", reason)]
        report(me, page, *came, minute(sent={"polling": {str(rounds % 64): 2}}, received={"1": 1}), *left)
        me.post_message(conversation, f"message {rounds}")
        for _ in range(3):
            after = scrape(shared)
            assert_nothing_fell(before, after)
            before = after
        rounds += 1
    found = {one: value for one, value in before.items() if one[0] == "chat_message_roundtrip_seconds_bucket"}
    count = before[key("chat_message_roundtrip_seconds_count", "polling")]
    assert found[key("chat_message_roundtrip_seconds_bucket", "polling", "+Inf")] == count >= 2 * rounds
    print(f"\n{rounds} rounds")


def test_nobody_is_named(shared: Server) -> None:
    """Not even where a client reports names in place of reasons, or a conversation's words."""
    me, page = Client(shared.url).sign_in(), str(uuid.uuid4())
    secret = "canary-7f3a"
    me.create(f"{secret} first words")
    report(
        me,
        page,
        state("connecting", "connected", secret),
        state("connected", "polling", secret),
        {"type": "attempt", "transport": "websocket", "reason": EMAIL, "data": {"outcome": "failed"}},
        {"type": "attempt", "transport": secret, "data": {"outcome": "ready", "ms": 1}},
        state("polling", secret),
        state("polling", "reconnecting", secret),
        {"type": "error", "data": {"message": f"{secret} broke", "at": "app.js:7"}},
    )
    time.sleep(ROW_S)
    text = text_of(shared)
    assert 'reason="other"' in text
    for word in (secret, "@", NAME, NAME.split()[0], "127.0.0.1", *worker_rows(shared)):
        assert word not in text, word
    assert not re.search(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}", text), "a UUID"
    labels = {label for line in text.splitlines() for label in re.findall(r'[{,](\w+)="', line)}
    assert labels <= {"le", "transport", "outcome", "reason", "state", "where", "worker", "version"}


def test_a_full_scrape_is_small_and_quick(shared: Server) -> None:
    text_of(shared)
    began = time.monotonic()
    text = text_of(shared)
    print(f"\n{len(text)} bytes, {1000 * (time.monotonic() - began):.0f} ms")
    assert len(text) < 50_000 and time.monotonic() - began < 1


def test_the_library_is_loaded_at_the_first_scrape(tmp_path: Path) -> None:
    """The start does without it."""
    script = (
        "import sys; from pathlib import Path; from chatapp import create_app; from chatapp.config import Settings;"
        "app = create_app(Settings(data_dir=Path(sys.argv[1]), metrics_token=sys.argv[2]));"
        "print('prometheus_client' in sys.modules, 'chatapp.monitoring.exposition' in sys.modules);"
        "answer = app.test_client().get('/metrics', headers={'Authorization': 'Bearer ' + sys.argv[2]});"
        "print(answer.status_code, 'prometheus_client' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), TOKEN]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split("\n")[:2] == ["False False", "200 True"]


# Other people's programs


def test_without_the_figures_it_says_whether_the_server_is_ready(start_server: StartServer) -> None:
    server = start_server(assistant="off", metrics_token=TOKEN)
    for name, table, is_ready in (("metrics.db", "rollups", 1), ("chat.db", "instance", 0)):
        with closing(sqlite3.connect(server.data / name, timeout=10)) as database:
            database.execute(f"DROP TABLE {table}")
        found = scrape(server)
        assert found.pop(next(one for one in found if one[0] == "chat_build_info")) == 1
        assert found == {key("chat_ready"): is_ready, key("chat_metrics_complete"): 0}


def test_promtool_finds_nothing(shared: Server) -> None:
    found = subprocess.run(["promtool", "check", "metrics"], input=text_of(shared), capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def expressions(value: Any) -> Iterator[str]:
    """Every expression of a dashboard."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "expr":
                yield inner
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


def test_the_dashboard_asks_for_what_is_there(shared: Server) -> None:
    """Each metric that it names is in an answer; a real Prometheus scrapes the server and understands each question."""
    asked = list(expressions(json.loads(DASHBOARD.read_text())))
    assert len(asked) >= 10
    named = {name for expression in asked for name in re.findall(r"\bchat_\w+", expression)}
    me, page = Client(shared.url).sign_in(), str(uuid.uuid4())
    report(me, page, state("", "connected"), state("connected", "polling", "mute"), state("polling", "reconnecting"))
    text = text_of(shared)
    typed = set(re.findall(r"^# TYPE (\w+) ", text, re.M)) | {name for name, _ in scrape(shared)}
    assert named <= typed, named - typed
    with Prometheus(shared.port, TOKEN) as prometheus:
        wait_for(lambda: prometheus.ask('up{job="chat"} == 1'), 20, "it has scraped")
        wait_for(lambda: prometheus.ask("chat_ready == 1"), 20, "and knows the server")
        for expression in asked:
            prometheus.ask(expression.replace("$__rate_interval", "1m"))
        assert prometheus.ask("chat_build_info")[0]["metric"]["version"]
        with WebSocketPeer(me) as _:
            asks = 'chat_connections_open{transport="websocket"} >= 1'
            wait_for(lambda: prometheus.ask(asks), 15, "it sees a socket")


# Counters


def test_buckets_are_cumulative_and_hold_all() -> None:
    histogram = {"0": 2, "9": 1, "28": 4, "63": 1}  # 1 ms, 4.8 ms, 128 ms, 55 s
    found = dict(buckets(histogram, LATENCY))
    assert (found["0.005"], found["0.1"], found["0.15"], found["30.0"], found["+Inf"]) == (3, 3, 7, 7, 8)
    assert list(found.values()) == sorted(found.values())
    assert total_s(histogram) == pytest.approx(0.002 + 0.00476 + 0.512 + 55.1, rel=0.01)


def test_the_greater_of_each() -> None:
    one, other = {"a": 1, "b": {"x": [1, 5]}, "c": 2}, {"a": 3, "b": {"x": [2, 4], "y": 1}}
    assert most(one, other) == {"a": 3, "b": {"x": [2, 5], "y": 1}, "c": 2}
    assert most({}, other) == other and most(one, {}) == one


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    migrate(tmp_path)
    made = Store(Flask("test"), tmp_path, Bus())
    yield made
    made.close()


def present(begin: int, **counts: Any) -> Present:
    """A moment half a minute after the last roll-up."""
    server = ServerState("", 0.5, 1 << 40, None, None, 1, 1, 0, 0, 0)
    return Present(begin + 30_000, {}, [], server, True, begin, Figures(**counts))


def test_counters_are_the_sum_of_hours_minutes_and_seconds_and_never_fall(store: Store) -> None:
    begin, day = 1000 * 24 * HOUR_MS, 24 * HOUR_MS
    hours = {begin - 40 * day + number * HOUR_MS: Figures(recoveries=1).dump() for number in range(40 * 24 - 1)}
    store.measures.put("h", hours)
    minutes = {begin - number * MINUTE_MS: Figures(recoveries=10, drops={"mute": 1}).dump() for number in range(1, 41)}
    store.measures.put("m", minutes)
    first = counters(store.measures, present(begin, recoveries=3))
    assert (first.recoveries, first.drops) == (40 * 24 - 1 + 400 + 3, {"mute": 40})
    assert counters(store.measures, present(begin, recoveries=3)) == first
    later = begin + MINUTE_MS
    store.measures.put("m", {begin: Figures(recoveries=3, drops={"other": 1}).dump()})
    assert counters(store.measures, present(later)).drops == {"mute": 40, "other": 1}
    store.measures.put("m", {begin: Figures(recoveries=1).dump()})  # counted again: it was less
    assert counters(store.measures, present(later)).recoveries == first.recoveries
    while store.measures.delete_before("h", later, 500):
        pass
    assert counters(store.measures, present(later)).recoveries == first.recoveries
    store.measures.put("m", {later: Figures(recoveries=50).dump()})
    assert counters(store.measures, present(later + MINUTE_MS)).recoveries >= first.recoveries + 48


def test_the_dead_workers_totals_are_kept_once(store: Store) -> None:
    row = {"pid": 1, "cpu_s": 1.5, "counts": {"errors server": 2}, "histograms": {"post": {"3": 4}}}
    for name in ("a", "b"):
        store.measures.say(name, row)
    whole = {"counts": {"errors server": 4}, "histograms": {"post": {"3": 8}}, "cpu_s": 3.0}
    assert store.measures.totals.of_workers() == whole
    for _ in range(2):
        store.measures.totals.forget_workers(1 << 50)
        assert store.measures.totals.of_workers() == whole and not store.measures.workers(0)
    store.measures.say("c", row)
    assert store.measures.totals.of_workers()["histograms"] == {"post": {"3": 12}}
