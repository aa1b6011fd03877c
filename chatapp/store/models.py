"""Models of both databases. Integer keys inside, UUIDs outside; times are milliseconds since 1970 UTC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers only INTEGER keys by itself.
Id = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"))]
Ms = Annotated[int, mapped_column(BigInteger)]
Long = Annotated[str, mapped_column(Text)]
OWN = text("person = ''")  # events of workers and networks, few among those of people
NEVER = str((1 << 53) - 1)  # a time, ms
Uuid = Annotated[str, mapped_column(String(36))]


class Base(DeclarativeBase):
    """The base of all models."""


db = SQLAlchemy(model_class=Base)
if TYPE_CHECKING:
    Model = Base
else:
    Model = db.Model


class InstanceValue(Model):
    """A named fact of this database: its epoch, its histories, its first admin."""

    __tablename__ = "instance"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[Long]


class Feed(Model):
    """A sequence of changes, each with a revision; `change` is the database-wide number of its newest change."""

    __tablename__ = "feeds"
    __table_args__ = (Index("feeds_change", "change"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    revision: Mapped[Id] = mapped_column(server_default="0")
    change: Mapped[Id] = mapped_column(server_default="0")


class Person(Model):
    """A member of conversations: a person with an account, or the assistant. A deleted one has no name and address."""

    __tablename__ = "people"
    __table_args__ = (Index("people_deleted", "deleted_at"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(String(10))  # person, assistant
    name: Mapped[str] = mapped_column(String(200))
    email: Mapped[str | None] = mapped_column(String(320), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(300))
    is_admin: Mapped[bool] = mapped_column(server_default="0")
    is_operator: Mapped[bool] = mapped_column(server_default="0")
    feed_id: Mapped[Id] = mapped_column(ForeignKey("feeds.id"))
    created_at: Mapped[Ms]
    disabled_at: Mapped[Ms | None]
    deleted_at: Mapped[Ms | None]
    erased_at: Mapped[Ms | None]  # when the last of a deleted person's data was gone: erasure.py


class AuthSession(Model):
    """A sign-in. Only the hash of its token is stored."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index("sessions_person", "person_id"),
        Index("sessions_revoked", "revoked_at"),
        Index("sessions_new_device", "person_id", "is_new_device"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    person_id: Mapped[Id] = mapped_column(ForeignKey("people.id"))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    address: Mapped[str] = mapped_column(String(45))
    user_agent: Mapped[str] = mapped_column(String(300))
    created_at: Mapped[Ms]
    access_until: Mapped[Ms] = mapped_column(server_default=NEVER)  # a renewal extends it, and then
    idle_until: Mapped[Ms] = mapped_column(server_default=NEVER)  # this: without one the session has ended
    expires_at: Mapped[Ms]
    revoked_at: Mapped[Ms | None]
    last_seen_at: Mapped[Ms] = mapped_column(server_default="0")  # some minutes late: last_seen.py
    transport: Mapped[str] = mapped_column(String(10), server_default="")  # websocket, polling; "": of neither
    transport_at: Mapped[Ms] = mapped_column(server_default="0")
    is_new_device: Mapped[bool] = mapped_column(server_default="0")  # until the person says that it was them
    confirmed_at: Mapped[Ms] = mapped_column(server_default="0")  # when the password was entered last


class Lease(Model):
    """What a person has used of a budget, as of a time."""

    __tablename__ = "leases"

    kind: Mapped[str] = mapped_column(String(10), primary_key=True)
    person_id: Mapped[Id] = mapped_column(ForeignKey("people.id"), primary_key=True)
    used: Mapped[float] = mapped_column(Float)
    at: Mapped[Ms]


class Link(Model):
    """A link that works once: an invitation, or another password. Only the hash of its token is stored."""

    __tablename__ = "links"
    __table_args__ = (
        Index("links_expires", "expires_at"),
        Index("links_email", "email"),
        Index("links_person", "person_id"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(String(10))  # invite, reset
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    email: Mapped[str | None] = mapped_column(String(320))  # of an invitation
    is_operator: Mapped[bool] = mapped_column(server_default="0")  # the invited person's role
    person_id: Mapped[Id | None] = mapped_column(ForeignKey("people.id"))  # of a reset; who accepted an invitation
    created_at: Mapped[Ms]
    expires_at: Mapped[Ms]
    spent_at: Mapped[Ms | None]
    revoked_at: Mapped[Ms | None]


class AuditEvent(Model):
    """An act of a person, of a stranger or of a shell. Triggers refuse changes."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_at", "at"),
        Index("audit_actor", "actor_id"),
        Index("audit_person", "person_id"),
        Index("audit_action", "action"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    at: Mapped[Ms]
    action: Mapped[str] = mapped_column(String(20))
    actor_id: Mapped[Id | None] = mapped_column(ForeignKey("people.id"))
    person_id: Mapped[Id | None] = mapped_column(ForeignKey("people.id"))  # to whom
    link_id: Mapped[Id | None] = mapped_column(ForeignKey("links.id"))
    address: Mapped[str] = mapped_column(String(45))  # or SHELL, SCHEDULE
    detail: Mapped[Long] = mapped_column(server_default="")  # never a name or an address


class Conversation(Model):
    """A conversation; a deleted one keeps its rows."""

    __tablename__ = "conversations"

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    feed_id: Mapped[Id] = mapped_column(ForeignKey("feeds.id"))
    title: Mapped[str] = mapped_column(String(200), server_default="")
    created_by: Mapped[Id] = mapped_column(ForeignKey("people.id"))
    created_at: Mapped[Ms]
    updated_at: Mapped[Ms]
    deleted_at: Mapped[Ms | None]
    answers: Mapped[str] = mapped_column(String(10), server_default="always")  # or addressed: only then
    model: Mapped[str] = mapped_column(String(120), server_default="")  # "": the operator's
    instructions: Mapped[Long] = mapped_column(server_default="")  # for the model, beside the operator's


class Membership(Model):
    """A person's part in a conversation, and its entry in their list."""

    __tablename__ = "memberships"
    __table_args__ = (Index("memberships_list", "person_id", "list_revision"),)

    conversation_id: Mapped[Id] = mapped_column(ForeignKey("conversations.id"), primary_key=True)
    person_id: Mapped[Id] = mapped_column(ForeignKey("people.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(10))  # owner, member
    list_revision: Mapped[Id]  # of the person's list feed, when this entry last changed
    read_position: Mapped[Id] = mapped_column(server_default="0")
    joined_at: Mapped[Ms]
    left_at: Mapped[Ms | None]


class Message(Model):
    """A message of a person or of the assistant; a deleted one is a tombstone."""

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("conversation_id", "author_id", "client_id", name="messages_client"),
        UniqueConstraint("conversation_id", "position", name="messages_position"),
        Index("messages_revision", "conversation_id", "revision"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    conversation_id: Mapped[Id] = mapped_column(ForeignKey("conversations.id"))
    author_id: Mapped[Id] = mapped_column(ForeignKey("people.id"))
    client_id: Mapped[Uuid]
    position: Mapped[Id]  # the revision at its creation; never changes
    revision: Mapped[Id]  # of its last change
    state: Mapped[str] = mapped_column(String(12))
    state_revision: Mapped[Id]  # of the last change of `state`
    body: Mapped[Long]
    error: Mapped[Long | None]
    created_at: Mapped[Ms]
    edited_at: Mapped[Ms | None]
    deleted_at: Mapped[Ms | None]
    superseded_by: Mapped[Id | None] = mapped_column(ForeignKey("messages.id"))
    phase: Mapped[str | None] = mapped_column(
        String(40)
    )  # of a running answer without a word: asking, thinking, paused
    figures: Mapped[Long | None]  # of an answer: what it took, as JSON


class Attachment(Model):
    """A text file of a person's message, which names it."""

    __tablename__ = "attachments"
    __table_args__ = (Index("attachments_message", "message_id"), Index("attachments_person", "person_id"))

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    message_id: Mapped[Id] = mapped_column(ForeignKey("messages.id"))
    person_id: Mapped[Id] = mapped_column(ForeignKey("people.id"))
    name: Mapped[str] = mapped_column(String(120))
    size: Mapped[int]  # bytes
    body: Mapped[Long]
    created_at: Mapped[Ms]


class Block(Model):
    """A top-level Markdown block of an answer. `steps` is JSON (see store/steps.py): the parts
    left alone by its newest changes, so that a reader gets only the text in between."""

    __tablename__ = "blocks"

    message_id: Mapped[Id] = mapped_column(ForeignKey("messages.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    revision: Mapped[Id]
    html: Mapped[Long]
    steps: Mapped[Long] = mapped_column(server_default="[]")


class Run(Model):
    """The work on one answer."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("runs_state", "state", "heartbeat_at"),
        Index("runs_conversation", "conversation_id", "state"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    conversation_id: Mapped[Id] = mapped_column(ForeignKey("conversations.id"))
    message_id: Mapped[Id | None] = mapped_column(ForeignKey("messages.id"))
    state: Mapped[str] = mapped_column(String(12))
    stop_asked: Mapped[bool] = mapped_column(server_default="0")
    lease: Mapped[Uuid | None]
    heartbeat_at: Mapped[Ms | None]
    created_at: Mapped[Ms]
    started_at: Mapped[Ms | None]
    ended_at: Mapped[Ms | None]
    error: Mapped[Long | None]
    revision: Mapped[Id | None]  # of the conversation's feed, at the last visible change of a queued run
    asked_by: Mapped[Id | None]  # the person whose budget it takes
    goes_on: Mapped[bool] = mapped_column(server_default="0")  # where the answer before it was interrupted
    ahead: Mapped[int] = mapped_column(server_default="0")  # number of answers before it while it is queued


class Drill(Model):
    """An injected fault. `slot` names the scheduled time, so that only one of several workers starts it."""

    __tablename__ = "drills"
    __table_args__ = (Index("drills_ends", "ends_at"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    uuid: Mapped[Uuid] = mapped_column(unique=True)
    fault: Mapped[str] = mapped_column(String(10))
    person_id: Mapped[Id | None] = mapped_column(ForeignKey("people.id"))  # None: everybody
    amount_s: Mapped[float] = mapped_column(Float)
    starts_at: Mapped[Ms]
    ends_at: Mapped[Ms]
    slot: Mapped[str | None] = mapped_column(String(40), unique=True)


class NetworkMemory(Model):
    """A person's experiences with WebSocket on one network; `network` is network_memory.network_key()."""

    __tablename__ = "network_memory"
    __table_args__ = (Index("network_memory_network", "network"),)

    person_id: Mapped[Id] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), primary_key=True)
    network: Mapped[str] = mapped_column(String(12), primary_key=True)
    worked: Mapped[float] = mapped_column(Float)
    failed: Mapped[float] = mapped_column(Float)
    at: Mapped[Ms]
    kill_gap: Mapped[int]  # ms; 0: unknown


class ConnectionEvent(Model):
    """An event of a page, or of the server's side of a connection; in the metrics database."""

    __tablename__ = "connection_events"
    __bind_key__ = "metrics"
    __table_args__ = (
        UniqueConstraint("client", "number", name="connection_events_number"),
        Index("connection_events_received", "received_at"),
        Index("connection_events_at", "at"),
        Index("connection_events_page", "page", "at"),
        Index("connection_events_own", "type", "at", sqlite_where=OWN, postgresql_where=OWN),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    client: Mapped[Uuid]
    number: Mapped[int]
    person: Mapped[Uuid]
    type: Mapped[str] = mapped_column(String(20))
    transport: Mapped[str | None] = mapped_column(String(10))
    state_from: Mapped[str | None] = mapped_column(String(12))
    state_to: Mapped[str | None] = mapped_column(String(12))
    reason: Mapped[str | None] = mapped_column(String(40))
    happened_at: Mapped[Ms]  # the client's clock
    received_at: Mapped[Ms]
    data: Mapped[Long] = mapped_column(server_default="{}")
    page: Mapped[Uuid] = mapped_column(server_default="")  # of a socket: the one that opened it
    network: Mapped[str] = mapped_column(String(12), server_default="")  # network_memory.network_key(); "": unknown
    agent: Mapped[str] = mapped_column(String(60), server_default="")  # browser and system, in English
    at: Mapped[Ms] = mapped_column(server_default="0")  # when it happened, by the server's clock


class Total(Model):
    """Sums that outlive the rows that they are made of, as JSON; in the metrics database."""

    __tablename__ = "totals"
    __bind_key__ = "metrics"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    data: Mapped[Long]


class ErrorGroup(Model):
    """Errors of one fingerprint, of the server or of browsers; in the metrics database."""

    __tablename__ = "error_groups"
    __bind_key__ = "metrics"
    __table_args__ = (Index("error_groups_last", "last_at"),)

    fingerprint: Mapped[str] = mapped_column(String(16), primary_key=True)
    side: Mapped[str] = mapped_column(String(10))  # server, browser
    title: Mapped[str] = mapped_column(String(200))
    sample: Mapped[Long]  # where it came from: never a value
    version: Mapped[str] = mapped_column(String(40))  # of the last one
    number: Mapped[Ms]
    first_at: Mapped[Ms]
    last_at: Mapped[Ms]


class Question(Model):
    """A question that the knowledge folder did not answer, or words about a document that did not help; never a
    person. In the metrics database."""

    __tablename__ = "questions"
    __bind_key__ = "metrics"
    __table_args__ = (UniqueConstraint("slug", "text", name="questions_once"), Index("questions_last", "last_at"))

    id: Mapped[Id] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(100))  # of the document that did not help; "": a question
    text: Mapped[str] = mapped_column(String(300))
    kind: Mapped[str] = mapped_column(String(10))  # not-found, not-sure, no-help
    number: Mapped[Ms]
    last_at: Mapped[Ms]


class Rollup(Model):
    """The figures of a minute or an hour, as JSON (monitoring/figures.py); in the metrics database."""

    __tablename__ = "rollups"
    __bind_key__ = "metrics"

    span: Mapped[str] = mapped_column(String(1), primary_key=True)  # m, h
    start: Mapped[Ms] = mapped_column(primary_key=True)
    data: Mapped[Long]


class LivePage(Model):
    """The state of a live page at the end of the last minute, as JSON; in the metrics database."""

    __tablename__ = "live_pages"
    __bind_key__ = "metrics"

    page: Mapped[Uuid] = mapped_column(primary_key=True)
    data: Mapped[Long]


class WorkerRow(Model):
    """A worker's figures of itself, as JSON, every few seconds; in the metrics database."""

    __tablename__ = "worker_rows"
    __bind_key__ = "metrics"

    worker: Mapped[str] = mapped_column(String(40), primary_key=True)
    at: Mapped[Ms]
    data: Mapped[Long]


class Alert(Model):
    """The state of an alert rule (monitoring/alerts.py); in the metrics database."""

    __tablename__ = "alerts"
    __bind_key__ = "metrics"

    rule: Mapped[str] = mapped_column(String(20), primary_key=True)
    state: Mapped[str] = mapped_column(String(12))  # normal, pending, firing, recovering, resolved, no-data
    since: Mapped[Ms]
    seen_at: Mapped[Ms]
    value: Mapped[float | None] = mapped_column(Float)
    samples: Mapped[int]
    is_open: Mapped[bool]  # fired, and not resolved
    opened: Mapped[Ms]
    before: Mapped[int]  # people who were live when it fired
    silenced_until: Mapped[Ms] = mapped_column(server_default="0")
    acknowledged_by: Mapped[Uuid] = mapped_column(server_default="")  # a person


class AlertChange(Model):
    """A change of an alert's state, or what an operator did about it; in the metrics database."""

    __tablename__ = "alert_changes"
    __bind_key__ = "metrics"
    __table_args__ = (Index("alert_changes_incident", "incident_id"), Index("alert_changes_at", "at"))

    id: Mapped[Id] = mapped_column(primary_key=True)
    rule: Mapped[str] = mapped_column(String(20))
    at: Mapped[Ms]
    state_from: Mapped[str] = mapped_column(String(12))
    state_to: Mapped[str] = mapped_column(String(12))
    value: Mapped[float | None] = mapped_column(Float)
    samples: Mapped[int]
    note: Mapped[str] = mapped_column(String(40), server_default="")  # acknowledged, silenced
    incident_id: Mapped[Ms | None]


class Incident(Model):
    """Alerts that were open at the same time. JSON: rules that were told; the worst reading of each and its cause."""

    __tablename__ = "incidents"
    __bind_key__ = "metrics"

    id: Mapped[Id] = mapped_column(primary_key=True)
    opened: Mapped[Ms]
    closed: Mapped[Ms | None]
    told: Mapped[Long]
    worst: Mapped[Long]


class Notice(Model):
    """A notice to be sent on a channel; unique, so that a crash neither loses nor doubles it."""

    __tablename__ = "notices"
    __bind_key__ = "metrics"
    __table_args__ = (
        UniqueConstraint("incident_id", "number", "channel", name="notices_once"),
        Index("notices_next", "sent_at", "next_at"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    incident_id: Mapped[Ms]
    number: Mapped[int]  # in its incident
    channel: Mapped[str] = mapped_column(String(12))
    data: Mapped[Long]
    at: Mapped[Ms]
    tries: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[Ms]
    sent_at: Mapped[Ms | None]
    error: Mapped[str] = mapped_column(String(200), server_default="")
