"""chatapp: the chat that works on every network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from chatapp.config import Settings


def create_app(settings: Settings | None = None) -> Flask:
    """The app, put together (chatapp/factory.py); settings come from the environment where none are given."""
    # Imported here: commands need none of it, and the server patches the library before it.
    from chatapp.factory import create_app as put_together

    return put_together(settings)
