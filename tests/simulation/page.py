"""A simulated browser: the page's shipped core, a disk that is slower than the page, a machine that sleeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from headless.core import Message, Script, pages
from headless.core import Page as Core

from simulation.network import Answer, Ask, Socket
from simulation.server import EPOCH

if TYPE_CHECKING:
    from simulation.client import Client

Changes = tuple[tuple[str, str, str], ...]  # of the shipped text: a module, before, after
SLOWEST_WRITE_MS = 40


class Browser:
    """What outlives a page: the rows that are on its disk, and its notes of networks."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.seq = 0
        self.notes: dict[str, Any] = {}

    def apply(self, operations: list[list[Any]]) -> list[int]:
        """One transaction of the outbox. The keys, as IndexedDB gives them."""
        keys = []
        for _, verb, value in operations:
            if verb == "delete":
                self.rows.pop(value, None)
                keys.append(value)
                continue
            key = value.get("seq")
            if key is None:
                self.seq = key = self.seq + 1
            self.seq = max(self.seq, int(key))
            self.rows[key] = {**value, "seq": key}
            keys.append(key)
        return keys

    def read(self) -> list[dict[str, Any]]:
        """All rows, in the order of their keys."""
        return [self.rows[key] for key in sorted(self.rows)]


class Page:
    """One life of a client, from a page load to the next."""

    def __init__(self, client: Client, changes: Changes = ()) -> None:
        self.client = client
        self.is_over = False
        self.sockets: dict[int, Socket] = {}
        self.typed: dict[str, bool] = {}  # by client id: whether it is on the disk
        self._dropped: set[int] = set()
        self._writes: list[list[list[Any]]] = []  # what the disk has not got yet, in order
        self._wanted: float | None = None
        self._state: dict[str, Any] | None = None
        world = client.world
        person = {"epoch": EPOCH, "mark": "", "person": client.person}
        driver: Script = pages(changes)
        seed = world.random.getrandbits(31)
        self.core = Core(client.config, person, seed, world.now, driver, notes=client.browser.notes, tells=client.tells)
        self.do("start")

    # What people do

    def follow(self, feed: str) -> None:
        """Show a feed."""
        self.do("follow", feed)

    def send(self, client_id: str, conversation: str, body: str, create: bool) -> None:
        """Send a message."""
        self.typed[client_id] = False
        self.do("send", client_id, conversation, body, create)

    # What is to be seen

    @property
    def state(self) -> dict[str, Any]:
        """What the page says of itself."""
        if self._state is None:
            self._state = self.core.seen()
        return self._state

    @property
    def status(self) -> str:
        """The connection's state."""
        return str(self.state["record"]["status"])

    @property
    def waiting(self) -> int:
        """How many messages wait to be sent."""
        return int(self.state["waiting"])

    @property
    def cursors(self) -> dict[str, int]:
        """Where each feed is."""
        return dict(self.state["cursors"])

    def messages(self, conversation: str) -> list[Message]:
        """What is shown of a conversation, in order."""
        rows = [] if self.is_over else self.core.rows(conversation)
        return [Message.of(row) for row in rows if row["position"]]

    def titles(self) -> dict[str, str]:
        """What is listed."""
        return {row["id"]: row["title"] for row in ([] if self.is_over else self.core.rows("list"))}

    # Inside

    def do(self, what: str, *given: Any) -> None:
        """Let something happen, unless the page is gone; do what the core wants; see to its clock."""
        world = self.client.world
        if self.is_over:
            return
        if world.now < self.client.asleep_until:
            world.later(self.client.asleep_until - world.now, lambda: self.do(what, *given))
            return
        self.core.happen(world.now, what, *given)
        self._state = None
        for name, *order in self.core.take():
            getattr(self, f"_{name}")(*order)
        self._see_to_time()
        if self.client.looks_for:
            self.client.look()

    def _ask(self, number: int, method: Any, url: str, fields: list[list[str]]) -> None:
        self.client.link.ask(Ask(number, method, url, tuple((name, value) for name, value in fields)), self)

    def _drop(self, number: int) -> None:
        self._dropped.add(number)

    def _open(self, number: int, _replaces: str) -> None:
        self.sockets[number] = self.client.link.open(number, self)

    def _say(self, number: int, text: str) -> None:
        self.sockets[number].up(text)

    def _hang(self, number: int, _code: int) -> None:
        self.sockets.pop(number).hang_up()

    def _status(self, status: str, reason: str | None, *_more: str | None) -> None:
        self.client.world.note(f"{self.client.name} {status} {reason}")

    def _changed(self, record: dict[str, Any]) -> None:
        self.client.on_changed(record)

    def _foretold(self, foretold: dict[str, Any]) -> None:
        self.client.on_foretold(foretold)

    def _shown(self, *_: object) -> None:
        pass

    def _sent(self, client_id: str, _code: None) -> None:
        ack = self.core.seen()["acks"][client_id]
        self.client.acks[client_id] = (ack["id"], int(ack["position"]))

    def _failed(self, client_id: str, code: str) -> None:
        self.client.refused[client_id] = code

    def _renew(self, number: int) -> None:
        self.do("done", number, "foreign-page")

    # The disk

    def _read(self, number: int) -> None:
        self._later(lambda: self.do("done", number, self.client.browser.read()))

    def _write(self, number: int, operations: list[list[Any]]) -> None:
        self._writes.append(operations)
        self._later(partial(self._written, number))

    def _written(self, number: int) -> None:
        if self.is_over:
            return
        keys = self._commit(self._writes.pop(0))
        self.do("done", number, keys)

    def _commit(self, operations: list[list[Any]]) -> list[int]:
        for _, verb, value in operations:
            if verb == "put" and value["id"] in self.typed:
                self.typed[value["id"]] = True
        return self.client.browser.apply(operations)

    def _later(self, work: Callable[[], None]) -> None:
        """In order: one transaction after the other."""
        world = self.client.world
        at = max(self.client.disk_free_at, world.now + int(world.between(1, SLOWEST_WRITE_MS)))
        self.client.disk_free_at = at
        world.later(at - world.now, work)

    def end(self, is_crash: bool) -> None:
        """The page goes. What it had begun to write goes through, unless it crashes: then the disk has some of it."""
        self.is_over = True
        kept = self.client.world.random.randint(0, len(self._writes)) if is_crash else len(self._writes)
        for operations in self._writes[:kept]:
            self._commit(operations)
        self.client.unsaved |= {client_id for client_id, is_stored in self.typed.items() if not is_stored}
        self.client.browser.notes = self.core.seen()["notes"]
        self.core.close()

    # The clock

    def _see_to_time(self) -> None:
        due, world = self.core.due, self.client.world
        if due is not None and (self._wanted is None or due < self._wanted):
            self._wanted = due
            world.later(max(0, -int(-due // 1) - world.now), lambda: self._tick(due))

    def _tick(self, wanted: float) -> None:
        if self._wanted == wanted:
            self._wanted = None
        if self.core.due is not None and self.core.due <= self.client.world.now:
            self.do("tick")
        elif not self.is_over:
            self._see_to_time()

    # What the network brings

    def on_answer(self, number: int, answer: Answer | None) -> None:
        """An answer arrives; one that is not waited for any more is taken by those who test that it does no harm."""
        if number in self._dropped and self.client.takes_late and answer and answer.text.startswith("<chat-answer"):
            self.do("late", answer.text)
        headers = {"retry-after": str(answer.retry_after_ms / 1000)} if answer and answer.retry_after_ms else {}
        self.do("answered", number, answer and {"status": answer.status, "text": answer.text, "headers": headers})

    def on_frame(self, socket: int, text: str) -> None:
        """A frame arrives."""
        if socket in self.sockets:
            self.do("frame", socket, text)
        elif self.client.takes_late:
            self.do("late", text)

    def on_closed(self, socket: int, code: int, reason: str) -> None:
        """A socket ended."""
        self.do("closed", socket, code, reason)
