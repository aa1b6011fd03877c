"""The server: the product's store, rules, renderer and subscribers; only transports and process are simulated."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from flask import Flask
from flask_babel import Babel

from chatapp.assistant.runner import LOOK_AROUND_S
from chatapp.bus import RUNS, Bus
from chatapp.chat import Chat, ChatError, Conflict, Gone
from chatapp.config import asset_dir
from chatapp.store import ClaimedRun, Person, Posted
from chatapp.store.conversations import MOST_CHANGES, Conversations
from chatapp.store.runs import AGAIN
from chatapp.transports import protocol, rendering
from chatapp.transports.connections import Connections
from chatapp.transports.long_poll import Poll, Polls
from chatapp.transports.subscriptions import Reader, StaleCursor, Subscriber, Update
from simulation.disk import EPOCH, Crashed, Disk, MemoryStore
from simulation.network import WINDOW, Answer, Ask, Reply, Socket
from simulation.world import World

FLUSH_MS = 150
WORDS = [
    "route",
    "bucket",
    "nginx",
    "😀",
    "größer",
    "<b>",
    "&",
    "1024",
    "upgrade",
    "“quoted”",
    "socket",
    "𝔘nicode",
    "lease",
]


@cache
def drawing_app() -> Flask:
    """An app with nothing but the product's templates."""
    app = Flask("simulation", template_folder=str(asset_dir("templates")))
    Babel(app)
    return app


@dataclass
class Traits:
    """What a planted bug changes of the server."""

    conversations: type[Conversations] = Conversations
    schema: Callable[[str], str] = lambda statement: statement
    commit_lag_ms: int = 0  # from the acknowledgement to the commit


class NoHistories:
    """Marks are not simulated: none is given, and all are valid."""

    def mark(self, _change: int) -> str:
        return ""

    def holds(self, _mark: str) -> bool:
        return True


class Line:
    """The server's side of one WebSocket: a Subscriber with its transport, as in transports/websocket.py."""

    def __init__(self, server: Server, socket: Socket, person: Person) -> None:
        self._server, self._socket = server, socket
        self._subscriber = Subscriber(server.reader, server.bus, person.id, self)
        self._is_waking = False
        self._subscriber.reply(protocol.hello(EPOCH, person.uuid, f"socket-{socket.number}", 512, 30))
        socket.on_text, socket.on_room, socket.on_end = self.take, self.wake, self.close

    def take(self, text: str) -> None:
        """A frame of the client."""
        server, person = self._server, self._subscriber.person
        if not server.owns(self):
            return
        match protocol.decode(text):
            case protocol.Echo(n):
                self._subscriber.reply(protocol.echo(n))
            case protocol.Send(conversation, client_id, body):
                server.post(person, conversation, client_id, body, False, lambda word: self._reply(client_id, word))
            case protocol.Unsubscribe(names):
                for name in names:
                    self._subscriber.unsubscribe(name)
            case protocol.Subscribe(epoch, feeds, _, is_short):
                for name, cursor in feeds.items():
                    self._subscribe(name, cursor, epoch, is_short)
        self.wake()

    def _subscribe(self, name: str, cursor: int, epoch: str, is_short: bool) -> None:
        if epoch != EPOCH:
            self._subscriber.reply(protocol.reload(name, "epoch", EPOCH))
            return
        try:
            self._subscriber.subscribe(name, cursor, is_short)
        except ChatError:
            self._subscriber.reply(protocol.gone(name))

    def _reply(self, client_id: str, word: Posted | ChatError) -> None:
        is_posted = isinstance(word, Posted)
        self._subscriber.reply(
            protocol.ack(word) if is_posted else protocol.refused(client_id, word.code, word.message)
        )
        self.wake()

    def recheck_session(self) -> None:
        """Sessions do not end here."""

    def wake(self) -> None:
        """There may be something to write."""
        if not self._is_waking and self._server.owns(self):
            self._is_waking = True
            self._server.world.later(0, self._write)

    def _write(self) -> None:
        self._is_waking = False
        while self._server.owns(self) and not self._socket.is_dead and self._socket.in_flight < WINDOW:
            if self._subscriber.replies:
                first, *rest = self._subscriber.replies
                self._subscriber.replies = tuple(rest)
                self._socket.down(first)
            elif (news := self._subscriber.next_update()) is not None:
                self._socket.down(_frame(*news))
            else:
                return

    def close(self) -> None:
        """The socket ended."""
        self._subscriber.close()
        self._server.connections.pop(self, None)

    def say_goodbye(self, advice: str) -> None:
        """The server restarts."""
        self._socket.end(1012, advice)
        self.close()

    def cut(self, tell_client: bool) -> None:
        """The process died."""
        self._socket.cut(tell_client, False)


class Server:
    """One process after the other on one database."""

    def __init__(self, world: World, disk: Disk, traits: Traits, person: Person, answers: bool) -> None:
        self.answers = answers
        # In some schedules every chunk is cut after few changes.
        self.most_changes = MOST_CHANGES if world.seed % 3 else 1 + world.seed % 4
        self.world, self.disk, self.traits, self.person = world, disk, traits, person
        self.is_up = False
        self.life = 0
        self.connections: dict[Line, None] = {}
        self.dies_at_commit = ""  # "before" or "after" the next one
        self._assistant_waits = False
        self._snapshot: tuple[int, bytes] | None = None
        disk.watch(self._before_commit, self._after_commit)
        self.boot()

    def boot(self) -> None:
        """A process starts: nothing is left but the database."""
        self.life += 1
        self.is_up = True
        self.bus = Bus()
        self.store = MemoryStore(self.disk, self.bus, self.traits.conversations, self.most_changes)
        self.chat = Chat(self.store, assistant_answers=self.answers)
        self.reader = Reader(self.store, self.chat, rendering.Renderer(drawing_app(), "/", NoHistories().mark))
        self.polls = Polls(self.reader, self.bus, Connections(60, lambda *_: None), EPOCH, NoHistories())
        self.connections.clear()
        self.bus.subscribe(RUNS, lambda _: self._claim_soon())
        self._assistant_waits = False
        self._leases: set[str] = set()  # of this process
        self.world.note(f"boot {self.life}")
        if self.answers:
            self._alive(0, self._reap)
            self._claim_now_and_then()

    def crash(self, down_ms: float, tell_clients: bool) -> None:
        """Die now, and start again later."""
        if not self.is_up:
            return
        self.world.note("crash")
        self.is_up = False
        self.life += 1
        self.store.database.close()  # the dead hold no connection
        if self._snapshot and self.world.now - self._snapshot[0] < self.traits.commit_lag_ms:
            self.disk.restore(self._snapshot[1])
        for connection in list(self.connections):
            connection.cut(tell_clients)
        self.connections.clear()
        self.world.later(down_ms, self.boot)

    def restart(self, down_ms: float) -> None:
        """End in order: connections are told when to come back."""
        if self.is_up:
            for number, connection in enumerate(list(self.connections)):
                connection.say_goodbye(f"retry={0.2 + number / 100:.3f}")
            self.crash(down_ms, True)

    def owns(self, line: Line) -> bool:
        """Whether the process that holds this connection lives."""
        return self.is_up and line in self.connections

    # The transports

    def accept(self, socket: Socket) -> None:
        """A WebSocket is open."""
        line = Line(self, socket, self.person)
        self.connections[line] = None
        line.wake()

    def request(self, ask: Ask, reply: Reply) -> None:
        """An HTTP request."""
        fields = dict(ask.fields)
        if ask.url == "/mark":
            reply(Answer(200, f'<chat-test nonce="{fields["nonce"]}" origin="yes" room="yes"></chat-test>'))
            return
        if ask.method == "GET":
            self._poll(ask, float(fields["wait"]), reply)
            return
        create = "id" in fields
        conversation = fields["id"] if create else ask.url.split("/")[2]

        def answer(word: Posted | ChatError) -> None:
            if isinstance(word, Posted):
                data = {"id": word.id, "position": word.position, "revision": word.revision}
                reply(Answer(201 if word.created else 200, json.dumps(data)))
            else:
                status = 404 if isinstance(word, Gone) else 409 if isinstance(word, Conflict) else 422
                reply(Answer(status, json.dumps({"error": {"code": word.code, "message": word.message}})))

        self.post(self.person.id, conversation, fields["client_id"], fields["body"], create, answer)

    def post(
        self,
        person: int,
        conversation: str,
        client_id: str,
        body: str,
        create: bool,
        answer: Callable[[Posted | ChatError], None],
    ) -> None:
        """Store a message; the word on it comes after the commit, if the process lives to say it."""
        if self.traits.commit_lag_ms:
            self._snapshot = (self.world.now, self.disk.copy())
        words: list[Posted | ChatError] = []

        def store() -> None:
            try:
                words.append(self.chat.post(person, conversation, client_id, body, create))
            except ChatError as error:
                words.append(error)

        if self._survives(store):
            self._alive(self.world.between(0, 15), lambda: answer(words[0]))

    def act(self, verb: Callable[[Chat], object]) -> None:
        """A person's other requests: delete, stop and the like."""

        def work() -> None:
            try:
                verb(self.chat)
            except ChatError as error:
                self.world.note(error.code)

        if self.is_up:
            self._survives(work)

    def _poll(self, ask: Ask, wait_s: float, reply: Reply) -> None:
        cursors = {name: int(n) for name, n in (v.rsplit(":", 1) for k, v in ask.fields if k == "c")}
        fields = dict(ask.fields)
        poll = Poll(fields["epoch"], cursors, 0, is_short=fields.get("short") == "1")
        cancels: list[Callable[[], None]] = []
        until = self.world.now + wait_s * 1000

        def look() -> None:
            found = self.polls.answer(self.person.id, 0, poll)
            if found or self.world.now >= until:
                for cancel in cancels:
                    cancel()
                cancels.clear()
                reply(Answer(200, protocol.answer(found)) if found else Answer(204, ""))
            elif not cancels:
                for name in cursors:
                    feed = self.reader.feed(self.person.id, name)
                    self.bus.subscribe(feed, wake)
                    cancels.append(partial(self.bus.unsubscribe, feed, wake))
                self._alive(until - self.world.now, lambda: look() if cancels else None)

        def wake(_topic: int) -> None:
            self._alive(0, lambda: look() if cancels else None)

        look()

    # The process

    def _alive(self, delay: float, work: Callable[[], None]) -> None:
        """Do it later, if this process still lives then."""
        life = self.life

        def check() -> None:
            if self.life == life and self.is_up:
                work()

        self.world.later(delay, check)

    def _survives(self, work: Callable[[], None]) -> bool:
        """Do what commits; False where the process dies of it, before or after the commit."""
        try:
            work()
        except Crashed:
            self.dies_at_commit = "died"
        if self.dies_at_commit != "died":
            return True
        self.dies_at_commit = ""
        self.crash(self.world.between(50, 2000), self.world.chance(0.7))
        return False

    def _before_commit(self) -> None:
        if self.dies_at_commit == "before" and self.is_up:
            raise Crashed

    def _after_commit(self) -> None:
        if self.dies_at_commit == "after" and self.is_up:
            self.dies_at_commit = "died"

    # The assistant

    def _claim_soon(self) -> None:
        if not self._assistant_waits:
            self._assistant_waits = True
            self._alive(20, self._claim)

    def _claim(self) -> None:
        self._assistant_waits = False
        lease, claimed = self.world.uuid().hex, list[ClaimedRun | None]()
        self._leases.add(lease)
        if self._survives(lambda: claimed.append(self.store.runs.claim_run(lease))) and claimed[0]:
            self._answer(claimed[0])

    def _answer(self, run: ClaimedRun) -> None:
        script = Script(self.world, self.most_changes < MOST_CHANGES)
        self._alive(FLUSH_MS, lambda: self._write(run, script))

    def _write(self, run: ClaimedRun, script: Script) -> None:
        changed, runs = script.grow(), self.store.runs
        verdicts = []

        def store() -> None:
            verdict = runs.write_answer(run, "…", changed) if script.left > 0 else "end"
            verdicts.append(verdict)
            if verdict != "go":
                state = "stopped" if verdict == "stop" else "completed" if self.world.chance(0.9) else "failed"
                runs.end_run(run, state, "…", changed, None)

        if self._survives(store) and verdicts == ["go"]:
            self._alive(FLUSH_MS, lambda: self._write(run, script))

    def _reap(self) -> None:
        found: list[tuple[int, list[ClaimedRun]]] = []
        lease = f"life{self.life}"
        self._leases.add(lease)
        if self._survives(lambda: found.append(self.store.runs.reap_runs(self._is_gone, lease, 9))):
            for run in found[0][1]:
                self._answer(run)
            self._claim_soon()

    def _is_gone(self, _run: int, lease: str) -> bool:
        return lease.rstrip(AGAIN) not in self._leases

    def _claim_now_and_then(self) -> None:
        self._claim_soon()
        self._alive(LOOK_AROUND_S * 1000, self._claim_now_and_then)


class Script:
    """An answer as it grows: blocks that get longer, are closed, change their tail, become empty."""

    def __init__(self, world: World, is_long: bool) -> None:
        self._world = world
        self.left = world.random.choice([0, 3, 10, 20] if is_long else [0, 1, 2, 3])
        self._blocks: list[list[str]] = [[]]

    def grow(self) -> list[tuple[int, str]]:
        """The next flush: which blocks changed, and their source now."""
        world, self.left = self._world, self.left - 1
        changed = {len(self._blocks) - 1}
        for _ in range(world.random.randrange(1, 5)):
            if len(self._blocks[-1]) > 2 and world.chance(0.4):
                self._blocks.append([])
            if len(self._blocks) > 1 and world.chance(0.05):
                last, self._blocks[-1] = self._blocks[-1], []
                self._blocks[-2] += last  # it turned out to belong to the one before it
                changed.add(len(self._blocks) - 2)
            if self._blocks[-1] and world.chance(0.2):
                self._blocks[-1].pop()
            self._blocks[-1].append(world.random.choice(WORDS))
            changed.add(len(self._blocks) - 1)
        return [(index, _source(self._blocks[index])) for index in sorted(changed)]


def _source(words: list[str]) -> str:
    return f"<p>{html.escape(' '.join(words), quote=False)}</p>" if words else ""


def _frame(name: str, news: Update | Exception) -> str:
    if isinstance(news, Update):
        return news.frame if news.frame is not None else protocol.nothing(name, news.cursor)
    return protocol.reload(name, "cursor") if isinstance(news, StaleCursor) else protocol.gone(name)
