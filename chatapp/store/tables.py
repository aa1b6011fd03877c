"""Tables. Integer keys inside, UUIDs outside; times are milliseconds since 1970 UTC."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

db = SQLAlchemy()
meta = db.metadata
metrics_meta = db.metadatas.setdefault("metrics", MetaData())

Id = BigInteger().with_variant(Integer, "sqlite")

instance = Table(
    "instance",
    meta,
    Column("name", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)

# A feed is a sequence of changes, each with a revision; `change` is a database-wide number of its newest change.
feeds = Table(
    "feeds",
    meta,
    Column("id", Id, primary_key=True),
    Column("revision", Id, nullable=False, server_default="0"),
    Column("change", Id, nullable=False, server_default="0"),
    Index("feeds_change", "change"),
)

people = Table(
    "people",
    meta,
    Column("id", Id, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("kind", String(10), nullable=False),  # person, assistant
    Column("name", String(200), nullable=False),
    Column("email", String(320), unique=True),
    Column("password_hash", String(300)),
    Column("is_admin", Boolean, nullable=False, server_default="0"),
    Column("is_operator", Boolean, nullable=False, server_default="0"),
    Column("feed_id", Id, ForeignKey("feeds.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger),
)

sessions = Table(
    "sessions",
    meta,
    Column("id", Id, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("person_id", Id, ForeignKey("people.id"), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("address", String(45), nullable=False),
    Column("user_agent", String(300), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Index("sessions_person", "person_id"),
    Index("sessions_revoked", "revoked_at"),
)

conversations = Table(
    "conversations",
    meta,
    Column("id", Id, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("feed_id", Id, ForeignKey("feeds.id"), nullable=False),
    Column("title", String(200), nullable=False, server_default=""),
    Column("created_by", Id, ForeignKey("people.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
)

memberships = Table(
    "memberships",
    meta,
    Column("conversation_id", Id, ForeignKey("conversations.id"), primary_key=True),
    Column("person_id", Id, ForeignKey("people.id"), primary_key=True),
    Column("role", String(10), nullable=False),  # owner, member
    Column("list_revision", Id, nullable=False),  # of the person's list feed, when this entry last changed
    Column("read_position", Id, nullable=False, server_default="0"),
    Column("joined_at", BigInteger, nullable=False),
    Column("left_at", BigInteger),
    Index("memberships_list", "person_id", "list_revision"),
)

messages = Table(
    "messages",
    meta,
    Column("id", Id, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("conversation_id", Id, ForeignKey("conversations.id"), nullable=False),
    Column("author_id", Id, ForeignKey("people.id"), nullable=False),
    Column("client_id", String(36), nullable=False),
    Column("position", Id, nullable=False),  # the revision at its creation; never changes
    Column("revision", Id, nullable=False),  # of its last change
    Column("state", String(12), nullable=False),
    Column("state_revision", Id, nullable=False),  # of the last change of `state`
    Column("body", Text, nullable=False),
    Column("error", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("edited_at", BigInteger),
    Column("deleted_at", BigInteger),
    Column("superseded_by", Id, ForeignKey("messages.id")),
    UniqueConstraint("conversation_id", "author_id", "client_id", name="messages_client"),
    UniqueConstraint("conversation_id", "position", name="messages_position"),
    Index("messages_revision", "conversation_id", "revision"),
)

# An answer is a list of blocks, one for each top-level Markdown block. `steps` is JSON: for the newest changes,
# [revision before, revision after, length of the common prefix], so that a reader gets only the appended text.
blocks = Table(
    "blocks",
    meta,
    Column("message_id", Id, ForeignKey("messages.id"), primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("revision", Id, nullable=False),
    Column("html", Text, nullable=False),
    Column("steps", Text, nullable=False, server_default="[]"),
)

runs = Table(
    "runs",
    meta,
    Column("id", Id, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("conversation_id", Id, ForeignKey("conversations.id"), nullable=False),
    Column("message_id", Id, ForeignKey("messages.id")),
    Column("state", String(12), nullable=False),
    Column("stop_asked", Boolean, nullable=False, server_default="0"),
    Column("lease", String(36)),
    Column("heartbeat_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("error", Text),
    Column("revision", Id),  # of the conversation's feed, at the last visible change of a queued run
    Column("ahead", Integer, nullable=False, server_default="0"),  # number of answers before it while it is queued
    Index("runs_state", "state", "heartbeat_at"),
    Index("runs_conversation", "conversation_id", "state"),
)

# Fault injection. `slot` names the scheduled time, so that only one of several workers starts it.
drills = Table(
    "drills",
    meta,
    Column("id", Id, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("fault", String(10), nullable=False),
    Column("person_id", Id, ForeignKey("people.id")),  # NULL: everybody
    Column("amount_s", Float, nullable=False),
    Column("starts_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    Column("slot", String(40), unique=True),
    Index("drills_ends", "ends_at"),
)

# Network memory; `network` is network_memory.network_key().
network_memory = Table(
    "network_memory",
    meta,
    Column("person_id", Id, ForeignKey("people.id", ondelete="CASCADE"), primary_key=True),
    Column("network", String(12), primary_key=True),
    Column("worked", Float, nullable=False),
    Column("failed", Float, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kill_gap", Integer, nullable=False),  # ms; 0: unknown
)

connection_events = Table(
    "connection_events",
    metrics_meta,
    Column("id", Id, primary_key=True),
    Column("client", String(36), nullable=False),  # a page, or the server's side of a connection
    Column("number", Integer, nullable=False),
    Column("person", String(36), nullable=False),
    Column("type", String(20), nullable=False),
    Column("transport", String(10)),
    Column("state_from", String(12)),
    Column("state_to", String(12)),
    Column("reason", String(40)),
    Column("happened_at", BigInteger, nullable=False),  # the client's clock
    Column("received_at", BigInteger, nullable=False),
    Column("data", Text, nullable=False, server_default="{}"),
    UniqueConstraint("client", "number", name="connection_events_number"),
    Index("connection_events_received", "received_at"),
)
