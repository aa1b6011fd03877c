"""Static files and the service worker: scripts and style sheets joined, minified and compressed.

A page's script also contains the table of states and the templates of all states in one language: they must not need
the server. Each file is built at its first request, once in a process: there are few (200 kB), known at the start.
Brotli is smaller than gzip by an eighth but takes half a second: a thread compresses; until then gzip is sent.
"""

import gzip
import hashlib
import json
import mimetypes
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import brotli
from flask import Flask, Response, render_template, request, url_for
from flask.templating import Environment
from flask_babel import force_locale, get_babel, get_locale
from rjsmin import jsmin
from werkzeug.exceptions import NotFound

from chatapp.concurrency import SingleThread, lower_priority, soon

TEXTS = {".js", ".css", ".svg", ".html"}
OWN_SCRIPTS = "js/"  # those elsewhere (vendor/) are minified already
STATIC = "/static/"
# Cache-Control of a static file under its version, and of everything else: no-store also keeps pages from the back
# button after signing out; some middleboxes obey no-transform.
IMMUTABLE, UNKEPT = "public, max-age=31536000, immutable, no-transform", "no-store, no-transform"
PRELOAD = "js/brought.js"
WORKER = "js/browser/worker.js"
PAGE_SCRIPTS = ("js/app.js", "js/check/check.js", "js/knowledge/copying.js", "js/watchdog/watchdog.js")
SHEET = "css/all.css"
PAGES_SHEET = "css/pages.css"  # of all pages but the chat
_NAMES = ("reset", "tokens", "base", "layout", "buttons", "messages", "composer", "status")
SHEETS = tuple(f"css/{name}.css" for name in _NAMES)  # in this order: reset.css declares the order of the layers
HASH = "$hash$"  # replaces # while a script is minified
GZIP_LEVEL = 9  # all files together take 12 ms, once
BROTLI_NICENESS = 10


def minified(script: str) -> str:
    """Remove a script's comments and indentation. Names and line ends stay, so errors are readable."""
    # rjsmin takes # for an operator and joins `#count = 0` to the line before: without a semicolon, another program.
    return str(jsmin(script.replace("#", HASH))).replace(HASH, "#")


def minified_sheet(sheet: str) -> str:
    """Return a style sheet without comments, indentation and spare spaces. No string in ours matches a pattern."""
    text = re.sub(r"/\*.*?\*/", "", sheet, flags=re.S)
    text = re.sub(r"\s*([{};])\s*", r"\1", re.sub(r"\n\s*", "\n", text))
    return re.sub(r"([:,]) +", r"\1", text)


_brotli_thread = SingleThread()


def _brotli(content: bytes) -> bytes:
    lower_priority(BROTLI_NICENESS)
    compressed: bytes = brotli.compress(content, mode=brotli.MODE_TEXT)
    return compressed


@dataclass
class StaticFile:
    """One file's content and its compressed forms."""

    content: bytes
    mimetype: str
    is_text: bool = True
    brotli_content: bytes | None = None

    def compress(self) -> None:
        """Make the Brotli form, which takes a while."""
        if self.is_text:
            self.brotli_content = _brotli_thread.run(_brotli, self.content)

    @cached_property
    def gzip_content(self) -> bytes:
        """The gzip form, the same bytes in every process."""
        return gzip.compress(self.content, GZIP_LEVEL, mtime=0)

    @cached_property
    def etag(self) -> str:
        """The ETag of the uncompressed form."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    def response(self) -> Response:
        """Return the response to the current request: in an accepted encoding, or 304."""
        content, encoding = self._encoded()
        response = Response(content, mimetype=self.mimetype)
        if self.is_text:
            response.vary.add("Accept-Encoding")
        if encoding:
            response.content_encoding = encoding
        response.set_etag(f"{self.etag}-{encoding}" if encoding else self.etag)
        response.cache_control.no_cache = True  # the caller may replace it
        response.cache_control.no_transform = True
        response.make_conditional(request)
        return response

    def _encoded(self) -> tuple[bytes, str]:
        """Return the best accepted form and its encoding. `Accept-Encoding: *` does not get Brotli."""
        accepted = request.accept_encodings
        if self.brotli_content and any(name == "br" and quality > 0 for name, quality in accepted):
            return self.brotli_content, "br"
        if self.is_text and accepted.quality("gzip") > 0:
            return self.gzip_content, "gzip"
        return self.content, ""


def content_hash(*folders: Path) -> str:
    """Return a version for the content of folders: anything made of their files can be cached for ever under it."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class StaticFiles:
    """The files of a folder, as of the start.

    Joined, each page script contains its imports, and the style sheets are one file; else every file is served apart.
    `preload()` returns the text of the module PRELOAD in the current request's language.
    """

    def __init__(self, folder: Path, templates: Path, preload: Callable[[], str], is_joined: bool = True) -> None:
        self._paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self._preload = preload
        self._is_joined = is_joined
        self._built: dict[tuple[str, str], StaticFile] = {}
        self.version = content_hash(folder, templates) + ("" if is_joined else "apart")
        self.sheets = [SHEET] if is_joined else list(SHEETS)

    def has(self, path: str) -> bool:
        """Return True if `/static/VERSION/NAME` names a file."""
        return path.startswith(STATIC) and self._has_name(path[len(STATIC) :].partition("/")[2])

    def _has_name(self, name: str) -> bool:
        return name in self._paths or name in (SHEET, PRELOAD)

    def offline_names(self) -> list[str]:
        """Return the names of all files that pages need offline."""
        if self._is_joined:
            others = [
                name for name in self._paths if name.endswith((".js", ".svg")) and not name.startswith(OWN_SCRIPTS)
            ]
            return [SHEET, PAGES_SHEET, *PAGE_SCRIPTS, *others]
        return [PRELOAD, *(name for name in self._paths if name.endswith((".js", ".css", ".svg")) and name != WORKER)]

    def init_app(self, app: Flask, instance: str) -> None:
        """Add the routes of the files, the service worker and its page for everything that it has not stored."""
        app.add_url_rule(f"{STATIC}<version>/<path:name>", "static", self.serve)
        # At the root: a service worker's scope is its own folder.
        app.add_url_rule("/worker.js", "worker", lambda: self._worker(instance).response())
        app.add_url_rule("/offline", "offline", lambda: render_template("errors/offline.html"))
        app.context_processor(lambda: {"static": self.url, "sheets": self.sheets})

    def url(self, name: str) -> str:
        """Return the URL of a static file; that of our own scripts names the reader's language."""
        language = f"-{get_locale()}" if name.startswith(OWN_SCRIPTS) else ""
        return url_for("static", version=self.version + language, name=name)

    def serve(self, version: str, name: str) -> Response:
        """Serve a static file. `version`: HASH, HASH-LANGUAGE, and .1, .2 for the watchdog's retries."""
        if not self._has_name(name):
            raise NotFound
        content, _, wanted = version.partition(".")[0].partition("-")
        languages = [str(locale) for locale in get_babel().instance.list_translations()]
        language = wanted if wanted in languages else languages[0]  # not every language has a translation
        key = (name, language if name.startswith(OWN_SCRIPTS) else "")
        if key not in self._built:
            with force_locale(language):
                self._built[key] = self._build(name)
            soon(self._built[key].compress)
        response = self._built[key].response()
        # Under the version of another process, or another language, the response must not be cached.
        is_exact = content == self.version and wanted in ("", language)
        response.headers["Cache-Control"] = IMMUTABLE if is_exact else UNKEPT
        return response

    def _build(self, name: str) -> StaticFile:
        mimetype = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if name == SHEET:
            sheets = (minified_sheet(self._paths[sheet].read_text()) for sheet in SHEETS)
            return StaticFile("".join(sheets).encode(), mimetype)
        if name.startswith(OWN_SCRIPTS):
            script = joined(name, self._read) if self._is_joined else self._read(name)
            return StaticFile(minified(script).encode(), mimetype)
        path = self._paths[name]
        return StaticFile(path.read_bytes(), mimetype, path.suffix in TEXTS)

    def _read(self, name: str) -> str:
        return self._preload() if name == PRELOAD else self._paths[name].read_text()

    def _worker(self, instance: str) -> StaticFile:
        """Return the service worker, with its settings in the first line."""
        settings = {
            "instance": instance,
            "version": self.version,
            "base": f"{request.script_root}/",
            "files": [self.url(name) for name in sorted(self.offline_names())],
            "fallback": url_for("offline"),
        }
        head = f"const SETTINGS = {json.dumps(settings)}\n"
        key = (WORKER, head)
        if key not in self._built:
            script = head + minified(self._paths[WORKER].read_text())
            self._built[key] = StaticFile(script.encode(), "text/javascript")
        return self._built[key]


def preload_module(environment: Environment, states: str) -> str:
    """Return the text of the module PRELOAD in the current request's language. `states`: the table, as JSON."""
    templates = re.sub(r"\n\s*", "\n", environment.get_template("connection/_templates.html").render())
    insert = f'document.body.insertAdjacentHTML("beforeend", {json.dumps(templates)})'
    return f"export const states = {states}\n{insert}\n"


# The linker. It knows the part of the language that this project's modules use: `import {a, b as c} from "./path.js"`,
# `import "./path.js"`, and `export` before a function, a class or a const. It refuses every other line that begins with
# one of the two words, and circular imports: joined, they would run in another order.
IMPORT = re.compile(r'^import\s*(?:\{([^{}]*)\}\s*from\s*)?"(\.{1,2}/[^"]+)"[ \t]*;?', re.M)
EXPORT = re.compile(r"^export (?=(?:(?:async )?function\*?|class|const) (\w+))", re.M)
OTHER = re.compile(r"^(?:import\b|export\b).*", re.M)


class LinkError(Exception):
    """Raised for unsupported syntax or a circular import. The message names the module."""


def joined(entry: str, read: Callable[[str], str]) -> str:
    """Return one script of the module `entry` and all its imports. `read(name)` returns a module's text; names are
    paths from one folder, with slashes. Raises LinkError, and the errors of `read`."""
    constants: dict[str, str | None] = {}  # by module, with its exports; None while the module is being added
    parts: list[str] = []

    def add(module: str) -> str:
        """Add a module after its imports. Returns the name of its constant."""
        if module in constants:
            known = constants[module]
            if known is None:
                raise LinkError(f"{module} imports itself, by way of what it imports")
            return known
        constants[module] = None
        text = IMPORT.sub(lambda match: imported(module, match), read(module))
        exported = EXPORT.findall(text)
        text = EXPORT.sub("", text)
        for line in OTHER.findall(text):
            raise LinkError(f"{module}: cannot join `{line}`")
        name = constants[module] = f"module_{len(parts)}"
        parts.append(f"// {module}\nconst {name} = (() => {{\n{text}\nreturn {{ {', '.join(exported)} }}\n}})()\n")
        return name

    def imported(module: str, match: re.Match[str]) -> str:
        name = add(posixpath.normpath(posixpath.join(posixpath.dirname(module), match[2])))
        names = re.sub(r"(\w+)\s+as\s+(\w+)", r"\1: \2", match[1] or "")
        return f"const {{{names}}} = {name}" if names else ""

    add(entry)
    return "".join(parts)
