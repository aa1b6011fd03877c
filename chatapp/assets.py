"""Where templates, static files and migrations lie: in the package when installed, else beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent


def asset_dir(name: str) -> Path:
    """The folder of this name: inside the installed package, or at the top of the repository."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def content_hash(*folders: Path) -> str:
    """A name for the content of folders, so that what is made of their files can be cached for ever."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
