"""Limits on unauthenticated connections ("strangers"), by address and in total; the oldest is closed first.

A connection counts until a request on it has a valid session: a whole office may share one address. Peers that stand
for many clients (this machine; an undeclared proxy, once a session has come through it) share one larger budget. IPv6
addresses count by their first 64 bits, as the owner chooses the rest.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache

from chatapp.config import plain_address
from chatapp.fair_queue import prefix

SHARED = ""  # the key of the shared budget
MOST_SHARING = 1000  # peers known to stand for many
BYTES_EACH = 32 << 10  # of unfinished requests, for each connection of a budget

log = logging.getLogger("chatapp.requests")


class Guest:
    """A connection, counted until a request on it has a session."""

    __slots__ = ("_forwarder", "_is_signed_in", "_strangers", "address", "unread")

    def __init__(self, strangers: Strangers, address: str) -> None:
        self._strangers = strangers
        self.address = address  # the key of its budget
        self.unread = 0  # bytes of its unfinished request in memory
        self._is_signed_in = False
        self._forwarder = ""
        strangers.add(self)

    def cut(self) -> None:
        """Close now."""
        raise NotImplementedError

    def mark_signed_in(self) -> None:
        """Stop counting it: a request on it has a session."""
        self._is_signed_in = True
        self._strangers.remove(self)
        if self._forwarder:
            self._strangers.share(self._forwarder)
            self.assign(self._forwarder)

    def assign(self, peer: str) -> None:
        """Count it in the budget of this peer."""
        address = self._strangers.budget_of(peer)
        if address != self.address:
            is_counted = self in self._strangers
            self._strangers.remove(self)
            self.address = address
            if is_counted:
                self._strangers.add(self)

    def assign_forwarder(self, peer: str) -> None:
        """Count it in the budget of a peer that claims to be a proxy. A session must confirm it: anybody can do so."""
        self._forwarder = peer
        if stands_for_many(peer):
            self._strangers.share(peer)
        self.assign(peer)


@dataclass
class Budget:
    """The connections of an address, and their unread bytes."""

    guests: OrderedDict[Guest, None] = field(default_factory=OrderedDict)  # oldest first
    unread: int = 0


class Strangers:
    """A worker's unauthenticated connections. `each`: limit for one address (0: none); `most`: limit in total."""

    def __init__(self, each: int, most: int) -> None:
        self._each, self._most = min(each or most, most), most
        self._budgets: dict[str, Budget] = {}
        self._all: OrderedDict[Guest, None] = OrderedDict()
        self._sharing: OrderedDict[str, None] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, guest: Guest) -> bool:
        return guest in self._all

    def share(self, peer: str) -> None:
        """Count this peer's connections in the shared budget: it forwards other clients' without naming them.

        Call it only on evidence, because the shared budget is larger than an address's own.
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
        """Return the key of the budget for this peer's connections."""
        address = prefix(peer)
        return SHARED if address in self._sharing or stands_for_many(peer) else address

    def add(self, guest: Guest) -> None:
        """Count a connection; above a limit, cut the oldest of its address, or of all."""
        budget = self._budgets.setdefault(guest.address, Budget())
        budget.guests[guest] = self._all[guest] = None
        budget.unread += guest.unread
        if len(budget.guests) > (self._most if guest.address == SHARED else self._each):
            self._cut(next(iter(budget.guests)))
        if len(self._all) > self._most:
            self._cut(next(iter(self._all)))

    def remove(self, guest: Guest) -> None:
        """Stop counting a connection."""
        if self._all.pop(guest, guest) is guest:
            return
        budget = self._budgets[guest.address]
        budget.guests.pop(guest)
        budget.unread -= guest.unread
        if not budget.guests:
            del self._budgets[guest.address]

    def has_read(self, guest: Guest, count: int) -> None:
        """Add `count` unread bytes (negative: handled); above the budget's limit, cut its oldest connections."""
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
    """Return a warning if all unauthenticated connections will share one budget, or an empty string."""
    if has_declared or not stands_for_many(host):
        return ""
    return (
        f"Who comes to {host} has no address of their own here: all without a session share one budget of {most}"
        " connections in each worker. If a proxy stands in front, name it in CHATAPP_TRUSTED_PROXIES."
    )


@lru_cache(MOST_SHARING)
def stands_for_many(peer: str) -> bool:
    """Return True for this machine (a proxy, a tunnel) or a unix socket."""
    try:
        return plain_address(peer).is_loopback
    except ValueError:  # `localhost`, or a socket's path
        return True
