"""Sign-in, sign-out and the first run."""

import re
from math import ceil
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import Refused, TooManyGuesses
from chatapp.accounts.guesses import TooSoon
from chatapp.accounts.hashing import Busy
from chatapp.accounts.keys import CODE_FILE
from chatapp.parts import current_parts
from chatapp.store import AlreadySetUp, SessionEnded
from chatapp.transports import protocol
from chatapp.views import check_origin, enforce_pages, refuse, require_session

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
    return _first_run_page({})


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
        return _first_run_page({error.field: error.message}), 422
    except TooManyGuesses:
        message = _("Too many wrong codes came from your address. Try again in a minute, or use chatapp admin create.")
        return _first_run_page({"code": message}), 429, {"Retry-After": "60"}
    except Busy as busy:
        return _first_run_page({"form": busy_message(busy)}), 503, {"Retry-After": str(busy.retry_s)}
    except AlreadySetUp:
        return refuse("set-up", _("Somebody has already set this up. Sign in instead."), 409)
    (current_parts().settings.data_dir / CODE_FILE).unlink(missing_ok=True)
    auth.start_session(person.id)
    return redirect(url_for("conversations.home"), 303)


def _first_run_page(errors: dict[str, str]) -> str:
    return render_template("auth/first_run.html", errors=errors, values=request.form)


@bp.get("/sign-in")
def sign_in() -> Any:
    """Show the sign-in form."""
    if current_parts().auth.current() is not None:
        return redirect(url_for("conversations.home"))
    if current_parts().store.people.is_empty():
        return redirect(url_for("auth.first_run"))
    return _sign_in_page({})


@bp.post("/sign-in")
def sign_in_post() -> Any:
    """Sign in and redirect to `next`."""
    auth, form = current_parts().auth, request.form
    try:
        person = auth.sign_in(form.get("email", ""), form.get("password", ""), request.remote_addr or "")
    except TooSoon as error:
        message = _("Too many wrong passwords came from your address. Try again in %(n)s s.", n=ceil(error.retry_s))
        return _sign_in_page({"password": message}), 429, {"Retry-After": str(ceil(error.retry_s))}
    except Refused as error:
        return _sign_in_page({error.field: error.message}), 422
    except Busy as busy:
        return _sign_in_page({"form": busy_message(busy)}), 503, {"Retry-After": str(busy.retry_s)}
    auth.start_session(person)
    return redirect(local_path(form.get("next", "")), 303)


def _sign_in_page(errors: dict[str, str]) -> str:
    form = request.form if request.method == "POST" else request.args
    return render_template("auth/sign_in.html", errors=errors, values=request.form, next=form.get("next", ""))


@bp.post("/session/renew")
def renew() -> Any:
    """Renew the session, also one whose access has ended. Say when to renew it again, and what the server speaks."""
    if found := current_parts().auth.current():
        enforce_pages(found.person.id)
    try:
        left_s = current_parts().auth.renew()
    except SessionEnded as ended:
        message = _("Your session has ended. Sign in again; what you wrote is kept.")
        return refuse(f"session-{ended.how}", message, 401)
    return {"access_ms": round(left_s * 1000), "protocol": protocol.REVISION}


def busy_message(busy: Busy) -> str:
    """Return the message while too many passwords wait to be checked."""
    text = _("Too many people are signing in at this moment. Try again in %(seconds)s seconds.", seconds=busy.retry_s)
    return str(text)


@bp.post("/sign-out")
def sign_out() -> Any:
    """End the session and redirect to the sign-in form."""
    current_parts().auth.end_session()
    return redirect(url_for("auth.sign_in"), 303)


def local_path(target: str) -> str:
    """Return the path to redirect to; never another site's address."""
    is_local = re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", target) is not None
    return f"{request.script_root}{target}" if is_local else url_for("conversations.home")
