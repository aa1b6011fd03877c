"""A simulated client: a person who types at a browser whose pages are reloaded, whose machine sleeps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headless.core import CONFIG, Message

from simulation.network import Link
from simulation.page import Browser, Changes, Page
from simulation.world import World

LIST = "list"


@dataclass(frozen=True)
class Typed:
    """One message."""

    id: str
    conversation: str
    body: str
    create: bool = False  # the conversation is made with it


class Client:
    """A person at one browser. `changes`: planted in the shipped core's text."""

    def __init__(self, world: World, link: Link, name: str, person: str, changes: Changes = ()) -> None:
        self.world, self.link, self.name, self.person = world, link, name, person
        self._changes = changes
        self.config = CONFIG | {
            "transports": world.random.choice([["websocket", "polling"]] * 4 + [["polling"], ["websocket"]]),
            "max_attempts": world.random.choice([10, 10, 2]),
            "poll_hold_ms": world.random.choice([25_000, 25_000, 25_000, 0]),
        }
        self.tells = False
        self.on_changed: Callable[[dict[str, Any]], None] = lambda record: None  # of one that tells
        self.on_foretold: Callable[[dict[str, Any]], None] = lambda foretold: None
        self.takes_late = world.chance(0.7)
        self.asleep_until = 0
        self.disk_free_at = 0
        self.follows: dict[str, None] = {}
        self.looks_for: list[str] = []  # followed as soon as the list shows them
        self.typed: list[Typed] = []
        self.acks: dict[str, tuple[str, int]] = {}
        self.refused: dict[str, str] = {}
        self.unsaved: set[str] = set()  # typed on a page that crashed before it was on the disk
        self.browser = Browser()
        self.page = self._load()

    def follow_list(self) -> None:
        """Show the list of conversations, too."""
        self.follow(LIST)

    def _load(self) -> Page:
        page = Page(self, self._changes)
        for feed in self.follows:
            page.follow(feed)
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

        def back() -> None:
            self.page = self._load()
            self._type_again()

        self.world.later(after, back)

    def _type_again(self) -> None:
        """A conversation that was to be made with a message that nothing kept is begun once more."""
        firsts = [entry for entry in self.typed if entry.create]
        for entry in firsts:
            if all(one.id in self.unsaved for one in firsts if one.conversation == entry.conversation):
                self.type(entry.conversation, entry.body, create=True)

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
        entry = Typed(str(self.world.uuid()), conversation, body, create)
        self.typed.append(entry)
        self.world.note(f"{self.name} types {entry}")
        self.page.send(entry.id, conversation, body, create)

    def messages(self, conversation: str) -> list[Message]:
        """What is shown."""
        return self.page.messages(conversation)
