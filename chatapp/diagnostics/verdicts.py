"""The interpreter of rules.json, which judges a connection test.

A test runs probes; the rules turn each probe's facts into an outcome, and all outcomes into one verdict. The page
carries `rules_json()` for static/js/check/verdicts.js, `chatapp doctor` calls this module, and
`tests/vectors/probes.json` runs in both languages, so that browser and shell agree. Times are milliseconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Fact = str | int | float | bool | None
Facts = Mapping[str, Fact]
Conditions = dict[str, list[Any] | dict[str, float]]
Rules = list[tuple[str, Conditions]]

_DATA: dict[str, Any] = json.loads((Path(__file__).parent / "rules.json").read_text())
PROBES: list[str] = _DATA["probes"]
RULES: dict[str, Rules] = _DATA["rules"]
LEVELS: dict[str, str] = _DATA["levels"]
VERDICTS: Rules = _DATA["verdicts"]
WORTH: dict[str, str] = _DATA["worth"]
FIXES: dict[str, dict[str, str]] = _DATA["fixes"]
PROXIES: list[tuple[str, str]] = _DATA["proxies"]

EXIT_CODES = {"good": 0, "degraded": 1, "unreachable": 2}  # of doctor, by a verdict's worth
MARK, END = "<chat-test", "</chat-test>"  # of every answer to a test
TEST_HEADER = "X-Chatapp-Test"  # unusual, hence stripped by strict proxies
STREAM_PARTS, STREAM_EVERY_S = 5, 0.4
LARGE_BYTES = 512 * 1024


@dataclass(frozen=True)
class Verdict:
    """The result of a test: a name, its worth (good, degraded, unreachable), and the names of fixes."""

    name: str
    worth: str
    fixes: tuple[str, ...]


def outcome(probe: str, facts: Facts) -> str:
    """Return the outcome of a probe by its facts."""
    return _first(RULES[probe], facts)


def level(found: str) -> str:
    """Return the severity of an outcome: ok, note, warning or failed."""
    return LEVELS.get(found, "failed")


def verdict(outcomes: Mapping[str, str]) -> Verdict:
    """Return the verdict on the outcomes of all probes; a missing one counts as skipped."""
    full = {probe: outcomes.get(probe, "skipped") for probe in PROBES}
    name = _first(VERDICTS, full)
    fixes: dict[str, None] = {}
    for probe, found in full.items():
        if level(found) in ("warning", "failed"):
            fixes[FIXES[probe].get(found, FIXES[probe]["*"])] = None
    return Verdict(name, WORTH.get(name, "degraded"), tuple(fixes))


def proxy_of(headers: str) -> str:
    """Return the proxy named in an answer's Server and Via headers, or ""."""
    text = headers.lower()
    return next((name for product, name in PROXIES if product in text), "")


def rules_json() -> str:
    """Return all rules as compact JSON, for the page."""
    return json.dumps({name: value for name, value in _DATA.items() if name != "about"}, separators=(",", ":"))


def _first(rules: Sequence[tuple[str, Conditions]], facts: Facts) -> str:
    for name, conditions in rules:
        if all(_fits(facts.get(fact), wanted) for fact, wanted in conditions.items()):
            return name
    raise ValueError("the last rule has no conditions")


def _fits(fact: Fact, wanted: list[Any] | dict[str, float]) -> bool:
    if isinstance(wanted, list):
        return any(fact == value and isinstance(fact, bool) == isinstance(value, bool) for value in wanted)
    if isinstance(fact, bool) or not isinstance(fact, int | float):
        return False
    return wanted.get("min", float("-inf")) <= fact < wanted.get("below", float("inf"))
