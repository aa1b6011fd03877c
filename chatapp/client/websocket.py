"""The WebSocket transport without its socket: proof (hello, feeds, echoes) and failure detector.

The rules are those of static/js/connection/websocket.js: any byte is life, echoes are asked for only to have
something to wait for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from chatapp.client.actions import Hang, Open, Say, World
from chatapp.client.feeds import Element, parse
from chatapp.client.outbox import Outgoing
from chatapp.connection.detector import TRIGGERS, Detector
from chatapp.connection.record import Event

ECHOES_OF_PROOF = 3
DEAD, DONE, SIGNED_OUT, RESTART, SERVER_ERROR = 4000, 1000, 4401, 1012, 1011


@dataclass
class Facts:
    """What is known of the one live socket."""

    number: int
    proof: int  # how long it must live, beyond its echoes, before it may carry
    detector: Detector
    hello: bool = False
    waiting: set[str] = field(default_factory=set)
    ready_at: int | None = None
    proved: bool = False
    echoes: int = 0


class WebSocketTransport:
    """Open, close, send, subscribe, verify: the same verbs as the polling transport."""

    def __init__(self, world: World, max_message: int, heartbeat_ms: int, triggers: Collection[str] = TRIGGERS) -> None:
        self._world = world
        self._facts: Facts | None = None
        self._count = 0
        self._detector: Detector | None = None  # of the newest socket
        self._heartbeat, self._triggers = heartbeat_ms, triggers
        self.max_message = max_message

    def open(self, proof: int, kill_gap: int = 0) -> None:
        """Try a new socket; `kill_gap`: sockets that are silent for so long get cut here."""
        self.close()
        self._count += 1
        detector = Detector(self._heartbeat, self._world.now, self._triggers, self._detector, kill_gap)
        self._detector, self._facts = detector, Facts(self._count, proof, detector)
        self._world.do(Open(self._count))

    def close(self, code: int = DONE) -> None:
        """Give the socket up."""
        if self._facts:
            self._world.do(Hang(self._facts.number, code))
            self._facts = None

    def send(self, entry: Outgoing) -> bool:
        """True if the entry went out; the word on it comes as a frame."""
        names = {"conversation": entry.conversation, "client_id": entry.id, "body": entry.body}
        text = _json({"type": "send", **names})
        if not self._facts or not self._facts.hello or not self._fits(text):
            return False
        self._write(text)
        self._facts.detector.sent(entry.id, self._world.now)
        return True

    def settled(self, client_id: str) -> None:
        """Nothing is awaited for this message any more."""
        if self._facts:
            self._facts.detector.settled(client_id)

    def subscribe(self, feeds: Mapping[str, int]) -> None:
        """Follow feeds from these cursors, in as many frames as the limit asks for."""
        epoch, _ = self._world.plan()
        part: dict[str, int] = {}
        for feed, cursor in feeds.items():
            if part and not self._fits(_json({"type": "subscribe", "epoch": epoch, "feeds": {**part, feed: cursor}})):
                self._write(_json({"type": "subscribe", "epoch": epoch, "feeds": part}))
                part = {}
            part[feed] = cursor
        if part:
            self._write(_json({"type": "subscribe", "epoch": epoch, "feeds": part}))

    def unsubscribe(self, feed: str) -> None:
        """Follow a feed no longer."""
        if self._facts:
            self._facts.waiting.discard(feed)
        self._write(_json({"type": "unsubscribe", "feeds": [feed]}))

    def verify(self) -> None:
        """After sleep or on a hint: forget what was outstanding, ask once more, judge in 2 s."""
        facts = self._facts
        if facts and facts.ready_at is not None:
            facts.detector.verify(self._world.now)
            self._echo(facts)

    def expect(self) -> None:
        """A poll brought what this silent socket should have."""
        if self._facts:
            self._facts.detector.expect(self._world.now)

    def frame(self, number: int, text: str) -> None:
        """A frame came on a socket."""
        facts = self._facts
        if facts is None or facts.number != number:
            return
        recovered = facts.detector.heard(self._world.now)
        for element in parse(text)[:1]:
            self._take(facts, element, is_clean=not recovered)
        if recovered:
            self._world.on({"type": "ws_recovered"})
        if self._facts is facts:
            self._advance(facts)

    def closed(self, number: int, code: int, reason: str) -> None:
        """A socket ended, or never came to be (code 1006)."""
        facts = self._facts
        if facts is None or facts.number != number:
            return
        self._facts = None
        if code == SIGNED_OUT:
            self._world.on({"type": "signed_out", "reason": "signed-out"})
            return
        why = "server-restart" if code == RESTART else "socket-closed" if facts.hello else "upgrade-refused"
        advice = re.search(r"retry=([\d.]+)", reason)
        event: Event = {"type": "ws_closed", "reason": why}
        if code == SERVER_ERROR:  # the server's own fault says nothing about the network: no blame
            event["reason"] = "server-storage" if reason.startswith("storage") else "server-error"
            event["advice_ms"] = 0
        event["silent_ms"] = round(self._world.now - facts.detector.last_in)
        if advice:
            event["advice_ms"] = round(1000 * float(advice[1]))
        self._world.on(event)

    def _take(self, facts: Facts, element: Element, is_clean: bool) -> None:
        if element.tag == "chat-hello":
            facts.hello = True
            self.max_message = int(element.get("max-message") or self.max_message)
            self._world.receive(element, "websocket")
            _, feeds = self._world.plan()
            facts.waiting = set(feeds)
            self.subscribe(feeds)
            self._echo(facts)
        elif element.tag == "chat-echo":
            self._on_echo(facts, element.number("n"), is_clean)
        else:
            self._world.receive(element, "websocket")
        if element.tag in ("chat-feed", "chat-gone"):
            facts.waiting.discard(element.get("feed"))

    def _on_echo(self, facts: Facts, n: int, is_clean: bool) -> None:
        facts.echoes += 1
        smoothed = facts.detector.echoed(n, self._world.now, is_clean)
        if smoothed is not None:
            estimate = facts.detector.estimate
            jitter = round(estimate["rttvar"]) if estimate else 0
            self._world.on({"type": "measured", "rtt": round(smoothed), "jitter": jitter})

    def _advance(self, facts: Facts) -> None:
        """From hello to ready (feeds resumed, one echo) to proved (three echoes, and old enough)."""
        if not facts.hello or facts.proved or facts.waiting or not facts.echoes:
            return
        if facts.ready_at is None:
            facts.ready_at = self._world.now
            self._world.on({"type": "ws_ready"})
        if self._facts is not facts:
            return
        if facts.echoes >= ECHOES_OF_PROOF and self._world.now - facts.ready_at >= facts.proof:
            facts.proved = True
            self._world.on({"type": "ws_proved"})
        elif not facts.detector.probes and facts.echoes < ECHOES_OF_PROOF:
            self._echo(facts)

    def due(self) -> float | None:
        """When `tick` has something to do."""
        facts = self._facts
        return facts.detector.due(self._activity(facts)) if facts and facts.hello else None

    def tick(self) -> None:
        """What is due: an echo, a suspicion, a verdict."""
        facts = self._facts
        if facts is None or not facts.hello:
            return
        for what in facts.detector.tick(self._world.now, self._activity(facts)):
            if self._facts is not facts:
                return
            if what == "dead":
                self._die()
            elif what == "suspect":
                self._world.on({"type": "ws_suspect", "trigger": facts.detector.suspicion})
            else:
                self._echo(facts)

    def _activity(self, facts: Facts) -> str:
        if facts.ready_at is not None and not facts.proved:
            return "proving"
        return self._world.activity(bool(facts.detector.sends))

    def _die(self) -> None:
        self.close(DEAD)
        self._world.on({"type": "ws_closed", "reason": "socket-silent"})

    def _echo(self, facts: Facts) -> None:
        self._write(_json({"type": "echo", "n": facts.detector.ask(self._world.now)}))

    def _fits(self, text: str) -> bool:
        return len(text.encode()) <= self.max_message

    def _write(self, text: str) -> None:
        if self._facts and self._facts.hello:
            self._world.do(Say(self._facts.number, text))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
