"""The state machine: the shared vectors, the delays' bounds, and what must hold in every walk through the table."""

import json
import random
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import pytest

from chatapp.connection import delays, states
from chatapp.connection.states import STATES, TABLE, Machine, is_connected, step

VECTORS = json.loads((Path(__file__).parent / "vectors" / "states.json").read_text())
CONFIG: Any = {
    "transports": ["websocket", "polling"],
    "reconnect_ms": 5000,
    "max_attempts": 10,
    "poll_ms": 3000,
    "poll_retries": 3,
    "poll_backoff": 1.5,
}
RAW_EVENTS = ["start", "retry", "wake", "online", "offline", "hidden", "signed_out", "refused", "stop", "measured"]
RAW_EVENTS += [
    "tick",
    "ws_ready",
    "ws_proved",
    "ws_suspect",
    "ws_recovered",
    "ws_closed",
    "poll_answered",
    "poll_failed",
    "activity",
    "quality",
]


def chance(values: list[float]) -> Callable[[], float]:
    """A source of chance that repeats `values`."""
    return cycle(values).__next__


@pytest.mark.parametrize("scenario", VECTORS["scenarios"], ids=lambda scenario: scenario["name"])
def test_scenario(scenario: Any) -> None:
    """Each step's actions and changes of the record, as states.js must give them too."""
    config, source = scenario["config"], chance(scenario["random"])
    record = states.new_record(config)
    for row in scenario["steps"]:
        expected = {**record, **row["changes"]}
        record, actions = step(record, row["event"], row["at"], config, source)
        assert (actions, record) == (row["actions"], expected), row


def test_delay_vectors() -> None:
    """Each delay is the same function of the same numbers in both languages."""
    for row in VECTORS["delays"]:
        arguments = list(row["arguments"])
        if row["random"] is not None:
            arguments.append(chance([row["random"]]))
        assert getattr(delays, row["function"])(*arguments) == row["result"], row


def test_rtt_vectors() -> None:
    """RFC 6298, clamped to 1-6 s."""
    estimate = None
    for row in VECTORS["rtt"]:
        estimate = delays.rtt_estimate(estimate, row["sample"])
        assert estimate == pytest.approx({k: row[k] for k in ("srtt", "rttvar", "rto")})


def test_retry_delays_are_the_documented_ones_and_always_jittered() -> None:
    """0-0.3 s, then 0.5, 1, 2, 4, 5, 5 … s at most, three quarters of it at least, jittered at the ceiling too."""
    ceilings = [500, 1000, 2000, 4000, 5000, 5000, 5000]
    assert 0 <= delays.retry_delay(0, CONFIG, lambda: 0.999) <= 300
    for attempt, ceiling in enumerate(ceilings, start=1):
        found = {delays.retry_delay(attempt, CONFIG, random.Random(seed).random) for seed in range(50)}
        assert 0.75 * ceiling <= min(found) < max(found) <= ceiling


def test_the_table_is_closed() -> None:
    """Every row leads to one of the six states, every state can be left, and the page's JSON holds it all."""
    assert set(TABLE) == set(STATES)
    for rows in TABLE.values():
        assert {target for target, _ in rows.values()} <= set(STATES)
    page = json.loads(states.table_json())
    assert page["table"]["connected"]["ws_suspect"] == ["connected", "start_poll resend"]
    assert list(page["timers"]) == list(states.TIMERS)


def test_is_connected() -> None:
    """Messages flow in exactly two states."""
    assert [state for state in STATES if is_connected(state)] == ["connected", "polling"]


@pytest.mark.parametrize("transports", [["websocket", "polling"], ["polling"], ["websocket"]])
def test_random_walks_keep_the_promises(transports: list[str]) -> None:
    """Whatever happens in whatever order: there is a next step, no forbidden transport, no loop without delay."""
    config: Any = {**CONFIG, "transports": transports}
    for seed in range(400):
        source = random.Random(seed)
        machine, now = Machine(config, source.random), 0
        machine.take({"type": "start"}, now)
        for _ in range(60):
            now += source.choice([0, 1, 50, 400, 3000, 20_000])
            event: Any = {"type": source.choice(RAW_EVENTS), "reason": "any"}
            if event["type"] == "activity":
                event["level"] = source.choice(["active", "visible", "idle"])
            if event["type"] == "ws_closed":
                event["silent_ms"] = source.choice([100, 3000, 3010])
            if source.random() < 0.1:
                event["advice_ms"] = source.randrange(1, 5000)
            actions = machine.take(event, now)
            check_promises(machine, actions, transports, now)


def check_promises(machine: Machine, actions: list[str], transports: list[str], now: int) -> None:
    """What holds after every step."""
    record = machine.record
    assert "open_websocket" not in actions or "websocket" in transports
    assert "start_poll" not in actions or "polling" in transports
    assert record["reconnectAttempts"] <= machine.config["max_attempts"]
    if record["status"] in ("connecting", "reconnecting", "error"):
        assert record["timers"], "nothing would ever happen again"
    if record["status"] == "disconnected":
        assert not record["timers"] and record["ws"] == "none" and record["poll"] == "none"
    if record["status"] == "connected":
        assert record["ws"] in ("up", "suspect")
    if record["status"] == "polling":
        assert record["poll"] in ("up", "trying") or "poll" in record["timers"]
        assert "websocket" not in transports or record["ws"] != "none" or "probe" in record["timers"]


def test_a_dead_server_is_tried_ten_times_then_slowly() -> None:
    """Every attempt refused at once: about 0.2, 0.5, 1, 2, 4, 5 … s apart, error after the tenth, then 10 s."""
    machine, now, attempts = Machine(CONFIG, random.Random(1).random), 0, []
    machine.take({"type": "start"}, now)
    while len(attempts) < 14:
        machine.take({"type": "ws_closed", "reason": "upgrade-refused"}, now)
        machine.take({"type": "poll_failed", "reason": "server-unreachable"}, now)
        now = machine.due() or now
        if "open_websocket" in machine.take({"type": "tick"}, now):
            attempts.append((now, machine.record["status"], machine.record["reconnectAttempts"]))
    assert [status for _, status, _ in attempts] == ["reconnecting"] * 10 + ["error"] * 4
    assert [count for _, _, count in attempts[:10]] == list(range(1, 11))
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(attempts)]
    assert all(gap <= 5000 for gap in gaps[:9]) and all(7_500 <= gap <= 10_000 for gap in gaps[9:])


def test_from_error_a_visible_page_asks_each_10_s_and_a_hidden_one_seldom() -> None:
    """However long it has been there: who looks at it is back within 10 s and an attempt."""
    for times in range(20):
        assert 7_500 < delays.slow_retry_delay(times, "active", CONFIG, lambda: 0.999) <= 10_000
        assert delays.slow_retry_delay(times, "hidden", CONFIG, lambda: 0.999) > 22_000
        assert delays.slow_retry_delay(times, "hidden", CONFIG, lambda: 0) <= 60_000


def test_back_on_websocket_within_12_s() -> None:
    """An active person's page that polls: from a hung probe to the next one and its proof never takes longer."""
    for seed in range(300):
        machine, now = Machine(CONFIG, random.Random(seed).random), 0
        for kind in ("start", "ws_closed", "poll_answered"):
            machine.take({"type": kind}, now)
        for _ in range(8):  # hung probes
            heals = now = machine.due() or now
            machine.take({"type": "tick"}, now)
            now += 4000
            machine.take({"type": "tick"}, now)
        now = machine.due() or now
        assert "open_websocket" in machine.take({"type": "tick"}, now)
        machine.take({"type": "ws_ready"}, now + 100)
        machine.take({"type": "ws_proved"}, now + 200)
        assert machine.record["status"] == "connected"
        assert now + 200 - heals <= 12_000
