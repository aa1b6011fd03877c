"""The HTML routes: whole pages and fragments from the same partials, and the forms behind them.

A form gets a redirect (303); a program that says `Accept: application/json` gets JSON. Told apart by Accept, because
strict proxies strip the headers by which libraries mark themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import ceil
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

from flask import Blueprint, abort, current_app, jsonify, make_response, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts import auth as auth_room
from chatapp.accounts.auth import Refused, TooManyGuesses
from chatapp.accounts.hashing import Busy
from chatapp.accounts.quotas import EVENT_BYTES
from chatapp.chat import LONGEST_MESSAGE, ChatError, Conflict, Gone
from chatapp.config import browser_config
from chatapp.network_memory import experience, network_key
from chatapp.parts import current_parts
from chatapp.store import AlreadySetUp, ConnectionEvent, Entry, EntryPlace, Place, Posted
from chatapp.store.conversations import MOST_CHANGES

MOST_EVENTS = 200  # in one report
NEWEST = (1 << 62) - 1  # after every position
SERVERS = "server-"  # how the types of the server's own events begin
LONGEST_DATA = 2000  # characters of an event's free part

pages = Blueprint("pages", __name__)


def me() -> int:
    """The number of the person who asks; guard() saw to it that there is one."""
    sign_in = current_parts().auth.current()
    if sign_in is None:
        abort(401)
    return sign_in.person.id


def wants_json() -> bool:
    """Whether a program asks, and not a person's form."""
    accepts = request.accept_mimetypes
    return (
        accepts.best_match(["text/html", "application/json"]) == "application/json" or "HX-Request" in request.headers
    )


def is_from_here() -> bool:
    """Whether the Origin, where there is one and the settings say which are ours, is one of them.

    Without these settings the CSRF token decides alone: strict proxies rewrite Host, so ours could not be known.
    """
    settings, origin = current_parts().settings, request.headers.get("Origin", "")
    if not origin or not (settings.public_url or settings.allowed_origins):
        return True
    return auth_room.origin_is_allowed(settings, origin, request.host_url)


def _other_address() -> str:
    """The sentence for a page that was opened at an address that the settings do not name."""
    expected = auth_room.expected_origins(current_parts().settings, request.host_url)[1:]
    came = request.headers.get("Origin", "")[:200]
    words = f"This page was opened at {came}, but the server is set up for {' and '.join(expected)}."
    return f"{words} Open it there; if that is wrong, CHATAPP_PUBLIC_URL is, which its operator can correct."


PUBLIC = {"pages.sign_in", "pages.sign_in_post", "pages.first_run", "pages.first_run_post"}


@pages.before_request
def guard() -> Any:
    """Everything but the doors needs a session."""
    if request.method == "POST" and not is_from_here():
        return problem("origin", _other_address(), 403)
    if request.endpoint in PUBLIC or current_parts().auth.current() is not None:
        return None
    if wants_json() or request.method == "POST":
        return problem("signed-out", "You are signed out. Sign in again; what you wrote is kept.", 401)
    if current_parts().store.people.is_empty():
        return redirect(url_for("pages.first_run"))
    target = None if request.path == "/" else request.full_path.rstrip("?")
    return redirect(url_for("pages.sign_in", next=target))


def slow_down(wait_s: float, message: str) -> None:
    """End the request with 429 and when to come back, where there is anything to wait for."""
    if wait_s > 0:
        response = make_response(problem("rate", message, 429))
        response.headers["Retry-After"] = str(ceil(wait_s))
        abort(response)


def problem(code: str, message: str, status: int) -> Any:
    """An expected refusal, for a program or for a person."""
    if wants_json():
        return jsonify(error={"code": code, "message": message}), status
    title = {401: "Signed out", 404: "Not found", 409: "Already there"}.get(status, "That did not work")
    return render_template("errors/error.html", code=status, title=title, message=message), status


@pages.errorhandler(ChatError)
def refused(error: ChatError) -> Any:
    """A rule of the chat said no."""
    status = 404 if isinstance(error, Gone) else 409 if isinstance(error, Conflict) else 422
    return problem(error.code, error.message, status)


# The doors


@pages.get("/first-run")
def first_run() -> Any:
    """The form of an empty installation."""
    if not current_parts().store.people.is_empty():
        return redirect(url_for("pages.home"))
    return _first_run_page({}, {})


@pages.post("/first-run")
def first_run_post() -> Any:
    """Make the first admin, who is signed in at once."""
    auth, form, address = current_parts().auth, request.form, request.remote_addr or ""
    try:
        if not current_parts().store.people.is_empty():
            raise AlreadySetUp
        auth.check_code(form.get("code", ""), address)
        person = auth.first_run(form.get("name", ""), form.get("email", ""), form.get("password", ""), address)
    except Refused as error:
        return _first_run_page({error.field: error.message}, form), 422
    except TooManyGuesses:
        words = _("Too many wrong codes came from your address. Try again in a minute, or use chatapp admin create.")
        return _first_run_page({"code": words}, form), 429, {"Retry-After": "60"}
    except Busy as busy:
        return _first_run_page({"form": busy_words(busy)}, form), 503, {"Retry-After": str(busy.retry_s)}
    except AlreadySetUp:
        return problem("set-up", "Somebody has already set this up. Sign in instead.", 409)
    (current_parts().settings.data_dir / auth_room.CODE_FILE).unlink(missing_ok=True)
    auth.begin(person.id)
    return redirect(url_for("pages.home"), 303)


def _first_run_page(errors: dict[str, str], values: Any) -> str:
    return render_template("auth/first_run.html", errors=errors, values=values)


@pages.get("/sign-in")
def sign_in() -> Any:
    """The sign-in form."""
    if current_parts().auth.current() is not None:
        return redirect(url_for("pages.home"))
    if current_parts().store.people.is_empty():
        return redirect(url_for("pages.first_run"))
    return render_template("auth/sign_in.html", errors={}, values={}, next=request.args.get("next", ""))


@pages.post("/sign-in")
def sign_in_post() -> Any:
    """Sign in and go where the person wanted to go."""
    form = request.form
    try:
        person = current_parts().auth.sign_in(
            form.get("email", ""), form.get("password", ""), request.remote_addr or ""
        )
    except Refused as error:
        errors, status, headers = {error.field: error.message}, 422, {}
    except Busy as busy:
        errors, status, headers = {"form": busy_words(busy)}, 503, {"Retry-After": str(busy.retry_s)}
    else:
        current_parts().auth.begin(person)
        return redirect(_own_path(form.get("next", "")), 303)
    page = render_template("auth/sign_in.html", errors=errors, values=form, next=form.get("next", ""))
    return page, status, headers


def busy_words(busy: Busy) -> str:
    """What a person reads whose password cannot be checked now."""
    words = _("Too many people are signing in at this moment. Try again in %(seconds)s seconds.", seconds=busy.retry_s)
    return str(words)


@pages.post("/sign-out")
def sign_out() -> Any:
    """End the session."""
    current_parts().auth.end()
    return redirect(url_for("pages.sign_in"), 303)


def _own_path(target: str) -> str:
    """A path of ours to go to; never another site's address."""
    is_ours = re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", target) is not None
    return f"{request.script_root}{target}" if is_ours else url_for("pages.home")


# Conversations


@pages.get("/")
def home() -> Any:
    """The newest conversation, or an unsaved empty one."""
    newest = current_parts().store.conversations.newest(me())
    if newest is not None:
        return redirect(url_for("pages.conversation", uuid=newest))
    return _page(None)


@pages.get("/c/<uuid:uuid>")
def conversation(uuid: UUID) -> Any:
    """A conversation's page."""
    return _page(current_parts().chat.place(me(), str(uuid)))


def _page(place: Place | None) -> Any:
    parts, person = current_parts(), me()
    uuid = place.uuid if place else str(uuid4())
    before = _position()
    shown = parts.chat.older(place, before or NEWEST) if place else None
    oldest = shown.items[0].position if shown and shown.more else 0
    entries = parts.chat.entries(person, 0)
    return render_template(
        "conversation/show.html",
        conversation=place or {"uuid": uuid, "title": ""},
        unsaved=place is None,
        messages=shown.items if shown else (),
        waiting=shown.waiting if shown else (),
        # From an old page the way to what is new is not the feed's: from 0 it brings the newest page instead.
        cursor=shown.end if shown and not before else 0,
        older_url=url_for("pages.conversation", uuid=uuid, before=oldest) if oldest else None,
        answering=bool(place and parts.store.runs.is_answering(place.conversation)),
        conversations=entries.items,
        older_conversations=_after(person, entries.items),
        list_cursor=entries.end,
        mark=parts.store.histories.mark(max(entries.change, shown.change if shown else 0)),
        client_id=str(uuid4()),
        longest=LONGEST_MESSAGE,
        **_connection_context(),
    )


def _after(person: int, shown: Sequence[Entry]) -> str | None:
    """Where the conversations after those shown are, if there are any."""
    if len(shown) < MOST_CHANGES:
        return None
    place = EntryPlace(round(shown[-1].updated_at.timestamp() * 1000), shown[-1].uuid)
    there_are_more = current_parts().chat.older_entries(person, place)[0]
    return url_for("pages.older_conversations", before=f"{place.updated_at}.{place.uuid}") if there_are_more else None


@pages.get("/conversations")
def older_conversations() -> Any:
    """The conversations after a place in the list: `?before=MILLISECONDS.UUID`."""
    found = re.fullmatch(r"(\d{1,15})\.([0-9a-f-]{36})", request.args.get("before", ""), re.ASCII)
    if found is None:
        return problem("bad-position", "Say before which conversation: follow the link below the list.", 400)
    entries = current_parts().chat.older_entries(me(), EntryPlace(int(found[1]), found[2]))[0]
    following = _after(me(), entries)
    return render_template("conversation/older.html", conversations=entries, older_conversations=following)


def _position() -> int | None:
    """The position in `?before=`; None where it is not there. Ends the request where it is none."""
    if "before" not in request.args:
        return None
    before = request.args.get("before", type=int)
    if before is None or not 1 <= before <= NEWEST:
        abort(make_response(_bad_position()))
    return before


def _bad_position() -> Any:
    return problem("bad-position", "Say before which position: ?before=41.", 400)


def _connection_context() -> dict[str, Any]:
    parts = current_parts()
    sign_in = parts.auth.current()
    any_id = UUID(int=0)
    network = network_key(str(current_app.secret_key), request.remote_addr or "")
    remembered = parts.store.networks.remembered(sign_in.person.id, network) if sign_in else None
    urls = {
        "ws_url": f"{request.script_root}/ws",
        "changes_url": f"{request.script_root}/changes",
        "events_url": url_for("pages.events"),
        "create_url": url_for("pages.create"),
        "messages_url": url_for("pages.post", uuid=any_id).replace(str(any_id), "{id}"),
        "sign_in_url": url_for("pages.sign_in"),
        "worker_url": url_for("worker"),
        "mark_url": url_for("probing.mark"),
    }
    return {
        "epoch": parts.epoch,
        "instance": parts.instance,
        "person_id": sign_in.person.uuid if sign_in else "",
        "config_json": browser_config(parts.settings, urls, network, remembered, parts.drills.left_ms(me())),
    }


@pages.post("/c")
def create() -> Any:
    """A new conversation, with or without its first message."""
    form, chat = request.form, current_parts().chat
    uuid = form.get("id") or str(uuid4())
    if current_parts().store.conversations.place(me(), uuid) is None:  # else it is there, and nothing is begun
        words = _("You began very many conversations in a short time. Try again in a while; what you wrote is kept.")
        slow_down(current_parts().quotas.conversations.take(me(), 1), words)
    if not form.get("body", "").strip():
        # A person's button: five clicks are one empty conversation. Whoever names an id gets that one.
        place = chat.create(me(), uuid) if wants_json() or "id" in form else chat.begin(me())
        if wants_json():
            return jsonify(conversation=place.uuid), 201
        return redirect(url_for("pages.conversation", uuid=place.uuid), 303)
    posted = chat.post(me(), uuid, form.get("client_id") or str(uuid4()), form["body"], create=True)
    return _posted(posted)


@pages.post("/c/<uuid:uuid>/messages")
def post(uuid: UUID) -> Any:
    """Append a message."""
    form = request.form if not request.is_json else request.get_json()
    if not isinstance(form, dict):
        return problem("bad-body", "Send fields client_id and body.", 400)
    posted = current_parts().chat.post(me(), str(uuid), form.get("client_id") or str(uuid4()), form.get("body", ""))
    return _posted(posted)


def _posted(posted: Posted) -> Any:
    if not wants_json():
        return redirect(url_for("pages.conversation", uuid=posted.conversation), 303)
    answer = {key: getattr(posted, key) for key in ("id", "client_id", "conversation", "position", "revision")}
    return jsonify(answer), 201 if posted.created else 200


@pages.get("/c/<uuid:uuid>/messages")
def older(uuid: UUID) -> Any:
    """The page of messages before a position."""
    before = _position()
    if before is None:
        return _bad_position()
    place = current_parts().chat.place(me(), str(uuid))
    changes = current_parts().chat.older(place, before)
    return current_parts().renderer.older(place.uuid, changes)


@pages.post("/c/<uuid:uuid>/title")
def rename(uuid: UUID) -> Any:
    """Rename a conversation."""
    current_parts().chat.rename(me(), str(uuid), request.form.get("title", ""))
    return _done(uuid)


@pages.post("/c/<uuid:uuid>/delete")
def delete(uuid: UUID) -> Any:
    """Delete a conversation."""
    current_parts().chat.delete(me(), str(uuid))
    return ("", 204) if wants_json() else redirect(url_for("pages.home"), 303)


@pages.post("/c/<uuid:uuid>/messages/<uuid:message>/delete")
def delete_message(uuid: UUID, message: UUID) -> Any:
    """Delete one of one's own messages."""
    current_parts().chat.delete_message(me(), str(uuid), str(message))
    return _done(uuid)


@pages.post("/c/<uuid:uuid>/stop")
def stop(uuid: UUID) -> Any:
    """Stop an answer."""
    current_parts().chat.stop(me(), str(uuid), request.form.get("answer", ""))
    return _done(uuid)


@pages.post("/c/<uuid:uuid>/again")
def again(uuid: UUID) -> Any:
    """Answer again."""
    current_parts().chat.again(me(), str(uuid))
    return _done(uuid)


def _done(uuid: UUID) -> Any:
    return ("", 204) if wants_json() else redirect(url_for("pages.conversation", uuid=uuid), 303)


# The connection, and what the assistant has read: with the way back to where one came from


@pages.get("/connection")
def connection() -> Any:
    """The person's own connection."""
    return render_template("connection/show.html", came_from=_came_from(), **_connection_context())


def _came_from() -> str | None:
    """The conversation that the person comes from: named in `?from=`, or in the page that linked here."""
    named = request.args.get("from") or _conversation_in(request.referrer or "")
    try:
        return current_parts().chat.place(me(), named).uuid if named else None
    except Gone:
        return None


def _conversation_in(address: str) -> str:
    """The conversation of an address of ours: its page, or one that names it; empty where there is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    page = re.fullmatch(r"/c/([^/]+)", parts.path.removeprefix(request.script_root))
    return page[1] if page else "".join(parse_qs(parts.query).get("from", [])[:1])


@pages.post("/connection/events")
def events() -> Any:
    """A client's report of what its connection went through. Repeating it changes nothing."""
    sign_in = current_parts().auth.current()
    try:
        reported = json.loads(request.form.get("events", "[]"))
        if len(reported) > MOST_EVENTS:
            return problem("too-many", f"Report at most {MOST_EVENTS} events at once.", 413)
        rows = [_event(item, sign_in.person.uuid if sign_in else "") for item in reported]
        learned = {
            (row.client, row.number): experience(item["data"], row.happened_at)
            for item, row in zip(reported, rows, strict=True)
            if row.type == "network"
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return problem("bad-events", "events must be a JSON list as docs/protocol.md describes it.", 400)
    if any(row.type.strip().lower().startswith(SERVERS) for row in rows):
        return problem("bad-events", _("Events named server-… are the server's own: no client can report them."), 400)
    words = _("These are more reports than one person's pages may send. Keep them and send them again later.")
    slow_down(current_parts().quotas.events.take(*_size(rows)), words)
    new = current_parts().store.events.add(rows)
    if current_parts().drills.on(me()) is None:  # what fails on purpose says nothing about a network
        current_parts().store.networks.learn(me(), [learned[name] for name in learned if name in new])
    return "", 204


def _size(rows: list[ConnectionEvent]) -> tuple[str, int, int]:
    """Whose events these are, how many, and their bytes: the whole of what a quota is asked."""
    person = rows[0].person if rows else ""
    return person, len(rows), sum(EVENT_BYTES + len(row.data.encode()) for row in rows)


def _event(item: dict[str, Any], person: str) -> ConnectionEvent:
    def text(key: str, length: int) -> str | None:
        value = item.get(key)
        if value is None:
            return None
        str(value).encode()  # halves of characters cannot be stored: ValueError
        return str(value)[:length]

    number, happened_at = int(item["number"]), int(item["at"])
    if not (0 <= number < 1 << 31 and 0 <= happened_at < 1 << 53):
        raise ValueError
    return ConnectionEvent(
        client=str(UUID(item["client"])),
        number=number,
        person=person,
        type=text("type", 20) or "",
        transport=text("transport", 10),
        state_from=text("from", 12),
        state_to=text("to", 12),
        reason=text("reason", 40),
        happened_at=happened_at,
        data=json.dumps(item.get("data") or {})[:LONGEST_DATA],
    )


@pages.get("/knowledge")
def knowledge() -> Any:
    """What the built-in assistant has read."""
    return render_template("knowledge/index.html", came_from=_came_from(), documents=current_parts().knowledge.titles())


@pages.get("/knowledge/<slug>")
def passage(slug: str) -> Any:
    """One document; citations open it at the passage."""
    document = current_parts().knowledge.document(slug)
    if document is None:
        return problem("gone", "There is no such document in the knowledge folder.", 404)
    return render_template("knowledge/show.html", came_from=_came_from(), document=document)
