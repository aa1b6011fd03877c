"""Durable answers: claims queued runs, writes each answer as it grows, and ends it exactly once.

The database holds the truth. If this process dies, the next one finds its runs within seconds: those without shown
text are resumed, the others end as interrupted and keep their text. A database that is locked or full for a while ends
nothing: reading from the provider goes on, and its text is written once the database accepts it.
"""

import gc
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Literal, ParamSpec, TypeVar

import gevent
from gevent.event import Event

from chatapp.assistant.markdown import GrowingAnswer
from chatapp.assistant.provider import A_TURN_S, Phase, Provider, ProviderError, Usage, Wishes, with_pauses
from chatapp.bus import RUNS, Bus
from chatapp.concurrency import compute_in_thread
from chatapp.store import ClaimedRun, StorageUnavailable
from chatapp.store.runs import AGAIN, MOST_AT_ONCE, Runs, Verdict
from chatapp.store.workers import Worker

FLUSH_S = 0.15
"""Seconds between two writes of a growing answer."""
BODY_S = 3.0
"""Seconds between two writes of its whole text, which costs its length; what is shown is in its blocks."""
LOOK_S = 1.0
"""Seconds between two checks for a stop request without text to write and without a notice."""
LOOK_AROUND_S = 5.0
"""Seconds between two checks, without a notice, of the queue and of the runs of ended processes."""
RECOUNT_S = 1.0
"""Least seconds between two updates of the places in the queue."""
RETRY_S = 1.0
"""Seconds until a failed write is retried."""
MOST_WRITTEN = 50
"""Blocks in one transaction: about 5 ms of the event loop; more follow after a yield."""
LONG_BLOCK = 3000
"""Characters of an open block above which it is rendered in a thread: about 10 ms."""
DRAIN_S = 5.0

FAILED = "The assistant failed on this question. The server's log says why."
EMPTY = "The assistant gave no answer."
TOO_LONG = "the answer reached the longest that this chat takes, {most:,} characters. Ask the assistant to go on."

State = Literal["completed", "stopped", "interrupted", "failed"]

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


class _AnswerWriter:
    """The writing of one run: a greenlet reads from the provider, ``work`` stores the text at intervals."""

    def __init__(self, store: Runs, provider: Provider, run: ClaimedRun, longest: int) -> None:
        self.run = run
        self._store = store
        self._provider = provider
        self._longest = longest
        self._room = longest  # characters still to be read at most; negative: the answer was cut
        self._text = GrowingAnswer()
        self._pieces: list[str] = []  # read, not yet rendered
        self._phase: str | None = None  # not yet written; "" for none any more
        self._has_phase = False  # some was told: only then the footer changes with the first word
        self._usage: Usage | None = None
        self._body_at = float("-inf")  # monotonic; when the whole text was written
        self._unwritten: dict[int, str] = {}
        self._reader = gevent.Greenlet(self._read, run)
        self._interrupted = False
        self._is_instead = False  # what is shown stands in for an answer that the provider did not give
        self._look_at = time.monotonic() + LOOK_S  # when the store is asked even without new text
        self._next_try = 0.0  # monotonic

    def flush_soon(self) -> None:
        """Flush soon, even without new text, since the store answers a write with a stop request."""
        self._look_at = 0.0

    def interrupt(self) -> None:
        """End the run as interrupted, with its text so far. Does not wait."""
        self._interrupted = True
        self._reader.kill(block=False)

    def work(self) -> None:
        """Write the answer to its end. Never raises: a failure ends the run as failed and is logged."""
        try:
            self._write()
        except Exception:  # the outermost handler of a run, which must not stay open
            log.exception("run %d failed", self.run.id)
            self._fail()

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
        elif self._room < 0:
            self._end("stopped", TOO_LONG.format(most=self._longest))
        elif self._reader.value:
            self._end("completed" if self._is_instead else "failed", self._reader.value)
        elif self._text.body.strip():
            self._end("completed")
        else:
            self._end("failed", EMPTY)

    def _write_until_read(self) -> Verdict:
        """Write at intervals until the provider ends, a person stops the run, or the lease is lost."""
        if not self._interrupted:
            self._reader.start()
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
        return (bool(self._unwritten) or self._phase is not None or now >= self._look_at) and now >= self._next_try

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
        self._look_at = time.monotonic() + LOOK_S  # before the write: a notice during it counts
        try:
            while (verdict := self._write_first()) == "go" and self._unwritten:
                gevent.sleep(A_TURN_S)
        except StorageUnavailable:
            self._next_try = time.monotonic() + RETRY_S
            return "go"
        return verdict

    def _write_first(self) -> Verdict:
        """Write the first changed blocks, which are stored only if it returns "go". Raises StorageUnavailable."""
        changed, phase = sorted(self._unwritten.items())[:MOST_WRITTEN], self._phase
        now = time.monotonic()
        body = self._text.body if now >= self._body_at + BODY_S else None
        verdict = self._store.write_answer(self.run, body, changed, phase)
        if verdict == "go":
            for index, _ in changed:
                del self._unwritten[index]
            self._phase = None if self._phase is phase else self._phase
            self._body_at = now if body is not None and changed else self._body_at
        return verdict

    def _read(self, run: ClaimedRun) -> str:
        """Read the provider's text as fast as it comes. Returns a sentence if it failed."""
        wishes = Wishes(run.model, run.instructions, run.asked_by, self._note)
        try:
            with closing(self._provider.answer(run.history, wishes)) as pieces:
                for piece in with_pauses(pieces):
                    if self._room == self._longest and self._has_phase:
                        self._phase = ""
                    self._pieces.append(piece[: self._room])
                    self._room -= len(piece)
                    if self._room < 0:  # the longest answer bounds the memory
                        break
        except ProviderError as error:
            if error.instead and self._room == self._longest:
                self._is_instead = True
                self._pieces.append(error.instead[: self._room])
            return str(error) if error.is_fault else ""
        except Exception:  # the outermost handler of a greenlet
            log.exception("the provider failed on run %d", self.run.id)
            return FAILED
        return ""

    def _note(self, told: Phase | Usage) -> None:
        if isinstance(told, Usage):
            self._usage = told
        elif self._room == self._longest:
            self._phase, self._has_phase = str(told), True

    def _fail(self) -> None:
        """End a broken run as failed. If even that cannot be stored, the reaper ends it."""
        try:
            self._render_pieces()
            compute_in_thread(_without_gc, self._text.finish)
            self._end("failed", FAILED)
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
                figures = asdict(self._usage) if self._usage else None
                return self._store.end_run(self.run, state, self._text.body, rest, error, figures)
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

    def __init__(self, store: Runs, bus: Bus, provider: Provider, worker: Worker, longest: int) -> None:
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

    def start(self) -> None:
        """Start answering queued runs and reaping abandoned ones. Returns at once."""
        self._worker.start()
        self._bus.subscribe(RUNS, self._on_notice)
        self._loop = gevent.spawn(self._run)

    def drain(self) -> None:
        """Claim no more runs; those being answered end as interrupted and keep their text. Takes DRAIN_S at most."""
        self._draining.set()
        self._wake.set()
        self._bus.unsubscribe(RUNS, self._on_notice)
        for answer in list(self._answers.values()):
            answer.interrupt()
        # The loop may be claiming: wait for it, or a run would be left without a writer.
        gevent.joinall([*([self._loop] if self._loop else []), *self._answers], timeout=DRAIN_S)
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
