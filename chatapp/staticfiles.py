"""Static files as they are sent: scripts and styles joined, without comments, and compressed where that is accepted.

A page's script also brings what is the same in every page of one language: the table of states, and the templates and
words of all of them, which must be there when the server is out of reach. Each form is made when it is first asked for,
once in a process: the files are few (200 kB) and known at the start. Brotli, which browsers ask for over https, is
smaller than gzip by an eighth and takes half a second: it is made in a thread, and sent once it is there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import mimetypes
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import brotli
from flask import Response, request
from flask.templating import Environment
from rjsmin import jsmin
from werkzeug.exceptions import NotFound

from chatapp.assets import content_hash
from chatapp.concurrency import SingleThread, lower_priority, soon

TEXTS = {".js", ".css", ".svg", ".html"}
OWN_SCRIPTS = "js/"  # what lies elsewhere (vendor/) is minified already
STATIC = "/static/"
BROUGHT = "js/brought.js"
WORKER = "js/browser/worker.js"
PAGE_SCRIPTS = ("js/app.js", "js/check/check.js", "js/knowledge/copying.js", "js/watchdog/watchdog.js")
SHEET = "css/all.css"
_NAMES = ("reset", "tokens", "base", "layout", "buttons", "messages", "composer", "status", "pages")
SHEETS = tuple(f"css/{name}.css" for name in _NAMES)  # in this order: reset.css declares the order of the layers
HASH = "$hash$"  # stands in for # while a script is minified
SMALLEST = 9  # gzip's level: it is done once; all files together take 12 ms
PACKING_NICENESS = 10


def minified(script: str) -> str:
    """A script without comments and indentation. Names and line ends stay, so errors can still be read."""
    # rjsmin takes # for an operator and joins `#count = 0` to the line before: no semicolon, another program.
    return str(jsmin(script.replace("#", HASH))).replace(HASH, "#")


def plain(sheet: str) -> str:
    """A style sheet without comments and indentation. (No string of ours holds what begins a comment.)"""
    return re.sub(r"\n\s*", "\n", re.sub(r"/\*.*?\*/", "", sheet, flags=re.S))


_packing = SingleThread()


def _brotli(content: bytes) -> bytes:
    lower_priority(PACKING_NICENESS)
    packed: bytes = brotli.compress(content, mode=brotli.MODE_TEXT)
    return packed


@dataclass
class Body:
    """What an answer carries: bytes, their type, and whether packing may make them smaller."""

    content: bytes
    mimetype: str
    is_text: bool = True
    changed: datetime | None = None
    brotlied: bytes | None = None  # once it is made

    def pack(self) -> None:
        """Make the smallest form; until it is there, gzip is sent."""
        if self.is_text:
            self.brotlied = _packing.run(_brotli, self.content)

    @cached_property
    def gzipped(self) -> bytes:
        """The same in gzip; the same bytes each time it is made."""
        return gzip.compress(self.content, SMALLEST, mtime=0)

    @cached_property
    def tag(self) -> str:
        """A name for the content."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    def answer(self) -> Response:
        """The answer to the present request: in the encoding that it takes, 304 where the asker has it already."""
        content, encoding = self._form()
        response = Response(content, mimetype=self.mimetype)
        if self.is_text:
            response.vary.add("Accept-Encoding")
        if encoding:
            response.content_encoding = encoding
        response.set_etag(f"{self.tag}-{encoding}" if encoding else self.tag)  # other bytes, another tag
        if self.changed is not None:  # None would be the present time
            response.last_modified = self.changed
        response.cache_control.no_cache = True  # unless the caller knows better
        response.cache_control.no_transform = True
        response.make_conditional(request)
        return response

    def _form(self) -> tuple[bytes, str]:
        """The bytes that the present request takes, and their encoding. Brotli goes to those alone who name it."""
        takes = request.accept_encodings
        if self.brotlied and any(name == "br" and quality > 0 for name, quality in takes):
            return self.brotlied, "br"
        if self.is_text and takes.quality("gzip") > 0:
            return self.gzipped, "gzip"
        return self.content, ""


class StaticFiles:
    """The files of one folder, as they were at the start.

    Joined: a script that a page names comes with all that it imports, and the style sheets come as one. Apart: each is
    a file of its own. `brought()` gives the text of the module BROUGHT, in the language of the present request.
    """

    def __init__(self, folder: Path, templates: Path, brought: Callable[[], str], is_joined: bool = True) -> None:
        self._paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self._brought = brought
        self._is_joined = is_joined
        self._made: dict[tuple[str, str], Body] = {}
        self.version = content_hash(folder, templates) + ("" if is_joined else "apart")
        self.sheets = [SHEET] if is_joined else list(SHEETS)

    def has(self, path: str) -> bool:
        """Whether a request's path, `/static/VERSION/NAME`, is one of them."""
        return path.startswith(STATIC) and self._is_known(path[len(STATIC) :].partition("/")[2])

    def _is_known(self, name: str) -> bool:
        return name in self._paths or name in (SHEET, BROUGHT)

    def kept(self) -> list[str]:
        """The names of those that pages need to open without a network."""
        if self._is_joined:
            others = [
                name for name in self._paths if name.endswith((".js", ".svg")) and not name.startswith(OWN_SCRIPTS)
            ]
            return [SHEET, *PAGE_SCRIPTS, *others]
        return [BROUGHT, *(name for name in self._paths if name.endswith((".js", ".css", ".svg")) and name != WORKER)]

    def answer(self, name: str, language: str) -> Response:
        """The file of this name for the present request; `NotFound` where there is none."""
        if not self._is_known(name):
            raise NotFound
        key = (name, language if name.startswith(OWN_SCRIPTS) else "")
        if key not in self._made:
            self._made[key] = self._make(name)
            soon(self._made[key].pack)
        return self._made[key].answer()

    def _make(self, name: str) -> Body:
        mimetype = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if name == SHEET:
            return Body("".join(plain(self._paths[sheet].read_text()) for sheet in SHEETS).encode(), mimetype)
        if name.startswith(OWN_SCRIPTS):
            script = joined(name, self._text) if self._is_joined else self._text(name)
            return Body(minified(script).encode(), mimetype)
        path = self._paths[name]
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return Body(path.read_bytes(), mimetype, path.suffix in TEXTS, changed)

    def _text(self, name: str) -> str:
        return self._brought() if name == BROUGHT else self._paths[name].read_text()

    def worker(self, settings: dict[str, Any]) -> Body:
        """The service worker, which begins with what it must know of this installation."""
        head = f"const SETTINGS = {json.dumps(settings)}\n"
        key = (WORKER, head)  # one for each URL prefix, and there is one
        if key not in self._made:
            self._made[key] = Body((head + minified(self._paths[WORKER].read_text())).encode(), "text/javascript")
        return self._made[key]


def brought(environment: Environment, states: str) -> str:
    """The text of the module BROUGHT, in the language of the present request. states: the table, as JSON."""
    templates = environment.get_template("connection/_templates.html").render()
    insert = f'document.body.insertAdjacentHTML("beforeend", {json.dumps(str(templates))})'
    return f"export const states = {states}\n{insert}\n"


# Joining modules. It takes the part of the language that this project's modules keep to: `import {a, b as c} from
# "./path.js"`, `import "./path.js"`, and `export` before a function, a class or a const. Everything else that begins a
# line with one of the two words is refused by name, as are circles: joined, they would run in another order.
IMPORT = re.compile(r'^import\s*(?:\{([^{}]*)\}\s*from\s*)?"(\.{1,2}/[^"]+)"[ \t]*;?', re.M)
EXPORT = re.compile(r"^export (?=(?:(?:async )?function\*?|class|const) (\w+))", re.M)
OTHER = re.compile(r"^(?:import\b|export\b).*", re.M)


class LinkError(Exception):
    """A module says something that is not joined, or is part of a circle. The message names it."""


def joined(entry: str, read: Callable[[str], str]) -> str:
    """One script with everything that the module `entry` needs. `read(name)` gives a module's text; names are paths
    from the same folder, with slashes. Raises LinkError, and what `read` raises."""
    linker = _Linker(read)
    linker.add(entry)
    return "".join(linker.parts)


class _Linker:
    def __init__(self, read: Callable[[str], str]) -> None:
        self._read = read
        self._names: dict[str, str | None] = {}  # of each module: the constant that holds its exports; None: on the way
        self.parts: list[str] = []

    def add(self, module: str) -> str:
        """Join a module after those that it imports; the constant that holds its exports."""
        if module in self._names:
            name = self._names[module]
            if name is None:
                raise LinkError(f"{module} imports itself, by way of what it imports")
            return name
        self._names[module] = None
        text = IMPORT.sub(lambda found: self._import(module, found), self._read(module))
        exported = EXPORT.findall(text)
        text = EXPORT.sub("", text)
        for line in OTHER.findall(text):
            raise LinkError(f"{module}: cannot join `{line}`")
        name = self._names[module] = f"module_{len(self.parts)}"
        self.parts.append(f"// {module}\nconst {name} = (() => {{\n{text}\nreturn {{ {', '.join(exported)} }}\n}})()\n")
        return name

    def _import(self, module: str, found: re.Match[str]) -> str:
        name = self.add(posixpath.normpath(posixpath.join(posixpath.dirname(module), found[2])))
        names = re.sub(r"(\w+)\s+as\s+(\w+)", r"\1: \2", found[1] or "")
        return f"const {{{names}}} = {name}" if names else ""
