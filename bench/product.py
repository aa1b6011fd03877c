"""The product as it ships: `chatapp serve`, filled with people and messages by SQL, everybody signed in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from bench.load.dialects import ProductPoll, ProductSocket, Seat, Site
from bench.machine import Failed, Server, free_port

EMAIL, PASSWORD = "bench@example.org", "only for the bench, 1"
SESSION_MS = 7 * 86400 * 1000
# Off for the bench; a setting whose feature is not built yet stops the start, so it is left out then.
LIMITS_OFF = {
    "CHATAPP_RATE_LIMIT_SENDS": "off",
    "CHATAPP_RATE_LIMIT_CONNECTS": "off",
    "CHATAPP_RATE_LIMIT_POLLS": "off",
    "CHATAPP_RATE_LIMIT_PAGES": "off",
    "CHATAPP_MAX_SOCKETS_PER_USER": "off",
    "CHATAPP_MAX_SOCKETS_PER_ADDRESS": "off",
}
BATCH = 50_000


@dataclass(frozen=True)
class Sizes:
    """How much is in the database before the server starts."""

    people: int  # each with a session and a conversation of their own
    crowd: int  # sessions of the first person, who read one conversation together
    history: tuple[int, ...] = ()  # further conversations of the first person, with so many messages
    messages: int = 0  # in everybody's own conversation


@dataclass(frozen=True)
class Code:
    """Which code of the product runs: its command, and the folder where Python looks first (empty: as installed)."""

    command: Path = Path(sys.executable).parent / "chatapp"
    first: str = ""

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to load this code."""
        return {"PATH": os.environ.get("PATH", "")} | ({"PYTHONPATH": self.first} if self.first else {})


INSTALLED = Code()


def name_of(kind: str, number: int) -> str:
    """The UUID of something that was filled in: the same in every run."""
    return str(uuid5(NAMESPACE_URL, f"bench:{kind}:{number}"))


class Product:
    """A filled data directory, and servers on copies of it."""

    def __init__(self, folder: Path, sizes: Sizes, code: Code = INSTALLED, name: str = "product") -> None:
        self.folder = folder
        self.sizes = sizes
        self._code = code
        self._name = name
        self._template = folder / f"{name}-filled"
        self._cookies: dict[str, str] = {}  # by token
        self._epoch = ""
        self._copies = 0
        self._limits: dict[str, str] | None = None

    def fill(self) -> None:
        """Migrate by the product's own command, then fill in by SQL."""
        self._template.mkdir(parents=True)
        create = ["admin", "create", "--name", "Bench", "--email", EMAIL, "--password", PASSWORD]
        made = subprocess.run(
            [str(self._code.command), *create],
            env=self._environment(self._template, 1),
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise Failed(made.stderr)
        with sqlite3.connect(self._template / "chat.db") as database:
            database.execute("PRAGMA synchronous=OFF")
            _fill_people(database, self.sizes)
            self._epoch = database.execute("SELECT value FROM instance WHERE name = 'epoch'").fetchone()[0]
            database.commit()
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        tokens = [f"person-{number}" for number in range(self.sizes.people)]
        tokens += [f"crowd-{number}" for number in range(self.sizes.crowd)]
        self._cookies = _signed(self._code, (self._template / "secret-key").read_text().strip(), tokens)

    def start(self, core: int, history: bool = False, **settings: object) -> tuple[Server, Site]:
        """A server on a fresh copy of what was filled in. `settings` are CHATAPP_ names without the prefix.

        Only with `history` does it hold the long conversations: a million messages are some 600 MB.
        """
        self._copies += 1
        data = self.data
        shutil.copytree(self._template, data)
        if history:
            with sqlite3.connect(data / "chat.db") as database:
                database.execute("PRAGMA synchronous=OFF")
                for size in self.sizes.history:
                    _fill_history(database, size)
        port = free_port()
        given = {f"CHATAPP_{name.upper()}": str(value) for name, value in settings.items()}
        environment = self._environment(data, port) | self._limits_off() | {"CHATAPP_ASSISTANT": "off"} | given
        log = self.folder / f"{self._name}-{self._copies}.log"
        server = Server([str(self._code.command), "serve"], port, log, environment, core).wait_ready("/readyz")
        return server, self.site(port, data)

    def site(self, port: int, data: Path) -> Site:
        """What the load generator must know of a server on this data."""
        return Site(
            port=port,
            dialect=ProductSocket,
            held=ProductPoll,
            path="/ws",
            seats=lambda number: self.seat(data, number),
            crowd=lambda number: self.crowd_seat(data, number),
            poll_path=self.poll_path,
        )

    def seat(self, data: Path, number: int) -> Seat:
        """Person `number`, in their own conversation, from its newest revision."""
        number %= self.sizes.people
        room = name_of("room", number)
        return Seat(self._cookies[f"person-{number}"], room, cursor(data, room))

    def crowd_seat(self, data: Path, number: int) -> Seat:
        """Session `number` of the first person, in the first conversation."""
        room = name_of("room", 0)
        return Seat(self._cookies[f"crowd-{number % self.sizes.crowd}"], room, cursor(data, room))

    def history_seat(self, data: Path, size: int) -> Seat:
        """The first person, in the conversation with so many messages."""
        room = name_of("history", size)
        return Seat(self._cookies["person-0"], room, cursor(data, room))

    def poll_path(self, seat: Seat) -> str:
        """A poll from the seat's cursor."""
        return f"/changes?epoch={self._epoch}&c={seat.room}:{seat.cursor}"

    @property
    def data(self) -> Path:
        """The newest copy's directory."""
        return self.folder / f"{self._name}-{self._copies}"

    def _environment(self, data: Path, port: int) -> dict[str, str]:
        own = {"HOST": "127.0.0.1", "PORT": str(port), "DATA_DIR": str(data)}
        return {**self._code.environment(), **own}

    def _limits_off(self) -> dict[str, str]:
        if self._limits is not None:
            return self._limits
        command = [str(self._code.command), "config", "--json"]
        found = subprocess.run(command, capture_output=True, text=True, env=self._environment(self.folder, 1))
        built = {row["name"] for row in json.loads(found.stdout) if "not built yet" not in row["meaning"]}
        self._limits = {name: value for name, value in LIMITS_OFF.items() if name in built}
        return self._limits


def cursor(data: Path, room: str) -> int:
    """A conversation's newest revision."""
    query = "SELECT f.revision FROM feeds f JOIN conversations c ON c.feed_id = f.id WHERE c.uuid = ?"
    return int(_reader(data).execute(query, (room,)).fetchone()[0])


@cache
def _reader(data: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{data / 'chat.db'}?mode=ro", uri=True, isolation_level=None)


def answer_html_bytes(data: Path, room: str) -> int:
    """Bytes of HTML of the newest answer in a conversation."""
    query = (
        "SELECT sum(length(CAST(b.html AS BLOB))) FROM blocks b WHERE b.message_id = (SELECT max(m.id) FROM messages m"
        " JOIN conversations c ON c.id = m.conversation_id JOIN people p ON p.id = m.author_id"
        " WHERE c.uuid = ? AND p.kind = 'assistant')"
    )
    return int(_reader(data).execute(query, (room,)).fetchone()[0] or 0)


SIGN = """
import json, sys
from flask import Flask
try:
    from chatapp.accounts.auth import Sessions
except ModuleNotFoundError:  # of a commit before there were accounts
    from chatapp.auth import Sessions
given = json.load(sys.stdin)
app = Flask("bench")
app.secret_key = given["key"]
serializer = Sessions().get_signing_serializer(app)
print(json.dumps({token: serializer.dumps({"token": token, "_permanent": True}) for token in given["tokens"]}))
"""


def _signed(code: Code, key: str, tokens: list[str]) -> dict[str, str]:
    """Cookies as this code signs them, by token; to sign in 10,000 people by the form would take an hour."""
    command = [str(code.command.parent / "python"), "-P", "-c", SIGN]
    given = json.dumps({"key": key, "tokens": tokens})
    done = subprocess.run(command, input=given, env=code.environment(), capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr)
    name = f"chatapp_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return {token: f"{name}={value}" for token, value in json.loads(done.stdout).items()}


def _fill_people(database: sqlite3.Connection, sizes: Sizes) -> None:
    now = time.time_ns() // 1_000_000
    first = _next(database, "people")
    for number in range(sizes.people):
        person = first + number
        list_feed = _feed(database, 2)
        database.execute(
            "INSERT INTO people (id, uuid, kind, name, email, password_hash, is_admin, feed_id, created_at)"
            " VALUES (?, ?, 'person', ?, ?, '-', 1, ?, ?)",
            (person, name_of("person", number), f"Person {number}", f"p{number}@example.org", list_feed, now),
        )
        _session(database, person, f"person-{number}", now)
        conversation = _conversation(database, person, name_of("room", number), 1, now)
        _fill_messages(database, person, conversation, sizes.messages, f"own-{number}")
    for number in range(sizes.crowd):
        _session(database, first, f"crowd-{number}", now)


def _fill_history(database: sqlite3.Connection, size: int) -> None:
    now = time.time_ns() // 1_000_000
    person = database.execute("SELECT id FROM people WHERE uuid = ?", (name_of("person", 0),)).fetchone()[0]
    conversation = _conversation(database, person, name_of("history", size), 1, now)
    _fill_messages(database, person, conversation, size, f"history-{size}")


def _fill_messages(database: sqlite3.Connection, person: int, conversation: int, size: int, names: str) -> None:
    now = time.time_ns() // 1_000_000

    def rows() -> Iterator[tuple[object, ...]]:
        for number in range(size):
            uuid, at = name_of(names, number), number + 2
            yield uuid, conversation, person, uuid, at, at, at, f"Message {number} ".ljust(200, "x"), now

    insert = (
        "INSERT INTO messages (uuid, conversation_id, author_id, client_id, position, revision, state,"
        " state_revision, body, created_at) VALUES (?, ?, ?, ?, ?, ?, 'sent', ?, ?, ?)"
    )
    database.executemany(insert, rows())
    database.execute(
        "UPDATE feeds SET revision = ? WHERE id = (SELECT feed_id FROM conversations WHERE id = ?)",
        (size + 1, conversation),
    )


def _next(database: sqlite3.Connection, table: str) -> int:
    return int(database.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0])


def _feed(database: sqlite3.Connection, revision: int) -> int:
    change = "(SELECT max(change) + 1 FROM feeds)"
    inserted = database.execute(f"INSERT INTO feeds (revision, change) VALUES (?, {change})", (revision,))
    return int(inserted.lastrowid or 0)


def _session(database: sqlite3.Connection, person: int, token: str, now: int) -> None:
    hashed = hashlib.sha256(token.encode()).hexdigest()
    row = (str(uuid5(NAMESPACE_URL, f"bench:session:{token}")), person, hashed, now, now + SESSION_MS)
    database.execute(
        "INSERT INTO sessions (uuid, person_id, token_hash, address, user_agent, created_at, expires_at)"
        " VALUES (?, ?, ?, '127.0.0.1', 'bench', ?, ?)",
        row,
    )


def _conversation(database: sqlite3.Connection, person: int, uuid: str, revision: int, now: int) -> int:
    feed = _feed(database, revision)
    made = database.execute(
        "INSERT INTO conversations (uuid, feed_id, title, created_by, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (uuid, feed, "A conversation of the bench", person, now, now),
    )
    conversation = int(made.lastrowid or 0)
    database.execute(
        "INSERT INTO memberships (conversation_id, person_id, role, list_revision, joined_at)"
        " VALUES (?, ?, 'owner', 2, ?)",
        (conversation, person, now),
    )
    return conversation
