"""The documents of the built-in assistant."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, render_template
from flask_babel import gettext as _

from chatapp.parts import current_parts
from chatapp.views import came_from, refuse, require_session

bp = Blueprint("knowledge", __name__, url_prefix="/knowledge")
bp.before_request(require_session)


@bp.get("")
def index() -> Any:
    """List the documents."""
    return render_template("knowledge/index.html", came_from=came_from(), documents=current_parts().knowledge.titles())


@bp.get("/<slug>")
def show(slug: str) -> Any:
    """Show a document; citations link to its passages."""
    document = current_parts().knowledge.document(slug)
    if document is None:
        return refuse("gone", _("There is no such document in the knowledge folder."), 404)
    return render_template("knowledge/show.html", came_from=came_from(), document=document)
