"""The HTML routes, a blueprint a resource; here is what they share: who asks, and how a refusal is said.

A form gets a redirect (303); a program that says `Accept: application/json` gets JSON. Told apart by Accept, because
strict proxies strip the headers by which libraries mark themselves.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import abort, jsonify, make_response, redirect, render_template, request, url_for

from chatapp.accounts.auth import expected_origins, origin_is_allowed
from chatapp.chat import ChatError, Conflict, Gone
from chatapp.parts import current_parts


def me() -> int:
    """The number of the person who asks; require_session() saw to it that there is one."""
    sign_in = current_parts().auth.current()
    if sign_in is None:
        abort(401)
    return sign_in.person.id


def wants_json() -> bool:
    """Whether a program asks, and not a person's form."""
    accepts = request.accept_mimetypes
    return (
        accepts.best_match(["text/html", "application/json"]) == "application/json" or "HX-Request" in request.headers
    )


def is_from_here() -> bool:
    """Whether the Origin, where there is one and the settings say which are ours, is one of them.

    Without these settings the CSRF token decides alone: strict proxies rewrite Host, so ours could not be known.
    """
    settings, origin = current_parts().settings, request.headers.get("Origin", "")
    if not origin or not (settings.public_url or settings.allowed_origins):
        return True
    return origin_is_allowed(settings, origin, request.host_url)


def _other_address() -> str:
    """The sentence for a page that was opened at an address that the settings do not name."""
    expected = expected_origins(current_parts().settings, request.host_url)[1:]
    came = request.headers.get("Origin", "")[:200]
    words = f"This page was opened at {came}, but the server is set up for {' and '.join(expected)}."
    return f"{words} Open it there; if that is wrong, CHATAPP_PUBLIC_URL is, which its operator can correct."


def check_origin() -> Any:
    """Refuse what another page had a browser send. For `before_request`."""
    if request.method == "POST" and not is_from_here():
        return problem("origin", _other_address(), 403)
    return None


def require_session() -> Any:
    """Send who is signed out to the sign-in, or tell a program so. For `before_request`."""
    if current_parts().auth.current() is not None:
        return None
    if wants_json() or request.method == "POST":
        return problem("signed-out", "You are signed out. Sign in again; what you wrote is kept.", 401)
    if current_parts().store.people.is_empty():
        return redirect(url_for("auth.first_run"))
    target = None if request.path == "/" else request.full_path.rstrip("?")
    return redirect(url_for("auth.sign_in", next=target))


def slow_down(wait_s: float, message: str) -> None:
    """End the request with 429 and when to come back, where there is anything to wait for."""
    if wait_s > 0:
        response = make_response(problem("rate", message, 429))
        response.headers["Retry-After"] = str(ceil(wait_s))
        abort(response)


def problem(code: str, message: str, status: int) -> Any:
    """An expected refusal, for a program or for a person."""
    if wants_json():
        return jsonify(error={"code": code, "message": message}), status
    title = {401: "Signed out", 404: "Not found", 409: "Already there"}.get(status, "That did not work")
    return render_template("errors/error.html", code=status, title=title, message=message), status


def refused(error: ChatError) -> Any:
    """A rule of the chat said no."""
    status = 404 if isinstance(error, Gone) else 409 if isinstance(error, Conflict) else 422
    return problem(error.code, error.message, status)


def came_from() -> str | None:
    """The conversation that the person comes from: named in `?from=`, or in the page that linked here."""
    named = request.args.get("from") or _conversation_in(request.referrer or "")
    try:
        return current_parts().chat.place(me(), named).uuid if named else None
    except Gone:
        return None


def _conversation_in(address: str) -> str:
    """The conversation of an address of ours: its page, or one that names it; empty where there is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    page = re.fullmatch(r"/c/([^/]+)", parts.path.removeprefix(request.script_root))
    return page[1] if page else "".join(parse_qs(parts.query).get("from", [])[:1])
