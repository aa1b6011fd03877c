"""Brings both databases to their newest migration. Safe to run at every start, and by two starts at once.

What is found there may be anything: a folder of a newer version, half a copy, garbage. Each stops the start with a
sentence, but for the measurements: they are put aside, and the chat goes on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DatabaseError

from chatapp.assets import asset_dir
from chatapp.store import database_url, metrics_url
from chatapp.store.database import BUSY_TIMEOUT_MS, WRITES, prepare_sqlite
from chatapp.store.unavailable import StorageUnavailable

log = logging.getLogger("chatapp.store")

KEEPSAKES = ("secret-key", "metrics.db", "chat.db-wal")  # of an installation that had a `chat.db`
UNAVAILABLE = {
    "busy": "is locked by another program. End that, and try again.",
    "full": "cannot be written: there is no room on its disk. Make room, and try again.",
    "failed": "cannot be written: its disk fails, or its rights do not allow it.",
}


class UnusableData(Exception):
    """The data directory cannot be served as it is. The message names the file and says what to do."""


class ForeignData(UnusableData):
    """A file is damaged, no database at all, or a newer version's: this version will never be able to use it."""


def migrate(data_dir: Path) -> None:
    """Make the data directory and its databases, or bring them up to date. Raises UnusableData."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(data_dir / "migrate.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the descriptor is closed
        _refuse_a_lost_chat(data_dir)
        _bring_up_to_date(data_dir, "chat", database_url(data_dir))
        try:
            _bring_up_to_date(data_dir, "metrics", metrics_url(data_dir))
        except ForeignData as problem:
            _put_aside(data_dir / "metrics.db", problem)
            _bring_up_to_date(data_dir, "metrics", metrics_url(data_dir))
    finally:
        os.close(lock)


def _refuse_a_lost_chat(data_dir: Path) -> None:
    """An empty `chat.db` would become a new installation, open to the first comer, in the place of a lost one."""
    chat = data_dir / "chat.db"
    if chat.exists() and chat.stat().st_size:
        return
    left = [name for name in KEEPSAKES if (data_dir / name).exists() and (data_dir / name).stat().st_size]
    if left:
        state = "is empty" if chat.exists() else "is not there"
        raise UnusableData(
            f"{chat} {state}, and beside it lies an earlier installation's {' and '.join(left)}. "
            "Put chat.db back from a backup (docs/operations.md), or, to start over, name an empty folder as DATA_DIR."
        )


def _bring_up_to_date(data_dir: Path, name: str, url: str) -> None:
    file = data_dir / f"{name}.db"
    try:
        if not _is_current(file, asset_dir("migrations") / name):
            engine = create_engine(url)
            try:
                prepare_sqlite(engine, "FULL")
                _upgrade(engine, name)
            finally:
                engine.dispose()
        file.chmod(0o600)
    except (sqlite3.DatabaseError, DatabaseError) as error:
        raise problem_of(file, error) or error from error


def problem_of(file: Path, error: Exception) -> UnusableData | None:
    """What an error means for the one who starts or runs a command; None where it is not of the database."""
    cause = error.orig if isinstance(error, DatabaseError) else error
    if isinstance(cause, UnusableData):
        return cause
    if isinstance(cause, StorageUnavailable):
        return UnusableData(f"{file} {UNAVAILABLE[cause.reason]}")
    if not isinstance(cause, sqlite3.DatabaseError):
        return None
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        advice = "Keep a copy of the folder, and restore a backup (docs/operations.md)."
        return ForeignData(f"{file} is damaged, or no database: {cause}. {advice}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UnusableData(f"{file} {UNAVAILABLE['busy']}")
    return UnusableData(f"{file} cannot be used: {cause}.")


def _put_aside(file: Path, problem: UnusableData) -> None:
    """Keep what cannot be used under another name."""
    kept = file.with_name(f"{file.name}.unusable-{datetime.now():%Y%m%d-%H%M%S}")
    file.rename(kept)
    for end in ("-wal", "-shm"):
        if (log_file := file.with_name(file.name + end)).exists():
            log_file.rename(kept.with_name(kept.name + end))
    log.warning("%s It is %s now; measurements start over.", problem, kept.name)


def _is_current(file: Path, folder: Path) -> bool:
    """Whether the database has the newest migration of the folder, whose files begin with their numbers.

    Raises ForeignData where a newer version of the product has made it, sqlite3.DatabaseError where it is damaged.
    """
    known = sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))
    if not file.exists():
        return False
    with closing(sqlite3.connect(file)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            return False  # not made yet, or not to the end
        found = [row[0] for row in database.execute("SELECT version_num FROM alembic_version")]
    if unknown := [number for number in found if number not in known]:
        raise ForeignData(
            f"{file} was made by a newer version of chatapp: it is at migration {', '.join(unknown)}, and this version "
            f"knows them up to {known[-1]}. Start the newer version, or restore the backup made before the update."
        )
    return found == [known[-1]]


def _upgrade(engine: Engine, name: str) -> None:
    # Loading it takes a fifth of a start, and most starts have nothing to migrate.
    from alembic import command
    from alembic.config import Config

    folder = asset_dir("migrations")
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / name).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with engine.connect() as plain:
        connection = plain.execution_options(**{WRITES: time.monotonic() + BUSY_TIMEOUT_MS / 1000})
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
