"""`chatapp doctor URL`: the page's Run test from a shell, with the same probes and rules.

wire.py          the HTTP client, direct or by a forward proxy
probe_socket.py  the WebSocket
"""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from chatapp.diagnostics import advice, verdicts
from chatapp.diagnostics.probe_socket import ProbeSocket
from chatapp.diagnostics.verdicts import LARGE_BYTES, MARK, Verdict
from chatapp.diagnostics.wire import ANSWER_S, NotSignedIn, ProbeClient, ProbeResponse, Unreachable, Way, tags

__all__ = ["Doctor", "Found", "Report", "Unreachable", "Way"]

POLL_MARK = "<chat-answer"
LARGE_S = 60.0
HOLD_GRACE_S = 6.0
ECHOES = 5
IDLE_S = 20.0


@dataclass
class Found:
    """The outcome of one probe, and its facts."""

    probe: str
    outcome: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The severity: ok, note, warning or failed."""
        return verdicts.level(self.outcome)

    @property
    def words(self) -> str:
        """The sentence for people."""
        return advice.outcome_words(self.probe, self.outcome) + self._detail()

    def _detail(self) -> str:
        if self.outcome == "origin" and self.facts.get("expected"):
            return f" (the address is {self.facts['came']}, the server was asked at {self.facts['expected']})"
        if self.outcome == "redirect" and self.facts.get("location"):
            return f" (to {self.facts['location']})"
        return ""


@dataclass
class Report:
    """The outcomes of all probes and the verdict."""

    url: str
    proxy: str
    found: list[Found]
    verdict: Verdict
    problem: str = ""  # a failed sign-in

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "url": self.url,
            "verdict": self.verdict.name,
            "worth": self.verdict.worth,
            "words": advice.VERDICT_WORDS[self.verdict.name],
            "problem": self.problem,
            "proxy": self.proxy,
            "probes": [{**asdict(each), "level": each.level, "words": each.words} for each in self.found],
            "fixes": [{"fix": fix, "words": advice.FIX_WORDS[fix]} for fix in self.verdict.fixes],
            "settings": advice.settings_for(self.verdict.fixes, self.proxy),
        }

    def lines(self) -> list[str]:
        """Return the report as text: the verdict, the fixes, and the settings."""
        lines = [advice.VERDICT_WORDS[self.verdict.name], *([self.problem] if self.problem else [])]
        lines += [f"- {advice.FIX_WORDS[fix]}" for fix in self.verdict.fixes]
        for name, text in advice.settings_for(self.verdict.fixes, self.proxy).items():
            lines += ["", f"{advice.PROXY_NAMES[name]}:", *(f"    {line}" for line in text.splitlines())]
        return lines


class Doctor:
    """One connection test. `on_found` is called after each probe, also from a second thread."""

    def __init__(self, way: Way, on_found: Callable[[Found], None] = lambda found: None) -> None:
        self._way = way
        self._client = ProbeClient(way)
        self._on_found = on_found
        self._found: list[Found] = []
        self._headers = ""
        self._server: dict[str, Any] = {}  # the server's facts about itself, for the rules of later probes
        self._hold_s = 0.0

    def examine(
        self,
        email: str = "",
        password: str = "",
        session: str = "",
        idle_s: float = IDLE_S,
        hold_s: float | None = None,
    ) -> Report:
        """Run all probes, in turn; only the idle WebSocket waits in a thread during the others."""
        problem = ""
        if session:
            self._client.use(session)
        self._judge("http", self._get("/healthz").facts())
        if self._found[-1].outcome in ("ok", "slow"):
            found, problem = self._identify(email, password)
            self._record(found)
            if found.level == "ok":
                self._probe_chat(idle_s, hold_s)
        outcomes = {each.probe: each.outcome for each in self._found}
        for probe in verdicts.PROBES:
            if probe not in outcomes:
                self._record(Found(probe, "skipped"))
        proxy = verdicts.proxy_of(self._headers)
        return Report(self._way.url(""), proxy, self._found, verdicts.verdict(outcomes), problem)

    def _identify(self, email: str, password: str) -> tuple[Found, str]:
        """Check that it is the chat's server, and sign in if credentials were given."""
        found, problem = self._probe_mark(), ""
        if found.outcome == "signed-out" and email:
            try:
                self._client.sign_in(email, password)
                found = self._probe_mark()
            except NotSignedIn as error:
                problem = str(error)
        return found, problem

    def _probe_mark(self) -> Found:
        nonce = uuid4().hex
        response = self._get("/connection/test/mark", nonce=nonce, origin=self._way.origin)
        facts = response.facts()
        mark = next(iter(tags(response.text, MARK[1:])), {}) if facts["marked"] else {}
        facts |= {"fresh": mark.get("nonce") == nonce, "header": mark.get("header") == "yes"}
        self._hold_s = float(mark.get("hold") or 0)
        self._server = {"drill": mark.get("drill") or None, "protocol": mark.get("protocol")}
        self._server |= {"origin": mark.get("origin") == "yes", "offered": mark.get("offered") == "yes"}
        self._server |= {"expected": mark.get("expected") or "", "came": self._way.origin}
        return Found("mark", verdicts.outcome("mark", facts), facts)

    def _probe_chat(self, idle_s: float, hold_s: float | None) -> None:
        socket = ProbeSocket()
        drill = {"drill": self._server["drill"]}
        facts = socket.open(self._client, "/ws") if self._server["offered"] else {}
        self._judge("upgrade", facts | self._server)
        idle_thread = threading.Thread(target=self._probe_idle, args=(socket, idle_s), daemon=True)
        if self._found[-1].outcome == "ok":
            self._judge("echo", socket.echo(ECHOES) | drill)
            idle_thread.start()
        poll = self._get("/changes", epoch="test", c="list:0")
        self._judge("poll", poll.facts(POLL_MARK) | drill)
        stream = self._get("/connection/test/stream")
        self._judge("stream", stream.facts() | {"spread_ms": stream.at[-1] - stream.at[0] if stream.at else 0})
        large = self._get("/connection/test/large", LARGE_S)
        self._judge("large", large.facts() | {"complete": large.facts()["complete"] and len(large.text) > LARGE_BYTES})
        self._probe_hold(hold_s)
        if idle_thread.ident is not None:
            idle_thread.join()
        socket.close()

    def _probe_idle(self, socket: ProbeSocket, seconds: float) -> None:
        if not socket.is_closed:
            self._judge("idle", socket.idle(seconds) | {"drill": self._server["drill"]})

    def _probe_hold(self, hold_s: float | None) -> None:
        wanted = self._hold_s if hold_s is None else min(hold_s, self._hold_s)
        response, wanted_ms = ProbeResponse(), round(wanted * 1000)
        if wanted:
            response = self._get("/connection/test/hold", wanted + HOLD_GRACE_S, seconds=f"{wanted:g}")
        self._judge("hold", response.facts() | {"wanted_ms": wanted_ms, "short_ms": wanted_ms - response.ms})

    def _get(self, path: str, within_s: float = ANSWER_S, **query: str) -> ProbeResponse:
        response = self._client.get(path, within_s, query or None)
        self._headers += " ".join([response.headers.get("Server", ""), response.headers.get("Via", ""), ""])
        return response

    def _judge(self, probe: str, facts: dict[str, Any]) -> None:
        self._record(Found(probe, verdicts.outcome(probe, facts), facts))

    def _record(self, found: Found) -> None:
        self._found.append(found)
        self._on_found(found)
