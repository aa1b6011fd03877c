"""A client's subscriptions, their cursors, and the fan-out of changes; without I/O.

The bus marks a feed as dirty; the transport asks for the next update when it can write. There is no queue of content: a
feed is read only at that moment, so a slow reader gets the newest state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from sys import getsizeof
from typing import Any, Protocol

from chatapp.bus import Bus, Wake
from chatapp.cache import Cache
from chatapp.chat import Chat, Gone
from chatapp.store import Changes, Store
from chatapp.transports.rendering import SHORT, Renderer

LIST = "list"  # the name of a person's list feed on the wire
MOST_FEEDS = 100  # of one connection; far above a person's open tabs
NO_CURSOR = -1  # unequal to every reader's
MOST_CACHED = 512  # frames, by feed and cursor
MOST_CACHED_BYTES = 16 << 20  # in total: one frame of long messages can have megabytes


@dataclass(slots=True)
class Update:
    """A frame, and the reader's cursor after it. `frame` is None if nothing is new."""

    frame: str | None
    cursor: int
    more: bool = False
    encoded: bytes | None = None  # as a WebSocket frame, cached for all readers
    deflated: bytes | None = None  # the same, compressed
    compresses: bool = True  # False for text of several conversations: the length would leak content


class TooManyFeeds(Exception):
    """The connection has MOST_FEEDS subscriptions."""


class StaleCursor(Exception):
    """A cursor beyond the feed's end, of another database."""


class Reader:
    """A reader of feeds for connections: checks permission, then shares one frame between readers."""

    def __init__(self, store: Store, chat: Chat, renderer: Renderer) -> None:
        self._conversations, self._database = store.conversations, store.database
        self._chat = chat
        self._renderer = renderer
        self._frames: Cache[tuple[int, int, bool], tuple[int, Update]] = Cache(MOST_CACHED, MOST_CACHED_BYTES)
        self._revisions = store.database.revisions
        self.generation = 0  # of permissions: a check of an earlier one is invalid
        store.database.on_access_change(self._invalidate_permissions)

    def _invalidate_permissions(self) -> None:
        self.generation += 1

    def feed(self, person: int, name: str) -> int:
        """Return the number of a feed that this person may read. Raises Gone."""
        if name == LIST:
            return self._conversations.list_feed(person)
        return self._chat.place(person, name).feed

    def read(self, person: int, name: str, cursor: int, is_short: bool = False) -> Update:
        """Return the changes after a cursor; if there are none, without the database. Raises Gone, StaleCursor."""
        ref = None if name == LIST else self._chat.place(person, name)
        feed = ref.feed if ref else self._conversations.list_feed(person)
        head = self._database.revision(feed)
        if cursor > head:  # another process may have committed since the last notice
            head = self._database.revision(feed, reread=True)
        if cursor > head:
            raise StaleCursor
        if cursor == head:
            return Update(None, cursor)
        cached = self._frames.get((feed, cursor, is_short))
        if cached is not None and cached[0] == head:
            return cached[1]
        changes: Changes[Any] = self._chat.changes(ref, cursor) if ref else self._chat.entries(person, cursor)
        frame = self._renderer.feed(name, changes, is_short)
        update = Update(frame, changes.end, changes.more, compresses=name != LIST)
        size = 3 * getsizeof(update.frame) + getsizeof(update)  # with room for `encoded` and `deflated`
        self._frames.put((feed, cursor, is_short), (head, update), size)
        return update

    def shared(self, feed: int, cursor: int, is_short: bool) -> Update | None:
        """Return the cached update after a cursor, if it is complete and current. Does not check permission."""
        cached = self._frames.get((feed, cursor, is_short))
        if cached is None or cached[0] != self._revisions.get(feed):
            return None
        update = cached[1]
        return None if update.more or update.frame is None else update


class Subscription:
    """One subscriber's feed and cursor. It is the callback of the bus: a call marks the feed as dirty."""

    __slots__ = ("cursor", "feed", "generation", "is_confirmed", "is_dirty", "name", "subscriber")

    def __init__(self, subscriber: Subscriber, name: str, feed: int, cursor: int) -> None:
        self.subscriber = subscriber
        self.name = name
        self.feed = feed
        self.cursor = cursor
        self.is_dirty = False
        self.is_confirmed = False  # the first frame, which confirms the subscription, is sent
        self.generation = -1  # of permissions, at the last check

    def __call__(self, _topic: int) -> None:
        """Mark the feed as changed, and schedule a flush."""
        if self.mark():
            self.subscriber.transport.wake()

    def mark(self) -> bool:
        """Mark the feed as changed. Return False if it was already."""
        if self.is_dirty:
            return False
        self.is_dirty = True
        self.subscriber.dirty += (self,)
        return True


def broadcast(topic: int, wakes: Iterable[Wake]) -> None:
    """Push a topic's update to its subscribers: a cached frame if possible, else a flush of the transport.

    A message may have thousands of readers; each costs a few look-ups and the write.
    """
    cursor, is_short, update = NO_CURSOR, False, None
    for wake in wakes:
        if not isinstance(wake, Subscription):
            wake(topic)
            continue
        subscriber = wake.subscriber
        reader = subscriber.reader
        if wake.cursor != cursor or subscriber.is_short != is_short:
            cursor, is_short = wake.cursor, subscriber.is_short
            update = reader.shared(topic, cursor, is_short)
        is_idle = not (wake.is_dirty or subscriber.dirty or subscriber.replies)
        may_push = is_idle and wake.generation == reader.generation
        if update is not None and may_push and subscriber.transport.push(update):
            wake.cursor = update.cursor
        else:
            wake.mark()  # a call would queue a second flush
            subscriber.transport.flush()
            cursor = NO_CURSOR  # the flush may have blocked, and the cache have changed


class Transport(Protocol):
    """The connection that a subscriber writes to."""

    def wake(self) -> None:
        """Schedule a flush."""

    def recheck_session(self) -> None:
        """Check the session before the next write: it may have ended."""

    def flush(self) -> None:
        """Write pending frames if there is room."""

    def push(self, update: Update) -> bool:
        """Write an update now; return False, without writing, if anything else must come first."""


class NoTransport:
    """The transport of a closed subscriber; writes nothing."""

    def wake(self) -> None:
        """Do nothing."""

    recheck_session = flush = wake

    def push(self, _update: Update) -> bool:
        """Do nothing."""
        return False


NO_TRANSPORT = NoTransport()


class Subscriber:
    """A connection's subscriptions and pending frames.

    Collections are tuples: thousands of idle connections share the empty one.
    """

    __slots__ = ("_bus", "_subscriptions", "dirty", "is_short", "person", "reader", "replies", "transport")

    def __init__(self, reader: Reader, bus: Bus, person: int, transport: Transport) -> None:
        self.person = person
        self.transport = transport
        self.replies: tuple[str, ...] = ()  # pending; bounded by the transport, which stops reading
        self.dirty: tuple[Subscription, ...] = ()  # with changes; first in, first out, so that no feed starves
        self.reader = reader
        self._bus = bus
        self._subscriptions: tuple[Subscription, ...] = ()
        self.is_short = False

    def __call__(self, _topic: int) -> None:
        """Have the transport check the session; the bus calls this at its end."""
        self.transport.recheck_session()

    def reply(self, frame: str) -> None:
        """Add a frame to be written before updates."""
        self.replies += (frame,)

    def subscribe(self, name: str, cursor: int, wants_short: bool = False) -> None:
        """Subscribe to a feed from a cursor; the latest call decides on the form. Raises Gone, TooManyFeeds."""
        self.unsubscribe(name)
        if len(self._subscriptions) >= MOST_FEEDS:
            raise TooManyFeeds
        feed = self.reader.feed(self.person, name)
        subscription = Subscription(self, name, feed, cursor)
        self._subscriptions += (subscription,)
        self.is_short = wants_short and are_distinct([subscription.name for subscription in self._subscriptions])
        self._bus.subscribe(feed, subscription)
        subscription(feed)

    def unsubscribe(self, name: str) -> None:
        """Unsubscribe from a feed, if subscribed."""
        for subscription in self._subscriptions:
            if subscription.name == name:
                self._end(subscription)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in self._subscriptions:
            self._end(subscription)

    def _end(self, subscription: Subscription) -> None:
        subscription.is_dirty = True  # makes a pending notice do nothing
        self._bus.unsubscribe(subscription.feed, subscription)
        self._subscriptions = _without(self._subscriptions, subscription)
        self.dirty = _without(self.dirty, subscription)

    def abandon(self) -> None:
        """Close, and break the reference cycle with the transport."""
        self.close()
        self.transport = NO_TRANSPORT

    def next_update(self) -> tuple[str, Update | Exception] | None:
        """Return the next feed's name and update, or the error that ended its subscription; None if there is none."""
        while self.dirty:
            subscription, self.dirty = self.dirty[0], self.dirty[1:]
            subscription.is_dirty = False
            generation = self.reader.generation
            try:
                update = self.reader.read(self.person, subscription.name, subscription.cursor, self.is_short)
            except (Gone, StaleCursor) as error:
                self.unsubscribe(subscription.name)
                return subscription.name, error
            if subscription not in self._subscriptions:
                continue  # unsubscribed, or subscribed again, during the read
            subscription.cursor, subscription.generation = update.cursor, generation
            if update.more and not subscription.is_dirty:
                subscription.is_dirty = True
                self.dirty += (subscription,)
            if update.frame is not None or not subscription.is_confirmed:
                subscription.is_confirmed = True
                return subscription.name, update
        return None

    def feeds(self) -> int:
        """Return the number of subscriptions."""
        return len(self._subscriptions)


def are_distinct(names: Collection[str]) -> bool:
    """Return True if these feeds can be told apart by the short form of their names."""
    return len({name[:SHORT] for name in names}) == len(names)


def _without(subscriptions: tuple[Subscription, ...], removed: Subscription) -> tuple[Subscription, ...]:
    return tuple(subscription for subscription in subscriptions if subscription is not removed)
