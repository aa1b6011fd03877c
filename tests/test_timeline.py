"""What a page did, from its events: a worked example, and that neither order nor repetition of events counts."""

import json
import random
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from chatapp.monitoring import figures
from chatapp.monitoring.figures import Figures, add_up
from chatapp.monitoring.rollups import fold
from chatapp.monitoring.timeline import DrillTime, Page, Timeline
from chatapp.store import ConnectionEvent

T0 = 1_800_000_000_000 // 60_000 * 60_000  # a whole minute
MINUTE = 60_000


def page_id(name: str) -> str:
    return str(UUID(int=int.from_bytes(name.encode().ljust(8, b"."), "big")))


class Story:
    """Events of pages, by the seconds after the start."""

    def __init__(self) -> None:
        self.events: list[ConnectionEvent] = []

    def add(self, at_s: float, page: str, kind: str, **given: Any) -> None:
        """An event; `transport`, `to`, `reason`, `person`, `client`; all others are its data."""
        columns = {"transport": given.pop("transport", None), "reason": given.pop("reason", None)}
        person = given.pop("person", f"person of {page}")
        before, after = given.pop("before_state", None), given.pop("to", None)
        client = page_id(given.pop("client", page))
        happened = T0 + round(1000 * at_s)
        self.events.append(
            ConnectionEvent(
                client,
                len(self.events),
                person,
                kind,
                columns["transport"],
                before,
                after,
                columns["reason"],
                happened,
                json.dumps(given),
                page=page_id(page) if page else "",
                network=f"net {page[:1]}",
                at=happened,
            )
        )

    def attempt(self, end_s: float, page: str, transport: str, outcome: str, ms: int, **more: Any) -> None:
        self.add(end_s, page, "attempt", transport=transport, outcome=outcome, ms=ms, **more)

    def state(self, at_s: float, page: str, to: str, reason: str | None = None) -> None:
        self.add(at_s, page, "state", to=to, reason=reason)

    def opened(self, at_s: float, page: str, socket: str, worker: str = "w1") -> None:
        self.add(at_s, page, "server-open", client=socket, worker=worker)

    def closed(self, at_s: float, page: str, socket: str, code: int = 1006) -> None:
        self.add(at_s, page, "server-close", client=socket, code=code)


def worked() -> Story:
    """The example of docs/monitoring.md: five pages in twenty minutes."""
    story = Story()
    # a: live after 0.18 s; the socket falls silent after 600 s, polls carry on; live again at 905 s
    story.attempt(0.18, "a", "websocket", "ready", 180)
    story.state(0.18, "a", "connected")
    story.opened(0.1, "a", "sa")
    story.closed(630.0, "a", "sa")
    story.state(600.0, "a", "polling", "socket-silent")
    story.attempt(900.3, "a", "websocket", "ready", 300, probe=1)
    story.opened(900.1, "a", "sa2")
    story.state(905.0, "a", "connected")
    # b: the upgrade hangs for 4 s, polls win
    story.attempt(0.9, "b", "polling", "ready", 150)
    story.state(0.9, "b", "polling", "upgrade-hung")
    story.attempt(4.0, "b", "websocket", "failed", 4000, reason="upgrade-hung")
    # c: closed before it was connected
    story.attempt(1.0, "c", "websocket", "cancelled", 1000)
    story.add(1.0, "c", "end")
    # d: polls by what it remembers of its network: planned
    story.attempt(0.4, "d", "polling", "ready", 200)
    story.state(0.4, "d", "polling", None)
    # e: ready only after 11.5 s
    story.attempt(11.5, "e", "websocket", "ready", 11_500)
    story.opened(11.0, "e", "se")
    story.state(11.5, "e", "connected")
    for second in range(300, 1200, 300):  # signs of life of who polls
        story.add(second, "b", "alive")
        story.add(second, "d", "alive")
    # messages: a sends 40, of which 1 twice; b gets 30 in time, 1 late, and 1 is missing
    bins = {"20": 30, "28": 9}
    story.add(60, "a", "minute", sent={"websocket": bins}, repeated=1, received={})
    story.add(60, "b", "minute", sent={}, repeated=0, received={"1": 30, "45": 1}, missing=1)
    return story


def whole(story: Story, seconds: int = 1200, drills: tuple[DrillTime, ...] = ()) -> Figures:
    rows, *_ = fold(Timeline(T0), story.events, T0 + 1000 * seconds, drills)
    return add_up(rows.values())


def test_the_worked_example() -> None:
    found = whole(worked())
    assert found.sessions == [3, 1], "a, b and d in time, e late; c says nothing"
    assert found.attempts == {"websocket": [1, 2, 1], "polling": [2, 0, 0]}
    assert found.probes == [1, 0]
    assert found.refusals == {"websocket upgrade-hung": 1, "websocket slow": 1}
    assert found.fallbacks == {"socket-silent": 1, "upgrade-hung": 1} and found.planned == 1
    assert found.recoveries == 1 and found.drops == {"socket-silent": 1}
    assert found.ended == {"websocket": [1, 599_820], "polling": [1, 305_000]}
    live_ms = 599_820 + 295_000 + (1200_000 - 11_500)
    assert found.state_ms["connected"] == live_ms
    assert found.state_ms["polling"] == 305_000 + 1_199_100 + 1_199_600
    assert figures.session_success(found) == 3 / 4
    assert figures.transport_success(found, "websocket") == 1 / 3
    assert figures.mean_duration_s(found, "websocket") == pytest.approx(599.82)
    hours = (live_ms + 305_000 + 1_199_100 + 1_199_600) / 3_600_000
    assert figures.drops_per_hour(found) == pytest.approx(1 / hours)
    assert figures.between_drops_s(found) == pytest.approx(3600 * hours)
    assert figures.fallbacks_per_hour(found) == pytest.approx(2 / hours)
    assert figures.messages_sent(found) == 40
    assert figures.round_trip_ms(found, 0.5) == pytest.approx(32) and figures.round_trip_ms(found) == pytest.approx(128)
    assert figures.delivery(found) == pytest.approx(30 / 32)
    assert found.people == {"connected": 2, "polling": 2}


def test_no_data_is_not_zero() -> None:
    nothing = Figures()
    every = (figures.session_success, figures.drops_per_hour, figures.between_drops_s, figures.round_trip_ms)
    assert {of(nothing) for of in (*every, figures.delivery, figures.polling_share, figures.gap_ms)} == {None}
    assert Figures.load(nothing.dump()) == nothing and nothing.dump() == {}


@pytest.mark.parametrize("seed", range(20))
def test_order_splits_and_repetition_change_nothing(seed: int) -> None:
    chance = random.Random(seed)
    story = wild(chance)
    rows, pages, _ = fold(Timeline(T0), story.events, T0 + 20 * MINUTE, ())
    shuffled = chance.sample(story.events, len(story.events))
    again, same_pages, _ = fold(Timeline(T0), shuffled, T0 + 20 * MINUTE, ())
    assert (again, same_pages) == (rows, pages)
    cut = T0 + chance.randrange(1, 20) * MINUTE
    first, middle, _ = fold(Timeline(T0), [one for one in shuffled if one.at < cut], cut, ())
    middle.pages = {name: Page.load(page.dump()) for name, page in middle.pages.items()}
    second, end, _ = fold(middle, [one for one in shuffled if one.at >= cut], T0 + 20 * MINUTE, ())
    assert (first | second, end) == (rows, pages), "from what is stored of the pages it goes on as if it had not ended"
    assert {minute: Figures.load(row.dump()) for minute, row in rows.items()} == rows
    time_ms = sum(sum(row.state_ms.values()) for row in rows.values())
    assert time_ms <= len({one.page for one in story.events}) * 20 * MINUTE, "no page is counted twice"


def wild(chance: random.Random) -> Story:
    """What eight pages report at random."""
    story = Story()
    states = ["connected", "polling", "reconnecting", "error", "connecting"]
    for number in range(8):
        at = chance.uniform(0, 300)
        for _ in range(chance.randrange(40)):
            at += chance.expovariate(1 / 30)
            name = f"{chance.choice('ab')}{number}"
            kind = chance.randrange(6)
            if kind < 2:
                story.state(at, name, chance.choice(states), chance.choice(["socket-closed", "offline", None]))
            elif kind == 2:
                outcome = chance.choice(["ready", "failed", "cancelled"])
                story.attempt(at, name, chance.choice(["websocket", "polling"]), outcome, chance.randrange(20_000))
            elif kind == 3:
                story.opened(at, name, f"s{chance.randrange(3)}", chance.choice(["w1", "w2"]))
            elif kind == 4:
                story.closed(at, name, f"s{chance.randrange(3)}", chance.choice([1000, 1006]))
            else:
                story.add(at, name, chance.choice(["alive", "end", "quality"]), score=chance.randrange(100))
    story.add(chance.uniform(0, 1200), "w", "server-start", dead=["w1"])
    story.events = [one for one in story.events if one.at < T0 + 20 * MINUTE]
    return story


def test_the_server_knows_when_a_page_is_gone() -> None:
    story = Story()
    for name, code in (("clean", 1001), ("torn", 1006)):
        story.state(1, name, "connected")
        story.opened(0, name, f"socket of {name}"[:8])
        story.closed(100, name, f"socket of {name}"[:8], code)
    rows, timeline, _ = fold(Timeline(T0), story.events, T0 + 2 * MINUTE, ())
    assert {name: page.state for name, page in timeline.pages.items()} == {page_id("torn"): "reconnecting"}
    found = add_up(rows.values())
    assert found.drops == {"socket-closed": 1} and found.ended["websocket"] == [2, 198_000]
    gone = timeline.run([], T0 + 10 * MINUTE)
    assert live(timeline) == [] and not gone.people
    timeline.run([], T0 + 26 * 60 * MINUTE)
    assert not timeline.pages, "it is forgotten after a day"


def live(timeline: Timeline) -> list[str]:
    """The pages that are not gone."""
    return [name for name, page in timeline.pages.items() if page.state != "gone"]


def test_a_worker_that_died_takes_its_sockets_along() -> None:
    story = Story()
    story.state(1, "a", "connected")
    story.opened(0, "a", "sa", worker="dead one")
    story.state(1, "b", "connected")
    story.opened(0, "b", "sb", worker="living one")
    story.add(50, "", "server-start", dead=["dead one"])
    _, timeline, _ = fold(Timeline(T0), story.events, T0 + MINUTE, ())
    assert timeline.pages[page_id("a")].state == "reconnecting" and timeline.pages[page_id("b")].state == "connected"
    _, timeline, _ = fold(timeline, [], T0 + 100 * MINUTE, ())
    assert live(timeline) == [page_id("b")], "an open socket needs no sign of life"


def test_who_polls_and_says_nothing_is_gone_after_a_while() -> None:
    story = Story()
    story.state(0, "a", "polling", "upgrade-refused")
    rows, timeline, _ = fold(Timeline(T0), story.events, T0 + 30 * MINUTE, ())
    assert live(timeline) == [] and add_up(rows.values()).state_ms == {"polling": 720_000}


def test_a_drill_counts_for_nothing() -> None:
    story = worked()
    drilled = f"person of {'a'}"
    without = whole(Story())
    during = DrillTime(drilled, T0, T0 + 1300_000)
    alone = Story()
    alone.events = [one for one in story.events if one.person == drilled]
    found = whole(alone, drills=(during,))
    assert replace(found, people={}) == replace(without, people={})
    everybody = DrillTime(None, T0 + 590_000, T0 + 610_000)
    assert "socket-silent" not in whole(story, drills=(everybody,)).fallbacks
    assert whole(story, drills=(DrillTime("somebody else", T0, T0 + 1300_000),)) == whole(story)


def test_what_a_client_makes_up_harms_nobody() -> None:
    story = Story()
    for data in (
        {"outcome": "ready", "ms": "soon"},
        {"outcome": ["ready"], "ms": -1},
        {"outcome": "ready", "ms": 1e300},
        {"outcome": "failed", "ms": True, "before": 1e12},
    ):
        story.add(1, "a", "attempt", transport="websocket", **data)
        story.add(1, "a", "attempt", transport="pigeon", **data)
    for data in (
        {"sent": {"websocket": {"999": 1}}},
        {"sent": {"pigeon": {"1": 1}}},
        {"sent": [1], "received": {"x": 1}},
        {"received": {"1": "many"}, "missing": -5, "repeated": None},
    ):
        story.add(2, "a", "minute", **data)
    story.state(3, "a", "levitating")
    story.add(4, "a", "quality", score="high", limit=["x"])
    found = whole(story)
    assert sum(found.sessions) <= 1 and figures.messages_sent(found) == 0


def test_reasons_that_a_client_makes_up_are_counted_as_other() -> None:
    story = Story()
    story.attempt(1, "a", "websocket", "failed", 900, reason="ada@example.org")
    story.state(1.2, "a", "polling", "ada@example.org")
    story.state(30, "a", "reconnecting", "my secret")
    found = whole(story)
    assert found.refusals == {"websocket other": 1}
    assert found.fallbacks == {"other": 1} and found.drops == {"other": 1}


def test_nobody_else_speaks_for_a_page() -> None:
    story = worked()
    alone = whole(story)
    for second in (100, 700, 1000):
        story.add(second, "a", "state", to="error", reason="mute", person="mallory")
        story.add(second, "a", "end", person="mallory")
        story.add(second, "a", "server-open", client="sm", worker="w1", person="mallory")
    assert whole(story) == alone
