"""The sweep that writes to all: it gives way, is relieved where it waits, and writes to nobody who has left."""

import io
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import pytest

from chatapp.bus import Bus
from chatapp.parts import Parts
from chatapp.store import AuthSession, Lives, StorageUnavailable, database
from chatapp.transports import connections, event_socket, long_poll
from chatapp.transports.connections import Connections
from chatapp.transports.long_poll import LongPoll, Poll
from chatapp.transports.subscriptions import Subscriber, Update, broadcast

BUSY_S = 0.0001  # what one flush takes
FLUSHES = 2000


class Busy:
    """Something to flush that takes a while."""

    def flush(self) -> None:
        end = time.process_time() + BUSY_S
        while time.process_time() < end:
            pass


class Waits:
    """Something to flush that waits for something."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def flush(self) -> None:
        gevent.sleep(self.seconds)


class Told:
    def __init__(self) -> None:
        self.at: list[float] = []

    def flush(self) -> None:
        self.at.append(time.monotonic())


@pytest.mark.timeout(30)
def test_a_long_sweep_lets_the_loop_look_at_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"x")
    slices, most = [0], [0]

    def sleep(seconds: float) -> None:
        slices[0] += 1
        most[0] = max(most[0], slices[0])
        gevent.sleep(seconds)

    counted = SimpleNamespace(sleep=sleep, spawn=gevent.spawn, get_hub=gevent.get_hub)
    watcher = gevent.get_hub().loop.io(ours, 1)
    watcher.start(lambda: slices.__setitem__(0, 0))
    gevent.sleep(0.01)
    monkeypatch.setattr(connections, "gevent", counted)
    lives = Connections(1.0, lambda *_: None)
    for _ in range(FLUSHES):
        lives.wake(Busy().flush)
    while lives._queue:
        gevent.sleep(0.05)
    watcher.stop()
    watcher.close()
    os.close(ours)
    os.close(theirs)
    print(most[0], "slices while a socket was readable")
    assert 0 < most[0] <= 3


@pytest.mark.timeout(30)
def test_a_sweep_that_waits_is_relieved_and_costs_nothing_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    lives, looks, told = Connections(1.0, lambda *_: None), [0], Told()
    relieve = lives._check_sweeps

    def counted() -> None:
        looks[0] += 1
        relieve()

    monkeypatch.setattr(lives, "_check_sweeps", counted)
    lives.wake(Told().flush)
    gevent.sleep(0.05)  # the timer has run once, and rests
    began = time.monotonic()
    lives.wake(Waits(0.4).flush)
    gevent.sleep(0.1)
    lives.wake(told.flush)  # long after the first look
    gevent.sleep(0.5)
    assert told.at and told.at[0] - began < 0.3, "it did not wait for the first"
    assert looks[0] < 0.6 / connections.WATCHDOG_S + 10
    looks[0] = 0
    gevent.sleep(0.1)
    assert looks[0] == 0, "nobody sweeps, nobody looks"


class Pages:
    """A reader of feeds that knows one frame."""

    def __init__(self) -> None:
        self.generation = 0
        self.kept: dict[int, Update] = {}

    def feed(self, _person: int, _name: str) -> int:
        return 7

    def shared(self, _feed: int, cursor: int, _is_short: bool) -> Update | None:
        return self.kept.get(cursor)

    def read(self, _person: int, _name: str, cursor: int, _is_short: bool) -> Update:
        return Update(f"{cursor} to 5", 5) if cursor < 5 else Update(None, 5)


class Owns:
    """A transport that keeps what it writes."""

    def __init__(self) -> None:
        self.written: list[str | None] = []
        self.wakes = 0
        self.subscriber: Any = None

    def wake(self) -> None:
        self.wakes += 1

    def recheck_session(self) -> None:
        pass

    def flush(self) -> None:
        while (found := self.subscriber.next_update()) is not None:
            self.written.append(found[1].frame)

    def push(self, news: Update) -> bool:
        self.written.append(news.frame)
        return True


def reading(bus: Bus, pages: Pages) -> tuple[Owns, Subscriber]:
    """Somebody who lacks what came from revision 4 to 5."""
    owner = Owns()
    peer = Subscriber(pages, bus, 1, owner)  # type: ignore[arg-type]
    owner.subscriber = peer
    peer.subscribe("conversation", 5)
    owner.flush()
    owner.written.clear()
    peer._subscriptions[0].cursor, peer._subscriptions[0].generation = 4, 0
    return owner, peer


@pytest.mark.parametrize("then", ["stays", "unsubscribes", "starts over", "leaves"])
def test_news_on_their_way_reach_only_who_still_follows(then: str) -> None:
    bus, pages = Bus(), Pages()
    pages.kept = {4: Update("4 to 5", 5)}
    crowds: list[Any] = []
    bus.on_broadcast = lambda topic, wakes: crowds.append((topic, wakes))
    (owner, peer), other = reading(bus, pages), reading(bus, pages)
    bus.publish([7])
    if then == "unsubscribes":
        peer.unsubscribe("conversation")
    elif then == "starts over":
        peer.subscribe("conversation", 0)
    elif then == "leaves":
        peer.abandon()
    broadcast(*crowds[0])
    owner.flush()
    assert other[0].written == ["4 to 5"]
    assert owner.written == {"stays": ["4 to 5"], "starts over": ["0 to 5"]}.get(then, [])
    assert peer.dirty == ()


def test_a_reader_that_is_not_idle_is_flushed_once_a_change() -> None:
    """It is flushed with the others: to wake it as well would flush it a second time, for nothing."""
    bus, pages = Bus(), Pages()
    crowds: list[Any] = []
    bus.on_broadcast = lambda topic, wakes: crowds.append((topic, wakes))
    (owner, peer), _other = reading(bus, pages), reading(bus, pages)
    owner.wakes = 0
    peer.reply("an answer that waits")
    bus.publish([7])
    broadcast(*crowds[0])
    assert (owner.written, owner.wakes) == (["4 to 5"], 0)


# Held polls, in this process


SETTINGS = {"assistant": "off"}


Hold = Callable[..., tuple[LongPoll, socket.socket]]


@pytest.fixture
def hold(parts: Parts) -> Iterator[Hold]:
    """Begins to hold a poll; the poll, and the other end of its socket."""
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
    parts.store.people.add_session(ada, "hash", Lives(3600, 3600, 3600), "127.0.0.1", "")
    sign_in = parts.store.people.session("hash")
    assert isinstance(sign_in, AuthSession)
    conversation = str(uuid.uuid4())
    place = parts.chat.create(ada, conversation)
    ends: list[socket.socket] = []

    def begin(wait_s: float = 5, meanwhile: bool = False) -> tuple[LongPoll, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ends.append(theirs)
        poll = Poll(parts.epoch, {conversation: parts.store.database.revision(place.feed)}, wait_s)
        looked = parts.bus.published
        if meanwhile:
            parts.chat.post(ada, conversation, str(uuid.uuid4()), "between the look and the subscription")
        one = LongPoll(ours.detach(), parts.polls, sign_in, poll)
        one.start("127.0.0.1", "", looked)
        gevent.sleep(0.02)
        return one, theirs

    yield begin
    for theirs in ends:
        theirs.close()
    gevent.sleep(0.1)
    assert parts.connections.long_poll_count == 0, "each was counted once"


def say(parts: Parts, one: LongPoll) -> None:
    for conversation in one._poll.cursors:
        parts.chat.post(one._session.person.id, conversation, str(uuid.uuid4()), "news")
    gevent.sleep(0.1)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("a mistake"), b""), (StorageUnavailable("failed", "disk I/O error"), b"HTTP/1.1 503 ")],
)
def test_a_poll_that_cannot_be_answered_is_ended_and_the_others_are_answered(
    parts: Parts, hold: Hold, monkeypatch: pytest.MonkeyPatch, error: Exception, said: bytes
) -> None:
    (first, its_end), (_, other_end) = hold(), hold()
    now, fails = parts.polls.now, [True]

    def once(*what: Any) -> list[str]:
        if fails and fails.pop():
            raise error
        return now(*what)

    monkeypatch.setattr(parts.polls, "now", once)
    say(parts, first)
    assert first.is_closed and its_end.recv(100)[: len(said) or 1] == said
    assert other_end.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.timeout(30)
def test_what_comes_between_the_look_and_the_subscription_is_not_missed(parts: Parts, hold: Hold) -> None:
    """And where nothing came, it is not looked again: that is a twentieth of a held poll's cost."""
    one, end = hold(wait_s=20, meanwhile=True)
    assert end.recv(4096).startswith(b"HTTP/1.1 200") and one.is_closed
    looks: list[int] = []
    now = parts.polls.now
    parts.polls.now = lambda *what: looks.append(1) or now(*what)  # type: ignore[method-assign, func-returns-value]
    one, end = hold(wait_s=20)
    assert looks == []
    say(parts, one)
    assert end.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("then", ["news again", "its time is over", "it fails"])
def test_a_poll_is_answered_once_even_if_to_look_takes_a_while(
    parts: Parts, hold: Hold, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    wait_s, takes_s = (20.0, 0.3) if then == "news again" else (1.0, 2.5)
    one, end = hold(wait_s)

    def slow(*_: Any) -> list[str]:
        gevent.sleep(takes_s)
        if then == "it fails":
            raise sqlite3.OperationalError("disk I/O error")
        return ["<p>news</p>"]

    monkeypatch.setattr(parts.polls, "now", slow)
    one.wake(0)
    gevent.sleep(0.1)
    one.wake(0)
    gevent.sleep(2 * takes_s)
    got = end.recv(4096)
    assert got.startswith(b"HTTP/1.1 200" if then == "news again" else b"HTTP/1.1 204")
    assert got.count(b"HTTP/1.1") == 1
    assert one.is_closed and end.recv(100) == b""


@pytest.mark.timeout(30)
def test_what_comes_too_early_is_never_a_request_and_costs_the_answer_nothing(parts: Parts, hold: Hold) -> None:
    one, end = hold(wait_s=20)
    end.send(b"GET /next HTTP/1.1\r\n\r\n")
    gevent.sleep(0.05)
    end.send(b"GET /another HTTP/1.1\r\n\r\n")
    say(parts, one)
    got = end.recv(4096)
    assert got.startswith(b"HTTP/1.1 200") and b"\r\nConnection: close\r\n" in got
    assert end.recv(100) == b"", "said to be over before it is closed: else the kernel forgets the answer"
    end.close()
    gevent.sleep(0.1)
    assert one.is_closed


@pytest.mark.timeout(30)
def test_held_polls_are_bounded_and_an_answered_one_makes_room(
    parts: Parts, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = hold(wait_s=20)
    monkeypatch.setattr(long_poll, "MOST_LONG_POLLS", 1)
    unreader = SimpleNamespace(reader=SimpleNamespace(unreader=SimpleNamespace(buf=io.BytesIO())))
    environ = {"SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1", "wsgi.input": unreader}
    with gevent.socket.socket() as asks:
        environ |= {"gunicorn.socket": asks}
        assert not parts.polls.try_detach(environ, one._session, one._poll, "", 0)
        say(parts, one)
        assert len(parts.polls.long_polls) == parts.connections.long_poll_count == 0


@pytest.mark.timeout(30)
def test_a_reader_that_is_slow_but_steady_gets_its_answer(
    parts: Parts, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_poll, "WRITE_S", 0.6)
    monkeypatch.setattr(long_poll, "LINGER_S", 0.3)
    monkeypatch.setattr(event_socket, "LINGER_S", 0.3)
    one, end = hold(wait_s=20)
    size, ready = 2_000_000, []
    monkeypatch.setattr(parts.polls, "now", lambda *_: ready)
    ready.append("x" * size)
    one.wake(0)
    taken, until = 0, time.monotonic() + 15
    while taken < size and time.monotonic() < until:
        gevent.sleep(0.05)
        try:
            taken += len(data := end.recv(40_000))
        except BlockingIOError:
            continue
        assert data, f"cut after {taken:,} bytes"
    assert taken >= size


# Changes that nobody may wait for in vain


def test_a_subscriber_that_fails_leaves_nobody_without_an_outcome(parts: Parts) -> None:
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
    conversation = str(uuid.uuid4())
    feed = parts.chat.create(ada, conversation).feed
    outcomes: list[Any] = []

    def fails(_topic: int) -> None:
        raise ValueError("a subscriber")

    parts.bus.subscribe(feed, fails)
    with pytest.raises(ValueError, match="a subscriber"):
        parts.chat.post_soon(ada, conversation, str(uuid.uuid4()), "hello", outcomes.append)
    parts.bus.unsubscribe(feed, fails)
    assert outcomes[0].outcome().created
    assert parts.chat.post(ada, conversation, str(uuid.uuid4()), "next").created


def test_a_subscriber_that_fails_leaves_nobody_waiting_behind_it(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
    conversation = str(uuid.uuid4())
    feed = parts.chat.create(ada, conversation).feed
    monkeypatch.setattr(database, "has_loop", lambda: True)
    outcomes: list[Any] = []

    def fails(_topic: int) -> None:
        parts.bus.unsubscribe(feed, fails)
        parts.chat.post_soon(ada, conversation, str(uuid.uuid4()), "comes meanwhile", outcomes.append)
        raise ValueError("a subscriber")

    parts.bus.subscribe(feed, fails)
    parts.chat.post_soon(ada, conversation, str(uuid.uuid4()), "hello", outcomes.append)
    gevent.sleep(0.2)
    assert [job.outcome().created for job in outcomes] == [True, True]
