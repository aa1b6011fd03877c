"""The diagnostics bundle: what helps to explain a fault elsewhere, as a zip without anything personal (pseudonyms.py).

Rows are read in slices, written and compressed in a real thread, so that the chat goes on meanwhile. The size is
bounded. `manifest.json` has the SHA-256 of every other file; `read_bundle` checks them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import gevent
from flask import Flask
from markupsafe import Markup

from chatapp.concurrency import SingleThread
from chatapp.config import Settings, asset_dir, describe
from chatapp.diagnostics import pseudonyms
from chatapp.diagnostics.pseudonyms import Pseudonyms
from chatapp.monitoring import charts
from chatapp.monitoring.causes import cause_of
from chatapp.monitoring.figures import NAMES, Figures, add_up
from chatapp.monitoring.present import Present, read_present
from chatapp.monitoring.timeline import Page
from chatapp.monitoring.verdict import cause_words, verdict_of
from chatapp.store import Store, now_ms, sqlite
from chatapp.store.measures import HOUR_MS, MINUTE_MS

SCHEMA = 1
VERSION = metadata.version("chatapp")
MOST_EVENTS = 200_000  # the newest ones; some 67 MB of text, 7 MB in the zip
LONGEST_MS = 30 * 24 * HOUR_MS
SLICE = 500  # rows
IN_MEMORY = 8 << 20  # bytes of a zip, before it goes to a temporary file
MOST_COLUMNS = 120  # of the report's strip
FRESH_MS = 60_000  # of a worker's row
PERIOD = re.compile(r"([1-9]\d{0,3})([mhd])", re.ASCII)
UNITS_MS = {"m": MINUTE_MS, "h": HOUR_MS, "d": 24 * HOUR_MS}
NOTES = (
    "People, pages, networks, addresses and workers have pseudonyms of this bundle alone.",
    "It holds no text of any conversation, no title, name, e-mail address, cookie, token, key or password.",
    "Of PUBLIC_URL scheme, host and path are kept: a wrong one explains refused WebSockets.",
    "Of other settings numbers and switches are shown; of texts only that they are set.",
    "Times are milliseconds since 1970 UTC; `at` is by the server's clock.",
)


class BadBundle(Exception):
    """It is no bundle, or a file in it was altered."""


class Busy(Exception):
    """Another bundle is being made."""


def period_ms(text: str) -> int:
    """Parse a period such as 24h, 90m or 7d. Raises ValueError."""
    found = PERIOD.fullmatch(text.strip().lower())
    if not found or (ms := int(found[1]) * UNITS_MS[found[2]]) > LONGEST_MS:
        raise ValueError("must be such as 90m, 24h or 7d; 30d at most")
    return ms


@dataclass
class _Zip:
    """A zip that is being written, and the list of its files."""

    zip: zipfile.ZipFile
    run: Callable[..., Any]  # a function in a real thread
    files: list[dict[str, Any]] = field(default_factory=list)

    def add_rows(self, name: str, slices: Iterable[list[Any]], row_of: Callable[[Any], dict[str, Any]]) -> None:
        """Add a file with a JSON object a line."""
        digest, size, rows = hashlib.sha256(), 0, 0
        with self.zip.open(name, "w") as file:
            for some in slices:
                size += self.run(_write, file, digest, some, row_of)
                rows += len(some)
                gevent.sleep(0)
        self.files.append({"name": name, "bytes": size, "sha256": digest.hexdigest(), "rows": rows})

    def add(self, name: str, text: str) -> None:
        """Add a whole file."""
        data = text.encode()
        self.zip.writestr(name, data)
        self.files.append({"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})


def _write(file: IO[bytes], digest: Any, some: list[Any], row_of: Callable[[Any], dict[str, Any]]) -> int:
    data = "".join(f"{json.dumps(row_of(one), separators=(',', ':'))}\n" for one in some).encode()
    digest.update(data)
    file.write(data)
    return len(data)


class Bundler:
    """Makes bundles of one instance, one at a time."""

    def __init__(self, app: Flask, store: Store, settings: Settings) -> None:
        self._app, self._store, self._settings = app, store, settings
        self._run = SingleThread().run
        self._is_busy = False

    def make(self, since_ms: int) -> IO[bytes]:
        """Return a bundle of the last `since_ms`, as a file at its start. Raises Busy, StorageUnavailable."""
        with self._alone():
            file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115, the caller's to close
            now = now_ms()
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
                self._fill(_Zip(archive, self._run), now - since_ms, now)
            file.seek(0)
            return file

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._is_busy:
            raise Busy
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    def _fill(self, bundle: _Zip, start: int, now: int) -> None:
        names, store = Pseudonyms(), self._store
        first = store.events.start_of_newest(start, now + 1, MOST_EVENTS)
        bundle.add_rows("events.jsonl", store.events.scan(first, now + 1, SLICE), names.event)
        for name, span in (("minutes", "m"), ("hours", "h")):
            slices = store.measures.scan(span, start - HOUR_MS, now + 1, SLICE)
            bundle.add_rows(f"{name}.jsonl", slices, _figures_row)
        bundle.add_rows("drills.jsonl", [store.drills.since(start)], names.drill)
        workers = [names.worker(*item) for item in store.measures.workers(now - FRESH_MS).items()]
        bundle.add("workers.json", _json(workers))
        described = describe(self._settings, os.environ)
        bundle.add("config.json", _json([pseudonyms.setting(row, self._settings) for row in described]))
        bundle.add("versions.txt", versions())
        bundle.add("report.html", self._report(names, start, now))
        manifest = {
            "product": "chatapp",
            "version": VERSION,
            "schema": SCHEMA,
            "made_at": now,
            "since": start,
            "until": now,
            "events_since": first,
            "is_cut": first > start,
            "notes": NOTES,
            "files": bundle.files,
        }
        bundle.zip.writestr("manifest.json", _json(manifest))

    def _report(self, names: Pseudonyms, start: int, now: int) -> str:
        """Return the report: one page without a script, to be read anywhere."""
        minutes = max(1, (now - start) // MINUTE_MS)
        span = "m" if minutes <= 1440 else "h"
        texts = self._store.measures.texts_between(span, start, now)
        rows, whole = self._run(_summed, texts, now, minutes)
        with self._app.app_context():
            present = _unnamed(read_present(self._store, self._settings.data_dir, now), names)
            template = self._app.jinja_env.get_template("monitor/bundle.html")
            return template.render(
                sheet=_sheets(),
                verdict=verdict_of(present),
                server=present.server,
                version=VERSION,
                strip=charts.strip(rows, now),
                labels=charts.labels(rows),
                marks=charts.marks({"drill": [one.start for one in present.drills]}, rows),
                times=[f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M}" for at in (start, now)],
                states=Counter(page.state for page in present.by_person.values()),
                groups=Counter(
                    (page.network[:4], page.state, page.reason or "") for page in present.by_person.values()
                ),
                tables={"refusals": whole.refusals, "drops": whole.drops, "fallbacks": whole.fallbacks},
                cause_of=cause_of,
                cause_words=cause_words,
            )


def _unnamed(present: Present, names: Pseudonyms) -> Present:
    """Return the present with pseudonyms."""

    def unnamed(page: Page) -> Page:
        person, network = names.of("person", page.person), names.of("network", page.network)
        reason, limit = pseudonyms.word(page.reason), pseudonyms.word(page.limit)
        return replace(
            page, person=person, network=network, agent=pseudonyms.agent(page.agent), reason=reason, limit=limit
        )

    drills = [replace(one, person=one.person and names.of("person", one.person)) for one in present.drills]
    pages = {names.of("page", name): unnamed(page) for name, page in present.pages.items()}
    return replace(present, pages=pages, drills=drills)


def _figures_row(item: tuple[int, str]) -> dict[str, Any]:
    start, text = item
    row = {name: pseudonyms.figures(value) for name, value in json.loads(text).items() if name in NAMES}
    return {"start": start, **row}


def _summed(texts: list[tuple[int, str]], now: int, minutes: int) -> tuple[charts.Columns, Figures]:
    """Return the figures in columns, and their sum."""
    rolled = {item[0]: Figures.load(_figures_row(item)) for item in texts}
    rows = charts.columns(rolled, now, minutes, MOST_COLUMNS)
    return rows, add_up(row for row in rows.figures if row is not None)


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _sheets() -> Markup:
    texts = [
        (asset_dir("static") / f"css/{name}.css").read_text()
        for name in ("reset", "tokens", "base", "pages", "monitor")
    ]
    return Markup(f"<style>{''.join(texts)}</style>")  # ours: no text in them ends the element


def versions() -> str:
    """Return the versions of Python, SQLite, the system, and of what this program needs."""
    lines = [
        f"chatapp {metadata.version('chatapp')}",
        f"Python {sys.version.split()[0]}",
        f"SQLite {sqlite.VERSION}",
        f"{platform.system()} {platform.release()} {platform.machine()}",
    ]
    needed = sorted(
        {re.split(r"[^\w.-]", one)[0] for one in metadata.requires("chatapp") or () if "extra ==" not in one}
    )
    return "\n".join([*lines, *(f"{name} {metadata.version(name)}" for name in needed), ""])


def read_bundle(file: IO[bytes]) -> dict[str, bytes]:
    """Return the files of a bundle by their names, checked by its manifest. Raises BadBundle."""
    try:
        with zipfile.ZipFile(file) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(files["manifest.json"])
        listed = {one["name"]: one["sha256"] for one in manifest["files"]}
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise BadBundle(str(error)) from None
    if manifest["schema"] != SCHEMA:
        raise BadBundle(f"schema {manifest['schema']}")
    found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "manifest.json"}
    if wrong := sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name)):
        raise BadBundle(f"altered: {', '.join(wrong)}")
    return files
