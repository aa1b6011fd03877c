"""Text files of messages: a form that sends one, and their download."""

from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

from flask import Blueprint, Response, abort, jsonify, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import wants_json
from chatapp.chat import FILE_ENDINGS, LONGEST_FILE, BadMessage, ChatError, Forbidden
from chatapp.parts import current_parts
from chatapp.transports.over_budget import SENDS
from chatapp.views import check_origin, enforce_quota, handle_chat_error, person_id, require_session

bp = Blueprint("attachments", __name__)
bp.before_request(check_origin)
bp.before_request(require_session)
bp.register_error_handler(ChatError, handle_chat_error)


@bp.get("/c/<uuid:uuid>/attachments")
def form(uuid: UUID) -> Any:
    """Show the form: a file, and some words with it."""
    return _form(uuid, str(uuid4()))


@bp.post("/c/<uuid:uuid>/attachments")
def send(uuid: UUID) -> Any:
    """Send a message with a file."""
    file, words = request.files.get("file"), request.form.get("body", "")
    client_id = request.form.get("client_id", "")
    enforce_quota(current_parts().limits.send(person_id(), words), SENDS)
    try:
        if file is None or not file.filename:
            raise BadMessage("no-file", _("Choose a file."))
        data = file.stream.read(LONGEST_FILE + 1)
        posted = current_parts().chat.attach(person_id(), str(uuid), client_id, words, file.filename, data)
    except (BadMessage, Forbidden) as refused:
        if wants_json():
            raise
        return _form(uuid, client_id, words, refused.message), 422
    if wants_json():
        return jsonify(id=posted.id, conversation=posted.conversation, position=posted.position), 201
    return redirect(url_for("conversations.show", uuid=uuid, _anchor="composer"), 303)


def _form(uuid: UUID, client_id: str, words: str = "", problem: str = "") -> str:
    values = {"uuid": uuid, "client_id": client_id, "body": words, "problem": problem}
    most = LONGEST_FILE // 1000
    return render_template("conversation/attach.html", endings=", ".join(FILE_ENDINGS), most=most, **values)


@bp.get("/attachments/<uuid:uuid>")
def show(uuid: UUID) -> Response:
    """Send a file, always as a download: its text is somebody's, and no page of this site."""
    file = current_parts().store.attachments.find(person_id(), str(uuid))
    if file is None:
        abort(404)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}"}
    return Response(file.text, headers=headers, content_type="text/plain; charset=utf-8")
