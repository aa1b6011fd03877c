"""The client without I/O and without a clock: what happened goes in with the time, what is to be done comes out.

Call an input, then `take()` and do those actions; call `tick` when `due` says so. One thread at a time. Milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

from chatapp.client.actions import Action, Activity, Answer, Ask, Drop, Fields, Method
from chatapp.client.feeds import Element, Entry, Feed, Message
from chatapp.client.outbox import Ack, Again, Outbox, Outcome, Outgoing, Refusal
from chatapp.client.polling import PollingTransport, Urls
from chatapp.client.websocket import WebSocketTransport
from chatapp.connection import facts
from chatapp.connection.delays import Config, Random
from chatapp.connection.detector import TRIGGERS
from chatapp.connection.quality import Watch
from chatapp.connection.record import Event, Record
from chatapp.connection.states import Machine, is_connected

Landed = TypeVar("Landed", Ack, Refusal)
LIST = "list"
SLEPT_MS = 3000
ACTIVE_MS, IDLE_MS = 120_000, 600_000  # since the last message or hint: active until, idle from
MOST_OUTCOMES = 10_000  # of messages, the newest, that are remembered: some 2 MB
RESYNC_MS = 1000  # a feed is asked for again at most this often


@dataclass(frozen=True)
class Settings:
    """What the page's chat-config says, and whose session this is."""

    machine: Config
    urls: Urls
    person: str = ""
    epoch: str = ""
    max_message: int = 512
    heartbeat_ms: int = 30_000
    hold_ms: int = 25_000
    triggers: tuple[str, ...] = TRIGGERS
    kill_gap: int = 0  # remembered of this network


@dataclass
class Flight:
    """A message that is under way; `post` is its request, or None while it goes by WebSocket."""

    entry: Outgoing
    post: int | None = None


class Core:
    """One connection: the machine, both transports, the feeds and the outbox."""

    def __init__(self, settings: Settings, random: Random, outbox: Iterable[Outgoing] = ()) -> None:
        self.now = 0
        self.settings = settings
        self.epoch = settings.epoch
        self.person = settings.person
        self.feeds: dict[str, Feed] = {}
        self.acks: dict[str, Ack] = {}
        self.refusals: dict[str, Refusal] = {}
        self.gone: set[str] = set()
        self.on_change: Callable[[Record], None] = lambda record: None
        self.machine = Machine(settings.machine, random)
        self.machine.record["killGap"] = settings.kill_gap
        self.watch = Watch()
        self.websocket = WebSocketTransport(self, settings.max_message, settings.heartbeat_ms, settings.triggers)
        self.polling = PollingTransport(
            self, settings.urls, settings.person, settings.machine["poll_ms"], settings.hold_ms
        )
        self.outbox = Outbox(self._deliver, random, outbox)
        self._flights: dict[str, Flight] = {}
        self._requests: dict[int, tuple[str, int]] = {}  # number → whose, until when
        self._count = 0
        self._actions: list[Action] = []
        self._inbox: list[Event] = []
        self._is_busy = False
        self._resyncs: dict[str, int] = {}
        self._last_resync = -RESYNC_MS
        self._used_at = 0  # when somebody last did something with it

    # What people do

    @property
    def record(self) -> Record:
        """The observable record: status, reason, attempts, …"""
        return self.machine.record

    def start(self, now: int) -> None:
        """Connect, and stay connected until `stop`."""
        self.now = self._used_at = now
        self.watch.begin(now)
        self.on({"type": "start"})

    def hint(self, now: int, event: Event) -> None:
        """retry, wake, online, offline, hidden, stop: what the person or the system says."""
        self.now = now
        if event["type"] in ("wake", "retry"):
            self._use()
        self.on(event)

    def follow(self, now: int, feed: str, cursor: int = 0) -> None:
        """Show a feed, from nothing."""
        self.now = now
        self.gone.discard(feed)
        if feed not in self.feeds:
            self.feeds[feed] = Feed(cursor)
            self._subscribe(feed)

    def unfollow(self, now: int, feed: str) -> None:
        """Show it no longer."""
        self.now = now
        if self.feeds.pop(feed, None):
            self.websocket.unsubscribe(feed)

    def send(self, now: int, entry: Outgoing) -> None:
        """Take a message; it is repeated until the server has it."""
        self.now = now
        self._use()
        self.outbox.add(entry)

    def messages(self, conversation: str) -> list[Message]:
        """What is shown of a conversation, in order."""
        feed = self.feeds.get(conversation)
        return feed.ordered() if feed else []

    def conversations(self) -> list[Entry]:
        """The list, newest first."""
        feed = self.feeds.get(LIST, Feed())
        return sorted(feed.conversations.values(), key=lambda entry: entry.updated, reverse=True)

    # What the network does

    def frame(self, now: int, socket: int, text: str) -> None:
        """A WebSocket frame."""
        self.now = now
        self.websocket.frame(socket, text)

    def closed(self, now: int, socket: int, code: int, reason: str = "") -> None:
        """A WebSocket ended, or could not be opened (1006)."""
        self.now = now
        self.websocket.closed(socket, code, reason)

    def answered(self, now: int, number: int, answer: Answer | None) -> None:
        """A request was answered; None: it failed."""
        self.now = now
        owner, _ = self._requests.pop(number, ("", 0))
        if owner == "poll":
            self.polling.answered(number, answer)
        elif owner == "post":
            for flight in [flight for flight in self._flights.values() if flight.post == number]:
                self._land(flight.entry.id, self.polling.outcome(answer))

    # Time

    def due(self) -> float | None:
        """When `tick` is wanted next."""
        deadlines = [until for _, until in self._requests.values()]
        judged = self.watch.due if self.record["status"] != "disconnected" else None
        times = [self.machine.due(), self.websocket.due(), self.polling.due(), self.outbox.due(), judged]
        return min((at for at in [*times, *self._resyncs.values(), *deadlines] if at is not None), default=None)

    def tick(self, now: int) -> None:
        """Do what is due. Far too late means that this machine slept: nothing that timed out meanwhile counts."""
        due, self.now = self.due(), now
        if due is not None and now - due > SLEPT_MS and self.record["status"] != "disconnected":
            self.on({"type": "wake"})
            self._requests = {number: (owner, now + 2000) for number, (owner, _) in self._requests.items()}
        for number in [number for number, (_, until) in self._requests.items() if until <= now]:
            self._actions.append(Drop(number))
            self.answered(now, number, None)
        self._note_activity()
        if (self.machine.due() or now + 1) <= now:
            self.on({"type": "tick"})
        self.websocket.tick()
        self.polling.tick()
        if now >= self.watch.due:
            pacing = self.polling.pacing
            is_plain = self.record["status"] == "polling" and not pacing.hold(now)
            extra = pacing.interval(self.activity()) / 2 if is_plain else 0
            self.on(self.watch.judge(now, self.record, extra))
        self.outbox.tick(now)
        for feed in [name for name, at in self._resyncs.items() if at <= now]:
            del self._resyncs[feed]
            self._subscribe(feed)

    def take(self) -> list[Action]:
        """The actions to do, in order."""
        actions, self._actions = self._actions, []
        return actions

    # What the transports and the outbox ask for

    def on(self, event: Event) -> None:
        """The one way to the state machine. Events that come up meanwhile wait their turn."""
        self._inbox.append(event)
        if self._is_busy:
            return
        self._is_busy = True
        before = self.record
        try:
            while self._inbox:
                event, was = self._inbox.pop(0), self.record
                actions = self.machine.take(event, self.now)
                self.watch.note(self.now, event, was, self.record)
                for action in actions:
                    self._obey(action)
        finally:
            self._is_busy = False
        self.outbox.open(is_connected(self.record["status"]))
        if before != self.record:
            self.on_change(self.record)

    def do(self, action: Action) -> None:
        """I/O to be done."""
        self._actions.append(action)

    def ask(self, owner: str, method: Method, url: str, fields: Fields, within: int) -> int:
        """A request with a deadline of ours."""
        self._count += 1
        self._requests[self._count] = (owner, self.now + within)
        self._actions.append(Ask(self._count, method, url, tuple(fields)))
        return self._count

    def drop(self, number: int) -> None:
        """Its answer is not wanted any more."""
        if self._requests.pop(number, None):
            self._actions.append(Drop(number))

    def plan(self) -> tuple[str, dict[str, int]]:
        """What is followed, and from where."""
        return self.epoch, {name: feed.cursor for name, feed in self.feeds.items()}

    def activity(self, awaiting: bool = False) -> Activity:
        """How closely to watch: an answer is awaited, or how long ago somebody did something."""
        if self.record["activity"] == "hidden":
            return "hidden"
        if self.record["offline"]:
            return "offline"
        if awaiting or self._flights or self._is_answering():
            return "awaiting"
        unused = self.now - self._used_at
        return "active" if unused < ACTIVE_MS else "visible" if unused < IDLE_MS else "idle"

    def receive(self, element: Element, transport: str) -> bool:
        """An element from the server. True if it moved a cursor."""
        name = element.get("feed")
        if element.tag == "chat-feed":
            return self._apply(name, element, transport)
        if element.tag == "chat-hello":
            self._on_hello(element)
        elif element.tag == "chat-ack":
            ack = Ack(element.get("id"), element.number("position"), element.number("revision"))
            self._land(element.get("client-id"), ack)
        elif element.tag == "chat-refused":
            self._land(element.get("client-id"), _refusal(element))
        elif element.tag == "chat-reload":
            self._adopt_epoch(element.get("epoch"))
            self._restart(name)
        elif element.tag == "chat-gone" and name in self.feeds:
            del self.feeds[name]
            self.gone.add(name)
            return True
        return False

    # Inside

    def _use(self) -> None:
        self._used_at = self.now
        self._note_activity()
        self.polling.hasten()

    def _note_activity(self) -> None:
        """The machine probes more often for somebody who is there."""
        level = self.activity()
        level = "active" if level == "awaiting" else level
        if level not in ("hidden", "offline", self.record["activity"]):
            self.on({"type": "activity", "level": level})

    def _obey(self, action: str) -> None:
        if action == "open_websocket":
            self.websocket.open(facts.proof(self.record, self.now), self.record["killGap"])
        elif action == "close_websocket":
            self.websocket.close()
            self._repost()
        elif action == "resend":
            self._repost()
        elif action == "start_poll":
            self.polling.open()
        elif action == "restart_poll":
            self.polling.verify()
        elif action == "stop_poll":
            self.polling.close()
        elif action == "verify":
            self.websocket.verify()

    def _deliver(self, entry: Outgoing) -> None:
        flight = self._flights[entry.id] = Flight(entry)
        by_socket = self.record["status"] == "connected" and self.record["ws"] == "up" and not entry.create
        if not by_socket or not self.websocket.send(entry):
            self._post(flight)

    def _post(self, flight: Flight) -> None:
        """By HTTP, but not before the moment that the server asked for."""
        if (left := self.record["notBefore"] - self.now) > 0:
            self._land(flight.entry.id, Again("rate-limited", left))
        else:
            flight.post = self.polling.send(flight.entry)

    def _repost(self) -> None:
        """What went by a socket that is silent or closed goes again, by POST."""
        for flight in list(self._flights.values()):
            if flight.post is None:
                self._post(flight)

    def _land(self, client_id: str, outcome: Outcome) -> None:
        flight = self._flights.pop(client_id, None)
        self.websocket.settled(client_id)
        if isinstance(outcome, Ack):
            _keep(self.acks, client_id, outcome)
        elif isinstance(outcome, Refusal):
            _keep(self.refusals, client_id, outcome)
        if flight:
            self.outbox.ended(flight.entry, outcome, self.now)
        elif not isinstance(outcome, Again):
            self.outbox.settled(client_id, outcome)
        if not self._is_busy:
            self.on({"type": "queued", "queued": self.outbox.waiting()})

    def _on_hello(self, hello: Element) -> None:
        if self.person and hello.get("person") != self.person:
            self.on({"type": "signed_out", "reason": "signed-out"})
        else:
            self._adopt_epoch(hello.get("epoch"))

    def _adopt_epoch(self, epoch: str) -> None:
        """Another epoch is another database: what is shown is of no use as a starting point."""
        if epoch and epoch != self.epoch:
            self.epoch = epoch
            for feed in self.feeds.values():
                feed.forget()

    def _apply(self, name: str, element: Element, transport: str) -> bool:
        feed = self.feeds.get(name)
        if feed is None:
            return False
        verdict = feed.apply(element)
        if verdict == "misfit":
            self._restart(name)
        elif verdict == "gap":
            self._resync(name)
        elif verdict == "applied" and transport == "polling" and self.record["ws"] == "suspect":
            self.websocket.expect()
        return verdict == "applied"

    def _restart(self, name: str) -> None:
        if name in self.feeds:
            self.feeds[name].forget()
            self._resync(name)

    def _resync(self, name: str) -> None:
        """Ask again from the cursor; at once, but never more than once a second."""
        if name not in self._resyncs:
            at = max(self.now, self._last_resync + RESYNC_MS)
            self._resyncs[name] = self._last_resync = at

    def _subscribe(self, name: str) -> None:
        feed = self.feeds.get(name)
        if feed and self.record["status"] != "disconnected":
            self.websocket.subscribe({name: feed.cursor})
            self.polling.subscribe()

    def _is_answering(self) -> bool:
        return any(feed.live or feed.waiting for feed in self.feeds.values())


def _keep(outcomes: dict[str, Landed], client_id: str, outcome: Landed) -> None:
    """Note what became of a message, in place of the oldest."""
    outcomes[client_id] = outcome
    if len(outcomes) > MOST_OUTCOMES:
        del outcomes[next(iter(outcomes))]


def _refusal(element: Element) -> Refusal | Again:
    code = element.get("code")
    if code in ("rate", "storage"):
        return Again(
            "rate-limited" if code == "rate" else "server-storage", int(1000 * float(element.get("retry-after") or 1))
        )
    return Refusal(code, element.text)


def outgoing(conversation: str, body: str, client_id: str | None = None, create: bool = False) -> Outgoing:
    """A message to send, under a new id unless one is given."""
    return Outgoing(client_id or str(uuid4()), conversation, body, create)
