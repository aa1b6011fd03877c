"""The folders of templates, static files and migrations: in the installed package, or at the top of the repository."""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent


def asset_dir(name: str) -> Path:
    """Return the folder of this name."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def content_hash(*folders: Path) -> str:
    """Return a version for the content of folders: anything made of their files can be cached for ever under it."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
