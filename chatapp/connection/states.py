"""The connection's state machine: one table of plain data, and a small pure interpreter of it.

The page carries `table_json()` and `static/js/states.js` interprets the same table; `tests/vectors/states.json` runs in
both languages. Nothing here does I/O or reads a clock: `step` takes what happened and when, and returns the new record
and the names of the actions to do. Times and delays are milliseconds.
"""

import json
import math
from typing import Literal

from chatapp.connection import delays
from chatapp.connection.delays import Config, Random
from chatapp.connection.record import Event, Record, State, new_record

Rows = dict[str, tuple[State, str]]

STATES: tuple[State, ...] = ("disconnected", "connecting", "connected", "polling", "reconnecting", "error")

# What several rows do. A race drops what hangs (an attempt from before a sleep) and tries both transports afresh.
_RACE = "close_websocket stop_poll clear_timers open_websocket start_poll await_attempt"
_GIVE_UP = "close_websocket stop_poll clear_timers"
_FAIL = f"{_GIVE_UP} forget_blame"  # nothing got through: that says nothing about WebSocket itself
_SETTLE = "stop_poll clear_timers flush"
_REPOLL = "close_websocket restart_poll clear_timers hasten_probe"
_ENDS: Rows = {
    "refused": ("error", f"{_GIVE_UP} await_slow_retry"),
    "signed_out": ("disconnected", _GIVE_UP),
    "stop": ("disconnected", _GIVE_UP),
}
_FIRST_USEFUL: Rows = {  # of a race: whichever transport is useful first carries
    "ws_ready": ("connected", _SETTLE),
    "ws_proved": ("connected", _SETTLE),
    "poll_answered": ("polling", "clear_waits flush"),
    "poll_answered_alone": ("polling", "clear_timers await_probe flush"),
}


def _on_hint(state: State, actions: str) -> Rows:
    """The page became visible, the network came back, or the person pressed Try now: at once, whatever was planned."""
    return {hint: (state, actions) for hint in ("wake", "online", "retry")}


# state -> event -> (next state, the names of the actions in order)
TABLE: dict[State, Rows] = {
    "disconnected": {
        "start": ("connecting", "open_websocket await_head_start await_attempt"),
        "start_polling": ("connecting", "start_poll await_attempt"),
    },
    "connecting": {
        "head_start_over": ("connecting", "start_poll"),
        "ws_refused": ("connecting", "close_websocket start_poll"),
        "ws_unproved": ("connecting", "start_poll await_proof"),
        "attempt_failed": ("reconnecting", f"{_FAIL} await_retry"),
        **_FIRST_USEFUL,
        **_on_hint("connecting", _RACE),
        **_ENDS,
    },
    "connected": {
        "ws_suspect": ("connected", "start_poll resend"),
        "ws_recovered": ("connected", "stop_poll clear_timers"),
        "poll_failed": ("connected", "await_poll"),
        "poll_due": ("connected", "start_poll"),
        "ws_lost": ("reconnecting", "close_websocket clear_timers start_poll await_retry"),
        "ws_lost_advised": ("reconnecting", f"{_GIVE_UP} await_retry"),
        "ws_lost_poll_up": ("polling", "close_websocket clear_timers await_probe flush"),
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
    _note(record, event, now)
    name = _name(record, event, now, config)
    actions: list[str] = []
    if row := TABLE[before].get(name):
        record["status"] = row[0]
        actions = [action for action in row[1].split() if _apply(record, action, now, config, random)]
    _settle(record, before, now, config)
    return actions


def _note(record: Record, event: Event, now: int) -> None:
    """Facts that hold whatever the state is."""
    kind = event["type"]
    if kind == "attempt_over":
        _note_silence(record)
    if "rtt" in event:
        record["rtt"] = event["rtt"]
    if "queued" in event:
        record["queued"] = event["queued"]
    if event.get("advice_ms", 0) > 0:
        record["notBefore"] = max(record["notBefore"], now + event["advice_ms"])
    if kind in ("hidden", "wake"):
        record["hidden"] = kind == "hidden"
    elif kind in ("offline", "online"):
        record["offline"] = kind == "offline"
    elif kind.startswith("poll_"):
        _note_poll(record, event)
    elif kind in ("signed_out", "refused", "stop"):
        record["pollReason"] = event.get("reason")
    elif kind.startswith("ws_"):
        _note_websocket(record, event, now)
    if kind in ("online", "retry"):
        record["shortLives"] = 0
        record["probeDelay"] = 0


def _note_silence(record: Record) -> None:
    """What an attempt that ran out of time says about each transport."""
    if record["ws"] in ("opening", "ready"):
        record["wsReason"] = "upgrade-hung" if record["ws"] == "opening" else "mute"
    if record["poll"] == "trying":
        record["pollReason"] = "server-unreachable"


def _note_poll(record: Record, event: Event) -> None:
    if event["type"] == "poll_answered":
        record["poll"] = "up"
        record["pollFailures"] = 0
        record["quickUsed"] = False
        record["pollReason"] = None
    elif event["type"] == "poll_failed":
        quick = event.get("quick", False) and not record["quickUsed"]
        record["poll"] = "failed"
        record["quickUsed"] = record["quickUsed"] or quick
        record["pollFailures"] += 0 if quick else 1
        record["pollReason"] = event.get("reason")


def _note_websocket(record: Record, event: Event, now: int) -> None:
    kind = event["type"]
    if kind == "ws_closed":
        if record["ws"] in ("ready", "up", "suspect"):
            _note_life(record, now - record["wsSince"], advised="advice_ms" in event)
        record["ws"] = "none"
        record["wsReason"] = event.get("reason")
    elif kind == "ws_ready":
        record["ws"] = "ready"
        record["wsSince"] = now
    elif kind == "ws_suspect":
        record["ws"] = "suspect"
    elif kind in ("ws_recovered", "ws_proved"):
        record["ws"] = "up"


def _note_life(record: Record, lived: int, advised: bool) -> None:
    """Sockets that die young make the next one prove itself for longer; a restart of the server is no such death."""
    if lived >= 60_000:
        record["shortLives"] = 0
    elif lived < 10_000 and not advised:
        record["shortLives"] += 1


def _name(record: Record, event: Event, now: int, config: Config) -> str:
    """The event's name in the table: where a guard decides, each outcome is an event of its own."""
    kind, state = event["type"], record["status"]
    if state == "disconnected" and kind in ("start", "retry"):
        return "start" if "websocket" in config["transports"] else "start_polling"
    if kind in ("wake", "online", "retry") and record["notBefore"] > now and not _carried(record):
        return "too_soon"  # the server asked for a pause, and it wins
    if state == "connected" and kind == "ws_closed":
        return _name_of_loss(record, event)
    if state == "polling":
        return _name_in_polling(record, kind, config)
    if state in ("connecting", "reconnecting", "error"):
        return _name_in_race(record, kind, config)
    return kind


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


def _name_in_race(record: Record, kind: str, config: Config) -> str:
    if kind == "poll_answered":
        return kind if record["ws"] in ("opening", "ready") else "poll_answered_alone"
    if kind == "ws_ready" and record["shortLives"] > 0 and "polling" in config["transports"]:
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
        record["reconnectAttempts"] += 1
    elif action == "open_websocket":
        return _open(record, "ws", "opening", "websocket", config)
    elif action == "start_poll":
        record["timers"].pop("head_start", None)
        return _open(record, "poll", "trying", "polling", config)
    elif action == "forget_blame":
        record["wsReason"] = None if "polling" in config["transports"] else record["wsReason"]
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


def _set_timer(record: Record, action: str, now: int, config: Config, random: Random) -> bool:
    """Set the timer that the action names; the server's advice wins over every delay that dials again."""
    timers, floor = record["timers"], record["notBefore"]
    if action == "await_head_start":
        timers["head_start"] = now + delays.head_start(config.get("latency_ms", 0))
    elif action == "await_attempt":
        timers["attempt"] = now + 4000
    elif action == "await_proof":
        timers["attempt"] = now + 4000 + delays.proof_ms(record["shortLives"])
    elif action == "await_retry":
        timers["retry"] = max(floor, now + delays.retry_delay(record["reconnectAttempts"], config, random))
    elif action == "await_slow_retry":
        timers["retry"] = max(floor, now + delays.slow_retry_delay(record["slowRetries"], config, random))
        record["slowRetries"] += 1
    elif action == "await_poll":
        timers["poll"] = max(floor, now + delays.poll_retry_delay(record["pollFailures"], config, random))
    elif "websocket" not in config["transports"]:
        return False
    elif action == "await_probe":
        timers.pop("attempt", None)
        record["probeDelay"] = delays.probe_delay(record["probeDelay"], record["hidden"], random)
        timers["probe"] = max(floor, now + record["probeDelay"])
    elif record["ws"] == "none":  # hasten_probe
        timers["probe"] = max(floor, min(timers.get("probe", now + 300), now + math.floor(300 * random())))
    return True


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
    if record["status"] == "polling" and "websocket" not in config["transports"]:
        return record["pollReason"] or "websocket-off"
    if record["status"] == "polling":
        return "rate-limited" if record["pollReason"] == "rate-limited" else record["wsReason"]
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
