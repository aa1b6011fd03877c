"""The HTML routes, one blueprint per resource, and their common parts: the current person, errors, origin checks.

A form is answered by a redirect (303), a program with `Accept: application/json` by JSON. Accept decides, because
strict proxies strip headers such as X-Requested-With.
"""

import re
from math import ceil
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Response, abort, jsonify, make_response, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import expected_origins, origin_is_allowed, wants_json
from chatapp.chat import ChatError, Conflict, Forbidden, Gone
from chatapp.parts import current_parts
from chatapp.store import Actor, AuthSession

UNLIMITED = ("conversations.post", "auth.sign_out")  # sends have a limit of their own; nobody is kept from leaving


def signed_in() -> AuthSession:
    """Return the current session. Ends a request without one with 401."""
    return current_parts().auth.current() or abort(401)


def person_id() -> int:
    """Return the current person's number. Ends a request without a session with 401."""
    return signed_in().person.id


def actor() -> Actor:
    """Return the current person, as an actor. Ends a request without a session with 401."""
    return Actor(person_id(), request.remote_addr or "")


def check_origin() -> Any:
    """Refuse a cross-site POST. For `before_request`.

    Browsers say so by themselves (Sec-Fetch-Site), whatever a proxy makes of Host. Without that, and without PUBLIC_URL
    or ALLOWED_ORIGINS, only the CSRF token counts: strict proxies rewrite Host, so that our own origin is unknown.
    """
    settings, origin = current_parts().settings, request.headers.get("Origin", "")
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        is_ours = origin and origin_is_allowed(settings, origin, request.host_url)
        return None if is_ours else refuse("origin", _("This form came from another site. Open the chat itself."), 403)
    is_checked = request.method == "POST" and origin and (settings.public_url or settings.allowed_origins)
    if not is_checked or origin_is_allowed(settings, origin, request.host_url):
        return None
    message = _(
        "This page was opened at %(origin)s, but the server is set up for %(expected)s. Open it there; if that is "
        "wrong, CHATAPP_PUBLIC_URL is, which its operator can correct.",
        origin=origin[:200],
        expected=" and ".join(expected_origins(settings, request.host_url)[1:]),
    )
    return refuse("origin", message, 403)


def require_session() -> Any:
    """Redirect a request without a session to the sign-in form; 401 for programs. For `before_request`."""
    session = current_parts().auth.current()
    if session is not None:
        if request.endpoint not in UNLIMITED:
            enforce_pages(session.person.id)
        return None
    if wants_json() or request.method == "POST":
        return refuse("signed-out", _("You are signed out. Sign in again; what you wrote is kept."), 401)
    if current_parts().store.people.is_empty():
        return redirect(url_for("auth.first_run"))
    target = None if request.path == "/" else request.full_path.rstrip("?")
    return redirect(url_for("auth.sign_in", next=target))


def enforce_pages(person: int) -> None:
    """Count a page, or another request of a person; end the request if it is one too many."""
    message = _("This is more than one person may ask in a short time. Wait a moment, then go on.")
    enforce_quota(current_parts().limits.pages.take(person), message)


def enforce_quota(wait_s: float, message: str) -> None:
    """End the request with 429 and Retry-After if `wait_s` is not 0."""
    if wait_s > 0:
        abort(refuse("rate", message, 429, retry_s=wait_s))


def refuse(code: str, message: str, status: int, title: str = "", retry_s: float = 0) -> Response:
    """Return an error response, JSON or a page, with a Retry-After of `retry_s` if that is not 0."""
    if wants_json():
        response = jsonify(error={"code": code, "message": message})
    else:
        titles = {401: _("Signed out"), 404: _("Not found"), 409: _("Already there")}
        title = title or titles.get(status, _("That did not work"))
        response = make_response(render_template("errors/error.html", code=status, title=title, message=message))
    response.status_code = status
    if retry_s:
        response.headers["Retry-After"] = str(ceil(retry_s))
    return response


def handle_chat_error(error: ChatError) -> Response:
    """Return the response to a broken rule of the chat."""
    statuses = {Gone: 404, Conflict: 409, Forbidden: 403}
    return refuse(error.code, error.message, statuses.get(type(error), 422))


def came_from() -> str | None:
    """Return the previous page's conversation, by `?from=` or the Referer; None if there is none."""
    uuid = request.args.get("from") or _conversation_in(request.referrer or "")
    try:
        return current_parts().chat.place(person_id(), uuid).uuid if uuid else None
    except Gone:
        return None


def _conversation_in(url: str) -> str:
    """Return the conversation in the path or in `?from=` of one of our URLs; "" if there is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    match = re.fullmatch(r"/c/([^/]+)", parts.path.removeprefix(request.script_root))
    return match[1] if match else "".join(parse_qs(parts.query).get("from", [])[:1])
