"""Query results: plain values, independent of the connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from chatapp.store.steps import Step, read_steps

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ConversationRef:
    """A conversation as one of its members sees it; the argument of every query about it."""

    conversation: int
    feed: int
    uuid: str
    title: str
    person: int
    role: str = "owner"  # the person's: owner, member
    answers: str = "always"  # when the assistant answers: always, addressed
    person_uuid: str = ""  # this and the name only in a write transaction: many places are kept in memory
    person_name: str = ""


@dataclass(frozen=True)
class Block:
    """One top-level block of an answer."""

    index: int
    html: str
    revision: int
    steps: str = "[]"  # see steps.py

    def offset(self, cursor: int) -> int:
        """Return the length of the prefix of `html` known to a reader at `cursor`; 0 if unknown."""
        return min([step.start for step in self._newer(cursor)], default=0)

    def known(self, cursor: int) -> tuple[int, int]:
        """Return the lengths of prefix and suffix that a reader at `cursor` has, of `html` without colours; 0 if
        unknown.
        """
        newer = self._newer(cursor)
        return min([step.plain_start for step in newer], default=0), min([step.plain_end for step in newer], default=0)

    def _newer(self, cursor: int) -> list[Step]:
        """Return the steps after the cursor, if they are all known."""
        newer = [step for step in read_steps(self.steps) if step.after > cursor]
        return newer if newer and newer[0].before <= cursor else []


@dataclass(frozen=True)
class ChangedMessage:
    """A message in its current state."""

    id: int
    uuid: str
    client_id: str
    position: int
    revision: int
    author: str  # user, assistant
    author_id: str  # the person's UUID; "" of the assistant
    author_name: str  # "" of the assistant and of deleted people
    state: str
    state_revision: int
    body: str
    error: str | None
    deleted: bool
    edited: bool
    created_at: datetime
    blocks: tuple[Block, ...]
    folded: bool = False  # another version of it, and what followed, took its place
    phase: str = ""  # of a running answer without a word: asking, thinking, paused 4 (seconds)
    figures: Mapping[str, Any] = field(default_factory=dict)  # of an answer: model, tokens, times (ms)


@dataclass(frozen=True)
class Waiting:
    """A queued answer: shown last, as it has no position before it starts. `is_over`: stopped before that."""

    uuid: str  # the answer's client id, once started
    revision: int
    ahead: int  # number of answers before it
    is_over: bool = False


@dataclass(frozen=True)
class Entry:
    """A conversation in a person's list."""

    uuid: str
    revision: int
    title: str
    updated_at: datetime
    deleted: bool  # or left
    people: int = 1
    answers: str = "always"


@dataclass(frozen=True)
class EntryPlace:
    """A position in a person's list of conversations, sorted by time, then by UUID."""

    updated_at: int  # ms since 1970 UTC
    uuid: str


@dataclass(frozen=True)
class Changes(Generic[Item]):
    """Changes of a feed after `start` up to `end`. `reset`: items replace everything shown. `waiting`: changes of a
    conversation's queued answers."""

    start: int
    end: int
    items: tuple[Item, ...]
    more: bool = False
    reset: bool = False
    waiting: tuple[Waiting, ...] = ()
    change: int = 0  # the newest change number that it may include (histories.py)


@dataclass(frozen=True)
class Posted:
    """A posted message. `created`: False if a retry found it there."""

    id: str
    client_id: str
    conversation: str
    position: int
    revision: int
    body: str
    created: bool


def utc_datetime(ms: int) -> datetime:
    """Return a stored time as a datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)
