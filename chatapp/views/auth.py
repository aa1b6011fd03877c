"""Sign-in, sign-out and the first run."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import CODE_FILE, Refused, TooManyGuesses
from chatapp.accounts.hashing import Busy
from chatapp.parts import current_parts
from chatapp.store import AlreadySetUp
from chatapp.views import check_origin, refuse, require_session

bp = Blueprint("auth", __name__)
bp.before_request(check_origin)


@bp.before_request
def guard() -> Any:
    """Require a session for signing out."""
    return require_session() if request.endpoint == "auth.sign_out" else None


@bp.get("/first-run")
def first_run() -> Any:
    """Show the form for the first admin."""
    if not current_parts().store.people.is_empty():
        return redirect(url_for("conversations.home"))
    return _first_run_page({}, {})


@bp.post("/first-run")
def first_run_post() -> Any:
    """Add the first admin and sign them in."""
    auth, form, address = current_parts().auth, request.form, request.remote_addr or ""
    try:
        if not current_parts().store.people.is_empty():
            raise AlreadySetUp
        auth.check_code(form.get("code", ""), address)
        person = auth.first_run(form.get("name", ""), form.get("email", ""), form.get("password", ""), address)
    except Refused as error:
        return _first_run_page({error.field: error.message}, form), 422
    except TooManyGuesses:
        message = _("Too many wrong codes came from your address. Try again in a minute, or use chatapp admin create.")
        return _first_run_page({"code": message}, form), 429, {"Retry-After": "60"}
    except Busy as busy:
        return _first_run_page({"form": busy_message(busy)}, form), 503, {"Retry-After": str(busy.retry_s)}
    except AlreadySetUp:
        return refuse("set-up", _("Somebody has already set this up. Sign in instead."), 409)
    (current_parts().settings.data_dir / CODE_FILE).unlink(missing_ok=True)
    auth.start_session(person.id)
    return redirect(url_for("conversations.home"), 303)


def _first_run_page(errors: dict[str, str], values: Any) -> str:
    return render_template("auth/first_run.html", errors=errors, values=values)


@bp.get("/sign-in")
def sign_in() -> Any:
    """Show the sign-in form."""
    if current_parts().auth.current() is not None:
        return redirect(url_for("conversations.home"))
    if current_parts().store.people.is_empty():
        return redirect(url_for("auth.first_run"))
    return render_template("auth/sign_in.html", errors={}, values={}, next=request.args.get("next", ""))


@bp.post("/sign-in")
def sign_in_post() -> Any:
    """Sign in and redirect to `next`."""
    form = request.form
    try:
        person = current_parts().auth.sign_in(
            form.get("email", ""), form.get("password", ""), request.remote_addr or ""
        )
    except Refused as error:
        errors, status, headers = {error.field: error.message}, 422, {}
    except Busy as busy:
        errors, status, headers = {"form": busy_message(busy)}, 503, {"Retry-After": str(busy.retry_s)}
    else:
        current_parts().auth.start_session(person)
        return redirect(_local_path(form.get("next", "")), 303)
    page = render_template("auth/sign_in.html", errors=errors, values=form, next=form.get("next", ""))
    return page, status, headers


def busy_message(busy: Busy) -> str:
    """Return the message while too many passwords wait to be checked."""
    text = _("Too many people are signing in at this moment. Try again in %(seconds)s seconds.", seconds=busy.retry_s)
    return str(text)


@bp.post("/sign-out")
def sign_out() -> Any:
    """End the session and redirect to the sign-in form."""
    current_parts().auth.end_session()
    return redirect(url_for("auth.sign_in"), 303)


def _local_path(target: str) -> str:
    """Return the path to redirect to; never another site's address."""
    is_local = re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", target) is not None
    return f"{request.script_root}{target}" if is_local else url_for("conversations.home")
