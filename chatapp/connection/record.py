"""What is known of one connection: the record that is shown, and the events that change it. Times are absolute ms."""

from typing import Literal, NotRequired, TypedDict

from chatapp.connection.delays import Config

State = Literal["disconnected", "connecting", "connected", "polling", "reconnecting", "error"]


class Event(TypedDict):
    """Something that happened; `tick` means that a timer of the record is due."""

    type: str
    reason: NotRequired[str]
    advice_ms: NotRequired[int]  # the server's Retry-After or closing advice
    quick: NotRequired[bool]  # a poll that was cut while it waited: worth one retry at once
    rtt: NotRequired[int]
    queued: NotRequired[int]


class Record(TypedDict):
    """The observable record (the first nine fields) and what the interpreter remembers. JSON names, absolute times."""

    status: State
    lastConnected: int | None
    reconnectAttempts: int
    connectionType: str
    reason: str | None
    rtt: int | None
    quality: int | None
    nextRetryAt: int | None
    queued: int
    ws: str  # none, opening, ready, up, suspect
    poll: str  # none, trying, up, failed
    wsReason: str | None
    pollReason: str | None
    pollFailures: int
    quickUsed: bool
    slowRetries: int
    probeDelay: int
    shortLives: int
    wsSince: int
    notBefore: int
    hidden: bool
    offline: bool
    timers: dict[str, int]


def new_record(config: Config) -> Record:
    """The record before the first event: disconnected, nothing tried."""
    return {
        "status": "disconnected",
        "lastConnected": None,
        "reconnectAttempts": 0,
        "connectionType": config["transports"][0],
        "reason": None,
        "rtt": None,
        "quality": None,
        "nextRetryAt": None,
        "queued": 0,
        "ws": "none",
        "poll": "none",
        "wsReason": None,
        "pollReason": None,
        "pollFailures": 0,
        "quickUsed": False,
        "slowRetries": 0,
        "probeDelay": 0,
        "shortLives": 0,
        "wsSince": 0,
        "notBefore": 0,
        "hidden": False,
        "offline": False,
        "timers": {},
    }
