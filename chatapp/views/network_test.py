"""The network test for a network's admin, without an account: the page of the link in the letter of Run test.

The link is `/network-test#<ticket>`. A browser sends the part behind # to nobody: it is in no log and no Referer. A
program that only fetches the page, as mail scanners do, opens and spends nothing. The page's script sends the ticket by
POST, and gets it back as a cookie, since a WebSocket has no other header of its own. The probes accept it; nothing else
reads it.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app, jsonify, render_template, request
from flask_babel import gettext as _

from chatapp.accounts.tickets import BadTicket, Expired
from chatapp.parts import current_parts
from chatapp.views import check_origin, refuse
from chatapp.views.connection_check import probe_context

OPEN_S = 3600  # of the cookie; the page opens the ticket again for each test

bp = Blueprint("network_test", __name__, url_prefix="/network-test")
bp.before_request(check_origin)


@bp.get("")
def show() -> str:
    """Show the page: the same for everybody, with a ticket or without."""
    return render_template("network_test/show.html", check=probe_context())


@bp.post("")
def open_ticket() -> Any:
    """Check a ticket, and set its cookie. The answer says if this is the network in question."""
    parts = current_parts()
    try:
        ticket = parts.tickets.read(request.form.get("ticket", "").strip())
    except Expired:
        return refuse("expired", _("This link is older than 7 days."), 403)
    except BadTicket:
        return refuse("altered", _("This link is not complete, or was altered on its way."), 403)
    network, config = parts.network_of(request.remote_addr or ""), current_app.config
    response = jsonify(there=bool(network) and network == ticket.network, until=ticket.ends_at)
    response.set_cookie(
        parts.tickets.cookie_name,
        request.form["ticket"].strip(),
        max_age=OPEN_S,
        path=config["SESSION_COOKIE_PATH"],
        secure=config["SESSION_COOKIE_SECURE"],
        httponly=True,
        samesite="Strict",
    )
    return response
