"""What needs no session: health, static files, the service worker and the page of last resort."""

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
    """The process answers."""
    return Response("ok\n", content_type="text/plain")


@bp.get("/readyz")
def readyz() -> tuple[Response, int]:
    """The process can do its work; else 503, and why not."""
    parts = current_parts()
    trouble = "closing" if parts.connections.is_draining else parts.store.trouble()
    return (jsonify(ready=False, reason=trouble), 503) if trouble else (jsonify(ready=True), 200)


@bp.get("/static/<version>/<path:name>")
def static(version: str, name: str) -> Response:
    """A static file, under the name of the content of all."""
    files = current_parts().static
    own, _, asked = version.partition(".")[0].partition("-")  # .1, .2: asked for again (static/js/watchdog)
    languages = _languages(current_app._get_current_object())  # type: ignore[attr-defined]
    language = asked if asked in languages else languages[0]  # there may be no translation into it
    with force_locale(language):
        response = files.answer(name, language)
    # A page of another process, or language: what it gets now must not be kept under that name.
    is_kept = own == files.version and asked in ("", language)
    response.headers["Cache-Control"] = IMMUTABLE if is_kept else UNKEPT
    return response


@cache
def _languages(app: Flask) -> tuple[str, ...]:
    return tuple(str(locale) for locale in app.extensions["babel"].instance.list_translations())


def address_of(name: str) -> str:
    """Where a static file is served: an own script in the reader's language, and so all that it imports."""
    language = f"-{get_locale()}" if name.startswith(OWN_SCRIPTS) else ""
    return url_for("site.static", version=current_parts().static.version + language, name=name)


@bp.get("/worker.js")
def worker() -> Response:
    """The service worker, at the root: a worker answers for what lies beside and below it."""
    files = current_parts().static
    settings = {
        "instance": current_parts().instance,
        "version": files.version,
        "base": f"{request.script_root}/",
        "files": [address_of(name) for name in sorted(files.kept())],
        "fallback": url_for("site.offline"),
    }
    return files.worker(settings).answer()


@bp.get("/offline")
def offline() -> str:
    """What the service worker shows where it has nothing else."""
    return render_template("errors/offline.html")


@bp.app_context_processor
def template_names() -> dict[str, Any]:
    """What every template may use."""
    parts = current_parts()
    session = parts.auth.current()
    return {
        "static": address_of,
        "sheets": parts.static.sheets,
        "csrf_token": generate_csrf,
        "product": "chatapp",
        "instance": parts.instance,
        "person": session.person if session else None,
        "language": "en",
    }
