"""The promises hold in thousands of simulated schedules, and the simulator finds the bugs that it should find."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulation.bugs import BUGS
from simulation.many import run_many
from simulation.schedule import FAULTS, Lab

SCHEDULES = int(os.environ.get("LAB_SCHEDULES", "1200"))
PARTS = 5  # of these schedules, so that a failure names its part soon
FOUND_WITHIN = 600
TESTS = Path(__file__).parent


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_all_promises_hold_in_many_schedules(part: int) -> None:
    """Nothing acknowledged is lost, nothing is there twice, order is kept, everybody ends with the store's text."""
    each = SCHEDULES // PARTS
    summary = run_many(range(part * each, (part + 1) * each), workers=1)
    print(summary.text())
    assert summary.schedules == each
    assert not summary.failures, summary.text()
    if SCHEDULES >= 1200:
        unused = {fault for fault in FAULTS if not summary.facts[fault]}
        assert not unused and summary.facts["connected"] and summary.facts["polling"]


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    """A seed at which the broken copy fails is found soon, and the real code holds at the same seed."""
    lab = Lab(BUGS[bug]())
    every = 3 if "cut" in bug else 1  # in every third schedule parts of changes are short
    found = next((seed for seed in range(0, every * FOUND_WITHIN, every) if lab.run(seed).problems), None)
    assert found is not None, f"not within {FOUND_WITHIN} schedules"
    print(f"{bug}: seed {found}, {lab.run(found).problems[0][:300]}")
    assert not Lab().run(found).problems


def test_a_conversation_whose_first_message_a_crash_took_is_begun_again() -> None:
    """Found by 43,600 schedules: nothing had kept it, and the person is there to write it once more."""
    assert Lab().run(38891).problems == []


def test_a_seed_replays_exactly() -> None:
    """The same seed gives the same trace: after other schedules, on a fresh database, and in another process."""
    lab = Lab()
    seeds = [7, 8, 9, 7]
    digests = [lab.run(seed).digest for seed in seeds]
    assert digests[0] == digests[3] and len(set(digests)) == 3
    assert Lab().run(9).digest == digests[2]
    script = (
        "import json; from simulation.schedule import Lab; print(json.dumps([Lab().run(s).digest for s in (8, 7)]))"
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "77"}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(found.stdout) == [digests[1], digests[0]]


def test_a_violation_names_the_command_that_replays_it() -> None:
    """What a person needs to see the failure again."""
    from simulation.many import Summary

    lab = Lab(BUGS["outbox dropped at reload"]())
    summary = Summary()
    for seed in range(FOUND_WITHIN):
        summary.add(lab.run(seed))
        if summary.failures:
            break
    [seed] = summary.failures
    assert f"python -m simulation {seed}" in summary.text()
