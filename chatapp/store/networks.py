"""What a person's browsers learned of networks, at most MOST_NETWORKS each: see network_memory.py."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from chatapp.concurrency import soon
from chatapp.network_memory import Experience, Network, Networks, note
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.tables import network_memory
from chatapp.store.unavailable import StorageUnavailable

log = logging.getLogger("chatapp.networks")


class NetworkTable:
    """Reads what is remembered, and learns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remembered(self, person: int, key: str) -> Network | None:
        """What is known of one network; None where nothing is."""
        if not key:
            return None
        query = select(network_memory).where(network_memory.c.person_id == person, network_memory.c.network == key)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return _network(row) if row else None

    def learn(self, person: int, experiences: Sequence[Experience]) -> None:
        """Have pages' experiences noted soon. Neither waits nor raises: no request is to fail because of it."""
        if experiences:
            soon(self._learn, person, experiences)

    def _learn(self, person: int, experiences: Sequence[Experience]) -> None:
        try:
            with self._database.write() as tx:
                _note(tx, person, experiences)
        except (SQLAlchemyError, sqlite3.Error, StorageUnavailable):
            log.exception("what was learned of networks was lost: %s", experiences)


def _note(tx: Write, person: int, experiences: Sequence[Experience]) -> None:
    rows = tx.connection.execute(select(network_memory).where(network_memory.c.person_id == person)).all()
    networks: Networks = {row.network: _network(row) for row in rows}
    now = now_ms()
    for one in sorted(experiences, key=lambda experience: experience.at):
        known = networks.get(one.network)
        # A report may come days late, by a clock that is fast: neither turns back what is known, nor counts as later.
        at = max(min(one.at, now), known["at"] if known else 0)
        note(networks, one.network, at, one.has_worked, one.kill_gap)
    tx.connection.execute(delete(network_memory).where(network_memory.c.person_id == person))
    tx.connection.execute(network_memory.insert(), [_values(person, key, network) for key, network in networks.items()])


def _values(person: int, key: str, network: Network) -> dict[str, Any]:
    counts = {name: network[name] for name in ("worked", "failed", "at")}
    return {"person_id": person, "network": key, **counts, "kill_gap": network["killGap"]}


def _network(row: Any) -> Network:
    return {"worked": row.worked, "failed": row.failed, "at": row.at, "killGap": row.kill_gap}
