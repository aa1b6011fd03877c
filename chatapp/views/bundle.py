"""The diagnostics bundle for operators: a page that says what is in it, and its download behind the own password."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, render_template, request, send_file, url_for
from flask_babel import gettext as _

from chatapp.diagnostics.bundle import Busy, period_ms
from chatapp.parts import current_parts
from chatapp.views import actor, check_origin, refuse
from chatapp.views.people import require_confirmed

RANGES = ("1h", "24h", "7d", "14d")
RETRY_S = 10

bp = Blueprint("bundle", __name__, url_prefix="/monitor/diagnostics")  # hidden from others: people.hide_from_others
bp.before_request(check_origin)


@bp.get("")
def show() -> str:
    """Show the page."""
    is_confirmed = current_parts().auth.is_confirmed()
    return render_template(
        "monitor/diagnostics.html", is_confirmed=is_confirmed, here=url_for("bundle.show"), ranges=RANGES
    )


@bp.post("")
def download() -> Any:
    """Send a bundle."""
    require_confirmed(url_for("bundle.show"))
    parts, since = current_parts(), request.form.get("since", "24h")
    try:
        file = parts.bundler.make(period_ms(since))
    except ValueError:
        return refuse("since", _("Choose one of the list."), 422)
    except Busy:
        return refuse("busy", _("Another bundle is being made. Try again in a moment."), 429, retry_s=RETRY_S)
    parts.store.audit.add("diagnostics", actor(), detail=since.strip().lower())
    name = f"chatapp-diagnostics-{datetime.now(UTC):%Y-%m-%d-%H%M}.zip"
    return send_file(file, "application/zip", as_attachment=True, download_name=name)
