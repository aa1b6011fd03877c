"""Durable runs: queued, claimed, written as they grow, ended once; on the real store."""

import gc
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import Any

import gevent
import gevent.event
import pytest
from lab.answering import Script, Workers, drained
from lab.asking import answer_html
from sqlalchemy import select, update

from chatapp.assistant import SHIPPED_KNOWLEDGE, ProviderError, runner
from chatapp.assistant.builtin import BuiltIn
from chatapp.assistant.knowledge import Knowledge
from chatapp.assistant.markdown import MOST_BLOCKS
from chatapp.assistant.provider import SwitchedOff
from chatapp.store import ClaimedRun, Turn, now_ms, sqlite
from chatapp.store.models import Message, Run
from chatapp.store.workers import Worker

# Durable runs, on the real store


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Workers of a fresh database; their runners are drained at the end."""
    with drained(Workers(tmp_path)) as workers:
        yield workers


def slowly(history: Sequence[Turn]) -> Iterator[str]:
    """Words without an end."""
    for number in range(1000):
        yield f"word{number} "
        gevent.sleep(0.02)


def test_a_queued_question_is_answered(workers: Workers) -> None:
    workers.start(Script(lambda history: iter(["You asked: ", history[-1].body])))
    answer = workers.wait(workers.ask("why"), "completed")
    assert answer.body == "You asked: why"
    assert [block.html for block in answer.blocks] == ["<p>You asked: why</p>"]


def test_what_was_queued_before_the_assistant_was_switched_off_ends(workers: Workers) -> None:
    place = workers.ask("why")
    workers.start(SwitchedOff())
    answer = workers.wait(place, "failed")
    assert answer.error == "The assistant is switched off on this server." and answer.body == ""


def test_what_was_queued_before_the_start_is_answered(workers: Workers) -> None:
    place = workers.ask("early")
    workers.start(Script(lambda history: iter(["late"])))
    workers.wait(place, "completed")


def test_an_answer_is_written_by_the_clock_and_not_by_the_token(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[str | None] = []
    write = workers.store.runs.write_answer

    def counted(run: ClaimedRun, body: str | None, changed: Sequence[tuple[int, str]], phase: str | None) -> Any:
        writes.append(body)
        return write(run, body, changed, phase)

    monkeypatch.setattr(workers.store.runs, "write_answer", counted)

    def play(history: Sequence[Turn]) -> Iterator[str]:
        for _ in range(250):
            yield "x "
            gevent.sleep(0.003)

    workers.start(Script(play))
    started = time.monotonic()
    answer = workers.wait(workers.ask("q"), "completed", 20)
    assert answer.body == "x " * 250
    assert 2 <= len(writes) <= (time.monotonic() - started) / runner.FLUSH_S + 2


def test_stop_ends_within_a_flush_closes_the_provider_and_keeps_what_was_written(workers: Workers) -> None:
    closed: list[float] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        try:
            yield "so far"
            gevent.sleep(30)  # silent: the stop must be noticed all the same
        finally:
            closed.append(time.monotonic())

    workers.start(Script(play))
    place = workers.ask("q")
    gevent.sleep(0.4)
    asked = time.monotonic()
    with workers.store.database.write() as tx:
        workers.store.runs.stop(tx, place)
    answer = workers.wait(place, "stopped")
    assert answer.body == "so far"
    assert closed and closed[0] - asked < 0.4


@pytest.mark.parametrize("paragraphs", [3, 3 * runner.MOST_WRITTEN])
def test_what_came_between_the_last_flush_and_stop_is_stored_whole(workers: Workers, paragraphs: int) -> None:
    """The flush that hears of the stop writes nothing: the block that was shown by half, and all after it, remain."""
    asked, more = gevent.event.Event(), gevent.event.Event()
    text = [" and ends here.\n\n", *(f"Paragraph {number}.\n\n" for number in range(paragraphs)), "An open **end**"]

    def play(history: Sequence[Turn]) -> Iterator[str]:
        yield "The first begins"
        more.wait()
        yield "".join(text)
        asked.set()
        gevent.sleep(60)

    workers.start(Script(play))
    place = workers.ask("q")
    with gevent.Timeout(5, AssertionError("nothing is shown")):
        while not (answer := workers.answer(place)) or not answer.body:
            gevent.sleep(0.01)
    with workers.store.database.write() as tx:
        workers.store.runs.stop(tx, place)
        more.set()
    asked.wait(5)
    answer = workers.wait(place, "stopped")
    assert answer.body == "The first begins" + "".join(text)
    assert [block.html for block in answer.blocks] == answer_html(answer.body)


def test_a_providers_refusal_is_told_in_its_own_words(workers: Workers) -> None:
    def play(history: Sequence[Turn]) -> Iterator[str]:
        yield "begun "
        raise ProviderError("The model is asleep.")

    workers.start(Script(play))
    answer = workers.wait(workers.ask("q"), "failed")
    assert (answer.error, answer.body) == ("The model is asleep.", "begun ")


def test_a_providers_mistake_is_logged_and_told_without_its_details(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    def play(history: Sequence[Turn]) -> Iterator[str]:
        raise ZeroDivisionError("secret detail")

    workers.start(Script(play))
    answer = workers.wait(workers.ask("q"), "failed")
    assert answer.error == runner.FAILED
    assert "secret detail" in caplog.text


def test_an_empty_answer_counts_as_failed(workers: Workers) -> None:
    workers.start(Script(lambda history: iter([" \n"])))
    assert workers.wait(workers.ask("q"), "failed").error == runner.EMPTY


def test_draining_interrupts_at_once_and_keeps_what_was_written(workers: Workers) -> None:
    runner_ = workers.start(Script(slowly))
    places = [workers.ask(f"q{number}") for number in range(3)]
    for _ in range(100):
        gevent.sleep(0.05)
        if all((answer := workers.answer(place)) and answer.body.startswith("word0 word1 ") for place in places):
            break
    started = time.monotonic()
    runner_.drain()
    assert time.monotonic() - started < 0.5
    for place in places:
        answer = workers.answer(place)
        assert answer.state == "interrupted" and answer.body.startswith("word0 word1 ")
        assert "word1" in answer.blocks[0].html
    waiting = workers.ask("later")
    gevent.sleep(0.1)
    assert workers.answer(waiting) is None, "a drained runner takes nothing more"


def test_sixteen_are_answered_at_once_and_the_others_afterwards(workers: Workers) -> None:
    most: list[int] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        most.append(runner_.running())
        gevent.sleep(0.2)
        yield "done"

    runner_ = workers.start(Script(play))
    places = [workers.ask(f"q{number}") for number in range(20)]
    for place in places:
        workers.wait(place, "completed")
    assert max(most) == runner.MOST_AT_ONCE


def test_a_silent_provider_is_not_taken_for_a_dead_one(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOK_AROUND_S", 0.1)

    def play(history: Sequence[Turn]) -> Iterator[str]:
        gevent.sleep(1.0)
        yield "at last"

    workers.start(Script(play))
    workers.start(Script(play))  # a second process on the same data
    workers.wait(workers.ask("q"), "completed")


def test_a_run_whose_writer_was_killed_is_interrupted_at_the_next_start(workers: Workers) -> None:
    place = workers.ask("q")
    run = workers.store.runs.claim_run("a process that was killed")
    assert run is not None
    workers.store.runs.write_answer(run, "half", [(0, "<p>half</p>")])
    workers.start(Script(slowly))
    assert workers.wait(place, "interrupted", 1).body == "half"


def test_no_clock_says_whether_a_writer_lives(workers: Workers) -> None:
    """Set back or fast, in this process or in another one: it is not asked."""
    place = workers.ask("q")
    run = workers.store.runs.claim_run("a process that was killed")
    assert run is not None
    workers.store.runs.write_answer(run, "half", [(0, "<p>half</p>")])
    with workers.store.database.write() as tx:
        tomorrow = now_ms() + 86_400_000
        tx.connection.execute(update(Run).values(heartbeat_at=tomorrow, started_at=tomorrow))
    workers.start(Script(slowly))
    workers.wait(place, "interrupted", 1)


def test_a_second_process_with_a_fast_clock_leaves_answers_alone(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LOOK_AROUND_S", 0.1)
    workers.start(Script(slowly))
    place = workers.ask("q")
    workers.wait(place, "running")
    fast = now_ms() + 10_000
    monkeypatch.setattr("chatapp.store.runs.now_ms", lambda: fast)
    workers.start(Script(slowly))
    gevent.sleep(0.5)  # several looks around
    assert workers.answer(place).state == "running"


def test_a_dead_writer_is_found_while_others_go_on(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOK_AROUND_S", 0.2)
    workers.start(Script(slowly))
    place = workers.ask("q")
    workers.wait(place, "running")
    first = workers.answer(place).uuid
    with workers.store.database.write() as tx:  # its process was killed in this moment
        tx.connection.execute(update(Run).values(lease="killed"))
        tx.connection.execute(update(Message).where(Message.uuid == first).values(body="kept"))
    assert workers.wait(place, "interrupted", 2).uuid == first
    assert runner.LOOK_AROUND_S <= 5
    with gevent.Timeout(5, AssertionError("the writer ends")):
        while workers.runners[0].running():
            gevent.sleep(0.02)


def test_a_run_of_which_nothing_was_shown_goes_on_in_the_next_process(workers: Workers) -> None:
    place = workers.ask("q")
    assert workers.store.runs.claim_run("killed") is not None
    before = workers.answer(place)
    with workers.store.database.write() as tx:  # a question that comes later has a run of its own
        workers.store.conversations.post(tx, place, "m-later", "later")
        workers.store.runs.queue(tx, place)
    workers.start(Script(lambda history: iter([f"to {history[-1].body}"])))
    after = workers.wait(place, "completed")
    assert (after.uuid, after.position, after.body) == (before.uuid, before.position, "to q")
    with gevent.Timeout(5, AssertionError("the later question")):
        while [m.body for m in workers.messages(place) if m.author == "assistant"] != ["to q", "to later"]:
            gevent.sleep(0.02)


def test_a_run_that_two_processes_died_of_is_not_tried_again(workers: Workers) -> None:
    place = workers.ask("q")
    run = workers.store.runs.claim_run("killed")
    ended, resumed = workers.store.runs.reap_runs(lambda _run, _lease: True, "killed too", 1)
    assert run is not None and (ended, [each.id for each in resumed]) == (0, [run.id])
    workers.start(Script(slowly))
    workers.wait(place, "interrupted", 1)


def test_stop_ends_a_run_whose_writer_is_gone(workers: Workers) -> None:
    place = workers.ask("q")
    assert workers.store.runs.claim_run("killed") is not None
    with workers.store.database.write() as tx:
        workers.store.runs.stop(tx, place)
    workers.start(Script(slowly))
    workers.wait(place, "stopped", 1)


def test_draining_leaves_a_run_of_which_nothing_was_shown_to_the_next_process(workers: Workers) -> None:
    def silent(history: Sequence[Turn]) -> Iterator[str]:
        gevent.sleep(30)
        yield "never"

    first = workers.start(Script(silent))
    place = workers.ask("q")
    workers.wait(place, "running")
    first.drain()
    assert workers.answer(place).state == "running"
    workers.start(Script(lambda history: iter(["at last"])))
    assert workers.wait(place, "completed").body == "at last"


def test_a_process_lives_until_it_ends_and_not_longer(tmp_path: Path) -> None:
    """However it ends: the kernel lets go of its lock."""
    code = "import sys, pathlib; from chatapp.store.workers import Worker; w = Worker(pathlib.Path(sys.argv[1]))\n"
    code += "w.start(); print(w.name, flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "workers")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    name = other.stdout.readline().decode().strip()
    mine = Worker(tmp_path / "workers")
    mine.start()
    assert mine.is_alive(name) and mine.is_alive(mine.name)
    assert not mine.is_alive("0" * 32) and not mine.is_alive("../../etc/passwd")
    other.kill()
    other.wait(5)
    assert not mine.is_alive(name)
    again = Worker(tmp_path / "workers")
    again.start()
    assert {path.name for path in (tmp_path / "workers").iterdir()} == {mine.name, again.name}
    mine.stop()
    assert not again.is_alive(mine.name)
    again.stop()
    other.communicate()


def test_a_process_begins_also_where_the_disk_is_full(tmp_path: Path) -> None:
    worker, limits = Worker(tmp_path / "workers"), getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (0, limits[1]))
    try:
        worker.start()
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert Worker(tmp_path / "workers").is_alive(worker.name)
    worker.stop()


def test_a_writer_that_lost_its_lease_writes_nothing_more(workers: Workers) -> None:
    workers.start(Script(slowly))
    place = workers.ask("q")
    gevent.sleep(0.4)
    assert workers.store.runs.reap_runs(lambda _run, _lease: True, "other", 0) == (1, [])
    kept = workers.answer(place).body
    gevent.sleep(0.5)
    answer = workers.answer(place)
    assert (answer.state, answer.body) == ("interrupted", kept)
    assert workers.runners[0].running() == 0


# A database that does not answer for a while


def test_a_locked_database_ends_no_answer(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is read on meanwhile, and what it said is written afterwards, the end too."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 100)
    monkeypatch.setattr(runner, "RETRY_S", 0.1)
    read: list[str] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        for number in range(40):
            read.append(f"word{number} ")
            yield read[-1]
            gevent.sleep(0.02)

    workers.start(Script(play))
    place = workers.ask("q")
    workers.wait(place, "running")
    other = sqlite3.connect(workers.folder / "chat.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with gevent.Timeout(5, AssertionError("it is not read on")):
        while len(read) < 40:
            gevent.sleep(0.05)
    gevent.sleep(0.5)  # its end, too, finds the database locked
    assert workers.answer(place).state == "running" and len(workers.answer(place).body) < len("".join(read))
    other.execute("ROLLBACK")
    other.close()
    assert workers.wait(place, "completed").body == "".join(read)


# The longest answer


@pytest.mark.parametrize("pieces", [1, 7, 4000])
def test_an_answer_ends_in_words_at_the_longest_and_the_provider_is_left(workers: Workers, pieces: int) -> None:
    closed: list[int] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        given = 0
        try:
            while True:
                given += 1
                yield "x" * (4000 // pieces)
        finally:
            closed.append(given)

    workers.start(Script(play), longest=1000)
    answer = workers.wait(workers.ask("q"), "stopped")
    assert answer.body == "x" * 1000
    assert "1,000 characters" in answer.error
    assert closed == [1000 // (4000 // pieces) + 1]


def test_an_answer_of_just_the_longest_is_complete(workers: Workers) -> None:
    workers.start(Script(lambda history: iter(["x" * 600, "x" * 400, ""])), longest=1000)
    assert len(workers.wait(workers.ask("q"), "completed").body) == 1000


def test_the_runner_outlives_a_store_that_fails_for_a_while(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, failures = workers.store.runs.claim_run, [OSError("disk full"), OSError("disk full")]

    def sometimes(lease: str) -> ClaimedRun | None:
        if failures:
            raise failures.pop()
        return claim(lease)

    monkeypatch.setattr(workers.store.runs, "claim_run", sometimes)
    monkeypatch.setattr(runner, "LOOK_AROUND_S", 0.1)
    workers.start(Script(lambda history: iter(["fine"])))
    workers.wait(workers.ask("q"), "completed")


def test_the_built_in_assistant_answers_through_the_runner(workers: Workers) -> None:
    workers.start(BuiltIn(Knowledge([SHIPPED_KNOWLEDGE]), 0))
    answer = workers.wait(workers.ask("How do I restore a backup?"), "completed")
    assert [block.html for block in answer.blocks] == answer_html(answer.body)
    assert any('class="citation"' in block.html for block in answer.blocks)
    with workers.store.database.read() as connection:
        assert connection.execute(select(Run.state)).scalars().all() == ["completed"]


def test_an_answer_of_many_small_blocks_is_bounded_rows_written_by_turns(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of them takes what is too many; what is shown is the whole."""
    text, written = "# h\n" * 2300, list[int]()
    write = workers.store.runs.write_answer

    def counted(run: ClaimedRun, body: str | None, changed: Sequence[tuple[int, str]], phase: str | None) -> Any:
        written.append(len(changed))
        return write(run, body, changed, phase)

    monkeypatch.setattr(workers.store.runs, "write_answer", counted)
    workers.start(Script(lambda history: iter([text])))
    answer = workers.wait(workers.ask("q"), "completed", 20)
    assert answer.body == text and MOST_BLOCKS < len(answer.blocks) + 2 <= MOST_BLOCKS + 3
    assert "\n".join(block.html for block in answer.blocks).split() == "\n".join(answer_html(text)).split()
    assert max(written) <= runner.MOST_WRITTEN


def test_a_long_block_is_rendered_without_collections_of_garbage() -> None:
    """With them it held up everybody for most of a second."""
    before = gc.isenabled()
    assert runner._without_gc(gc.isenabled) is False
    assert gc.isenabled() is before
