"""People, for operators: the list, invitations, and each person's role, access, sessions and data.

For everybody else these pages do not exist.
"""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

from flask import Blueprint, abort, redirect, render_template, request, session, url_for
from flask_babel import gettext as _

from chatapp.accounts.administration import NotThere, link_url
from chatapp.accounts.auth import Refused, wants_json
from chatapp.parts import current_parts
from chatapp.store import ListedPerson
from chatapp.views import actor, check_origin, enforce_pages, person_id, refuse, signed_in
from chatapp.views.account import without_prefix

PATHS = ("/people", "/audit", "/monitor")
FOLDERS = tuple(f"{one}/" for one in (*PATHS, "/knowledge/files", "/knowledge/questions"))
LINK = "made_link"  # in the cookie, from its making to its one display

bp = Blueprint("people", __name__, url_prefix="/people")
bp.before_request(check_origin)


def hide_from_others() -> None:
    """Answer as if there were no such page, unless the person is an operator. For `before_request`, before all else."""
    path = re.sub("/+", "/", request.path)  # for two slashes the router would redirect
    if path in PATHS or path.startswith(FOLDERS):
        require_operator()


def require_operator() -> None:
    """End the request as if there were no such page, unless the person is an operator; count a page of theirs."""
    found = current_parts().auth.current()
    if found is None or not found.person.is_operator:
        abort(404)
    enforce_pages(found.person.id)


def require_confirmed(target: str) -> None:
    """End the request unless the person entered their password lately; `target` is where they go on after that."""
    if current_parts().auth.is_confirmed():
        return
    if wants_json():
        abort(refuse("confirm", _("Enter your password first: POST /account/confirm."), 403))
    abort(redirect(url_for("account.confirm", next=without_prefix(target)), 303))


# The list and invitations


@bp.get("")
def index() -> Any:
    """List people and open invitations."""
    return _index({}, {})


def _index(errors: dict[str, str], values: Any) -> str:
    parts, words = current_parts(), request.args.get("q", "").strip()
    people, more = parts.store.directory.page(words, request.args.get("after", ""))
    return render_template(
        "people/index.html",
        people=people,
        next_url=url_for("people.index", q=words or None, after=people[-1].uuid) if more else None,
        words=words,
        invitations=parts.store.links.invitations(),
        errors=errors,
        values=values,
        **_common(),
    )


def _common() -> dict[str, Any]:
    """Return the variables of both pages. A link that was just made is shown once."""
    parts, made = current_parts(), session.pop(LINK, None)
    return {
        "is_confirmed": parts.auth.is_confirmed(),
        "own": signed_in().person.uuid,
        "made": {**made, "url": link_url(parts.settings, made["token"])} if made else None,
        "public_url": parts.settings.public_url,
        "done": request.args.get("done", ""),
    }


@bp.post("/invite")
def invite() -> Any:
    """Invite somebody, and show the link once."""
    require_confirmed(url_for("people.index"))
    form = request.form
    email, is_operator = form.get("email", ""), form.get("role") == "operator"
    try:
        token = current_parts().administration.invite(actor(), email, is_operator)
    except Refused as error:
        return _index({error.field: error.message}, form), 422
    return _made(token, email.strip(), url_for("people.index"))


def _made(token: str, email: str, target: str) -> Any:
    """Answer with the link: JSON, or the page that shows it."""
    if wants_json():
        return {"url": link_url(current_parts().settings, token)}, 201
    session[LINK] = {"token": token, "email": email}
    return redirect(target, 303)


@bp.post("/invitations/<uuid:uuid>/withdraw")
def withdraw(uuid: UUID) -> Any:
    """End an open invitation."""
    try:
        current_parts().administration.withdraw(actor(), str(uuid))
    except NotThere:
        abort(404)
    return _done(url_for("people.index", done="withdrawn"))


# One person


@bp.get("/<uuid:uuid>")
def show(uuid: UUID) -> Any:
    """Show a person."""
    return _show(_find(uuid), {})


def _find(uuid: UUID) -> ListedPerson:
    return current_parts().store.directory.find(str(uuid)) or abort(404)


def _show(person: ListedPerson, errors: dict[str, str]) -> str:
    sessions, more = current_parts().store.sessions.live(person.id, request.args.get("after", ""))
    return render_template(
        "people/show.html",
        one=person,
        sessions=sessions,
        next_url=url_for("people.show", uuid=person.uuid, after=sessions[-1].uuid) if more else None,
        errors=errors,
        **_common(),
    )


@bp.post("/<uuid:uuid>/role")
def role(uuid: UUID) -> Any:
    """Change a person's role."""
    require_confirmed(url_for("people.show", uuid=uuid))
    wanted = request.form.get("role", "")
    if wanted not in ("admin", "operator"):
        return _show(_find(uuid), {"role": _("Choose one of the roles.")}), 422
    return _change(uuid, lambda who: current_parts().administration.set_role(actor(), who, wanted == "operator"))


@bp.post("/<uuid:uuid>/disable")
def disable(uuid: UUID) -> Any:
    """Block a person's sign-in, and end their sessions."""
    return _change(uuid, lambda who: current_parts().administration.disable(actor(), who))


@bp.post("/<uuid:uuid>/enable")
def enable(uuid: UUID) -> Any:
    """Let a person sign in again."""
    return _change(uuid, lambda who: current_parts().administration.enable(actor(), who))


@bp.post("/<uuid:uuid>/sessions/end")
def end_sessions(uuid: UUID) -> Any:
    """End all sessions of a person."""
    return _change(uuid, lambda who: current_parts().administration.end_sessions(actor(), who))


@bp.post("/<uuid:uuid>/sessions/<uuid:ended>/end")
def end_session(uuid: UUID, ended: UUID) -> Any:
    """End a session of a person."""
    return _change(uuid, lambda who: current_parts().administration.end_session(actor(), who, str(ended)))


@bp.post("/<uuid:uuid>/reset")
def reset(uuid: UUID) -> Any:
    """Make a link to set another password, and show it once."""
    here = url_for("people.show", uuid=uuid)
    require_confirmed(here)
    try:
        token = current_parts().administration.make_reset(actor(), str(uuid))
    except NotThere:
        abort(404)
    except Refused as error:
        return _show(_find(uuid), {error.field: error.message}), 422
    return _made(token, "", here)


@bp.post("/<uuid:uuid>/delete")
def delete(uuid: UUID) -> Any:
    """Delete a person's data."""
    require_confirmed(url_for("people.show", uuid=uuid))
    typed = request.form.get("typed", "")
    done = url_for("people.index", done="deleted")
    return _change(uuid, lambda who: current_parts().administration.delete(actor(), who, typed), done)


def _change(uuid: UUID, act: Callable[[str], None], target: str = "") -> Any:
    """Do it, and answer with the person's page or `target`; with 404 for nobody, with the reason if it is refused."""
    before = _find(uuid)
    try:
        act(before.uuid)
    except NotThere:
        abort(404)
    except Refused as error:
        if wants_json():
            return refuse(error.field, error.message, 409)
        return _show(before, {error.field: error.message}), 409
    target = target or url_for("people.show", uuid=uuid, done="changed")
    return _done(target if before.id != person_id() or _may_stay() else url_for("conversations.home"))


def _may_stay() -> bool:
    """Return True if these pages are still there for this session after a change of its own person."""
    store = current_parts().store
    found = store.directory.find(signed_in().person.uuid)
    return found is not None and found.is_operator and store.people.left_s(signed_in().id) > 0


def _done(target: str) -> Any:
    return ("", 204) if wants_json() else redirect(target, 303)
