"""What is known of one connection: the record that is shown, and the events that change it. Times are absolute ms."""

from typing import Literal, NotRequired, TypedDict

from chatapp.connection.delays import Config

BUDGET_MS = 60_000  # six polls beside suspected sockets, and one more every ten seconds

State = Literal["disconnected", "connecting", "connected", "polling", "reconnecting", "error"]


class Event(TypedDict):
    """Something that happened; `tick` means that a timer of the record is due."""

    type: str
    reason: NotRequired[str]
    of: NotRequired[str]  # of a cause: the reason that it explains
    advice_ms: NotRequired[int]  # the server's Retry-After or closing advice
    quick: NotRequired[bool]  # a poll that was cut while it waited: worth one retry at once
    rtt: NotRequired[int]
    jitter: NotRequired[int]
    queued: NotRequired[int]
    level: NotRequired[str]  # of activity: active, visible, idle; of quality: excellent … lost, unknown
    trigger: NotRequired[str]  # of a suspicion: see detector.TRIGGERS
    silent_ms: NotRequired[int]  # for how long nothing had come when a socket was closed
    score: NotRequired[int | None]
    limit: NotRequired[str | None]  # what limits the quality most: delay, jitter, loss, drops


class Suspicion(TypedDict):
    """A suspected socket: why, since when, and when a poll beside it first brought an answer."""

    trigger: str
    at: int
    flowsAt: int | None
    polls: bool  # a poll runs beside it: the budget allowed one


class Foretold(TypedDict):
    """How a suspicion ended: averted, confirmed or both-failed; lead: how long before the end polls flowed (ms)."""

    trigger: str
    outcome: str
    lead: int | None


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
    wsTriedAt: int
    wsSince: int
    penalty: float  # of WebSocket, as it was at penaltyAt
    penaltyAt: int
    blame: int  # to be added to the penalty once the server proves to be there
    blamedAt: int
    dampedUntil: int
    gaps: list[int]  # how long the last sockets had been silent when they were cut
    killGap: int
    budget: int  # for polls beside suspected sockets, as it was at budgetAt (ms; see facts.py)
    budgetAt: int
    suspicion: Suspicion | None
    foretold: Foretold | None
    qualityLevel: str
    qualityLimit: str | None
    notBefore: int
    activity: str  # active, visible, idle, hidden
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
        "wsTriedAt": 0,
        "wsSince": 0,
        "penalty": 0,
        "penaltyAt": 0,
        "blame": 0,
        "blamedAt": 0,
        "dampedUntil": 0,
        "gaps": [],
        "killGap": 0,
        "budget": BUDGET_MS,
        "budgetAt": 0,
        "suspicion": None,
        "foretold": None,
        "qualityLevel": "unknown",
        "qualityLimit": None,
        "notBefore": 0,
        "activity": "active",
        "offline": False,
        "timers": {},
    }
