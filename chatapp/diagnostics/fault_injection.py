"""What a drill does to requests: a refused upgrade, a late answer, a 429. Without a drill this costs one comparison."""

from __future__ import annotations

import math
import time

from flask import Flask, Response, jsonify, request

from chatapp.accounts.auth import Auth
from chatapp.diagnostics.drills import Drills
from chatapp.store import Drill

UPGRADE = "websocket_route"
# The chat's own ways; pages and tests stay well.
SPOILED = {UPGRADE, "changes.show", "conversations.post", "conversations.create"}


def register(app: Flask, drills: Drills, auth: Auth) -> None:
    """Look at each request before anything else does. Call it before the transports register theirs."""

    @app.before_request
    def spoil() -> Response | None:
        if not drills.is_running or request.endpoint not in SPOILED:
            return None
        sign_in = auth.current()
        drill = drills.on(sign_in.person.id) if sign_in else None
        return _spoiled(drill, str(request.endpoint)) if drill else None


def _spoiled(drill: Drill, endpoint: str) -> Response | None:
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
