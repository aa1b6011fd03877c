"""What the store gives out: plain values, without a session behind them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ConversationRef:
    """A conversation as one of its members sees it; how every query about it begins."""

    conversation: int
    feed: int
    uuid: str
    title: str
    person: int


@dataclass(frozen=True)
class Block:
    """One top-level block of an answer."""

    index: int
    html: str
    revision: int
    steps: tuple[tuple[int, int, int], ...]  # (revision before, after, length of the common start)

    def offset(self, cursor: int) -> int:
        """How much of the source a reader at `cursor` has already; 0 where that is not known."""
        newer = [step for step in self.steps if step[1] > cursor]
        if not newer or newer[0][0] > cursor:
            return 0
        return min(step[2] for step in newer)


@dataclass(frozen=True)
class ChangedMessage:
    """A message as it is now."""

    id: int
    uuid: str
    client_id: str
    position: int
    revision: int
    author: str  # user, assistant
    state: str
    state_revision: int
    body: str
    error: str | None
    deleted: bool
    edited: bool
    created_at: datetime
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Waiting:
    """An answer that has not begun: it has no position, and stands last until it gets one. `is_over`: it never will."""

    uuid: str  # the answer's client id from then on
    revision: int
    ahead: int  # answers before it
    is_over: bool = False


@dataclass(frozen=True)
class Entry:
    """A conversation in a person's list."""

    uuid: str
    revision: int
    title: str
    updated_at: datetime
    deleted: bool


@dataclass(frozen=True)
class EntryPlace:
    """A place in a person's list of conversations, which is in order of time, and of ids where that is the same."""

    updated_at: int  # in milliseconds
    uuid: str


@dataclass(frozen=True)
class Changes(Generic[Item]):
    """What changed in a feed after `start`, up to `end`. `reset`: items replace whatever is shown.
    `waiting`: of a conversation; what of it changed."""

    start: int
    end: int
    items: tuple[Item, ...]
    more: bool = False
    reset: bool = False
    waiting: tuple[Waiting, ...] = ()
    change: int = 0  # the database-wide number of the last change that this may show (histories.py)


@dataclass(frozen=True)
class Posted:
    """Where a message stands. `created` is False for one that was there already."""

    id: str
    client_id: str
    conversation: str
    position: int
    revision: int
    body: str
    created: bool


def moment(ms: int) -> datetime:
    """A stored time as a UTC datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)
