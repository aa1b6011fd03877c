"""The secrets of an instance, in files that only its user can read: keys that sign cookies, the first run's code."""

import hashlib
import math
import os
import secrets
from pathlib import Path

from chatapp.store import now_ms

CODE_FILE, KEY_FILE, NAME_FILE = "first-run-code", "secret-key", "instance"


def first_run_code(data_dir: Path) -> str:
    """Return the first-run code, created once."""
    return _secret_file(data_dir / CODE_FILE, secrets.token_hex(6).upper())


def secret_keys(data_dir: Path, kept_s: float = math.inf) -> list[str]:
    """Return the key that signs, created at the first start, and behind it those that verify for `kept_s` yet."""
    first, *former = _lines(data_dir, kept_s)
    return [first.split()[0], *(line.split()[0] for line in former)]


def _lines(data_dir: Path, kept_s: float) -> list[str]:
    """Return the line of the key that signs, and those of the former ones that still verify, each with the time of its
    end, ms. One without such a time was put there by hand, and verifies until it is taken out."""
    first, *others = _secret_file(data_dir / KEY_FILE, secrets.token_hex(32)).splitlines()

    def is_kept(line: str) -> bool:
        _key, _, ended_at = line.strip().partition(" ")
        return bool(_key) and (not ended_at.isdecimal() or now_ms() - int(ended_at) < kept_s * 1000)

    return [first, *filter(is_kept, others)]


def rotate_keys(data_dir: Path, kept_s: float) -> int:
    """Have another key sign from the next start on. Former ones verify for `kept_s`; return how many do."""
    instance_name(data_dir)  # it was made of the first key
    path = data_dir / KEY_FILE
    first, *others = _lines(data_dir, kept_s)
    former = [f"{first.split()[0]} {now_ms()}", *others]
    _written(path, "\n".join([secrets.token_hex(32), *former])).replace(path)
    return len(former)


def instance_name(data_dir: Path) -> str:
    """Return the name of this instance in cookies and browsers' storage: made once, and the same with every key."""
    made = hashlib.sha256(secret_keys(data_dir)[0].encode()).hexdigest()[:8]
    return _secret_file(data_dir / NAME_FILE, made)


def _secret_file(path: Path, new: str) -> str:
    """Return the secret in this file, created atomically: a power cut or a race of two starts must not tear it."""
    if not path.exists() or not path.read_text().strip():
        made = _written(path, new)
        try:
            os.link(made, path)
            made.unlink()
        except FileExistsError:  # another start was faster: its secret holds; or an empty file of a killed one
            if path.read_text().strip():
                made.unlink()
            else:
                made.replace(path)
    return path.read_text().strip()


def _written(path: Path, text: str) -> Path:
    """Return a new file in the folder of `path` with this text, on the disk. Raises OSError, and leaves none then."""
    made = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    except OSError:
        made.unlink()
        raise
    finally:
        os.close(descriptor)
    return made
