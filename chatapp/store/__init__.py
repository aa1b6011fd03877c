"""The database package: models, transactions and every query. No other package opens a transaction.

database.py       engines, read and write transactions, revisions
people.py         people, sign-in, the instance
sessions.py       a person's sessions: list, end; how long they live
directory.py      people as operators see and change them
leases.py         budgets that all workers share
links.py          invitations and links to set another password
erasure.py        remove a deleted person's data
audit.py          who did what to whom
conversations.py  conversations, messages, `changes`
members.py        the people of a conversation
attachments.py    text files of messages
runs.py           durable answers
drills.py         fault injection, for a bounded time
networks.py       network memory of each person
histories.py      detect a database that was restored from an older copy
events.py         connection events, in a database file of their own
totals.py         there, too: totals that outlive their rows
error_groups.py   there, too: errors by their fingerprint
questions.py      there, too: questions that the knowledge folder did not answer
measures.py       there, too: roll-ups, live pages, the rows of the workers
alerts.py         there, too: alerts, their changes, incidents, notices
operations.py     the conversation in which operators read of alerts
workers.py        liveness of the processes of this host
last_seen.py      times at which sessions were last used
watch.py          publish other processes' commits
sqlite.py         all that only SQLite has: pragmas, transactions, checkpoints, upserts, errors
retention.py      delete old connection events
prepared.py       prepared statements, run by the driver
records.py        query results
models.py         the models
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
from chatapp.store.alerts import AlertTable
from chatapp.store.attachments import Attachments
from chatapp.store.audit import BY_SHELL, Actor, Audited, AuditFilter, AuditTable
from chatapp.store.conversations import Conversations
from chatapp.store.database import Database, StorageUnavailable, now_ms
from chatapp.store.directory import Directory, ListedPerson
from chatapp.store.drills import Drill, DrillRunning, DrillTable
from chatapp.store.erasure import Erasure
from chatapp.store.error_groups import ErrorGroups, FoundError
from chatapp.store.events import ConnectionEvent, Events
from chatapp.store.histories import Histories
from chatapp.store.leases import LeaseTable
from chatapp.store.links import Link, LinkTable
from chatapp.store.measures import Measures
from chatapp.store.members import Member, Members
from chatapp.store.models import InstanceValue, db
from chatapp.store.networks import NetworkTable
from chatapp.store.operations import Operations
from chatapp.store.people import AlreadySetUp, AuthSession, EmailTaken, People, Person
from chatapp.store.questions import CountedQuestion, QuestionTable
from chatapp.store.records import Block, ChangedMessage, Changes, ConversationRef, Entry, EntryPlace, Posted, Waiting
from chatapp.store.retention import KEPT, Kept, Retention
from chatapp.store.runs import ClaimedRun, Runs, Turn
from chatapp.store.sessions import ListedSession, Lives, SessionEnded, SessionTable
from chatapp.store.watch import Watcher

__all__ = [
    "BY_SHELL",
    "STORAGE_ERRORS",
    "Actor",
    "AlreadySetUp",
    "AuditFilter",
    "AuditTable",
    "Audited",
    "AuthSession",
    "Block",
    "ChangedMessage",
    "Changes",
    "ClaimedRun",
    "ConnectionEvent",
    "ConversationRef",
    "CountedQuestion",
    "Drill",
    "DrillRunning",
    "EmailTaken",
    "Entry",
    "EntryPlace",
    "FoundError",
    "Kept",
    "Link",
    "ListedPerson",
    "ListedSession",
    "Lives",
    "Member",
    "People",
    "Person",
    "Posted",
    "SessionEnded",
    "StorageUnavailable",
    "Store",
    "Turn",
    "Waiting",
    "database_url",
    "metrics_url",
    "now_ms",
]

log = logging.getLogger("chatapp.store")

# For loops in the background, which try again later.
STORAGE_ERRORS = (SQLAlchemyError, sqlite.Error, StorageUnavailable)

# Connections; seconds. LIFO: the page cache of the connection used last is warm.
# No parameters in the messages of errors: they would put texts and addresses into the log.
POOL = {"pool_size": 10, "max_overflow": 20, "pool_timeout": 5, "pool_use_lifo": True, "hide_parameters": True}


def database_url(data_dir: Path) -> str:
    """Return the URL of the chat's database."""
    return sqlite.url(data_dir / "chat.db")


def metrics_url(data_dir: Path) -> str:
    """Return the URL of the metrics database; apart, so that measurements never block the chat."""
    return sqlite.url(data_dir / "metrics.db")


class Store:
    """Queries of both databases, by subject."""

    def __init__(self, app: Flask, data_dir: Path, bus: Bus, workers: int = 1, kept: Kept = KEPT) -> None:
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
        self.sessions = SessionTable(self.database)
        self.directory = Directory(self.database)
        self.links = LinkTable(self.database)
        self.leases = LeaseTable(self.database)
        self.attachments = Attachments(self.database)
        self.audit = AuditTable(self.database)
        self.conversations = Conversations(self.database)
        self.members = Members(self.database, self.conversations)
        self.runs = Runs(self.database, self.conversations, workers)
        self.drills = DrillTable(self.database)
        self.networks = NetworkTable(self.database)
        self.events = Events(Database(metrics, bus))
        self.error_groups = ErrorGroups(self.events.database)
        self.questions = QuestionTable(self.events.database)
        self.measures = Measures(self.events.database)
        self.alerts = AlertTable(self.events.database)
        self.operations = Operations(self.database, self.conversations, self.members)
        self.erasure = Erasure(self.database, self.conversations, self.members, self.runs, self.events)
        self.retention = Retention(self.events, self.measures, self.alerts, self.questions, kept, self.erasure)
        self.watcher = Watcher(self.database, bus, workers)

    def trouble(self) -> str:
        """Return why the last write, or a read now, failed: `busy`, `full`, `failed`; else "". After a failed write it
        starts another attempt in the background, every 5 s at most."""
        try:
            with self.database.read() as connection:
                is_migrated = connection.execute(select(InstanceValue.value).limit(1)).first() is not None
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
