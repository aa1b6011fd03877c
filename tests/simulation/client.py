"""A simulated client: the real core, a person who types, a page that is reloaded, a machine that sleeps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chatapp.client.actions import Answer, Ask, Drop, Hang, Open, Say
from chatapp.client.core import LIST, Core, Settings
from chatapp.client.feeds import Message, parse
from chatapp.client.outbox import Ack, Outgoing
from chatapp.client.polling import Urls
from simulation import shipped
from simulation.network import Link, Socket
from simulation.server import EPOCH
from simulation.shipped import PREDICTS, Browser
from simulation.world import World

Changes = tuple[tuple[str, str, str], ...]  # of the shipped core's text: a module, before, after


class Page:
    """One life of a client, from a page load to the next: a core and what the network brings it."""

    def __init__(self, client: "Client", core: Core) -> None:
        self.client, self.core = client, core
        self.is_over = False
        self.sockets: dict[int, Socket] = {}
        self._dropped: set[int] = set()
        self._wanted: float | None = None

    def follow(self, feed: str) -> None:
        """Show a feed."""
        self.do(lambda: self.core.follow(self.client.world.now, feed))

    def send(self, client_id: str, conversation: str, body: str, create: bool) -> None:
        """Send a message."""
        entry = Outgoing(client_id, conversation, body, create)
        self.do(lambda: self.core.send(self.client.world.now, entry))

    @property
    def status(self) -> str:
        """The connection's state."""
        return self.core.record["status"]

    @property
    def waiting(self) -> int:
        """How many messages wait to be sent."""
        return len(self.core.outbox.entries)

    @property
    def cursors(self) -> dict[str, int]:
        """Where each feed is."""
        return {name: feed.cursor for name, feed in self.core.feeds.items()}

    def messages(self, conversation: str) -> list[Message]:
        """What is shown of a conversation, in order."""
        return self.core.messages(conversation)

    def titles(self) -> dict[str, str]:
        """What is listed."""
        return {entry.id: entry.title for entry in self.core.conversations()}

    def end(self, is_crash: bool) -> None:
        """The page goes."""
        self.is_over = True
        self.client.saved = [replace(entry, tries=0) for entry in self.core.outbox.entries.values()]

    def do(self, happen: Callable[[], None]) -> None:
        """Let something happen, unless the page is gone; do what the core wants; see to its clock."""
        world = self.client.world
        if self.is_over:
            return
        if world.now < self.client.asleep_until:
            world.later(self.client.asleep_until - world.now, lambda: self.do(happen))
            return
        happen()
        link = self.client.link
        for action in self.core.take():
            if isinstance(action, Ask):
                link.ask(action, self)
            elif isinstance(action, Open):
                self.sockets[action.socket] = link.open(action.socket, self)
            elif isinstance(action, Say):
                self.sockets[action.socket].up(action.text)
            elif isinstance(action, Hang):
                self.sockets.pop(action.socket).hang_up()
            elif isinstance(action, Drop):
                self._dropped.add(action.number)
        self._see_to_time()
        if self.client.looks_for:
            self.client.look()

    def _see_to_time(self) -> None:
        due, world = self.core.due(), self.client.world
        if due is not None and (self._wanted is None or due < self._wanted):
            self._wanted = due
            world.later(max(0, -int(-due // 1) - world.now), lambda: self._tick(due))

    def _tick(self, wanted: float) -> None:
        if self._wanted == wanted:
            self._wanted = None
        due = self.core.due()
        if due is not None and due <= self.client.world.now:
            self.do(lambda: self.core.tick(self.client.world.now))
        elif not self.is_over:
            self._see_to_time()

    def on_answer(self, number: int, answer: Answer | None) -> None:
        """An answer arrives."""
        if number in self._dropped and self.client.takes_late and answer and answer.text.startswith("<chat-answer"):
            self.do(lambda: self._take_late(parse(answer.text)[0].source))
        self.do(lambda: self.core.answered(self.client.world.now, number, answer))

    def on_frame(self, socket: int, text: str) -> None:
        """A frame arrives; one of an old socket is dropped, or taken by those who test that it does no harm."""
        if socket in self.sockets:
            self.do(lambda: self.core.frame(self.client.world.now, socket, text))
        elif self.client.takes_late:
            self.do(lambda: self._take_late(text))

    def on_closed(self, socket: int, code: int, reason: str) -> None:
        """A socket ended."""
        self.do(lambda: self.core.closed(self.client.world.now, socket, code, reason))

    def _take_late(self, markup: str) -> None:
        self.core.now = self.client.world.now
        for element in parse(markup):
            if element.tag == "chat-feed":
                self.core.receive(element, "late")


class Client:
    """A person at one browser. `core`: a class of the Python twin, or what is changed of the shipped core's text."""

    def __init__(
        self, world: World, link: Link, name: str, person: str, core: type[Core] | Changes, keeps_outbox: bool
    ) -> None:
        self.world, self.link, self.name, self.person = world, link, name, person
        self._core, self._keeps_outbox = core, keeps_outbox
        self.config = {
            "transports": world.random.choice([["websocket", "polling"]] * 4 + [["polling"], ["websocket"]]),
            "reconnect_ms": 5000,
            "max_attempts": world.random.choice([10, 10, 2]),
            "poll_ms": 3000,
            "poll_retries": 3,
            "poll_backoff": 1.5,
            "poll_hold_ms": world.random.choice([25_000, 25_000, 25_000, 0]),
            "ws_max_message": 512,
            "heartbeat_ms": 30_000,
            "predict": PREDICTS,
            "network": "here",
            "changes_url": "/changes",
            "create_url": "/c",
            "messages_url": "/c/{id}/messages",
            "mark_url": "/mark",
        }
        self.tells = False
        self.on_changed: Callable[[dict[str, Any]], None] = lambda record: None  # of one that tells
        self.on_foretold: Callable[[dict[str, Any]], None] = lambda foretold: None
        self.takes_late = world.chance(0.7)
        self.asleep_until = 0
        self.disk_free_at = 0
        self.follows: dict[str, None] = {}
        self.looks_for: list[str] = []  # followed as soon as the list shows them
        self.typed: list[Outgoing] = []
        self.acks: dict[str, tuple[str, int]] = {}
        self.refused: dict[str, str] = {}
        self.unsaved: set[str] = set()  # typed on a page that crashed before it was on the disk
        self.saved: list[Outgoing] = []  # the twin's disk
        self.browser = Browser()
        self.page = self._load()

    def follow_list(self) -> None:
        """Show the list of conversations, too."""
        self.follow(LIST)

    def _load(self) -> Page | shipped.Page:
        page = self._twin() if isinstance(self._core, type) else shipped.Page(self, self._core)
        for feed in self.follows:
            page.follow(feed)
        return page

    def _twin(self) -> Page:
        assert isinstance(self._core, type)
        names = ("transports", "reconnect_ms", "max_attempts", "poll_ms", "poll_retries", "poll_backoff")
        machine: Any = {name: self.config[name] for name in names} | {"latency_ms": 0}
        settings = Settings(
            machine=machine,
            urls=Urls("/changes", "/c", "/c/{id}/messages"),
            person=self.person,
            epoch=EPOCH,
            hold_ms=int(str(self.config["poll_hold_ms"])),
        )
        core = self._core(settings, self.world.random.random, self.saved)
        core.acks, core.refusals = Acks(self.acks), self.refused  # type: ignore[assignment]
        core.on_change = lambda record: self.world.note(f"{self.name} {record['status']} {record['reason']}")
        page = Page(self, core)
        page.do(lambda: core.start(self.world.now))
        return page

    def reload(self, is_crash: bool, after: float) -> None:
        """The page goes, and comes back with what was stored. Crashed ones do not say goodbye."""
        page = self.page
        if page.is_over:
            return
        self.world.note(f"{self.name} reload")
        for socket in page.sockets.values():
            if is_crash:
                socket.cut(False, self.world.chance(0.3))
            else:
                socket.hang_up()
        page.end(is_crash)
        if not self._keeps_outbox:
            self.saved, self.browser = [], Browser()

        def back() -> None:
            self.page = self._load()

        self.world.later(after, back)

    def follow(self, conversation: str) -> None:
        """Show a conversation from now on."""
        self.follows[conversation] = None
        self.page.follow(conversation)

    def look(self) -> None:
        """Follow what the list shows by now."""
        shown = set(self.page.titles())
        found = [conversation for conversation in self.looks_for if conversation in shown]
        self.looks_for = [conversation for conversation in self.looks_for if conversation not in shown]
        for conversation in found:
            if conversation not in self.follows:
                self.follow(conversation)

    def type(self, conversation: str, body: str, create: bool = False) -> None:
        """Send a message; one who waits for the page waits for it here, too."""
        if self.page.is_over or self.world.now < self.asleep_until:
            self.world.later(100, lambda: self.type(conversation, body, create))
            return
        entry = Outgoing(str(self.world.uuid()), conversation, body, create)
        self.typed.append(replace(entry))
        self.world.note(f"{self.name} types {entry}")
        self.page.send(entry.id, conversation, body, create)

    def messages(self, conversation: str) -> list[Message]:
        """What is shown."""
        return self.page.messages(conversation)


class Acks(dict[str, Ack]):
    """Keeps the twin's acknowledgements as the schedule wants them."""

    def __init__(self, kept: dict[str, tuple[str, int]]) -> None:
        super().__init__()
        self._kept = kept

    def __setitem__(self, client_id: str, ack: Ack) -> None:
        super().__setitem__(client_id, ack)
        self._kept[client_id] = (ack.id, ack.position)
