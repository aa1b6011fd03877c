"""The parts of one app, typed."""

from __future__ import annotations

from dataclasses import dataclass

from flask import current_app

from chatapp.accounts.auth import Auth
from chatapp.accounts.quotas import Quotas
from chatapp.assistant.builtin import Knowledge
from chatapp.assistant.runner import Runner
from chatapp.bus import Bus
from chatapp.chat import Chat
from chatapp.config import Settings
from chatapp.diagnostics.drills import Drills
from chatapp.staticfiles import StaticFiles
from chatapp.store import Store
from chatapp.transports.connections import Connections
from chatapp.transports.long_poll import Polls
from chatapp.transports.rendering import Renderer
from chatapp.transports.subscriptions import Reader
from chatapp.transports.websocket import Services


@dataclass(frozen=True)
class Parts:
    """Every part, made once by create_app."""

    settings: Settings
    static: StaticFiles
    instance: str  # prefixes cookie, storage and channel names: two instances may share a host
    epoch: str  # the database's name
    bus: Bus
    store: Store
    chat: Chat
    auth: Auth
    knowledge: Knowledge
    renderer: Renderer
    reader: Reader
    polls: Polls
    connections: Connections
    websockets: Services
    drills: Drills
    quotas: Quotas
    runner: Runner | None

    def start(self) -> None:
        """Start the background work. Called in the worker, after the fork."""
        self.store.histories.start()
        self.store.watcher.start()
        self.store.retention.start()
        self.drills.start()
        if self.runner is not None:
            self.runner.start()

    def drain(self) -> None:
        """Stop the background work, send every connection its reconnect delay, and mark answers interrupted."""
        self.store.watcher.stop()
        self.store.retention.stop()
        self.drills.stop()
        self.connections.drain()
        self.polls.drain()
        if self.runner is not None:
            self.runner.drain()

    def finish(self) -> None:
        """Drain, then wait a few seconds at most until every connection has received it."""
        self.drain()
        self.connections.finish()


def current_parts() -> Parts:
    """Return the parts of the current request's app."""
    found: Parts = current_app.extensions["chatapp"]
    return found
