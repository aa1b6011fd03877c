"""The connection's delays and its time-out: pure functions of their numbers, as in static/js/connection/delays.js.

Milliseconds throughout. Chance is a function that returns a value in [0, 1), so that tests and replays choose it.
"""

import math
from collections.abc import Callable, Mapping
from typing import NotRequired, TypedDict

Random = Callable[[], float]


class Config(TypedDict):
    """The part of the page's chat-config that the machine reads (milliseconds, counts, a factor)."""

    transports: list[str]
    reconnect_ms: int
    max_attempts: int
    poll_ms: int
    poll_retries: int
    poll_backoff: float
    latency_ms: NotRequired[int]
    is_doubtful: NotRequired[bool]  # WebSocket failed on this network before: begin by polling


def head_start(latency_ms: float) -> int:
    """How long a WebSocket runs alone before a poll joins the race."""
    return math.floor(min(700, max(300, 2 * latency_ms + 250)))


def retry_delay(attempts: int, config: Config, random: Random) -> int:
    """Before attempt `attempts + 1`: 0-0.3 s, then 0.5, 1, 2, 4 … up to `reconnect_ms`, less a quarter at random."""
    if attempts == 0:
        return math.floor(300 * random())
    ceiling = min(config["reconnect_ms"], 500 * math.pow(2, min(attempts - 1, 20)))
    return math.floor(ceiling * (1 - 0.25 * random()))


def slow_retry_delay(times: int, activity: str, config: Config, random: Random) -> int:
    """In `error`: twice `reconnect_ms`; where hidden six times, growing to twelve times; less a quarter at random."""
    ceiling = config["reconnect_ms"] * (min(12.0, 6 * math.pow(1.5, min(times, 20))) if activity == "hidden" else 2)
    return math.floor(ceiling * (1 - 0.25 * random()))


# From the beginning of one WebSocket probe to that of the next, while polling: at most, by what the person does.
PROBE_CAP_MS = {"active": 10_000, "visible": 60_000, "idle": 300_000, "hidden": 900_000}


def probe_delay(previous: int, activity: str, random: Random) -> int:
    """Before the next WebSocket probe while polling: 1-3 s first, then decorrelated jitter under a cap."""
    if previous == 0:
        return math.floor(1000 + 2000 * random())
    return math.floor(min(PROBE_CAP_MS[activity], 1000 + random() * (3 * previous - 1000)))


def poll_retry_delay(failures: int, config: Config, random: Random) -> int:
    """Before a failed poll's retry: `poll_ms`, times `poll_backoff` for each further failure, 5 % either way."""
    if failures == 0:
        return math.floor(300 * random())
    base = config["poll_ms"] * math.pow(config["poll_backoff"], min(failures - 1, 20))
    return math.floor(base * (0.95 + 0.1 * random()))


# Damping of sockets that keep breaking: each unclean end adds to a penalty that halves every five minutes.
HALF_LIFE_MS = 300_000
SUPPRESS, REUSE, CEILING = 2500, 750, 6000
YOUNG_MS, SETTLED_MS = 10_000, 300_000


def penalty_of(lived: float, is_pattern: bool) -> int:
    """What an unclean end costs a socket that lived so long; a proxy's known idle cut is hardly instability."""
    if is_pattern or lived >= SETTLED_MS:
        return 250
    return 1500 if lived < YOUNG_MS else 1000


def decayed(penalty: float, age: float) -> float:
    """A penalty after so many ms."""
    return float(penalty * math.pow(2, -max(0, age) / HALF_LIFE_MS))


def damped_for(penalty: float) -> int:
    """How long WebSocket is left alone with this penalty: until it has decayed to `REUSE`; 0: not at all."""
    return 0 if penalty < SUPPRESS else math.floor(HALF_LIFE_MS * math.log2(penalty / REUSE))


def proof_ms(penalty: float) -> int:
    """How long a socket must live beyond its echoes before it carries: longer where sockets keep dying."""
    return 0 if penalty < REUSE else math.floor(min(4000, penalty))


def rtt_estimate(previous: Mapping[str, float] | None, sample: float) -> dict[str, float]:
    """Smoothed round trip, its deviation and the time-out of it (RFC 6298, clamped to 1-6 s)."""
    if previous is None:
        srtt, rttvar = sample, sample / 2
    else:
        rttvar = 0.75 * previous["rttvar"] + 0.25 * abs(previous["srtt"] - sample)
        srtt = 0.875 * previous["srtt"] + 0.125 * sample
    return {"srtt": srtt, "rttvar": rttvar, "rto": min(6000, max(1000, srtt + max(100, 4 * rttvar)))}
