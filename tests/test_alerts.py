"""The rules of alerts and their states: at their thresholds, restarted at every look, silenced, grouped, in words."""

import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask
from flask_babel import Babel
from lab.server import Server, run_chatapp

from chatapp.bus import Bus
from chatapp.config import Settings
from chatapp.monitoring import incidents, replay, rules
from chatapp.monitoring.alerts import advance
from chatapp.monitoring.channels import ChannelFailed, Channels
from chatapp.monitoring.figures import Figures
from chatapp.monitoring.incidents import Moment
from chatapp.monitoring.present import Present, ServerState
from chatapp.monitoring.replay import T0, TICK_MS, Vector
from chatapp.monitoring.replay import replay as run
from chatapp.monitoring.rules import RULES, Facts, Reading, Rule, Seen
from chatapp.monitoring.timeline import DrillTime, Page
from chatapp.monitoring.verdict import verdict_of
from chatapp.monitoring.watch import AlertWatch, Observation, facts_of
from chatapp.store import Store
from chatapp.store.alerts import Alert, Incident, Notice
from chatapp.store.migrate import migrate

ALL = [vector for several in replay.vectors().values() for vector in several]
HALF: dict[str, object] = {"people": 20, "live": 10, "polling": 10}
MINUTE = 60_000


class Recorder(Channels):
    """Channels that keep what is sent; `broken`: names of those that fail."""

    def __init__(self) -> None:
        super().__init__(Settings(), lambda *_: None, lambda: pytest.fail("no TLS here"))
        self.sent: list[Notice] = []
        self.broken: set[str] = set()
        self.tries = 0

    @property
    def names(self) -> list[str]:
        return ["operations", "email"]

    def send(self, notice: Notice) -> None:
        self.tries += 1
        if notice.channel in self.broken:
            raise ChannelFailed("it answered 503")
        self.sent.append(notice)


class World:
    """A metrics database, a clock, and what there is to see."""

    def __init__(self, folder: Path) -> None:
        migrate(folder)
        self.folder, self.at = folder, T0
        self.app = Flask("test")
        Babel(self.app)
        self.store = Store(self.app, folder, Bus())
        self.table = self.store.alerts
        self.facts, self.whole = Facts(), Figures()
        self.present: Present | None = present({})
        self.channels = Recorder()
        self.watch = self.another()

    def another(self) -> AlertWatch:
        """The watch of another worker, or of the next start."""
        return AlertWatch(self.store, self.observe, self.channels, lambda: True, self.app.app_context, "/monitor")

    def observe(self, now: int) -> Observation:
        return Observation(self.facts, {now - MINUTE: self.whole}, self.present)

    def look(self, number: int = 1, **facts: object) -> None:
        """Look so many times."""
        self.facts = Facts(**facts) if facts else self.facts  # type: ignore[arg-type]
        for _ in range(number):
            self.watch.step(self.at)
            self.at += TICK_MS

    def deliver(self) -> None:
        """Send all that can be sent."""
        while self.table.due_notices(self.at):
            self.watch.deliver(self.at)

    def kinds(self, channel: str = "operations") -> list[str]:
        """The notices that were sent by now."""
        self.deliver()
        return [one.data["kind"] for one in self.channels.sent if one.channel == channel]

    def texts(self) -> list[str]:
        self.deliver()
        return [one.data["text"] for one in self.channels.sent if one.channel == "operations"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def present(pages: dict[str, Page], trouble: str = "", drills: list[DrillTime] | None = None) -> Present:
    server = ServerState(trouble, 0.5, 1 << 40, 1.0, 1.0, 1, 50, T0 - 3_600_000, 0, 0)
    return Present(T0, pages, drills or [], server, True)


# Each rule, at and around its threshold


@pytest.mark.parametrize("vector", ALL, ids=lambda one: f"{one.rule}: {one.name}")
def test_an_example_comes_out_as_it_says(vector: Vector) -> None:
    found = run(vector)
    assert (found.states, found.notices) == (vector.states, vector.notices)


def test_there_are_eight_rules_and_each_has_examples_of_firing_and_not() -> None:
    assert len(RULES) == 8 and set(replay.vectors()) == set(RULES)
    for several in replay.vectors().values():
        assert {"opened", "closed"} <= {kind for one in several for kind in one.notices}
        assert any(not one.notices for one in several)


@pytest.mark.parametrize("name", RULES)
def test_thresholds_are_exact(name: str) -> None:
    rule, little = RULES[name], 1e-9
    worse, better = (-little, little) if rule.bad == "<" else (little, -little)
    assert rule.is_bad(rule.threshold + worse) and not rule.is_bad(rule.threshold + better)
    assert rule.is_bad(rule.threshold) == (rule.bad == ">=")
    assert not rule.is_good(rule.recover + worse) and rule.is_good(rule.recover + better)
    assert not any(rule.is_bad(value) and rule.is_good(value) for value in (rule.threshold, rule.recover))


def mutants(rule: Rule) -> dict[str, Rule]:
    """The rule without one of its clauses, or with another number in it."""
    less, more = 0.998 * rule.threshold, 1.002 * rule.threshold
    found = {
        "no wait": replace(rule, for_s=0),
        "a shorter wait": replace(rule, for_s=max(0, rule.for_s - 15)),
        "a longer wait": replace(rule, for_s=rule.for_s + 15),
        "a shorter recovery": replace(rule, keep_s=rule.keep_s - 15),
        "a longer recovery": replace(rule, keep_s=rule.keep_s + 15),
        "no hysteresis": replace(rule, recover=rule.threshold),
        "any number of samples": replace(rule, least=0),
        "more samples": replace(rule, least=rule.least + 1),
        "a lower threshold": replace(rule, threshold=less),
        "a higher threshold": replace(rule, threshold=more),
        "the other side": replace(rule, bad={"<": ">=", ">": "<", ">=": "<"}[rule.bad]),
    }
    of_yes_or_no = ("more samples", "a lower threshold") if rule.recover == 1 and not rule.minutes else ()
    of_bins = ("a lower threshold", "a higher threshold") if rule.name == "round-trip" else ()  # 19 % apart
    return {name: one for name, one in found.items() if one != rule and name not in (*of_yes_or_no, *of_bins)}


CHANGED = [pytest.param(name, what, id=f"{name}: {what}") for name in RULES for what in mutants(RULES[name])]


@pytest.mark.parametrize(("name", "what"), CHANGED)
def test_a_rule_with_another_clause_fails_an_example(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, name, mutants(RULES[name])[what])  # type: ignore[arg-type]
    assert any(not run(vector).is_as(vector) for vector in replay.vectors()[name])


@pytest.mark.parametrize(
    ("clause", "without"), [("LEAST_FAILED", 0), ("LOST_PART", 0), ("DROP_FORGOTTEN_S", 1e9), ("LOG_AGE_S", 1e9)]
)
def test_a_measure_without_a_clause_fails_an_example(
    clause: str, without: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, clause, without)
    assert any(not run(vector).is_as(vector) for vector in ALL)


def test_the_command_shows_the_strips(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_chatapp(Server(tmp_path, seeded=False), "alerts", "test", *arguments)

    whole, one, wrong = command(), command("mass-drop"), command("nonsense")
    assert whole.returncode == one.returncode == 0 and wrong.returncode == 1
    assert all(f"ok    {name}: " in whole.stdout for name in RULES)
    assert "firing 3, recovering 8, resolved 1" in one.stdout and "unready" not in one.stdout
    assert "mass-drop" in wrong.stderr and "Traceback" not in wrong.stderr


# Restarts


def story(chance: random.Random) -> list[dict[str, object]]:
    """Facts of some hours: outages, flapping, times without data."""
    kinds: list[dict[str, object]] = [
        {"people": 20, "live": 20},
        HALF,
        {**HALF, "polling": 4, "live": 16},
        {"is_current": False},
        {"people": 20, "live": 5, "lost": 15, "before": 20},
        {"trouble": "server-storage", "people": 20, "live": 20},
        {"trouble": "disk"},
    ]
    return [kind for _ in range(15) for kind in [chance.choice(kinds)] * chance.choice([1, 2, 5, 21, 45])]


def outcome(world: World, facts: list[dict[str, object]], restart_at: set[int]) -> tuple[object, object, object]:
    for number, one in enumerate(facts):
        if number in restart_at:
            world.watch = world.another()
        world.look(**one)
    changes = world.table.changes()
    found, _ = world.table.incidents(most=1000)
    world.deliver()
    return changes, found, world.channels.sent


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_at_any_look_changes_nothing(tmp_path: Path, seed: int) -> None:
    facts = story(random.Random(seed))
    worlds = [World(tmp_path / name) for name in ("one", "other")]
    expected = outcome(worlds[0], facts, set())
    assert outcome(worlds[1], facts, set(range(len(facts)))) == expected
    assert len(worlds[0].table.changes()) > 10
    for world in worlds:
        world.store.close()


def test_a_crash_in_the_midst_of_a_look_repeats_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.look(20, **HALF)
    with monkeypatch.context() as patched:
        patched.setattr("chatapp.store.alerts._add_notices", lambda *_: 1 / 0)  # the last part of the transaction
        with pytest.raises(ZeroDivisionError):
            world.watch.step(world.at)
    assert world.table.alerts()["polling-share"].state == "pending" and world.table.open_incident() is None
    world.watch = world.another()
    world.look(2)
    assert world.kinds() == ["opened"]


def test_nobody_looked_for_long_so_waiting_begins_anew() -> None:
    rule, reading = RULES["polling-share"], Reading(0.5, 20)
    alert = advance(rule, Alert(rule.name), "bad", reading, T0)
    after = advance(rule, alert, "bad", reading, T0 + 3_600_000)
    assert (after.state, after.since) == ("pending", T0 + 3_600_000)
    assert advance(rule, after, "bad", reading, T0 + 3_900_000 - 1).state == "pending"
    back = advance(rule, replace(after, since=T0 + 9_000_000), "bad", reading, T0)  # the clock was set back
    assert back.since == T0


@pytest.mark.parametrize("name", RULES)
def test_no_alert_fires_or_ends_before_its_time(name: str) -> None:
    """However readings come: firing begins after the wait, an end after the recovery, and they take turns."""
    chance, rule = random.Random(name), RULES[name]
    alert, since, before, ends = Alert(name), {"bad": T0, "good": T0}, "", []
    kinds: list[Seen] = ["bad", "between", "good", "no-data"]
    for seen in [kind for _ in range(3000) for kind in [chance.choice(kinds)] * chance.choice([1, 2, 9, 50])]:
        at = T0 + len(ends) * TICK_MS
        if seen != before and seen in since:
            since[seen] = at
        after = advance(rule, alert, seen, Reading(1.0, 1) if seen != "no-data" else None, at)
        if after.is_open and not alert.is_open:
            assert seen == "bad" and at - since["bad"] >= 1000 * rule.for_s
        if alert.is_open and not after.is_open:
            assert seen == "good" and at - since["good"] >= 1000 * rule.keep_s
        assert (after.state in ("firing", "recovering")) <= after.is_open
        alert, before = after, seen
        ends.append(after.is_open)
    assert any(ends) and not all(ends)


# Incidents, silence and notices


def test_alerts_that_fire_together_are_one_incident_with_one_notice_each_way(world: World) -> None:
    both: dict[str, object] = {**HALF, "trouble": "disk"}
    world.look(25, **both)
    assert world.kinds() == ["opened", "joined"], "the disk after a minute, the share after five"
    world.look(60, people=20, live=20)
    (incident,), _ = world.table.incidents()
    assert world.kinds() == ["opened", "joined", "closed"] and incident.closed is not None
    assert set(incident.worst) == {"disk-or-log", "polling-share"}
    assert incident.opened == T0 and incident.closed == T0 + 25 * TICK_MS, (
        "when it began and ended, not when it was told"
    )
    changes = world.table.changes_of([incident.id])[incident.id]
    assert {"firing", "recovering", "resolved"} <= {one.state_to for one in changes}


def test_a_grave_alert_speaks_for_the_others_and_they_for_themselves_afterwards(world: World) -> None:
    world.look(30, **HALF, trouble="server-storage")
    assert world.kinds() == ["opened"]
    world.look(8, **HALF)
    assert world.kinds() == ["opened", "joined"]
    assert world.channels.sent[-1].data["rules"] == ["polling-share"]
    world.look(60, people=20, live=20)
    assert world.kinds() == ["opened", "joined", "closed"]


def test_a_silent_rule_has_no_notice_but_changes(world: World) -> None:
    world.look(1, people=20)
    assert world.table.silence("polling-share", world.at + 3_600_000, world.at)
    world.look(25, **HALF)
    world.look(50, people=20)
    assert world.kinds() == []
    states = [one.state_to for one in world.table.changes() if one.rule == "polling-share" and not one.note]
    assert states == ["pending", "firing", "recovering", "resolved", "normal"]


def test_who_silences_an_alert_does_not_hear_of_its_end(world: World) -> None:
    world.look(22, **HALF)
    world.table.silence("polling-share", world.at + 36_000_000, world.at)
    world.look(60, people=20)
    assert world.kinds() == ["opened"] and world.table.open_incident() is None


def test_an_alert_that_outlasts_its_silence_is_told(world: World) -> None:
    world.look(1, people=20)
    world.table.silence("polling-share", world.at + 600_000, world.at)
    world.look(39, **HALF)
    assert world.kinds() == []
    world.look(3)
    assert world.kinds() == ["opened"]
    world.table.silence("polling-share", 0, world.at)
    world.look(60, people=20)
    assert world.kinds() == ["opened", "closed"]


def test_a_look_leaves_alone_what_an_operator_did_meanwhile(world: World) -> None:
    world.look(22, **HALF)
    assert world.table.acknowledge("polling-share", "ada", world.at)
    world.table.silence("polling-share", world.at + 5, world.at)
    world.look(3)
    alert = world.table.alerts()["polling-share"]
    assert (alert.acknowledged_by, alert.silenced_until) == ("ada", T0 + 22 * TICK_MS + 5)
    notes = [one.note for one in world.table.changes() if one.note]
    assert notes == ["acknowledged", "silenced"]
    world.look(60, people=20)
    assert not world.table.acknowledge("polling-share", "ada", world.at), "it is over"
    world.look(22, **HALF)
    assert world.table.alerts()["polling-share"].acknowledged_by == "", "another time"


def test_a_notice_is_tried_three_times_and_then_shown(world: World) -> None:
    world.channels.broken = {"email"}
    world.look(21, **HALF)
    for _ in range(40):
        world.watch.deliver(world.at)
        world.watch = world.another()
        world.at += TICK_MS
    assert [one.channel for one in world.channels.sent] == ["operations"] and world.channels.tries == 4
    (failed,) = world.table.failed_notices(0)
    assert (failed.channel, failed.error) == ("email", "it answered 503")


def test_the_conversation_is_tried_until_it_works(world: World) -> None:
    world.channels.broken = {"operations"}
    world.look(21, **HALF)
    for _ in range(40):
        world.watch.deliver(world.at)
        world.at += TICK_MS
    world.channels.broken = set()
    world.at += MINUTE
    assert world.kinds() == ["opened"] and not world.table.failed_notices(0)


def test_notices_come_in_their_order_also_where_the_first_one_must_be_repeated(world: World) -> None:
    world.channels.broken = {"operations"}
    world.look(21, **HALF)
    world.watch.deliver(world.at)
    world.channels.broken = set()
    world.table.note_try(world.table.due_notices(world.at + MINUTE)[0].id, world.at + 3_600_000)
    world.look(60, people=20)
    assert world.kinds() == [], "the end is not told before the beginning"
    assert world.kinds("email") == ["opened", "closed"]
    world.at += 3_600_000
    assert world.kinds() == ["opened", "closed"]


def test_changes_are_kept_for_90_days_and_those_of_incidents_always(world: World) -> None:
    world.look(2, **HALF)  # a short one
    world.look(1, people=20)
    world.look(22, **HALF)
    world.look(60, people=20)
    kept = [one for one in world.table.changes() if one.at > T0 + 2 * TICK_MS and one.state_to != "normal"]
    world.deliver()
    while world.table.delete_before(world.at, 3):
        pass
    assert world.table.changes() == kept
    assert not world.table.due_notices(world.at) and world.table.delete_before(1 << 60, 1000) == 0, "notices, too"


def test_a_crash_after_a_delivery_repeats_it_with_the_same_number(world: World) -> None:
    world.look(21, **HALF)
    due = world.table.due_notices(world.at)
    world.table.note_try(due[0].id, world.at + MINUTE)
    assert [one.id for one in world.table.due_notices(world.at)] == [due[1].id]
    again = world.table.due_notices(world.at + MINUTE)[0]
    assert (again.incident_id, again.number, again.tries) == (due[0].incident_id, due[0].number, 1)


# The facts of the present


def page(state: str, person: str, **more: object) -> Page:
    return Page(person=person, state=state, since=T0, **more)  # type: ignore[arg-type]


def test_the_facts_are_people_by_their_best_page_without_drills_and_their_own_devices() -> None:
    pages = {
        "a1": page("polling", "a", reason="upgrade-refused"),
        "a2": page("connected", "a"),
        "b": page("polling", "b", reason="upgrade-refused"),
        "c": page("polling", "c"),  # planned
        "d": page("reconnecting", "d", reason="socket-closed"),
        "e": page("reconnecting", "e", reason="offline"),
        "f": page("polling", "f", reason="drill"),
        "g": page("polling", "g", reason="upgrade-refused"),
    }
    minutes = {
        T0 - k * MINUTE: Figures(people={"connected": n, "polling": 1, "error": 9})
        for k, n in ((1, 3), (2, 9), (3, 99))
    }
    drills = [DrillTime("g", T0 - 1000, T0 + 1000)]
    found = facts_of(present(pages, drills=drills), minutes, 5.0, False)
    assert (found.people, found.live, found.polling, found.lost, found.before) == (6, 4, 1, 1, 10)
    assert found.is_disturbed and not facts_of(present(pages), minutes, 5.0, False).is_disturbed


# Words


def worst(app: Flask, rule: str, reading: Reading, seen: Present | None, whole: Figures | None = None) -> Moment:
    with app.app_context():
        return incidents.moment_of(rule, reading, seen, whole or Figures())


def test_an_incident_reads_as_a_person_would_tell_it(world: World) -> None:
    pages = {f"p{n}": page("polling", f"p{n}", reason="upgrade-refused", network="a1b2c3d4") for n in range(38)}
    pages |= {f"q{n}": page("connected", f"q{n}", network="0f0f") for n in range(23)}
    world.present = present(pages)
    at = T0 - T0 % 86_400_000 + 14 * 3_600_000 + 2 * MINUTE
    world.at = at
    world.look(21, people=61, live=61, polling=38)
    world.look(48, people=61, live=61, polling=10)
    assert world.table.alerts()["polling-share"].state == "firing", "16 % is not yet well"
    world.look(45, people=61, live=61)
    opened, closed = world.texts()
    assert opened == ("Since 14:02 UTC, 38 of 61 people poll: in network a1b2 the upgrade to WebSocket is refused.")
    assert closed == (
        "From 14:02 to 14:19 UTC, 38 of 61 people polled: in network a1b2 the upgrade to WebSocket is refused."
    )
    assert "HTTP/1.1" in world.channels.sent[0].data["to_do"]


CASES = [
    ("unready", Reading(1, 1), "server-storage", "the server is not ready: the database cannot be written."),
    ("disk-or-log", Reading(1, 1), "disk", "the server needs a look: the disk is nearly full."),
    ("disk-or-log", Reading(1, 1), "", "the server needs a look: nobody rolls up the events."),
    ("delivery", Reading(0.98, 250), "", "5 of 250 messages come later than 30 s, or not at all."),
    ("round-trip", Reading(2400, 60), "slow-disk", "one message of 20 takes 2.4 s or more: the database is slow."),
    ("drops", Reading(3.14, 9), "", "connections are lost, each 3.1 times an hour."),
    ("mass-drop", Reading(0.55, 20), "", "11 of 20 people lost the connection at once."),
]


@pytest.mark.parametrize(("rule", "reading", "trouble", "words"), CASES)
def test_each_rule_has_words(world: World, rule: str, reading: Reading, trouble: str, words: str) -> None:
    moment = worst(world.app, rule, reading, present({}, trouble))
    with world.app.app_context():
        text = incidents.sentence(Incident(T0, worst={rule: moment.dump()}))
        over = incidents.sentence(Incident(T0, T0 + 86_400_000, worst={rule: moment.dump()}))
    assert text.endswith(f" UTC, {words}") and over.startswith("From Jan 15 08:00 to Jan 16 08:00 UTC, ")


def test_a_slow_attempt_is_not_a_slow_disk(world: World) -> None:
    whole = Figures(refusals={"websocket slow": 9})
    moment = worst(world.app, "success", Reading(0.5, 30), present({}), whole)
    with world.app.app_context():
        incident = Incident(T0, worst={"success": moment.dump()})
        assert "it takes longer than 10 s" in incidents.sentence(incident)
        assert "disk" not in incidents.to_do(incident)


@pytest.mark.parametrize("trouble", ["provider", "disk", "slow-disk", "disk-full", ""])
def test_a_lesser_trouble_of_the_server_hides_no_outage(world: World, trouble: str) -> None:
    pages = {f"page{number}": Page(person=f"person{number}", state="error") for number in range(8)}
    with world.app.app_context():
        verdict = verdict_of(present(pages, trouble))
    assert verdict.level == "down" and ("8 of 8 people" in verdict.title) == (trouble != "disk-full")


@pytest.mark.parametrize("trouble", ["provider", "disk", "slow-disk"])
def test_people_who_poll_are_named_before_a_lesser_trouble(world: World, trouble: str) -> None:
    pages = {f"p{n}": page("polling", f"p{n}", reason="upgrade-refused", network="a1b2c3d4") for n in range(5)}
    seen = present(pages, trouble)
    moment = worst(world.app, "polling-share", Reading(1, 5), seen)
    with world.app.app_context():
        verdict = verdict_of(seen)
        text = incidents.sentence(Incident(T0, worst={"polling-share": moment.dump()}))
    assert "5 of 5 people poll" in verdict.title and verdict.cause == "upgrade-refused"
    assert any(word in verdict.detail for word in ("assistant", "disk", "database")), "the trouble is said beside it"
    assert text.endswith("5 of 5 people poll: in network a1b2 the upgrade to WebSocket is refused.")


def test_failed_pages_are_told_with_the_most_frequent_reason(world: World) -> None:
    whole = Figures(refusals={"websocket upgrade-refused": 9, "polling server-unreachable": 30, "websocket mute": 2})
    moment = worst(world.app, "success", Reading(0.8, 50), present({}), whole)
    with world.app.app_context():
        incident = Incident(T0, worst={"success": moment.dump()})
        assert "10 of 50 pages do not connect within 10 s: the server cannot be reached" in incidents.sentence(incident)
        assert "firewall" in incidents.to_do(incident)


def test_a_cause_that_is_found_later_is_told_at_the_end(world: World) -> None:
    world.look(21, people=61, polling=38)
    assert world.texts() == ["Since 08:00 UTC, 38 of 61 people poll."]
    pages = {f"p{n}": page("polling", f"p{n}", reason="mute", network="a1b2c3d4") for n in range(20)}
    world.present = present(pages | {"q": page("connected", "q")})
    world.look(1, people=61, polling=20)
    world.look(45, people=61)
    assert world.texts()[1].endswith(
        "38 of 61 people polled: in network a1b2 WebSocket opens, and then nothing passes."
    )
