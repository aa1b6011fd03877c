"""Durable answers: claims queued runs, writes each answer as it grows, and ends it exactly once.

The database holds the truth. Whatever happens to this process, the next one finds its runs within seconds: those of
which nothing was shown go on, the others end as interrupted with what was written kept. A database that is locked or
full for a while ends nothing: the provider is read on, and what it says is written as soon as that works.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, ParamSpec, Protocol, TypeVar

import gevent
from gevent.event import Event

from chatapp.assistant.blocks import GrowingAnswer
from chatapp.assistant.provider import Provider, ProviderError
from chatapp.bus import RUNS, Bus
from chatapp.concurrency import compute_in_thread
from chatapp.store import ClaimedRun, StorageUnavailable, Turn
from chatapp.store.runs import AGAIN, MOST_AT_ONCE, IsGone, Verdict

FLUSH_S = 0.15
"""How often an answer that grows is written, in seconds."""
LOOK_S = 1.0
"""How often a run asks whether to stop where it has nothing to write and no notice came, in seconds."""
LOOK_AROUND_S = 5.0
"""How often the queue, and the runs of processes that ended, are looked at without a notice, in seconds."""
RECOUNT_S = 1.0
"""How often at most those that wait hear how many are before them, in seconds."""
RETRY_S = 1.0
"""After how many seconds a write is tried again that the database did not take."""
SLICE_S = 0.004
"""A provider that always has more to say lets others run after so many seconds."""
A_TURN_S = 1e-6
"""A timer, however short, lets the event loop look at its sockets."""
MOST_WRITTEN = 50
"""Blocks in one transaction: some 5 ms of the event loop; more follow after a turn."""
LONG_BLOCK = 3000
"""Characters of an open block from which on it is rendered beside the event loop: some 10 ms."""
DRAIN_S = 5.0

FAILED = "The assistant failed on this question. The server's log says why."
EMPTY = "The assistant gave no answer."
TOO_LONG = "the answer reached the longest that this chat takes, {most:,} characters. Ask the assistant to go on."

State = Literal["completed", "stopped", "interrupted", "failed"]
Blocks = Sequence[tuple[int, str]]

P = ParamSpec("P")
R = TypeVar("R")

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

    def reap_runs(self, is_gone: IsGone, by: str, room: int) -> tuple[int, list[ClaimedRun]]:
        """End the runs whose writer is gone, or take them over."""
        ...

    def recount(self) -> None:
        """Have those that wait told how many are before them now."""
        ...


class Liveness(Protocol):
    """What a runner needs to know of processes (``store.workers.Worker``)."""

    name: str

    def start(self) -> None:
        """Show that this process lives."""
        ...

    def stop(self) -> None:
        """Show it no longer."""
        ...

    def is_alive(self, name: str) -> bool:
        """Whether the process of that name lives."""
        ...


class _Answer:
    """One run being answered: a reader takes text from the provider, ``write`` stores it by the clock."""

    def __init__(self, store: RunStore, provider: Provider, run: ClaimedRun, longest: int) -> None:
        self.run = run
        self._store = store
        self._provider = provider
        self._longest = longest
        self._room = longest  # characters that may still be read
        self._text = GrowingAnswer()
        self._pieces: list[str] = []  # read and not yet taken in
        self._unwritten: dict[int, str] = {}
        self._reader = gevent.Greenlet(self._read, run.history)
        self._interrupted = False
        self._asked = False
        self._is_cut = False
        self._written_at = self._next_try = 0.0  # monotonic

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
            log.exception("run %d failed", self.run.id)
            self._fail(str(error) if isinstance(error, ProviderError) else FAILED)

    def _write(self) -> None:
        verdict = self._write_until_read()
        if verdict == "lost":
            log.warning("run %d is another writer's now", self.run.id)
            return
        self._take_in()
        if self._interrupted and not self._text.body:
            return  # nobody has seen anything of it: the next process goes on with it
        compute_in_thread(_uncollected, self._text.finish)
        if self._interrupted:
            self._end("interrupted")
        elif verdict == "stop":
            self._end("stopped")
        elif self._is_cut:
            self._end("stopped", TOO_LONG.format(most=self._longest))
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
        self._written_at = time.monotonic()
        try:
            while not self._interrupted:
                self._reader.join(timeout=FLUSH_S)
                if self._reader.ready():
                    break
                self._take_in()
                if self._is_due() and (verdict := self._flush()) != "go":
                    return verdict
        finally:
            self._reader.kill(timeout=LOOK_S)  # closes the provider's iterator; nothing where it is done
        return "go"

    def _is_due(self) -> bool:
        now = time.monotonic()
        has_reason = self._unwritten or self._asked or now - self._written_at >= LOOK_S
        return bool(has_reason) and now >= self._next_try

    def _take_in(self) -> None:
        """Render what was read meanwhile. A long open block takes long, so that is done beside the event loop."""
        pieces, self._pieces = self._pieces, []
        text = "".join(pieces)
        is_long = self._text.open_length + len(text) > LONG_BLOCK
        self._unwritten.update(compute_in_thread(_uncollected, self._render, text) if is_long else self._render(text))

    def _render(self, text: str) -> list[tuple[int, str]]:
        self._text.feed(text)
        return self._text.changed()

    def _flush(self) -> Verdict:
        """Write what changed; it stays unwritten, for the next time, where the database does not take it."""
        self._asked = False
        try:
            while (verdict := self._write_some()) == "go" and self._unwritten:
                gevent.sleep(A_TURN_S)
        except StorageUnavailable:
            self._asked, self._next_try = True, time.monotonic() + RETRY_S
            return "go"
        return verdict

    def _write_some(self) -> Verdict:
        """Write the first of the blocks that changed: on "go" alone they are stored. Raises StorageUnavailable."""
        changed = sorted(self._unwritten.items())[:MOST_WRITTEN]
        verdict = self._store.write_answer(self.run, self.run.lease, self._text.body, changed)
        for index, _ in changed if verdict == "go" else ():
            del self._unwritten[index]
        self._written_at = time.monotonic()
        return verdict

    def _read(self, history: Sequence[Turn]) -> Exception | None:
        """Take the provider's text as fast as it comes. What goes wrong is told to the writer."""
        try:
            pieces = self._provider.answer(history)
            try:
                self._read_pieces(pieces)
            finally:
                close: Callable[[], object] = getattr(pieces, "close", lambda: None)
                close()
        except Exception as error:  # handed to the writer, which raises it where it can be told
            return error
        return None

    def _read_pieces(self, pieces: Iterator[str]) -> None:
        """Up to the longest answer: whatever comes, memory is bounded by it."""
        until = time.monotonic() + SLICE_S
        for piece in pieces:
            self._pieces.append(piece[: self._room])
            self._is_cut = len(piece) > self._room
            self._room -= min(len(piece), self._room)
            if self._is_cut:
                return
            if time.monotonic() > until:
                gevent.sleep(A_TURN_S)
                until = time.monotonic() + SLICE_S

    def _fail(self, sentence: str) -> None:
        """The last word on a run that broke. Where not even that can be stored, the reaper ends it."""
        try:
            self._take_in()
            compute_in_thread(_uncollected, self._text.finish)
            self._end("failed", sentence)
        except Exception:  # the store itself fails: nothing is left to try
            log.exception("run %d could not be ended; it will be found as interrupted", self.run.id)

    def _end(self, state: State, error: str | None = None) -> None:
        self._unwritten.update(self._text.changed())
        while True:
            try:
                while len(self._unwritten) > MOST_WRITTEN and self._write_some() == "go":
                    gevent.sleep(A_TURN_S)
                # Where somebody asked to stop only this takes what is left, however much.
                rest = sorted(self._unwritten.items())
                return self._store.end_run(self.run, self.run.lease, state, self._text.body, rest, error)
            except StorageUnavailable:  # it is kept until the database takes it, or this process ends
                gevent.sleep(RETRY_S)


def _uncollected(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call it without collections of garbage: each would look at all that a long text was parsed into, which takes up
    to a second in which nobody else can run, and finds nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return function(*args, **kwargs)
    finally:
        if was_on:
            gc.enable()


class Runner:
    """Answers what is queued, one greenlet a run, 16 at most at once; the others wait in the database."""

    def __init__(self, store: RunStore, bus: Bus, provider: Provider, worker: Liveness, longest: int) -> None:
        """`longest`: characters of an answer."""
        self._store = store
        self._bus = bus
        self._provider = provider
        self._worker = worker
        self._longest = longest
        self._wake = Event()
        self._draining = Event()
        self._answers: dict[gevent.Greenlet, _Answer] = {}
        self._loop: gevent.Greenlet | None = None
        self._looked_around = self._recounted = float("-inf")  # monotonic
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to answer, and to look after runs whose writer is gone. Returns at once."""
        self._worker.start()
        self._unsubscribe = self._bus.subscribe(RUNS, self._on_notice)
        self._loop = gevent.spawn(self._work)

    def drain(self, timeout: float = DRAIN_S) -> None:
        """Take no more runs; those that are being answered end as interrupted, with what was written."""
        self._draining.set()
        self._wake.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        for answer in list(self._answers.values()):
            answer.interrupt()
        # The loop may be claiming: it is waited for, so that no run is left behind without a writer.
        gevent.joinall([*([self._loop] if self._loop else []), *self._answers], timeout=timeout)
        self._worker.stop()

    def running(self) -> int:
        """How many answers are being written."""
        return len(self._answers)

    def _on_notice(self, topic: int) -> None:
        """Something is queued, or somebody asks to stop. Does not block."""
        self._wake.set()
        for answer in self._answers.values():
            answer.look()

    def _work(self) -> None:
        """Claim and look around by turns, so that what was just claimed never looks like left behind."""
        while not self._draining.is_set():
            self._wake.clear()
            self._safely(self._look_around)
            self._safely(self._claim_all)
            due = self._looked_around + LOOK_AROUND_S
            if time.monotonic() - self._recounted >= RECOUNT_S:
                self._recounted = time.monotonic()
                self._safely(self._store.recount)
            else:
                due = min(due, self._recounted + RECOUNT_S)
            self._wake.wait(timeout=max(0.0, due - time.monotonic()))

    def _claim_all(self) -> None:
        while len(self._answers) < MOST_AT_ONCE and not self._draining.is_set():
            run = self._store.claim_run(self._worker.name)
            if run is None:
                return
            self._spawn(run)

    def _look_around(self) -> None:
        """See to the runs of processes that ended."""
        if time.monotonic() - self._looked_around < LOOK_AROUND_S:  # a notice woke us
            return
        self._looked_around = time.monotonic()
        room = max(0, MOST_AT_ONCE - len(self._answers))
        ended, resumed = self._store.reap_runs(self._is_gone, self._worker.name, room)
        if ended or resumed:
            log.warning("answers that had lost their writer: %d interrupted, %d resumed", ended, len(resumed))
        for run in resumed:
            self._spawn(run)

    def _is_gone(self, run: int, lease: str) -> bool:
        name = lease.rstrip(AGAIN)
        if name == self._worker.name:  # its greenlet may have ended without a last word
            return all(answer.run.id != run for answer in self._answers.values())
        return not self._worker.is_alive(name)

    def _spawn(self, run: ClaimedRun) -> None:
        answer = _Answer(self._store, self._provider, run, self._longest)
        greenlet = gevent.Greenlet(answer.work)
        self._answers[greenlet] = answer
        greenlet.link(self._ended)
        if self._draining.is_set():
            answer.interrupt()
        greenlet.start()

    def _ended(self, greenlet: gevent.Greenlet) -> None:
        self._answers.pop(greenlet, None)
        self._wake.set()

    def _safely(self, turn: Callable[[], None]) -> None:
        """One turn of a loop that must outlive a database that is busy or full for a while."""
        try:
            turn()
        except StorageUnavailable:  # the store has said so; the next turn tries again
            return
        except Exception:  # the outermost line of a loop
            log.exception("the assistant's runner goes on after an error")
