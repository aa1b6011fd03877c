"""One schedule: who types what, which faults strike when, and what must be true when all is over."""

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from headless.core import Message
from sqlalchemy import update

from chatapp.bus import Bus
from chatapp.chat import Chat
from chatapp.connection_states import is_connected
from chatapp.store import ChangedMessage, Person
from chatapp.store.models import Conversation
from simulation.client import LIST, Client
from simulation.disk import Disk, MemoryStore
from simulation.network import LATEST_MS, Answer, Link
from simulation.page import Changes
from simulation.server import Server, Traits
from simulation.world import World

FAULTS_MS = 4000  # within which people type and faults begin
LONGEST_MS = 5000  # a fault lasts
PATIENCE_MS = 200_000  # until all must be well again
REUSES = 300  # schedules on one database


@dataclass(frozen=True)
class Plant:
    """A deliberate bug: which part is replaced by a broken copy. Without a name: nothing is."""

    name: str = ""
    changes: Changes = ()  # of the shipped core
    traits: Traits = field(default_factory=Traits)


@dataclass
class Outcome:
    """What a schedule showed. `problems` is empty where all promises held."""

    seed: int
    digest: str
    problems: list[str]
    events: int
    ended_ms: int
    facts: Counter[str]


class Lab:
    """A database for many schedules, each with a person and conversations of its own."""

    def __init__(self, plant: Plant = Plant()) -> None:
        self.plant = plant
        self._disk: Disk | None = None
        self._used: set[int] = set()

    def run(self, seed: int, show: Callable[[str], None] | None = None) -> Outcome:
        """Run one schedule."""
        if self._disk is None or len(self._used) >= REUSES or seed in self._used or self.plant.traits.commit_lag_ms:
            self._disk, self._used = Disk(self.plant.traits.schema), set()
        self._disk.watch(lambda: None, lambda: None)
        self._used.add(seed)
        world = World(seed, show)
        with world.rules_the_store():
            try:
                outcome = Schedule(world, self._disk, self.plant).run()
            except Exception:  # what breaks the product's code here is a finding, too
                problems = [traceback.format_exc()]
                outcome = Outcome(seed, world.digest(), problems, world.events, world.now, Counter())
        if outcome.problems:
            self._disk = None  # what is left undone in it must not disturb the next one
        return outcome


class Schedule:
    """Everything that one seed decides."""

    def __init__(self, world: World, disk: Disk, plant: Plant) -> None:
        self.world, self.disk = world, disk
        self.facts: Counter[str] = Counter()
        # Most are small: what goes wrong, goes wrong among few. Some are large, for what nobody thought of.
        self.is_large = world.chance(0.1)
        self.answers = self.is_large or world.chance(0.35)
        store = MemoryStore(disk, Bus())
        self.person = self._person(store)
        self.conversations = [str(world.uuid()) for _ in range(world.random.choice([1, 2]) if self.is_large else 1)]
        self.is_made_first = world.chance(0.8)
        if self.is_made_first:
            for conversation in self.conversations:
                Chat(store, self.answers).create(self.person.id, conversation)
        self.server = Server(world, disk, plant.traits, self.person, self.answers)
        names = [f"c{n}" for n in range(3 if self.is_large else 2)]
        self.clients = []
        for name in names:
            link = Link(world, self.server, name)
            self.clients.append(Client(world, link, name, self.person.uuid, plant.changes))
        self._plan_typing()
        self._plan_faults()

    def _person(self, store: MemoryStore) -> Person:
        name = str(self.world.uuid())
        with store.database.write() as tx:  # what earlier schedules wrote lies in the future of this one's clock
            tx.connection.execute(update(Conversation).values(updated_at=0))
        return store.people.add_admin(name, f"{name}@example.org", "-")

    def run(self) -> Outcome:
        """Play it to the end."""
        world = self.world
        world.run(FAULTS_MS + LONGEST_MS)
        problems = self._unsettled()
        while problems and world.now < PATIENCE_MS:
            world.run(world.now + LATEST_MS)
            problems = self._unsettled()
        world.run(world.now + LATEST_MS)  # late things arrive now, and must change nothing
        if not problems:
            problems = self._unsettled() and self._settle_again()
        problems += self._check()
        for client in self.clients:
            world.note(f"{client.name} {[client.messages(conversation) for conversation in self.conversations]}")
            self.facts[client.page.status] += 1
        return Outcome(world.seed, world.digest(), problems, world.events, world.now, self.facts)

    def _settle_again(self) -> list[str]:
        """A socket that had been dead for long was found out just now: the way back must be found, too."""
        self.world.run(self.world.now + 4 * LATEST_MS)
        return self._unsettled()

    # What happens

    def _plan_typing(self) -> None:
        world, random = self.world, self.world.random
        for client in self.clients:
            if self.is_large or not self.is_made_first or world.chance(0.2):
                client.follow_list()
        if self.is_made_first:
            for client in self.clients:
                for conversation in self.conversations:
                    client.follow(conversation)
        else:
            for conversation in self.conversations:
                world.later(100, partial(self.clients[0].type, conversation, "the first", create=True))
            for client in self.clients:
                client.looks_for = self.conversations
        for number in range(random.randrange(4, 9) if self.is_large else random.choice([2, 3, 3, 4])):
            client, conversation = random.choice(self.clients), random.choice(self.conversations)
            world.later(world.between(200, FAULTS_MS), partial(self._type, client, conversation, number))

    def _type(self, client: Client, conversation: str, number: int) -> None:
        """Type once the conversation is there to be typed into."""
        if conversation not in client.follows:
            self.world.later(300, partial(self._type, client, conversation, number))
            return
        random = self.world.random
        client.type(conversation, f"{number} " + " ".join(random.choices(["long 😀", "a <b> & c", "x"], k=number)))
        if random.random() < 0.2:
            client.type(conversation, f"{number} at once")
        if random.random() < 0.03:
            client.type(conversation, f"{number} " + "too long for a frame " * 40)

    def _plan_faults(self) -> None:
        world = self.world
        for _ in range(world.random.choice([0, 1, 2, 2, 3, 3, 4, 5])):
            name = world.random.choice(FAULTS)
            self.facts[name] += 1
            world.later(world.between(50, FAULTS_MS), partial(self._strike, name))

    def _strike(self, name: str) -> None:
        world, client = self.world, self.world.random.choice(self.clients)
        duration = world.between(100, LONGEST_MS)
        link, until = client.link, world.now + int(duration)
        world.note(f"{name} {client.name} {int(duration)}")
        if name == "crash":
            self.server.crash(min(duration, 3000), world.chance(0.6))
        elif name == "restart":
            self.server.restart(min(duration, 3000))
        elif name == "crash at commit":
            self.server.dies_at_commit = world.random.choice(["before", "after"])
        elif name == "cut":
            for socket in link.sockets:
                socket.cut(world.chance(0.6), world.chance(0.6))
        elif name == "reload":
            client.reload(world.chance(0.5), world.between(10, 1500))
        elif name == "sleep":
            client.asleep_until = until
        elif name == "foreign":
            link.foreign_until, link.foreign = until, world.random.choice(FOREIGN)
        elif name == "person":
            self._act(
                world.random.choice(["delete", "stop", "again", "rename"] if self.answers else ["delete", "rename"])
            )
        else:
            setattr(link, f"{name}_until", until)

    def _act(self, verb: str) -> None:
        conversation, me = self.world.random.choice(self.conversations), self.person.id
        self.facts[verb] += 1
        if verb == "delete":
            shown = [m for m in self.clients[0].messages(conversation) if m.author == "user"]
            if shown:
                self.server.act(lambda chat: chat.delete_message(me, conversation, shown[0].id))
        elif verb == "rename":
            self.server.act(lambda chat: chat.rename(me, conversation, f"title {self.world.now}"))
        else:
            self.server.act(lambda chat: getattr(chat, verb)(me, conversation))

    # What must be true

    def _unsettled(self) -> list[str]:
        """What is still under way, or never comes to rest."""
        found = []
        if not self.server.is_up:
            return ["the server is down"]
        for client in self.clients:
            page = client.page
            if page.is_over or not is_connected(page.status):
                found.append(f"{client.name} is {'away' if page.is_over else page.status}")
                continue
            if page.waiting:
                found.append(f"{client.name} has not sent {page.waiting}")
            cursors = page.cursors
            for name, cursor in cursors.items():
                head = self.server.store.database.revision(self.server.reader.feed(self.person.id, name))
                if cursor != head:
                    found.append(f"{client.name} is at {cursor} of {head} in {name}")
            if set(cursors) != set(client.follows) or not set(self.conversations) <= set(client.follows):
                found.append(f"{client.name} follows {sorted(cursors)}")
        for conversation in self.conversations:
            place = self.server.store.conversations.place(self.person.id, conversation)
            if place is None or self.server.store.runs.is_answering(place.conversation):
                found.append(f"{conversation} is being answered, or is not there")
        return found

    def _check(self) -> list[str]:
        problems = []
        store = MemoryStore(self.disk, Bus())
        chat = Chat(store, True)
        for conversation in self.conversations:
            place = store.conversations.place(self.person.id, conversation)
            if place is None:
                problems.append(f"{conversation} is not there")
                continue
            stored = chat.changes(place, 0).items
            problems += self._check_sent(conversation, stored)
            wanted = [_shape(message) for message in stored]
            for client in self.clients:
                shown = [_shown(message) for message in client.messages(conversation)]
                if shown != wanted:
                    problems.append(f"{client.name} shows {_difference(shown, wanted)}")
        titles = {entry.uuid: entry.title for entry in chat.entries(self.person.id, 0).items}
        for client in [client for client in self.clients if LIST in client.follows]:
            shown_titles = client.page.titles()
            if shown_titles != {uuid: title or "New conversation" for uuid, title in titles.items()}:
                problems.append(f"{client.name} lists {shown_titles}, stored {titles}")
        return problems

    def _check_sent(self, conversation: str, stored: tuple[ChangedMessage, ...]) -> list[str]:
        problems = []
        places = Counter(message.client_id for message in stored if message.author == "user")
        positions = {message.client_id: message for message in stored}
        typed = 0
        for client in self.clients:
            mine = [entry for entry in client.typed if entry.conversation == conversation]
            # What a page had not written when it crashed is lost with it, or the server has it, once.
            mine = [entry for entry in mine if places[entry.id] or entry.id not in client.unsaved]
            typed += len(mine)
            for entry in mine:
                message, ack = positions.get(entry.id), client.acks.get(entry.id)
                if places[entry.id] != 1:
                    problems.append(f"{entry.id} of {client.name} is there {places[entry.id]} times, {ack}")
                elif message and not message.deleted and message.body != entry.body.strip():
                    problems.append(f"{entry.id} says {message.body!r}")
                elif (
                    message
                    and entry.id not in client.unsaved
                    and (ack is None or ack != (message.uuid, message.position))
                ):
                    problems.append(f"{entry.id} was acknowledged as {ack}, is {message.uuid} {message.position}")
            order = [positions[entry.id].position for entry in mine if entry.id in positions]
            if order != sorted(order):
                problems.append(f"the order of {client.name} is {order}")
        if sum(places.values()) != typed and not problems:
            problems.append(f"{sum(places.values())} messages are there, {typed} were sent")
        return problems


FAULTS = ["crash", "restart", "crash at commit", "cut", "reload", "sleep", "foreign", "person", "black", "lossy"]
FAULTS += ["slow", "doubling", "refusing", "hanging", "crash at commit", "reload", "cut", "person", "lossy"]
FOREIGN = [
    Answer(502, "<html>Bad gateway</html>"),
    Answer(200, "<html>Sign in to the hotel</html>"),
    Answer(429, "slowly", 1500),
    Answer(503, "{}", 1000),
]

Shape = tuple[str, str, int, int, str, str, bool, str, tuple[tuple[int, str], ...]]


def _shape(message: ChangedMessage) -> Shape:
    facts = (message.uuid, message.client_id, message.position, message.revision, message.author, message.state)
    body = message.body if message.author == "user" else ""
    return (*facts, message.deleted, body, tuple((block.index, block.html) for block in message.blocks))


def _shown(m: Message) -> Shape:
    facts = (m.id, m.client_id, m.position, m.revision, m.author, m.state)
    return (*facts, m.deleted, m.body, tuple(sorted(m.blocks.items())))


def _difference(shown: list[Shape], wanted: list[Shape]) -> str:
    extra = [one for one in shown if one not in wanted]
    missing = [one for one in wanted if one not in shown]
    return f"{extra} instead of {missing}"
