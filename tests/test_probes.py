"""How a test of the connection is judged: the vectors in both languages, and words and settings for all there is."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatapp.diagnostics import advice, verdicts

ROOT = Path(__file__).resolve().parents[1]
VECTORS = json.loads((ROOT / "tests/vectors/probes.json").read_text())
ALL_RULES = [(probe, name) for probe, rules in verdicts.RULES.items() for name, _ in rules]


@pytest.mark.parametrize("row", VECTORS["outcomes"], ids=lambda row: f"{row['probe']}-{row['outcome']}")
def test_outcome(row: Any) -> None:
    """Facts become the outcome that verdicts.js gives too."""
    assert verdicts.outcome(row["probe"], row["facts"]) == row["outcome"]


@pytest.mark.parametrize("row", VECTORS["verdicts"], ids=lambda row: row["verdict"]["name"])
def test_verdict(row: Any) -> None:
    """Outcomes become one verdict, its worth and what helps."""
    found = verdicts.verdict(row["outcomes"])
    assert {"name": found.name, "worth": found.worth, "fixes": list(found.fixes)} == row["verdict"]


def test_proxies_that_name_themselves() -> None:
    """From the Server and Via headers; ours (gunicorn) says nothing."""
    for row in VECTORS["proxies"]:
        assert verdicts.proxy_of(row["headers"]) == row["proxy"], row


def test_every_rule_is_reached_by_a_vector() -> None:
    """No outcome of a probe's own rules and no verdict goes untested."""
    reached = {(row["probe"], row["outcome"]) for row in VECTORS["outcomes"]}
    shared = {"unreachable", "tls", "hung", "cut", "redirect", "proxy-auth", "signed-out", "drill", "paused"}
    shared |= {"gateway", "filtered", "failed", "foreign"}
    own = {(probe, name) for probe, name in ALL_RULES if probe == "mark" or name not in shared}
    assert not own - reached - {("mark", name) for name in ("unreachable", "tls", "cut", "drill")} - {("poll", "slow")}
    assert {name for name, _ in verdicts.VERDICTS} == {row["verdict"]["name"] for row in VECTORS["verdicts"]}


def test_words_for_everything() -> None:
    """Each probe, outcome, verdict and fix that can come has its sentence, and no sentence is left over."""
    for probe, name in [*ALL_RULES, *((probe, "skipped") for probe in verdicts.PROBES)]:
        assert advice.outcome_words(probe, name)
    assert set(advice.PROBE_WORDS) == set(verdicts.PROBES)
    assert set(advice.VERDICT_WORDS) == {name for name, _ in verdicts.VERDICTS}
    assert set(verdicts.WORTH) <= set(advice.VERDICT_WORDS)
    assert set(advice.FIX_WORDS) == {fix for fixes in verdicts.FIXES.values() for fix in fixes.values()}
    own = {key for key in advice.OUTCOME_WORDS if key.partition("-")[0] in verdicts.PROBES}
    assert own <= {f"{probe}-{name}" for probe, name in ALL_RULES}
    assert set(advice.SETTINGS) <= set(advice.FIX_WORDS)


def test_settings_are_those_of_the_operations_document() -> None:
    """Every line of configuration that the test recommends is in docs/operations.md."""
    known = {" ".join(line.split()) for line in (ROOT / "docs/operations.md").read_text().splitlines()}
    text = " ".join(known)
    for by_proxy in advice.SETTINGS.values():
        for name, lines in by_proxy.items():
            assert name in advice.PROXY_NAMES
            for line in lines.splitlines():
                bare = " ".join(line.split())
                assert bare in known or (name == "cloudflare" and bare in text), f"{name}: {line}"


def test_settings_of_the_recognised_proxy_only() -> None:
    """Where the proxy is known and has such a setting; where it has none, those of all."""
    assert list(advice.settings_for(["upgrade", "buffering"], "nginx")) == ["nginx"]
    assert "apache" in advice.settings_for(["upgrade"], "") and "apache" in advice.settings_for(["upgrade"], "caddy")
    assert advice.settings_for(["reach"], "nginx") == {}
