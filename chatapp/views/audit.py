"""The audit, for operators: who did what to whom, from where, when; as pages and as CSV."""

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, render_template, request, stream_with_context, url_for
from flask_babel import gettext as _

from chatapp.parts import current_parts
from chatapp.store import Audited, AuditFilter
from chatapp.views import actor, check_origin
from chatapp.views.account import utc
from chatapp.views.people import require_confirmed

EXPORTED_AT_ONCE = 500  # events in one read
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # cells that begin so are formulas to spreadsheets
COLUMNS = ("time", "action", "detail", "by", "by_email", "to", "to_email", "from")
FIELDS = ("person", "action", "since", "until")

bp = Blueprint("audit", __name__, url_prefix="/audit")
bp.before_request(check_origin)


def action_words() -> dict[str, str]:
    """Return the actions of the audit in words."""
    return {
        "sign-in": _("signed in"),
        "sign-in-failed": _("failed sign-in"),
        "sign-out": _("signed out"),
        "password": _("changed the own password"),
        "password-failed": _("wrong own password"),
        "first-run": _("first run"),
        "created": _("account made"),
        "invited": _("invited"),
        "withdrawn": _("invitation withdrawn"),
        "joined": _("accepted an invitation"),
        "reset-link": _("password link made"),
        "reset": _("password reset"),
        "role": _("role changed"),
        "disabled": _("disabled"),
        "enabled": _("enabled"),
        "session-ended": _("session ended"),
        "deleted": _("data deleted"),
        "shared": _("added to a conversation"),
        "removed": _("removed from a conversation"),
        "left": _("left a conversation"),
        "owner": _("owner of a conversation"),
        "answers": _("when the assistant answers"),
        "wishes": _("model and instructions"),
        "conversation-deleted": _("deleted a shared conversation"),
        "exported": _("audit exported"),
        "diagnostics": _("diagnostics bundle made"),
        "drill-started": _("drill started"),
        "drill-ended": _("drill ended"),
        "alert-acknowledged": _("took care of an alert"),
        "alert-silenced": _("alert silenced"),
        "knowledge-added": _("document added"),
        "knowledge-replaced": _("document replaced"),
        "knowledge-removed": _("document removed"),
        "question-forgotten": _("question forgotten"),
    }


@bp.get("")
def index() -> Any:
    """Show a page of events."""
    wanted, errors = _filter(request.args)
    events, more = (
        current_parts().store.audit.page(wanted, request.args.get("after", "")) if not errors else ([], False)
    )
    values = _given(request.args)
    page = render_template(
        "people/audit.html",
        events=events,
        next_url=url_for("audit.index", **values, after=events[-1].uuid) if more else None,
        actions=action_words(),
        values=values,
        errors=errors,
        is_confirmed=current_parts().auth.is_confirmed(),
        here=url_for("audit.index", **values),
    )
    return page, 422 if errors else 200


def _given(form: Any) -> dict[str, Any]:
    """Return the fields of the filter that are not empty."""
    return {name: value for name in FIELDS if (value := form.get(name, "").strip())}


def _filter(given: Any) -> tuple[AuditFilter, dict[str, str]]:
    """Return the filter of a form, and its errors by field."""
    errors: dict[str, str] = {}
    action = given.get("action", "")
    if action and action not in action_words():
        errors["action"] = _("Choose one of the list.")
    since, until = (_day(given.get(name, ""), name, errors) for name in ("since", "until"))
    wanted = AuditFilter(
        person=_person(given.get("person", "").strip(), errors),
        action=action,
        since=_ms(since) if since else None,
        until=_ms(until + timedelta(days=1)) if until else None,
    )
    return wanted, errors


def _person(text: str, errors: dict[str, str]) -> int | None:
    """Return the number of a person by e-mail address or UUID."""
    if not text:
        return None
    directory = current_parts().store.directory
    try:
        found = directory.number_of(str(UUID(text)))
    except ValueError:
        person = directory.find_by_email(text)
        found = person.id if person else None
    if found is None:
        errors["person"] = _("Nobody has this address.")
    return found


def _day(text: str, field: str, errors: dict[str, str]) -> datetime | None:
    try:
        day = datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC) if text.strip() else None
        return day if day is None or 1970 <= day.year < 9999 else day.replace(year=min(max(day.year, 1970), 9998))
    except ValueError:
        errors[field] = _("Write it as 2026-11-30.")
        return None


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


@bp.post("/export")
def export() -> Any:
    """Send the events of a filter as CSV."""
    require_confirmed(url_for("audit.index", **_given(request.form)))
    wanted, errors = _filter(request.form)
    if errors:
        return Response("\n".join(errors.values()), 422, content_type="text/plain; charset=utf-8")
    current_parts().store.audit.add("exported", actor())
    headers = {"Content-Disposition": f"attachment; filename=audit-{datetime.now(UTC):%Y-%m-%d}.csv"}
    lines = stream_with_context(_csv(wanted))
    return Response(lines, headers=headers, content_type="text/csv; charset=utf-8")


def _csv(wanted: AuditFilter) -> Iterator[str]:
    yield _line(COLUMNS)
    audit, after, more = current_parts().store.audit, "", True
    while more:
        events, more = audit.page(wanted, after, EXPORTED_AT_ONCE)
        yield "".join(_line(_cells(event)) for event in events)
        after = events[-1].uuid if events else ""


def _cells(event: Audited) -> tuple[str, ...]:
    by, by_email = event.actor_name or event.actor or "", event.actor_email or ""
    to, to_email = event.person_name or event.person or "", event.person_email or event.invited or ""
    time = utc(event.at, "%Y-%m-%dT%H:%M:%SZ")
    return time, event.action, event.detail, by, by_email, to, to_email, event.address


def _line(cells: tuple[str, ...]) -> str:
    """Return a line of CSV; no cell is a formula."""
    text = StringIO()
    csv.writer(text).writerow([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in cells])
    return text.getvalue()
