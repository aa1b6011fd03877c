"""What another process committed is heard of, whoever finds it first, and also when looking fails in between."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatapp import create_app
from chatapp.bus import ACCESS, Bus, session_topic
from chatapp.config import Settings
from chatapp.house import House
from chatapp.store.watch import Watcher


@pytest.fixture
def houses(tmp_path: Path) -> Iterator[tuple[House, House]]:
    """Two workers on one database; nobody looks by himself."""
    pair = tuple(create_app(Settings(data_dir=tmp_path)).extensions["chatapp"] for _ in range(2))
    yield pair  # type: ignore[misc]
    for house in pair:
        house.store.close()


class Listener:
    """Counts what a worker publishes of one topic."""

    def __init__(self, bus: Bus, topic: int) -> None:
        self.count = 0
        bus.subscribe(topic, self)

    def __call__(self, _topic: int) -> None:
        self.count += 1


def quiet_watcher(house: House, monkeypatch: pytest.MonkeyPatch) -> Watcher:
    """A watcher that looks when it is told to."""
    watcher = Watcher(house.store.database, house.bus, 1)
    monkeypatch.setattr(watcher, "_watch", lambda: None)
    watcher.start()
    return watcher


def test_news_that_a_poll_finds_before_the_watcher_wakes_the_others(
    houses: tuple[House, House], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = houses
    ada = there.store.people.add_admin("Ada", "ada@example.org", "x").id
    place = there.chat.create(ada, str(uuid.uuid4()))
    watcher = quiet_watcher(here, monkeypatch)
    here.store.database.head(place.feed)
    other = Listener(here.bus, place.feed)
    posted = there.chat.post(ada, place.uuid, str(uuid.uuid4()), "hello")
    assert here.store.database.head(place.feed, fresh=True) >= posted.revision
    watcher.look()
    assert other.count == 1, "woken by the poll that was quicker, and once"
