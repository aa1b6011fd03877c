"""The layout: the place of each thing, the direction of imports, and what may not be written (docs/architecture.md)."""

import ast
import graphlib
import hashlib
import html
import re
import statistics
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sorted((ROOT / "chatapp").rglob("*.py"))
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
SCRIPTS = sorted((ROOT / "static/js").rglob("*.js"))
HTMX = ROOT / "static/vendor/htmx-4.0.1.min.js"
HTMX_SHA256 = "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"

CARD = {"app.py", "pyproject.toml", "chatapp", "templates", "static", "migrations", "tests"}
BESIDE = {"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "CONTRIBUTING.md", "Makefile", ".ci", ".gitignore"}
BESIDE |= {".gitattributes", "bench", "deploy", "docs"}

# A room may import what stands before its own row, and within its row only itself.
ROWS: list[set[str]] = [
    {
        "config",
        "bus",
        "concurrency",
        "cache",
        "visible",
        "descriptors",
        "port",
        "wellformed",
        "fair_queue",
        "connection_states",
        "network_memory",
        "histograms",
        "certificates",
        "logs",
    },
    {"strangers", "staticfiles", "meters", "access_log"},
    {"store", "gunicorn_bridge"},
    {"chat", "accounts"},
    {"transports", "assistant", "monitoring", "knowledge"},
    {"diagnostics"},
    {"parts"},
    {"views", "middleware"},
    {"cli", "server", "factory", ""},
]


def tracked() -> list[Path]:
    """The files of the repository (those that git would take, while nothing is committed)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def module_name(path: Path) -> str:
    """`chatapp/transports/protocol.py` is `transports.protocol`; the package itself is the empty name."""
    parts = list(path.relative_to(ROOT / "chatapp").with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row(module: str) -> int:
    """The row of a module's room."""
    for names in ((module,), (module.split(".")[0],)):
        for number, rooms in enumerate(ROWS):
            if names[0] in rooms:
                return number
    raise AssertionError(f"chatapp.{module} has no place in ROWS: see docs/architecture.md")


def tree(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> Iterator[str]:
    """The modules of this package that a module imports; imports for type checkers count."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "chatapp")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "chatapp":
            for alias in node.names:
                inner = ROOT / (node.module or "").replace(".", "/") / alias.name
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else str(node.module)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def where(path: Path, node: ast.AST) -> str:
    """A place for a message."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"


def listed(wrong: Iterable[object]) -> str:
    """One finding a line."""
    return "\n" + "\n".join(str(finding) for finding in wrong)


def test_top_level() -> None:
    """The card's seven, and what the design puts beside them."""
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert names >= CARD
    assert names <= CARD | BESIDE


def test_imports_point_one_way() -> None:
    """No room imports a room of a later row; rooms of one row do not know each other; no relative imports."""
    wrong = []
    for path in PYTHON:
        own = module_name(path)
        wrong += [where(path, n) for n in ast.walk(tree(path)) if isinstance(n, ast.ImportFrom) and n.level]
        for name in imported(path):
            other = name.removeprefix("chatapp").lstrip(".")
            same_room = own.split(".")[0] == other.split(".")[0]
            if not same_room and own not in ("", "cli", "server", "factory") and row(other) >= row(own):
                wrong.append(f"{own} imports {other}")
            if own == "connection_states" and row(other):
                wrong.append(f"the state machine imports {other}")
    assert not wrong, listed(wrong)


def test_no_circles() -> None:
    """No module imports itself by way of others, within a room either. The package itself loads the factory late."""
    graph = {module_name(path): {name.removeprefix("chatapp.") for name in imported(path)} for path in PYTHON}
    del graph[""]
    order = graphlib.TopologicalSorter({name: others & graph.keys() for name, others in graph.items()})
    order.prepare()


def test_docstrings_have_no_clause_for_a_noun() -> None:
    """At most three in a hundred begin with, or stand on, a "what", "who", "where" or "so long" (CONTRIBUTING.md)."""
    clause = re.compile(r"\b(what|who|whom|whose|whoever|whatever|where|so long)\b", re.I)
    first = []
    for path in PYTHON:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                first += [(f"{path.name}: {text}", clause.search(text.split("\n\n")[0]))] if text else []
    wrong = [words for words, found in first if found]
    assert len(wrong) <= 0.03 * len(first), listed(wrong)


def test_no_import_inside_functions() -> None:
    """Except where the app is put together: there it keeps `chatapp --help` quick and cycles out. Alembic is loaded
    only where there is something to migrate, and prometheus_client at the first scrape."""
    wrong = []
    for path in PYTHON:
        if module_name(path) not in ("", "cli", "store.migrate", "views.metrics"):
            for function in functions(path):
                inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
                wrong += [where(path, node) for node in inner]
    assert not wrong, listed(wrong)


def test_database_only_in_the_store() -> None:
    """No engine, session or statement outside chatapp/store.

    The one exception is an index that is rebuilt from files at each start and lives in memory only.
    """
    words = re.compile(r"\b(sqlalchemy|flask_sqlalchemy|sqlite3|psycopg)\b")
    names = re.compile(r"\.(execute|executemany|scalars?)\(|\bdb\.session\b|\.engine\b|\bsessionmaker\b")
    wrong = []
    for path in PYTHON:
        connects = re.findall(r"sqlite3\.connect\((.*)", path.read_text())
        in_memory = connects and all(rest.startswith('":memory:"') for rest in connects)
        if module_name(path).split(".")[0] == "store" or in_memory:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            imports = line.lstrip().startswith(("import ", "from ")) and words.search(line)
            if imports or names.search(line.split("#")[0]):
                wrong.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
    assert not wrong, listed(wrong)


def test_conversation_knows_no_flask() -> None:
    """The rules of conversations and the state machine can be run without a web server."""
    for room in ("chat.py", "connection_states.py"):
        assert not re.search(r"^\s*(import|from) flask", (ROOT / "chatapp" / room).read_text(), re.M), room


def test_every_function_says_its_types() -> None:
    """Arguments and results are annotated (mypy says the same; this says it without mypy)."""
    wrong = []
    for path in PYTHON:
        for function in functions(path):
            arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or function.returns is None:
                wrong.append(f"{where(path, function)} {function.name} {bare}")
    assert not wrong, listed(wrong)


def test_modules_and_public_names_are_documented() -> None:
    """Each module, public class and public function says what it is."""
    wrong = []
    for path in PYTHON:
        parsed = tree(path)
        if ast.get_docstring(parsed) is None and path.read_text().strip():
            wrong.append(str(path.relative_to(ROOT)))
        for node in parsed.body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_") and ast.get_docstring(node) is None:
                wrong.append(f"{where(path, node)} {node.name}")
    assert not wrong, listed(wrong)


def test_functions_and_files_are_short() -> None:
    """Half of all functions under ten lines, hardly one over forty; files as long as one reads in one go."""
    lengths = {}
    for path in PYTHON:
        for function in functions(path):
            lengths[f"{where(path, function)} {function.name}"] = (function.end_lineno or 0) - function.lineno + 1
    assert statistics.median(lengths.values()) < 10
    long = {name: length for name, length in lengths.items() if length > 40}
    assert len(long) <= len(lengths) // 50, long
    limits = [(PYTHON, 600), (SCRIPTS, 450), (sorted((ROOT / "static/css").rglob("*.css")), 250), (TEMPLATES, 120)]
    limits.append((sorted((ROOT / "tests").rglob("*.py")), 600))
    counts = [(path, len(path.read_text().splitlines()), limit) for paths, limit in limits for path in paths]
    wrong = [f"{p.relative_to(ROOT)}: {count} of {limit}" for p, count, limit in counts if count > limit]
    assert not wrong, listed(wrong)


def test_broad_excepts_are_few_and_explained() -> None:
    """`except Exception` only where something must go on whatever happens, and with the reason beside it."""
    found = []
    for path in PYTHON:
        lines = path.read_text().splitlines()
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kind = ast.unparse(node.type) if node.type else "BaseException"
            if kind in ("Exception", "BaseException"):
                near = "\n".join(lines[max(0, node.lineno - 2) : node.lineno + 1])
                found.append((where(path, node), "#" in near))
    unexplained = [place for place, explained in found if not explained]
    assert not unexplained, listed(unexplained)
    assert len(found) <= 15, listed(found)


def test_no_utils() -> None:
    """A file is named by what it is about."""
    wrong = {"utils", "util", "helpers", "services", "extensions", "common", "misc"}
    assert [str(path) for path in tracked() if path.stem in wrong] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_inline_code(path: Path) -> None:
    """No script or style within a page, no on*= attribute, nothing from another host."""
    text = re.sub(r"\{#.*?#\}", "", path.read_text(), flags=re.S)
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", text, flags=re.S)
    assert [body for attributes, body in scripts if body.strip() or "src=" not in attributes] == []
    unwatched = [attributes for attributes, _ in scripts if not re.search(r"data-(sign|global)=|watchdog", attributes)]
    assert unwatched == [], "the watchdog must know by what to tell that a script ran"
    assert "<style" not in text
    assert not re.search(r"\sstyle\s*=", text)
    assert not re.search(r"<[^>]*\son[a-z]+\s*=", text)
    assert not re.search(r"hx-on|javascript:|hx-vals=[\"']js:", text)
    assert not re.search(r"(src|href)=[\"'](https?:)?//", text)


def test_the_proxy_settings_on_the_connection_page_are_those_of_the_manual() -> None:
    """No copy of its own: each line of them stands in docs/operations.md, whose nginx the tests run."""
    page = (ROOT / "templates/connection/_troubleshooting.html").read_text()
    manual = {line.strip() for line in (ROOT / "docs/operations.md").read_text().splitlines()}
    code = "\n".join(re.findall(r"<code>(.*?)</code>", page, flags=re.S))
    lines = {html.unescape(line).strip() for line in code.splitlines()}
    assert len(lines) > 15 and lines <= manual, lines - manual


def test_message_is_neutral_to_who_looks() -> None:
    """One rendering serves every reader: no action, no token, no nonce in it."""
    text = (ROOT / "templates/conversation/_message.html").read_text()
    text = re.sub(r"\{#.*?#\}", "", text, flags=re.S)
    assert not re.search(r"hx-|csrf|nonce|current_user|\bmine\b|session|request\.", text)


def test_htmx_is_unmodified() -> None:
    """Version 4.0.1 as its authors published it, with its licence."""
    assert hashlib.sha256(HTMX.read_bytes()).hexdigest() == HTMX_SHA256
    assert (HTMX.parent / "htmx-LICENSE.txt").exists()


def test_the_core_knows_the_world_by_its_ports_only() -> None:
    """static/js/connection/ names nothing of a browser and imports nothing of a page: any JavaScript runs it."""
    browser = re.compile(
        r"\b(document|window|globalThis|self|navigator|location|localStorage|sessionStorage|indexedDB|performance|htmx|"
        r"fetch|setTimeout|setInterval|clearTimeout|addEventListener|AbortController|WebSocket|URL|URLSearchParams|"
        r"DOMParser|TextEncoder|TextDecoder|crypto|Date\.now|new Date|Math\.random)\b(?!:)"
    )
    wrong = []
    for path in (ROOT / "static/js/connection").glob("*.js"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = re.sub(r'"[^"]*"', '""', line.split("//")[0])
            if browser.search(code) or ("import" in code and "../" in line):
                wrong.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
    assert not wrong, listed(wrong)


def test_nothing_above_the_transports_asks_which_one_it_is() -> None:
    """connected and polling are the same to everything but the status (shown) and the record (counted).

    probes.js opens a WebSocket of its own to test the network with; it knows nothing of the chat's connection.
    """
    may = {"world.js", "status.js", "app.js", "probes.js"}
    asks = re.compile(r"[\"'](websocket|polling)[\"']|connectionType|\.transport\b|\bWebSocket\b")
    wrong = []
    for path in SCRIPTS:
        if path.name in may or path.parent.name == "connection":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if asks.search(line.split("//")[0]):
                wrong.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
    assert not wrong, listed(wrong)


def test_scripts_are_plain_modules() -> None:
    """At most twelve (see docs/architecture.md), the transports beside; no eval, no HTML handlers, no other host."""
    assert len([path for path in SCRIPTS if path.parent.name == "js"]) <= 12
    for path in SCRIPTS:
        text = path.read_text()
        assert not re.search(r"\beval\(|new Function\(|document\.write|from [\"']https?:", text), path.name


def test_no_private_host_or_path_in_the_repository() -> None:
    """What is tracked works on any machine: no package index, no directory of one machine, no secret."""
    hosts = re.compile(r"index-url|--extra-index|find-links|trusted-host|\"resolved\": *\"http")
    paths = re.compile(r"(?<![\w.:/-])/(work|home|root|Users)/[\w.-]+")
    wrong = []
    for path in tracked():
        if path.suffix in (".png", ".woff2", ".ico", ".lock") or path == Path(__file__) or path.parent == HTMX.parent:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if paths.search(line) or (hosts.search(line) and path.name != "Makefile"):
                wrong.append(f"{path.relative_to(ROOT)}:{number} {line.strip()[:120]}")
    for path in (ROOT / "deploy").glob("*.lock"):
        assert not re.search(r"https?://|^-", path.read_text(), re.M), path.name
    assert not wrong, listed(wrong)


def test_every_setting_is_documented() -> None:
    """docs/operations.md names each one with the name that the environment has."""
    text = (ROOT / "docs/operations.md").read_text()
    source = (ROOT / "chatapp/config.py").read_text()
    settings = next(
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    names = [
        node.target.id.upper()
        for node in settings.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_"
    ]
    assert names, "Settings has no fields"
    missing = [name for name in names if not re.search(rf"\b(CHATAPP_)?{name}\b", text)]
    assert not missing, listed(missing)


def test_the_tests_that_the_checklist_names_exist() -> None:
    """docs/security.md is a list of promises: one without its test is none."""
    named = re.findall(r"`((?:browser/)?test_\w+\.py)(?:::(\w+))?", (ROOT / "docs/security.md").read_text())
    assert len(named) > 40
    for file, test in named:
        assert test in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
