"""The connection's state machine: one table of plain data, and a small pure interpreter of it.

The page carries `table_json()` and static/js/connection/states.js interprets it; `tests/vectors/states.json` runs in
both languages. Nothing here does I/O or reads a clock: `step` takes what happened and when, and returns the new record
and the names of the actions to do. Times and delays are milliseconds.
"""

import json
import math
from typing import Literal

from chatapp.connection import delays, facts
from chatapp.connection.delays import Config, Random
from chatapp.connection.record import Event, Record, State, new_record

Rows = dict[str, tuple[State, str]]

PAUSES = ("rate-limited", "drill", "server-storage")  # what polls that work may still be told
OFFLINE_ATTEMPTS = 5  # while offline, attempts are not counted, and come as far apart as after so many

STATES: tuple[State, ...] = ("disconnected", "connecting", "connected", "polling", "reconnecting", "error")

# What several rows do. A race drops what hangs (an attempt from before a sleep) and tries both transports afresh.
_RACE = "close_websocket stop_poll clear_timers open_websocket start_poll await_attempt"
_GIVE_UP = "close_websocket stop_poll clear_timers"
_FAIL = f"{_GIVE_UP} forget_blame"  # nothing got through: that says nothing about WebSocket itself
_SETTLE = "stop_poll clear_timers"
_REPOLL = "close_websocket restart_poll clear_timers hasten_probe"
_ENDS: Rows = {
    "refused": ("error", f"{_GIVE_UP} await_slow_retry"),
    "signed_out": ("disconnected", _GIVE_UP),
    "stop": ("disconnected", _GIVE_UP),
}
_FIRST_USEFUL: Rows = {  # of a race: whichever transport is useful first carries
    "ws_ready": ("connected", _SETTLE),
    "ws_proved": ("connected", _SETTLE),
    "poll_answered": ("polling", "clear_waits"),
    "poll_answered_alone": ("polling", "clear_timers await_probe"),
}


def _on_hint(state: State, actions: str) -> Rows:
    """The page became visible, the network came back, or the person pressed Try now: at once, whatever was planned."""
    return {hint: (state, actions) for hint in ("wake", "online", "retry")}


# state -> event -> (next state, the names of the actions in order)
TABLE: dict[State, Rows] = {
    "disconnected": {
        "start": ("connecting", "open_websocket await_head_start await_attempt"),
        "start_polling": ("connecting", "start_poll await_attempt"),
        "start_doubtful": ("connecting", "start_poll await_head_start await_attempt"),
    },
    "connecting": {
        "head_start_over": ("connecting", "open_websocket start_poll"),
        "ws_refused": ("connecting", "close_websocket start_poll"),
        "ws_unproved": ("connecting", "start_poll await_proof"),
        "attempt_failed": ("reconnecting", f"{_FAIL} await_retry"),
        **_FIRST_USEFUL,
        **_on_hint("connecting", _RACE),
        **_ENDS,
    },
    "connected": {
        "ws_suspect": ("connected", "start_poll resend"),
        "ws_suspect_over_budget": ("connected", "resend"),
        "ws_recovered": ("connected", "stop_poll clear_timers"),
        "poll_failed": ("connected", "await_poll"),
        "poll_due": ("connected", "start_poll"),
        "ws_lost": ("reconnecting", "close_websocket clear_timers start_poll await_retry"),
        "ws_lost_advised": ("reconnecting", f"{_GIVE_UP} await_retry"),
        "ws_lost_poll_up": ("polling", "close_websocket clear_timers await_probe"),
        "offline": ("connected", "verify"),
        **_on_hint("connected", "verify"),
        **_ENDS,
    },
    "polling": {
        "ws_ready": ("polling", "await_proof"),
        "ws_proved": ("connected", _SETTLE),
        "probe_failed": ("polling", "close_websocket await_probe"),
        "probe_due": ("polling", "open_websocket await_attempt"),
        "poll_failed": ("polling", "await_poll hasten_probe"),
        "poll_due": ("polling", "start_poll"),
        "activity": ("polling", "hasten_return"),
        "polls_exhausted": ("reconnecting", f"{_GIVE_UP} await_retry"),
        "polls_exhausted_ws_ready": ("connected", _SETTLE),
        **_on_hint("polling", _REPOLL),
        **_ENDS,
    },
    "reconnecting": {
        "retry_due": ("reconnecting", "count_attempt open_websocket start_poll await_attempt"),
        "ws_refused": ("reconnecting", "close_websocket"),
        "ws_unproved": ("reconnecting", "await_proof"),
        "attempt_failed": ("reconnecting", f"{_FAIL} await_retry"),
        "attempts_exhausted": ("error", f"{_FAIL} await_slow_retry"),
        **_FIRST_USEFUL,
        **_on_hint("reconnecting", _RACE),
        **_ENDS,
    },
    "error": {
        "retry_due": ("error", "open_websocket start_poll await_attempt"),
        "ws_refused": ("error", "close_websocket"),
        "ws_unproved": ("error", "await_proof"),
        "attempt_failed": ("error", f"{_FAIL} await_slow_retry"),
        **_FIRST_USEFUL,
        **_on_hint("error", _RACE),
        **_ENDS,
    },
}

# What a transport reports counts only where it can be true: reports of one that was closed meanwhile are stale.
_CREDIBLE = {
    "ws_ready": ("ws", ["opening"]),
    "ws_proved": ("ws", ["ready", "up"]),
    "ws_suspect": ("ws", ["up"]),
    "ws_recovered": ("ws", ["suspect"]),
    "ws_closed": ("ws", ["opening", "ready", "up", "suspect"]),
    "poll_answered": ("poll", ["trying", "up", "failed"]),
    "poll_failed": ("poll", ["trying", "up", "failed"]),
}

# A timer that falls due is an event of this name. The order decides between timers due in the same millisecond.
TIMERS = {
    "head_start": "head_start_over",
    "attempt": "attempt_over",
    "retry": "retry_due",
    "probe": "probe_due",
    "poll": "poll_due",
}


def is_connected(state: str) -> bool:
    """True where messages flow, whatever carries them."""
    return state in ("connected", "polling")


def table_json() -> str:
    """The table and the timers' events as compact JSON, for the page."""
    return json.dumps({"states": STATES, "timers": TIMERS, "table": TABLE}, separators=(",", ":"))


def step(record: Record, event: Event, now: int, config: Config, random: Random) -> tuple[Record, list[str]]:
    """The record after `event`, and the actions to do, in order. An event that no row names changes only facts."""
    after = record.copy()
    after["timers"] = dict(record["timers"])
    if event["type"] != "tick":
        return after, _take(after, event, now, config, random)
    actions: list[str] = []
    for timer, name in TIMERS.items():
        if after["timers"].get(timer, math.inf) <= now:
            del after["timers"][timer]
            actions += _take(after, {"type": name}, now, config, random)
    return after, actions


def _take(record: Record, event: Event, now: int, config: Config, random: Random) -> list[str]:
    """One event: note its facts, name it by the guards, look its row up, apply that."""
    before = record["status"]
    field, credible = _CREDIBLE.get(event["type"], ("status", STATES))
    if record[field] not in credible:  # type: ignore[literal-required]
        return []
    facts.note(record, event, now)
    name = _name(record, event, now, config)
    actions: list[str] = []
    if row := TABLE[before].get(name):
        record["status"] = row[0]
        actions = [action for action in row[1].split() if _apply(record, action, now, config, random)]
    _settle(record, before, now, config)
    return actions


def _name(record: Record, event: Event, now: int, config: Config) -> str:
    """The event's name in the table: where a guard decides, each outcome is an event of its own."""
    kind, state = event["type"], record["status"]
    if state == "disconnected" and kind in ("start", "retry"):
        return _name_of_start(config)
    if kind in ("wake", "online", "retry") and record["notBefore"] > now and not _carried(record):
        return "too_soon"  # the server asked for a pause, and it wins
    if state == "connected" and kind == "ws_suspect":
        return kind if record["suspicion"] and record["suspicion"]["polls"] else "ws_suspect_over_budget"
    if state == "connected" and kind == "ws_closed":
        return _name_of_loss(record, event)
    if state == "polling":
        return _name_in_polling(record, kind, config)
    if state in ("connecting", "reconnecting", "error"):
        return _name_in_race(record, kind, config, now)
    return kind


def _name_of_start(config: Config) -> str:
    if "websocket" not in config["transports"]:
        return "start_polling"
    return "start_doubtful" if config.get("is_doubtful") and "polling" in config["transports"] else "start"


def _carried(record: Record) -> bool:
    return record["status"] == "connected" or (record["status"] == "polling" and record["poll"] == "up")


def _name_of_loss(record: Record, event: Event) -> str:
    if record["poll"] == "up":
        return "ws_lost_poll_up"
    return "ws_lost_advised" if event.get("advice_ms", 0) > 0 else "ws_lost"


def _name_in_polling(record: Record, kind: str, config: Config) -> str:
    if kind in ("ws_closed", "attempt_over"):
        return "probe_failed"
    if kind == "poll_failed" and record["pollFailures"] > config["poll_retries"]:
        return "polls_exhausted_ws_ready" if record["ws"] == "ready" else "polls_exhausted"
    return kind


def _name_in_race(record: Record, kind: str, config: Config, now: int) -> str:
    if kind == "poll_answered":
        return kind if record["ws"] in ("opening", "ready") else "poll_answered_alone"
    if kind == "ws_ready" and facts.proof(record, now) > 0 and "polling" in config["transports"]:
        return "ws_unproved"
    if kind not in ("ws_closed", "poll_failed", "attempt_over"):
        return kind
    running = "attempt" in record["timers"]
    hope = record["ws"] in ("opening", "ready") or record["poll"] == "trying" or _poll_to_come(record, config)
    if kind == "attempt_over" or (running and not hope):
        used_up = record["status"] == "reconnecting" and record["reconnectAttempts"] >= config["max_attempts"]
        return "attempts_exhausted" if used_up else "attempt_failed"
    return "ws_refused" if kind == "ws_closed" else kind


def _poll_to_come(record: Record, config: Config) -> bool:
    return "head_start" in record["timers"] and "polling" in config["transports"]


def _apply(record: Record, action: str, now: int, config: Config, random: Random) -> bool:
    """Do the part of an action that is state: timers and the transports' fields. False: nothing is left to do."""
    if action.startswith(("await_", "hasten_")):
        return _set_timer(record, action, now, config, random)
    if action == "clear_timers":
        record["timers"] = {}
    elif action == "clear_waits":  # everything but the running attempt: it goes on as a probe
        record["timers"] = {k: v for k, v in record["timers"].items() if k == "attempt"}
    elif action == "count_attempt":
        record["reconnectAttempts"] += 0 if record["offline"] else 1
    elif action == "open_websocket":
        return not _left_alone(record, now, config) and _open_websocket(record, now, config)
    elif action == "start_poll":
        record["timers"].pop("head_start", None)
        return _open(record, "poll", "trying", "polling", config)
    elif action == "forget_blame":
        facts.forget_blame(record)
        if "polling" in config["transports"] and not facts.is_restarting(record):
            record["wsReason"] = None
    elif action == "close_websocket":
        record["ws"] = "none"
    elif action == "restart_poll":
        record["poll"] = "trying"
    elif action == "stop_poll":
        record["poll"] = "none"
        record["pollFailures"] = 0
        record["quickUsed"] = False
    return True


def _open(record: Record, field: Literal["ws", "poll"], value: str, transport: str, config: Config) -> bool:
    if transport not in config["transports"] or record[field] not in ("none", "failed"):
        return False
    record[field] = value
    return True


def _open_websocket(record: Record, now: int, config: Config) -> bool:
    record["wsTriedAt"] = now if record["ws"] == "none" else record["wsTriedAt"]
    return _open(record, "ws", "opening", "websocket", config)


def _left_alone(record: Record, now: int, config: Config) -> bool:
    """Damped: not even in a race, unless polls do not work either."""
    return now < record["dampedUntil"] and "polling" in config["transports"] and not _polls_fail(record)


def _polls_fail(record: Record) -> bool:
    failed = record["pollFailures"] > 0 or record["quickUsed"] or record["reconnectAttempts"] > 1
    return failed or record["status"] == "error"


def _set_timer(record: Record, action: str, now: int, config: Config, random: Random) -> bool:
    """Set the timer that the action names; the server's advice wins over every delay that dials again."""
    timers, floor = record["timers"], record["notBefore"]
    if action == "await_head_start":
        timers["head_start"] = now + delays.head_start(config.get("latency_ms", 0))
    elif action == "await_attempt":
        timers["attempt"] = now + 4000
    elif action == "await_proof":
        timers["attempt"] = now + 4000 + facts.proof(record, now)
    elif action == "await_retry":
        attempts = max(record["reconnectAttempts"], OFFLINE_ATTEMPTS if record["offline"] else 0)
        timers["retry"] = max(floor, now + delays.retry_delay(attempts, config, random))
    elif action == "await_slow_retry":
        wait = delays.slow_retry_delay(record["slowRetries"], record["activity"], config, random)
        timers["retry"] = max(floor, now + wait)
        record["slowRetries"] += 1
    elif action == "await_poll":
        timers["poll"] = max(floor, now + delays.poll_retry_delay(record["pollFailures"], config, random))
    elif "websocket" not in config["transports"]:
        return False
    elif action == "await_probe":
        _await_probe(record, now, random)
    elif record["ws"] == "none":  # hasten_probe, hasten_return
        soon = 300 * random() if action == "hasten_probe" else delays.PROBE_CAP_MS[record["activity"]]
        at = now + math.floor(soon)
        damped = 0 if _polls_fail(record) else record["dampedUntil"]
        timers["probe"] = max(floor, damped, min(timers.get("probe", at), at))
    return True


def _await_probe(record: Record, now: int, random: Random) -> None:
    """The cap is from the beginning of one probe to that of the next: one that hangs uses up time."""
    record["timers"].pop("attempt", None)
    hung = now - record["wsTriedAt"] if record["probeDelay"] else 0
    record["probeDelay"] = delays.probe_delay(record["probeDelay"], record["activity"], random)
    left = max(1000, delays.PROBE_CAP_MS[record["activity"]] - hung)
    record["timers"]["probe"] = max(record["notBefore"], record["dampedUntil"], now + min(record["probeDelay"], left))


def _settle(record: Record, before: State, now: int, config: Config) -> None:
    """What follows from the state: the fields that people see."""
    state = record["status"]
    if state != before and (is_connected(state) or is_connected(before)):
        record["lastConnected"] = now
        record["reconnectAttempts"] = 0
        record["slowRetries"] = 0
    if state != before and state == "connected":
        record["ws"] = "up"
        record["wsReason"] = record["pollReason"] = None
        record["probeDelay"] = 0
    if is_connected(state):
        record["connectionType"] = "websocket" if state == "connected" else "polling"
    record["nextRetryAt"] = record["timers"].get("retry")
    if state == "polling" and record["pollFailures"] > 0:
        record["nextRetryAt"] = record["timers"].get("poll")
    record["reason"] = _reason(record, config)


def _reason(record: Record, config: Config) -> str | None:
    if record["status"] in ("connecting", "connected"):
        return None
    if record["status"] == "disconnected":
        return record["pollReason"]
    if record["offline"]:
        return "offline"
    if facts.is_restarting(record):
        return "server-restart"
    if record["status"] == "polling" and "websocket" not in config["transports"]:
        return record["pollReason"] or "websocket-off"
    if record["status"] == "polling":
        return record["pollReason"] if record["pollReason"] in PAUSES else record["wsReason"]
    return record["pollReason"] or record["wsReason"]


class Machine:
    """A record with its configuration and a source of chance, for those who would rather hold an object."""

    def __init__(self, config: Config, random: Random) -> None:
        """Start from `new_record(config)`."""
        self.config, self.random = config, random
        self.record = new_record(config)

    def take(self, event: Event, now: int) -> list[str]:
        """Apply `event` at `now` and return the actions to do."""
        self.record, actions = step(self.record, event, now, self.config, self.random)
        return actions

    def due(self) -> int | None:
        """When the next `tick` is wanted, or None."""
        return min(self.record["timers"].values(), default=None)
