"""The built wheel serves from a clean environment elsewhere, with what it declares and nothing else."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from lab.http import Client
from lab.server import NAME, ROOT, Server
from packaging.requirements import Requirement


def closure(requirements: list[str]) -> set[str]:
    """Names of the distributions that these need, and those that they need, as pip would find them."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name not in found:
            found.add(name)
            waiting += [(Requirement(text), "") for text in distribution(name).requires or []]
    return found


def copy_distribution(name: str, site: Path) -> None:
    """Copy what a distribution installed besides its scripts."""
    for file in distribution(name).files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), site / file)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an environment with the wheel and what it declares: no checkout, no development packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = (folder / "dist").glob("*.whl")
    python = folder / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(python.parents[1])], check=True, timeout=60)
    install = [sys.executable, "-m", "pip", "-q", "--python", str(python), "install", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=60)
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    for name in closure(project()["dependencies"]):
        copy_distribution(name, site)
    yield python
    shutil.rmtree(folder, ignore_errors=True)


def project() -> dict[str, list[str]]:
    """The table of pyproject.toml."""
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


class Installed(Server):
    """The server of the wheel, started in a folder that is no checkout."""

    def __init__(self, directory: Path, python: Path) -> None:
        super().__init__(directory, prefix=("env", "-C", str(directory), "-u", "PYTHONPATH"))
        self.chatapp = python.with_name("chatapp")

    def command(self) -> list[str]:
        """The wheel's own console script."""
        return [*self.prefix, str(self.chatapp), "serve"]


def test_the_wheel_serves_from_a_clean_environment(tmp_path: Path, python: Path) -> None:
    with Installed(tmp_path, python) as server:
        page = Client(server.url).sign_in()
        answer = page.get("/")
        assert answer.status == 200 and NAME in answer.text
        script = re.search(r'src="([^"]+/app\.js)"', answer.text)
        assert script and page.get(script[1]).status == 200
    where = [str(python), "-c", "import chatapp; print(chatapp.__file__)"]
    loaded = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert loaded.stdout.startswith(str(python.parents[1]))


def test_the_wheel_says_its_version(tmp_path: Path, python: Path) -> None:
    run = subprocess.run([python.with_name("chatapp"), "--version"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0 and run.stdout.split() == ["chatapp,", "version", str(project()["version"])], run.stderr


def test_what_is_imported_is_declared() -> None:
    """By its own name: what a dependency happens to bring today it need not bring tomorrow."""
    declared = {re.split(r"[<>=~!\[; ]", text)[0].lower() for text in project()["dependencies"]}
    owners = packages_distributions()
    missing = set()
    for path in (ROOT / "chatapp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = (name or "").split(".")[0]
                owner = {re.sub(r"[-_.]+", "-", one).lower() for one in owners.get(top, [])}
                if owner and top != "chatapp" and not owner & declared:
                    missing.add(f"{top} ({path.relative_to(ROOT)})")
    assert not missing, sorted(missing)
