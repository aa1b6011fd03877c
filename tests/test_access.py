"""When a page renews its session's access: the shipped module, in QuickJS, on simulated clocks."""

import itertools
import json

import pytest
from headless.core import Script

HOUR = 3_600_000
DONE = (200, json.dumps({"access_ms": HOUR}))
MINUTE = 60_000


def refusal(code: str) -> tuple[int, str]:
    return 401, json.dumps({"error": {"code": code, "message": "words"}})


@pytest.fixture(scope="module")
def page() -> Script:
    return Script("tests/js/access.js")


def test_it_renews_before_the_end_again_and_again(page: Script) -> None:
    page.call("begin", HOUR, [DONE] * 5)
    for _ in range(180):
        page.call("pass", MINUTE)
    assert page.call("seen")["asked"] == [42 * MINUTE, 84 * MINUTE, 126 * MINUTE, 168 * MINUTE]


def test_what_it_slept_over_it_makes_good_at_the_first_hint(page: Script) -> None:
    """The clock of its timers stood still meanwhile, and a refused WebSocket says nothing."""
    page.call("begin", HOUR, [DONE] * 5)
    page.call("pass", MINUTE)
    page.call("check")
    assert page.call("seen")["asked"] == [], "a hint alone is no reason"
    page.call("sleep", 2 * HOUR)
    page.call("check")
    assert page.call("seen")["asked"] == [2 * HOUR + MINUTE]


def test_another_tab_has_renewed(page: Script) -> None:
    page.call("begin", HOUR, [DONE], {"age": -41 * MINUTE, "life": HOUR})  # a minute before this page's own time
    page.call("pass", 42 * MINUTE)
    assert page.call("seen")["asked"] == []
    page.call("pass", 42 * MINUTE)
    assert page.call("seen")["asked"] == [84 * MINUTE]


@pytest.mark.parametrize(
    "note", [{"age": 2 * HOUR, "life": HOUR}, {"age": -9 * HOUR, "life": HOUR}, {"age": 0, "life": None}]
)
def test_a_note_that_says_nothing_is_none(page: Script, note: dict[str, object]) -> None:
    """Old, of a clock that was set back since, or damaged."""
    page.call("begin", HOUR, [DONE], note)
    page.call("pass", 43 * MINUTE)
    assert page.call("seen")["asked"] == [43 * MINUTE]


def test_a_failure_is_tried_again_later_and_not_at_once(page: Script) -> None:
    page.call("begin", HOUR, [(502, "<html>"), (200, "{}"), (401, "not ours"), DONE])
    page.call("pass", 42 * MINUTE)
    for _ in range(70):
        page.call("pass", 1000)
    asked = page.call("seen")["asked"]
    assert len(asked) == 4 and all(later - before >= 20_000 for before, later in itertools.pairwise(asked))


@pytest.mark.parametrize("answer", [(403, "<html>POST is not allowed"), (200, "<html>rewritten {}"), (200, "null")])
def test_where_something_answers_in_the_servers_place_a_page_renews(page: Script, answer: tuple[int, str]) -> None:
    """A network that lets WebSocket and pages through, and no POST, would shut a page out after an hour."""
    page.call("begin", HOUR, [answer] * 3, None, "renewed")
    for _ in range(100):
        page.call("pass", MINUTE)
    seen = page.call("seen")
    assert seen["asked"] == [42 * MINUTE, 84 * MINUTE] and seen["ended"] == []


@pytest.mark.parametrize("code", ["session-expired", "session-revoked"])
def test_where_the_session_has_ended_it_is_said_once(page: Script, code: str) -> None:
    page.call("begin", HOUR, [refusal(code)])
    page.call("pass", 42 * MINUTE)
    assert page.call("seen")["ended"] == [code]
    page.call("stop")
    page.call("pass", HOUR)
    page.call("check")
    seen = page.call("seen")
    assert len(seen["asked"]) == 1 and seen["pending"] == 0
