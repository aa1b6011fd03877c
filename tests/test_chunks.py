"""A reader who is far behind gets the feed in parts, and in the end shows all of it."""

import uuid

import pytest
from lab.elements import parse
from lab.peer import Applied, Feed

from chatapp.parts import Parts
from chatapp.store import ClaimedRun, ConversationRef
from chatapp.store.conversations import MOST_CHANGES

LEASE = "lease"


class Talk:
    """A conversation, what is said in it, and readers of it."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.person = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
        self.place: ConversationRef = parts.chat.create(self.person, str(uuid.uuid4()))
        self.run: ClaimedRun | None = None

    def say(self, count: int = 1) -> list[str]:
        """Post so many messages; their ids."""
        chat, conversation = self.parts.chat, self.place.uuid
        return [chat.post(self.person, conversation, str(uuid.uuid4()), f"number {n}").id for n in range(count)]

    def answer(self, text: str, is_last: bool = False) -> None:
        """The assistant goes on with its answer."""
        runs = self.parts.store.runs
        self.run = self.run or runs.claim_run(LEASE)
        assert self.run is not None
        if is_last:
            runs.end_run(self.run, "completed", text, [(0, text)], None)
            self.run = None
        else:
            runs.write_answer(self.run, text, [(0, text)])

    def read(self, feed: Feed) -> int:
        """Take the next part; the feed's cursor after it."""
        news = self.parts.reader.read(self.person, self.place.uuid, feed.cursor)
        assert news.frame is not None
        reader = Applied()
        reader.feeds[self.place.uuid] = feed
        (element,) = parse(news.frame).elements
        reader.apply(element)
        assert not reader.must_resubscribe, "nothing is missing, and all of it fits"
        assert feed.cursor == news.cursor
        return news.cursor

    def is_shown(self, feed: Feed) -> bool:
        """Whether the reader shows what a page shows that is loaded now, and nothing else among it."""
        fresh = Feed()
        self.read(fresh)
        wanted = fresh.ordered()
        return feed.cursor == fresh.cursor and feed.ordered()[-len(wanted) :] == wanted


@pytest.fixture
def talk(parts: Parts) -> Talk:
    return Talk(parts)


def catch_up(talk: Talk, feed: Feed) -> int:
    """Read until there is nothing more; how many parts it took."""
    end, parts = talk.parts.store.database.revision(talk.place.feed), 0
    while feed.cursor < end:
        talk.read(feed)
        parts += 1
    return parts


def test_an_answer_that_went_on_after_a_cut_is_not_lost(talk: Talk) -> None:
    feed = Feed()
    talk.read(feed)
    talk.say(MOST_CHANGES - 2)
    talk.answer("<p>one")
    talk.say(20)  # the cut falls among these: after the answer's beginning, before its end
    talk.answer("<p>one two</p>", is_last=True)
    assert catch_up(talk, feed) == 2
    assert [m.text for m in feed.ordered() if m.author == "assistant"] == ["one two"]
    assert talk.is_shown(feed)


def test_an_answer_that_goes_on_over_several_cuts_is_patched(talk: Talk) -> None:
    """The reader gets it with the first part, and from then on only what it lacks; a tombstone is among it, too."""
    feed = Feed()
    talk.read(feed)
    said = talk.say(10)
    text = "<p>one"
    talk.answer(text)
    talk.say(MOST_CHANGES)
    talk.read(feed)
    assert [m.text for m in feed.ordered() if m.author == "assistant"] == ["one"]
    for _ in range(2):
        text += " more"
        talk.answer(text)
        talk.say(MOST_CHANGES)
    talk.parts.chat.delete_message(talk.person, talk.place.uuid, said[3])
    talk.answer(text + "</p>", is_last=True)
    assert catch_up(talk, feed) >= 3
    assert talk.is_shown(feed)
    messages = feed.ordered()
    assert len(messages) == 10 + 3 * MOST_CHANGES + 1
    assert [m.text for m in messages if m.author == "assistant"] == ["one more more"]
    assert [m.id for m in messages if m.deleted] == [said[3]]


def test_readers_at_every_cursor_end_with_the_same(talk: Talk) -> None:
    talk.parts.store.conversations.most_changes = 3
    readers = []
    for number in range(4):
        said = talk.say(2)
        for text in ("<p>a", "<p>a 😀 b", "<p>a 😀 c d</p>"):
            talk.answer(text, is_last=text.endswith("</p>"))
            feed = Feed()
            talk.read(feed)
            readers.append(feed)
            talk.say(1)
        talk.parts.chat.delete_message(talk.person, talk.place.uuid, said[number % 2])
    talk.say(1)
    for feed in readers:
        catch_up(talk, feed)
        assert talk.is_shown(feed)
