"""Metrics for Prometheus: for an operator's session, or the bearer token of the settings. For others no such page."""

from __future__ import annotations

import logging
import re
from hmac import compare_digest
from typing import Any

from flask import Blueprint, Response, request

from chatapp.concurrency import SingleThread
from chatapp.monitoring.counters import counters
from chatapp.monitoring.present import read_present
from chatapp.parts import VERSION, Parts, current_parts
from chatapp.store import STORAGE_ERRORS, now_ms
from chatapp.views.people import require_operator

PATH = "/metrics"
WRONG = "This is not the token of CHATAPP_METRICS_TOKEN.\n"

log = logging.getLogger("chatapp.monitoring")

bp = Blueprint("metrics", __name__)
_thread = SingleThread()


def hide_metrics() -> Any:
    """Answer 404, unless a token or an operator asks, and 401 for a wrong token. For `before_request`."""
    if PATH not in request.path or re.sub("/+", "/", request.path).rstrip("/") != PATH:  # the router joins slashes
        return None
    parts = current_parts()
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    if parts.settings.metrics_token and kind.lower() == "bearer":
        if compare_digest(given.strip().encode(), parts.settings.metrics_token.encode()):
            return None
        headers = {"WWW-Authenticate": 'Bearer realm="metrics"'}
        return Response(WRONG, 401, headers, content_type="text/plain; charset=utf-8")
    require_operator()
    return None


@bp.get(PATH)
def metrics() -> Response:
    """Answer with all metrics, always read: a kept answer could be older than another worker's last one."""
    text, content_type = _thread.run(_answer, _sources(current_parts()), request.headers.get("Accept", ""))
    return Response(text, content_type=content_type)


def _sources(parts: Parts) -> dict[str, Any]:
    """Return the arguments of `Sources`."""
    store = parts.store
    trouble = "closing" if parts.connections.is_draining else store.trouble()
    known = {"version": VERSION, "trouble": trouble}
    try:
        present = read_present(store, parts.settings.data_dir, now_ms())
        figures = counters(store.measures, present)
        totals = store.measures.totals.of_workers()
    except STORAGE_ERRORS as error:  # Prometheus must learn that the server is not ready
        log.warning("metrics could not be read: %s", error)
        return known
    return {**known, "present": present, "figures": figures, "totals": totals, "rows": present.server.rows}


def _answer(sources: dict[str, Any], accept: str) -> tuple[bytes, str]:
    """Make the text, in a thread: the first time, loading the library takes longer than the event loop may wait."""
    from chatapp.monitoring.exposition import Sources, answer

    return answer(Sources(**sources), accept)
