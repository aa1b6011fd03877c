"""Errors of the server and of browsers, by their fingerprints, for operators."""

from typing import Any

from flask import Blueprint, render_template

from chatapp.parts import current_parts
from chatapp.store.error_groups import MOST_GROUPS

bp = Blueprint("error_groups", __name__, url_prefix="/monitor/errors")


@bp.get("")
def index() -> Any:
    """List the groups, the newest first."""
    return render_template("monitor/errors.html", groups=current_parts().store.error_groups.newest(2 * MOST_GROUPS))
