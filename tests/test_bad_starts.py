"""A start that cannot be says why, in a sentence; what is only measured never stops the chat."""

import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from lab.http import Client
from lab.server import EMAIL, Server, furnish, run_chatapp

PAGE = 4096
Change = Callable[[Path], object]


def shorten(data: Path) -> None:
    """Half a copy."""
    os.truncate(data / "chat.db", 5 * PAGE)


def garble(data: Path) -> None:
    """No database at all."""
    (data / "chat.db").write_bytes(os.urandom(3000))


def garble_page(number: int) -> Change:
    """A disk that lost one page."""

    def change(data: Path) -> None:
        with (data / "chat.db").open("r+b") as file:
            file.seek(number * PAGE)
            file.write(os.urandom(PAGE))

    return change


def age(data: Path) -> None:
    """The database of a version to come."""
    with closing(sqlite3.connect(data / "chat.db")) as database:
        database.executescript("UPDATE alembic_version SET version_num = '0099'")


def empty(data: Path) -> None:
    """A copy that failed at once."""
    (data / "chat.db").write_bytes(b"")
    (data / "secret-key").write_text("0" * 64)


def lose(data: Path) -> None:
    """A disk that was not mounted, but for the log."""
    (data / "chat.db-wal").write_bytes((data / "chat.db").read_bytes())
    (data / "chat.db").unlink()
    (data / "metrics.db").unlink()


def root_page(table: str, data: Path) -> int:
    """Where a table begins, counted from 0."""
    with closing(sqlite3.connect(data / "chat.db")) as database:
        row = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    return int(row[0]) - 1


def refused(server: Server) -> str:
    """What a start says that ends at once."""
    found = subprocess.run(server.command(), env=server.environment(), capture_output=True, text=True, timeout=30)
    assert found.returncode == 1, found.stdout + found.stderr
    return found.stdout + found.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shorten, "is damaged"),
        (garble, "is damaged, or no database"),
        (garble_page(1), "restore a backup"),
        (age, "made by a newer version of chatapp: it is at migration 0099"),
        (empty, "chat.db is empty, and beside it lies an earlier installation's secret-key and metrics.db"),
        (lose, "chat.db is not there, and beside it lies an earlier installation's chat.db-wal"),
    ],
)
def test_a_start_that_cannot_be_says_why_in_a_sentence(tmp_path: Path, change: Change, words: str) -> None:
    server = Server(tmp_path)
    server.data.mkdir()
    furnish(server.data)
    change(server.data)
    before = {path.name: path.read_bytes() for path in server.data.iterdir()}
    said = refused(server)
    assert words in said and str(server.data) in said
    assert said.startswith("Error: ") and said.count("\n") == 1, said
    after = {path.name: path.read_bytes() for path in server.data.iterdir() if path.name != "migrate.lock"}
    assert after.get("chat.db") == before.get("chat.db"), "what is there is left as it is"


@pytest.mark.parametrize("table", ["people", "instance"])
def test_damage_where_no_migration_looks_is_a_sentence_too(tmp_path: Path, table: str) -> None:
    server = Server(tmp_path)
    server.data.mkdir()
    furnish(server.data)
    garble_page(root_page(table, server.data))(server.data)
    said = refused(server)
    assert said.startswith("Error: ") and "is damaged" in said and said.count("\n") == 1, said
    command = ("admin", "reset-password", "--email", EMAIL, "--password", "-")
    made = run_chatapp(server, *command, typed="correct horse battery")
    assert made.returncode == 1 and made.stderr.startswith("Error: ") and "is damaged" in made.stderr


def test_a_command_beside_a_locked_database_says_so_in_a_sentence(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.data.mkdir()
    furnish(server.data)
    command = ("admin", "reset-password", "--email", EMAIL, "--password", "-")
    with closing(sqlite3.connect(server.data / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        made = run_chatapp(server, *command, typed="correct horse battery")
    assert made.returncode == 1
    words = f"Error: {server.data / 'chat.db'} is locked by another program. End that, and try again."
    assert made.stderr.splitlines()[-1] == words
    assert "Traceback" not in made.stderr


@pytest.mark.parametrize("change", ["garbage", "newer"])
def test_measurements_that_cannot_be_read_are_put_aside(tmp_path: Path, change: str) -> None:
    server = Server(tmp_path)
    server.data.mkdir()
    furnish(server.data)
    metrics = server.data / "metrics.db"
    if change == "garbage":
        metrics.write_bytes(b"not a database, but somebody's notes\n" * 200)
    else:
        with closing(sqlite3.connect(metrics)) as database:
            database.executescript("UPDATE alembic_version SET version_num = '0099'")
    before = metrics.read_bytes()
    with server:
        assert Client(server.url).sign_in().get("/").status == 200
        (kept,) = server.data.glob("metrics.db.unusable-*")
        assert kept.read_bytes()[:100] == before[:100]
        assert kept.name in server.log_text() and "Traceback" not in server.log_text()


def test_an_empty_folder_is_a_first_start_all_the_same(tmp_path: Path) -> None:
    """Also one with a knowledge folder, and one whose first start was killed before it had made a table."""
    server = Server(tmp_path, from_scratch=True)
    (server.data / "knowledge").mkdir(parents=True)
    with closing(sqlite3.connect(server.data / "chat.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
    with server:
        assert server.status("/sign-in") == 200
