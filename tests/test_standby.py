"""A function that stands by in a greenlet: it runs whenever it is asked for, whatever became of it before."""

import gevent
import pytest

from chatapp.concurrency import ParkedWorker


def test_one_that_was_ended_before_it_began_stands_by_again() -> None:
    runs: list[int] = []
    standby = ParkedWorker(lambda: runs.append(1))
    standby.ask()
    assert standby._greenlet is not None
    standby._greenlet.kill()
    standby.ask()
    gevent.sleep(0.01)
    assert runs == [1]
    standby.ask()
    gevent.sleep(0.01)
    assert runs == [1, 1]


def test_one_that_failed_stands_by_again(capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[int] = []

    def fails_once() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise KeyError("once")

    standby = ParkedWorker(fails_once)
    for _ in range(3):
        standby.ask()
        gevent.sleep(0.01)
    assert runs == [1, 1, 1]
    assert "KeyError: 'once'" in capsys.readouterr().err
