"""Networks on which WebSocket works again: each page that polls from there is told once to try it now."""

from __future__ import annotations

import time
from collections.abc import Callable

TOLD_S = 60.0  # for so long after the news: a page without a held poll asks within seconds
MOST_TOLD = 50_000  # pages in a worker; more try by themselves

Page = tuple[str, int, tuple[str, ...]]  # its network, session and feeds


class Retries:
    """The networks of the last minute, and the pages that were told."""

    def __init__(self, network_of: Callable[[str], str], clock: Callable[[], float] = time.monotonic) -> None:
        """`network_of`: the key of an address's network."""
        self._network_of, self._clock = network_of, clock
        self._until: dict[str, float] = {}
        self._told: set[Page] = set()

    def add(self, network: str) -> None:
        """Tell the pages of a network from now on."""
        if network:
            self._until[network] = self._clock() + TOLD_S
            self._told = {page for page in self._told if page[0] != network}

    def take(self, address: str, session: int, feeds: tuple[str, ...]) -> bool:
        """Return True if this page must be told; it counts as told then."""
        page = self._page(address, session, feeds)
        if page is None or page in self._told or len(self._told) >= MOST_TOLD:
            return False
        self._told.add(page)
        return True

    def is_affected(self, address: str) -> bool:
        """Return True for an address in one of the networks."""
        return bool(self._until) and self._page(address, 0, ()) is not None

    def _page(self, address: str, session: int, feeds: tuple[str, ...]) -> Page | None:
        if not self._until:  # nearly always
            return None
        network = self._network_of(address)
        if self._until.get(network, 0.0) > self._clock():
            return network, session, feeds
        self._until = {name: until for name, until in self._until.items() if until > self._clock()}
        if not self._until:
            self._told.clear()
        return None
