"""Alerts that fire, on the monitor, and the page of incidents; for operators."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import wants_json
from chatapp.monitoring import incidents
from chatapp.monitoring.alerts import in_order
from chatapp.monitoring.rules import RULES
from chatapp.parts import current_parts
from chatapp.store import now_ms
from chatapp.views import actor, check_origin, refuse, signed_in

SILENCES = {"0": 0, "1": 1, "24": 24}  # hours
HOUR_MS = 3_600_000
FAILED_MS = 24 * HOUR_MS  # so long a notice that nobody got is shown

bp = Blueprint("alerts", __name__, url_prefix="/monitor")
bp.before_request(check_origin)


@bp.app_template_global("alerts_now")
def alerts_now() -> dict[str, Any]:
    """Return the open alerts, the gravest first, and notices that nobody got."""
    store, now = current_parts().store, now_ms()
    known = store.alerts.alerts()
    rows = [known[name] for name in in_order(known) if known[name].is_open]
    names = store.directory.names({row.acknowledged_by for row in rows if row.acknowledged_by})
    incident = store.alerts.open_incident() if rows else None
    return {
        "open": [
            {
                "rule": row.rule,
                "state": row.state,
                "title": incidents.titles()[row.rule],
                "since": row.opened,
                "taken": names.get(row.acknowledged_by, _("somebody")) if row.acknowledged_by else "",
                "silenced": row.silenced_until if row.silenced_until > now else 0,
            }
            for row in rows
        ],
        "sentence": incidents.sentence(incident) if incident else "",
        "to_do": incidents.to_do(incident) if incident else "",
        "failed": store.alerts.failed_notices(now - FAILED_MS),
    }


@bp.get("/incidents")
def index() -> Any:
    """List incidents, the newest first, with the changes of their alerts."""
    store = current_parts().store
    before = request.args.get("before", "0")
    if not before.isdecimal() or len(before) > 15:
        abort(404)
    found, more = store.alerts.incidents(int(before))
    changes = store.alerts.changes_of([one.id for one in found])
    rows = [
        {
            "id": one.id,
            "opened": one.opened,
            "closed": one.closed,
            "lasted": _lasted((one.closed or now_ms()) - one.opened),
            "sentence": incidents.sentence(one),
            "to_do": incidents.to_do(one),
            "changes": changes[one.id],
        }
        for one in found
    ]
    next_url = url_for("alerts.index", before=found[-1].id) if more else None
    return render_template(
        "monitor/incidents.html",
        incidents=rows,
        next_url=next_url,
        titles=incidents.titles(),
        states=state_words(),
        figure_words=incidents.figure_words,
    )


def state_words() -> dict[str, str]:
    """Return the states of alerts in words."""
    return {
        "normal": _("normal"),
        "pending": _("pending"),
        "firing": _("firing"),
        "recovering": _("recovering"),
        "resolved": _("resolved"),
        "no-data": _("no data"),
    }


def _lasted(ms: int) -> str:
    minutes = max(1, round(ms / 60_000))
    if minutes < 60:
        return str(_("%(num)d min", num=minutes))
    return str(_("%(hours)d h %(minutes)d min", hours=minutes // 60, minutes=minutes % 60))


@bp.post("/alerts/<rule>/acknowledge")
def acknowledge(rule: str) -> Any:
    """Say that this operator takes care of an open alert."""
    if rule not in RULES or not current_parts().store.alerts.acknowledge(rule, signed_in().person.uuid, now_ms()):
        abort(404)
    current_parts().store.audit.add("alert-acknowledged", actor(), detail=rule)
    return _done()


@bp.post("/alerts/<rule>/silence")
def silence(rule: str) -> Any:
    """Send no notice of a rule for some hours; 0 ends that."""
    hours, now = SILENCES.get(request.form.get("hours", "")), now_ms()
    if hours is None:
        return refuse("hours", _("Choose for how long: 1 or 24 hours; 0 ends it."), 422)
    if rule not in RULES or not current_parts().store.alerts.silence(rule, now + hours * HOUR_MS if hours else 0, now):
        abort(404)
    current_parts().store.audit.add("alert-silenced", actor(), detail=f"{rule} {hours} h")
    return _done()


def _done() -> Any:
    return ("", 204) if wants_json() else redirect(url_for("monitor.index"), 303)
