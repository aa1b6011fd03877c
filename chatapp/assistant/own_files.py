"""The operator's documents and word lists: the folder `DATA_DIR/knowledge`, listed, added to and removed from.

Names are those of a list of what is allowed. A file becomes visible at once and whole: it is written under another name
and renamed. Symbolic links, which somebody with a shell made, are neither followed nor replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from chatapp.assistant.knowledge import slug_of
from chatapp.assistant.words import GLOSSARY, STOP_WORDS, WEAK_WORDS
from chatapp.concurrency import SingleThread

WORD_LISTS = (GLOSSARY, STOP_WORDS, WEAK_WORDS)
DOCUMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,60}\.md")
HEADING = re.compile(r"^ {0,3}(?:#|[=-]+[ \t]*$)", re.MULTILINE)
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *", re.I)  # by Windows, where a copy of the folder may go
LARGEST_FILE = 1_000_000  # bytes
LARGEST_UPLOAD = 8_000_000  # bytes, of a request
MOST_FILES = 20  # of one upload
LONGEST_BLOCK, MOST_HEADINGS = 50_000, 2000  # characters; of one document: the time to parse it grows with the square
UNFINISHED = ".upload-"  # how the name of a file begins that is being written
ABANDONED_S = 3600.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)


class FileRefused(Exception):
    """A file that cannot be taken or removed: its name, a reason for programs, and a detail of that."""

    def __init__(self, reason: str, name: str = "", detail: str = "") -> None:
        super().__init__(f"{name}: {reason} {detail}")
        self.reason, self.name, self.detail = reason, name, detail


@dataclass(frozen=True)
class KnowledgeFile:
    """A file of the shipped or the own folder. `slug`: of a document, else "". `size`: bytes.

    `origin`: shipped; own; replaces (a shipped document); hides (one, since it is empty); adds (a word list).
    """

    name: str
    slug: str
    origin: str
    size: int
    is_plain: bool = True  # no link, no folder

    @property
    def is_own(self) -> bool:
        """True if it lies in the operator's folder."""
        return self.origin != "shipped"


def check(files: Sequence[tuple[str, bytes]]) -> None:
    """Raise FileRefused for the first file that cannot be taken."""
    if not files:
        raise FileRefused("none")
    if len(files) > MOST_FILES:
        raise FileRefused("many", detail=str(MOST_FILES))
    slugs: dict[str, str] = {}
    for name, content in files:
        _check_one(name, content)
        slug = _address(name)
        if slug in slugs:
            raise FileRefused("same", name, slugs[slug])
        slugs[slug] = name


def _check_one(name: str, content: bytes) -> None:
    if name not in WORD_LISTS and not DOCUMENT.fullmatch(name):
        raise FileRefused("name", name)
    if RESERVED.fullmatch(name.rpartition(".")[0]):
        raise FileRefused("reserved", name)
    if len(content) > LARGEST_FILE:
        raise FileRefused("large", name)
    try:
        text, wrong = content.decode(), content.find(b"\0")  # UTF-16 may be valid UTF-8, but for these
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        raise FileRefused("text", name, str(content.count(b"\n", 0, wrong) + 1))
    if name not in WORD_LISTS:
        check_size(name, text.replace("\r", ""))


def check_size(name: str, text: str) -> None:
    """Refuse a document that would keep the thread of searches for minutes."""
    if len(HEADING.findall(text)) > MOST_HEADINGS:
        raise FileRefused("headings", name, str(MOST_HEADINGS))
    at = 0
    for block in text.split("\n\n"):
        if len(block) > LONGEST_BLOCK:
            raise FileRefused("block", name, str(text.count("\n", 0, at) + 1))
        at += len(block) + 2


def _address(name: str) -> str:
    """Return the key that only one file can have: the slug of a document, the name of a word list."""
    return name if name in WORD_LISTS else slug_of(Path(name))


class Staged:
    """Files that are written, but not yet visible. `added` and `replaced`: their names."""

    def __init__(self, folder: int, files: Mapping[str, str], known: Sequence[str], thread: SingleThread) -> None:
        self._folder, self._thread = folder, thread
        self.files = dict(files)  # name: name until then
        self.added = [name for name in files if name not in known]
        self.replaced = [name for name in files if name in known]

    def publish(self) -> None:
        """Make all of them visible."""
        self._thread.run(self._publish)

    def _publish(self) -> None:
        for name in list(self.files):
            os.replace(self.files[name], name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            del self.files[name]
        os.fsync(self._folder)

    def discard(self) -> None:
        """Delete those that are not visible."""
        for name in self.files.values():
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._folder)


class OwnFiles:
    """The operator's folder, beside the shipped one. The folder is made with the first file."""

    def __init__(self, folder: Path, shipped: Path) -> None:
        self._folder, self._shipped = folder, shipped
        self._thread = SingleThread()

    def listed(self) -> list[KnowledgeFile]:
        """Return all files in use, by name. An own document stands in the place of a shipped one."""
        return self._thread.run(self._listed)

    @contextmanager
    def staging(self, files: Sequence[tuple[str, bytes]]) -> Iterator[Staged]:
        """Check and write files; unless they are published within the block, they are deleted. Raises FileRefused."""
        check(files)
        with self._opened(make=True) as folder:
            staged = self._thread.run(self._stage, folder, files)
            try:
                yield staged
            finally:
                staged.discard()

    @contextmanager
    def removing(self, name: str) -> Iterator[bool]:
        """Delete a file after the block. Yields True if a shipped document takes its place. Raises FileRefused."""
        found = next((one for one in self.listed() if one.name == name and one.is_own), None)
        if found is None:
            raise FileRefused("gone", name)
        with self._opened() as folder:
            _refuse_special(folder, name)
            yield found.origin in ("replaces", "hides")
            try:
                os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                raise FileRefused("gone", name) from None

    @contextmanager
    def _opened(self, make: bool = False) -> Iterator[int]:
        """Open the folder, not through a link. Errors of the disk become FileRefused."""
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._folder, 0o700)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in NO_FOLDER:
                raise FileRefused("folder") from None
            reason = "full" if error.errno in NO_ROOM else "failed"
            raise FileRefused(reason, detail=error.strerror or "") from None

    def _stage(self, folder: int, files: Sequence[tuple[str, bytes]]) -> Staged:
        _delete_abandoned(folder)
        own = {_address(one.name): one.name for one in self._listed() if one.is_own}
        for name, _ in files:
            _refuse_special(folder, name)
            if own.get(_address(name), name) != name:
                raise FileRefused("same", name, own[_address(name)])
        until_then = {name: f"{UNFINISHED}{uuid4().hex}" for name, _ in files}
        staged = Staged(folder, until_then, list(own.values()), self._thread)
        with contextlib.ExitStack() as undo:
            undo.callback(staged.discard)
            for name, content in files:
                _write(folder, staged.files[name], content)
            undo.pop_all()
        return staged

    def _listed(self) -> list[KnowledgeFile]:
        shipped = {slug_of(path): path for path in self._shipped.glob("*.md")}
        found = []
        for name, info in _entries(self._folder):
            is_list, is_plain = name in WORD_LISTS, stat.S_ISREG(info.st_mode)
            slug = "" if is_list else slug_of(Path(name))
            covers = "replaces" if info.st_size else "hides"
            origin = "adds" if is_list else covers if slug in shipped else "own"
            found.append(KnowledgeFile(name, slug, origin, info.st_size, is_plain))
        covered = {one.slug for one in found}
        rest = [(slug, path) for slug, path in shipped.items() if slug not in covered]
        found += [KnowledgeFile(path.name, slug, "shipped", path.stat().st_size) for slug, path in rest]
        return sorted(found, key=lambda one: one.name.lower())


def _entries(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return the documents and word lists of a folder, if it exists; of a link what it is itself."""
    found: list[tuple[str, os.stat_result]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".md") or entry.name in WORD_LISTS:
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
    return found


def _write(folder: int, name: str, content: bytes) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _refuse_special(folder: int, name: str) -> None:
    """Refuse to touch a link, a folder or a device of that name."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise FileRefused("link", name)


def _delete_abandoned(folder: int) -> None:
    """Delete the leftovers of a crash."""
    for name in os.listdir(folder):
        if name.startswith(UNFINISHED):
            with contextlib.suppress(OSError):
                if time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > ABANDONED_S:
                    os.unlink(name, dir_fd=folder)
