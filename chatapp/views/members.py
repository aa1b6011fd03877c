"""The people of a conversation: a page, and forms to add and remove people, to leave, and to set when the assistant
answers."""

from typing import Any
from uuid import UUID

from flask import Blueprint, jsonify, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import wants_json
from chatapp.chat import BadMessage, ChatError, Forbidden
from chatapp.parts import current_parts
from chatapp.store import ConversationRef
from chatapp.views import actor, check_origin, enforce_quota, handle_chat_error, person_id, require_session

MOST_SUGGESTED = 200  # people in the list of the field

bp = Blueprint("members", __name__, url_prefix="/c/<uuid:uuid>")
bp.before_request(check_origin)
bp.before_request(require_session)
bp.register_error_handler(ChatError, handle_chat_error)


@bp.before_request
def limit_changes() -> None:
    """Each change is a row of the audit, which nobody can delete."""
    if request.method == "POST":
        message = _("These are very many changes in a short time. Wait a moment, then go on.")
        enforce_quota(current_parts().limits.members.consume(person_id(), 1), message)


@bp.get("/people")
def index(uuid: UUID) -> Any:
    """Show the people of a conversation."""
    return _page(current_parts().chat.place(person_id(), str(uuid)))


def _page(place: ConversationRef, email: str = "", problem: str = "", wrong: str = "") -> Any:
    parts = current_parts()
    members = parts.chat.members(place)
    if wants_json():
        names = [{"id": one.uuid, "name": one.name, "email": one.email, "role": one.role} for one in members]
        return jsonify(people=names, answers=place.answers)
    known = {one.uuid for one in members}
    model, instructions = parts.chat.wishes(place)
    people = parts.store.directory.page(most=MOST_SUGGESTED)[0] if place.role == "owner" else []
    return render_template(
        "conversation/people.html",
        conversation=place,
        title=place.title or _("New conversation"),
        members=members,
        suggested=[one for one in people if one.uuid not in known and one.disabled_at is None],
        values={"email": email},
        errors={"email": problem} if problem else {},
        models=parts.provider.models(),
        model=request.form.get("model", model),
        instructions=request.form.get("instructions", instructions),
        wrong=wrong,
        done=request.args.get("done", ""),
    )


@bp.post("/people")
def add(uuid: UUID) -> Any:
    """Share the conversation with a person."""
    chat, email = current_parts().chat, request.form.get("email", "")
    try:
        chat.share(actor(), str(uuid), email)
    except Forbidden as refused:
        if wants_json() or refused.code == "not-owner":
            raise
        return _page(chat.place(person_id(), str(uuid)), email, refused.message), 422
    return _done(uuid, "added")


@bp.post("/people/<uuid:member>/remove")
def remove(uuid: UUID, member: UUID) -> Any:
    """End another person's membership."""
    current_parts().chat.remove(actor(), str(uuid), str(member))
    return _done(uuid, "removed")


@bp.post("/leave")
def leave(uuid: UUID) -> Any:
    """End the own membership."""
    current_parts().chat.leave(actor(), str(uuid))
    return ("", 204) if wants_json() else redirect(url_for("conversations.home"), 303)


@bp.post("/answers")
def answers(uuid: UUID) -> Any:
    """Set when the assistant answers."""
    current_parts().chat.set_answers(actor(), str(uuid), request.form.get("answers", ""))
    return _done(uuid, "changed")


@bp.post("/wishes")
def wishes(uuid: UUID) -> Any:
    """Set the model and the instructions."""
    chat, models = current_parts().chat, current_parts().provider.models()
    form = request.form
    try:
        chat.set_wishes(actor(), str(uuid), form.get("model", ""), form.get("instructions", ""), models)
    except BadMessage as refused:
        if wants_json():
            raise
        return _page(chat.place(person_id(), str(uuid)), wrong=refused.message), 422
    return _done(uuid, "changed")


def _done(uuid: UUID, what: str) -> Any:
    return ("", 204) if wants_json() else redirect(url_for("members.index", uuid=uuid, done=what), 303)
