"""Databases with much in them, which would take long to say by requests."""

import sqlite3
import uuid

from lab.server import Server


def many_conversations(server: Server, count: int) -> None:
    """So many conversations of the one person there is, with the one that is there; some have the same time."""
    database = sqlite3.connect(server.data / "chat.db")
    (person,) = database.execute("SELECT id FROM people WHERE kind = 'person'").fetchone()
    (now,) = database.execute("SELECT max(updated_at) FROM conversations").fetchone()
    for number in range(1, count):
        feed = database.execute("INSERT INTO feeds SELECT NULL, 1, 1 FROM feeds LIMIT 1").lastrowid
        values = (str(uuid.uuid4()), feed, f"number {number} of desk@example.org", person, now, now - number // 7)
        row = "uuid, feed_id, title, created_by, created_at, updated_at"
        made = database.execute(f"INSERT INTO conversations ({row}) VALUES (?, ?, ?, ?, ?, ?)", values).lastrowid
        values = (made, person, "owner", now, 1)
        row = "conversation_id, person_id, role, joined_at, list_revision"
        database.execute(f"INSERT INTO memberships ({row}) VALUES (?, ?, ?, ?, ?)", values)
    database.commit()
    database.close()
