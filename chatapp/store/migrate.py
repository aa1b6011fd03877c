"""Migration of both databases. Safe at every start, also of two processes at once.

Files of a newer version, incomplete copies and damaged files stop the start with a message; a damaged metrics database
is renamed instead.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DatabaseError

from chatapp.config import asset_dir
from chatapp.store import database_url, metrics_url, sqlite
from chatapp.store.database import StorageUnavailable
from chatapp.store.prepared import driver

log = logging.getLogger("chatapp.store")

LEFTOVERS = ("secret-key", "metrics.db", "chat.db-wal")  # of an installation whose `chat.db` is lost
UNAVAILABLE = {
    "busy": "is locked by another program. End that, and try again.",
    "full": "cannot be written: there is no room on its disk. Make room, and try again.",
    "failed": "cannot be written: its disk fails, or its rights do not allow it.",
}


class UnusableData(Exception):
    """The data directory is unusable as it is. The message names the file and the remedy."""


class ForeignData(UnusableData):
    """A file is damaged, no database, or from a newer version: retrying is no use."""


def migrate(data_dir: Path) -> None:
    """Create the data directory and its databases, or migrate them. Raises UnusableData."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(data_dir / "migrate.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the descriptor is closed
        _refuse_lost_database(data_dir)
        _migrate_file(data_dir, "chat", database_url(data_dir))
        try:
            _migrate_file(data_dir, "metrics", metrics_url(data_dir))
        except ForeignData as problem:
            _put_aside(data_dir / "metrics.db", problem)
            _migrate_file(data_dir, "metrics", metrics_url(data_dir))
    finally:
        os.close(lock)


def _refuse_lost_database(data_dir: Path) -> None:
    """Refuse a missing or empty `chat.db` beside older files: a new one would let anybody do the first run."""
    chat = data_dir / "chat.db"
    if chat.exists() and chat.stat().st_size:
        return
    left = [name for name in LEFTOVERS if (data_dir / name).exists() and (data_dir / name).stat().st_size]
    if left:
        state = "is empty" if chat.exists() else "is not there"
        raise UnusableData(
            f"{chat} {state}, and beside it lies an earlier installation's {' and '.join(left)}. "
            "Put chat.db back from a backup (docs/operations.md), or, to start over, name an empty folder as DATA_DIR."
        )


def _migrate_file(data_dir: Path, name: str, url: str) -> None:
    file = data_dir / f"{name}.db"
    try:
        if not _is_current(file, asset_dir("migrations") / name):
            engine = create_engine(url)
            try:
                sqlite.configure(engine, "FULL")
                _upgrade(engine, name)
            finally:
                engine.dispose()
        file.chmod(0o600)
    except (sqlite.Error, DatabaseError) as error:
        raise problem_of(file, error) or error from error


def problem_of(file: Path, error: Exception) -> UnusableData | None:
    """Translate an error for the operator; None if it is not the database's."""
    cause = error.orig if isinstance(error, DatabaseError) else error
    if isinstance(cause, UnusableData):
        return cause
    if isinstance(cause, StorageUnavailable):
        return UnusableData(f"{file} {UNAVAILABLE[cause.reason]}")
    if not isinstance(cause, sqlite.Error):
        return None
    if sqlite.is_damaged(cause):
        advice = "Keep a copy of the folder, and restore a backup (docs/operations.md)."
        return ForeignData(f"{file} is damaged, or no database: {cause}. {advice}")
    if sqlite.reason_of(cause) == "busy":
        return UnusableData(f"{file} {UNAVAILABLE['busy']}")
    return UnusableData(f"{file} cannot be used: {cause}.")


def _put_aside(file: Path, problem: UnusableData) -> None:
    """Rename an unusable database and its WAL."""
    kept = file.with_name(f"{file.name}.unusable-{datetime.now():%Y%m%d-%H%M%S}")
    file.rename(kept)
    for end in ("-wal", "-shm"):
        if (log_file := file.with_name(file.name + end)).exists():
            log_file.rename(kept.with_name(kept.name + end))
    log.warning("%s It is %s now; measurements start over.", problem, kept.name)


def _is_current(file: Path, folder: Path) -> bool:
    """Return True if the database has the newest migration of the folder; file names begin with their numbers.

    Raises ForeignData if a newer version made it, sqlite.Error if it is damaged.
    """
    known = sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))
    if not file.exists():
        return False
    found = sqlite.migrations_of(file)
    if unknown := [number for number in found if number not in known]:
        raise ForeignData(
            f"{file} was made by a newer version of chatapp: it is at migration {', '.join(unknown)}, and this version "
            f"knows them up to {known[-1]}. Start the newer version, or restore the backup made before the update."
        )
    return found == [known[-1]]


def _upgrade(engine: Engine, name: str) -> None:
    # Importing Alembic takes a fifth of a start, and most starts have nothing to migrate.
    from alembic import command
    from alembic.config import Config

    folder = asset_dir("migrations")
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / name).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with closing(sqlite.open_writer(engine)) as connection:
        execute = driver(connection).execute
        sqlite.begin_write(execute, time.monotonic() + sqlite.BUSY_TIMEOUT_MS / 1000)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        execute("COMMIT")
