"""The bus wakes, the store answers: a notice carries a topic's number, never content.

A lost, doubled or late notice can delay a change, never lose or repeat it. This first bus is a dictionary in
one process; `store.watch` publishes on it what other processes of this host committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

# A feed's topic is its number, from 1. These two are rows of `feeds`, too, so that other processes notice them.
RUNS = 0  # an answer is queued, is asked to stop, or has ended
ACCESS = -1  # what somebody may see has changed, or a session has ended

Wake = Callable[[int], None]


def session_topic(session: int) -> int:
    """The topic on which the end of a session is told."""
    return ACCESS - session


class Bus:
    """Subscribe to topics and publish them. Callbacks run at once, in the publisher: they must not block.

    `on_crowd` takes over where several wait for a feed; it must come to wake each of them.
    """

    def __init__(self) -> None:
        # One subscriber stands for itself, several in a dictionary: most topics have one, and there are thousands.
        self._wakes: dict[int, Wake | dict[Wake, None]] = {}
        self.on_broadcast: Callable[[int, Iterator[Wake]], None] = _wake_all
        self.published = 0  # how often: who looked and then subscribed, and finds the same number, has missed nothing

    def subscribe(self, topic: int, wake: Wake) -> Callable[[], None]:
        """Call `wake(topic)` at each notice, once however often it subscribes; returns a function that ends it."""
        found = self._wakes.get(topic)
        if found is None or found == wake:
            self._wakes[topic] = wake
        elif isinstance(found, dict):
            found[wake] = None
        else:
            self._wakes[topic] = {found: None, wake: None}
        return partial(self.unsubscribe, topic, wake)

    def unsubscribe(self, topic: int, wake: Wake) -> None:
        """End a subscription, if it is there."""
        found = self._wakes.get(topic)
        if isinstance(found, dict):
            found.pop(wake, None)
        if not found or found == wake:
            self._wakes.pop(topic, None)

    def publish(self, topics: Iterable[int]) -> None:
        """Wake whoever subscribed to these topics."""
        self.published += 1
        for topic in topics:
            found = self._wakes.get(topic)
            if isinstance(found, dict):
                # What ends somebody's access must be known before anything else is written.
                (self.on_broadcast if topic > RUNS else _wake_all)(topic, iter(tuple(found)))
            elif found is not None:
                found(topic)

    def topics(self) -> int:
        """How many topics have subscribers."""
        return len(self._wakes)


def _wake_all(topic: int, wakes: Iterator[Wake]) -> None:
    for wake in wakes:
        wake(topic)
