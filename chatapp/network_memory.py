"""Network memory: on a network with failed WebSockets, a page starts by polling and probes later.

A network's key is a keyed hash of its address prefix, which does not reveal it. static/js/connection/memory.js has the
same `note` and decides by it; `tests/vectors/memory.json` runs in both. Times are milliseconds.
"""

import hmac
import re
from collections.abc import MutableMapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, TypedDict

HALF_LIFE_MS = 72 * 3_600_000
MOST_FAILURES = 8  # counted, so that a few good days outweigh any number of bad ones
MOST_NETWORKS = 20
SITE_MS = 7 * 24 * 3_600_000  # after which one's experience says nothing to others
LEAST_WITNESSES = 2  # people
LONGEST_GAP_MS = 24 * 3_600_000


class Network(TypedDict):
    """Decaying counts of WebSocket's successes and failures, their time, and a proxy's idle time-out (0: none)."""

    worked: float
    failed: float
    at: int
    killGap: int


Networks = MutableMapping[str, Network]


class Experience(NamedTuple):
    """One page's report on a network: the arguments of `note`."""

    network: str
    at: int
    has_worked: bool | None
    kill_gap: int


def experience(data: Any, at: int) -> Experience:
    """Parse the data of a `network` event. Raises ValueError, TypeError or KeyError if invalid."""
    key, has_worked, kill_gap = data["network"], data["worked"], data["killGap"]
    if not re.fullmatch("[0-9a-f]{12}", key) or not (has_worked is None or isinstance(has_worked, bool)):
        raise ValueError
    if isinstance(kill_gap, bool) or not 0 <= kill_gap <= LONGEST_GAP_MS:
        raise ValueError
    return Experience(key, at, has_worked, round(kill_gap))


def common_lesson(networks: Sequence[Network], now: int) -> Network | None:
    """Return the common lesson of several people's records of one network, or None.

    Two people must have seen WebSocket fail there, and more than have seen it work: one liar changes nothing.
    """
    recent = [one for one in networks if now - one["at"] < SITE_MS]
    failing = [one for one in recent if one["failed"] > one["worked"]]
    working = [one for one in recent if one["worked"] > one["failed"]]
    if len(failing) < LEAST_WITNESSES or len(failing) <= len(working):
        return None
    gaps = sorted(one["killGap"] for one in failing)
    return {"worked": 0.0, "failed": float(LEAST_WITNESSES), "at": now, "killGap": gaps[len(gaps) // 2]}


def network_key(secret: str, address: str) -> str:
    """Return the key of an address's network (/24 of IPv4, /48 of IPv6), or an empty string for no address."""
    try:
        host = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    host = getattr(host, "ipv4_mapped", None) or host
    prefix = ip_network((host, 24 if host.version == 4 else 48), strict=False)
    return hmac.new(secret.encode(), f"network {prefix}".encode(), "sha256").hexdigest()[:12]


def note(networks: Networks, key: str, now: int, has_worked: bool | None, kill_gap: int = 0) -> None:
    """Record a page's report: WebSocket worked, failed, or (None) only an idle time-out was seen."""
    before = networks.get(key) or {"worked": 0.0, "failed": 0.0, "at": now, "killGap": 0}
    share = 2 ** (-max(0, now - before["at"]) / HALF_LIFE_MS)
    worked, failed = before["worked"] * share, before["failed"] * share
    if has_worked:
        worked, failed = worked + 1, failed / 2
    elif has_worked is False:
        failed = min(MOST_FAILURES, failed + 1)
    networks[key] = {"worked": worked, "failed": failed, "at": now, "killGap": kill_gap or before["killGap"]}
    while len(networks) > MOST_NETWORKS:
        del networks[min(networks, key=lambda name: networks[name]["at"])]
