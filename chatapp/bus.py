"""Publish and subscribe within a process. A notice carries a topic's number, never content.

A lost, doubled or late notice can delay a change, never lose or repeat it: subscribers read from the store.
`store.watch` publishes the commits of other processes on this host.
"""

from collections.abc import Callable, Iterable, Iterator

# A feed's topic is its number, from 1. These two also have rows in `feeds`, for other processes.
RUNS = 0  # an answer is queued, asked to stop, or has ended
ACCESS = -1  # permissions have changed, or a session has ended

Wake = Callable[[int], None]


def session_topic(session: int) -> int:
    """Return the topic of a session's end."""
    return ACCESS - session


class Bus:
    """A registry of callbacks by topic. They run in the publisher's greenlet and must not block.

    `on_broadcast` is called instead if a feed has several; it must call each of them, perhaps later.
    """

    def __init__(self) -> None:
        # A dictionary only for several callbacks: thousands of topics have one.
        self._wakes: dict[int, Wake | dict[Wake, None]] = {}
        self.on_broadcast: Callable[[int, Iterator[Wake]], None] = _wake_all
        self.published = 0  # number of calls; unchanged from a read to a subscription, nothing was missed between

    def subscribe(self, topic: int, wake: Wake) -> None:
        """Call `wake(topic)` at each notice. Subscribing again changes nothing."""
        found = self._wakes.get(topic)
        if found is None or found == wake:
            self._wakes[topic] = wake
        elif isinstance(found, dict):
            found[wake] = None
        else:
            self._wakes[topic] = {found: None, wake: None}

    def unsubscribe(self, topic: int, wake: Wake) -> None:
        """Remove a callback, if subscribed."""
        found = self._wakes.get(topic)
        if isinstance(found, dict):
            found.pop(wake, None)
        if not found or found == wake:
            self._wakes.pop(topic, None)

    def publish(self, topics: Iterable[int]) -> None:
        """Call the callbacks of these topics."""
        self.published += 1
        for topic in topics:
            found = self._wakes.get(topic)
            if isinstance(found, dict):
                # The end of an access takes effect before anything else is written.
                (self.on_broadcast if topic > RUNS else _wake_all)(topic, iter(tuple(found)))
            elif found is not None:
                found(topic)

    def topics(self) -> int:
        """Return the number of topics with subscribers."""
        return len(self._wakes)


def _wake_all(topic: int, wakes: Iterator[Wake]) -> None:
    for wake in wakes:
        wake(topic)
