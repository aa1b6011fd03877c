"""People in the database of a running server, written as a shell would: many at once, and what is stored of them."""

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

from lab.http import Client
from lab.server import EMAIL, Server


@contextmanager
def database(server: Server) -> Iterator[sqlite3.Connection]:
    """The chat's database, as a shell sees it; committed at the end."""
    with closing(sqlite3.connect(server.data / "chat.db", timeout=20)) as connection:
        yield connection
        connection.commit()


def value(server: Server, query: str, *values: object) -> object:
    """The first column of the first row."""
    with database(server) as connection:
        row = connection.execute(query, values).fetchone()
        return row[0] if row else None


def add_people(server: Server, *emails: str, operator: bool = False) -> list[str]:
    """People with the lab's password; their UUIDs."""
    uuids = [str(uuid.uuid4()) for _ in emails]
    with database(server) as connection:
        (known,) = connection.execute("SELECT password_hash FROM people WHERE email = ?", (EMAIL,)).fetchone()
        for number, email in zip(uuids, emails, strict=True):
            feed = connection.execute("INSERT INTO feeds (revision, change) VALUES (1, 1)").lastrowid
            names = "uuid, kind, name, email, password_hash, is_admin, is_operator, feed_id, created_at"
            name, now = email.partition("@")[0].title(), round(time.time() * 1000)
            row = (number, "person", name, email, known, 1, operator, feed, now)
            connection.execute(f"INSERT INTO people ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    return uuids


def signed_in(server: Server, email: str) -> Client:
    """A session of this person, on a page with a form's token."""
    return Client(server.url).sign_in(email)


def unconfirm(server: Server) -> None:
    """All passwords were entered long ago."""
    with database(server) as connection:
        connection.execute("UPDATE sessions SET confirmed_at = 1")
