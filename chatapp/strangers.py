"""Connections of which nobody knows yet whose they are: how many there may be, and which goes where they are too many.

A connection is a stranger's until a request on it has brought a live session. Only strangers are counted and bounded,
as a whole office stands behind one address. Where many come by one peer that says nothing of them (this machine, a
proxy that is not declared, once somebody has come by it with a session), they share one budget. An address of IPv6
counts by its first 64 bits, as the rest is its owner's choice.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from chatapp.config import plain_address
from chatapp.fair_queue import prefix

SHARED = ""  # the budget of all who come by peers that stand for many
MOST_SHARING = 1000  # peers that are known to stand for many
BYTES_EACH = 32 << 10  # a connection's fair part of what may be unread: heads and bodies that are still being read

log = logging.getLogger("chatapp.requests")


class Guest(Protocol):
    """A stranger's connection."""

    address: str  # whose budget it counts in
    unread: int  # bytes of its request that are in memory

    def cut(self) -> None:
        """Close now."""


@dataclass
class Budget:
    """What one address has."""

    guests: OrderedDict[Guest, None] = field(default_factory=OrderedDict)  # the one that came first is the first
    unread: int = 0


class Strangers:
    """The strangers of a worker. `each`: connections of one address; `most`: of all together."""

    def __init__(self, each: int, most: int) -> None:
        self._each, self._most = min(each or most, most), most
        self._budgets: dict[str, Budget] = {}
        self._all: OrderedDict[Guest, None] = OrderedDict()
        self._sharing: OrderedDict[str, None] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self._all)

    def share(self, peer: str) -> None:
        """This peer speaks for others, whom it does not name to us: its connections count in the shared budget.

        To be called only where that is credible, as the shared budget is larger than an address's own.
        """
        address = prefix(peer)
        is_new = address not in self._sharing
        self._sharing[address] = None
        self._sharing.move_to_end(address)
        if len(self._sharing) > MOST_SHARING:
            self._sharing.popitem(last=False)
        if is_new:
            log.warning(
                "%s forwards requests and is not declared: all who come by it without a session share one budget of"
                " connections. If it is your proxy, name it in CHATAPP_TRUSTED_PROXIES.",
                peer,
            )

    def budget_of(self, peer: str) -> str:
        """In which budget connections of this peer count."""
        address = prefix(peer)
        return SHARED if address in self._sharing or stands_for_many(peer) else address

    def add(self, guest: Guest) -> None:
        """Count it; where that makes too many, the oldest of its address, or of all, is cut."""
        budget = self._budgets.setdefault(guest.address, Budget())
        budget.guests[guest] = self._all[guest] = None
        budget.unread += guest.unread
        if len(budget.guests) > (self._most if guest.address == SHARED else self._each):
            self._cut(next(iter(budget.guests)))
        if len(self._all) > self._most:
            self._cut(next(iter(self._all)))

    def remove(self, guest: Guest) -> None:
        """Count it no more."""
        if self._all.pop(guest, guest) is guest:
            return
        budget = self._budgets[guest.address]
        budget.guests.pop(guest)
        budget.unread -= guest.unread
        if not budget.guests:
            del self._budgets[guest.address]

    def has_read(self, guest: Guest, count: int) -> None:
        """So many bytes of its request came into memory (less than none: are done with)."""
        guest.unread += count
        if guest not in self._all:
            return
        budget = self._budgets[guest.address]
        budget.unread += count
        most = BYTES_EACH * (self._most if guest.address == SHARED else self._each)
        while budget.unread > most and budget.guests:
            self._cut(next(iter(budget.guests)))

    def _cut(self, guest: Guest) -> None:
        self.remove(guest)
        guest.cut()


def advice(host: str, has_declared: bool, most: int) -> str:
    """What to say at the start where all strangers come by one peer; empty where each has an address."""
    if has_declared or not stands_for_many(host):
        return ""
    return (
        f"Who comes to {host} has no address of their own here: all without a session share one budget of {most}"
        " connections in each worker. If a proxy stands in front, name it in CHATAPP_TRUSTED_PROXIES."
    )


@lru_cache(MOST_SHARING)
def stands_for_many(peer: str) -> bool:
    """Whether a peer is this machine (a proxy, a tunnel) or has no address (a unix socket)."""
    try:
        return plain_address(peer).is_loopback
    except ValueError:  # `localhost`, or a path
        return True
