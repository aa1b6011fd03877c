"""A simulated client: the real core, a person who types, a page that is reloaded, a machine that sleeps."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from chatapp.client.actions import Answer, Ask, Drop, Hang, Open, Say
from chatapp.client.core import LIST, Core, Settings
from chatapp.client.feeds import Message, parse
from chatapp.client.outbox import Ack, Outgoing
from chatapp.client.polling import Urls
from simulation.network import Link, Socket
from simulation.server import EPOCH
from simulation.world import World


class Page:
    """One life of a client, from a page load to the next: a core and what the network brings it."""

    def __init__(self, client: "Client", core: Core) -> None:
        self.client, self.core = client, core
        self.is_over = False
        self.sockets: dict[int, Socket] = {}
        self._dropped: set[int] = set()
        self._wanted: float | None = None

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
    """A person at one browser."""

    def __init__(self, world: World, link: Link, name: str, person: str, core: type[Core], keeps_outbox: bool) -> None:
        self.world, self.link, self.name = world, link, name
        self._core, self._keeps_outbox = core, keeps_outbox
        self.settings = Settings(
            machine={
                "transports": world.random.choice([["websocket", "polling"]] * 4 + [["polling"], ["websocket"]]),
                "reconnect_ms": 5000,
                "max_attempts": world.random.choice([10, 10, 2]),
                "poll_ms": 3000,
                "poll_retries": 3,
                "poll_backoff": 1.5,
                "latency_ms": 0,
            },
            urls=Urls("/changes", "/c", "/c/{id}/messages"),
            person=person,
            hold_ms=world.random.choice([25_000, 25_000, 25_000, 0]),
        )
        self.takes_late = world.chance(0.7)
        self.asleep_until = 0
        self.follows: dict[str, None] = {}
        self.looks_for: list[str] = []  # followed as soon as the list shows them
        self.typed: list[Outgoing] = []
        self.acks: dict[str, Ack] = {}
        self.refused: dict[str, str] = {}
        self.page = self._load(())

    def follow_list(self) -> None:
        """Show the list of conversations, too."""
        self.follow(LIST)

    def _load(self, outbox: Iterable[Outgoing]) -> Page:
        settings = replace(self.settings, epoch=EPOCH)
        core = self._core(settings, self.world.random.random, outbox)
        core.acks, core.refusals = self.acks, self.refused  # type: ignore[assignment]
        core.on_change = lambda record: self.world.note(f"{self.name} {record['status']} {record['reason']}")
        page = Page(self, core)
        page.do(lambda: core.start(self.world.now))
        for feed in self.follows:
            page.do(lambda feed=feed: core.follow(self.world.now, feed))  # type: ignore[misc]
        return page

    def reload(self, is_crash: bool, after: float) -> None:
        """The page goes, and comes back with what was stored: the outbox. Crashed ones do not say goodbye."""
        page = self.page
        if page.is_over:
            return
        self.world.note(f"{self.name} reload")
        page.is_over = True
        for socket in page.sockets.values():
            if is_crash:
                socket.cut(False, self.world.chance(0.3))
            else:
                socket.hang_up()
        saved = [replace(entry, tries=0) for entry in page.core.outbox.entries.values()]

        def back() -> None:
            self.page = self._load(saved if self._keeps_outbox else [])

        self.world.later(after, back)

    def follow(self, conversation: str) -> None:
        """Show a conversation from now on."""
        self.follows[conversation] = None
        self.page.do(lambda: self.page.core.follow(self.world.now, conversation))

    def look(self) -> None:
        """Follow what the list shows by now."""
        shown = {entry.id for entry in self.page.core.conversations()}
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
        self.page.do(lambda: self.page.core.send(self.world.now, entry))

    def messages(self, conversation: str) -> list[Message]:
        """What is shown."""
        return self.page.core.messages(conversation)
