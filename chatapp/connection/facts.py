"""What an event says, whatever the state is: the part of the interpreter that only takes note. See states.py."""

from chatapp.connection import delays
from chatapp.connection.record import BUDGET_MS, Event, Record

BLAME_MS = 5000  # a cut counts against WebSocket only where the server answers again within this
SIMILAR = 0.05  # three silent gaps that differ by no more are a proxy's idle time-out
PATTERN = 3
SHORTEST_GAP_MS = 1500
POLL_COST_MS = 10_000


def note(record: Record, event: Event, now: int) -> None:
    """Take note of one event."""
    kind = event["type"]
    if kind == "attempt_over":
        _note_silence(record)
    if "rtt" in event:
        record["rtt"] = event["rtt"]
    if "queued" in event:
        record["queued"] = event["queued"]
    if event.get("advice_ms", 0) > 0:
        _note_advice(record, now + event["advice_ms"])
    if kind in ("hidden", "wake", "activity"):
        record["activity"] = "active" if kind == "wake" else event.get("level", "hidden")
    elif kind in ("offline", "online"):
        record["offline"] = kind == "offline"
    elif kind == "quality":
        record["quality"], record["qualityLimit"] = event.get("score"), event.get("limit")
        record["qualityLevel"] = event.get("level", "unknown")
    elif kind.startswith("poll_"):
        _note_poll(record, event, now)
    elif kind in ("signed_out", "refused", "stop"):
        record["pollReason"] = event.get("reason")
    elif kind.startswith("ws_"):
        _note_websocket(record, event, now)
    elif kind == "cause" and record["ws"] == "none" and record["wsReason"] == event.get("of"):
        record["wsReason"] = event.get("reason")
    if kind in ("online", "retry"):
        record["penalty"] = record["blame"] = record["dampedUntil"] = 0
        record["probeDelay"] = 0


def _note_advice(record: Record, until: int) -> None:
    """The server asks for a pause: what was planned to dial earlier waits, too; a race dials nothing more."""
    record["notBefore"] = floor = max(record["notBefore"], until)
    record["timers"].pop("head_start", None)
    for name in {"retry", "probe", "poll"} & set(record["timers"]):
        record["timers"][name] = max(floor, record["timers"][name])


def proof(record: Record, now: int) -> int:
    """How long a socket opened now must live beyond its echoes before it carries."""
    return delays.proof_ms(delays.decayed(record["penalty"], now - record["penaltyAt"]) + record["blame"])


def forget_blame(record: Record) -> None:
    """Nothing got through: that says nothing about WebSocket itself."""
    record["blame"] = 0
    _foretell(record, "both-failed", None)


def is_restarting(record: Record) -> bool:
    """It has said that it restarts: until it is back, or the attempts are used up, that is why nothing answers."""
    silent = record["pollReason"] in (None, "server-unreachable")
    return record["status"] == "reconnecting" and record["wsReason"] == "server-restart" and silent


def _note_silence(record: Record) -> None:
    """What an attempt that ran out of time says about each transport."""
    if record["ws"] in ("opening", "ready"):
        record["wsReason"] = "upgrade-hung" if record["ws"] == "opening" else "mute"
    if record["poll"] == "trying":
        record["pollReason"] = "server-unreachable"


def _note_poll(record: Record, event: Event, now: int) -> None:
    if event["type"] == "poll_answered":
        record["poll"] = "up"
        record["pollFailures"] = 0
        record["quickUsed"] = False
        record["pollReason"] = None
        _charge(record, now)
        _note_flow(record, now)
    elif event["type"] == "poll_failed":
        quick = event.get("quick", False) and not record["quickUsed"]
        record["poll"] = "failed"
        record["quickUsed"] = record["quickUsed"] or quick
        record["pollFailures"] += 0 if quick else 1
        record["pollReason"] = event.get("reason")


def _note_flow(record: Record, now: int) -> None:
    suspicion = record["suspicion"]
    if suspicion is None:
        return
    if suspicion["flowsAt"] is None:
        record["suspicion"] = {**suspicion, "flowsAt": now}
    if record["ws"] == "none":  # the socket was given up before the poll came through
        _foretell(record, "confirmed", 0)


def _foretell(record: Record, outcome: str, lead: int | None) -> None:
    suspicion, record["suspicion"] = record["suspicion"], None
    if suspicion:
        record["foretold"] = {"trigger": suspicion["trigger"], "outcome": outcome, "lead": lead}


def _note_websocket(record: Record, event: Event, now: int) -> None:
    kind = event["type"]
    if kind == "ws_closed":
        was, record["ws"] = record["ws"], "none"
        if not (was == "opening" and is_restarting(record)):
            record["wsReason"] = event.get("reason")
        if was in ("ready", "up", "suspect"):
            _note_end(record, event, now)
        if was == "suspect" and record["suspicion"] and record["suspicion"]["flowsAt"] is not None:
            _foretell(record, "confirmed", now - record["suspicion"]["flowsAt"])
    elif kind == "ws_ready":
        record["ws"] = "ready"
        record["wsSince"] = now
        _charge(record, now)
        _foretell(record, "confirmed", 0)
    elif kind == "ws_suspect":
        record["ws"] = "suspect"
        polls = _may_poll_beside(record, now)
        record["suspicion"] = {"trigger": event.get("trigger", "echo"), "at": now, "flowsAt": None, "polls": polls}
    elif kind in ("ws_recovered", "ws_proved"):
        record["ws"] = "up"
        if kind == "ws_recovered":
            _foretell(record, "averted", None)


def _may_poll_beside(record: Record, now: int) -> bool:
    """A slow server must not be asked twice by everybody: beyond the budget only a dead socket is replaced."""
    record["budget"] = min(BUDGET_MS, record["budget"] + now - record["budgetAt"])
    record["budgetAt"] = now
    if record["budget"] < POLL_COST_MS:
        return False
    record["budget"] -= POLL_COST_MS
    return True


def _note_end(record: Record, event: Event, now: int) -> None:
    """A socket that worked has ended. A restart of the server, a hidden page, no network: not WebSocket's fault."""
    if "advice_ms" in event or event.get("reason") == "server-restart" or record["offline"]:
        return
    is_pattern = _note_gap(record, event.get("silent_ms", 0))
    if record["activity"] == "hidden":
        return
    record["blame"], record["blamedAt"] = delays.penalty_of(now - record["wsSince"], is_pattern), now
    if record["poll"] == "up":
        _charge(record, now)


def _note_gap(record: Record, gap: int) -> bool:
    """Sockets cut again and again after the same silence: a proxy's idle time-out. True from the second one on."""
    if gap < SHORTEST_GAP_MS:
        return False
    alike = [one for one in record["gaps"] if abs(one - gap) <= SIMILAR * gap]
    record["gaps"] = [*alike, gap][-PATTERN:]
    if len(record["gaps"]) == PATTERN:  # the next socket asks faster, so it deserves a new beginning
        record["killGap"] = min(record["gaps"])
        record["penalty"] = record["dampedUntil"] = 0
    return bool(alike)


def _charge(record: Record, now: int) -> None:
    """Add the blame to the penalty; beyond a limit WebSocket is left alone for minutes."""
    if not record["blame"] or now - record["blamedAt"] > BLAME_MS:
        record["blame"] = 0
        return
    before = delays.decayed(record["penalty"], now - record["penaltyAt"])
    record["penalty"], record["penaltyAt"] = min(delays.CEILING, int(before + record["blame"])), now
    record["blame"] = 0
    if damped := delays.damped_for(record["penalty"]):
        record["dampedUntil"] = now + damped
        record["wsReason"] = "unstable" if record["ws"] == "none" else record["wsReason"]
