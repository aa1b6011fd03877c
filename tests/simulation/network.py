"""The network between one client and the server: it delays, loses, doubles, reorders, cuts and goes silent."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from simulation.world import World


@dataclass(frozen=True)
class Ask:
    """One HTTP request: a GET with a query, or a POST of a form."""

    number: int
    method: str
    url: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `retry_after_ms` is 0 where it gives no advice."""

    status: int
    text: str
    retry_after_ms: int = 0


Reply = Callable[[Answer], None]
WINDOW = 8  # frames on their way before a writer waits
LATEST_MS = 2500  # the longest that anything is under way


class Listener(Protocol):
    """The server, as the network sees it."""

    is_up: bool

    def request(self, ask: Ask, reply: Reply) -> None:
        """A request arrives."""

    def accept(self, socket: "Socket") -> None:
        """A WebSocket is open."""


class Reader(Protocol):
    """The client, as the network sees it."""

    def on_answer(self, number: int, answer: Answer | None) -> None:
        """An answer arrives; None: the connection broke."""

    def on_frame(self, socket: int, text: str) -> None:
        """A frame arrives."""

    def on_closed(self, socket: int, code: int, reason: str) -> None:
        """A socket ended."""


@dataclass(eq=False)
class Socket:
    """One WebSocket. Frames of one direction keep their order; a lost one ends the socket."""

    link: "Link"
    number: int
    reader: Reader
    is_dead: bool = False  # nothing arrives any more, on either side
    is_mute: bool = False  # and nobody is told
    is_deaf: bool = False  # nothing of the client's arrives, and it is not told; the server's does
    is_hung_up: bool = False  # the client closed it; what is under way still arrives
    in_flight: int = 0
    on_text: Callable[[str], None] = lambda text: None
    on_room: Callable[[], None] = lambda: None
    on_end: Callable[[], None] = lambda: None
    last: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})

    def up(self, text: str) -> None:
        """The client writes."""
        self._carry("up", lambda: self.on_text(text))

    def down(self, text: str) -> None:
        """The server writes."""
        self.in_flight += 1

        def arrive() -> None:
            self.in_flight -= 1
            self.link.world.note(f"{self.link.name} <{self.number} {text}")
            self.reader.on_frame(self.number, text)
            self.on_room()

        self._carry("down", arrive)

    def end(self, code: int, reason: str) -> None:
        """The server closes it, with a word."""

        def arrive() -> None:
            self.is_dead = True
            self.reader.on_closed(self.number, code, reason)

        self._carry("down", arrive)

    def hang_up(self) -> None:
        """The client closes it."""
        self.is_hung_up = True
        self._carry("up", self.on_end)

    def cut(self, tell_client: bool, tell_server: bool) -> None:
        """The network cuts it: what is under way does not arrive."""
        if self.is_dead:
            return
        self.is_dead, world = True, self.link.world
        world.note(f"{self.link.name} cut {self.number} {tell_client} {tell_server}")
        if tell_client:
            world.later(self.link.delay(), lambda: self.reader.on_closed(self.number, 1006, ""))
        if tell_server:
            world.later(self.link.delay(), self.on_end)

    def _carry(self, way: str, arrive: Callable[[], None]) -> None:
        world, link = self.link.world, self.link
        if self.is_dead or self.is_mute or (self.is_deaf and way == "up"):
            return
        if link.is_black():
            self.is_mute = True  # a connection that once swallowed never recovers
            return
        if link.loses():
            self.cut(world.chance(0.6), world.chance(0.6))
            return
        at = max(self.last[way], world.now + int(link.delay()))
        self.last[way] = at

        def land() -> None:
            if not self.is_dead and not self.is_mute:
                arrive()

        world.later(at - world.now, land)


class Link:
    """One client's way to the server. The `…_until` fields are moments until which a fault lasts."""

    def __init__(self, world: World, server: Listener, name: str) -> None:
        self.world, self.server, self.name = world, server, name
        self.base = world.between(1, 60)
        self.late = world.random.choice([0.0, 0.0, 0.05, 0.2])
        self.sockets: list[Socket] = []
        self.black_until = self.lossy_until = self.slow_until = self.doubling_until = 0
        self.refusing_until = self.hanging_until = self.foreign_until = self.limited_until = 0
        self.foreign = Answer(502, "<html>Bad gateway</html>")

    def delay(self) -> float:
        """How long something is under way."""
        world = self.world
        if world.now < self.slow_until or (self.late and world.chance(self.late)):
            return world.between(100, LATEST_MS)
        return self.base * (0.5 + world.random.random())

    def is_black(self) -> bool:
        """Whether everything vanishes."""
        return self.world.now < self.black_until

    def loses(self) -> bool:
        """Whether this one is lost."""
        return self.world.now < self.lossy_until and self.world.chance(0.3)

    def ask(self, ask: Ask, reader: Reader) -> None:
        """Carry a request to the server and its answer back."""
        world = self.world
        world.note(f"{self.name} {ask.number} {ask.method} {ask.url} {ask.fields}")
        if self.is_black():
            return
        times = 2 if world.now < self.doubling_until and world.chance(0.5) else 1
        for _ in range(times):
            if self.loses():
                self._break(ask.number, reader)
            else:
                world.later(self.delay(), lambda: self._arrive(ask, reader))

    def open(self, number: int, reader: Reader) -> Socket:
        """Begin a WebSocket."""
        socket = Socket(self, number, reader)
        self.sockets = [one for one in self.sockets if not one.is_dead] + [socket]
        world = self.world
        if not self.is_black() and world.now >= self.hanging_until:
            world.later(2 * self.delay(), lambda: self._upgrade(socket))
        return socket

    def _upgrade(self, socket: Socket) -> None:
        if socket.is_dead or self.is_black():
            return
        if not self.server.is_up or self.world.now < self.refusing_until:
            socket.is_dead = True
            socket.reader.on_closed(socket.number, 1006, "")
        elif not socket.is_hung_up:
            self.server.accept(socket)

    def _arrive(self, ask: Ask, reader: Reader) -> None:
        world = self.world
        if self.is_black():
            return
        if world.now < self.foreign_until:
            self._back(ask.number, reader, self.foreign)
        elif not self.server.is_up:
            self._break(ask.number, reader)
        else:
            self.server.request(ask, lambda answer: self._back(ask.number, reader, answer))

    def _back(self, number: int, reader: Reader, answer: Answer) -> None:
        world = self.world
        if self.is_black():
            return
        if self.loses():
            self._break(number, reader)
            return

        def land() -> None:
            if not self.is_black():
                world.note(f"{self.name} <{number} {answer}")
                reader.on_answer(number, answer)

        world.later(self.delay(), land)

    def _break(self, number: int, reader: Reader) -> None:
        """A connection that fails: the client is told, or waits for nothing."""
        if self.world.chance(0.6):
            self.world.later(self.delay(), lambda: reader.on_answer(number, None))
