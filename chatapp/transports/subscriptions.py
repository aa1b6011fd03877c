"""The server's side of one connection: an object with events, no socket and no loop of its own.

A transport feeds it frames and asks it what to write; the bus marks its feeds. There is no queue of content: a
reader that is slow gets what is newest when it can take it, because a feed is read only at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sys import getsizeof
from typing import Protocol

from chatapp.bus import Bus, Wake, session_topic
from chatapp.cache import Cache
from chatapp.chat import Chat, Gone
from chatapp.store import Changes, ConversationRef, Store

LIST = "list"  # the name of a person's list feed on the wire
MOST_FEEDS = 100  # one connection may follow; far above the tabs that a person keeps open
NOBODYS = -1  # a cursor that no reader has
MOST_CACHED = 512  # frames kept for readers at the same cursor
MOST_CACHED_BYTES = 16 << 20  # of them together: one of long messages alone can have megabytes


class Encoder(Protocol):
    """What turns changes into a frame."""

    def feed(self, name: str, changes: Changes[object]) -> str:
        """The frame of what changed in a feed."""


@dataclass(slots=True)
class Update:
    """A frame for a reader, and where it takes them. `frame` is None where nothing is new."""

    frame: str | None
    cursor: int
    more: bool = False
    encoded: bytes | None = None  # the frame as a transport writes it, kept by the transport for all readers
    deflated: bytes | None = None  # and for those who take it compressed
    compresses: bool = True  # not where one conversation's text would stand beside another's: the length would tell


class TooManyFeeds(Exception):
    """One connection cannot follow more; another one can."""


class StaleCursor(Exception):
    """The cursor is beyond the feed's end: it is of another database."""


class Reader:
    """Reads feeds for connections: permission first, then the shared frame."""

    def __init__(self, store: Store, chat: Chat, encoder: Encoder) -> None:
        self._store = store
        self._chat = chat
        self._encoder = encoder
        self._frames: Cache[tuple[int, int], tuple[int, Update]] = Cache(MOST_CACHED, MOST_CACHED_BYTES)
        self._revisions = store.database.revisions
        self.generation = 0  # of permissions: what was checked in an earlier one must be checked again
        store.database.on_access_change(self._forget)

    def _forget(self) -> None:
        self.generation += 1

    def feed(self, person: int, name: str) -> int:
        """The number of a feed that this person may read. Raises Gone."""
        if name == LIST:
            return self._store.conversations.list_feed(person)
        return self._chat.place(person, name).feed

    def is_new(self, person: int, name: str, cursor: int) -> bool:
        """Whether a reader at this cursor lacks anything; without the database where the feed is known."""
        return self._store.database.revision(self.feed(person, name)) != cursor

    def read(self, person: int, name: str, cursor: int) -> Update:
        """What a reader at this cursor lacks. Raises Gone, StaleCursor."""
        place = None if name == LIST else self._chat.place(person, name)
        feed = place.feed if place else self._store.conversations.list_feed(person)
        head = self._store.database.revision(feed)
        if cursor > head:  # another process may be ahead of what this one has heard
            head = self._store.database.revision(feed, reread=True)
        if cursor > head:
            raise StaleCursor
        cached = self._frames.get((feed, cursor))
        if cached is not None and cached[0] == head:
            return cached[1]
        update = self._read_feed(person, name, place, cursor)
        size = 3 * getsizeof(update.frame) + getsizeof(update)  # as text, and soon as bytes of both kinds
        self._frames.put((feed, cursor), (head, update), size)
        return update

    def shared(self, feed: int, cursor: int) -> Update | None:
        """What another reader at this cursor got, if it is the newest and all there is. Does not check permission."""
        cached = self._frames.get((feed, cursor))
        if cached is None or cached[0] != self._revisions.get(feed):
            return None
        update = cached[1]
        return None if update.more or update.frame is None else update

    def _read_feed(self, person: int, name: str, place: ConversationRef | None, cursor: int) -> Update:
        changes: Changes[object] = (
            self._chat.changes(place, cursor) if place else self._chat.entries(person, cursor)  # type: ignore[assignment]
        )
        if changes.end == cursor:
            return Update(None, cursor)
        return Update(self._encoder.feed(name, changes), changes.end, changes.more, compresses=name != LIST)


class Subscription:
    """A feed that the other side follows. Calling it says that the feed has news: it is what the bus wakes."""

    __slots__ = ("cursor", "feed", "generation", "is_dirty", "is_greeted", "name", "subscriber")

    def __init__(self, subscriber: Subscriber, name: str, feed: int, cursor: int) -> None:
        self.subscriber = subscriber
        self.name = name
        self.feed = feed
        self.cursor = cursor
        self.is_dirty = False
        self.is_greeted = False  # whether the first answer, which proves the resumption, was given
        self.generation = -1  # of the permissions when this reader's was last checked

    def __call__(self, _topic: int) -> None:
        if not self.is_dirty:
            self.is_dirty = True
            self.subscriber.dirty += (self,)
            self.subscriber.transport.wake()


def broadcast(topic: int, wakes: Iterable[Wake]) -> None:
    """As calling them, but at once: what others at the same cursor had is pushed, and else the owner is flushed.

    Thousands may wait for one message, and for each of them this is a few look-ups and the write.
    """
    cursor, update = NOBODYS, None
    for wake in wakes:
        if not isinstance(wake, Subscription):
            wake(topic)
            continue
        subscriber = wake.subscriber
        reader = subscriber.reader
        if wake.cursor != cursor:
            cursor, update = wake.cursor, reader.shared(topic, wake.cursor)
        is_calm = not (wake.is_dirty or subscriber.dirty or subscriber.replies) and wake.generation == reader.generation
        if update is not None and is_calm and subscriber.transport.push(update):
            wake.cursor = update.cursor
        else:
            wake(topic)
            subscriber.transport.flush()
            cursor = NOBODYS  # it may have waited: what is shared now is another matter


class Transport(Protocol):
    """The transport's side of a connection."""

    def wake(self) -> None:
        """There may be something to write."""

    def recheck_session(self) -> None:
        """The session may have ended."""

    def flush(self) -> None:
        """Write what there is to write, now if there is room."""

    def push(self, update: Update) -> bool:
        """Write this at once; False, and nothing is written, where anything else must come first."""


class NoTransport:
    """Owns what nobody owns any more."""

    def wake(self) -> None:
        """Nothing is written."""

    recheck_session = flush = wake

    def push(self, _news: Update) -> bool:
        """Nothing is written."""
        return False


NO_TRANSPORT = NoTransport()


class Subscriber:
    """One connection's subscriptions and what is to be written to it next.

    What may be empty is a tuple: thousands of idle connections share the one empty tuple there is.
    """

    __slots__ = ("_bus", "_subscriptions", "dirty", "person", "reader", "replies", "transport")

    def __init__(self, reader: Reader, bus: Bus, person: int, transport: Transport) -> None:
        self.person = person
        self.transport = transport
        self.replies: tuple[str, ...] = ()  # control frames; bounded by the transport, which stops reading
        self.dirty: tuple[Subscription, ...] = ()  # feeds with news, in turn, so that a busy feed starves no other
        self.reader = reader
        self._bus = bus
        self._subscriptions: tuple[Subscription, ...] = ()

    def __call__(self, _topic: int) -> None:
        """Told by the bus: the session may have ended."""
        self.transport.recheck_session()

    def follow_session(self, session: int) -> None:
        """Have the owner told when this session may have ended."""
        self._bus.subscribe(session_topic(session), self)

    def forget_session(self, session: int) -> None:
        """Have it told no longer."""
        self._bus.unsubscribe(session_topic(session), self)

    def reply(self, frame: str) -> None:
        """A control frame to be written."""
        self.replies += (frame,)

    def subscribe(self, name: str, cursor: int) -> None:
        """Follow a feed from a cursor. Raises Gone, TooManyFeeds."""
        self.unsubscribe(name)
        if len(self._subscriptions) >= MOST_FEEDS:
            raise TooManyFeeds
        feed = self.reader.feed(self.person, name)
        subscription = Subscription(self, name, feed, cursor)
        self._subscriptions += (subscription,)
        self._bus.subscribe(feed, subscription)
        subscription(feed)

    def unsubscribe(self, name: str) -> None:
        """Follow a feed no longer."""
        for subscription in self._subscriptions:
            if subscription.name == name:
                subscription.is_dirty = True  # a notice that is on its way finds nothing to do
                self._subscriptions = _without(self._subscriptions, subscription)
                self._bus.unsubscribe(subscription.feed, subscription)
                self.dirty = _without(self.dirty, subscription)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in self._subscriptions:
            subscription.is_dirty = True
            self._bus.unsubscribe(subscription.feed, subscription)
        self._subscriptions = self.dirty = ()

    def abandon(self) -> None:
        """The owner has ended. Each would keep the other in memory until the next full collection of garbage."""
        self.close()
        self.transport = NO_TRANSPORT

    def next_update(self) -> tuple[str, Update | Exception] | None:
        """The next feed with something to say."""
        while self.dirty:
            subscription, self.dirty = self.dirty[0], self.dirty[1:]
            subscription.is_dirty = False
            generation = self.reader.generation
            try:
                update = self.reader.read(self.person, subscription.name, subscription.cursor)
            except (Gone, StaleCursor) as error:
                self.unsubscribe(subscription.name)
                return subscription.name, error
            if subscription not in self._subscriptions:
                continue  # meanwhile it was given up, or started over
            subscription.cursor, subscription.generation = update.cursor, generation
            if update.more and not subscription.is_dirty:
                subscription.is_dirty = True
                self.dirty += (subscription,)
            if update.frame is not None or not subscription.is_greeted:
                subscription.is_greeted = True
                return subscription.name, update
        return None

    def feeds(self) -> int:
        """How many feeds are followed."""
        return len(self._subscriptions)


def _without(several: tuple[Subscription, ...], one: Subscription) -> tuple[Subscription, ...]:
    return tuple(other for other in several if other is not one)
