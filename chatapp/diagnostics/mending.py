"""Networks that were mended: a network test with a ticket saw WebSocket work from inside (docs/protocol.md).

One worker notes it: an event, and everybody's network memory forgives the failures there. Each worker then has the
pages that poll from that network try WebSocket at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import uuid4

from chatapp.accounts.tickets import Ticket
from chatapp.bus import ACCESS, Bus
from chatapp.concurrency import ParkedWorker
from chatapp.store import STORAGE_ERRORS, ConnectionEvent, Store, now_ms
from chatapp.transports.long_poll import Polls

MENDED = "server-mended"  # the event's type
HEARD = "server-heard"  # one page there says that WebSocket works: all others try it, and nobody's memory is changed
AGAIN_MS = 60_000  # a network is mended at most so often: a ticket must not keep everybody busy

log = logging.getLogger("chatapp.mending")


class Mending:
    """This worker's part in the news that a network was mended."""

    def __init__(self, store: Store, bus: Bus, polls: Polls, network_of: Callable[[str], str]) -> None:
        """`network_of`: the key of an address's network."""
        self._store, self._bus, self._polls = store, bus, polls
        self._network_of = network_of
        self._seen: set[str] = set()  # ids of events
        self._looker = ParkedWorker(self._look)

    def start(self) -> None:
        """Follow the news of all workers."""
        self._bus.subscribe(ACCESS, lambda _topic: self._looker.ask())

    def prove(self, ticket: Ticket, address: str) -> bool:
        """Note that WebSocket works from an address. Return True if it is in the ticket's network.

        Raises StorageUnavailable.
        """
        network = self._network_of(address)
        if not network or network != ticket.network:
            return False
        if not self._lately(MENDED, network):
            event = ConnectionEvent(
                str(uuid4()), 0, "", MENDED, "websocket", None, None, None, now_ms(), "{}", network=network
            )
            self._store.events.add([event])
            self._store.networks.forgive(network)  # tells all workers
            log.warning("network %s was mended: its pages try WebSocket now", network)
        return True

    def hear(self, network: str) -> None:
        """Have the pages of a network, which was known to block WebSocket, try it: one of them has a WebSocket.

        Raises StorageUnavailable.
        """
        if self._store.networks.of_site(network) is None or self._lately(HEARD, network):
            return
        event = ConnectionEvent(str(uuid4()), 0, "", HEARD, None, None, None, None, now_ms(), "{}", network=network)
        self._store.events.add([event])
        self._store.networks.tell()

    def _lately(self, kind: str, network: str) -> bool:
        found = self._store.events.since(kind, now_ms() - AGAIN_MS)
        return any(event.network == network for event in found)

    def _look(self) -> None:
        """Tell the pages of networks that were just mended."""
        try:
            found = [one for kind in (MENDED, HEARD) for one in self._store.events.since(kind, now_ms() - AGAIN_MS)]
        except STORAGE_ERRORS as error:
            log.warning("whether a network was mended could not be read: %s", error)
            return
        for event in found:
            if event.client not in self._seen:
                self._polls.retry(event.network)
        self._seen = {event.client for event in found}
