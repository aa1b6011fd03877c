"""Error responses: a page, or JSON for programs."""

import logging
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app, request
from flask_babel import gettext as _
from flask_wtf.csrf import CSRFError
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

from chatapp.gunicorn_bridge import reject_body
from chatapp.parts import current_parts
from chatapp.store import StorageUnavailable
from chatapp.store.database import RETRY_S
from chatapp.views import refuse
from chatapp.wellformed import MALFORMED, PLAIN, shown

bp = Blueprint("errors", __name__)

log = logging.getLogger("chatapp.requests")


@bp.app_errorhandler(CSRFError)
def csrf(error: CSRFError) -> Any:
    """Answer a missing or invalid CSRF token."""
    title, message = _explain_token()
    return refuse("csrf", message, 400, title)


@bp.app_errorhandler(StorageUnavailable)
def storage(error: StorageUnavailable) -> Any:
    """Answer while the database is unavailable."""
    message = _("The server cannot use its storage just now. Nothing of this was stored: send it again in a moment.")
    try:
        return refuse("storage", message, 503, _("Please try again in a moment"), RETRY_S)
    except StorageUnavailable:  # the page looks up the session
        return Response(f"{message}\n", 503, {"Retry-After": str(RETRY_S)}, content_type="text/plain; charset=utf-8")


@bp.app_errorhandler(ParseException)
def body(error: ParseException) -> Any:
    """Answer a malformed body, and close the connection."""
    reject_body(request.environ)
    log.warning("refused the body of a request from %s: %s", request.remote_addr, shown(str(error)))
    return Response(MALFORMED, 400, PLAIN)


@bp.app_errorhandler(HTTPException)
def http(error: HTTPException) -> Any:
    """Answer any other HTTP error."""
    code = error.code or 500
    if code < 400:
        return error
    return refuse(f"http-{code}", error.description or "", code, error.name)


def _explain_token() -> tuple[str, str]:
    """Return title and message for an invalid CSRF token: the likely cause and the remedy."""
    scheme = urlsplit(request.headers.get("Origin") or request.headers.get("Referer") or request.url).scheme
    if current_app.config["SESSION_COOKIE_NAME"] not in request.cookies:
        if current_app.config["SESSION_COOKIE_SECURE"] and scheme == "http":
            message = _(
                "This page was opened over http, but the server gives out its cookie for https only. Open %(url)s "
                "instead. Its operator decides that by CHATAPP_PUBLIC_URL.",
                url=current_parts().settings.public_url,
            )
            return _("Open the https address"), message
        return _("No cookie came back"), _(
            "Signing in needs a cookie, and this browser sent none. Allow cookies for this site, in the browser and in "
            "its extensions. If that does not help, something on the way takes them out: show this to your admin."
        )
    sign_in = current_parts().auth.current()
    if request.endpoint == "auth.sign_in_post" and sign_in is not None:
        name = sign_in.person.name
        message = _("As %(name)s, in another tab or window. To be somebody else, sign out there first.", name=name)
        return _("You are signed in already"), message
    return _("Please reload"), _("This page is from before the last sign-in. Reload it and try again.")
