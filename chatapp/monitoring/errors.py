"""Errors, grouped by a fingerprint: those that the server logs, and those that browsers report.

What is kept names places in the code. Messages of the server's exceptions are left out, since they may hold values;
those of browsers lose what stands in quotes, and addresses.
"""

from __future__ import annotations

import hashlib
import logging
import re
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from chatapp.meters import Meters
from chatapp.store import FoundError, now_ms
from chatapp.store.error_groups import ErrorGroups

OWN = "chatapp"  # the package whose frames make a fingerprint
MOST_QUEUED = 200  # errors between two looks; more are only counted
INNERMOST = 3  # own frames
MOST_FRAMES = 30  # of a sample
MOST_CAUSES = 4
LONGEST_MESSAGE = 200  # characters
LOGGERS = ("chatapp", "gunicorn.error")

PLACE = re.compile(r"/([\w-]{1,60}\.m?js)(?:\?[^:\s]{0,80})?:(\d{1,7})(?![\w.])", re.ASCII)
# In this order: a quote may hold an address.
VALUES = [
    (re.compile(r"\"[^\"]*\"?|'[^']*'?|`[^`]*`?|“[^”]*”?|«[^»]*»?"), "…"),
    (re.compile(r"(?<!\S)\S*[@/]\S*"), "…"),
    (re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+"), "#"),
]


@dataclass(frozen=True)
class _Seen:
    side: str
    title: str
    kind: str  # with the places, the fingerprint
    places: tuple[str, ...]
    sample: str
    at: int


class ErrorLog(logging.Handler):
    """Collects errors, of the log and of browsers. `flush_groups` stores them; nothing else waits for the database."""

    def __init__(self, groups: ErrorGroups, meters: Meters, version: str) -> None:
        super().__init__(logging.ERROR)
        self._groups, self._meters, self._version = groups, meters, version
        self._queue: deque[_Seen] = deque(maxlen=MOST_QUEUED)

    def install(self) -> None:
        """Listen to the log."""
        for name in LOGGERS:
            logger = logging.getLogger(name)
            if self not in logger.handlers:
                logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue an error of the server. Called by logging."""
        self._meters.count("errors server")
        _, error, trace = record.exc_info if isinstance(record.exc_info, tuple) else (None, None, None)
        if error is None:
            place = f"{record.funcName}, {_short(record.pathname)}"
            title, sample = f"{record.name}: {record.msg}"[:LONGEST_MESSAGE], f"{place}, line {record.lineno}"
            self._queue.append(_Seen("server", title, str(record.msg), (place,), sample, now_ms()))
            return
        own = _own_places(error, trace)
        kind = type(error).__qualname__
        title = f"{kind} in {own[-1]}" if own else kind
        self._queue.append(_Seen("server", title[:LONGEST_MESSAGE], kind, own, _sample(error, trace), now_ms()))

    def note_browser(self, told: Mapping[str, Any]) -> None:
        """Queue an error of a browser, from `browser_error`."""
        self._meters.count("errors browser")
        message, place = str(told.get("message", "")), str(told.get("at", ""))
        sample = f"{message}\n{place}"
        self._queue.append(_Seen("browser", message or "error", message, (place,), sample, now_ms()))

    def flush_groups(self) -> None:
        """Store the queued errors by their fingerprints. Raises the errors of the store."""
        found: dict[str, FoundError] = {}
        while self._queue:
            seen = self._queue.popleft()
            name = fingerprint(seen.side, seen.kind, *seen.places)
            known = found.get(name)
            number, first_at = (known.number + 1, known.first_at) if known else (1, seen.at)
            found[name] = FoundError(name, seen.side, seen.title, seen.sample, self._version, number, first_at, seen.at)
        if found:
            self._groups.add(found.values())


def fingerprint(*parts: str) -> str:
    """Return the name of a group: of the kind of an error, and its places."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def browser_error(told: Mapping[str, Any]) -> dict[str, str]:
    """Return a browser's report of an error without values: its message, and the place in our scripts."""
    message, place = str(told.get("message", ""))[: 2 * LONGEST_MESSAGE], str(told.get("at", ""))
    found = PLACE.search(place[:500])  # of a stack, the innermost
    return {"message": without_values(message)[:LONGEST_MESSAGE], "at": f"{found[1]}:{found[2]}" if found else ""}


def without_values(message: str) -> str:
    """Return an error's message without quoted texts, addresses and numbers."""
    for pattern, instead in VALUES:
        message = pattern.sub(instead, message)
    return message.strip()


def _short(path: str) -> str:
    """Return a file's path from our package, or from the folder of packages, on."""
    for start in (f"/{OWN}/", "/site-packages/"):
        if start in path:
            tail = path.rpartition(start)[2]
            return f"{OWN}/{tail}" if start == f"/{OWN}/" else tail
    return path.rpartition("/")[2]


def _frames(trace: TracebackType | None) -> list[tuple[str, int, str]]:
    """Return file, line and function of each frame, outermost first, without reading the files."""
    return [(_short(f.f_code.co_filename), line, f.f_code.co_name) for f, line in traceback.walk_tb(trace)]


def _own_places(error: BaseException, trace: TracebackType | None) -> tuple[str, ...]:
    """Return the innermost frames of our code; lines are left out, as each release moves them."""
    own = [f"{name}, {path}" for path, _, name in _frames(trace or error.__traceback__) if path.startswith(f"{OWN}/")]
    return tuple(own[-INNERMOST:])


def _sample(error: BaseException, trace: TracebackType | None) -> str:
    """Return the frames of an error and of its causes, without any message."""
    blocks, known, cause = [], trace, error
    for _ in range(MOST_CAUSES):
        lines = [f"  {path}, line {line}, in {name}" for path, line, name in _frames(known or cause.__traceback__)]
        blocks.append("\n".join([*lines[-MOST_FRAMES:], type(cause).__qualname__]))
        further = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        if further is None:
            break
        cause, known = further, None
    return "\n\nwhile handling, or because of:\n\n".join(blocks)
