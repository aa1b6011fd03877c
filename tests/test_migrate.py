"""A start brings the databases up to date, and leaves alone what is."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Integer, MetaData, create_engine

from chatapp.config import asset_dir
from chatapp.store.migrate import ForeignData, UnusableData, migrate, problem_of
from chatapp.store.models import db

NAMES = ("chat", "metrics")
NEWEST = "0016"  # of chat
LOADED = "import sys; from pathlib import Path; from chatapp.store.migrate import migrate; migrate(Path(sys.argv[1]));"


def version(file: Path) -> str:
    """What Alembic wrote into a database."""
    with closing(sqlite3.connect(file)) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_file_is_the_newest_migration(name: str) -> None:
    """Files are named by their numbers, which stand in one line: a start asks the names only."""
    config = Config()
    config.set_main_option("script_location", str(asset_dir("migrations")))
    config.set_main_option("version_locations", str(asset_dir("migrations") / name))
    config.set_main_option("path_separator", "os")
    migrations = list(ScriptDirectory.from_config(config).walk_revisions())
    assert [Path(one.path).name.partition("_")[0] for one in migrations] == [one.revision for one in migrations]
    assert [one.revision for one in migrations] == [f"{number:04}" for number in range(len(migrations), 0, -1)]


def test_nothing_is_loaded_where_nothing_is_to_do(tmp_path: Path) -> None:
    """The first start makes both databases, the second does not even load Alembic."""
    for loads in (True, False):
        script = f"{LOADED} print('alembic' in sys.modules)"
        command = [sys.executable, "-c", script, str(tmp_path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        assert found.stdout.strip() == str(loads)
    assert [version(tmp_path / f"{name}.db") for name in NAMES] == [NEWEST, "0005"]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A data directory as it was some migrations ago."""
    migrate(tmp_path)
    with closing(sqlite3.connect(tmp_path / "chat.db")) as database:
        database.executescript(
            "ALTER TABLE sessions DROP COLUMN transport; ALTER TABLE sessions DROP COLUMN transport_at;"
            "ALTER TABLE conversations DROP COLUMN answers; DROP TABLE audit; DROP TABLE leases; DROP TABLE links;"
            "DROP TABLE attachments; DROP INDEX people_deleted; ALTER TABLE messages DROP COLUMN phase;"
            "ALTER TABLE messages DROP COLUMN figures; ALTER TABLE runs DROP COLUMN goes_on;"
            "ALTER TABLE runs DROP COLUMN asked_by;"
            "ALTER TABLE conversations DROP COLUMN model; ALTER TABLE conversations DROP COLUMN instructions;"
            "ALTER TABLE people DROP COLUMN deleted_at; ALTER TABLE people DROP COLUMN erased_at;"
            "ALTER TABLE sessions DROP COLUMN last_seen_at; ALTER TABLE sessions DROP COLUMN confirmed_at;"
            "ALTER TABLE sessions DROP COLUMN access_until; ALTER TABLE sessions DROP COLUMN idle_until;"
            "DROP INDEX sessions_new_device; ALTER TABLE sessions DROP COLUMN is_new_device;"
            "INSERT INTO sessions (uuid, person_id, token_hash, address, user_agent, created_at, expires_at)"
            " VALUES ('a', 1, 'a', '', '', 17, 99);"
            "ALTER TABLE runs DROP COLUMN revision; ALTER TABLE runs DROP COLUMN ahead; DROP TABLE network_memory;"
            "UPDATE alembic_version SET version_num = '0003'"
        )
    return tmp_path


def test_a_migration_waits_for_who_is_writing(older: Path) -> None:
    """As at an upgrade without an interruption, where the old process still works."""
    other = sqlite3.connect(older / "chat.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(1, lambda: other.execute("COMMIT")).start()
    migrate(older)
    assert version(older / "chat.db") == NEWEST
    other.close()


def test_only_what_can_never_be_used_is_put_aside(tmp_path: Path) -> None:
    """Not what is locked, or cannot be written for now."""
    locked, damaged = sqlite3.OperationalError("locked"), sqlite3.DatabaseError("malformed")
    locked.sqlite_errorcode, damaged.sqlite_errorcode = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CORRUPT
    found = [problem_of(tmp_path / "metrics.db", error) for error in (locked, damaged)]
    assert [type(one) for one in found] == [UnusableData, ForeignData]


def test_an_older_database_is_brought_up_to_date(older: Path) -> None:
    migrate(older)
    assert version(older / "chat.db") == NEWEST
    with closing(sqlite3.connect(older / "chat.db")) as database:
        assert database.execute("SELECT count(*) FROM network_memory").fetchone() == (0,)
        columns = "last_seen_at, confirmed_at, access_until, idle_until"
        assert database.execute(f"SELECT {columns} FROM sessions").fetchone() == (17, 0, 99, 99)


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """Rather than used as if its tables were ours."""
    migrate(tmp_path)
    with closing(sqlite3.connect(tmp_path / "chat.db")) as database:
        database.executescript("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(UnusableData, match="0099"):
        migrate(tmp_path)


def is_another_type(_context: object, _there: object, _model: object, there: Any, model: Any) -> bool | None:
    """False: the same; None: as Alembic decides. SQLite has one type for integers; two migrations named another."""
    return False if isinstance(there, Integer) and isinstance(model, Integer) else None


@pytest.mark.parametrize(("file", "metadata"), [("chat", db.metadata), ("metrics", db.metadatas["metrics"])])
def test_the_models_are_what_the_migrations_make(tmp_path: Path, file: str, metadata: MetaData) -> None:
    migrate(tmp_path)
    engine = create_engine(f"sqlite:///{tmp_path}/{file}.db")
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": is_another_type})
            different = [str(change) for change in compare_metadata(context, metadata)]
            assert [one for one in different if "auth_generation" not in one] == [], "that column is no longer used"
    finally:
        engine.dispose()
