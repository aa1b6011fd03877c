"""Durable runs: queued, claimed, written as they grow, ended once; on the real store."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask import Flask
from sqlalchemy import select, update

from chatapp.assistant import SHIPPED_KNOWLEDGE, Provider, ProviderError, runner
from chatapp.assistant.blocks import answer_html
from chatapp.assistant.builtin import BuiltIn, Knowledge
from chatapp.assistant.runner import Runner
from chatapp.bus import Bus
from chatapp.store import ClaimedRun, Place, Store, Turn, migrate
from chatapp.store.tables import runs

# Durable runs, on the real store


class Script:
    """A provider that does what a test says."""

    def __init__(self, play: Callable[[Sequence[Turn]], Iterator[str]]) -> None:
        self.answer = play


class House:
    """A store on disk, a bus, and one conversation in which questions can be queued."""

    def __init__(self, folder: Path) -> None:
        self.bus = Bus()
        migrate.migrate(folder)
        self.store = Store(Flask(__name__), folder, self.bus)
        self.person = self.store.people.add_first_admin("Ada", "ada@example.org", "x").id
        self.runners: list[Runner] = []

    def ask(self, question: str) -> Place:
        """Post a question in a new conversation and queue its answer."""
        conversations = self.store.conversations
        with self.store.database.write() as tx:
            place = conversations.add(tx, self.person, f"c-{question}")
            conversations.post(tx, place, f"m-{question}", question)
            self.store.runs.queue(tx, place)
        return place

    def start(self, provider: Provider) -> Runner:
        """A runner of this house."""
        self.runners.append(Runner(self.store.runs, self.bus, provider))
        self.runners[-1].start()
        return self.runners[-1]

    def answer(self, place: Place) -> Any:
        """The assistant's message, or None."""
        return next((m for m in self.store.conversations.changes(place, 0).items if m.author == "assistant"), None)

    def wait(self, place: Place, state: str, seconds: float = 5.0) -> Any:
        """The assistant's message once it is in that state."""
        with gevent.Timeout(seconds, AssertionError(f"not {state}: {self.answer(place)}")):
            while (answer := self.answer(place)) is None or answer.state != state:
                gevent.sleep(0.02)
        return answer


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A fresh house; its runners are drained at the end."""
    house = House(tmp_path)
    yield house
    for each in house.runners:
        each.drain()
    for engine in (house.store.database.engine, house.store.events.database.engine):
        engine.dispose()


def slowly(history: Sequence[Turn]) -> Iterator[str]:
    """Words without an end."""
    for number in range(1000):
        yield f"word{number} "
        gevent.sleep(0.02)


def test_a_queued_question_is_answered(house: House) -> None:
    house.start(Script(lambda history: iter(["You asked: ", history[-1].body])))
    answer = house.wait(house.ask("why"), "completed")
    assert answer.body == "You asked: why"
    assert [block.html for block in answer.blocks] == ["<p>You asked: why</p>"]


def test_what_was_queued_before_the_start_is_answered(house: House) -> None:
    place = house.ask("early")
    house.start(Script(lambda history: iter(["late"])))
    house.wait(place, "completed")


def test_an_answer_is_written_by_the_clock_and_not_by_the_token(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    write = house.store.runs.write_answer

    def counted(run: ClaimedRun, lease: str, body: str, changed: Sequence[tuple[int, str]]) -> Any:
        writes.append(body)
        return write(run, lease, body, changed)

    monkeypatch.setattr(house.store.runs, "write_answer", counted)

    def play(history: Sequence[Turn]) -> Iterator[str]:
        for _ in range(250):
            yield "x "
            gevent.sleep(0.003)

    house.start(Script(play))
    answer = house.wait(house.ask("q"), "completed")
    assert answer.body == "x " * 250
    assert 2 <= len(writes) <= 12


def test_stop_ends_within_a_flush_closes_the_provider_and_keeps_what_was_written(house: House) -> None:
    closed: list[float] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        try:
            yield "so far"
            gevent.sleep(30)  # silent: the stop must be noticed all the same
        finally:
            closed.append(time.monotonic())

    house.start(Script(play))
    place = house.ask("q")
    gevent.sleep(0.4)
    asked = time.monotonic()
    with house.store.database.write() as tx:
        house.store.runs.stop(tx, place)
    answer = house.wait(place, "stopped")
    assert answer.body == "so far"
    assert closed and closed[0] - asked < 0.4


def test_a_providers_refusal_is_told_in_its_own_words(house: House) -> None:
    def play(history: Sequence[Turn]) -> Iterator[str]:
        yield "begun "
        raise ProviderError("The model is asleep.")

    house.start(Script(play))
    answer = house.wait(house.ask("q"), "failed")
    assert (answer.error, answer.body) == ("The model is asleep.", "begun ")


def test_a_providers_mistake_is_logged_and_told_without_its_details(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def play(history: Sequence[Turn]) -> Iterator[str]:
        raise ZeroDivisionError("secret detail")

    house.start(Script(play))
    answer = house.wait(house.ask("q"), "failed")
    assert answer.error == runner.FAILED
    assert "secret detail" in caplog.text


def test_an_empty_answer_counts_as_failed(house: House) -> None:
    house.start(Script(lambda history: iter([" \n"])))
    assert house.wait(house.ask("q"), "failed").error == runner.EMPTY


def test_draining_interrupts_at_once_and_keeps_what_was_written(house: House) -> None:
    runner_ = house.start(Script(slowly))
    places = [house.ask(f"q{number}") for number in range(3)]
    gevent.sleep(0.4)
    started = time.monotonic()
    runner_.drain()
    assert time.monotonic() - started < 0.5
    for place in places:
        answer = house.answer(place)
        assert answer.state == "interrupted" and answer.body.startswith("word0 word1 ")
        assert "word1" in answer.blocks[0].html
    waiting = house.ask("later")
    gevent.sleep(0.1)
    assert house.answer(waiting) is None, "a drained runner takes nothing more"


def test_sixteen_are_answered_at_once_and_the_others_afterwards(house: House) -> None:
    most: list[int] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        most.append(runner_.running())
        gevent.sleep(0.2)
        yield "done"

    runner_ = house.start(Script(play))
    places = [house.ask(f"q{number}") for number in range(20)]
    for place in places:
        house.wait(place, "completed")
    assert max(most) == runner.MOST_AT_ONCE


def test_a_silent_provider_does_not_stop_the_heartbeat(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "HEARTBEAT_S", 0.2)

    def play(history: Sequence[Turn]) -> Iterator[str]:
        gevent.sleep(1.0)
        yield "at last"

    house.start(Script(play))
    place = house.ask("q")
    gevent.sleep(0.7)
    assert house.store.runs.reap_runs(0.5) == 0
    house.wait(place, "completed")


def test_a_run_whose_writer_was_killed_is_interrupted_at_the_next_start(house: House) -> None:
    place = house.ask("q")
    run = house.store.runs.claim_run("a process that was killed")
    assert run is not None
    house.store.runs.write_answer(run, "a process that was killed", "half", [(0, "<p>half</p>")])
    with house.store.database.write() as tx:
        tx.connection.execute(update(runs).values(heartbeat_at=runs.c.heartbeat_at - 6000))
    house.start(Script(slowly))
    assert house.wait(place, "interrupted").body == "half"


def test_a_writer_that_lost_its_lease_writes_nothing_more(house: House) -> None:
    house.start(Script(slowly))
    place = house.ask("q")
    gevent.sleep(0.4)
    assert house.store.runs.reap_runs(-60) == 1
    kept = house.answer(place).body
    gevent.sleep(0.5)
    answer = house.answer(place)
    assert (answer.state, answer.body) == ("interrupted", kept)
    assert house.runners[0].running() == 0


def test_the_runner_outlives_a_store_that_fails_for_a_while(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, failures = house.store.runs.claim_run, [OSError("disk full"), OSError("disk full")]

    def sometimes(lease: str) -> ClaimedRun | None:
        if failures:
            raise failures.pop()
        return claim(lease)

    monkeypatch.setattr(house.store.runs, "claim_run", sometimes)
    monkeypatch.setattr(runner, "CLAIM_EVERY_S", 0.1)
    house.start(Script(lambda history: iter(["fine"])))
    house.wait(house.ask("q"), "completed")


def test_the_built_in_assistant_answers_through_the_runner(house: House) -> None:
    house.start(BuiltIn(Knowledge([SHIPPED_KNOWLEDGE]), 0))
    answer = house.wait(house.ask("How do I restore a backup?"), "completed")
    assert [block.html for block in answer.blocks] == answer_html(answer.body)
    assert any('class="citation"' in block.html for block in answer.blocks)
    with house.store.database.read() as connection:
        assert connection.execute(select(runs.c.state)).scalars().all() == ["completed"]
