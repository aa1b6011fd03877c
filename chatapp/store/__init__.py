"""The only room that touches the database: tables, transactions and every query.

database.py       engines, read and write transactions, revisions
people.py         people, sessions, the instance
conversations.py  conversations, messages, `changes`
runs.py           durable answers
drills.py         faults on purpose, for a bounded time
networks.py       what people's browsers learned of networks
histories.py      whether what somebody shows is of this database's past
events.py         connection events, in a database file of their own
unavailable.py    what a database that is locked or full raises
workers.py        which processes of this host live
watch.py          what other processes committed
checkpoints.py    carry SQLite's log into its file
hot.py            statements that the driver runs
shapes.py         what queries return
tables.py         the tables
migrate.py        brings a database to the newest migration
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from flask import Flask
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from chatapp.bus import Bus
from chatapp.concurrency import soon
from chatapp.store.conversations import Conversations
from chatapp.store.database import Database, now_ms, prepare_sqlite
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

# Connections; seconds. The last one used is the next: its pages of the database are in memory, those of others not.
POOL = {"pool_size": 10, "max_overflow": 20, "pool_timeout": 5, "pool_use_lifo": True}


def database_url(data_dir: Path) -> str:
    """Where the chat lives."""
    return f"sqlite:///{data_dir / 'chat.db'}"


def metrics_url(data_dir: Path) -> str:
    """Where measurements live, so that they never hold up the chat."""
    return f"sqlite:///{data_dir / 'metrics.db'}"


class Store:
    """The queries, by subject."""

    def __init__(self, app: Flask, data_dir: Path, bus: Bus, workers: int = 1, events_kept_days: float = 14.0) -> None:
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = POOL
        app.config["SQLALCHEMY_DATABASE_URI"] = database_url(data_dir)
        app.config["SQLALCHEMY_BINDS"] = {"metrics": {"url": metrics_url(data_dir), **POOL}}
        db.init_app(app)
        with app.app_context():
            main, metrics = db.engine, db.engines["metrics"]
        self._engines = (main, metrics)
        prepare_sqlite(main, "FULL")
        prepare_sqlite(metrics, "NORMAL")
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
        """Why the database cannot serve: `busy`, `full` or `failed`, as the last write or a read of now says; empty
        where it can. After a write that failed another one is tried every five seconds, as long as somebody asks."""
        try:
            with self.database.read() as connection:
                is_migrated = connection.execute(select(instance.c.value).limit(1)).first() is not None
        except StorageUnavailable as error:
            return error.reason
        except (SQLAlchemyError, sqlite3.Error):
            log.exception("the database does not answer")
            return "failed"
        soon(self.database.try_write)  # not waited for: whoever asks wants to know now
        return (self.database.failing or "") if is_migrated else "failed"

    def close(self) -> None:
        """Close every connection to the databases that is not in use."""
        self.histories.close()
        self.database.close()
        for engine in self._engines:
            engine.dispose()
