"""Text files of messages: kept with the message, read by who may read it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select

from chatapp.store.database import Database, Write, now_ms
from chatapp.store.models import Attachment, Conversation, Membership, Message

# In a message's text: [file: report.csv, 12 kB, <uuid>]
REFERENCE = re.compile(r"\[file: ([^\[\]\n,]{1,120}), (\d{1,6} kB), ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\]")
MARK = "[file: "


@dataclass(frozen=True)
class File:
    """A file: its name and its text."""

    name: str
    text: str


def reference(name: str, size: int, uuid: str) -> str:
    """Return the words by which a message names a file. `size`: bytes."""
    return f"{MARK}{name}, {max(1, round(size / 1000))} kB, {uuid}]"


class Attachments:
    """Queries about files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def used(self, tx: Write, person: int) -> int:
        """Return the bytes of all of a person's files."""
        query = select(func.coalesce(func.sum(Attachment.size), 0)).where(Attachment.person_id == person)
        return int(tx.connection.execute(query).scalar_one())

    def add(self, tx: Write, person: int, message: str, uuid: str, file: File) -> None:
        """Keep a file of a message (its UUID)."""
        owner = select(Message.id).where(Message.uuid == message).scalar_subquery()
        values = {"uuid": uuid, "message_id": owner, "person_id": person, "name": file.name, "body": file.text}
        size = len(file.text.encode())
        tx.connection.execute(insert(Attachment).values(**values, size=size, created_at=now_ms()))

    def find(self, person: int, uuid: str) -> File | None:
        """Return a file, or None where the person may not read its message, or it was deleted."""
        query = (
            select(Attachment.name, Attachment.body)
            .join(Message, Message.id == Attachment.message_id)
            .join(Conversation, Conversation.id == Message.conversation_id)
            .join(Membership, Membership.conversation_id == Conversation.id)
            .where(
                Attachment.uuid == uuid,
                Membership.person_id == person,
                Membership.left_at.is_(None),
                Message.deleted_at.is_(None),
                Conversation.deleted_at.is_(None),
            )
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return File(row.name, row.body) if row else None


def files_of(connection: Connection, messages: list[int]) -> dict[int, list[File]]:
    """Return the files of messages, by message, in the order in which they came."""
    found: dict[int, list[File]] = {}
    if not messages:
        return found
    query = select(Attachment.message_id, Attachment.name, Attachment.body).where(Attachment.message_id.in_(messages))
    for message, name, body in connection.execute(query.order_by(Attachment.id)).all():
        found.setdefault(message, []).append(File(name, body))
    return found
