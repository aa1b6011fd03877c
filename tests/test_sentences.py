"""Sentences of docs/monitoring.md, each with the fewest events that tell whether the monitor keeps it."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

import pytest
from lab.rolled import MINUTE, Showing, Shown

from chatapp.store import ConnectionEvent, now_ms


class Story:
    """Events of pages, by the seconds after the start, and what is shown of them."""

    def __init__(self, minutes: int = 30) -> None:
        self.end = now_ms()
        self.start = self.end - minutes * MINUTE
        self.arrivals: list[tuple[int, ConnectionEvent]] = []
        self.numbers = count(1)

    def name(self, of: str) -> str:
        """An id."""
        return str(uuid5(NAMESPACE_DNS, of))

    def add(self, at_s: float, page: str, kind: str, *, transport: str = "websocket", reason: str | None = None,
            was: str | None = None, to: str | None = None, client: str = "", skew: int = 0,
            **data: Any) -> None:  # fmt: skip
        """An event, which comes a second later; `skew`: by how much the page's clock is ahead (ms)."""
        at = self.start + round(1000 * at_s)
        number = {"server-open": -2, "server-close": -1}.get(kind, next(self.numbers))
        event = ConnectionEvent(
            self.name(client or page), number, f"person of {page}", kind, transport, was, to, reason, at + skew,
            json.dumps(data), page=self.name(page) if page else "", network="net", agent="browser", at=at,
        )  # fmt: skip
        self.arrivals.append((at + 1000, event))

    def state(self, at_s: float, page: str, was: str, to: str, reason: str | None = None) -> None:
        """Another state."""
        self.add(at_s, page, "state", was=was, to=to, reason=reason)

    def live(self, at_s: float, page: str, was: str = "connecting", socket: str = "first", ms: int = 200) -> None:
        """It is live by a new socket after an attempt that ends now."""
        self.add(at_s - ms / 2000, page, "server-open", client=f"{socket} of {page}", worker="w1")
        self.add(at_s, page, "attempt", outcome="ready", ms=ms)
        self.state(at_s, page, was, "connected")

    def opens(self, at_s: float, page: str) -> None:
        """It opens, and is live at once."""
        self.state(at_s, page, "disconnected", "connecting")
        self.live(at_s + 0.2, page)

    def polls(self, at_s: float, page: str, reason: str | None = "upgrade-refused") -> None:
        """It opens, and polls after a second."""
        self.state(at_s, page, "disconnected", "connecting")
        self.add(at_s + 1, page, "attempt", transport="polling", outcome="ready", ms=1000)
        self.state(at_s + 1, page, "connecting", "polling", reason)

    def closed(self, at_s: float, page: str, code: int = 1006, socket: str = "first") -> None:
        """The server's word on the end of a socket."""
        self.add(at_s, page, "server-close", client=f"{socket} of {page}", code=code, seconds=1)

    def shown(self, showing: Showing, *, now: bool = False) -> Shown:
        """The monitor's page of the day; `now`: its people, too."""
        return showing.shown(self.arrivals, self.start - 2 * MINUTE, self.end, now=now)


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def showing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Showing]:
    with Showing(tmp_path_factory.mktemp("showing")) as made:
        yield made


@pytest.fixture
def story() -> Story:
    return Story()


LOST, FELL, FAILED = "Connections that were lost", "Changes to polling", "Attempts that failed"


# The five metrics: drops are "for another reason than the device being offline, a restart, a drill, a sign-out or a
# limit". The server's word (server-close) comes some ms before the page's in half of all real restarts.


@pytest.mark.parametrize(
    ("code", "to", "reason"),
    [(1012, "reconnecting", "server-restart"), (1006, "reconnecting", "offline"), (4401, "disconnected", "signed-out")],
)
def test_a_restart_is_no_drop_where_the_server_speaks_first(
    story: Story, showing: Showing, code: int, to: str, reason: str
) -> None:
    story.opens(60, "a")
    story.closed(300, "a", code)
    story.state(300.05, "a", "connected", to, reason)
    shown = story.shown(showing)
    assert (shown.tables[LOST], shown.metrics["drops-per-hour"]) == ({}, 0)


@pytest.mark.parametrize(
    ("code", "to", "reason"),
    [(1012, "reconnecting", "server-restart"), (1006, "reconnecting", "offline"), (4401, "disconnected", "signed-out")],
)
def test_a_restart_is_no_drop_where_the_page_speaks_first(
    story: Story, showing: Showing, code: int, to: str, reason: str
) -> None:
    story.opens(60, "a")
    story.state(299.95, "a", "connected", to, reason)
    story.closed(300, "a", code)
    shown = story.shown(showing)
    assert (shown.tables[LOST], shown.metrics["drops-per-hour"]) == ({}, 0)


def test_a_page_that_was_left_lost_nothing(story: Story, showing: Showing) -> None:
    story.opens(60, "a")
    story.closed(300, "a")
    story.add(300.1, "a", "end")
    assert story.shown(showing).tables[LOST] == {}


def test_a_connection_that_something_on_the_way_closed_in_order_is_lost(story: Story, showing: Showing) -> None:
    story.opens(60, "a")
    story.closed(300, "a", 1001)
    story.state(300.05, "a", "connected", "reconnecting", "socket-closed")
    story.live(301, "a", "reconnecting", "second")
    assert story.shown(showing).tables[LOST] == {"live connections are cut": 1}


# "Of a session, the objective: pages that were connected within 10 s of their first attempt, of all pages". A page is
# one, however often it is silent for more than two minutes.


def test_a_page_is_one_session_however_long_it_is_without_a_server(showing: Showing) -> None:
    story = Story(60)
    story.opens(60, "a")
    story.state(300, "a", "connected", "reconnecting", "server-unreachable")
    story.closed(301, "a")
    story.state(320, "a", "reconnecting", "error", "server-unreachable")
    for second in (500, 800, 1100):
        story.add(second, "a", "attempt", outcome="failed", ms=4000, reason="upgrade-hung")
    story.live(1400, "a", "error", "second")
    assert story.shown(showing).metrics["session-success"] == 100


# "gap-p95: time without a transport, between two"; "a percentile is within 9.1 % of the true one".


def test_a_laptop_that_slept_had_no_transport(showing: Showing) -> None:
    story = Story(90)
    story.opens(60, "a")
    story.closed(360, "a")
    story.state(4000, "a", "connected", "reconnecting", "socket-closed")
    story.live(4001, "a", "reconnecting", "second")
    assert story.shown(showing).metrics["gap-p95"] is not None


def test_a_gap_of_ten_minutes_is_not_shown_as_one(story: Story, showing: Showing) -> None:
    story.opens(60, "a")
    story.state(300, "a", "connected", "reconnecting", "server-restart")
    story.closed(300.4, "a", 1012)
    for second in range(330, 900, 61):
        story.add(second, "a", "attempt", outcome="failed", ms=50, reason="upgrade-failed")
    story.live(900, "a", "reconnecting", "second")
    assert story.shown(showing).metrics["gap-p95"] == pytest.approx(600_000, rel=0.091)


# `alive`: "each 5 minutes while it polls". "A page is live until … too long a silence: 12 minutes while it polls".


def test_who_polls_again_after_a_sleep_is_here(showing: Showing) -> None:
    story = Story(60)
    story.polls(60, "a")
    for second in range(1260, 3500, 300):
        story.add(second, "a", "alive", transport="polling")
    assert story.shown(showing, now=True).metrics["people-polling"] == 1


def test_who_polls_is_here_for_twelve_silent_minutes(showing: Showing) -> None:
    story = Story(60)
    story.polls(60, "a", "upgrade-refused")
    story.add(361, "a", "alive", transport="polling")
    shown = story.shown(showing, now=True)
    assert shown.metrics["people"] == 0 and shown.metrics["fallbacks-per-hour"] == pytest.approx(3600 / (300 + 720))


# "Changes to polling …, by reason, without planned ones (by what is remembered of a network, by a setting, by the
# server's own limit, in a drill)". `cause`: "the reason of polling, once it is found out".


def test_the_servers_own_limit_is_planned(story: Story, showing: Showing) -> None:
    story.polls(60, "a", "server-full")
    shown = story.shown(showing)
    assert (shown.planned, shown.tables[FELL]) == (1, {})


@pytest.mark.parametrize("found", ["server-full", "rate-limited"])
def test_a_limit_that_is_found_out_is_planned(story: Story, showing: Showing, found: str) -> None:
    story.polls(60, "a", "upgrade-failed")
    story.add(61.3, "a", "cause", transport="polling", reason=found)
    shown = story.shown(showing)
    assert (shown.planned, shown.tables[FELL]) == (1, {})


def test_the_reason_of_a_change_is_what_was_found_out(story: Story, showing: Showing) -> None:
    story.polls(60, "a", "upgrade-failed")
    story.add(61.3, "a", "cause", transport="polling", reason="upgrade-refused")
    assert story.shown(showing).tables[FELL] == {"the upgrade to WebSocket is refused": 1}


# `before`: "the same failure so many times more". A page says it with its next attempt (measures.js), which is mostly
# one that succeeds; its own reason is then another.


def test_failures_that_are_told_with_a_success_keep_their_reason(story: Story, showing: Showing) -> None:
    story.opens(60, "a")
    story.state(300, "a", "connected", "reconnecting", "socket-closed")
    story.closed(300.4, "a")
    story.add(301, "a", "attempt", outcome="failed", ms=20, reason="upgrade-failed")
    story.add(330, "a", "server-open", client="second of a", worker="w1")
    story.add(330.2, "a", "attempt", outcome="ready", ms=300, before=5)
    story.state(330.2, "a", "reconnecting", "connected")
    assert story.shown(showing).tables[FAILED] == {"websocket | WebSocket does not open": 6}


# A worked example: "2 failed (hung; too slow)".


def test_a_slow_attempt_is_said_to_be_slow(story: Story, showing: Showing) -> None:
    story.state(60, "a", "disconnected", "connecting")
    story.live(71.5, "a", ms=11_500)
    (words,) = story.shown(showing).tables[FAILED]
    assert "nobody knows" not in words


# "All times are by the server's clock: a report says what its own clock shows, and a difference of more than a second
# is taken off." Messages "within 30 s of being stored" arrived in time.


def test_delays_are_by_the_servers_clock(story: Story, showing: Showing) -> None:
    for page, skew, received in (
        ("ahead", 300_000, {"301": 10, "335": 3}),
        ("behind", -300_000, {"-299": 10, "-260": 3}),
        ("right", 0, {"-1": 100, "30": 20, "31": 7}),
    ):
        story.opens(60, page)
        story.add(120, page, "minute", skew=skew, sent={}, repeated=0, received=received, missing=0)
    assert story.shown(showing).metrics["delivery"] == pytest.approx(100 * 140 / 153)


# "with an open socket it needs no sign of life"; a page's older socket may end while a newer one lives.


def test_the_late_end_of_an_older_socket_is_no_loss(story: Story, showing: Showing) -> None:
    story.opens(60, "a")
    story.state(300, "a", "connected", "reconnecting", "socket-silent")
    story.live(301, "a", "reconnecting", "second")
    story.closed(340, "a")
    shown = story.shown(showing, now=True)
    assert shown.tables[LOST] == {"live connections fall silent": 1} and shown.metrics["people-live"] == 1


# "from the top: the sentence": whom it concerns. Two of four are not connected, one polls.


def test_the_sentence_concerns_those_without_a_connection_first(story: Story, showing: Showing) -> None:
    story.opens(60, "live")
    story.polls(1500, "polls")
    for page in ("lost1", "lost2"):
        story.opens(60, page)
        story.state(1750, page, "connected", "reconnecting", "socket-closed")
        story.closed(1751, page)
    page = story.shown(showing, now=True).page
    assert page is not None and "2 of 4 people are not connected" in page.one(id="verdict").text
