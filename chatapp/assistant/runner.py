"""Durable answers: claims queued runs, writes each answer as it grows, and ends it exactly once.

The database holds the truth. Whatever happens to this process, a run whose heartbeat is too old is found by
``reap_runs`` and ends as interrupted with what was written kept.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol
from uuid import uuid4

import gevent
from gevent.event import Event

from chatapp.assistant.blocks import GrowingAnswer
from chatapp.assistant.provider import Provider, ProviderError
from chatapp.beside import computed_beside
from chatapp.bus import RUNS, Bus
from chatapp.store import ClaimedRun, Turn
from chatapp.store.runs import Verdict

FLUSH_S = 0.15
"""How often an answer that grows is written, in seconds."""
HEARTBEAT_S = 1.0
"""How often a run says that it lives where there is nothing to write, in seconds."""
HEARTBEAT_TOO_OLD = 5.0
"""A run silent for so many seconds has lost its writer."""
SECOND_REAP_S = 6.0
"""After a start: when even the youngest heartbeat of a killed process is too old."""
REAP_EVERY_S = 60.0
CLAIM_EVERY_S = 5.0
"""A wake-up may be lost: the queue is looked at as often as this without one, in seconds."""
LONG_BLOCK = 3000
"""Characters of an open block from which on it is rendered beside the event loop: some 10 ms."""
MOST_AT_ONCE = 16
DRAIN_S = 5.0

FAILED = "The assistant failed on this question. The server's log says why."
EMPTY = "The assistant gave no answer."

State = Literal["completed", "stopped", "interrupted", "failed"]
Blocks = Sequence[tuple[int, str]]

log = logging.getLogger(__name__)


class RunStore(Protocol):
    """What a runner needs of the store (``Store.runs``)."""

    def claim_run(self, lease: str) -> ClaimedRun | None:
        """Take the next queued run."""
        ...

    def write_answer(self, run: ClaimedRun, lease: str, body: str, changed: Blocks) -> Verdict:
        """Store what there is so far, and renew the heartbeat."""
        ...

    def end_run(self, run: ClaimedRun, lease: str, state: str, body: str, changed: Blocks, error: str | None) -> None:
        """End the run for good."""
        ...

    def reap_runs(self, older_than_s: float) -> int:
        """End the runs whose writer is gone."""
        ...


class _Answer:
    """One run being answered: a reader takes text from the provider, ``write`` stores it by the clock."""

    def __init__(self, store: RunStore, provider: Provider, run: ClaimedRun, lease: str) -> None:
        self._store = store
        self._provider = provider
        self._run = run
        self._lease = lease
        self._text = GrowingAnswer()
        self._pieces: list[str] = []  # read and not yet taken in
        self._unwritten: dict[int, str] = {}
        self._reader = gevent.Greenlet(self._read, run.history)
        self._interrupted = False
        self._asked = False

    def look(self) -> None:
        """Somebody may have asked to stop: ask the store at the next flush, also where nothing is new."""
        self._asked = True

    def interrupt(self) -> None:
        """Have the run end as interrupted at once, with what it has. Does not wait."""
        self._interrupted = True
        self._reader.kill(block=False)

    def work(self) -> None:
        """Write the answer to its end. Never raises: a run that fails says so and is logged."""
        try:
            self._write()
        except Exception as error:  # the outermost line of a run: it must end with a word, whatever went wrong
            log.exception("run %d failed", self._run.id)
            self._fail(str(error) if isinstance(error, ProviderError) else FAILED)

    def _write(self) -> None:
        verdict = self._write_until_read()
        if verdict == "lost":
            log.warning("run %d is another writer's now", self._run.id)
            return
        self._take_in()
        computed_beside(self._text.finish)
        if self._interrupted:
            self._end("interrupted")
        elif verdict == "stop":
            self._end("stopped")
        elif isinstance(self._reader.value, ProviderError):
            self._end("failed", str(self._reader.value))
        elif isinstance(self._reader.value, Exception):
            raise self._reader.value
        elif self._text.body.strip():
            self._end("completed")
        else:
            self._end("failed", EMPTY)

    def _write_until_read(self) -> Verdict:
        """Write by the clock until the provider is done, somebody stops it, or the lease is lost."""
        if not self._interrupted:
            self._reader.start()
        written = time.monotonic()
        try:
            while not self._interrupted:
                self._reader.join(timeout=FLUSH_S)
                if self._reader.ready():
                    break
                self._take_in()
                if self._unwritten or self._asked or time.monotonic() - written >= HEARTBEAT_S:
                    verdict = self._flush()
                    written = time.monotonic()
                    if verdict != "go":
                        return verdict
        finally:
            self._reader.kill(timeout=HEARTBEAT_S)  # closes the provider's iterator; nothing where it is done
        return "go"

    def _take_in(self) -> None:
        """Render what was read meanwhile. A long open block takes long, so that is done beside the event loop."""
        pieces, self._pieces = self._pieces, []
        text = "".join(pieces)
        is_long = self._text.open_length + len(text) > LONG_BLOCK
        self._unwritten.update(computed_beside(self._render, text) if is_long else self._render(text))

    def _render(self, text: str) -> list[tuple[int, str]]:
        self._text.feed(text)
        return self._text.changed()

    def _flush(self) -> Verdict:
        """Write what changed; it stays unwritten where the store fails."""
        self._asked = False
        changed = sorted(self._unwritten.items())
        verdict = self._store.write_answer(self._run, self._lease, self._text.body, changed)
        self._unwritten.clear()
        return verdict

    def _read(self, history: Sequence[Turn]) -> Exception | None:
        """Take the provider's text as fast as it comes. What goes wrong is told to the writer."""
        try:
            pieces = self._provider.answer(history)
            try:
                for piece in pieces:
                    self._pieces.append(piece)
            finally:
                close: Callable[[], object] = getattr(pieces, "close", lambda: None)
                close()
        except Exception as error:  # handed to the writer, which raises it where it can be told
            return error
        return None

    def _fail(self, sentence: str) -> None:
        """The last word on a run that broke. Where not even that can be stored, the reaper ends it."""
        try:
            self._take_in()
            computed_beside(self._text.finish)
            self._end("failed", sentence)
        except Exception:  # the store itself fails: nothing is left to try
            log.exception("run %d could not be ended; it will be found as interrupted", self._run.id)

    def _end(self, state: State, error: str | None = None) -> None:
        self._unwritten.update(self._text.changed())
        changed = sorted(self._unwritten.items())
        self._store.end_run(self._run, self._lease, state, self._text.body, changed, error)


class Runner:
    """Answers what is queued, one greenlet a run, 16 at most at once; the others wait in the database."""

    def __init__(self, store: RunStore, bus: Bus, provider: Provider) -> None:
        self._store = store
        self._bus = bus
        self._provider = provider
        self._wake = Event()
        self._draining = Event()
        self._answers: dict[gevent.Greenlet, _Answer] = {}
        self._loops: list[gevent.Greenlet] = []
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to answer, and to look after runs whose writer is gone. Returns at once."""
        self._unsubscribe = self._bus.subscribe(RUNS, self._on_notice)
        self._wake.set()
        self._loops = [gevent.spawn(self._claim_loop), gevent.spawn(self._reap_loop)]

    def drain(self, timeout: float = DRAIN_S) -> None:
        """Take no more runs; those that are being answered end as interrupted, with what was written."""
        self._draining.set()
        self._wake.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        for answer in list(self._answers.values()):
            answer.interrupt()
        # A loop may be claiming: it is waited for, so that no run is left behind without a writer.
        gevent.joinall([*self._loops, *self._answers], timeout=timeout)

    def running(self) -> int:
        """How many answers are being written."""
        return len(self._answers)

    def _on_notice(self, topic: int) -> None:
        """Something is queued, or somebody asks to stop. Does not block."""
        self._wake.set()
        for answer in self._answers.values():
            answer.look()

    def _claim_loop(self) -> None:
        while not self._draining.is_set():
            self._wake.clear()
            self._safely(self._claim_all)
            self._wake.wait(timeout=CLAIM_EVERY_S)

    def _claim_all(self) -> None:
        while len(self._answers) < MOST_AT_ONCE and not self._draining.is_set():
            lease = uuid4().hex
            run = self._store.claim_run(lease)
            if run is None:
                return
            self._spawn(_Answer(self._store, self._provider, run, lease))

    def _spawn(self, answer: _Answer) -> None:
        greenlet = gevent.Greenlet(answer.work)
        self._answers[greenlet] = answer
        greenlet.link(self._ended)
        if self._draining.is_set():
            answer.interrupt()
        greenlet.start()

    def _ended(self, greenlet: gevent.Greenlet) -> None:
        self._answers.pop(greenlet, None)
        self._wake.set()

    def _reap_loop(self) -> None:
        for wait in (0.0, SECOND_REAP_S):
            if self._draining.wait(timeout=wait):
                return
            self._safely(self._reap)
        while not self._draining.wait(timeout=REAP_EVERY_S):
            self._safely(self._reap)

    def _reap(self) -> None:
        found = self._store.reap_runs(HEARTBEAT_TOO_OLD)
        if found:
            log.warning("%d answers had lost their writer and are interrupted now", found)
            self._wake.set()

    def _safely(self, turn: Callable[[], None]) -> None:
        """One turn of a loop that must outlive a database that is busy or full for a while."""
        try:
            turn()
        except Exception:  # the outermost line of a loop
            log.exception("the assistant's runner goes on after an error")
