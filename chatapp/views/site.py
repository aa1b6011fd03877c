"""Health, for load balancers, and the variables of every template."""

from typing import Any

from flask import Blueprint, Response, jsonify
from flask_wtf.csrf import generate_csrf

from chatapp.parts import current_parts

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


@bp.app_context_processor
def template_names() -> dict[str, Any]:
    """Return the variables of every template."""
    parts = current_parts()
    session = parts.auth.current()
    return {
        "csrf_token": generate_csrf,
        "product": "chatapp",
        "instance": parts.instance,
        "person": session.person if session else None,
        "language": "en",
    }
