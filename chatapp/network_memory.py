"""Network memory: on a network with failed WebSockets, a page starts by polling and probes later.

A network's key is a keyed hash of its address prefix, which does not reveal it. The rules are also in
static/js/connection/memory.js; `tests/vectors/memory.json` runs in both. Times are milliseconds.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import MutableMapping
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, TypedDict

HALF_LIFE_MS = 72 * 3_600_000
MOST_FAILURES = 8  # counted, so that a few good days outweigh any number of bad ones
MOST_NETWORKS = 20
LONGEST_GAP_MS = 24 * 3_600_000
DOUBT = 0.5
BLAMED = ("upgrade-refused", "upgrade-hung", "mute", "unstable")  # reasons that count as a failure of WebSocket


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


def network_key(secret: str, address: str) -> str:
    """Return the key of an address's network (/24 of IPv4, /48 of IPv6), or an empty string for no address."""
    try:
        host = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(host, "ipv4_mapped", None)
    host = mapped or host
    prefix = ip_network((host, 24 if host.version == 4 else 48), strict=False)
    return hmac.new(secret.encode(), f"network {prefix}".encode(), "sha256").hexdigest()[:12]


def trust(network: Network | None, now: int) -> float:
    """Return the probability that WebSocket works: 0.8 for an unknown network, 0.44 after two failures."""
    if network is None:
        return 0.8
    share = 2 ** (-max(0, now - network["at"]) / HALF_LIFE_MS)
    worked, failed = network["worked"] * share, network["failed"] * share
    return (worked + 2) / (worked + failed + 2.5)


def is_distrusted(networks: Networks, key: str, now: int) -> bool:
    """Return True if a page should start by polling."""
    return bool(key) and trust(networks.get(key), now) < DOUBT


def note(networks: Networks, key: str, now: int, has_worked: bool | None, kill_gap: int = 0) -> None:
    """Record a page's report: WebSocket worked, failed, or (None) only an idle time-out was seen."""
    if not key:
        return
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
