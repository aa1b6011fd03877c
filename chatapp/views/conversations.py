"""Conversations and their messages: pages, fragments and forms."""

import re
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from flask import Blueprint, abort, jsonify, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import wants_json
from chatapp.chat import LONGEST_MESSAGE, BadMessage, ChatError
from chatapp.parts import current_parts
from chatapp.store import ConversationRef, Entry, EntryPlace, Posted
from chatapp.store.conversations import MOST_CHANGES
from chatapp.transports.over_budget import SENDS
from chatapp.views import (
    actor,
    check_origin,
    enforce_quota,
    handle_chat_error,
    person_id,
    refuse,
    require_session,
)
from chatapp.views.connection import connection_context

NEWEST = (1 << 62) - 1  # after every position

bp = Blueprint("conversations", __name__)
bp.before_request(check_origin)
bp.before_request(require_session)
bp.register_error_handler(ChatError, handle_chat_error)


@bp.get("/")
def home() -> Any:
    """Redirect to the newest conversation, or show an unsaved empty one."""
    newest = current_parts().store.conversations.newest(person_id())
    if newest is not None:
        return redirect(url_for("conversations.show", uuid=newest))
    return _page(None)


@bp.get("/c/<uuid:uuid>")
def show(uuid: UUID) -> Any:
    """Show a conversation."""
    return _page(current_parts().chat.place(person_id(), str(uuid)))


def _page(place: ConversationRef | None) -> Any:
    parts, person = current_parts(), person_id()
    uuid = place.uuid if place else str(uuid4())
    before = _position(NEWEST)
    shown = parts.chat.older(place, before) if place else None
    oldest = shown.items[0].position if shown and shown.more else 0
    entries = parts.chat.entries(person, 0)
    return render_template(
        "conversation/show.html",
        conversation=place or {"uuid": uuid, "title": ""},
        unsaved=place is None,
        people=len(parts.chat.members(place)) if place else 1,
        newcomer=parts.auth.newcomer(),
        messages=shown.items if shown else (),
        waiting=shown.waiting if shown else (),
        # A page of older messages does not continue the feed: cursor 0 replaces it by the newest page.
        cursor=shown.end if shown and before == NEWEST else 0,
        older_url=url_for("conversations.show", uuid=uuid, before=oldest) if oldest else None,
        answering=bool(place and parts.store.runs.is_answering(place.conversation)),
        conversations=entries.items,
        older_conversations=_next_page_url(person, entries.items),
        list_cursor=entries.end,
        mark=parts.store.histories.mark(max(entries.change, shown.change if shown else 0)),
        client_id=str(uuid4()),
        longest=LONGEST_MESSAGE,
        **connection_context(),
    )


def _next_page_url(person: int, shown: Sequence[Entry]) -> str | None:
    """Return the URL of the conversations after those shown; None if there are no more."""
    if len(shown) < MOST_CHANGES:
        return None
    place = EntryPlace(round(shown[-1].updated_at.timestamp() * 1000), shown[-1].uuid)
    more = current_parts().chat.older_entries(person, place)
    return url_for("conversations.older_list", before=f"{place.updated_at}.{place.uuid}") if more else None


@bp.get("/conversations")
def older_list() -> Any:
    """List the conversations after a place: `?before=MILLISECONDS.UUID`."""
    match = re.fullmatch(r"(\d{1,15})\.([0-9a-f-]{36})", request.args.get("before", ""), re.ASCII)
    if match is None:
        return refuse("bad-position", _("Say before which conversation: follow the link below the list."), 400)
    entries = current_parts().chat.older_entries(person_id(), EntryPlace(int(match[1]), match[2]))
    next_url = _next_page_url(person_id(), entries)
    return render_template("conversation/older.html", conversations=entries, older_conversations=next_url)


def _position(default: int = 0) -> int:
    """Return the position in `?before=`, without one `default`. Ends the request with 400 if it is invalid."""
    before = request.args.get("before", 0, type=int) if "before" in request.args else default
    if not 1 <= before <= NEWEST:
        abort(refuse("bad-position", _("Say before which position: ?before=41."), 400))
    return before


@bp.post("/c")
def create() -> Any:
    """Create a conversation, with or without a first message."""
    form, chat = request.form, current_parts().chat
    uuid = form.get("id") or str(uuid4())
    if current_parts().store.conversations.place(person_id(), uuid) is None:  # a repeated request costs no quota
        message = _("You began very many conversations in a short time. Try again in a while; what you wrote is kept.")
        enforce_quota(current_parts().limits.conversations.consume(person_id(), 1), message)
    if not form.get("body", "").strip():
        # Five clicks on the button open one empty conversation; a request with an id creates that one.
        is_named = wants_json() or "id" in form
        place = chat.create(person_id(), uuid) if is_named else chat.get_or_create_empty(person_id())
        if wants_json():
            return jsonify(conversation=place.uuid), 201
        return redirect(url_for("conversations.show", uuid=place.uuid), 303)
    _enforce_send(form["body"])
    posted = chat.post(person_id(), uuid, form.get("client_id") or str(uuid4()), form["body"], create=True)
    return _posted(posted)


@bp.post("/c/<uuid:uuid>/messages")
def post(uuid: UUID) -> Any:
    """Append a message."""
    form = request.form if not request.is_json else request.get_json()
    _enforce_send(form.get("body") if isinstance(form, dict) else "")
    if not isinstance(form, dict):
        return refuse("bad-body", _("Send fields client_id and body."), 400)
    client_id = form.get("client_id") or str(uuid4())
    began = time.monotonic()
    posted = current_parts().chat.post(person_id(), str(uuid), client_id, form.get("body", ""))
    current_parts().meters.observe("post", time.monotonic() - began)
    return _posted(posted)


def _enforce_send(body: object) -> None:
    enforce_quota(current_parts().limits.send(person_id(), body), SENDS)


def _posted(posted: Posted) -> Any:
    if not wants_json():
        return redirect(url_for("conversations.show", uuid=posted.conversation), 303)
    answer = {key: getattr(posted, key) for key in ("id", "client_id", "conversation", "position", "revision")}
    return jsonify(answer), 201 if posted.created else 200


@bp.get("/c/<uuid:uuid>/messages")
def older(uuid: UUID) -> Any:
    """Show the messages before a position."""
    before, place = _position(), current_parts().chat.place(person_id(), str(uuid))
    changes = current_parts().chat.older(place, before)
    return current_parts().renderer.older(place.uuid, changes)


@bp.post("/c/<uuid:uuid>/title")
def rename(uuid: UUID) -> Any:
    """Rename a conversation."""
    current_parts().chat.rename(person_id(), str(uuid), request.form.get("title", ""))
    return _done(uuid)


@bp.post("/c/<uuid:uuid>/delete")
def delete(uuid: UUID) -> Any:
    """Delete a conversation."""
    current_parts().chat.delete(actor(), str(uuid))
    return ("", 204) if wants_json() else redirect(url_for("conversations.home"), 303)


@bp.post("/c/<uuid:uuid>/messages/<uuid:message>/delete")
def delete_message(uuid: UUID, message: UUID) -> Any:
    """Delete one of the person's own messages."""
    current_parts().chat.delete_message(person_id(), str(uuid), str(message))
    return _done(uuid)


@bp.post("/c/<uuid:uuid>/stop")
def stop(uuid: UUID) -> Any:
    """Stop an answer."""
    current_parts().chat.stop(person_id(), str(uuid), request.form.get("answer", ""))
    return _done(uuid)


@bp.post("/c/<uuid:uuid>/again")
def again(uuid: UUID) -> Any:
    """Have the last message answered again."""
    _enforce_send("")
    current_parts().chat.again(person_id(), str(uuid), request.form.get("goes_on") == "1")
    return _done(uuid)


@bp.get("/c/<uuid:uuid>/edit")
def edit(uuid: UUID) -> Any:
    """Show the person's last message in a form."""
    chat = current_parts().chat
    place = chat.place(person_id(), str(uuid))
    position, body = chat.last_own(place)
    return _edit_page(place, str(uuid4()), position, body)


@bp.post("/c/<uuid:uuid>/edit")
def send_edited(uuid: UUID) -> Any:
    """Send the person's last message again, with another text."""
    chat, client_id, body = current_parts().chat, request.form.get("client_id", ""), request.form.get("body", "")
    position = request.form.get("position", 0, type=int)
    _enforce_send(body)
    try:
        chat.edit_last(person_id(), str(uuid), client_id, body, position)
    except BadMessage as refused:
        if wants_json():
            raise
        return _edit_page(chat.place(person_id(), str(uuid)), client_id, position, body, refused.message), 422
    return _done(uuid)


def _edit_page(place: ConversationRef, client_id: str, position: int, body: str, problem: str = "") -> str:
    title = place.title or _("New conversation")
    values = {"conversation": place, "title": title, "client_id": client_id, "position": position}
    values |= {"body": body, "problem": problem}
    return render_template("conversation/edit.html", longest=LONGEST_MESSAGE, **values)


def _done(uuid: UUID) -> Any:
    return ("", 204) if wants_json() else redirect(url_for("conversations.show", uuid=uuid, _anchor="composer"), 303)
