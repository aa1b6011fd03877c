"""The WebSocket transport without its socket: proof (hello, feeds, echoes) and failure detector.

The rules are those of static/js/transports/websocket.js: any byte is life, echoes are asked for only to have
something to wait for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from chatapp.client.actions import Hang, Open, Say, World
from chatapp.client.feeds import Element, parse
from chatapp.client.outbox import Outgoing
from chatapp.connection.delays import rtt_estimate

ECHOES_OF_PROOF = 3
INTERVALS_MS = {"awaiting": 2000, "visible": 5000}
VERDICT_MS = 2000
DEAD, DONE, SIGNED_OUT, RESTART = 4000, 1000, 4401, 1012


@dataclass
class Facts:
    """What is known of the one live socket."""

    number: int
    proof: int  # how long it must live, beyond its echoes, before it may carry
    last_in: int
    hello: bool = False
    waiting: set[str] = field(default_factory=set)
    ready_at: int | None = None
    proved: bool = False
    suspect: bool = False
    echoes: int = 0
    n: int = 0
    last_echo: int = 0
    verdict_at: int | None = None
    probes: dict[int, int] = field(default_factory=dict)
    sends: dict[str, int] = field(default_factory=dict)


class WebSocketTransport:
    """Open, close, send, subscribe, verify: the same verbs as the polling transport."""

    def __init__(self, world: World, max_message: int, heartbeat_ms: int) -> None:
        self._world = world
        self._facts: Facts | None = None
        self._count = 0
        self._estimate: dict[str, float] | None = None
        self._heartbeat = heartbeat_ms
        self.max_message = max_message

    @property
    def rto(self) -> float:
        """The time-out of one round trip."""
        return self._estimate["rto"] if self._estimate else 1000

    def open(self, proof: int) -> None:
        """Try a new socket."""
        self.close()
        self._count += 1
        self._facts = Facts(self._count, proof, self._world.now)
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
        self._facts.sends[entry.id] = self._world.now
        return True

    def settled(self, client_id: str) -> None:
        """Nothing is awaited for this message any more."""
        if self._facts:
            self._facts.sends.pop(client_id, None)

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
            facts.probes.clear()
            facts.sends = dict.fromkeys(facts.sends, self._world.now)
            facts.verdict_at = self._world.now + VERDICT_MS
            self._echo(facts)

    def expect(self) -> None:
        """A poll brought what this silent socket should have: it has one time-out left to say anything."""
        if self._facts and self._facts.verdict_at is None:
            self._facts.verdict_at = int(self._world.now + self.rto)
            self._echo(self._facts)

    def frame(self, number: int, text: str) -> None:
        """A frame came on a socket."""
        facts = self._facts
        if facts is None or facts.number != number:
            return
        facts.last_in, facts.verdict_at = self._world.now, None
        for element in parse(text)[:1]:
            self._take(facts, element)
        if facts.suspect:
            facts.suspect = False
            facts.probes.clear()
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
        if advice:
            self._world.on({"type": "ws_closed", "reason": why, "advice_ms": round(1000 * float(advice[1]))})
        else:
            self._world.on({"type": "ws_closed", "reason": why})

    def _take(self, facts: Facts, element: Element) -> None:
        if element.tag == "chat-hello":
            facts.hello = True
            self.max_message = int(element.get("max-message") or self.max_message)
            self._world.receive(element, "websocket")
            _, feeds = self._world.plan()
            facts.waiting = set(feeds)
            self.subscribe(feeds)
            self._echo(facts)
        elif element.tag == "chat-echo":
            self._on_echo(facts, element.number("n"))
        else:
            self._world.receive(element, "websocket")
        if element.tag in ("chat-feed", "chat-gone"):
            facts.waiting.discard(element.get("feed"))

    def _on_echo(self, facts: Facts, n: int) -> None:
        sent_at = facts.probes.get(n)
        facts.echoes += 1
        facts.probes = {older: at for older, at in facts.probes.items() if older > n}
        # Karn: what was asked before or during a suspicion says nothing about the round trip now.
        if sent_at is not None and not facts.suspect:
            self._estimate = rtt_estimate(self._estimate, self._world.now - sent_at)
            self._world.on({"type": "measured", "rtt": round(self._estimate["srtt"])})

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
        elif not facts.probes and facts.echoes < ECHOES_OF_PROOF:
            self._echo(facts)

    def due(self) -> float | None:
        """When `tick` has something to do."""
        facts = self._facts
        if facts is None or not facts.hello:
            return None
        times = [self._echo_due(facts)]
        if facts.verdict_at is not None:
            times.append(facts.verdict_at)
        if (judged := self._judge_due(facts)) is not None:
            times.append(judged)
        return min(times)

    def tick(self) -> None:
        """What is due: an echo, a suspicion, a verdict."""
        facts, now = self._facts, self._world.now
        if facts is None or not facts.hello:
            return
        if facts.verdict_at is not None and now >= facts.verdict_at:
            self._die()
            return
        if now >= self._echo_due(facts):
            self._echo(facts)
        judged = self._judge_due(facts)
        if judged is not None and now >= judged:
            if facts.suspect:
                self._die()
                return
            facts.suspect = True
            facts.sends.clear()  # the core repeats them by POST
            self._world.on({"type": "ws_suspect"})
            if self._facts is facts:
                self._echo(facts)

    def _echo_due(self, facts: Facts) -> float:
        if facts.ready_at is not None and not facts.proved and not facts.probes:
            return facts.last_echo + 500  # the time of proof goes on
        activity = self._world.activity(bool(facts.sends))
        last = facts.last_echo if activity == "awaiting" else max(facts.last_echo, facts.last_in)
        return last + INTERVALS_MS.get(activity, self._heartbeat)

    def _judge_due(self, facts: Facts) -> float | None:
        """Suspect at one time-out without a byte after something was asked or sent; dead at three with two lost."""
        asked = [at for at in facts.probes.values() if at > facts.last_in or at == facts.last_in]
        if facts.suspect:
            return min(asked) + 3 * self.rto if len(asked) >= 2 else None
        oldest = min([*asked, *facts.sends.values()], default=None)
        return None if oldest is None else oldest + self.rto

    def _die(self) -> None:
        self.close(DEAD)
        self._world.on({"type": "ws_closed", "reason": "socket-silent"})

    def _echo(self, facts: Facts) -> None:
        facts.n += 1
        facts.last_echo = facts.probes[facts.n] = self._world.now
        self._write(_json({"type": "echo", "n": facts.n}))

    def _fits(self, text: str) -> bool:
        return len(text.encode()) <= self.max_message

    def _write(self, text: str) -> None:
        if self._facts and self._facts.hello:
            self._world.do(Say(self._facts.number, text))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
