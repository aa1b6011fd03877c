"""What a test of the connection asks the server (`/connection/test/…`): cheap, bounded, for people who are signed in.

Every answer begins with the mark `<chat-test` and ends with `</chat-test>`, so that a foreign page is recognised.
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
HEADER = "X-Chatapp-Test"  # an unusual header: strict proxies strip it
MOST_AT_ONCE = 4  # long answers that one person's tests may have under way in this process
RETRY_S = 5
LOOK_EVERY_S = 0.25  # how late a hold notices that the server closes
LONGEST_NONCE = 64
MOST_HISTORY = 12  # changes of state that the page shows
IDLE_S, LONG_IDLE_S = 20, 75  # of silence; the longer one outlasts the minute after which many proxies cut
PART = "." * 63 + "\n"  # as short as an echo: some proxies pass on 1.4 kB at a time
LINE = "." * 1023 + "\n"

bp = Blueprint("connection_test", __name__, url_prefix="/connection/test")
_running: Counter[int] = Counter()


def _me() -> int:
    sign_in = current_parts().auth.current()
    return sign_in.person.id if sign_in else 0


@bp.app_context_processor
def parts_of_the_page() -> dict[str, Any]:
    """What templates/connection/_check.html shows."""
    return {"connection_check": connection_check}


def connection_check() -> dict[str, Any]:
    """Rules, words and addresses of Run test, and what the person's connections went through lately."""
    parts, sign_in = current_parts(), current_parts().auth.current()
    drill = parts.drills.on(_me())
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
    """Everything here needs a session; who is signed out learns at least that it is our server that says so."""
    if current_parts().auth.current() is None:
        return _answer('error="signed-out"'), 401
    return None


@bp.get("/mark")
def mark() -> Response:
    """Whose answer this is, and what of the request arrived."""
    parts = current_parts()
    origin, fails_ms = request.args.get("origin", ""), parts.drills.left_ms(_me())
    facts = {
        "nonce": request.args.get("nonce", "")[:LONGEST_NONCE],
        "protocol": request.environ.get("SERVER_PROTOCOL", ""),
        "origin": _word(origin_is_allowed(parts.settings, origin, request.host_url)),
        "expected": request.host_url.rstrip("/"),
        "header": _word(HEADER in request.headers),
        "drill": drill.fault if (drill := parts.drills.on(_me())) else "",
        "drill-ms": str(fails_ms),
        "room": _word(not parts.connections.is_full()),
        "offered": _word("websocket" in parts.settings.transports),
        "hold": f"{parts.settings.poll_longest_hold:g}",
    }
    return _answer(" ".join(f'{name}="{escape(value)}"' for name, value in facts.items()))


@bp.get("/hold")
def hold() -> Any:
    """An answer that comes only after `seconds` (at most the longest hold of a poll)."""
    here = current_parts()
    longest = here.settings.poll_longest_hold
    wanted = request.args.get("seconds", longest, type=float)
    until = time.monotonic() + (min(wanted, longest) if wanted > 0 else 0)

    def parts() -> Iterator[str]:
        while (left := until - time.monotonic()) > 0 and not here.connections.is_draining:
            time.sleep(min(left, LOOK_EVERY_S))
        yield f"{MARK}>{END}"

    return _long(lambda: iter(["".join(parts())]))


@bp.get("/stream")
def stream() -> Any:
    """An answer in parts, 0.4 s apart: what is buffered on the way arrives at once, at the end."""

    def parts() -> Iterator[str]:
        yield f"{MARK}>{PART}"
        for _ in range(STREAM_PARTS - 1):
            time.sleep(STREAM_EVERY_S)
            yield PART
        yield END

    return _long(parts)


@bp.get("/large")
def large() -> Any:
    """Half a megabyte, closed by its end mark."""
    body = LINE * (LARGE_BYTES // len(LINE))
    return _long(lambda: iter([f"{MARK}>{body}{END}"]))


def _long(make: Callable[[], Iterator[str]]) -> Any:
    """An answer that takes long or weighs much: few of them at once for each person."""
    person = _me()
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


def _word(is_so: bool) -> str:
    return "yes" if is_so else "no"
