"""The server's side of Run test and `chatapp doctor` (`/connection/test/…`): cheap, rate-limited, with a session, or
with the ticket of a network test (network_test.py).

Every response begins with `<chat-test` and ends with `</chat-test>`, so that clients recognise a proxy's page.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html import escape
from math import ceil
from typing import Any

from flask import Blueprint, Response, g, request, url_for

from chatapp.accounts.administration import origin_of
from chatapp.accounts.auth import origin_is_allowed
from chatapp.accounts.tickets import Ticket
from chatapp.diagnostics import advice, verdicts
from chatapp.diagnostics.verdicts import END, LARGE_BYTES, MARK, STREAM_EVERY_S, STREAM_PARTS, TEST_HEADER
from chatapp.parts import current_parts
from chatapp.views import enforce_pages, signed_in

MOST_AT_ONCE = 4  # long responses for one person, or ticket, at a time in this process
MOST_OF_TICKETS = 16  # of all tickets
NOBODY = 0  # the number of a ticket's holder
RETRY_S = 5
DRAIN_CHECK_S = 0.25
LONGEST_NONCE = 64
MOST_HISTORY = 12  # transitions on the page
IDLE_S, LONG_IDLE_S = 20, 75  # of silence; many proxies cut after 60
PART = "." * 63 + "\n"  # as short as an echo: some proxies buffer up to 1.4 kB
LINE = "." * 1023 + "\n"

bp = Blueprint("connection_check", __name__, url_prefix="/connection/test")
_running: Counter[int | str] = Counter()  # by person, or id of a ticket


def connection_check() -> dict[str, Any]:
    """Return the variable of _check.html: `probe_context`, and the person's latest transitions."""
    person = signed_in().person
    history = current_parts().store.events.history_of(person.uuid, MOST_HISTORY)
    shown = [{"at": _iso(event.happened_at), "state": event.state_to, "reason": event.reason} for event in history]
    return {**probe_context(person.id), "history": shown}


def probe_context(person: int = NOBODY) -> dict[str, Any]:
    """Return rules, texts and URLs of Run test."""
    parts = current_parts()
    drill = parts.drills.on(person)
    return {
        "rules": verdicts.rules_json(),
        "probes": verdicts.PROBES,
        "words": {
            "probes": advice.PROBE_WORDS,
            "outcomes": advice.OUTCOME_WORDS,
            "verdicts": advice.VERDICT_WORDS,
            "fixes": advice.FIX_WORDS,
        },
        "settings": advice.SETTINGS,
        "proxy_names": advice.PROXY_NAMES,
        "drill": {"words": advice.DRILL_WORDS[drill.fault], "until": _iso(drill.ends_at)} if drill else None,
        "base": f"{request.script_root}{bp.url_prefix}",
        "ws": f"{request.script_root}/ws",
        "hold_s": parts.settings.poll_longest_hold,
        "idle_s": IDLE_S,
        "long_s": LONG_IDLE_S,
        "inside": f"{origin_of(parts.settings)}{url_for('network_test.show')}",
        "history": None,
    }


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


@bp.before_request
def guard() -> Any:
    """Refuse a request without a session or ticket, in a response that is recognisable as ours."""
    parts = current_parts()
    ticket = parts.tickets.find(request.environ)
    session = None if ticket else parts.auth.current()
    g.tester = ticket or (session.person.id if session else None)
    if session is not None:
        enforce_pages(session.person.id)
    elif ticket is None:
        return _answer('error="signed-out"'), 401
    elif wait_s := parts.tickets.take(ticket, str(request.endpoint)):
        return _answer('error="busy"'), 429, {"Retry-After": str(ceil(wait_s))}
    return None


@bp.get("/mark")
def mark() -> Response:
    """Identify this server, and report how the request arrived."""
    parts, person = current_parts(), NOBODY if isinstance(g.tester, Ticket) else g.tester
    origin, fails_ms = request.args.get("origin", ""), parts.drills.left_ms(person)
    is_limited = parts.limits.connects.spent_s(person) > 0 or not parts.websockets.has_room(person)
    facts = {
        "nonce": request.args.get("nonce", "")[:LONGEST_NONCE],
        "protocol": request.environ.get("SERVER_PROTOCOL", ""),
        "origin": _yes_or_no(origin_is_allowed(parts.settings, origin, request.host_url)),
        "expected": request.host_url.rstrip("/"),
        "header": _yes_or_no(TEST_HEADER in request.headers),
        "drill": drill.fault if (drill := parts.drills.on(person)) else "",
        "drill-ms": str(fails_ms),
        "room": _yes_or_no(not parts.connections.is_full()),
        "limited": _yes_or_no(is_limited),
        "offered": _yes_or_no("websocket" in parts.settings.transports),
        "hold": f"{parts.settings.poll_longest_hold:g}",
    }
    if person and "ticket" in request.args:  # for the letter to the network's admin
        facts["ticket"] = parts.tickets.make(parts.network_of(request.remote_addr or ""))
    return _answer(" ".join(f'{name}="{escape(value)}"' for name, value in facts.items()))


@bp.get("/hold")
def hold() -> Any:
    """Respond after `seconds` (at most the longest hold of a poll)."""
    app = current_parts()
    longest = app.settings.poll_longest_hold
    wanted = request.args.get("seconds", longest, type=float)
    until = time.monotonic() + (min(wanted, longest) if wanted > 0 else 0)

    def parts() -> Iterator[str]:
        while (left := until - time.monotonic()) > 0 and not app.connections.is_draining:
            time.sleep(min(left, DRAIN_CHECK_S))
        yield f"{MARK}>{END}"

    return _long(parts())


@bp.get("/stream")
def stream() -> Any:
    """Respond in parts, 0.4 s apart: a proxy that buffers delivers them together, at the end."""

    def parts() -> Iterator[str]:
        yield f"{MARK}>{PART}"
        for _ in range(STREAM_PARTS - 1):
            time.sleep(STREAM_EVERY_S)
            yield PART
        yield END

    return _long(parts())


@bp.get("/large")
def large() -> Any:
    """Respond with half a megabyte."""
    body = LINE * (LARGE_BYTES // len(LINE))
    return _long([f"{MARK}>{body}{END}"])


def _long(parts: Iterable[str]) -> Any:
    """Return a long or large response; 429 if the person, or the ticket, has too many at once."""
    tester: int | str = g.tester.id if isinstance(g.tester, Ticket) else g.tester
    of_tickets = sum(number for one, number in _running.items() if isinstance(one, str))
    if _running[tester] >= MOST_AT_ONCE or (isinstance(tester, str) and of_tickets >= MOST_OF_TICKETS):
        return _answer('error="busy"'), 429, {"Retry-After": str(RETRY_S)}

    def counted() -> Iterator[str]:
        _running[tester] += 1
        try:
            yield from parts
        finally:
            _running[tester] -= 1
            if not _running[tester]:
                del _running[tester]

    return Response(counted(), content_type="text/plain; charset=utf-8")


def _answer(attributes: str) -> Response:
    return Response(f"{MARK} {attributes}>{END}", content_type="text/plain; charset=utf-8")


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
