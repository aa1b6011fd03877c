"""What another process committed is heard of, whoever finds it first, and also when looking fails in between."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatapp import create_app
from chatapp.bus import ACCESS, Bus, session_topic
from chatapp.config import Settings
from chatapp.parts import Parts
from chatapp.store import Lives
from chatapp.store.watch import Watcher


@pytest.fixture
def houses(tmp_path: Path) -> Iterator[tuple[Parts, Parts]]:
    """Two workers on one database; nobody looks by himself."""
    pair = tuple(create_app(Settings(data_dir=tmp_path)).extensions["chatapp"] for _ in range(2))
    yield pair  # type: ignore[misc]
    for parts in pair:
        parts.store.close()


class Listener:
    """Counts what a worker publishes of one topic."""

    def __init__(self, bus: Bus, topic: int) -> None:
        self.count = 0
        bus.subscribe(topic, self)

    def __call__(self, _topic: int) -> None:
        self.count += 1


def quiet_watcher(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Watcher:
    """A watcher that looks when it is told to."""
    watcher = Watcher(parts.store.database, parts.bus, 1)
    monkeypatch.setattr(watcher, "_watch", lambda: None)
    watcher.start()
    return watcher


def test_news_that_a_poll_finds_before_the_watcher_wakes_the_others(
    houses: tuple[Parts, Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = houses
    ada = there.store.people.add_admin("Ada", "ada@example.org", "x").id
    place = there.chat.create(ada, str(uuid.uuid4()))
    watcher = quiet_watcher(here, monkeypatch)
    here.store.database.revision(place.feed)
    other = Listener(here.bus, place.feed)
    posted = there.chat.post(ada, place.uuid, str(uuid.uuid4()), "hello")
    assert here.store.database.revision(place.feed, reread=True) >= posted.revision
    watcher.look()
    assert other.count == 1, "woken by the poll that was quicker, and once"


@pytest.mark.parametrize("fails", ["read", "_ended_sessions"])
def test_what_could_not_be_read_is_looked_at_again(
    houses: tuple[Parts, Parts], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The database is busy or full for a moment: nothing of it is forgotten."""
    there, here = houses
    people = there.store.people
    ada = people.add_admin("Ada", "ada@example.org", "x").id
    place = there.chat.create(ada, str(uuid.uuid4()))
    people.add_session(ada, "hash", Lives(3600, 3600, 3600), "127.0.0.1", "")
    found = people.session("hash")
    assert found is not None
    watcher = quiet_watcher(here, monkeypatch)
    heard = {topic: Listener(here.bus, topic) for topic in (place.feed, ACCESS, session_topic(found.id))}
    there.chat.post(ada, place.uuid, str(uuid.uuid4()), "hello")
    people.end_session("hash")

    def fail(*_: object) -> None:
        raise OSError("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr(watcher if fails.startswith("_") else here.store.database, fails, fail)
        with pytest.raises(OSError, match="away"):
            watcher.look()
    watcher.look()
    assert {topic: listener.count for topic, listener in heard.items()} == dict.fromkeys(heard, 1)
