"""The table of states, and what must hold in every walk through it, by the interpreter that ships."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from headless.core import CONFIG, Script

from chatapp.connection_states import STATES, TABLE, TIMERS, is_connected, table_json

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


def after(ms: int | str, kind: str, **more: Any) -> dict[str, Any]:
    """A step of a walk: so many ms after the one before, or "due": when its first timer is."""
    return {"after": ms, "event": {"type": kind, **more}}


@pytest.fixture(scope="module")
def rules() -> Script:
    return Script("tests/js/rules.js")


def walk(rules: Script, source: random.Random, steps: list[dict[str, Any]], config: Any = CONFIG) -> list[Any]:
    """What each step gave: at, actions, record."""
    given = {"config": config, "random": [source.random() for _ in range(97)], "steps": steps}
    found: list[Any] = rules.call("walk", json.loads(table_json()), given)
    return found


def test_retry_delays_are_the_documented_ones_and_always_jittered(rules: Script) -> None:
    """0-0.3 s, then 0.5, 1, 2, 4, 5, 5 … s at most, three quarters of it at least, jittered at the ceiling too."""
    ceilings = [500, 1000, 2000, 4000, 5000, 5000, 5000]
    assert 0 <= rules.call("delay", "retry_delay", [0, CONFIG], 0.999) <= 300
    for attempt, ceiling in enumerate(ceilings, start=1):
        found = {rules.call("delay", "retry_delay", [attempt, CONFIG], chance / 50) for chance in range(50)}
        assert 0.75 * ceiling <= min(found) < max(found) <= ceiling


def test_the_table_is_closed() -> None:
    """Every row leads to one of the six states, every state can be left, and the page's JSON holds it all."""
    assert set(TABLE) == set(STATES)
    for rows in TABLE.values():
        assert {target for target, _ in rows.values()} <= set(STATES)
    page = json.loads(table_json())
    assert page["table"]["connected"]["ws_suspect"] == ["connected", "start_poll resend"]
    assert list(page["timers"]) == list(TIMERS)


def test_is_connected() -> None:
    """Messages flow in exactly two states."""
    assert [state for state in STATES if is_connected(state)] == ["connected", "polling"]


@pytest.mark.parametrize("transports", [["websocket", "polling"], ["polling"], ["websocket"]])
def test_random_walks_keep_the_promises(rules: Script, transports: list[str]) -> None:
    """Whatever happens in whatever order: there is a next step, no forbidden transport, no loop without delay."""
    config: Any = {**CONFIG, "transports": transports}
    for seed in range(400):
        source = random.Random(seed)
        steps = [after(0, "start"), *(anything(source) for _ in range(60))]
        for found in walk(rules, source, steps, config)[1:]:
            check_promises(found["record"], found["actions"], transports)


def anything(source: random.Random) -> dict[str, Any]:
    """A step of chance."""
    one = after(source.choice([0, 1, 50, 400, 3000, 20_000]), source.choice(RAW_EVENTS), reason="any")
    event = one["event"]
    if event["type"] == "activity":
        event["level"] = source.choice(["active", "visible", "idle"])
    if event["type"] == "ws_closed":
        event["silent_ms"] = source.choice([100, 3000, 3010])
    if source.random() < 0.1:
        event["advice_ms"] = source.randrange(1, 5000)
    return one


def check_promises(record: dict[str, Any], actions: list[str], transports: list[str]) -> None:
    """What holds after every step."""
    assert "open_websocket" not in actions or "websocket" in transports
    assert "start_poll" not in actions or "polling" in transports
    assert record["reconnectAttempts"] <= CONFIG["max_attempts"]
    if record["status"] in ("connecting", "reconnecting", "error"):
        assert record["timers"], "nothing would ever happen again"
    if record["status"] == "disconnected":
        assert not record["timers"] and record["ws"] == "none" and record["poll"] == "none"
    if record["status"] == "connected":
        assert record["ws"] in ("up", "suspect")
    if record["status"] == "polling":
        assert record["poll"] in ("up", "trying") or "poll" in record["timers"]
        assert "websocket" not in transports or record["ws"] != "none" or "probe" in record["timers"]


def test_a_dead_server_is_tried_ten_times_then_slowly(rules: Script) -> None:
    """Every attempt refused at once: about 0.2, 0.5, 1, 2, 4, 5 … s apart, error after the tenth, then 10 s."""
    refused = [after(0, "ws_closed", reason="upgrade-refused"), after(0, "poll_failed", reason="server-unreachable")]
    found = walk(rules, random.Random(1), [after(0, "start"), *(40 * [*refused, after("due", "tick")])])[1:]
    attempts = [one for one in found if "open_websocket" in one["actions"]][:14]
    assert [one["record"]["status"] for one in attempts] == ["reconnecting"] * 10 + ["error"] * 4
    assert [one["record"]["reconnectAttempts"] for one in attempts[:10]] == list(range(1, 11))
    gaps = [later["at"] - earlier["at"] for earlier, later in pairwise(attempts)]
    assert all(gap <= 5000 for gap in gaps[:9]) and all(7_500 <= gap <= 10_000 for gap in gaps[9:])


def test_from_error_a_visible_page_asks_each_10_s_and_a_hidden_one_seldom(rules: Script) -> None:
    """However long it has been there: who looks at it is back within 10 s and an attempt."""
    for times in range(20):
        assert 7_500 < rules.call("delay", "slow_retry_delay", [times, "active", CONFIG], 0.999) <= 10_000
        assert rules.call("delay", "slow_retry_delay", [times, "hidden", CONFIG], 0.999) > 22_000
        assert rules.call("delay", "slow_retry_delay", [times, "hidden", CONFIG], 0) <= 60_000


def test_back_on_websocket_within_12_s(rules: Script) -> None:
    """An active person's page that polls: from a hung probe to the next one and its proof never takes longer."""
    steps = [after(0, kind) for kind in ("start", "ws_closed", "poll_answered")]
    steps += 8 * [after("due", "tick"), after(4000, "tick")]  # hung probes
    steps += [after("due", "tick"), after(100, "ws_ready"), after(100, "ws_proved")]
    for seed in range(300):
        *_, hung, _, probe, _, proved = walk(rules, random.Random(seed), steps)
        assert "open_websocket" in probe["actions"]
        assert proved["record"]["status"] == "connected"
        assert proved["at"] - hung["at"] <= 12_000
