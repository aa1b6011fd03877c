"""What is done to the connection, and when. Seconds; T0 is the moment of the fault."""

from dataclasses import dataclass
from typing import Literal

Activity = Literal["chat", "outstanding", "awaiting", "idle", "quiet"]
ConversationRef = Literal["session", "start"]

BLIND_S = 65.0
"""How long a cell must look on: the peer is blind for up to 45 s, and then waits up to 5 s."""
PING_S = 25.0
"""The peer's heartbeat: where it decides, the clients' starts are spread over one."""


@dataclass(frozen=True)
class Cell:
    """One fault. `fault` names a function of faults.py; `argument` is passed to it."""

    name: str
    fault: str
    argument: str = ""
    activity: Activity = "chat"
    place: ConversationRef = "session"  # start: the fault is there before the client is
    lasts: float = 0.0  # then everything passes again; 0: it strikes once
    window: float = BLIND_S  # from T0 to the end of the trial
    front: str = ""  # a real proxy before the fault proxy
    server: bool = False  # the servers themselves are harmed, so the cell has its own
    browser: bool = False  # also in Chromium
    browser_only: bool = False
    spread: float = 3.0  # the clients start within so many seconds, so that their heartbeats are out of step
    every: float = 1.0  # seconds between messages, each way
    most: int = 20  # trials at once


def _blackholes() -> list[Cell]:
    """Socket, everything, and one direction; each with a send outstanding, awaiting an answer, visible and idle."""
    kinds = [
        ("socket", "blackhole_sockets", "both", 0.0),
        ("all", "blackhole_all", "both", 20.0),
        ("up", "blackhole_sockets", "up", 0.0),
        ("down", "blackhole_sockets", "down", 0.0),
    ]
    activities: list[Activity] = ["outstanding", "awaiting", "idle"]
    cells = []
    for kind, fault, direction, lasts in kinds:
        for activity in activities:
            most = 10 if activity == "awaiting" else 20  # the server answers 16 at once
            browser = kind == "socket" and activity != "awaiting"
            name = f"blackhole-{kind}-{activity}"
            cells.append(Cell(name, fault, direction, activity, lasts=lasts, browser=browser, most=most, spread=PING_S))
    return cells


CELLS = [
    Cell("upgrade-hung", "upgrade", "hang", place="start", lasts=30, window=75, browser=True),
    Cell("upgrade-refused", "upgrade", "refuse", place="start", lasts=30, window=75),
    Cell("upgrade-stripped", "upgrade", "strip", place="start", lasts=30, window=75),
    Cell("upgrade-mute", "upgrade", "mute", place="start", lasts=30, window=75),
    Cell("upgrade-cut", "upgrade", "cut", place="start", lasts=60, window=80, browser=True),
    Cell("reset", "reset_sockets", window=30),
    Cell("cut-in-frame", "cut_in_frame", window=30),
    *_blackholes(),
    Cell("lost-ack", "lose_acks", activity="outstanding", window=30),
    Cell("websocket-outage", "websocket_outage", lasts=15, window=45),
    Cell("polls-blocked", "polls_blocked", place="start", lasts=40, window=60),
    Cell("poll-blackhole", "poll_blackhole", place="start", window=BLIND_S),
    Cell("idle-cut-10", "nothing", front="haproxy-10", window=90, every=25),
    Cell("idle-cut-60", "nothing", front="nginx-60", window=150, every=65),
    Cell("life-cut-10", "longest_life", "10", place="start", window=90),
    Cell("life-cut-60", "longest_life", "60", place="start", window=150),
    Cell("buffering", "buffering", "4096", place="start", lasts=40, window=60),
    Cell("caching", "caching", place="start", lasts=40, window=60),
    Cell("caching-squid", "nothing", place="start", front="squid", window=45),
    Cell("stripped-headers", "nothing", place="start", front="nginx-headers", window=45),
    Cell("http-1.0", "nothing", place="start", front="nginx-strip", window=45),
    Cell("portal", "http_error", "200", lasts=12, window=45),
    Cell("http-302", "http_error", "302", lasts=12, window=45, browser=True),
    Cell("http-407", "http_error", "407", lasts=12, window=45),
    Cell("http-429", "http_error", "429", lasts=5, window=45),
    Cell("http-503", "http_error", "503", lasts=5, window=45),
    Cell("flapping", "flapping", lasts=100, window=150),
    Cell("kill", "kill", server=True, window=45),
    Cell("restart", "restart", server=True, window=45),
    Cell("drain", "drain", server=True, window=45),
    Cell("offline", "offline", lasts=10, window=45, browser=True),
    Cell("sleep", "sleep", "dead", lasts=20, window=70, spread=PING_S),
    Cell("sleep-alive", "sleep", "alive", lasts=20, window=70),
    Cell("frozen", "frozen", "20", lasts=20, window=70, browser=True, browser_only=True, spread=PING_S),
    Cell("address-change", "blackhole_connections", "both", browser=True, spread=PING_S),
    Cell("no-fault", "nothing", activity="quiet", window=120),
    Cell("random", "random_faults", lasts=250, window=262),
]
