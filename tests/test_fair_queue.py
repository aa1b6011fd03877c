"""Who asked least lately is next, a full queue is left by who asked most, and nobody's turn is lost."""

from collections.abc import Callable

import gevent
import pytest

from chatapp import fair_queue
from chatapp.accounts.hashing import Hashing
from chatapp.fair_queue import Attempts, FairQueue, Full
from chatapp.middleware import LONGEST_INTERVAL_S, PAGE_INTERVAL_S, Pacer


def asks(queue: FairQueue, address: str, done: list[str], has_left: bool = False) -> gevent.Greenlet:
    """One that waits for its turn, from an address."""

    def wait() -> None:
        try:
            queue.wait(queue.attempts.count(address), has_left=lambda: has_left)
            done.append(address)
        except Full:
            done.append(f"{address} refused")

    greenlet = gevent.spawn(wait)
    gevent.sleep(0)
    return greenlet


def let_all(queue: FairQueue) -> None:
    while queue.let_next():
        gevent.sleep(0)
    gevent.sleep(0)


def test_one_that_asks_for_the_first_time_goes_before_all_that_asked_before() -> None:
    queue, done = FairQueue(10), list[str]()
    for address in ("eve", "eve", "eve", "bob", "ada"):
        asks(queue, address, done)
    let_all(queue)
    assert done == ["eve", "bob", "ada", "eve", "eve"]


def test_one_that_has_left_comes_after_all_others() -> None:
    queue, done = FairQueue(10), list[str]()
    asks(queue, "gone", done, has_left=True)
    for address in ("eve", "eve", "ada"):
        asks(queue, address, done)
    let_all(queue)
    assert done == ["eve", "ada", "eve", "gone"]


def test_where_all_places_are_taken_the_one_that_asked_most_goes() -> None:
    queue, done = FairQueue(2), list[str]()
    for address in ("eve", "eve", "ada", "eve"):
        asks(queue, address, done)
    gevent.sleep(0)
    assert done == ["eve refused", "eve refused"]
    let_all(queue)
    assert done[2:] == ["eve", "ada"]


def test_the_turn_of_one_that_is_ended_is_the_next_ones() -> None:
    queue, done = FairQueue(10), list[str]()
    first, second = asks(queue, "eve", done), asks(queue, "bob", done)
    asks(queue, "ada", done)
    second.kill()
    first.kill(block=False)  # at the moment when its turn comes
    assert queue.let_next()
    gevent.sleep(0.01)
    assert done == ["ada"] and not queue


def test_after_one_that_is_ended_at_its_turn_the_next_password_is_hashed() -> None:
    """Nobody waited behind it; hashing counted as busy for ever."""
    hashing, done = Hashing(), list[str]()

    def hash_one(name: str, then: Callable[[], object] = lambda: None) -> None:
        with hashing._turn(name, lambda: False):
            gevent.sleep(0.01)
            then()
        done.append(name)

    first = gevent.spawn(hash_one, "ada", lambda: second.kill(block=False))
    gevent.sleep(0)
    second = gevent.spawn(hash_one, "bob")
    gevent.joinall([first, second], timeout=5)
    gevent.spawn(hash_one, "eve").join(timeout=2)
    assert done == ["ada", "eve"]


def test_attempts_are_forgotten_by_half_and_right_ones_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(fair_queue.time, "monotonic", lambda: now)
    queue = FairQueue(1)
    assert [queue.attempts.count("eve") for _ in range(4)] == [1, 2, 3, 4]
    assert queue.attempts.count("eve", -1) == 3 and queue.attempts.count("ada") == 1
    now += fair_queue.HALF_LIFE_S
    assert queue.attempts.count("eve", 0) == 1.5


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::1", "0.0.0.1", False),
        ("", "", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, is_same: bool) -> None:
    queue = FairQueue(1)
    queue.attempts.count(one)
    assert (queue.attempts.count(other) > 1.5) is is_same


def test_the_counted_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "MOST_ADDRESSES", 3)
    queue = FairQueue(1)
    for number in range(10):
        queue.attempts.count(f"10.0.0.{number}")
    assert queue.attempts.count("10.0.0.9", 0) > 0.9 and queue.attempts.count("10.0.0.1", 0) == 0


def test_requests_of_strangers_begin_some_time_apart() -> None:
    pace, began = Pacer(PAGE_INTERVAL_S, 100, Attempts()), list[float]()
    clock: Callable[[], float] = fair_queue.time.monotonic

    def ask() -> None:
        pace.wait({"REMOTE_ADDR": "10.0.0.1"})
        began.append(clock())

    gevent.joinall([gevent.spawn(ask) for _ in range(10)], raise_error=True)
    assert began[-1] - began[0] > 8 * PAGE_INTERVAL_S
    gevent.sleep(2 * LONGEST_INTERVAL_S)
    others = list[int]()
    gevent.spawn(others.append, 1)
    pace.wait({"REMOTE_ADDR": "10.0.0.1"})
    assert not others, "one that comes alone waits for nobody"
