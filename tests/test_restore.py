"""The commands of docs/operations.md for backup and restore, as they stand there, on a server that is written to."""

import re
import sqlite3
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path

from lab.http import Client
from lab.server import ROOT, Server

MANUAL = (ROOT / "docs" / "operations.md").read_text()


def manual_sql(beginning: str) -> str:
    """The SQL of the manual's sqlite3 command that begins so."""
    found = re.search(rf'sqlite3 "\$DATA_DIR/chat\.db" "\s*({beginning}[^"]*)"', MANUAL)
    assert found, beginning
    return found[1]


def execute(database: Path, sql: str) -> None:
    """Run it as the sqlite3 program would."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as connection:
        connection.executescript(sql)


class Writing(threading.Thread):
    """Posts all the while."""

    def __init__(self, client: Client, conversation: str) -> None:
        super().__init__(daemon=True)
        self._client, self._conversation = client, conversation
        self._stopped = threading.Event()
        self.posted = 0

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            assert self._client.post_message(self._conversation, f"message {self.posted}").status == 201
            self.posted += 1

    def end(self) -> None:
        self._stopped.set()
        self.join(10)


def test_a_backup_under_writes_ends_and_its_restore_revives_nothing(tmp_path: Path) -> None:
    backup = tmp_path / "chat.db"
    with Server(tmp_path / "old", assistant="off") as server:
        client = Client(server.url).sign_in()
        conversation = str(uuid.uuid4())
        client.create("hello", conversation)
        ended = client.clone()  # keeps the cookie that the sign-out takes from the other one
        writing = Writing(client.clone(), conversation)
        writing.start()
        execute(server.data / "chat.db", manual_sql("VACUUM INTO").replace("/backup/chat.db", str(backup)))
        there = writing.posted
        writing.end()
        client.post("/sign-out")
        secret, epoch = (server.data / "secret-key").read_bytes(), epoch_of(server.data)
    with closing(sqlite3.connect(backup)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        # An answer that was waiting at that moment.
        database.execute("INSERT INTO runs (uuid, conversation_id, state, created_at) SELECT 'waiting', 1, 'queued', 1")
        database.commit()

    restored = Server(tmp_path / "new", seeded=False, port=server.port)
    restored.data.mkdir(parents=True, mode=0o700)
    (restored.data / "secret-key").write_bytes(secret)
    (restored.data / "chat.db").write_bytes(backup.read_bytes())
    execute(restored.data / "chat.db", manual_sql("UPDATE instance"))
    with restored:
        assert epoch_of(restored.data) != epoch
        assert "Sign out" not in ended.get("/").text, "a session that was ended stays so"
        me = Client(restored.url).sign_in()
        assert len(me.history(conversation)) >= 1 + there - 1
        time.sleep(1.2)  # a look of the runner
        with closing(sqlite3.connect(restored.data / "chat.db")) as database:
            assert database.execute("SELECT state FROM runs WHERE uuid = 'waiting'").fetchone() == ("stopped",)


def epoch_of(data: Path) -> str:
    """The database's name."""
    with closing(sqlite3.connect(data / "chat.db")) as database:
        return str(database.execute("SELECT value FROM instance WHERE name = 'epoch'").fetchone()[0])
