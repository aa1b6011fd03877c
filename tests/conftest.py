"""What tests share: servers, proxies, a browser, and a watch on what they leave behind."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from headless.client import Client as Headless
from headless.client import Loop
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.nginx import Nginx
from lab.processes import describe, kill_group, left_running, wait_for
from lab.server import EMAIL, PASSWORD, Server

from chatapp import create_app
from chatapp.config import Settings
from chatapp.parts import Parts

if TYPE_CHECKING:
    from lab.asking import Play
    from playwright.sync_api import Browser, Page

StartServer = Callable[..., Server]
# Begun first, the longest before the shorter: else one of them is what everybody waits for at the end of a parallel
# run. By turns one with a browser and one without, so that never four browsers share two cores.
LONGEST = [
    "test_simulation",
    "test_alerts_served",
    "test_offline",
    "test_auth",
    "test_renewal",
    "test_session_ends",
    "test_xss",
    "test_sharing",
    "test_drills",
    "test_six_states",
    "test_reading",
    "test_bench",
    "test_loading",
    "test_strangers",
    "test_vectors",
    "test_budgets",
    "test_drafts",
    "test_doctor",
    "test_kept",
    "test_nonsense",
    "test_rewriters",
    "test_storage",
    "test_status",
    "test_desync",
    "test_client_defaults",
    "test_client",
    "test_timing",
    "test_openai",
    "test_paths",
    "test_bad_starts",
    "test_controls",
    "test_durability",
    "test_check",
    "test_revocation",
    "test_transports",
    "test_conversations",
    "test_foreign_answers",
    "test_detector",
    "test_poll_pace",
    "test_example_client",
    "test_example_python",
    "test_first_run",
    "test_websocket",
    "test_damping",
    "test_defaults",
    "test_delivery",
    "test_pacing",
    "test_network_memory",
    "test_sockets",
    "test_nojs",
    "test_slow_readers",
    "test_reports",
    "test_workers",
    "test_failover",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; all else stays in order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that leaves a process of the lab behind fails, and the process is ended."""
    yield
    try:
        wait_for(lambda: not left_running(), 2, "the lab's processes end")
    except AssertionError:
        left = {pid: describe(pid) for pid in left_running()}
        for pid in left:
            kill_group(pid)
        if left:
            pytest.fail(f"left running: {left}")


@pytest.fixture(scope="module")
def me(shared: Server) -> Client:
    """The admin, signed in, where a module's tests share a server (its fixture `shared`)."""
    return Client(shared.url).sign_in()


@pytest.fixture
def parts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Parts]:
    """The parts of an app without a server, on a real disk; a module's SETTINGS differ from the defaults."""
    settings = Settings(data_dir=tmp_path / "data", **getattr(request.module, "SETTINGS", {}))
    parts: Parts = create_app(settings).extensions["chatapp"]
    yield parts
    parts.store.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers, each with a directory of its own; they end with the test, and their log is shown if it fails."""
    with ExitStack() as stack:
        count = 0

        def start(**options: object) -> Server:
            nonlocal count
            count += 1
            directory = tmp_path / f"server{count}"
            return stack.enter_context(Server(directory, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """One server with the defaults and an admin."""
    return start_server()


@pytest.fixture
def client(server: Server) -> Client:
    """The admin, signed in."""
    return Client(server.url).sign_in()


@pytest.fixture
def start_proxy() -> Iterator[Callable[[Server], FaultProxy]]:
    """Puts a fault proxy in front of a server."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(FaultProxy(server.port))


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    """The thread of a module's headless pages."""
    loop = Loop()
    yield loop
    loop.stop()


@pytest.fixture
def start_client(loop: Loop) -> Iterator[Callable[..., Headless]]:
    """Starts clients of a server, the shipped core on real sockets, with what is offered of these transports (both,
    where none is named) and the options of headless.client.Client; they end with the test."""
    with ExitStack() as stack:

        def start(url: str, *transports: str, **options: Any) -> Headless:
            more = {"transports": transports} if transports else {}
            email = options.pop("email", EMAIL)
            client = Headless(loop, url, email, PASSWORD, follows=["list"], **more, **options)
            return stack.enter_context(client)

        yield start


@pytest.fixture
def start_nginx() -> Iterator[Callable[[str, Server], Nginx]]:
    """Puts a real nginx in front of a server."""
    with ExitStack() as stack:
        yield lambda kind, server: stack.enter_context(Nginx(kind, server.port))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody knows, and its key."""
    both, key = tmp_path / "both.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=lab", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(both)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(both.read_text() + key.read_text())
    return both


@pytest.fixture
def play() -> "Iterator[Play]":
    """Starts servers of an OpenAI-compatible model that do what a test says."""
    from lab.asking import playing

    with playing() as start:
        yield start


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """One Chromium for all tests; each test gets a context of its own."""
    from lab.browser import launched

    with launched() as running:
        yield running


@pytest.fixture
def page(browser: "Browser", request: pytest.FixtureRequest) -> "Iterator[Page]":
    """A page that records connection states, what it fetched and its errors (see lab/browser.py)."""
    from lab.browser import new_page

    page = new_page(browser)
    yield page
    page.context.close()
