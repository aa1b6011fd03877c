"""The faults of a drill in requests: a refused upgrade, a late answer, a 429. Costs one comparison without a drill."""

from __future__ import annotations

import math
import time

from flask import Flask, Response, jsonify, request

from chatapp.accounts.auth import Auth
from chatapp.diagnostics.drills import Drills
from chatapp.store import Drill

UPGRADE = "websocket_route"
# Only the transports and posts; pages and connection tests keep working.
AFFECTED = {UPGRADE, "changes.show", "conversations.post", "conversations.create"}


class FaultInjection:
    """A `before_request` hook. `init_app` must be called before those of the transports."""

    def __init__(self, drills: Drills, auth: Auth) -> None:
        self._drills = drills
        self._auth = auth

    def init_app(self, app: Flask) -> None:
        """Register the hook."""
        app.before_request(self._inject)

    def _inject(self) -> Response | None:
        if not self._drills.is_running or request.endpoint not in AFFECTED:
            return None
        session = self._auth.current()
        drill = self._drills.on(session.person.id) if session else None
        return _fault(drill, str(request.endpoint)) if drill else None


def _fault(drill: Drill, endpoint: str) -> Response | None:
    if drill.fault == "refuse" and endpoint == UPGRADE:
        return Response("A drill refuses WebSockets at the moment.\n", 403, content_type="text/plain")
    if drill.fault == "delay":
        time.sleep(drill.amount_s)
    if drill.fault != "429":
        return None
    response = jsonify(error={"code": "drill", "message": "A drill asks for a pause."})
    response.status_code = 429
    response.headers["Retry-After"] = str(max(1, math.ceil(min(drill.amount_s, drill.left_s()))))
    return response
