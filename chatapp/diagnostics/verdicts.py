"""Rules for judging a connection test, as plain data, and their pure interpreter.

A test runs probes; the rules turn each probe's facts into an outcome, and all outcomes into one verdict. The page
carries `rules_json()` for static/js/check/verdicts.js, `chatapp doctor` calls this module, and
`tests/vectors/probes.json` runs in both languages, so that browser and shell agree. Times are milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Fact = str | int | float | bool | None
Facts = Mapping[str, Fact]
# A condition is a list of values, or a range {"min": …, "below": …}. A rule holds when all its conditions do.
Conditions = dict[str, list[Any] | dict[str, float]]
Rules = list[tuple[str, Conditions]]

PROBES = ("http", "mark", "upgrade", "echo", "poll", "stream", "large", "hold", "idle")
FAULTS = ("refuse", "close", "mute", "delay", "429")  # of drills

SLOW_MS = 3000  # for an empty answer: felt with each message
SLOW_ECHO_MS = 1500
SLOW_LARGE_MS = 15_000  # half a megabyte: under 35 kB a second
BUFFERED_BELOW_MS = 700  # first to last part of a streamed answer, which the server sends over 1600 ms
EARLY_MS = 1000  # an answer so much before its time was not held
CUT_AFTER_MS = 900  # a later refusal is a hold that was cut
DROPPED_BELOW_MS = 2500  # no idle timeout is that short: a WebSocket cut so early was cut on purpose
STREAM_PARTS, STREAM_EVERY_S = 5, 0.4
LARGE_BYTES = 512 * 1024

# Failures of any HTTP answer, the most informative first.
_ANSWER: Rules = [
    ("unreachable", {"error": ["unreachable"]}),
    ("tls", {"error": ["tls"]}),
    ("hung", {"error": ["hung"]}),
    ("cut", {"error": ["cut"]}),
    ("redirect", {"redirected": [True]}),
    ("proxy-auth", {"status": [407]}),
    ("signed-out", {"status": [401], "marked": [True]}),
    ("drill", {"status": [429], "drill": list(FAULTS)}),
    ("paused", {"status": [429]}),
    ("gateway", {"status": [502, 503, 504]}),
    ("filtered", {"status": {"min": 400, "below": 500}}),
    ("failed", {"status": {"min": 500, "below": 600}}),
]
_FOREIGN: Rules = [("foreign", {"marked": [False]})]

RULES: dict[str, Rules] = {
    "http": [*_ANSWER[:4], ("slow", {"ms": {"min": SLOW_MS}}), ("ok", {})],
    "mark": [*_ANSWER, *_FOREIGN, ("stale", {"fresh": [False]}), ("bare", {"header": [False]}), ("ok", {})],
    "upgrade": [
        ("off", {"offered": [False]}),
        ("ok", {"hello": [True]}),
        ("drill", {"drill": list(FAULTS)}),
        ("mute", {"opened": [True], "error": ["hung"]}),
        ("dropped", {"opened": [True]}),
        ("hung", {"error": ["hung"]}),
        ("unreachable", {"error": ["unreachable"]}),
        ("redirect", {"status": {"min": 300, "below": 400}}),
        ("proxy-auth", {"status": [407]}),
        ("signed-out", {"status": [401]}),
        ("paused", {"status": [429]}),
        ("foreign", {"status": {"min": 200, "below": 300}}),
        ("stripped", {"protocol": ["HTTP/1.0"]}),
        ("stripped", {"status": [400, 426]}),
        ("origin", {"origin": [False]}),
        ("filtered", {"status": {"min": 400, "below": 500}}),
        ("gateway", {"status": {"min": 500, "below": 600}}),
        ("refused", {}),
    ],
    "echo": [
        ("ok", {"missing": [0], "ms": {"min": 0, "below": SLOW_ECHO_MS}}),
        ("drill", {"drill": list(FAULTS)}),
        ("cut", {"closed": [True]}),
        ("mute", {"missing": {"min": 1}}),
        ("slow", {}),
    ],
    "poll": [*_ANSWER, *_FOREIGN, ("slow", {"ms": {"min": SLOW_MS}}), ("ok", {})],
    "stream": [
        *_ANSWER,
        *_FOREIGN,
        ("cut", {"complete": [False]}),
        ("buffered", {"spread_ms": {"min": 0, "below": BUFFERED_BELOW_MS}}),
        ("ok", {}),
    ],
    "large": [
        *_ANSWER,
        *_FOREIGN,
        ("cut", {"complete": [False]}),
        ("slow", {"ms": {"min": SLOW_LARGE_MS}}),
        ("ok", {}),
    ],
    "hold": [
        ("off", {"wanted_ms": [0]}),
        ("cut", {"status": [408, 502, 503, 504], "ms": {"min": CUT_AFTER_MS}}),
        *_ANSWER,
        *_FOREIGN,
        ("cut", {"complete": [False]}),
        ("early", {"short_ms": {"min": EARLY_MS}}),
        ("ok", {}),
    ],
    "idle": [
        ("ok", {"answered": [True]}),
        ("drill", {"drill": list(FAULTS)}),
        ("dropped", {"closed": [True], "silent_ms": {"min": 0, "below": DROPPED_BELOW_MS}}),
        ("cut", {"closed": [True]}),
        ("mute", {}),
    ],
}

# Any other outcome is "failed".
LEVELS = {
    "ok": "ok",
    "bare": "ok",
    "off": "note",
    "skipped": "note",
    "slow": "warning",
    "buffered": "warning",
    "early": "warning",
    "signed-out": "warning",
    "drill": "warning",
}

_SOCKET_OK: Conditions = {"upgrade": ["ok"], "echo": ["ok", "slow"], "idle": ["ok", "skipped"]}
_POLL_OK: Conditions = {"poll": ["ok", "slow"]}
_HOLD_OK: Conditions = {"hold": ["ok", "off", "skipped"]}
_STEADY: Conditions = {**_SOCKET_OK, **_POLL_OK, **_HOLD_OK}

VERDICTS: Rules = [
    ("unreachable", {"http": ["unreachable", "cut"]}),
    ("tls", {"http": ["tls"]}),
    ("silent", {"http": ["hung"]}),
    ("proxy-auth", {"mark": ["proxy-auth"]}),
    ("portal", {"mark": ["redirect", "foreign"]}),
    ("filtered", {"mark": ["filtered"]}),
    ("gateway", {"mark": ["gateway", "failed"]}),
    ("paused", {"mark": ["paused"]}),
    ("signed-out", {"mark": ["signed-out"]}),
    ("silent", {"mark": ["unreachable", "hung", "cut", "tls"]}),
    ("drill", {"upgrade": ["drill"]}),
    ("drill", {"echo": ["drill"]}),
    ("drill", {"poll": ["drill"]}),
    ("drill", {"idle": ["drill"]}),
    ("cached", {"mark": ["stale"]}),
    ("live", {**_STEADY, "echo": ["ok"], "http": ["ok"], "poll": ["ok"], "stream": ["ok"], "large": ["ok"]}),
    ("slow", {**_STEADY, "stream": ["ok"], "large": ["ok", "slow"]}),
    ("live-remarks", {**_SOCKET_OK, **_POLL_OK}),
    ("socket-only", {**_SOCKET_OK}),
    ("unsteady", {"upgrade": ["ok"], **_POLL_OK}),
    ("chosen-polling", {"upgrade": ["off"], **_POLL_OK, **_HOLD_OK, "stream": ["ok"], "large": ["ok"]}),
    ("polling", {**_POLL_OK, **_HOLD_OK}),
    ("plain-polling", {**_POLL_OK}),
    ("nothing", {}),
]
# Any other verdict is "degraded".
WORTH = {
    "live": "good",
    "chosen-polling": "good",
    **dict.fromkeys(("unreachable", "tls", "silent", "proxy-auth", "portal", "filtered", "gateway"), "unreachable"),
    "nothing": "unreachable",
}
EXIT_CODES = {"good": 0, "degraded": 1, "unreachable": 2}

# probe → outcome → the name of a fix in `advice.py`. `*`: every other failure.
FIXES: dict[str, dict[str, str]] = {
    "http": {"tls": "tls", "slow": "load", "*": "reach"},
    "mark": {
        "proxy-auth": "proxy-auth",
        "redirect": "portal",
        "foreign": "portal",
        "filtered": "allow",
        "stale": "cache",
        "gateway": "backend",
        "failed": "backend",
        "signed-out": "sign-in",
        "paused": "wait",
        "*": "reach",
    },
    "upgrade": {
        "stripped": "upgrade",
        "refused": "upgrade",
        "origin": "host",
        "hung": "inspection",
        "mute": "inspection",
        "dropped": "inspection",
        "gateway": "backend",
        "signed-out": "sign-in",
        "proxy-auth": "proxy-auth",
        "paused": "wait",
        "drill": "drill",
        "*": "allow",
    },
    "echo": {"drill": "drill", "slow": "load", "*": "inspection"},
    "poll": {"drill": "drill", "slow": "load", "paused": "wait", "gateway": "backend", "*": "allow"},
    "stream": {"buffered": "buffering", "cut": "timeout", "*": "allow"},
    "large": {"cut": "large", "slow": "load", "*": "allow"},
    "hold": {"cut": "timeout", "hung": "timeout", "early": "cache", "*": "allow"},
    "idle": {"drill": "drill", "dropped": "inspection", "*": "timeout"},
}

# Proxies that name themselves in the Server or Via header of an answer.
PROXIES = (
    ("cloudflare", "cloudflare"),
    ("squid", "squid"),
    ("nginx", "nginx"),
    ("caddy", "caddy"),
    ("apache", "apache"),
    ("haproxy", "haproxy"),
)


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
    parts = {
        "probes": PROBES,
        "rules": RULES,
        "levels": LEVELS,
        "verdicts": VERDICTS,
        "worth": WORTH,
        "fixes": FIXES,
        "proxies": PROXIES,
    }
    return json.dumps(parts, separators=(",", ":"))


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
