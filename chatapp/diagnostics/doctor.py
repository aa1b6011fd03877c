"""`chatapp doctor URL`: the page's Run test from a shell, over the same probes, judged by the same rules.

wire.py  the way to the server and requests, by a forward proxy where there is one
line.py  one WebSocket
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from chatapp.diagnostics import advice, verdicts
from chatapp.diagnostics.line import Line
from chatapp.diagnostics.verdicts import LARGE_BYTES, Verdict
from chatapp.diagnostics.wire import ANSWER_S, MARK, Got, NotSignedIn, Unreachable, Visitor, Way, tags

__all__ = ["Doctor", "Found", "Report", "Unreachable", "Way"]

POLL_MARK = "<chat-answer"
LARGE_S = 60.0
HOLD_GRACE_S = 6.0
ECHOES = 5
IDLE_S = 20.0


@dataclass
class Found:
    """What one probe found."""

    probe: str
    outcome: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """ok, note, warning or failed."""
        return verdicts.level(self.outcome)

    @property
    def words(self) -> str:
        """The sentence for people."""
        return advice.outcome_words(self.probe, self.outcome) + self._detail()

    def _detail(self) -> str:
        """What was expected and what came, where that says who can mend it."""
        if self.outcome == "origin" and self.facts.get("expected"):
            return f" (the address is {self.facts['came']}, the server was asked at {self.facts['expected']})"
        if self.outcome == "redirect" and self.facts.get("location"):
            return f" (to {self.facts['location']})"
        return ""


@dataclass
class Report:
    """All that was found, and what it means."""

    url: str
    proxy: str
    found: list[Found]
    verdict: Verdict
    problem: str = ""  # why the test could not go on

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "url": self.url,
            "verdict": self.verdict.name,
            "worth": self.verdict.worth,
            "words": advice.VERDICT_WORDS[self.verdict.name],
            "problem": self.problem,
            "proxy": self.proxy,
            "probes": [{**asdict(one), "level": one.level, "words": one.words} for one in self.found],
            "fixes": [{"fix": fix, "words": advice.FIX_WORDS[fix]} for fix in self.verdict.fixes],
            "settings": advice.settings_for(self.verdict.fixes, self.proxy),
        }

    def lines(self) -> list[str]:
        """For people: the verdict, what helps, and the settings."""
        lines = [advice.VERDICT_WORDS[self.verdict.name], *([self.problem] if self.problem else [])]
        lines += [f"- {advice.FIX_WORDS[fix]}" for fix in self.verdict.fixes]
        for name, text in advice.settings_for(self.verdict.fixes, self.proxy).items():
            lines += ["", f"{advice.PROXY_NAMES[name]}:", *(f"    {line}" for line in text.splitlines())]
        return lines


class Doctor:
    """One examination. `on_found` is told of each probe as it ends."""

    def __init__(self, way: Way, on_found: Callable[[Found], None] = lambda found: None) -> None:
        self._way = way
        self._visitor = Visitor(way)
        self._on_found = on_found
        self._found: list[Found] = []
        self._headers = ""
        self._known: dict[str, Any] = {}  # what the server said of itself, for the rules of later probes

    def examine(
        self,
        email: str = "",
        password: str = "",
        session: str = "",
        idle_s: float = IDLE_S,
        hold_s: float | None = None,
    ) -> Report:
        """Make all probes, in turn; the silent WebSocket waits beside the others."""
        problem = ""
        if session:
            self._visitor.use(session)
        self._note("http", self._get("/healthz").facts())
        if self._found[-1].outcome in ("ok", "slow"):
            found, problem = self._meet(email, password)
            self._add(found)
            if found.level == "ok":
                self._test(idle_s, hold_s)
        outcomes = {one.probe: one.outcome for one in self._found}
        for probe in verdicts.PROBES:
            if probe not in outcomes:
                self._add(Found(probe, "skipped"))
        proxy = verdicts.proxy_of(self._headers)
        return Report(self._way.url(""), proxy, self._found, verdicts.verdict(outcomes), problem)

    def _meet(self, email: str, password: str) -> tuple[Found, str]:
        """Is it our server? And sign in, where a way was given."""
        found, problem = self._mark(), ""
        if found.outcome == "signed-out" and email:
            try:
                self._visitor.sign_in(email, password)
                found = self._mark()
            except NotSignedIn as error:
                problem = str(error)
        return found, problem

    def _mark(self) -> Found:
        nonce = uuid4().hex
        got = self._get("/connection/test/mark", nonce=nonce, origin=self._way.origin)
        facts = got.facts()
        said = next(iter(tags(got.text, MARK[1:])), {}) if facts["marked"] else {}
        facts |= {"fresh": said.get("nonce") == nonce, "header": said.get("header") == "yes"}
        drill = said.get("drill") or None
        self._known = {"drill": drill, "hold": float(said.get("hold") or 0), "protocol": said.get("protocol")}
        self._known |= {"origin": said.get("origin") == "yes", "offered": said.get("offered") == "yes"}
        self._known |= {"expected": said.get("expected") or "", "came": self._way.origin}
        return Found("mark", verdicts.outcome("mark", facts), facts)

    def _test(self, idle_s: float, hold_s: float | None) -> None:
        line = Line()
        known = {name: self._known[name] for name in ("drill", "protocol", "origin", "offered", "expected", "came")}
        facts = line.open(self._visitor, "/ws") if known["offered"] else {}
        self._note("upgrade", facts | known)
        silence = threading.Thread(target=self._idle, args=(line, idle_s), daemon=True)
        if self._found[-1].outcome == "ok":
            self._note("echo", line.echo(ECHOES) | {"drill": known["drill"]})
            silence.start()
        poll = self._get("/changes", epoch="test", c="list:0")
        self._note("poll", poll.facts(POLL_MARK) | {"drill": known["drill"]})
        stream = self._get("/connection/test/stream")
        self._note("stream", stream.facts() | {"spread_ms": stream.at[-1] - stream.at[0] if stream.at else 0})
        large = self._get("/connection/test/large", LARGE_S)
        self._note("large", large.facts() | {"complete": large.facts()["complete"] and len(large.text) > LARGE_BYTES})
        self._hold(hold_s)
        if silence.ident is not None:
            silence.join()
        line.close()

    def _idle(self, line: Line, seconds: float) -> None:
        if not line.is_closed:
            self._note("idle", line.idle(seconds) | {"drill": self._known["drill"]})

    def _hold(self, hold_s: float | None) -> None:
        wanted = self._known["hold"] if hold_s is None else min(hold_s, self._known["hold"])
        got = self._get("/connection/test/hold", wanted + HOLD_GRACE_S, seconds=f"{wanted:g}") if wanted else Got()
        wanted_ms = round(wanted * 1000)
        self._note("hold", got.facts() | {"wanted_ms": wanted_ms, "short_ms": wanted_ms - got.ms})

    def _get(self, path: str, within_s: float = ANSWER_S, **query: str) -> Got:
        got = self._visitor.get(path, within_s, query or None)
        self._headers += " ".join([got.headers.get("Server", ""), got.headers.get("Via", ""), ""])
        return got

    def _note(self, probe: str, facts: dict[str, Any]) -> None:
        self._add(Found(probe, verdicts.outcome(probe, facts), facts))

    def _add(self, found: Found) -> None:
        self._found.append(found)
        self._on_found(found)
