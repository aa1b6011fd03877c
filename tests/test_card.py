"""The card that the user fixed: the packages, the top level, and the shape of a synchronous Flask app with HTMX."""

import os
import re
import shutil
import sqlite3
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask
from lab import processes
from lab.browser import ask, assert_clean, sign_in, wait_state
from lab.elements import parse
from lab.http import Client
from lab.peer import WebSocketPeer
from lab.server import ROOT, Server
from playwright.sync_api import Page, Request

from chatapp import create_app
from chatapp.config import Settings

PACKAGES = {"flask", "flask-sock", "flask-sqlalchemy", "gunicorn", "gevent"}
TOP = ("app.py", "pyproject.toml", "chatapp", "templates", "static", "migrations", "tests")
# Of design's table: where a person may do something about the state.
OFFERS_RETRY = {
    "disconnected": True,
    "connecting": False,
    "connected": False,
    "polling": True,
    "reconnecting": True,
    "error": True,
}

SWAPS = """window.swaps = 0
document.addEventListener("htmx:after:swap", event => { if (event.target.id === "poll") swaps += 1 }, true)"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """The app without a server."""
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("card")))


def test_the_packages_and_the_top_level() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[<>=~!\[; ]", text)[0].lower() for text in project["dependencies"]}
    assert named >= PACKAGES
    assert any(text.startswith("pytest") for text in project["optional-dependencies"]["dev"])
    assert list((ROOT / "static" / "vendor").rglob("htmx*.js")), "htmx comes with the static files"
    assert [name for name in TOP if not (ROOT / name).exists()] == []


def test_the_websocket_is_a_route_of_flask_sock(app: Flask) -> None:
    (rule,) = [rule for rule in app.url_map.iter_rules() if rule.rule == "/ws"]
    assert rule.websocket
    view = app.view_functions[rule.endpoint]
    assert view.__code__.co_filename.endswith(os.path.join("flask_sock", "__init__.py"))


@pytest.mark.parametrize("state", OFFERS_RETRY)
def test_each_status_is_drawn_by_jinja_from_one_partial(app: Flask, state: str) -> None:
    with app.test_request_context("/"):
        drawn = str(app.jinja_env.get_template("connection/_status.html").module.status(state))  # type: ignore[attr-defined]
    elements = list(parse(drawn).walk())
    (chip,) = [element for element in elements if element.get("data-state") == state]
    assert chip.text.strip(), "it has a word"
    assert any(element.tag == "svg" for element in chip.walk()), "and an icon"
    (retry,) = [element for element in elements if element.get("data-action") == "retry"]
    assert ("hidden" not in retry.attributes) is OFFERS_RETRY[state]


def test_the_words_of_the_states_stand_in_no_script() -> None:
    words = ("Reconnecting", "No connection", "Not connected")
    scripts = [path for path in (ROOT / "static" / "js").rglob("*.js")]
    assert scripts
    assert [path.name for path in scripts if any(word in path.read_text() for word in words)] == []


@pytest.mark.browser
def test_polls_are_sent_and_swapped_by_htmx(start_server: Callable[..., Server], page: Page) -> None:
    server = start_server(transports="polling")
    polls: list[Request] = []
    page.on("request", lambda request: polls.append(request) if "/changes?" in request.url else None)
    page.add_init_script(SWAPS)
    sign_in(page, server.url)
    wait_state(page, "polling")
    ask(page, "How do I let WebSocket through nginx?")
    processes.wait_for(lambda: page.evaluate("swaps") >= 2, 10, "answers are swapped by htmx")
    held = [poll for poll in polls if "wait=0" not in poll.url]
    assert held and all(poll.headers.get("hx-request") == "true" for poll in held)
    assert_clean(page)


def test_messages_and_connection_events_are_rows_of_sqlite(server: Server) -> None:
    client, conversation = Client(server.url).sign_in(), str(uuid.uuid4())
    client.create("kept in SQLite", conversation)
    with WebSocketPeer(client) as peer:
        peer.subscribe({conversation: 0})
        peer.wait_for_answer(conversation)
    server.stop()
    with closing(sqlite3.connect(server.data / "chat.db")) as chat:
        assert chat.execute("SELECT count(*) FROM messages WHERE body = 'kept in SQLite'").fetchone() == (1,)
    with closing(sqlite3.connect(server.data / "metrics.db")) as metrics:
        found = {row[0] for row in metrics.execute("SELECT type FROM connection_events WHERE transport = 'websocket'")}
    assert found, "what the server saw of the WebSocket"


@pytest.fixture
def without_node(tmp_path: Path) -> Iterator[str]:
    """A PATH with the usual programs, and none of Node's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "env", "uname", "python3"):
        (folder / name).symlink_to(str(shutil.which(name)))
    yield str(folder)


def test_it_runs_without_node(start_server: Callable[..., Server], without_node: str) -> None:
    assert shutil.which("node", path=without_node) is None
    server = start_server(prefix=(str(shutil.which("env")), f"PATH={without_node}"))
    page = Client(server.url).sign_in().get("/")
    script = re.search(r'src="([^"]+\.js)"', page.text)
    assert script and Client(server.url).get(script[1]).status == 200
