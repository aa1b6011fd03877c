"""Brings both databases to their newest migration. Safe to run at every start, and by two starts at once."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, create_engine

from chatapp.assets import asset_dir
from chatapp.store import database_url, metrics_url
from chatapp.store.database import prepare_sqlite


def migrate(data_dir: Path) -> None:
    """Make the data directory and its databases, or bring them up to date."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(data_dir / "migrate.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the descriptor is closed
        for name, url in (("chat", database_url(data_dir)), ("metrics", metrics_url(data_dir))):
            if not _is_current(data_dir / f"{name}.db", asset_dir("migrations") / name):
                engine = create_engine(url)
                prepare_sqlite(engine, "FULL")
                _upgrade(engine, name)
                engine.dispose()
            (data_dir / f"{name}.db").chmod(0o600)
    finally:
        os.close(lock)


def _is_current(file: Path, folder: Path) -> bool:
    """Whether the database has the newest migration of the folder, whose files begin with their numbers."""
    newest = max(path.name for path in folder.glob("[0-9]*.py")).partition("_")[0]
    if not file.exists():
        return False
    try:
        with closing(sqlite3.connect(file)) as database:
            return database.execute("SELECT version_num FROM alembic_version").fetchall() == [(newest,)]
    except sqlite3.Error:  # not made yet, or not a database: Alembic goes on, or says what is wrong
        return False


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
        connection = plain.execution_options(writes=True)
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
