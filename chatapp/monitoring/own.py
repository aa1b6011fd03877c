"""A person's own connection now, in words, from the live records: for the assistant."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from chatapp.monitoring.causes import cause_of
from chatapp.monitoring.present import read_present
from chatapp.monitoring.timeline import Page
from chatapp.store import STORAGE_ERRORS, Store, now_ms

UNKNOWN = "I have no record of your connection yet: pages report it within seconds. See **Why?** beside the status."
STATES = {
    "connected": "live over WebSocket",
    "polling": "polling over HTTP, which is near real-time and loses nothing",
    "reconnecting": "reconnecting",
    "connecting": "connecting",
    "error": "without a connection",
    "disconnected": "signed out or told to stop",
}
OFTEN_S = 3600


def connection_words(store: Store, data_dir: Path, person: int) -> str:
    """Return the state of each live page of a person, since when and why, as Markdown."""
    try:
        uuid = store.directory.uuid_of(person)
        present = read_present(store, data_dir, now_ms())
    except STORAGE_ERRORS:
        return "The records of connections cannot be read at the moment. See **Why?** beside the status."
    pages = [page for page in present.pages.values() if page.person == uuid and page.state in STATES]
    if not pages:
        return UNKNOWN
    pages.sort(key=lambda page: -page.since)
    lines = [_line(page, present.at) for page in pages[:5]]
    head = "Your connection now:" if len(pages) == 1 else f"Your {len(pages)} open pages now:"
    return "\n".join([head, "", *lines, "", f"{_advice(pages[0])} The record of this page is behind **Why?**."])


def _line(page: Page, now: int) -> str:
    since = datetime.fromtimestamp(page.since / 1000, UTC)
    words = f"- {STATES[page.state]} since {since:%H:%M} UTC"
    if page.agent:
        words += f" ({page.agent})"
    reason = page.way or page.reason
    if page.state != "connected" and reason:
        cause = cause_of(reason)
        words += f"; {cause.there}{'' if cause.is_sure else ' (not known for sure)'}"
    if page.quality is not None:
        words += f"; quality {page.quality} of 100"
    drops = sum(at > now - 1000 * OFTEN_S for at in page.drops)
    return words + (f"; lost {drops} times in the last hour" if drops > 1 else "")


def _advice(page: Page) -> str:
    if page.state == "connected":
        return "Nothing to do."
    if page.state == "polling":
        cause = cause_of(page.way or page.reason)
        # A guess may blame the wrong one: a worker that was killed looks like a proxy that cuts.
        return f"You can read and write as usual. {cause.to_do if cause.is_sure else ''}".strip()
    return "What you write is kept in the browser and sent as soon as it is back."
