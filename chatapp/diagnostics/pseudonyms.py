"""Events, figures and settings without anything personal, for the diagnostics bundle.

Clients choose much of what they report. So nothing passes because it looks harmless: numbers do, words of known lists,
and identities under a pseudonym. All else is "other", or left out.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from chatapp.accounts.devices import BROWSERS, SYSTEMS
from chatapp.config import DRILL_FAULTS, PREFIX, TRANSPORTS, TRIGGERS, RateLimit, SettingRow, Settings
from chatapp.connection_states import STATES
from chatapp.monitoring.causes import OTHER, REASONS
from chatapp.monitoring.timeline import LIMITS
from chatapp.store import ConnectionEvent, Drill

DEEPEST, MOST_ITEMS = 4, 100  # of an event's data
SERVERS = "server-"  # types of the server's own events

LEVELS = {"excellent", "good", "fair", "poor", "lost", "unknown", "active", "visible", "idle", "hidden"}
OUTCOMES = {"ready", "failed", "cancelled", "averted", "confirmed", "both-failed"}
WORDS = {*REASONS, "error", *STATES, *TRANSPORTS, *TRIGGERS, *DRILL_FAULTS, *LIMITS, *LEVELS, *OUTCOMES, OTHER}
TYPES = {
    *("state", "cause", "way", "suspect", "predict", "idle-kill", "quality", "renewed", "network", "attempt"),
    *("minute", "alive", "end", "error"),
}
KEYS = {
    *("rtt", "attempts", "outcome", "ms", "probe", "before", "n", "sent", "repeated", "received", "missing"),
    *("worked", "killGap", "network", "trigger", "lead", "score", "level", "limit"),
    *("address", "worker", "dead", "code", "seconds", "in", "out", "feeds", *TRANSPORTS),
}
IDENTITIES = {"network": "network", "address": "address", "worker": "worker", "dead": "worker"}  # key of data → kind
NUMBER = re.compile(r"-?\d{1,15}", re.ASCII)

# Texts of settings that are shown; numbers, limits and switches are, too. Every other text is only said to be set.
SHOWN_SETTINGS = {"URL_PREFIX", "TRANSPORTS", "PREDICT", "ASSISTANT", "DRILL_SCHEDULE", "LOG_FORMAT"}
PUBLIC_URL = "PUBLIC_URL"


class Pseudonyms:
    """Names for identities: the same for the same within one bundle, and of no use outside it: its key is not kept."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, kind: str, value: object) -> str:
        """Return the pseudonym of an identity of a kind (person, page, network, address, worker, drill)."""
        if not value:
            return ""
        digest = hashlib.blake2b(f"{kind} {value}".encode("utf-8", "replace"), key=self._key, digest_size=6).hexdigest()
        return digest if kind == "network" else f"{kind}-{digest}"

    def event(self, event: ConnectionEvent) -> dict[str, Any]:
        """Return an event's row."""
        is_ours = event.type.startswith(SERVERS)
        return {
            "at": event.at,
            "happened_at": event.happened_at,
            "type": event.type if is_ours or event.type in TYPES else OTHER,
            "transport": word(event.transport),
            "from": word(event.state_from),
            "to": word(event.state_to),
            "reason": word(event.reason),
            "client": self.of("page", event.client),
            "number": event.number,
            "page": self.of("page", event.page),
            "person": self.of("person", event.person),
            "network": self.of("network", event.network),
            "agent": agent(event.agent),
            "data": self.data(event.facts),
        }

    def data(self, value: Any, key: str = "", depth: int = 0) -> Any:
        """Return the known part of an event's data."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self.of(IDENTITIES[key], value) if key in IDENTITIES else word(value)
        if depth >= DEEPEST:
            return OTHER
        if isinstance(value, list):
            return [self.data(one, key, depth + 1) for one in value[:MOST_ITEMS]]
        known = {name: one for name, one in value.items() if name in KEYS or NUMBER.fullmatch(name)}
        return {name: self.data(one, name, depth + 1) for name, one in list(known.items())[:MOST_ITEMS]}

    def drill(self, drill: Drill) -> dict[str, Any]:
        """Return a drill's row."""
        who = {"drill": self.of("drill", drill.uuid), "person": self.of("person", drill.person)}
        how = {"fault": drill.fault, "amount_s": drill.amount_s}
        return {**who, **how, "starts_at": drill.starts_at, "ends_at": drill.ends_at}

    def worker(self, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a worker's row: its numbers."""
        return {"worker": self.of("worker", name), **numbers(row)}


def word(text: str | None) -> str | None:
    """Return a word of the known lists, or "other"."""
    return text if text is None or text == "" or text in WORDS else OTHER


def agent(text: str) -> str:
    """Return browser and system, if both are known."""
    known = {name for name, _pattern in (*BROWSERS, *SYSTEMS)}
    return text if not text or all(part in known for part in text.split(" on ")) else OTHER


def figures(value: Any) -> Any:
    """Return counts under known words; those of other words are added up under "other"."""
    if isinstance(value, list):
        return [figures(one) for one in value]
    if not isinstance(value, dict):
        return value if isinstance(value, int | float) else 0
    found: dict[str, Any] = {}
    for key, one in value.items():
        name = " ".join(part if part in WORDS or NUMBER.fullmatch(part) else OTHER for part in key.split(" ")[:2])
        cleaned, before = figures(one), found.get(name, 0)
        is_sum = isinstance(cleaned, int | float) and isinstance(before, int | float)
        found[name] = before + cleaned if is_sum else cleaned
    return found


def numbers(value: Any) -> Any:
    """Return the numbers of the server's own figures, by their names."""
    if isinstance(value, Mapping):
        return {key: numbers(one) for key, one in value.items() if isinstance(one, Mapping | int | float)}
    return value


def setting(row: SettingRow, settings: Settings) -> dict[str, str]:
    """Return a setting: a number, a limit, a switch or known words as they are, of others only that they are set."""
    name = row.name.removeprefix(PREFIX)
    value = getattr(settings, name.lower())
    if name == PUBLIC_URL and value:  # its host is on every page's address; a name and a password are not
        parts = urlsplit(value)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    elif name in SHOWN_SETTINGS or isinstance(value, bool | int | float | RateLimit) or not value:
        shown = row.value
    else:
        shown = "(set)" if row.source != "default" else "(default)"
    return {"name": row.name, "value": shown, "unit": row.unit, "source": row.source}
