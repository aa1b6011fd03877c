"""The Flask route of polls: refusals, polls during a drill, and long polls that cannot be detached from gunicorn."""

from math import ceil
from typing import Any

from flask import Blueprint, Response, request

from chatapp.parts import current_parts
from chatapp.store import StorageUnavailable
from chatapp.store.database import RETRY_S
from chatapp.transports import protocol
from chatapp.transports.long_poll import UNREADABLE
from chatapp.transports.over_budget import POLLS
from chatapp.transports.polling import DRAIN_RETRY_S, BadPoll, parse, within

bp = Blueprint("changes", __name__)


@bp.get("/changes")
def show() -> Any:
    """Return the changes after the poll's cursors (docs/protocol.md)."""
    parts, sign_in = current_parts(), current_parts().auth.current()
    if sign_in is None and (ticket := parts.tickets.find(request.environ)):
        if wait_s := parts.tickets.take(ticket, "poll"):
            return _error("rate", POLLS, 429, ceil(wait_s))
        return Response(protocol.answer([]), content_type="text/html; charset=utf-8")  # a test's, with nothing in it
    if sign_in is None:
        return _error("signed-out", "You are signed out.", 401)
    if request.args.get("person", sign_in.person.uuid) != sign_in.person.uuid:
        return _error("signed-out", "Somebody else has signed in.", 401)
    if wait_s := parts.limits.polls.take(sign_in.person.id):
        return _error("rate", POLLS, 429, ceil(wait_s))
    if parts.connections.is_draining:
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


def _error(code: str, message: str, status: int, retry_s: int = 0) -> Any:
    headers = {"Retry-After": str(retry_s)} if retry_s else {}
    return {"error": {"code": code, "message": message}}, status, headers
