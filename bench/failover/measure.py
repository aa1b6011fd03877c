"""What a trial showed: from outside, by the proxy's record and the client's own word, on one clock. Seconds."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from failover.cells import Cell
from failover.trial import Trial
from lab.faultproxy import Seen

SETTLING_S = 0.05
NOT_OF_THE_CONNECTION = re.compile(r"^/(sign-in|static|peer|connection/events|$)|^/c/[^/]+$")


@dataclass
class Result:
    """One trial in figures; None: it did not happen, or does not apply."""

    system: str
    noticed: float | None = None  # from T0; where the fault was there first: from the first dial to messages flow
    gap: float | None = None  # the longest that a message was under way
    gap_at: float | None = None  # when, from T0, that message was said
    gap_up: float | None = None  # the longest until the server had a message of the client's
    back: float | None = None  # on WebSocket, from the end of the fault; 0: it never left
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    messages: int = 0
    requests: int = 0  # from T0 on
    bytes: int = 0
    obeyed: float | None = None  # the first request after advice to wait
    obeyed_by: str = ""  # and which it was
    problem: str = ""


def measure(cell: Cell, trials: list[Trial], requests: list[Seen], before: dict[int, int]) -> list[Result]:
    """The results of a batch. `before`: the bytes that a request (its id()) had carried at T0."""
    attribute(trials, requests)
    return [_one(cell, trial, before) for trial in trials]


def as_json(results: Iterable[Result]) -> list[dict[str, object]]:
    """For the report's file; times to the millisecond."""
    rows = [asdict(result) for result in results]
    return [{name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()} for row in rows]


def attribute(trials: list[Trial], requests: list[Seen]) -> None:
    """Whose request was it? The peer names its client in the query; ours is known by its sign-in and the cookie."""
    by_name = {trial.client: trial for trial in trials}
    by_email = {trial.email: trial for trial in trials if trial.email}
    by_cookie: dict[str, Trial] = {}
    for seen in sorted(requests, key=lambda one: one.at):
        trial = by_name.get(parse_qs(urlsplit(seen.head.target).query).get("client", [""])[0])
        if trial is None:
            trial = by_cookie.get(_cookie(seen.head.headers.get("cookie", "")))
        if seen.path.endswith("/sign-in") and seen.head.method == "POST":
            trial = by_email.get(parse_qs(seen.body.decode()).get("email", [""])[0])
        if trial is None:
            continue
        renewed = _cookie(seen.answer.headers.get("set-cookie", "")) if seen.answer else ""
        if renewed:
            by_cookie[renewed] = trial
        if not NOT_OF_THE_CONNECTION.search(seen.path):
            trial.requests.append(seen)


def _cookie(header: str) -> str:
    return next((one.value for name, one in SimpleCookie(header).items() if name.startswith("chatapp_")), "")


def _one(cell: Cell, trial: Trial, before: dict[int, int]) -> Result:
    result = Result(trial.system)
    _count(trial, result)
    after = [seen for seen in trial.requests if trial.t0 <= seen.at <= trial.end]
    result.requests = len(after)
    result.bytes = sum(seen.bytes_up + seen.bytes_down - before.get(id(seen), 0) for seen in trial.requests)
    if failed := trial.of("failed"):
        result.problem = str(failed[0]["why"])
    result.noticed = _usable(trial) if cell.place == "start" and cell.fault != "poll_blackhole" else _noticed(trial)
    _gaps(trial, result)
    result.back = _back(trial) if cell.activity != "quiet" else None
    _advised(trial, result)
    return result


def _count(trial: Trial, result: Result) -> None:
    """Both directions: what is missing, what came twice, what came after something that was said later."""
    got = [str(event["id"]) for event in trial.of("got") if str(event["id"]).startswith("d-")]
    result.messages = len(trial.posted) + len(trial.sent)
    result.lost = len(set(trial.posted) - set(got)) + len(set(trial.sent) - set(trial.received))
    for came in (got, trial.received):
        result.doubled += sum(count - 1 for count in Counter(came).values())
        result.reordered += _inversions(list(dict.fromkeys(came)))


def _inversions(ids: list[str]) -> int:
    highest, found = -1, 0
    for body in ids:
        number = int(body.partition("-")[2])
        found += number < highest
        highest = max(highest, number)
    return found


def _gaps(trial: Trial, result: Result) -> None:
    """Down and up, counted from T0 where a message was said before; what never came counts to the end."""
    got: dict[str, float] = {}
    for event in trial.of("got"):
        got.setdefault(event["id"], event["at"])
    down = [(gap, at) for at, gap in _underway(trial, trial.posted, got)]
    if down:
        result.gap, at = max(down)
        result.gap_at = at - trial.t0
    if trial.email:  # ours shows a message of one's own in the feed when the server has it; the peer has no such echo
        result.gap_up = max((gap for _, gap in _underway(trial, trial.sent, got)), default=None)


def _underway(trial: Trial, said: dict[str, float], got: dict[str, float]) -> list[tuple[float, float]]:
    """When each was said, and how long it took after T0."""
    times = [(at, got.get(body, trial.end) - max(at, trial.t0)) for body, at in said.items()]
    return [(at, gap) for at, gap in times if gap >= 0]


def _state_at(trial: Trial, when: float) -> tuple[str, str]:
    states = trial.states()
    index = bisect_right([event["at"] for event in states], when) - 1
    return (states[index]["state"], states[index]["transport"]) if index >= 0 else ("down", "")


def _noticed(trial: Trial) -> float | None:
    """The client says that its good state is over, dials or polls in parallel, or hangs up on a silent poll."""
    state, transport = _state_at(trial, trial.t0 - SETTLING_S)
    if state != "up":
        return None
    since = trial.t0 - SETTLING_S
    times = [e["at"] for e in trial.states() if e["at"] > since and (e["state"], e["transport"]) != ("up", transport)]
    if transport == "websocket":
        times += [seen.at for seen in trial.requests if since < seen.at <= trial.end]
    else:
        swallowed = [s for s in trial.requests if s.done_to_it == "swallowed" and s.at < trial.t0 <= s.ended_at]
        times += [seen.ended_at for seen in swallowed]
    return max(0.0, min(times) - trial.t0) if times else None


def _usable(trial: Trial) -> float | None:
    """From the first dial to the first good state."""
    up = [event["at"] for event in trial.states() if event["state"] == "up"]
    dialled = [seen.at for seen in trial.requests]
    return max(0.0, up[0] - min(dialled)) if up and dialled else None


def _back(trial: Trial) -> float | None:
    """When WebSocket carries again, from the end of the fault on; 0 where it was never given up."""
    since = trial.t0 - SETTLING_S
    left = [e["at"] for e in trial.states() if e["at"] > since and (e["state"], e["transport"]) != ("up", "websocket")]
    was_on_it = _state_at(trial, since) == ("up", "websocket")
    if was_on_it and not left:
        return 0.0
    if _state_at(trial, trial.healed) == ("up", "websocket") and not any(at > trial.healed for at in left):
        return 0.0
    first = max(trial.healed, min(left, default=since))
    up = [e["at"] for e in trial.states() if (e["state"], e["transport"]) == ("up", "websocket") and e["at"] >= first]
    return max(0.0, up[0] - trial.healed) if up else None


def _advised(trial: Trial, result: Result) -> None:
    """The first request of any kind after the first advice that the client could read: not an upgrade's."""
    advised = [s for s in trial.requests if s.done_to_it in ("http 429", "http 503") and not s.is_upgrade]
    if advised:
        since = advised[0].answered_at
        later = [seen for seen in trial.requests if seen.at > since + SETTLING_S]
        if later:
            first = min(later, key=lambda seen: seen.at)
            result.obeyed, result.obeyed_by = first.at - since, first.head.first[:80]
