"""The loop of the threads here: it goes on whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event

from chatapp.store import STORAGE_ERRORS

log = logging.getLogger("chatapp.monitoring")


def repeat(
    work: Callable[[], None], every_s: float, stopped: Event, name: str, on_error: Callable[[], None] = lambda: None
) -> None:
    """Call again and again, until `stopped`. `on_error`: called after an error that is not the database's."""
    while not stopped.wait(every_s):
        try:
            work()
        except STORAGE_ERRORS as error:
            log.warning("%s: the database does not do it; the next try is in a moment: %s", name, error)
        except Exception:  # the top of a thread: the next try may succeed
            log.exception("%s failed; the next try is in a moment", name)
            on_error()
