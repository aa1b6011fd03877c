"""The causes behind the reasons of a connection, in an operator's words: the responsible side, and the remedy.

The reasons are those of `static/js/connection/`; templates/connection/_words.html has them for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


def N_(text: str) -> str:
    """Mark a text for extraction; the page translates it."""
    return text


Whose = Literal["network", "server", "device", "person"]


@dataclass(frozen=True)
class Cause:
    """`there`: a sentence that follows "in network a1b2". `to_do`: the remedy. `is_sure`: found out, not guessed."""

    code: str
    whose: Whose
    there: str
    to_do: str
    is_sure: bool = True


UPGRADE = N_(
    "Its proxy or firewall must pass the upgrade on: HTTP/1.1, with the headers Upgrade and Connection. Run test, on "
    "the page of the connection, writes the letter to the network's admin."
)
INSPECTION = N_(
    "Exempt this host from traffic inspection (virus scanner, TLS inspection, VPN): it lets WebSocket open and then "
    "holds it up."
)
TIMEOUT = N_("Its proxy must not cut quiet connections: 75 seconds or more for idle and read timeouts.")
REACH = N_("Check the line, the name and the port, and that no firewall is in between.")

CAUSES = {
    "upgrade-refused": Cause("upgrade-refused", "network", N_("the upgrade to WebSocket is refused"), UPGRADE),
    "upgrade-failed": Cause("upgrade-failed", "network", N_("WebSocket does not open"), UPGRADE, is_sure=False),
    "upgrade-hung": Cause("upgrade-hung", "network", N_("the upgrade to WebSocket is never answered"), UPGRADE),
    "slow": Cause("slow", "network", N_("it takes longer than 10 s"), REACH),
    "mute": Cause("mute", "network", N_("WebSocket opens, and then nothing passes"), INSPECTION),
    "socket-silent": Cause("socket-silent", "network", N_("live connections fall silent"), INSPECTION, is_sure=False),
    "socket-closed": Cause("socket-closed", "network", N_("live connections are cut"), TIMEOUT, is_sure=False),
    "idle-cut": Cause("idle-cut", "network", N_("quiet connections are cut"), TIMEOUT),
    "unstable": Cause("unstable", "network", N_("live connections keep breaking"), TIMEOUT, is_sure=False),
    "hold-cut": Cause("hold-cut", "network", N_("requests that wait are cut"), TIMEOUT),
    "buffering": Cause(
        "buffering",
        "network",
        N_("answers are collected on the way and passed on late"),
        N_("Its proxy must not buffer answers."),
    ),
    "rewriting": Cause(
        "rewriting",
        "network",
        N_("pages are rewritten on the way"),
        N_("Exempt this host from whatever rewrites pages."),
    ),
    "redirected": Cause(
        "redirected",
        "network",
        N_("something before the server asks for a sign-in"),
        N_("Sign in there, or have requests to this host pass without it."),
    ),
    "foreign-page": Cause(
        "foreign-page",
        "network",
        N_("something answers instead of the server"),
        N_("Have requests to this host pass without a filter."),
    ),
    "network-filter": Cause(
        "network-filter",
        "network",
        N_("a filter refuses what is sent"),
        N_("Have the filter allow this host: GET and POST."),
    ),
    "server-unreachable": Cause(
        "server-unreachable", "network", N_("the server cannot be reached"), REACH, is_sure=False
    ),
    "origin": Cause(
        "origin",
        "server",
        N_("a proxy changes the server's address, so the server refuses WebSockets"),
        N_("Name the address in CHATAPP_PUBLIC_URL, or have the proxy pass the Host header on as the browser sent it."),
    ),
    "server-full": Cause(
        "server-full",
        "server",
        N_("the server has no room for more connections"),
        N_("Raise the limit of open files of the service, or add a host."),
    ),
    "server-storage": Cause(
        "server-storage",
        "server",
        N_("the server cannot write to its disk"),
        N_("Make room on the disk of CHATAPP_DATA_DIR, or end the program that locks the database."),
    ),
    "server-error": Cause(
        "server-error",
        "server",
        N_("the server makes mistakes"),
        N_("Its log says which; a bundle of diagnostics shows them."),
    ),
    "server-restart": Cause(
        "server-restart", "server", N_("the server restarts"), N_("Nothing: everybody comes back by themselves.")
    ),
    "websocket-off": Cause(
        "websocket-off", "server", N_("WebSocket is switched off"), N_("Nothing, if that is meant: CHATAPP_TRANSPORTS.")
    ),
    "rate-limited": Cause(
        "rate-limited",
        "person",
        N_("more is asked than one person may"),
        N_("See who: their pages wait, and lose nothing. The limits: CHATAPP_RATE_LIMIT_…, MAX_SOCKETS_PER_USER."),
    ),
    "drill": Cause("drill", "server", N_("a drill is running"), N_("Nothing: it ends by itself.")),
    "offline": Cause("offline", "device", N_("devices are offline"), N_("Nothing: they come back by themselves.")),
}
ROOM = N_("Make room on the disk of CHATAPP_DATA_DIR.")
LOCKED = N_("End the program that locks the database, or see the disk's errors in the system's log.")
# Troubles of the server (present.ServerState): found by itself, never said by a page.
TROUBLES = {
    "disk-full": Cause("disk-full", "server", N_("the disk is full"), ROOM),
    "disk": Cause("disk", "server", N_("the disk is nearly full"), ROOM),
    "server-storage": Cause("server-storage", "server", N_("the database cannot be written"), LOCKED),
    "slow-disk": Cause(
        "slow-disk",
        "server",
        N_("the database is slow"),
        N_("See what else writes to this disk: a backup, a virus scanner, another service."),
    ),
    "provider": Cause(
        "provider",
        "server",
        N_("the assistant's provider fails"),
        N_("See the error below an answer and the server's log: CHATAPP_OPENAI_BASE_URL, key, model, limits."),
    ),
    "no-worker": Cause(
        "no-worker", "server", N_("no worker says anything"), N_("Reload in a moment; else see the server's log.")
    ),
    "log": Cause(
        "log",
        "server",
        N_("nobody rolls up the events"),
        N_("See the server's log, and the room on the disk of CHATAPP_DATA_DIR."),
    ),
}
UNKNOWN = Cause(
    "unknown", "network", N_("nobody knows why yet"), N_("Wait a minute: pages find out by themselves."), is_sure=False
)


OTHER = "other"
# All that the product itself reports. A client may report anything: figures keep these words only.
REASONS = frozenset({*CAUSES, "unknown", "refused", "signed-out", "session-expired", "session-revoked"})


def known(reason: str | None) -> str:
    """Return a reason as figures count it."""
    return reason if reason in REASONS else OTHER if reason else "unknown"


def cause_of(reason: str | None) -> Cause:
    """Return the cause of a reason."""
    return CAUSES.get(reason or "", UNKNOWN)


def trouble_or_cause(code: str) -> Cause:
    """Return the server's trouble of this code, or else the cause."""
    return TROUBLES.get(code) or cause_of(code)


def remedy(trouble: str) -> str:
    """Return the remedy for a trouble of the server, to be translated."""
    return TROUBLES[trouble].to_do
