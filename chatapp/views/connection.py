"""The page about a person's own connection, and their clients' reports."""

import json
import re
from typing import Any, NamedTuple
from uuid import UUID

from flask import Blueprint, render_template, request, url_for
from flask_babel import force_locale
from flask_babel import gettext as _

from chatapp.accounts.devices import device_words
from chatapp.accounts.limits import EVENT_BYTES
from chatapp.config import browser_config
from chatapp.monitoring.errors import browser_error
from chatapp.network_memory import experience
from chatapp.parts import current_parts
from chatapp.store import ConnectionEvent, Person, now_ms
from chatapp.transports import protocol
from chatapp.views import came_from, check_origin, enforce_quota, refuse, require_session, signed_in
from chatapp.views.connection_check import connection_check

MOST_EVENTS = 200  # in one report
SERVER_PREFIX = "server-"  # of the types of the server's own events
DELIVERED_MS = 30_000  # within which a message should arrive
SAME_TIME_MS = 1000  # a smaller difference of clocks is the way's
LONGEST_DATA = 2000  # characters of an event's `data`

bp = Blueprint("connection", __name__)
bp.before_request(check_origin)
bp.before_request(require_session)


@bp.get("/connection")
def show() -> Any:
    """Show the page."""
    context = connection_context()
    return render_template("connection/show.html", came_from=came_from(), check=connection_check(), **context)


def connection_context() -> dict[str, Any]:
    """Return the template variables of a page with a connection."""
    parts, session = current_parts(), signed_in()
    person = session.person
    any_id = UUID(int=0)
    network = parts.network_of(request.remote_addr or "")
    remembered = parts.store.networks.remembered(person.id, network)
    if remembered is None and parts.knows_addresses(request.remote_addr or ""):
        remembered = parts.store.networks.of_site(network)
    access_ms, drill_ms = max(0, session.access_until - now_ms()), parts.drills.left_ms(person.id)
    urls = {
        "ws_url": f"{request.script_root}/ws",
        "changes_url": f"{request.script_root}/changes",
        "events_url": url_for("connection.events"),
        "create_url": url_for("conversations.create"),
        "messages_url": url_for("conversations.post", uuid=any_id).replace(str(any_id), "{id}"),
        "sign_in_url": url_for("auth.sign_in"),
        "renew_url": url_for("auth.renew"),
        "worker_url": url_for("worker"),
        "mark_url": url_for("connection_check.mark"),
    }
    return {
        "epoch": parts.epoch,
        "instance": parts.instance,
        "person_id": person.uuid,
        "config_json": browser_config(
            parts.settings, urls, protocol.REVISION, network, remembered, access_ms, drill_ms
        ),
    }


@bp.post("/connection/events")
def events() -> Any:
    """Store a client's connection events. Idempotent."""
    parts, person = current_parts(), signed_in().person
    try:
        reported = json.loads(request.form.get("events", "[]"))
        if len(reported) > MOST_EVENTS:
            return refuse("too-many", _("Report at most %(most)s events at once.", most=MOST_EVENTS), 413)
        where = Where(person, parts.network_of(request.remote_addr or ""), _agent(), _offset())
        rows = [_event(item, where) for item in reported]
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
    size = sum(EVENT_BYTES + len(row.data.encode()) for row in rows)
    enforce_quota(parts.limits.events.consume(person.uuid, len(rows), size), message)
    new = parts.store.events.add(rows)
    for row in rows:
        if row.type == "error" and (row.client, row.number) in new:
            parts.errors.note_browser(row.facts)
    if parts.drills.on(person.id) is None:  # a drill's faults say nothing about a network
        learned = [experiences[key] for key in experiences if key in new]
        if parts.knows_addresses(request.remote_addr or "") and any(
            one.has_worked and one.network == where.network for one in learned
        ):
            parts.mending.hear(where.network)
        parts.store.networks.record(person.id, learned)
    return "", 204


class Where(NamedTuple):
    """The reporting person, their network and browser, and the lead of the server's clock over theirs (ms)."""

    person: Person
    network: str
    agent: str
    offset: int


def _offset() -> int:
    """Return by how much the server's clock is ahead of the client's; 0 if that is not told or within a second."""
    told = request.form.get("now", "")
    ahead = now_ms() - int(told) if re.fullmatch(r"\d{1,15}", told, re.ASCII) else 0
    return ahead if abs(ahead) > SAME_TIME_MS else 0


def _agent() -> str:
    with force_locale("en"):
        return device_words(request.headers.get("User-Agent", ""))[:60]


def _told(item: dict[str, Any], person: int, at: int) -> dict[str, Any]:
    """Return an event's data. Of the messages of a minute: how many this page should have got by then, and has not."""
    told = item.get("data") or {}
    if item.get("type") == "error":
        return dict(browser_error(told))
    if item.get("type") == "minute" and "cursors" in told:
        cursors = {str(feed): int(cursor) for feed, cursor in told.pop("cursors").items() if feed != "list"}
        told["missing"] = current_parts().store.conversations.count_beyond(person, cursors, at - DELIVERED_MS)
    return dict(told)


def _event(item: dict[str, Any], where: Where) -> ConnectionEvent:
    def text(key: str, length: int) -> str | None:
        value = item.get(key)
        if value is None:
            return None
        str(value).encode()  # raises ValueError for lone surrogates, which cannot be stored
        return str(value)[:length]

    number, happened_at = int(item["number"]), int(item["at"])
    if not (0 <= number < 1 << 31 and 0 <= happened_at < 1 << 53):
        raise ValueError
    at = min(now_ms(), max(0, happened_at + where.offset))
    return ConnectionEvent(
        client=str(UUID(item["client"])),
        number=number,
        person=where.person.uuid,
        type=text("type", 20) or "",
        transport=text("transport", 10),
        state_from=text("from", 12),
        state_to=text("to", 12),
        reason=text("reason", 40),
        happened_at=happened_at,
        data=json.dumps(_told(item, where.person.id, at))[:LONGEST_DATA],
        page=str(UUID(item["client"])),
        network=where.network,
        agent=where.agent,
        at=at,
    )
