"""The server's side of Run test and `chatapp doctor` (`/connection/test/…`): cheap, rate-limited, with a session.

Every response begins with `<chat-test` and ends with `</chat-test>`, so that clients recognise a proxy's page.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import escape
from typing import Any

from flask import Blueprint, Response, request

from chatapp.accounts.auth import origin_is_allowed
from chatapp.diagnostics import advice, verdicts
from chatapp.diagnostics.verdicts import LARGE_BYTES, STREAM_EVERY_S, STREAM_PARTS
from chatapp.parts import current_parts

MARK, END = "<chat-test", "</chat-test>"
HEADER = "X-Chatapp-Test"  # unusual, hence stripped by strict proxies
MOST_AT_ONCE = 4  # long responses for one person at a time in this process
RETRY_S = 5
DRAIN_CHECK_S = 0.25
LONGEST_NONCE = 64
MOST_HISTORY = 12  # transitions on the page
IDLE_S, LONG_IDLE_S = 20, 75  # of silence; many proxies cut after 60
PART = "." * 63 + "\n"  # as short as an echo: some proxies buffer up to 1.4 kB
LINE = "." * 1023 + "\n"

bp = Blueprint("connection_check", __name__, url_prefix="/connection/test")
_running: Counter[int] = Counter()


def _person_id() -> int:
    sign_in = current_parts().auth.current()
    return sign_in.person.id if sign_in else 0


@bp.app_context_processor
def template_names() -> dict[str, Any]:
    """Return the variable of templates/connection/_check.html."""
    return {"connection_check": connection_check}


def connection_check() -> dict[str, Any]:
    """Return the rules, texts and URLs of Run test, and the person's latest transitions."""
    parts, sign_in = current_parts(), current_parts().auth.current()
    drill = parts.drills.on(_person_id())
    states = parts.store.events.states_of(sign_in.person.uuid, MOST_HISTORY) if sign_in else []
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
        "history": [
            {"at": _iso(event.happened_at), "state": event.state_to, "reason": event.reason} for event in states
        ],
    }


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


@bp.before_request
def guard() -> Any:
    """Refuse a request without a session, in a response that is recognisable as ours."""
    if current_parts().auth.current() is None:
        return _answer('error="signed-out"'), 401
    return None


@bp.get("/mark")
def mark() -> Response:
    """Identify this server, and report how the request arrived."""
    parts = current_parts()
    origin, fails_ms = request.args.get("origin", ""), parts.drills.left_ms(_person_id())
    facts = {
        "nonce": request.args.get("nonce", "")[:LONGEST_NONCE],
        "protocol": request.environ.get("SERVER_PROTOCOL", ""),
        "origin": _yes_or_no(origin_is_allowed(parts.settings, origin, request.host_url)),
        "expected": request.host_url.rstrip("/"),
        "header": _yes_or_no(HEADER in request.headers),
        "drill": drill.fault if (drill := parts.drills.on(_person_id())) else "",
        "drill-ms": str(fails_ms),
        "room": _yes_or_no(not parts.connections.is_full()),
        "offered": _yes_or_no("websocket" in parts.settings.transports),
        "hold": f"{parts.settings.poll_longest_hold:g}",
    }
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

    return _long(lambda: iter(["".join(parts())]))


@bp.get("/stream")
def stream() -> Any:
    """Respond in parts, 0.4 s apart: a proxy that buffers delivers them together, at the end."""

    def parts() -> Iterator[str]:
        yield f"{MARK}>{PART}"
        for _ in range(STREAM_PARTS - 1):
            time.sleep(STREAM_EVERY_S)
            yield PART
        yield END

    return _long(parts)


@bp.get("/large")
def large() -> Any:
    """Respond with half a megabyte."""
    body = LINE * (LARGE_BYTES // len(LINE))
    return _long(lambda: iter([f"{MARK}>{body}{END}"]))


def _long(make: Callable[[], Iterator[str]]) -> Any:
    """Return a long or large response; 429 if the person has too many at once."""
    person = _person_id()
    if _running[person] >= MOST_AT_ONCE:
        return _answer('error="busy"'), 429, {"Retry-After": str(RETRY_S)}

    def counted() -> Iterator[str]:
        _running[person] += 1
        try:
            yield from make()
        finally:
            _running[person] -= 1
            if not _running[person]:
                del _running[person]

    return Response(counted(), content_type="text/plain; charset=utf-8")


def _answer(attributes: str) -> Response:
    return Response(f"{MARK} {attributes}>{END}", content_type="text/plain; charset=utf-8")


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
