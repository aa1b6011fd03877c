"""The database package: tables, transactions and every query. No other package opens a transaction.

database.py       engines, read and write transactions, revisions
people.py         people, sessions, the instance
conversations.py  conversations, messages, `changes`
runs.py           durable answers
drills.py         fault injection, for a bounded time
networks.py       network memory of each person
histories.py      detect a database that was restored from an older copy
events.py         connection events, in a database file of their own
unavailable.py    the error of a locked or full database
workers.py        liveness of the processes of this host
watch.py          publish other processes' commits
sqlite.py         all that only SQLite has: pragmas, transactions, checkpoints, upserts, errors
retention.py      delete old connection events
prepared.py       prepared statements, run by the driver
records.py        query results
tables.py         the tables
migrate.py        migrate both databases
"""

from __future__ import annotations

import logging
from pathlib import Path

from flask import Flask
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from chatapp.bus import Bus
from chatapp.concurrency import soon
from chatapp.store import sqlite
from chatapp.store.conversations import Conversations
from chatapp.store.database import Database, now_ms
from chatapp.store.drills import Drill, DrillRunning, DrillTable
from chatapp.store.events import ConnectionEvent, Events
from chatapp.store.histories import Histories
from chatapp.store.networks import NetworkTable
from chatapp.store.people import AlreadySetUp, AuthSession, EmailTaken, People, Person
from chatapp.store.records import Block, ChangedMessage, Changes, ConversationRef, Entry, EntryPlace, Posted, Waiting
from chatapp.store.retention import Retention
from chatapp.store.runs import ClaimedRun, Runs, Turn
from chatapp.store.tables import db, instance
from chatapp.store.unavailable import StorageUnavailable
from chatapp.store.watch import Watcher

__all__ = [
    "AlreadySetUp",
    "AuthSession",
    "Block",
    "ChangedMessage",
    "Changes",
    "ClaimedRun",
    "ConnectionEvent",
    "ConversationRef",
    "Drill",
    "DrillRunning",
    "EmailTaken",
    "Entry",
    "EntryPlace",
    "Person",
    "Posted",
    "StorageUnavailable",
    "Store",
    "Turn",
    "Waiting",
    "database_url",
    "metrics_url",
    "now_ms",
]

log = logging.getLogger("chatapp.store")

# Connections; seconds. LIFO: the page cache of the connection used last is warm.
POOL = {"pool_size": 10, "max_overflow": 20, "pool_timeout": 5, "pool_use_lifo": True}


def database_url(data_dir: Path) -> str:
    """Return the URL of the chat's database."""
    return sqlite.url(data_dir / "chat.db")


def metrics_url(data_dir: Path) -> str:
    """Return the URL of the metrics database; apart, so that measurements never block the chat."""
    return sqlite.url(data_dir / "metrics.db")


class Store:
    """Queries of both databases, by subject."""

    def __init__(self, app: Flask, data_dir: Path, bus: Bus, workers: int = 1, events_kept_days: float = 14.0) -> None:
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = POOL
        app.config["SQLALCHEMY_DATABASE_URI"] = database_url(data_dir)
        app.config["SQLALCHEMY_BINDS"] = {"metrics": {"url": metrics_url(data_dir), **POOL}}
        db.init_app(app)
        with app.app_context():
            main, metrics = db.engine, db.engines["metrics"]
        self._engines = (main, metrics)
        sqlite.configure(main, "FULL")
        sqlite.configure(metrics, "NORMAL")
        self.database = Database(main, bus)
        self.histories = Histories(self.database, data_dir)
        self.people = People(self.database)
        self.conversations = Conversations(self.database)
        self.runs = Runs(self.database, self.conversations, workers)
        self.drills = DrillTable(self.database)
        self.networks = NetworkTable(self.database)
        self.events = Events(Database(metrics, bus))
        self.retention = Retention(self.events, events_kept_days)
        self.watcher = Watcher(self.database, bus, workers)

    def trouble(self) -> str:
        """Return why the last write, or a read now, failed: `busy`, `full`, `failed`; else "". After a failed write it
        starts another attempt in the background, every 5 s at most."""
        try:
            with self.database.read() as connection:
                is_migrated = connection.execute(select(instance.c.value).limit(1)).first() is not None
        except StorageUnavailable as error:
            return error.reason
        except (SQLAlchemyError, sqlite.Error):
            log.exception("the database does not answer")
            return "failed"
        soon(self.database.try_write)  # in the background: the caller must not wait for it
        return (self.database.failing or "") if is_migrated else "failed"

    def close(self) -> None:
        """Close every idle connection to the databases."""
        self.histories.close()
        self.database.close()
        for engine in self._engines:
            engine.dispose()
