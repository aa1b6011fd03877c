"""Network memory of each person, at most MOST_NETWORKS networks: see network_memory.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from chatapp.bus import ACCESS
from chatapp.concurrency import soon
from chatapp.network_memory import Experience, Network, Networks, common_lesson, note
from chatapp.store import sqlite
from chatapp.store.database import Database, StorageUnavailable, Write, now_ms
from chatapp.store.models import NetworkMemory

MOST_WITNESSES = 200  # of one network: those with the newest experiences

log = logging.getLogger("chatapp.networks")


class NetworkTable:
    """Queries about network memory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remembered(self, person: int, key: str) -> Network | None:
        """Return the record of one network, or None."""
        if not key:
            return None
        query = select(NetworkMemory).where(NetworkMemory.person_id == person, NetworkMemory.network == key)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return _network(row) if row else None

    def of_site(self, key: str) -> Network | None:
        """Return the common lesson of everybody on a network, or None: that WebSocket fails there."""
        if not key:
            return None
        query = select(NetworkMemory).where(NetworkMemory.network == key).order_by(NetworkMemory.at.desc())
        with self._database.read() as connection:
            rows = connection.execute(query.limit(MOST_WITNESSES)).all()
        return common_lesson([_network(row) for row in rows], now_ms())

    def forgive(self, network: str) -> None:
        """Forget everybody's failures on a network that was mended, and have all workers learn of it."""
        mended = update(NetworkMemory).where(NetworkMemory.network == network).values(failed=0.0)
        with self._database.write() as tx:
            tx.connection.execute(mended)
            tx.bump(ACCESS)

    def tell(self) -> None:
        """Have all workers look for news of networks."""
        with self._database.write() as tx:
            tx.bump(ACCESS)

    def record(self, person: int, experiences: Sequence[Experience]) -> None:
        """Record experiences in the background. Never blocks, never raises: no request may fail because of it."""
        if experiences:
            soon(self._record, person, experiences)

    def _record(self, person: int, experiences: Sequence[Experience]) -> None:
        try:
            with self._database.write() as tx:
                _update(tx, person, experiences)
        except (SQLAlchemyError, sqlite.Error, StorageUnavailable):
            log.exception("what was learned of networks was lost: %s", experiences)


def _update(tx: Write, person: int, experiences: Sequence[Experience]) -> None:
    rows = tx.connection.execute(select(NetworkMemory).where(NetworkMemory.person_id == person)).all()
    networks: Networks = {row.network: _network(row) for row in rows}
    now = now_ms()
    for one in sorted(experiences, key=lambda experience: experience.at):
        known = networks.get(one.network)
        # A report may be days late, or its clock fast: `at` never goes backwards, nor into the future.
        at = max(min(one.at, now), known["at"] if known else 0)
        note(networks, one.network, at, one.has_worked, one.kill_gap)
    tx.connection.execute(delete(NetworkMemory).where(NetworkMemory.person_id == person))
    tx.connection.execute(insert(NetworkMemory), [_values(person, key, network) for key, network in networks.items()])


def _values(person: int, key: str, network: Network) -> dict[str, Any]:
    counts = {name: network[name] for name in ("worked", "failed", "at")}
    return {"person_id": person, "network": key, **counts, "kill_gap": network["killGap"]}


def _network(row: Any) -> Network:
    return {"worked": row.worked, "failed": row.failed, "at": row.at, "killGap": row.kill_gap}
