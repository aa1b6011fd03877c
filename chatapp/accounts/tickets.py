"""Tickets of the network test: a signed permission to run it without an account, for one network and seven days.

A ticket opens the probes and nothing else. Nothing of it is stored; only time ends it. Its key is derived from
the instance's (`secrets rotate` keeps former ones verifying), under a salt of its own: no cookie is a ticket.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer
from werkzeug.http import parse_cookie

from chatapp.accounts.limits import Quota, Rate
from chatapp.store import now_ms

SALT = "network test"
DAYS, DAY_MS = 7, 86_400_000
LONGEST = 300  # characters
INSIDE = "inside=1"  # in the query of a test's requests
TESTS_AN_HOUR = 60  # of one ticket; each kind of probe is counted by itself


class BadTicket(Exception):
    """The ticket was altered, or is not complete."""


class Expired(Exception):
    """The ticket is too old."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A permission to test. `network`: of the person who made it, by network_memory.network_key; "" if unknown."""

    id: str
    network: str
    ends_at: int  # ms


class Tickets:
    """Makes, reads and counts tickets."""

    def __init__(self, keys: Sequence[str], cookie_name: str, workers: int = 1) -> None:
        """`keys`: the oldest first; the last one signs. `cookie_name`: of the cookie that carries an opened ticket."""
        how = {"digest_method": hashlib.sha256}
        self._serializer = URLSafeSerializer(list(keys), salt=SALT, signer_kwargs=how)
        self.cookie_name = cookie_name
        most = ceil(TESTS_AN_HOUR / workers)
        self._tests = Quota(Rate(most, most / 3600))

    def make(self, network: str) -> str:
        """Return a new ticket for a network."""
        text = self._serializer.dumps([secrets.token_urlsafe(9), network, now_ms() + DAYS * DAY_MS])
        return text if isinstance(text, str) else text.decode()

    def read(self, text: str) -> Ticket:
        """Return the ticket. Raises BadTicket, Expired."""
        if not text or len(text) > LONGEST or not text.isascii():
            raise BadTicket
        try:
            match self._serializer.loads(text):
                case [str(name), str(network), int(ends_at)]:
                    ticket = Ticket(name, network, ends_at)
                case _:
                    raise BadTicket
        except BadSignature:
            raise BadTicket from None
        if ticket.ends_at <= now_ms():
            raise Expired
        return ticket

    def find(self, environ: dict[str, Any]) -> Ticket | None:
        """Return the valid ticket in the cookie of a test's request, or None.

        The query says that it is a test's: in the same browser a chat must still learn that it is signed out.
        """
        header = environ.get("HTTP_COOKIE", "")
        if INSIDE not in environ.get("QUERY_STRING", "").split("&") or self.cookie_name not in header:
            return None
        try:
            return self.read(parse_cookie(header).get(self.cookie_name, ""))
        except (BadTicket, Expired):
            return None

    def take(self, ticket: Ticket, probe: str) -> float:
        """Count a probe of a ticket. Return 0, or if there were too many the wait in s."""
        return self._tests.consume((ticket.id, probe), 1)
