"""chatapp: the chat that works on every network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from chatapp.config import Settings


def create_app(settings: Settings | None = None) -> Flask:
    """Return the app (chatapp/factory.py); without `settings`, they come from the environment."""
    # Imported here: commands need none of it, and server.py patches the standard library before it.
    from chatapp.factory import create_app

    return create_app(settings)
