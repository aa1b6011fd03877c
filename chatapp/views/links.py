"""Links that work once: an invitation, or another password. Opening one changes nothing, sending its form spends it."""

from typing import Any

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.administration import NotThere
from chatapp.accounts.passwords import SHORTEST_PASSWORD
from chatapp.fair_queue import Attempts
from chatapp.parts import current_parts
from chatapp.store import EmailTaken, Link
from chatapp.store.links import INVITE
from chatapp.views import check_origin, refuse
from chatapp.views.account import refused_password

MOST_ATTEMPTS = 10  # wrong links of an address; half of them expire each minute
RETRY_S = 60

bp = Blueprint("links", __name__, url_prefix="/link")
bp.before_request(check_origin)

wrong_links = Attempts()


@bp.get("/<token>")
def show(token: str) -> Any:
    """Show the form of an open link."""
    return _page(_open(token), {}, {})


@bp.post("/<token>")
def spend(token: str) -> Any:
    """Make the account or set the password, and sign in."""
    link, auth, form = _open(token), current_parts().auth, request.form
    hashed: list[tuple[str, str]] = []

    def check() -> None:
        name = form.get("name", "") if link.kind == INVITE else link.name
        hashed.append(auth.hash_checked(name, link.email, form.get("password", "")))

    if problem := refused_password(check, "password"):
        return _page(link, problem[0], form), *problem[1:]
    name, password_hash = hashed[0]
    try:
        person = _act(link, name, password_hash)
    except NotThere:
        abort(_gone())
    except EmailTaken:
        return refuse("taken", _("This address has an account already. Sign in instead."), 409)
    auth.start_session(person)
    return redirect(url_for("conversations.home"), 303)


def _act(link: Link, name: str, password_hash: str) -> int:
    """Spend the link. Return the person's number. Raises NotThere, EmailTaken."""
    administration, address = current_parts().administration, request.remote_addr or ""
    if link.kind == INVITE:
        return administration.accept(link, name, password_hash, address)
    return administration.reset(link, password_hash, address)


def _open(token: str) -> Link:
    """Return the open link. Ends the request with 404; with 429 after many wrong ones, and with 409 in a session."""
    address = request.remote_addr or ""
    try:
        link = current_parts().administration.open_link(token)
    except NotThere:
        if round(wrong_links.count(address)) > MOST_ATTEMPTS:
            message = _("Too many wrong links came from your address. Try again in a minute.")
            abort(refuse("rate", message, 429, retry_s=RETRY_S))
        abort(_gone())
    session = current_parts().auth.current()
    if session is not None:
        message = _(
            "You are signed in as %(name)s. Sign out first, or open the link in another browser: it is still good.",
            name=session.person.name,
        )
        abort(refuse("signed-in", message, 409, _("You are signed in already")))
    return link


def _gone() -> Any:
    """Return the response to a link that is unknown, spent, withdrawn or too old: the same for all."""
    message = _("It was used already, it is too old, or it is not complete. Ask for another one.")
    return refuse("gone", message, 404, _("This link does not work"))


def _page(link: Link, errors: dict[str, str], values: Any) -> str:
    return render_template(
        "people/link.html",
        link=link,
        is_invitation=link.kind == INVITE,
        errors=errors,
        values=values,
        shortest=SHORTEST_PASSWORD,
    )
