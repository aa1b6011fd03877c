"""Headers of every answer, and the errors that nobody expected."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, jsonify, render_template, request
from flask_babel import gettext as _
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self' {socket}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def register(app: Flask) -> None:
    """Hang headers and error pages into the app."""

    @app.after_request
    def headers(response: Response) -> Response:
        socket = f"ws{'s' if request.is_secure else ''}://{request.host}"
        response.headers.setdefault("Content-Security-Policy", POLICY.format(socket=socket))
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        # Conversations are private: no cache on the way, and none for the back button after signing out.
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(CSRFError)
    def csrf(error: CSRFError) -> Any:
        words = _("This page is too old, or the request came from another site. Reload the page and try again.")
        return _error("csrf", 400, _("Please reload"), words)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Any:
        code = error.code or 500
        if code < 400:
            return error
        return _error(f"http-{code}", code, error.name, error.description or "")


def _error(name: str, code: int, title: str, message: str) -> Any:
    accepts = request.accept_mimetypes
    if accepts.best_match(["text/html", "application/json"]) == "application/json":
        return jsonify(error={"code": name, "message": message}), code
    return render_template("errors/error.html", code=code, title=title, message=message), code
