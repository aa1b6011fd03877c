"""The polling transport without its HTTP: held polls where they work, plain ones elsewhere, a heartbeat beside them.

The rules are those of static/js/connection/polling.js. An answer without the product's mark is never applied.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from chatapp.client.actions import Answer, Renew, World
from chatapp.client.feeds import parse
from chatapp.client.outbox import Ack, Again, Outcome, Outgoing, Refusal
from chatapp.connection.delays import rtt_estimate
from chatapp.connection.pacing import EARLY_MS, GAP_MS, Pacing
from chatapp.connection.record import Event

MARK, END = "<chat-answer", "</chat-answer>"
ALLOWANCE_MS = 6000  # beyond the hold
POST_MS = 10_000
FILTERED = "Something in this network refuses this message; the server has not seen it."
BEATS_MS = {"awaiting": 2000, "active": 5000, "visible": 5000, "idle": 15_000}  # not while hidden or offline
BEAT_LATER_MS = 5000


@dataclass(frozen=True)
class Urls:
    """Where the requests go, from the server's root."""

    changes: str
    create: str
    messages: str  # with {id}


@dataclass
class Poll:
    """The poll that is under way."""

    number: int
    wait: int  # seconds
    started: int
    fields: list[tuple[str, str]]


class PollingTransport:
    """Open, close, send, subscribe, verify: the same verbs as the WebSocket transport."""

    def __init__(self, world: World, urls: Urls, person: str, poll_ms: int, hold_ms: int) -> None:
        self._world, self._urls, self._person = world, urls, person
        self.pacing = Pacing(poll_ms, hold_ms)
        self._running = False
        self._poll: Poll | None = None
        self._next: tuple[int, int] | None = None  # when to ask, with which wait
        self._beat: tuple[int, int] | None = None  # the heartbeat under way: its number, when it began
        self._beat_at: int | None = None
        self._buffering_at: float | None = None
        self._estimate: dict[str, float] | None = None

    @property
    def rto(self) -> float:
        """The time-out of one short request."""
        return self._estimate["rto"] if self._estimate else 1500

    def open(self) -> None:
        """Begin to poll."""
        if not self._running:
            self._running = True
            self._next = (self._world.now, 0)

    def close(self) -> None:
        """End polling; what is under way is given up."""
        self._running = False
        self._next = None
        self._abort()

    def verify(self) -> None:
        """Drop what hangs or waits, and ask at once."""
        self._running = True
        self._abort()
        self._next = (self._world.now, 0)

    def subscribe(self) -> None:
        """The plan changed."""
        if self._running:
            self.verify()

    def hasten(self) -> None:
        """Somebody did something: a plain poll that is far off comes sooner."""
        if self._next and self._running:
            soon = self._world.now + self.pacing.interval(self._world.activity())
            self._next = (min(self._next[0], int(soon)), self._next[1])

    def send(self, entry: Outgoing) -> int:
        """POST a message; the number of the request."""
        fields = [("client_id", entry.id), ("body", entry.body)]
        if entry.create:
            fields.append(("id", entry.conversation))
        url = self._urls.create if entry.create else self._urls.messages.replace("{id}", entry.conversation)
        return self._world.ask("post", "POST", url, fields, POST_MS)

    def outcome(self, answer: Answer | None) -> Outcome:
        """What the answer to such a POST means; None: there was none."""
        if answer is None:
            return Again("server-unreachable")
        data, status = object_of(answer.text), answer.status
        if status in (200, 201) and "id" in data:
            return Ack(str(data["id"]), int(str(data["position"])), int(str(data["revision"])))
        if status == 401:
            self._world.on({"type": "signed_out", "reason": "signed-out"})
            return Again("signed-out")
        if status == 429 or status >= 500:
            return Again("rate-limited", answer.retry_after_ms)
        error = data.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        if code == "csrf":
            self._world.do(Renew())
            return Again("renewed")
        if isinstance(error, dict) and isinstance(code, str):
            return Refusal(code, str(error.get("message", "")))
        if status == 413:
            return Refusal("too-long", "")
        if status == 403:
            return Refusal("network-filter", FILTERED)
        return Again("foreign-page")

    def due(self) -> float | None:
        """When `tick` has something to do."""
        times = [self._next[0] if self._next else None, self._beat_at, self._buffering_at]
        return min((at for at in times if at is not None), default=None)

    def tick(self) -> None:
        """What is due: the next poll, a heartbeat, the verdict on a held answer that does not come."""
        now = self._world.now
        if self._next and now >= self._next[0]:
            wait, self._next = self._next[1], None
            self._ask(wait)
        if self._beat_at is not None and now >= self._beat_at:
            self._send_beat()
        if self._buffering_at is not None and now >= self._buffering_at:
            self.pacing.buffered(now)  # a plain request saw news that the held one still has not brought
            self.verify()

    def answered(self, number: int, answer: Answer | None) -> None:
        """The answer to a poll or a heartbeat; None: there was none."""
        if self._beat and number == self._beat[0]:
            self._on_beat(self._beat[1], answer)
        elif self._poll and number == self._poll.number:
            poll = self._poll
            self._abort()
            if answer is None:
                self._lost(poll, {"type": "poll_failed", "reason": "server-unreachable"})
            else:
                self._on_answer(poll, answer)

    def _ask(self, wait: int) -> None:
        if not self._running or self._poll:
            return
        epoch, feeds = self._world.plan()
        fields = [("epoch", epoch), ("person", self._person)]
        fields += [("c", f"{feed}:{cursor}") for feed, cursor in feeds.items()]
        number = self._request(fields, wait, wait * 1000 + ALLOWANCE_MS)
        self._poll = Poll(number, wait, self._world.now, fields)
        if wait:
            self._plan_beat()

    def _request(self, fields: list[tuple[str, str]], wait: int, within: int) -> int:
        return self._world.ask("poll", "GET", self._urls.changes, [*fields, ("wait", str(wait))], within)

    def _abort(self) -> None:
        if self._poll:
            self._world.drop(self._poll.number)
        if self._beat:
            self._world.drop(self._beat[0])
        self._poll = self._beat = self._beat_at = self._buffering_at = None

    def _on_answer(self, poll: Poll, answer: Answer) -> None:
        event = failure(answer)
        if event is None:
            self._conclude(poll, *self._take_in(answer))
        elif event["type"] == "poll_failed":
            self._lost(poll, event)
        else:
            self._running = False
            self._world.on(event)

    def _take_in(self, answer: Answer) -> tuple[bool, bool, bool]:
        """Apply an answer: was there news, did it move a cursor, is there more?"""
        if answer.status == 204:
            return False, False, False
        advanced = more = False
        for element in parse(answer.text)[0].children:
            more = more or "more" in element.attributes
            advanced = self._world.receive(element, "polling") or advanced
        return True, advanced, more

    def _conclude(self, poll: Poll, news: bool, advanced: bool, more: bool) -> None:
        now = self._world.now
        took = now - poll.started
        early = poll.wait > 0 and not news and took < EARLY_MS
        if not poll.wait:
            self._measure(took)
        elif early:
            self.pacing.ended_early(now)
        else:
            self.pacing.held(took, news)
        self._world.on({"type": "poll_answered"})
        if not self._running or self._next or self._poll:
            return  # stopped or asked again meanwhile
        unmoved = news and not advanced  # something is wrong: never ask in a tight loop
        gap = self.pacing.gap(now, self._world.activity(), news, not unmoved and not early)
        wait = 0 if more else round(self.pacing.hold(now) / 1000)
        self._next = (int(now + (GAP_MS if more and not unmoved else gap)), wait)

    def _lost(self, poll: Poll, event: Event, quick: bool = False) -> None:
        """A poll failed; the machine decides when to ask again."""
        now = self._world.now
        cut = poll.wait > 0 and now - poll.started > EARLY_MS and not event.get("advice_ms")
        if cut and not quick:
            self.pacing.cut(now, now - poll.started)
        event["quick"] = (cut or quick) and not event.get("advice_ms")
        self._running = False
        self._world.on(event)

    def _measure(self, took: int) -> None:
        self._estimate = rtt_estimate(self._estimate, took)
        jitter = round(self._estimate["rttvar"])
        self._world.on({"type": "measured", "rtt": round(self._estimate["srtt"]), "jitter": jitter})

    def _plan_beat(self) -> None:
        self._beat_at = self._world.now + BEATS_MS.get(self._world.activity(), BEAT_LATER_MS)

    def _send_beat(self) -> None:
        poll, self._beat_at = self._poll, None
        if self._world.activity() not in BEATS_MS:  # hidden, offline: nothing that is late says anything
            self._plan_beat()
            return
        if poll and not self._beat:
            self._beat = (self._request(poll.fields, 0, int(self.rto)), self._world.now)

    def _on_beat(self, began: int, answer: Answer | None) -> None:
        self._beat, poll = None, self._poll
        if poll is None:
            return
        if answer is None:
            self._abort()
            self._lost(poll, {"type": "poll_failed", "reason": "mute"}, quick=True)
            return
        event = failure(answer)
        if event and (event["type"] == "signed_out" or event.get("advice_ms")):
            self._abort()
            self._running = False
            self._world.on(event)
            return
        if answer.status in (200, 204):
            self._measure(self._world.now - began)
        if answer.status == 200 and self._buffering_at is None:
            self._buffering_at = self._world.now + self.rto
        self._plan_beat()


def failure(answer: Answer) -> Event | None:
    """What is wrong with the answer to a poll; None where it is ours and good."""
    status, advice = answer.status, answer.retry_after_ms
    if status == 204 or (status == 200 and is_whole(answer.text)):
        return None
    if status == 401:
        return {"type": "signed_out", "reason": "signed-out"}
    if status == 429:
        return {"type": "poll_failed", "reason": "rate-limited", "advice_ms": advice}
    if status >= 500:
        return {"type": "poll_failed", "reason": "server-unreachable", "advice_ms": advice}
    return {"type": "poll_failed", "reason": "foreign-page"}


def is_whole(text: str) -> bool:
    """Whether it is an answer of ours, and all of it: without a length nothing else tells that it was cut."""
    return text.lstrip().startswith(MARK) and text.rstrip().endswith(END)


def object_of(text: str) -> dict[str, object]:
    """The JSON object of an answer; an empty one where it is none."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
