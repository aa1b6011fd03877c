"""A person's own account: their sessions and their password."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask_babel import format_timedelta
from flask_babel import gettext as _

from chatapp.accounts.administration import NotThere
from chatapp.accounts.auth import Refused, TooManyGuesses, wants_json
from chatapp.accounts.devices import device_words
from chatapp.accounts.hashing import Busy
from chatapp.accounts.passwords import SHORTEST_PASSWORD
from chatapp.parts import current_parts
from chatapp.store import now_ms
from chatapp.views import actor, came_from, check_origin, person_id, require_session, signed_in
from chatapp.views.auth import busy_message, local_path

RETRY_S = 60  # Retry-After of too many wrong passwords

bp = Blueprint("account", __name__, url_prefix="/account")
bp.before_request(check_origin)
bp.before_request(require_session)
bp.add_app_template_filter(device_words, "device")


@bp.app_template_filter("ago")
def ago(at: int) -> str:
    """Return the time since a moment (ms) in words, such as "5 minutes ago"."""
    since = timedelta(milliseconds=at - now_ms())
    if since > timedelta(minutes=-1):
        return str(_("just now"))
    return str(format_timedelta(since, granularity="minute", add_direction=True))


@bp.app_template_filter("utc")
def utc(at: int, form: str = "%Y-%m-%d %H:%M UTC") -> str:
    """Return a moment (ms) as date and time."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime(form)


@bp.app_template_filter("without_prefix")
def without_prefix(path: str) -> str:
    """Return the path of one of our pages as `next` fields have it."""
    return path.removeprefix(request.script_root)


@bp.get("")
def show() -> Any:
    """Show the own sessions and the form for another password."""
    return _page()


def _page(errors: dict[str, str] | None = None) -> str:
    parts, session = current_parts(), signed_in()
    sessions, more = parts.store.sessions.live(session.person.id, request.args.get("after", ""))
    return render_template(
        "account/show.html",
        came_from=came_from(),
        sessions=sessions,
        next_url=url_for("account.show", after=sessions[-1].uuid) if more else None,
        is_first="after" not in request.args,
        own=session.uuid,
        errors=errors or {},
        done=request.args.get("done", ""),
        shortest=SHORTEST_PASSWORD,
    )


@bp.post("/password")
def password() -> Any:
    """Change the own password; all other sessions end."""
    form = request.form
    problem = refused_password(
        lambda: current_parts().auth.change_password(form.get("current", ""), form.get("password", "")), "current"
    )
    return (_page(problem[0]), *problem[1:]) if problem else _done("password")


def refused_password(act: Callable[[], object], field: str) -> tuple[dict[str, str], int, dict[str, str]] | None:
    """Do what needs a password. Return None, or why not: errors by field (`field`: of the own one), status, headers."""
    try:
        act()
    except Refused as error:
        return {error.field: error.message}, 422, {}
    except TooManyGuesses:
        return {field: _("Too many wrong passwords. Try again in a minute.")}, 429, {"Retry-After": str(RETRY_S)}
    except Busy as busy:
        return {"form": busy_message(busy)}, 503, {"Retry-After": str(busy.retry_s)}
    return None


@bp.get("/confirm")
def confirm() -> Any:
    """Ask for the own password, before an act that needs it."""
    return _confirm_page(request.args.get("next", ""))


@bp.post("/confirm")
def confirm_post() -> Any:
    """Check the own password and redirect to `next`."""
    form = request.form
    problem = refused_password(lambda: current_parts().auth.confirm(form.get("password", "")), "password")
    if problem:
        return _confirm_page(form.get("next", ""), problem[0]), *problem[1:]
    return ("", 204) if wants_json() else redirect(local_path(form.get("next", "")), 303)


def _confirm_page(target: str, errors: dict[str, str] | None = None) -> str:
    return render_template("account/confirm.html", next=target, errors=errors or {})


@bp.post("/sessions/<uuid:uuid>/end")
def end(uuid: UUID) -> Any:
    """End one of the own sessions; this one, too, as signing out does."""
    if str(uuid) == signed_in().uuid:
        current_parts().auth.end_session()
        return redirect(url_for("auth.sign_in"), 303)
    try:
        current_parts().administration.end_own_session(actor(), str(uuid))
    except NotThere:
        abort(404)
    return _done("ended")


@bp.post("/sessions/<uuid:uuid>/known")
def known(uuid: UUID) -> Any:
    """Say that a sign-in from a new device was one's own; that device itself cannot."""
    newcomer = current_parts().auth.newcomer()
    if newcomer is not None and newcomer.uuid == str(uuid):
        current_parts().store.sessions.acknowledge(person_id(), str(uuid))
    return ("", 204) if wants_json() else redirect(local_path(request.form.get("next", "")), 303)


@bp.post("/sessions/end")
def end_others() -> Any:
    """End all own sessions but this one."""
    current_parts().administration.end_own_sessions(actor(), keep=signed_in().id)
    return _done("ended")


def _done(what: str) -> Any:
    return ("", 204) if wants_json() else redirect(url_for("account.show", done=what), 303)
