"""The connection's state machine as plain data. Pages get it with their script (`table_json`);
static/js/connection/states.js interprets it.
"""

import json
from typing import Literal, get_args

State = Literal["disconnected", "connecting", "connected", "polling", "reconnecting", "error"]
Rows = dict[str, tuple[State, str]]

STATES: tuple[State, ...] = get_args(State)

# Actions of several rows. A race drops attempts from before a sleep and tries both transports.
_RACE = "close_websocket stop_poll clear_timers open_websocket start_poll await_attempt"
_GIVE_UP = "close_websocket stop_poll clear_timers"
_FAIL = f"{_GIVE_UP} forget_blame"  # polls failed too, so WebSocket is not to blame
_SETTLE = "stop_poll clear_timers"
_REPOLL = "close_websocket restart_poll clear_timers hasten_probe"
_ENDS: Rows = {
    "refused": ("error", f"{_GIVE_UP} await_slow_retry"),
    "signed_out": ("disconnected", _GIVE_UP),
    "stop": ("disconnected", _GIVE_UP),
}
_FIRST_USEFUL: Rows = {  # the first transport that works ends a race
    "ws_ready": ("connected", _SETTLE),
    "ws_proved": ("connected", _SETTLE),
    "poll_answered": ("polling", "clear_waits"),
    "poll_answered_alone": ("polling", "clear_timers await_probe"),
}


def _on_hint(state: State, actions: str) -> Rows:
    """Return the rows for a page that became visible, a network that came back, or Try now."""
    return {hint: (state, actions) for hint in ("wake", "online", "retry")}


# state -> event -> (next state, names of the actions in order)
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

# timer -> its event. The order decides between timers due in the same millisecond.
TIMERS = {
    "head_start": "head_start_over",
    "attempt": "attempt_over",
    "retry": "retry_due",
    "probe": "probe_due",
    "poll": "poll_due",
}


def is_connected(state: str | None) -> bool:
    """Return True if messages flow, by either transport."""
    return state in ("connected", "polling")


def table_json() -> str:
    """Return states, timers and table as compact JSON."""
    return json.dumps({"states": STATES, "timers": TIMERS, "table": TABLE}, separators=(",", ":"))
