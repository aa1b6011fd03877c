"""What the core asks of whoever does its I/O, and what its parts ask of the core. Times are milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from chatapp.client.feeds import Element
from chatapp.connection.record import Event

Activity = Literal["awaiting", "active", "visible", "idle", "offline", "hidden"]
Fields = Iterable[tuple[str, str]]
Method = Literal["GET", "POST"]


@dataclass(frozen=True)
class Open:
    """Open WebSocket number `socket`; tell `frame` and `closed` what becomes of it."""

    socket: int


@dataclass(frozen=True)
class Say:
    """Write a text frame."""

    socket: int
    text: str


@dataclass(frozen=True)
class Hang:
    """Close a socket and say no more of it."""

    socket: int
    code: int


@dataclass(frozen=True)
class Ask:
    """One HTTP request: a GET with a query, or a POST of a form (the CSRF token is added outside).

    Tell `answered` or `failed` under its number.
    """

    number: int
    method: Method
    url: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Drop:
    """Give a request up; its answer is not wanted any more."""

    number: int


@dataclass(frozen=True)
class Renew:
    """The CSRF token is another session's: read a page again."""


Action = Open | Say | Hang | Ask | Drop | Renew


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `retry_after_ms` is 0 where it gives no advice."""

    status: int
    text: str
    retry_after_ms: int = 0


class World(Protocol):
    """What a transport sees of the core."""

    now: int

    def on(self, event: Event) -> None:
        """Something happened that the state machine must know."""

    def do(self, action: Action) -> None:
        """I/O to be done."""

    def ask(self, owner: str, method: Method, url: str, fields: Fields, within: int) -> int:
        """A request that is answered to `owner` under the number returned, or fails after `within` ms."""

    def drop(self, number: int) -> None:
        """Give a request up."""

    def receive(self, element: Element, transport: str) -> bool:
        """An element from the server; True where it moved a cursor."""

    def plan(self) -> tuple[str, dict[str, int]]:
        """The epoch, and the cursor of each feed."""

    def activity(self, awaiting: bool = False) -> Activity:
        """How closely the connection is to be watched."""
