"""The page about a person's own connection, and their clients' reports."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from flask import Blueprint, current_app, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.quotas import EVENT_BYTES
from chatapp.config import browser_config
from chatapp.network_memory import experience, network_key
from chatapp.parts import current_parts
from chatapp.store import ConnectionEvent
from chatapp.views import came_from, check_origin, enforce_quota, person_id, refuse, require_session

MOST_EVENTS = 200  # in one report
SERVER_PREFIX = "server-"  # of the types of the server's own events
LONGEST_DATA = 2000  # characters of an event's `data`

bp = Blueprint("connection", __name__)
bp.before_request(check_origin)
bp.before_request(require_session)


@bp.get("/connection")
def show() -> Any:
    """Show the page."""
    return render_template("connection/show.html", came_from=came_from(), **connection_context())


def connection_context() -> dict[str, Any]:
    """Return the template variables of a page with a connection."""
    parts = current_parts()
    sign_in = parts.auth.current()
    any_id = UUID(int=0)
    network = network_key(str(current_app.secret_key), request.remote_addr or "")
    remembered = parts.store.networks.remembered(sign_in.person.id, network) if sign_in else None
    urls = {
        "ws_url": f"{request.script_root}/ws",
        "changes_url": f"{request.script_root}/changes",
        "events_url": url_for("connection.events"),
        "create_url": url_for("conversations.create"),
        "messages_url": url_for("conversations.post", uuid=any_id).replace(str(any_id), "{id}"),
        "sign_in_url": url_for("auth.sign_in"),
        "worker_url": url_for("site.worker"),
        "mark_url": url_for("connection_check.mark"),
    }
    return {
        "epoch": parts.epoch,
        "instance": parts.instance,
        "person_id": sign_in.person.uuid if sign_in else "",
        "config_json": browser_config(parts.settings, urls, network, remembered, parts.drills.left_ms(person_id())),
    }


@bp.post("/connection/events")
def events() -> Any:
    """Store a client's connection events. Idempotent."""
    sign_in = current_parts().auth.current()
    try:
        reported = json.loads(request.form.get("events", "[]"))
        if len(reported) > MOST_EVENTS:
            return refuse("too-many", _("Report at most %(most)s events at once.", most=MOST_EVENTS), 413)
        rows = [_event(item, sign_in.person.uuid if sign_in else "") for item in reported]
        experiences = {
            (row.client, row.number): experience(item["data"], row.happened_at)
            for item, row in zip(reported, rows, strict=True)
            if row.type == "network"
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return refuse("bad-events", _("events must be a JSON list as docs/protocol.md describes it."), 400)
    if any(row.type.strip().lower().startswith(SERVER_PREFIX) for row in rows):
        return refuse("bad-events", _("Events named server-… are the server's own: no client can report them."), 400)
    message = _("These are more reports than one person's pages may send. Keep them and send them again later.")
    enforce_quota(current_parts().quotas.events.consume(*_cost(rows)), message)
    new = current_parts().store.events.add(rows)
    if current_parts().drills.on(person_id()) is None:  # a drill's faults say nothing about a network
        current_parts().store.networks.record(person_id(), [experiences[key] for key in experiences if key in new])
    return "", 204


def _cost(rows: list[ConnectionEvent]) -> tuple[str, int, int]:
    """Return the quota's arguments: person, number of events, bytes."""
    person = rows[0].person if rows else ""
    return person, len(rows), sum(EVENT_BYTES + len(row.data.encode()) for row in rows)


def _event(item: dict[str, Any], person: str) -> ConnectionEvent:
    def text(key: str, length: int) -> str | None:
        value = item.get(key)
        if value is None:
            return None
        str(value).encode()  # raises ValueError for lone surrogates, which cannot be stored
        return str(value)[:length]

    number, happened_at = int(item["number"]), int(item["at"])
    if not (0 <= number < 1 << 31 and 0 <= happened_at < 1 << 53):
        raise ValueError
    return ConnectionEvent(
        client=str(UUID(item["client"])),
        number=number,
        person=person,
        type=text("type", 20) or "",
        transport=text("transport", 10),
        state_from=text("from", 12),
        state_to=text("to", 12),
        reason=text("reason", 40),
        happened_at=happened_at,
        data=json.dumps(item.get("data") or {})[:LONGEST_DATA],
    )
