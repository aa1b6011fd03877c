"""The peer, installed by npm from its lockfile into a directory that is thrown away."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWN = Path(__file__).resolve().parent / "peer"
INSTALL_S = 300


@contextmanager
def installed(directory: Path) -> Iterator[tuple[Path | None, str]]:
    """Where it lies and its version; or None and why the peer's columns stay empty."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            yield None, f"not compared: {program} is not there"
            return
    place = directory / "peer"
    shutil.copytree(OWN, place)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        failed = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        failed = [f"npm ci took more than {INSTALL_S} s"]
    if failed:
        yield None, f"not compared: {failed[0]}"
    else:
        versions = json.loads((OWN / "package.json").read_text())["dependencies"]
        yield place, ", ".join(f"{name} {version}" for name, version in versions.items())
