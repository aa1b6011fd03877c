"""The client with its I/O: a thread that keeps time, one for each socket and each request under way.

Everything that happens takes one lock, enters the core, and the core's actions are done before it is released.
Threads, sockets and locks are the standard library's, so gevent's patches suit it too.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from chatapp.client.actions import Action, Answer, Ask, Drop, Hang, Open, Renew, Say
from chatapp.client.core import LIST, Core, Settings, outgoing
from chatapp.client.feeds import Element, Entry, Message
from chatapp.client.outbox import Ack, Outgoing, Refusal
from chatapp.client.polling import Urls, object_of
from chatapp.client.site import NotSignedIn, Session, Site, Socket
from chatapp.connection import memory
from chatapp.connection.delays import Config
from chatapp.connection.record import Record

Got = TypeVar("Got")


class Client:
    """A person's connection. Methods may be called from any thread; callbacks run under the lock and must not block.

    `transports` narrows what the server offers. `on_change(record)` is told of every change of the record.
    `networks` remembers where WebSocket failed, for the next client that is given it; store it where that matters.
    """

    def __init__(
        self,
        url: str,
        email: str,
        password: str,
        transports: Iterable[str] = ("websocket", "polling"),
        on_change: Callable[[Record], None] = lambda record: None,
        networks: memory.Networks | None = None,
    ) -> None:
        self._session = Session(Site.of(url))
        self._email, self._password = email, password
        self._transports = tuple(transports)
        self._on_change = on_change
        self._core: Core | None = None
        self._changed = threading.Condition(threading.RLock())
        self._sockets: dict[int, Socket] = {}
        self._requests: dict[int, http.client.HTTPConnection | None] = {}
        self._is_closed = False
        self._ws_path = ""
        self._networks: memory.Networks = {} if networks is None else networks
        self._network = ""
        self._noted: set[str] = set()

    def start(self) -> Client:
        """Sign in and connect. Raises OSError, NotSignedIn. Returns itself."""
        began = time.monotonic()
        self._session.sign_in(self._email, self._password)
        config, body = self._session.home()
        self._ws_path = str(config["ws_url"])
        settings = _settings(config, body, self._transports, int((time.monotonic() - began) * 100))
        settings = self._with_lesson(settings, str(config["network"]))
        self._core = Core(settings, random.random)
        self._core.on_change = self._changed_record
        self._enter(lambda core, now: core.start(now))
        self.follow(LIST)
        threading.Thread(target=self._keep_time, name="chatapp client", daemon=True).start()
        return self

    def __enter__(self) -> Client:
        return self if self._core else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def record(self) -> Record:
        """The observable record: status, connectionType, reason, reconnectAttempts, rtt, …"""
        with self._changed:
            return self._running().record

    def create(self, body: str = "", conversation: str | None = None) -> str:
        """A new conversation, followed, with its first message where there is one; its id.

        Raises TimeoutError, ValueError where it was refused, and without a message OSError where it was not made.
        """
        conversation = conversation or str(uuid4())
        if body:
            entry = outgoing(conversation, body, create=True)
            self._enter(lambda core, now: core.send(now, entry))
            self.wait_sent(entry.id)
        else:
            url = self._running().settings.urls.create
            _check_made(conversation, *self._session.request("POST", url, [("id", conversation)]))
        self.follow(conversation)
        return conversation

    def follow(self, conversation: str) -> None:
        """Show a conversation (`list`: the list of them), and keep it up to date."""
        self._enter(lambda core, now: core.follow(now, conversation))

    def unfollow(self, conversation: str) -> None:
        """Show it no longer."""
        self._enter(lambda core, now: core.unfollow(now, conversation))

    def send(self, conversation: str, body: str, client_id: str | None = None) -> str:
        """Take a message and return its client id at once; it is repeated until the server has it."""
        entry = outgoing(conversation, body, client_id)
        self._enter(lambda core, now: core.send(now, entry))
        return entry.id

    def acknowledged(self, client_id: str) -> Ack | None:
        """Where the server put a message, once it said so."""
        with self._changed:
            return self._running().acks.get(client_id)

    def refused(self, client_id: str) -> Refusal | None:
        """Why the server will never take a message."""
        with self._changed:
            return self._running().refusals.get(client_id)

    def unsent(self) -> list[Outgoing]:
        """What is neither acknowledged nor refused."""
        with self._changed:
            return [entry for entry in self._running().outbox.entries.values() if not entry.refused]

    def messages(self, conversation: str) -> list[Message]:
        """What is shown of a conversation, in order. The messages are the live ones: look, do not keep."""
        with self._changed:
            return self._running().messages(conversation)

    def conversations(self) -> list[Entry]:
        """The list of conversations, newest first."""
        with self._changed:
            return self._running().conversations()

    def retry(self) -> None:
        """Try now, whatever was planned."""
        self._enter(lambda core, now: core.hint(now, {"type": "retry"}))

    def wait(self, condition: Callable[[], Got], timeout: float = 10.0, what: str = "") -> Got:
        """Wait until the condition holds, looked at after every change; its value. Raises TimeoutError."""
        end = time.monotonic() + timeout
        with self._changed:
            while not (got := condition()):
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"not within {timeout:g} s: {what or condition}")
                self._changed.wait(left)
            return got

    def wait_sent(self, client_id: str, timeout: float = 10.0) -> Ack:
        """Wait for the acknowledgement of a message. Raises TimeoutError, ValueError where it was refused."""
        self.wait(lambda: self.acknowledged(client_id) or self.refused(client_id), timeout, f"{client_id} is sent")
        refusal, ack = self.refused(client_id), self.acknowledged(client_id)
        if ack is None:
            raise ValueError(f"{client_id} was refused: {refusal}")
        return ack

    def close(self) -> None:
        """End the connection and the threads. What is not sent stays in `unsent`."""
        with self._changed:
            if self._core and not self._is_closed:
                self._enter(lambda core, now: core.hint(now, {"type": "stop"}))
            self._is_closed = True
            self._changed.notify_all()

    # Inside

    def _with_lesson(self, settings: Settings, network: str) -> Settings:
        """What is remembered of this network."""
        self._network = network
        doubtful = memory.is_doubtful(self._networks, network, _wall_ms())
        machine: Config = {**settings.machine, "is_doubtful": doubtful}
        known = self._networks.get(network)
        return replace(settings, machine=machine, kill_gap=known["killGap"] if known else 0)

    def _changed_record(self, record: Record) -> None:
        """Each client counts one failure and one success of a network at most."""
        if record["status"] == "connected":
            self._remember("worked", True)
        elif record["status"] == "polling" and record["ws"] == "none" and record["wsReason"] in memory.BLAMED:
            self._remember("failed", False)
        if record["killGap"]:
            self._remember(f"gap {record['killGap']}", None, record["killGap"])
        self._on_change(record)

    def _remember(self, what: str, has_worked: bool | None, kill_gap: int = 0) -> None:
        if what not in self._noted:
            self._noted.add(what)
            memory.note(self._networks, self._network, _wall_ms(), has_worked, kill_gap)

    def _running(self) -> Core:
        if self._core is None:
            raise RuntimeError("start() the client first")
        return self._core

    def _enter(self, happen: Callable[[Core, int], None]) -> None:
        """The one door to the core."""
        with self._changed:
            core = self._running()
            if self._is_closed:
                return
            happen(core, _now_ms())
            for action in core.take():
                self._do(action)
            self._changed.notify_all()

    def _keep_time(self) -> None:
        with self._changed:
            while not self._is_closed:
                core, now = self._running(), _now_ms()
                due = core.due()
                if due is not None and due <= now:
                    self._enter(lambda core, now: core.tick(now))
                else:
                    self._changed.wait(None if due is None else max(1, due - now) / 1000)

    def _do(self, action: Action) -> None:
        if isinstance(action, Open):
            held = Socket(self._session.site, self._ws_path, self._session.cookie)
            self._sockets[action.socket] = held
            _begin(self._run_socket, action.socket, held)
        elif isinstance(action, Say):
            self._sockets[action.socket].say(action.text)
        elif isinstance(action, Hang):
            if held_socket := self._sockets.pop(action.socket, None):
                _begin(held_socket.close, action.code)
        elif isinstance(action, Ask):
            self._requests[action.number] = None
            _begin(self._run_request, action)
        elif isinstance(action, Drop):
            _abort(self._requests.pop(action.number, None))
        elif isinstance(action, Renew):
            _begin(self._renew)

    def _run_socket(self, number: int, held: Socket) -> None:
        code, reason = held.run(lambda text: self._enter(lambda core, now: core.frame(now, number, text)))

        def close(core: Core, now: int) -> None:
            self._sockets.pop(number, None)
            core.closed(now, number, code, reason)

        self._enter(close)

    def _run_request(self, ask: Ask) -> None:
        answer: Answer | None = None
        with contextlib.suppress(OSError):
            answer, location = self._session.request(
                ask.method, ask.url, ask.fields, opened=lambda connection: self._opened(ask.number, connection)
            )
            if urlsplit(location).path.endswith("/sign-in"):
                answer = Answer(401, "")
        with self._changed:
            if ask.number in self._requests:
                del self._requests[ask.number]
                self._enter(lambda core, now: core.answered(now, ask.number, answer))

    def _opened(self, number: int, connection: http.client.HTTPConnection) -> None:
        with self._changed:
            if number not in self._requests:
                raise ConnectionError("given up")
            self._requests[number] = connection

    def _renew(self) -> None:
        with contextlib.suppress(OSError, NotSignedIn):
            self._session.home()


def _check_made(conversation: str, answer: Answer, _location: str) -> None:
    """Raises ValueError where the server refused to make the conversation, OSError where anything else came."""
    data = object_of(answer.text)
    if answer.status in (200, 201) and data.get("conversation") == conversation:
        return
    error = data.get("error")
    if isinstance(error, dict):
        raise ValueError(f"{conversation} was refused: {error.get('code')}, {error.get('message')}")
    raise ConnectionError(f"{conversation} was not made: the answer was {answer.status}")


def _settings(config: dict[str, object], body: Element, transports: tuple[str, ...], latency_ms: int) -> Settings:
    """The core's settings from the page's chat-config and body."""

    def number(name: str) -> int:
        return int(str(config[name]))

    offered, predict = config["transports"], config["predict"]
    assert isinstance(offered, list) and isinstance(predict, list)
    return Settings(
        machine={
            "transports": [name for name in offered if name in transports],
            "reconnect_ms": number("reconnect_ms"),
            "max_attempts": number("max_attempts"),
            "poll_ms": number("poll_ms"),
            "poll_retries": number("poll_retries"),
            "poll_backoff": float(str(config["poll_backoff"])),
            "latency_ms": min(500, latency_ms),
        },
        urls=Urls(str(config["changes_url"]), str(config["create_url"]), str(config["messages_url"])),
        person=body.get("data-person"),
        epoch=body.get("data-epoch"),
        max_message=number("ws_max_message"),
        heartbeat_ms=number("heartbeat_ms"),
        hold_ms=number("poll_hold_ms"),
        triggers=tuple(predict),
    )


def _wall_ms() -> int:
    return int(time.time() * 1000)


def _now_ms() -> int:
    return int(time.monotonic() * 1000)


def _begin(work: Callable[..., object], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, name="chatapp client", daemon=True).start()


def _abort(connection: http.client.HTTPConnection | None) -> None:
    sock = connection.sock if connection else None
    if sock:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
