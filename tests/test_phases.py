"""What is shown of an answer before its first word and after its last; how often its text is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest
from lab.answering import Script, Workers, drained

from chatapp.assistant import ProviderError
from chatapp.assistant.provider import Phase, Usage
from chatapp.store import ClaimedRun, Turn


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Workers of a fresh database; their runners are drained at the end."""
    with drained(Workers(tmp_path)) as workers:
        yield workers


def test_phases_are_shown_until_the_first_word_and_figures_at_the_end(workers: Workers) -> None:
    go = [gevent.event.Event() for _ in range(4)]
    script = Script(lambda history: iter([]))

    def play(history: Sequence[Turn]) -> Iterator[str]:
        script.wishes.note(Phase("asking"))
        go[0].wait(5)
        script.wishes.note(Phase("paused", 4))
        go[1].wait(5)
        script.wishes.note(Phase("thinking"))
        go[2].wait(5)
        yield "A word"
        script.wishes.note(Phase("asking"))  # too late: it answers
        go[3].wait(5)
        script.wishes.note(Usage("m-1", 12, 3, 2, 40, 90))

    script.play = play
    workers.start(script)
    place = workers.ask("q")

    def shows(phase: str, body: bool) -> None:
        with gevent.Timeout(5, AssertionError(f"{phase!r} is not shown")):
            while not (answer := workers.answer(place)) or (answer.phase, bool(answer.blocks)) != (phase, body):
                gevent.sleep(0.01)

    for number, phase in enumerate(("asking", "paused 4", "thinking")):
        shows(phase, False)
        go[number].set()
    shows("", True)
    go[3].set()
    answer = workers.wait(place, "completed")
    assert answer.phase == "" and answer.figures["answer_tokens"] == 3 and answer.figures["model"] == "m-1"


def test_who_tells_no_phase_changes_no_footer(workers: Workers) -> None:
    """What the page has put there, such as that Stop did not work, stays."""
    go = gevent.event.Event()

    def play(history: Sequence[Turn]) -> Iterator[str]:
        yield "A word"
        go.wait(5)

    workers.start(Script(play))
    place = workers.ask("q")
    with gevent.Timeout(5, AssertionError("nothing is shown")):
        while not (answer := workers.answer(place)) or not answer.blocks:
            gevent.sleep(0.01)
    assert answer.state_revision < answer.revision
    go.set()
    workers.wait(place, "completed")


def test_the_whole_text_is_written_seldom_and_at_the_end(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int | None] = []
    write = workers.store.runs.write_answer

    def counted(run: ClaimedRun, body: str | None, changed: Sequence[tuple[int, str]], phase: str | None) -> Any:
        written.append(None if body is None else len(body))
        return write(run, body, changed, phase)

    def play(history: Sequence[Turn]) -> Iterator[str]:
        for _ in range(40):
            yield "word " * 20
            gevent.sleep(0.05)

    monkeypatch.setattr(workers.store.runs, "write_answer", counted)
    workers.start(Script(play))
    answer = workers.wait(workers.ask("q"), "completed", 20)
    assert len(answer.body) == 4000 and len(written) > 5
    assert len([size for size in written if size]) == 1, "once in 3 s, and at the end"


def test_what_stands_in_for_an_answer_is_complete_and_counts_as_a_failure(workers: Workers) -> None:
    def play(history: Sequence[Turn]) -> Iterator[str]:
        yield from ()
        raise ProviderError("The model is asleep.", "The folder says **this**.")

    workers.start(Script(play))
    place = workers.ask("q")
    answer = workers.wait(place, "completed")
    assert (answer.body, answer.error) == ("The folder says **this**.", "The model is asleep.")
    assert not workers.store.runs.is_failing(60_000)
    workers.ask("another")
    with gevent.Timeout(5, AssertionError("two of them are a failing provider")):
        while not workers.store.runs.is_failing(60_000):
            gevent.sleep(0.02)
