"""The Flask route of polls: refusals, polls during a drill, and long polls that cannot be detached from gunicorn."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from chatapp.parts import current_parts
from chatapp.store import StorageUnavailable
from chatapp.store.unavailable import RETRY_S
from chatapp.transports import protocol
from chatapp.transports.long_poll import UNREADABLE
from chatapp.transports.polling import DRAIN_RETRY_S, BadPoll, parse, within

bp = Blueprint("changes", __name__)


@bp.get("/changes")
def show() -> Response:
    """Return the changes after the poll's cursors (docs/protocol.md)."""
    parts, sign_in = current_parts(), current_parts().auth.current()
    if sign_in is None:
        return _error("signed-out", "You are signed out.", 401)
    if request.args.get("person", sign_in.person.uuid) != sign_in.person.uuid:
        return _error("signed-out", "Somebody else has signed in.", 401)
    if parts.polls.is_draining:
        return _error("restart", "The server is closing; come back in a moment.", 503, DRAIN_RETRY_S)
    try:
        poll = within(parse(request.args, parts.settings.poll_longest_hold), sign_in)
        frames = parts.polls.answer(sign_in.person.id, sign_in.id, poll)
    except BadPoll as error:
        return _error("bad-poll", str(error), 400)
    except StorageUnavailable:
        return _error("storage", UNREADABLE, 503, RETRY_S)
    if not frames:
        return Response(status=204)
    return Response(protocol.answer(frames), content_type="text/html; charset=utf-8")


def _error(code: str, message: str, status: int, retry_s: int | None = None) -> Response:
    response = jsonify(error={"code": code, "message": message})
    response.status_code = status
    if retry_s is not None:
        response.headers["Retry-After"] = str(retry_s)
    return response
