"""The HTML routes, one blueprint per resource, and their common parts: the current person, errors, origin checks.

A form is answered by a redirect (303), a program with `Accept: application/json` by JSON. Accept decides, because
strict proxies strip headers such as X-Requested-With.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import abort, jsonify, make_response, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import expected_origins, origin_is_allowed
from chatapp.chat import ChatError, Conflict, Gone
from chatapp.parts import current_parts


def person_id() -> int:
    """Return the current person's number. Ends a request without a session with 401."""
    sign_in = current_parts().auth.current()
    if sign_in is None:
        abort(401)
    return sign_in.person.id


def wants_json() -> bool:
    """Return True for a program's request, False for a person's form."""
    accepts = request.accept_mimetypes
    return (
        accepts.best_match(["text/html", "application/json"]) == "application/json" or "HX-Request" in request.headers
    )


def has_allowed_origin() -> bool:
    """Return False for a foreign Origin.

    Without PUBLIC_URL or ALLOWED_ORIGINS only the CSRF token counts: strict proxies rewrite Host, so that our own
    origin is unknown.
    """
    settings, origin = current_parts().settings, request.headers.get("Origin", "")
    if not origin or not (settings.public_url or settings.allowed_origins):
        return True
    return origin_is_allowed(settings, origin, request.host_url)


def _wrong_origin_message() -> str:
    expected = expected_origins(current_parts().settings, request.host_url)[1:]
    origin = request.headers.get("Origin", "")[:200]
    words = _(
        "This page was opened at %(origin)s, but the server is set up for %(expected)s. Open it there; if that is "
        "wrong, CHATAPP_PUBLIC_URL is, which its operator can correct.",
        origin=origin,
        expected=" and ".join(expected),
    )
    return str(words)


def check_origin() -> Any:
    """Refuse a cross-site POST. For `before_request`."""
    if request.method == "POST" and not has_allowed_origin():
        return refuse("origin", _wrong_origin_message(), 403)
    return None


def require_session() -> Any:
    """Redirect a request without a session to the sign-in form; 401 for programs. For `before_request`."""
    if current_parts().auth.current() is not None:
        return None
    if wants_json() or request.method == "POST":
        return refuse("signed-out", _("You are signed out. Sign in again; what you wrote is kept."), 401)
    if current_parts().store.people.is_empty():
        return redirect(url_for("auth.first_run"))
    target = None if request.path == "/" else request.full_path.rstrip("?")
    return redirect(url_for("auth.sign_in", next=target))


def enforce_quota(wait_s: float, message: str) -> None:
    """End the request with 429 and Retry-After if `wait_s` is not 0."""
    if wait_s > 0:
        response = make_response(refuse("rate", message, 429))
        response.headers["Retry-After"] = str(ceil(wait_s))
        abort(response)


def refuse(code: str, message: str, status: int) -> Any:
    """Return an error response: JSON or a page."""
    if wants_json():
        return jsonify(error={"code": code, "message": message}), status
    title = {401: "Signed out", 404: "Not found", 409: "Already there"}.get(status, "That did not work")
    return render_template("errors/error.html", code=status, title=title, message=message), status


def handle_chat_error(error: ChatError) -> Any:
    """Return the response to a broken rule of the chat."""
    status = 404 if isinstance(error, Gone) else 409 if isinstance(error, Conflict) else 422
    return refuse(error.code, error.message, status)


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
