"""Durable answers: claims queued runs, writes each answer as it grows, and ends it exactly once.

The database holds the truth. If this process dies, the next one finds its runs within seconds: those without shown
text are resumed, the others end as interrupted and keep their text. A database that is locked or full for a while ends
nothing: reading from the provider goes on, and its text is written once the database accepts it.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, ParamSpec, Protocol, TypeVar

import gevent
from gevent.event import Event

from chatapp.assistant.markdown import GrowingAnswer
from chatapp.assistant.provider import Provider, ProviderError
from chatapp.bus import RUNS, Bus
from chatapp.concurrency import compute_in_thread
from chatapp.store import ClaimedRun, StorageUnavailable, Turn
from chatapp.store.runs import AGAIN, MOST_AT_ONCE, IsGone, Verdict
from chatapp.store.workers import Worker

FLUSH_S = 0.15
"""Seconds between two writes of a growing answer."""
LOOK_S = 1.0
"""Seconds between two checks for a stop request without text to write and without a notice."""
LOOK_AROUND_S = 5.0
"""Seconds between two checks, without a notice, of the queue and of the runs of ended processes."""
RECOUNT_S = 1.0
"""Least seconds between two updates of the places in the queue."""
RETRY_S = 1.0
"""Seconds until a failed write is retried."""
SLICE_S = 0.004
"""Seconds after which a provider that never pauses yields to the event loop."""
A_TURN_S = 1e-6
"""A timer, however short, lets the event loop poll its sockets; `sleep(0)` does so only every 50th time."""
MOST_WRITTEN = 50
"""Blocks in one transaction: about 5 ms of the event loop; more follow after a yield."""
LONG_BLOCK = 3000
"""Characters of an open block above which it is rendered in a thread: about 10 ms."""
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
    """The runner's interface to the store (``Store.runs``)."""

    def claim_run(self, lease: str) -> ClaimedRun | None:
        """Take the next queued run."""
        ...

    def write_answer(self, run: ClaimedRun, lease: str, body: str, changed: Blocks) -> Verdict:
        """Store the text so far and renew the heartbeat."""
        ...

    def end_run(self, run: ClaimedRun, lease: str, state: str, body: str, changed: Blocks, error: str | None) -> None:
        """End the run for good."""
        ...

    def reap_runs(self, is_gone: IsGone, by: str, room: int) -> tuple[int, list[ClaimedRun]]:
        """End or take over the runs without a living writer."""
        ...

    def recount(self) -> None:
        """Update the places in the queue."""
        ...


class _AnswerWriter:
    """The writing of one run: a greenlet reads from the provider, ``work`` stores the text at intervals."""

    def __init__(self, store: RunStore, provider: Provider, run: ClaimedRun, longest: int) -> None:
        self.run = run
        self._store = store
        self._provider = provider
        self._longest = longest
        self._room = longest  # characters still to be read at most
        self._text = GrowingAnswer()
        self._pieces: list[str] = []  # read, not yet rendered
        self._unwritten: dict[int, str] = {}
        self._reader = gevent.Greenlet(self._read, run.history)
        self._interrupted = False
        self._must_flush = False
        self._is_cut = False
        self._written_at = self._next_try = 0.0  # monotonic

    def flush_soon(self) -> None:
        """Flush soon, even without new text, since the store answers a write with a stop request."""
        self._must_flush = True

    def interrupt(self) -> None:
        """End the run as interrupted, with its text so far. Does not wait."""
        self._interrupted = True
        self._reader.kill(block=False)

    def work(self) -> None:
        """Write the answer to its end. Never raises: a failure ends the run as failed and is logged."""
        try:
            self._write()
        except Exception as error:  # the outermost handler of a run, which must not stay open
            log.exception("run %d failed", self.run.id)
            self._fail(str(error) if isinstance(error, ProviderError) else FAILED)

    def _write(self) -> None:
        verdict = self._write_until_read()
        if verdict == "lost":
            log.warning("run %d is another writer's now", self.run.id)
            return
        self._render_pieces()
        if self._interrupted and not self._text.body:
            return  # nothing was shown: the next process resumes it
        compute_in_thread(_without_gc, self._text.finish)
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
        """Write at intervals until the provider ends, a person stops the run, or the lease is lost."""
        if not self._interrupted:
            self._reader.start()
        self._written_at = time.monotonic()
        try:
            while not self._interrupted:
                self._reader.join(timeout=FLUSH_S)
                if self._reader.ready():
                    break
                self._render_pieces()
                if self._is_due() and (verdict := self._flush()) != "go":
                    return verdict
        finally:
            self._reader.kill(timeout=LOOK_S)  # closes the provider's iterator
        return "go"

    def _is_due(self) -> bool:
        now = time.monotonic()
        has_reason = self._unwritten or self._must_flush or now - self._written_at >= LOOK_S
        return bool(has_reason) and now >= self._next_try

    def _render_pieces(self) -> None:
        """Render the pieces read meanwhile, in a thread if the open block is long."""
        pieces, self._pieces = self._pieces, []
        text = "".join(pieces)
        is_long = self._text.open_length + len(text) > LONG_BLOCK
        self._unwritten.update(compute_in_thread(_without_gc, self._render, text) if is_long else self._render(text))

    def _render(self, text: str) -> list[tuple[int, str]]:
        self._text.feed(text)
        return self._text.changed()

    def _flush(self) -> Verdict:
        """Write changed blocks; if the database fails, they stay for the next time."""
        self._must_flush = False
        try:
            while (verdict := self._write_first()) == "go" and self._unwritten:
                gevent.sleep(A_TURN_S)
        except StorageUnavailable:
            self._must_flush, self._next_try = True, time.monotonic() + RETRY_S
            return "go"
        return verdict

    def _write_first(self) -> Verdict:
        """Write the first changed blocks, which are stored only if it returns "go". Raises StorageUnavailable."""
        changed = sorted(self._unwritten.items())[:MOST_WRITTEN]
        verdict = self._store.write_answer(self.run, self.run.lease, self._text.body, changed)
        for index, _ in changed if verdict == "go" else ():
            del self._unwritten[index]
        self._written_at = time.monotonic()
        return verdict

    def _read(self, history: Sequence[Turn]) -> Exception | None:
        """Read the provider's text as fast as it comes. Returns any exception, for the writer."""
        try:
            pieces = self._provider.answer(history)
            try:
                self._read_pieces(pieces)
            finally:
                close: Callable[[], object] = getattr(pieces, "close", lambda: None)
                close()
        except Exception as error:  # raised again by the writer
            return error
        return None

    def _read_pieces(self, pieces: Iterator[str]) -> None:
        """Read up to the longest answer, which bounds the memory."""
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
        """End a broken run as failed. If even that cannot be stored, the reaper ends it."""
        try:
            self._render_pieces()
            compute_in_thread(_without_gc, self._text.finish)
            self._end("failed", sentence)
        except Exception:  # the store itself fails
            log.exception("run %d could not be ended; it will be found as interrupted", self.run.id)

    def _end(self, state: State, error: str | None = None) -> None:
        self._unwritten.update(self._text.changed())
        while True:
            try:
                while len(self._unwritten) > MOST_WRITTEN and self._write_first() == "go":
                    gevent.sleep(A_TURN_S)
                # After a stop request the store refuses `write_answer`, so all that is left goes here, however much.
                rest = sorted(self._unwritten.items())
                return self._store.end_run(self.run, self.run.lease, state, self._text.body, rest, error)
            except StorageUnavailable:  # kept until the database accepts it or this process ends
                gevent.sleep(RETRY_S)


def _without_gc(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call without garbage collection, which would scan every token of a long text, block the event loop for up to a
    second, and find nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return function(*args, **kwargs)
    finally:
        if was_on:
            gc.enable()


class Runner:
    """The loop that answers queued runs, each in a greenlet, up to MOST_AT_ONCE; the others wait in the database."""

    def __init__(self, store: RunStore, bus: Bus, provider: Provider, worker: Worker, longest: int) -> None:
        """`longest`: most characters of an answer."""
        self._store = store
        self._bus = bus
        self._provider = provider
        self._worker = worker
        self._longest = longest
        self._wake = Event()
        self._draining = Event()
        self._answers: dict[gevent.Greenlet, _AnswerWriter] = {}
        self._loop: gevent.Greenlet | None = None
        self._reaped_at = self._recounted_at = float("-inf")  # monotonic
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Start answering queued runs and reaping abandoned ones. Returns at once."""
        self._worker.start()
        self._unsubscribe = self._bus.subscribe(RUNS, self._on_notice)
        self._loop = gevent.spawn(self._run)

    def drain(self, timeout: float = DRAIN_S) -> None:
        """Claim no more runs; those being answered end as interrupted and keep their text. `timeout`: seconds."""
        self._draining.set()
        self._wake.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        for answer in list(self._answers.values()):
            answer.interrupt()
        # The loop may be claiming: wait for it, or a run would be left without a writer.
        gevent.joinall([*([self._loop] if self._loop else []), *self._answers], timeout=timeout)
        self._worker.stop()

    def running(self) -> int:
        """Return the number of answers being written."""
        return len(self._answers)

    def _on_notice(self, topic: int) -> None:
        """Handle a new run or a stop request. Does not block."""
        self._wake.set()
        for answer in self._answers.values():
            answer.flush_soon()

    def _run(self) -> None:
        """Reap and claim in one greenlet, so that a run just claimed is never taken for an abandoned one."""
        while not self._draining.is_set():
            self._wake.clear()
            self._run_step(self._reap)
            self._run_step(self._claim_all)
            due = self._reaped_at + LOOK_AROUND_S
            if time.monotonic() - self._recounted_at >= RECOUNT_S:
                self._recounted_at = time.monotonic()
                self._run_step(self._store.recount)
            else:
                due = min(due, self._recounted_at + RECOUNT_S)
            self._wake.wait(timeout=max(0.0, due - time.monotonic()))

    def _claim_all(self) -> None:
        while len(self._answers) < MOST_AT_ONCE and not self._draining.is_set():
            run = self._store.claim_run(self._worker.name)
            if run is None:
                return
            self._spawn(run)

    def _reap(self) -> None:
        """End or resume the runs of processes that ended."""
        if time.monotonic() - self._reaped_at < LOOK_AROUND_S:  # woken by a notice
            return
        self._reaped_at = time.monotonic()
        room = max(0, MOST_AT_ONCE - len(self._answers))
        ended, resumed = self._store.reap_runs(self._is_gone, self._worker.name, room)
        if ended or resumed:
            log.warning("answers that had lost their writer: %d interrupted, %d resumed", ended, len(resumed))
        for run in resumed:
            self._spawn(run)

    def _is_gone(self, run: int, lease: str) -> bool:
        name = lease.rstrip(AGAIN)
        if name == self._worker.name:  # its greenlet may have ended without storing that
            return all(answer.run.id != run for answer in self._answers.values())
        return not self._worker.is_alive(name)

    def _spawn(self, run: ClaimedRun) -> None:
        answer = _AnswerWriter(self._store, self._provider, run, self._longest)
        greenlet = gevent.Greenlet(answer.work)
        self._answers[greenlet] = answer
        greenlet.link(self._on_end)
        if self._draining.is_set():
            answer.interrupt()
        greenlet.start()

    def _on_end(self, greenlet: gevent.Greenlet) -> None:
        self._answers.pop(greenlet, None)
        self._wake.set()

    def _run_step(self, step: Callable[[], None]) -> None:
        """Run one step of the loop, which must survive a database that is busy or full for a while."""
        try:
            step()
        except StorageUnavailable:  # logged by the store; the next turn retries
            return
        except Exception:  # the outermost handler of the loop
            log.exception("the assistant's runner goes on after an error")
