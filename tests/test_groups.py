"""Changes that come together are committed together; each has its own outcome."""

import sqlite3
import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from chatapp.chat import ChatError
from chatapp.parts import Parts
from chatapp.store.database import MOST_REVISIONS

PEOPLE = 12


SETTINGS = {"assistant": "off"}


@pytest.fixture
def person(parts: Parts) -> int:
    return parts.store.people.add_first_admin("Ada", "ada@example.org", "x").id


@pytest.fixture
def conversation(parts: Parts, person: int) -> str:
    name = str(uuid.uuid4())
    parts.chat.create(person, name)
    return name


class Commits:
    """Counts the commits of the chat's database, and can fail one."""

    def __init__(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.fails = 0, False
        commit = parts.store.database._commit

        def counted(*what: Any) -> None:
            self.count += 1
            if self.fails:
                raise sqlite3.OperationalError("disk I/O error")
            commit(*what)

        monkeypatch.setattr(parts.store.database, "_commit", counted)


@pytest.fixture
def commits(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Commits:
    return Commits(parts, monkeypatch)


def post_at_once(parts: Parts, posts: list[tuple[int, str, str, str]]) -> list[Future[Any]]:
    """All of them while somebody else writes, so that they wait for each other."""
    database = parts.store.database
    with ThreadPoolExecutor(len(posts)) as pool:
        with database._writer:
            futures = [pool.submit(parts.chat.post, *post) for post in posts]
            waiting = threading.Event()
            while len(database._jobs) < len(posts) and not waiting.wait(0.01):
                pass
        return futures


@pytest.mark.timeout(30)
def test_posts_that_come_together_are_one_commit_in_their_order(
    parts: Parts, person: int, conversation: str, commits: Commits
) -> None:
    posts = [(person, conversation, str(uuid.uuid4()), f"message {n}") for n in range(PEOPLE)]
    futures = post_at_once(parts, posts)
    posted = [future.result(1) for future in futures]
    assert commits.count == 1
    assert len({one.position for one in posted}) == PEOPLE
    changes = parts.chat.changes(parts.chat.place(person, conversation), 1)
    assert {one.client_id for one in changes.items} == {client_id for _, _, client_id, _ in posts}


@pytest.mark.timeout(30)
def test_a_bad_post_fails_alone(parts: Parts, person: int, conversation: str, commits: Commits) -> None:
    known = str(uuid.uuid4())
    parts.chat.post(person, conversation, known, "first")
    commits.count = 0
    woken: list[int] = []
    foreign = str(uuid.uuid4())
    good = [(person, conversation, str(uuid.uuid4()), f"good {n}") for n in range(5)]
    bad = [(person, conversation, known, "another text"), (person, foreign, str(uuid.uuid4()), "nowhere")]
    parts.bus.subscribe(parts.chat.place(person, conversation).feed, woken.append)
    futures = post_at_once(parts, [*good[:2], bad[0], *good[2:4], bad[1], *good[4:]])
    codes = [error.code if isinstance(error := future.exception(1), ChatError) else error for future in futures]
    assert codes == [None, None, "conflict", None, None, "gone", None]
    assert commits.count == 1
    assert len(woken) == 1, "one notice for all"
    texts = [one.body for one in parts.chat.changes(parts.chat.place(person, conversation), 1).items]
    assert sorted(texts) == ["first", *(f"good {n}" for n in range(5))]


@pytest.mark.timeout(30)
def test_what_a_failed_work_wrote_is_undone(parts: Parts, person: int, conversation: str) -> None:
    database, place = parts.store.database, parts.chat.place(person, conversation)
    before = database.revision(place.feed, reread=True)

    def breaks(tx: Any) -> None:
        tx.bump(place.feed)
        raise KeyError("half done")

    with pytest.raises(KeyError):
        database.group_commit(breaks)
    assert database.revision(place.feed, reread=True) == before
    assert parts.chat.post(person, conversation, str(uuid.uuid4()), "next").position == before + 1


@pytest.mark.timeout(30)
def test_a_commit_that_fails_is_acknowledged_to_nobody(
    parts: Parts, person: int, conversation: str, commits: Commits
) -> None:
    commits.fails = True
    posts = [(person, conversation, str(uuid.uuid4()), f"message {n}") for n in range(PEOPLE)]
    for future in post_at_once(parts, posts):
        assert isinstance(future.exception(1), sqlite3.OperationalError)
    commits.fails = False
    assert parts.chat.changes(parts.chat.place(person, conversation), 1).items == ()
    assert all(future.result(1).created for future in post_at_once(parts, posts)), "and may be sent again"


class Ended(BaseException):
    """As gevent ends a greenlet: no Exception."""


@pytest.mark.timeout(30)
@pytest.mark.parametrize("moment", ["before it begins", "in the transaction", "before the commit"])
def test_a_leader_that_is_ended_stops_nobody(
    parts: Parts, person: int, conversation: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What was to be committed with it says so, and the next change is made by the next who comes."""
    db, posts = parts.store.database, [(person, conversation, str(uuid.uuid4()), f"message {n}") for n in range(3)]

    def end(*_: object) -> None:
        raise Ended

    with monkeypatch.context() as broken:
        if moment == "before it begins":
            broken.setattr(db, "_commit_group", end)
        elif moment == "before the commit":
            broken.setattr(db, "_commit", end)
        with pytest.raises(Ended):
            db.group_commit(end if moment == "in the transaction" else lambda tx: tx.bump(1))
    assert all(future.result(5).created for future in post_at_once(parts, posts))


@pytest.mark.timeout(30)
def test_those_in_the_group_of_an_ended_leader_are_told(
    parts: Parts, person: int, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = [(person, conversation, str(uuid.uuid4()), f"message {n}") for n in range(3)]
    with monkeypatch.context() as broken:

        def end(*_: object) -> None:
            raise Ended

        broken.setattr(parts.store.database, "_commit", end)
        problems = [future.exception(5) for future in post_at_once(parts, posts)]
    assert sorted(type(problem).__name__ for problem in problems) == ["Ended", "RuntimeError", "RuntimeError"]
    assert all(future.result(5).created for future in post_at_once(parts, posts)), "and may be sent again"


@pytest.mark.timeout(30)
def test_revisions_of_many_feeds_are_bounded_and_read_again(parts: Parts, person: int, conversation: str) -> None:
    database, place = parts.store.database, parts.chat.place(person, conversation)
    revision = database.revision(place.feed)
    database.note_revisions({number: 1 for number in range(1_000_000, 1_000_000 + MOST_REVISIONS + 10)})
    assert len(database.revisions) <= MOST_REVISIONS
    assert place.feed not in database.revisions, "the one noted longest ago went"
    assert database.revision(place.feed) == revision
    newest = parts.chat.post(person, conversation, str(uuid.uuid4()), "hello").revision
    assert newest > revision
    assert database.revisions[place.feed] >= newest
