"""The documents of the built-in assistant: to read for everybody, to change for operators."""

import unicodedata
from typing import Any

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.accounts.auth import wants_json
from chatapp.assistant import markdown
from chatapp.assistant.knowledge import asked_apart, split_document
from chatapp.assistant.own_files import LARGEST_FILE, LARGEST_UPLOAD, MOST_FILES, FileRefused, KnowledgeFile, check_size
from chatapp.concurrency import compute_in_thread
from chatapp.parts import current_parts
from chatapp.store.questions import LONGEST_QUESTION
from chatapp.views import actor, came_from, check_origin, refuse, require_session, signed_in
from chatapp.views.people import require_confirmed
from chatapp.wellformed import shown

LONGEST_PREVIEW = 100_000  # characters
LONGEST_NAME = 80  # characters of a file's name that are shown
MOST_SHOWN = 50  # questions, until all are asked for
MB = 1_000_000

bp = Blueprint("knowledge", __name__, url_prefix="/knowledge")
bp.before_request(check_origin)
bp.before_request(require_session)


@bp.get("")
def index() -> Any:
    """List the documents; for operators with all that they can do about them."""
    return _index()


def _index(problem: str = "", draft: str = "", preview: dict[str, Any] | None = None) -> str:
    documents = current_parts().knowledge.titles()
    if not signed_in().person.is_operator:
        return render_template("knowledge/index.html", came_from=came_from(), documents=documents)
    return render_template(
        "knowledge/manage.html",
        came_from=came_from(),
        rows=_rows(dict(documents)),
        is_confirmed=current_parts().auth.is_confirmed(),
        problem=problem,
        done=request.args.get("done", ""),
        names=_known_names(),
        removed=request.args.get("removed", "")[:LONGEST_NAME],
        tried=_tried(),
        draft=draft,
        preview=preview,
        longest_preview=LONGEST_PREVIEW,
        longest_question=LONGEST_QUESTION,
        **_asked(),
    )


def _rows(titles: dict[str, str]) -> list[tuple[str, KnowledgeFile]]:
    """Return each file with its title, the own ones first; a file without a document has its name."""
    rows = [(titles.get(one.slug) or one.name, one) for one in current_parts().own_files.listed()]
    return sorted(rows, key=lambda row: (not row[1].is_own, not row[1].slug, row[0].lower()))


def _known_names() -> dict[str, list[str]]:
    """Return the names that the address of the page has from the last change, if there are such files."""
    known = {one.name for one in current_parts().own_files.listed()}
    given = {kind: request.args.getlist(kind)[:MOST_FILES] for kind in ("added", "replaced")}
    return {kind: [name for name in names if name in known] for kind, names in given.items()}


def _tried() -> dict[str, Any] | None:
    """Return the question to try, by its words or by the number of a counted one, with the passages for it."""
    question, number = request.args.get("q", "").strip(), request.args.get("asked", "")
    if number.isdecimal() and len(number) <= 15:
        counted = current_parts().store.questions.find(int(number))
        question = counted.text if counted else question
    if not question:
        return None
    found = current_parts().knowledge.find(question[:LONGEST_QUESTION])
    return {"question": question[:LONGEST_QUESTION], "found": found, "quoted": found.quotable}


def _asked() -> dict[str, Any]:
    """Return the counted questions, and the words about documents that did not help."""
    parts, is_all, is_often = current_parts(), "all" in request.args, request.args.get("by") == "number"
    if not parts.unanswered.is_kept:
        return {"is_kept": False}
    table, most = parts.store.questions, None if is_all else MOST_SHOWN
    questions = table.newest(is_no_help=False, most=most, by_number=is_often)
    return {
        "is_kept": True,
        "is_often": is_often,
        "questions": questions,
        "more": 0 if is_all else max(0, table.count(is_no_help=False) - len(questions)),
        "no_help": table.newest(is_no_help=True, most=most),
        "more_no_help": 0 if is_all else max(0, table.count(is_no_help=True) - MOST_SHOWN),
        "titles": dict(parts.knowledge.titles()),
    }


# The operator's files; /knowledge/files/ and /knowledge/questions/ do not exist for others (people.hide_from_others)


@bp.post("/files/upload")
def upload() -> Any:
    """Take files: all of them, or none and the reason."""
    require_confirmed(url_for("knowledge.index"))
    parts = current_parts()
    given = [one for one in request.files.getlist("file") if one.filename]
    try:
        files = [(one.filename or "", one.stream.read(LARGEST_FILE + 1)) for one in given]
        with parts.own_files.staging(files) as staged:
            for kind, names in (("added", staged.added), ("replaced", staged.replaced)):
                for name in names:
                    parts.store.audit.add(f"knowledge-{kind}", actor(), detail=name)
            staged.publish()
    except FileRefused as refused:
        return _refused(refused)
    parts.knowledge.look_again()
    if wants_json():
        return {"added": staged.added, "replaced": staged.replaced}
    return redirect(url_for("knowledge.index", done="uploaded", added=staged.added, replaced=staged.replaced), 303)


@bp.post("/files/remove")
def remove() -> Any:
    """Delete a file of the operator's."""
    require_confirmed(url_for("knowledge.index"))
    parts, name = current_parts(), request.form.get("name", "")
    try:
        with parts.own_files.removing(name) as uncovers:
            parts.store.audit.add("knowledge-removed", actor(), detail=name)
    except FileRefused as refused:
        return _refused(refused)
    parts.knowledge.look_again()
    if wants_json():
        return {"removed": name, "shipped": uncovers}
    done = "uncovered" if uncovers else "removed"
    return redirect(url_for("knowledge.index", done=done, removed=name), 303)


def _refused(refused: FileRefused) -> Any:
    """Answer with the reason; the files of a page's form must be chosen again."""
    statuses = {"gone": 404, "full": 507, "failed": 500}
    status, message = statuses.get(refused.reason, 422), refusal_words(refused)
    if wants_json():
        return refuse(refused.reason, message, status)
    return _index(message), status


def refusal_words(refused: FileRefused) -> str:
    """Return the reason for which a file was refused, and the remedy."""
    name, detail = _quoted(refused.name), refused.detail
    sentences = {
        "none": _("No file was chosen. Choose one or several, then press Upload."),
        "many": _("These are more than %(most)s files. Upload them in several turns.", most=detail),
        "name": _(
            "%(name)s is no name for a file here. Documents are called such as backup-policy.md: it begins with a "
            "letter or digit, goes on with up to 60 of A-Z, a-z, 0-9, space, - and _, and ends in .md; word lists are "
            "glossary.txt, stopwords.txt and weakwords.txt. %(letter)sRename it, then upload it again.",
            name=name,
            letter=_foreign_letter(refused.name),
        ),
        "reserved": _("%(name)s is a name that Windows keeps for a device. Rename the file.", name=name),
        "block": _(
            "%(name)s has a paragraph, table or code of more than 50,000 characters, from line %(line)s on. Split it "
            "by empty lines, or into several documents.",
            name=name,
            line=detail,
        ),
        "headings": _("%(name)s has more than %(most)s headings. Split it.", name=name, most=detail),
        "large": _("%(name)s is larger than 1 MB. Split it into several documents.", name=name),
        "text": _(
            "%(name)s is not text in UTF-8 (line %(line)s). Save it as UTF-8, then upload it again.",
            name=name,
            line=detail,
        ),
        "same": _(
            "%(name)s would have the same address as %(other)s. Give one of them another name, or remove that first.",
            name=name,
            other=_quoted(detail),
        ),
        "link": _(
            "%(name)s is no plain file on the server, but a link or a folder that somebody put there with a shell. It "
            "was not touched: change it there.",
            name=name,
        ),
        "folder": _(
            "The folder “knowledge” in the data directory is a link that somebody made with a shell. Nothing was "
            "changed: change its files there."
        ),
        "gone": _("There is no file %(name)s of yours. Somebody may have removed it.", name=name),
        "full": _("There is no room on the server's disk: nothing was changed. Make room, then try again."),
        "failed": _(
            "The server cannot change its folder of documents (%(why)s). Give its user the right to write there.",
            why=detail,
        ),
    }
    return str(sentences[refused.reason])


def _quoted(name: str) -> str:
    """Return a file's name for a sentence; signs that are not seen, or turn the text around, as their codes."""
    return f"“{name[:LONGEST_NAME]}”" if name.isprintable() else shown(name)


def _foreign_letter(name: str) -> str:
    """Return a sentence about the first letter that no name may have, since some look like others; "" for none."""
    letter = next((one for one in name if not one.isascii() and one.isprintable()), "")
    return _("“%(letter)s” is %(called)s. ", letter=letter, called=unicodedata.name(letter, "?")) if letter else ""


@bp.errorhandler(413)
def too_large(error: Exception) -> Any:
    """Answer an upload, or another form, that is too large as a whole."""
    message = _("This is longer than this form takes. Send a part of it.")
    if request.endpoint == "knowledge.upload":
        most = _("%(most)s MB", most=LARGEST_UPLOAD // MB)
        message = _(
            "This is too much at once: at most %(most)s, and 1 MB for each file. Upload fewer files at a time.",
            most=most,
        )
    return refuse("http-413", message, 413)


@bp.post("/files/preview")
def preview() -> Any:
    """Show Markdown as a document would be, and its passages. Nothing is stored."""
    source = request.form.get("source", "").replace("\r", "")
    if len(source) > LONGEST_PREVIEW:
        message = _("This is longer than %(most)s characters. Paste a part of it.", most=LONGEST_PREVIEW)
        return refuse("too-long", message, 422)
    try:
        check_size("Markdown", source)
    except FileRefused as refused:
        return refuse(refused.reason, refusal_words(refused), 422)
    passages = compute_in_thread(split_document, "preview", source)
    html = compute_in_thread(markdown.render, asked_apart(source)[0])
    if wants_json():
        return {"html": html, "passages": [{"heading": one.heading, "asked": one.asked} for one in passages]}
    return _index(draft=source, preview={"html": html, "passages": passages})


# Questions


@bp.post("/questions/<int:number>/forget")
def forget(number: int) -> Any:
    """Delete a counted question."""
    require_confirmed(url_for("knowledge.index"))
    table = current_parts().store.questions
    counted = table.find(number) if number < 1 << 53 else None
    if counted is None or not table.forget(number):
        abort(404)
    current_parts().store.audit.add("question-forgotten", actor(), detail=counted.kind)
    return ("", 204) if wants_json() else redirect(url_for("knowledge.index", done="forgotten"), 303)


# One document


@bp.get("/<slug>")
def show(slug: str) -> Any:
    """Show a document; citations link to its passages."""
    parts = current_parts()
    document = parts.knowledge.document(slug)
    if document is None:
        return refuse("gone", _("There is no such document in the knowledge folder."), 404)
    return render_template(
        "knowledge/show.html",
        came_from=came_from(),
        document=document,
        slug=slug,
        is_counted=parts.unanswered.is_kept,
        is_noted="noted" in request.args,
        longest=LONGEST_QUESTION,
    )


@bp.post("/<slug>")
def no_help(slug: str) -> Any:
    """Count that a document did not help, with a sentence that may be empty, and nobody's name."""
    parts = current_parts()
    if not parts.unanswered.is_kept or parts.knowledge.document(slug) is None:
        abort(404)
    words = request.form.get("words", "").strip()
    if len(words) > LONGEST_QUESTION:
        return refuse("too-long", _("Say it in at most %(most)s characters.", most=LONGEST_QUESTION), 422)
    parts.unanswered.note_no_help(slug, words)
    if wants_json():
        return "", 204
    values: dict[str, Any] = {"from": came_from(), "noted": ""}
    return redirect(url_for("knowledge.show", slug=slug, **values, _anchor="did_not_help"), 303)
