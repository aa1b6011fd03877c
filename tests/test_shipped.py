"""The rules of the connection as they are shipped, against the vectors: the modules that browsers run, in QuickJS."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from headless.core import Script

from chatapp.connection_states import table_json
from chatapp.diagnostics.verdicts import rules_json

FOLDER = Path(__file__).parent / "vectors"


def vectors(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def each(name: str, key: str = "") -> Callable[[Callable[..., None]], Any]:
    """A test for each scenario of a file."""
    found = vectors(name)[key] if key else vectors(name)
    return pytest.mark.parametrize("scenario", found, ids=lambda scenario: scenario["name"])


def near(value: Any) -> Any:
    """Equal, or a number within a millionth of it."""
    return pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float | int | dict) and value else value


@pytest.fixture(scope="module")
def rules() -> Script:
    return Script("tests/js/rules.js")


@each("states", "scenarios")
def test_states(rules: Script, scenario: dict[str, Any]) -> None:
    record = rules.call("fresh", scenario["config"])
    found = rules.call("states", json.loads(table_json()), scenario)
    for step, after in zip(scenario["steps"], found, strict=True):
        record |= step["changes"]
        assert after == {"actions": step["actions"], "record": record}, step


def test_delays(rules: Script) -> None:
    for row in vectors("states")["delays"]:
        assert rules.call("delay", row["function"], row["arguments"], row["random"]) == row["result"], row


def test_round_trips(rules: Script) -> None:
    rows = vectors("states")["rtt"]
    found = rules.call("roundTrips", [row["sample"] for row in rows])
    for row, estimate in zip(rows, found, strict=True):
        assert estimate == pytest.approx({name: row[name] for name in estimate}, abs=1e-6), row


def test_connected_means_that_messages_flow(rules: Script) -> None:
    assert rules.call("connected", json.loads(table_json())["states"]) == ["connected", "polling"]


@each("detector")
def test_detector(rules: Script, scenario: dict[str, Any]) -> None:
    for step, found in zip(scenario["steps"], rules.call("detector", scenario), strict=True):
        assert found["suspicion"] == step["suspicion"], step
        assert found["due"] == pytest.approx(step["due"], abs=1e-3), step
        expected = pytest.approx(step["result"], abs=1e-3) if isinstance(step["result"], float) else step["result"]
        assert found["result"] == expected, step


@each("pacing")
def test_pacing(rules: Script, scenario: dict[str, Any]) -> None:
    for step, found in zip(scenario["steps"], rules.call("pacing", scenario), strict=True):
        assert found["why"] == step["why"], step
        assert found["result"] == near(step["result"]), step


@each("quality")
def test_quality(rules: Script, scenario: dict[str, Any]) -> None:
    for step, found in zip(scenario["steps"], rules.call("quality", scenario), strict=True):
        assert found == step["result"], step


@each("memory")
def test_memory(rules: Script, scenario: dict[str, Any]) -> None:
    for step, found in zip(scenario["steps"], rules.call("memory", scenario), strict=True):
        assert found["entry"] == near(step["entry"]) and found["trust"] == near(step["trust"]), step
        assert found["count"] == step["count"], step


def test_verdicts(rules: Script) -> None:
    table, probes = json.loads(rules_json()), vectors("probes")
    for row in probes["outcomes"]:
        assert rules.call("judge", table, row) == row["outcome"], row
    for row in probes["verdicts"]:
        assert rules.call("judged", table, row["outcomes"]) == row["verdict"], row
    for row in probes["proxies"]:
        assert rules.call("proxy", table, row["headers"]) == row["proxy"], row


def test_where_no_mark_comes_it_is_asked_for_later_and_later_and_at_once_after_a_press() -> None:
    cause = Script("tests/js/cause.js")
    cause.call("explain", 200)
    assert cause.call("outcome") == {"asked": [0, 10, 30, 70, 130, 190, 200], "found": 0}
