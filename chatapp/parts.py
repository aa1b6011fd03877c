"""The parts of one app, typed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from flask import current_app

from chatapp.accounts.administration import Administration
from chatapp.accounts.auth import Auth
from chatapp.accounts.tickets import Tickets
from chatapp.assistant.knowledge import Knowledge
from chatapp.assistant.own_files import OwnFiles
from chatapp.assistant.provider import Provider
from chatapp.assistant.runner import Runner
from chatapp.assistant.unanswered import Unanswered
from chatapp.diagnostics.bundle import Bundler
from chatapp.diagnostics.drills import Drills
from chatapp.diagnostics.mending import Mending
from chatapp.monitoring.errors import ErrorLog
from chatapp.monitoring.rollups import Rollups
from chatapp.monitoring.watch import AlertWatch
from chatapp.monitoring.worker_rows import WorkerRows
from chatapp.staticfiles import StaticFiles
from chatapp.store import ConnectionEvent, now_ms
from chatapp.strangers import stands_for_many
from chatapp.transports.long_poll import Polls
from chatapp.transports.rendering import Renderer
from chatapp.transports.websocket import Services

VERSION = version("chatapp")


@dataclass(frozen=True)
class Parts(Services):
    """Every part, made once by create_app."""

    static: StaticFiles
    instance: str  # prefixes cookie, storage and channel names: two instances may share a host
    auth: Auth
    administration: Administration
    knowledge: Knowledge
    provider: Provider
    own_files: OwnFiles
    unanswered: Unanswered
    renderer: Renderer
    polls: Polls
    drills: Drills
    runner: Runner
    errors: ErrorLog
    worker_rows: WorkerRows
    rollups: Rollups
    alerts: AlertWatch
    tickets: Tickets
    mending: Mending
    bundler: Bundler

    def knows_addresses(self, address: str) -> bool:
        """Return False if this address may be that of an undeclared proxy, which stands for everybody behind it."""
        return bool(self.settings.trusted_proxies) or not stands_for_many(address)

    def start(self) -> None:
        """Start the background work. Called in the worker, after the fork."""
        self.store.histories.start()
        self.store.watcher.start()
        self.store.retention.start()
        self.store.people.last_seen.start()
        self.drills.start()
        self.mending.start()
        self.runner.start()
        self._record("server-start", {"dead": self.worker.dead, "version": VERSION})
        self.errors.install()
        self.worker_rows.on_row.append(self.errors.flush_groups)
        self.worker_rows.on_row.append(self.unanswered.flush)
        self.worker_rows.start()
        self.rollups.start()
        self.alerts.start()

    def drain(self) -> None:
        """Stop the background work, send every connection its reconnect delay, and mark answers interrupted."""
        self.store.watcher.stop()
        self.store.retention.stop()
        self.store.people.last_seen.stop()
        self.drills.stop()
        self.alerts.stop()  # before the lock of the roll-ups is free
        self.rollups.stop()
        self.worker_rows.stop()
        is_first, self.connections.is_draining = not self.connections.is_draining, True
        self.websockets.drain()
        self.polls.drain()
        self.runner.drain()
        if is_first:  # last: the database may be slow, and nobody must wait for their word
            self._record("server-stop", {})

    def _record(self, kind: str, data: dict[str, Any]) -> None:
        """Record an event of this worker."""
        text = json.dumps({"worker": self.worker.name, **data})
        event = ConnectionEvent(str(uuid4()), 0, "", kind, None, None, None, None, now_ms(), text)
        self.store.events.record(event)

    def finish(self) -> None:
        """Drain, then wait a few seconds at most until every connection has received it."""
        self.drain()
        self.websockets.finish()


def current_parts() -> Parts:
    """Return the parts of the current request's app."""
    found: Parts = current_app.extensions["chatapp"]
    return found
