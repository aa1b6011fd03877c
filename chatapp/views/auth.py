"""Sign in, sign out, and the first run: the pages that need no session."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import CODE_FILE, Refused, TooManyGuesses
from chatapp.accounts.hashing import Busy
from chatapp.parts import current_parts
from chatapp.store import AlreadySetUp
from chatapp.views import check_origin, problem, require_session

bp = Blueprint("auth", __name__)
bp.before_request(check_origin)


@bp.get("/first-run")
def first_run() -> Any:
    """The form of an empty installation."""
    if not current_parts().store.people.is_empty():
        return redirect(url_for("conversations.home"))
    return _first_run_page({}, {})


@bp.post("/first-run")
def first_run_post() -> Any:
    """Make the first admin, who is signed in at once."""
    people, form, address = current_parts().auth, request.form, request.remote_addr or ""
    try:
        if not current_parts().store.people.is_empty():
            raise AlreadySetUp
        people.check_code(form.get("code", ""), address)
        person = people.first_run(form.get("name", ""), form.get("email", ""), form.get("password", ""), address)
    except Refused as error:
        return _first_run_page({error.field: error.message}, form), 422
    except TooManyGuesses:
        words = _("Too many wrong codes came from your address. Try again in a minute, or use chatapp admin create.")
        return _first_run_page({"code": words}, form), 429, {"Retry-After": "60"}
    except Busy as busy:
        return _first_run_page({"form": busy_words(busy)}, form), 503, {"Retry-After": str(busy.retry_s)}
    except AlreadySetUp:
        return problem("set-up", "Somebody has already set this up. Sign in instead.", 409)
    (current_parts().settings.data_dir / CODE_FILE).unlink(missing_ok=True)
    people.start_session(person.id)
    return redirect(url_for("conversations.home"), 303)


def _first_run_page(errors: dict[str, str], values: Any) -> str:
    return render_template("auth/first_run.html", errors=errors, values=values)


@bp.get("/sign-in")
def sign_in() -> Any:
    """The sign-in form."""
    if current_parts().auth.current() is not None:
        return redirect(url_for("conversations.home"))
    if current_parts().store.people.is_empty():
        return redirect(url_for("auth.first_run"))
    return render_template("auth/sign_in.html", errors={}, values={}, next=request.args.get("next", ""))


@bp.post("/sign-in")
def sign_in_post() -> Any:
    """Sign in and go where the person wanted to go."""
    form = request.form
    try:
        person = current_parts().auth.sign_in(
            form.get("email", ""), form.get("password", ""), request.remote_addr or ""
        )
    except Refused as error:
        errors, status, headers = {error.field: error.message}, 422, {}
    except Busy as busy:
        errors, status, headers = {"form": busy_words(busy)}, 503, {"Retry-After": str(busy.retry_s)}
    else:
        current_parts().auth.start_session(person)
        return redirect(_own_path(form.get("next", "")), 303)
    page = render_template("auth/sign_in.html", errors=errors, values=form, next=form.get("next", ""))
    return page, status, headers


def busy_words(busy: Busy) -> str:
    """What a person reads whose password cannot be checked now."""
    words = _("Too many people are signing in at this moment. Try again in %(seconds)s seconds.", seconds=busy.retry_s)
    return str(words)


@bp.post("/sign-out")
def sign_out() -> Any:
    """End the session."""
    if (signed_out := require_session()) is not None:
        return signed_out
    current_parts().auth.end_session()
    return redirect(url_for("auth.sign_in"), 303)


def _own_path(target: str) -> str:
    """A path of ours to go to; never another site's address."""
    is_ours = re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", target) is not None
    return f"{request.script_root}{target}" if is_ours else url_for("conversations.home")
