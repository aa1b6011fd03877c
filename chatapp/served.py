"""Files as they are sent: own scripts without comments and indentation, and text in gzip for whoever takes it.

Each form is made when it is first asked for, once in a process: the files are few (200 kB) and known at the start.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from flask import Response, request
from rjsmin import jsmin
from werkzeug.exceptions import NotFound

TEXTS = {".js", ".css", ".svg", ".html"}
OWN_SCRIPTS = "js/"  # what lies elsewhere (vendor/) is minified already
STATIC = "/static/"
HASH = "$hash$"  # stands in for # while a script is minified
SMALLEST = 9  # gzip's level: it is done once; all files together take 12 ms


def minified(script: str) -> str:
    """A script without comments and indentation. Names and line ends stay, so errors can still be read."""
    # rjsmin takes # for an operator and joins `#count = 0` to the line before: no semicolon, another program.
    return str(jsmin(script.replace("#", HASH))).replace(HASH, "#")


@dataclass(frozen=True)
class Body:
    """What an answer carries: bytes, their type, and whether gzip may make them smaller."""

    content: bytes
    mimetype: str
    is_text: bool = True
    changed: datetime | None = None

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
        is_gzip = self.is_text and request.accept_encodings.quality("gzip") > 0
        response = Response(self.gzipped if is_gzip else self.content, mimetype=self.mimetype)
        if self.is_text:
            response.vary.add("Accept-Encoding")
        if is_gzip:
            response.content_encoding = "gzip"
        response.set_etag(f"{self.tag}-gzip" if is_gzip else self.tag)  # other bytes, another tag
        if self.changed is not None:  # None would be the present time
            response.last_modified = self.changed
        response.cache_control.no_cache = True  # unless the caller knows better
        response.cache_control.no_transform = True
        response.make_conditional(request)
        return response


class Files:
    """The files of one folder, as they were at the start."""

    def __init__(self, folder: Path) -> None:
        self._paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self._made: dict[str, Body] = {}

    def has(self, path: str) -> bool:
        """Whether a request's path, `/static/VERSION/NAME`, is one of them."""
        return path.startswith(STATIC) and path[len(STATIC) :].partition("/")[2] in self._paths

    def answer(self, name: str) -> Response:
        """The file of this name for the present request; `NotFound` where there is none."""
        if name not in self._paths:
            raise NotFound
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name].answer()

    def _make(self, name: str) -> Body:
        path = self._paths[name]
        content = path.read_bytes()
        if name.startswith(OWN_SCRIPTS):
            content = minified(content.decode()).encode()
        mimetype = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Body(content, mimetype, path.suffix in TEXTS, datetime.fromtimestamp(path.stat().st_mtime, UTC))
