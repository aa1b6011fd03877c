"""Answers that others gave in the server's place, and what the page makes of each: the shipped rules, in QuickJS."""

import json

import pytest
from headless.core import Script

PAGE = "<html>Blocked by policy</html>"


def refusal(code: object) -> str:
    return json.dumps({"error": {"code": code, "message": "words"}})


@pytest.fixture(scope="module")
def page() -> Script:
    return Script("tests/js/foreign.js")


@pytest.mark.parametrize(
    ("status", "text", "is_final"),
    [
        (422, refusal("too-long"), "too-long"),
        (404, refusal("gone"), "gone"),
        (403, refusal("origin"), "origin"),
        (413, PAGE, "too-long"),
        (403, PAGE, "network-filter"),
        (403, refusal(7), ""),
        (404, PAGE, ""),
        (410, PAGE, ""),
        (400, "{}", ""),
        (451, json.dumps({"error": "blocked"}), ""),
        (400, refusal(None), ""),
        (200, PAGE, ""),
        (407, PAGE, ""),
    ],
)
def test_only_ours_and_a_filter_refuse_a_message_for_good(page: Script, status: int, text: str, is_final: str) -> None:
    page.call("send", status, text)
    outcome = page.call("found")
    if is_final:
        assert outcome["refused"] == is_final
        assert outcome.get("words") or is_final in ("too-long", "network-filter"), "who refuses says why"
    else:
        assert outcome == {"retry": "foreign-page"}
