"""Routes without a session: health, static files, the service worker and its fallback page."""

from __future__ import annotations

from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, render_template, request, url_for
from flask_babel import force_locale, get_locale
from flask_wtf.csrf import generate_csrf

from chatapp.parts import current_parts
from chatapp.staticfiles import OWN_SCRIPTS
from chatapp.transports.integrity import UNKEPT

IMMUTABLE = "public, max-age=31536000, immutable, no-transform"  # a year

bp = Blueprint("site", __name__)


@bp.get("/healthz")
def healthz() -> Response:
    """Report that the process responds."""
    return Response("ok\n", content_type="text/plain")


@bp.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Report that the process can serve; else 503 and the reason."""
    parts = current_parts()
    trouble = "closing" if parts.connections.is_draining else parts.store.trouble()
    return (jsonify(ready=False, reason=trouble), 503) if trouble else (jsonify(ready=True), 200)


@bp.get("/static/<version>/<path:name>")
def static(version: str, name: str) -> Response:
    """Serve a static file. `version`: HASH, HASH-LANGUAGE, and .1, .2 for the watchdog's retries."""
    files = current_parts().static
    content, _, wanted = version.partition(".")[0].partition("-")
    languages = _languages(current_app._get_current_object())  # type: ignore[attr-defined]
    language = wanted if wanted in languages else languages[0]  # not every language has a translation
    with force_locale(language):
        response = files.response(name, language)
    # Under the version of another process, or another language, the response must not be cached.
    is_exact = content == files.version and wanted in ("", language)
    response.headers["Cache-Control"] = IMMUTABLE if is_exact else UNKEPT
    return response


@cache
def _languages(app: Flask) -> tuple[str, ...]:
    return tuple(str(locale) for locale in app.extensions["babel"].instance.list_translations())


def static_url(name: str) -> str:
    """Return the URL of a static file; that of our own scripts names the reader's language."""
    language = f"-{get_locale()}" if name.startswith(OWN_SCRIPTS) else ""
    return url_for("site.static", version=current_parts().static.version + language, name=name)


@bp.get("/worker.js")
def worker() -> Response:
    """Serve the service worker, at the root: its scope is its own folder."""
    files = current_parts().static
    settings = {
        "instance": current_parts().instance,
        "version": files.version,
        "base": f"{request.script_root}/",
        "files": [static_url(name) for name in sorted(files.offline_names())],
        "fallback": url_for("site.offline"),
    }
    return files.worker(settings).response()


@bp.get("/offline")
def offline() -> str:
    """Show the service worker's page for everything that it has not stored."""
    return render_template("errors/offline.html")


@bp.app_context_processor
def template_names() -> dict[str, Any]:
    """Return the variables of every template."""
    parts = current_parts()
    session = parts.auth.current()
    return {
        "static": static_url,
        "sheets": parts.static.sheets,
        "csrf_token": generate_csrf,
        "product": "chatapp",
        "instance": parts.instance,
        "person": session.person if session else None,
        "language": "en",
    }
