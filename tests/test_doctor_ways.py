"""What `chatapp doctor` makes of odd answers, of proxies that want a password, of TLS and of addresses."""

import base64
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lab.asking import without_proxies
from lab.haproxy import HAProxy
from lab.parrot import Parrot
from lab.processes import free_port
from lab.server import EMAIL, PASSWORD, Server
from lab.squid import Squid

from chatapp.diagnostics import verdicts
from chatapp.diagnostics.doctor import Doctor, Report, Unreachable, Way
from chatapp.diagnostics.probe_socket import ProbeSocket
from chatapp.diagnostics.wire import ProbeClient

PAGE = b"<html>not here</html>"
SERVER = {"drill": None, "protocol": "HTTP/1.1", "origin": True, "offered": True}
SWITCHING = "101 Switching Protocols"


def answer(status: str, *headers: str, body: bytes = PAGE, version: str = "1.1", length: bool = True) -> bytes:
    """An answer as it goes over the wire; without a length, its end is the connection's."""
    lines = [f"HTTP/{version} {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


# name → (answer, what becomes of the connection, outcome of `upgrade`, status)
UPGRADES: dict[str, tuple[bytes, str, str, int]] = {
    "refused": (answer("403 Forbidden"), "close", "filtered", 403),
    "refused by HTTP/1.0": (answer("403 Forbidden", version="1.0", length=False), "close", "filtered", 403),
    "refused without an end": (answer("403 Forbidden", length=False), "hold", "filtered", 403),
    "refused with half a page": (answer("403 Forbidden")[:-5], "close", "filtered", 403),
    "refused with a long head": (answer("403 Forbidden", f"X-Policy: {'x' * 20_000}"), "close", "filtered", 403),
    "refused with many headers": (answer("403 No", *(f"X-{n}: 1" for n in range(200))), "close", "filtered", 403),
    "refused with bare line ends": (answer("403 Forbidden").replace(b"\r\n", b"\n"), "close", "filtered", 403),
    "refused in no words": (answer("403"), "close", "filtered", 403),
    "a sign-in at the proxy": (answer("407 Sign in", "Proxy-Authenticate: Basic"), "close", "proxy-auth", 407),
    "a page": (answer("200 OK"), "close", "foreign", 200),
    "a page by HTTP/1.0": (answer("200 OK", version="1.0", length=False), "close", "foreign", 200),
    "an empty page": (b"HTTP/1.1 204 No Content\r\n\r\n", "close", "foreign", 204),
    "sent elsewhere": (answer("302 Found", "Location: https://portal.example/?u=1"), "close", "redirect", 302),
    "sent to a sign-in page": (answer("302 Found", "Location: /login"), "close", "redirect", 302),
    "sent to no address": (answer("302 Found", "Location: http://portal.example:port/"), "close", "redirect", 302),
    "sent nowhere": (answer("302 Found"), "close", "redirect", 302),
    "asked for an upgrade": (answer("426 Upgrade Required", "Upgrade: websocket"), "close", "stripped", 426),
    "a wrong accept": (
        answer(
            SWITCHING, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: no", body=b"", length=False
        ),
        "hold",
        "refused",
        0,
    ),
    "a bare 101": (answer(SWITCHING, body=b"", length=False), "hold", "refused", 0),
    "nothing": (b"", "close", "refused", 0),
    "a reset": (b"", "reset", "refused", 0),
    "no HTTP": (b"220 mail.example ready\r\n\r\n", "close", "refused", 0),
}
# name → (answer, what becomes of the connection, outcome of `poll`, where it leads)
POLLS: dict[str, tuple[bytes, str, str, str]] = {
    "ours": (answer("200 OK", body=b"<chat-answer></chat-answer>"), "close", "ok", ""),
    "ours, half": (answer("200 OK", body=b"<chat-answer></chat-answer>")[:-5], "close", "cut", ""),
    "ours, to the connection's end": (answer("200 OK", body=b"<chat-answer>", length=False), "close", "ok", ""),
    "half a chunk": (
        answer("200 OK", "Transfer-Encoding: chunked", body=b"FF\r\n<chat-answer", length=False),
        "close",
        "cut",
        "",
    ),
    "a page": (answer("200 OK", version="1.0", length=False), "close", "foreign", ""),
    "a filter's half page": (answer("403 Forbidden")[:-5], "close", "filtered", ""),
    "a sign-in at the proxy": (answer("407 Sign in", "Proxy-Authenticate: Basic"), "close", "proxy-auth", ""),
    "sent elsewhere": (
        answer("302 Found", "Location: https://portal.example/login?u=1"),
        "close",
        "redirect",
        "https://portal.example/login",
    ),
    "sent to no address": (
        answer("302 Found", "Location: http://portal.example:port/"),
        "close",
        "redirect",
        "http://portal.example:port/",
    ),
    "without end": (answer("200 OK", body=bytes(9 * 1024 * 1024), length=False), "hold", "cut", ""),
    "nothing": (b"", "close", "cut", ""),
    "a reset": (b"", "reset", "cut", ""),
    "silence": (b"", "hold", "hung", ""),
    "no HTTP": (b"220 mail.example ready\r\n\r\n", "close", "cut", ""),
}


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy or authority of this machine."""
    without_proxies(monkeypatch)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that believes a proxy on this machine, and holds polls for a moment."""
    directory = tmp_path_factory.mktemp("ways")
    with Server(directory, assistant="off", trusted_proxies="127.0.0.1") as running:
        yield running


def examine(url: str, proxy: str = "") -> Report:
    """A short examination as the seeded admin."""
    return Doctor(Way.to(url, proxy)).examine(EMAIL, PASSWORD, idle_s=0.2, hold_s=0.2)


def outcomes(report: Report) -> dict[str, str]:
    """Probe → outcome."""
    return {one.probe: one.outcome for one in report.found}


def upgrade(url: str, proxy: str = "") -> tuple[str, dict[str, Any]]:
    """What becomes of one WebSocket: outcome and facts."""
    socket = ProbeSocket()
    facts = socket.open(ProbeClient(Way.to(url, proxy)), "/ws")
    socket.close()
    return verdicts.outcome("upgrade", facts | SERVER), facts


def test_answers_to_an_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is said instead of a 101 has its status, also where the library would not read it; nobody goes along."""
    monkeypatch.setattr("chatapp.diagnostics.probe_socket.CONNECT_S", 1.0)

    def one(name: str) -> tuple[str, int]:
        said, then, _, _ = UPGRADES[name]
        with Parrot(said, then) as parrot:
            outcome, facts = upgrade(parrot.url)
            assert {head.split()[1] for head in parrot.heads} == {b"/ws"}, name
        return outcome, facts["status"]

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(UPGRADES, pool.map(one, UPGRADES), strict=True))
    assert found == {name: case[2:] for name, case in UPGRADES.items()}


def test_answers_to_a_poll() -> None:
    """Half an answer is none; a refusal and a redirect count without their page."""

    def one(name: str) -> tuple[str, str]:
        said, then, _, _ = POLLS[name]
        with Parrot(said, then) as parrot:
            got = ProbeClient(Way.to(parrot.url, "")).get("/changes", within_s=1.0)
        return verdicts.outcome("poll", got.facts("<chat-answer")), got.location

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(POLLS, pool.map(one, POLLS), strict=True))
    assert found == {name: case[2:] for name, case in POLLS.items()}


def test_nothing_names_the_library() -> None:
    """A filter that stops scripts by name would stop no browser."""
    with Parrot(answer("403 Forbidden", version="1.0")) as parrot:
        upgrade(parrot.url)
        ProbeClient(Way.to(parrot.url, "")).get("/healthz")
    assert len(parrot.heads) == 3
    assert not re.search(rb"(?i)user-agent|python|httpx|websockets/", b"".join(parrot.heads))


PROXIES_REFUSAL = answer("407 Sign in", "Proxy-Authenticate: Basic", "Via: 1.1 gate (squid)")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password(scheme: str) -> None:
    """It says so to a plain request and to a tunnel alike; where it names itself, that is known."""
    with Parrot(PROXIES_REFUSAL) as proxy:
        report = examine(f"{scheme}://chat.example.org", proxy.address)
        assert upgrade(f"{scheme}://chat.example.org", proxy.address)[0] == "proxy-auth"
    assert (report.verdict.name, report.proxy) == ("proxy-auth", "squid")
    asked = [head.split(b"\r\n")[0].split()[:2] for head in proxy.heads]
    to = [b"CONNECT", b"chat.example.org:443"] if scheme == "https" else [b"GET", b"http://chat.example.org/healthz"]
    assert asked[0] == to and asked[-1][0] == b"CONNECT"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxys_password_comes_from_the_environment(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY and HTTPS_PROXY may hold it; NO_PROXY goes without."""
    wanted = b"Basic " + base64.b64encode(b"ada:s@cret")
    with Parrot(PROXIES_REFUSAL) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://ada:s%40cret@{proxy.address}/")
        monkeypatch.setenv("no_proxy", "inside.example.org")
        way = Way.to(f"{scheme}://chat.example.org")
        ProbeClient(way).get("/healthz")
        ProbeSocket().open(ProbeClient(way), "/ws")
        assert Way.to(f"{scheme}://inside.example.org").proxy == ""
    assert len(proxy.heads) == 2 and all(wanted in head for head in proxy.heads)


@pytest.mark.parametrize("then", ["close", "reset"])
def test_a_tunnel_that_is_cut(then: str) -> None:
    """Nothing was asked of the server: it is out of reach."""
    with Parrot(b"", then) as proxy:
        got = ProbeClient(Way.to("https://chat.example.org", proxy.address)).get("/healthz")
        outcome, _ = upgrade("http://chat.example.org", proxy.address)
    assert (got.error, outcome) == ("unreachable", "unreachable")


def test_certificates(server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody vouches for is TLS's fault; once it is trusted, all works: directly, and by forward proxies."""
    with HAProxy("tls", server.port, certificate) as front, Squid("forward", server.port) as squid:
        assert examine(front.url).verdict.name == "tls"
        assert examine(front.url, squid.address).verdict.name == "tls"
        assert upgrade(front.url)[0] == upgrade(front.url, squid.address)[0] == "unreachable"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with HAProxy("tls-tcp", squid.port, certificate) as secret:
            with ThreadPoolExecutor(3) as pool:
                reports = list(pool.map(lambda proxy: examine(front.url, proxy), ["", squid.address, secret.url]))
            reports.append(examine(server.url, secret.url))
    assert [report.verdict.name for report in reports] == ["live"] * 4, [outcomes(report) for report in reports]


def test_another_hosts_certificate(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trusted, but for another name."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Parrot(answer("200 OK"), tls=context) as parrot:
        assert ProbeClient(Way.to(parrot.url, "")).get("/").error is None
        assert ProbeClient(Way.to(parrot.url.replace("127.0.0.1", "localhost"), "")).get("/").error == "tls"


def test_secure_cookies_beside_the_server(start_server: Callable[..., Server]) -> None:
    """Tested over plain HTTP from beside it, though people come over https: its cookies are used all the same."""
    server = start_server(assistant="off", public_url="https://chat.example.org")
    report = examine(server.url)
    assert report.verdict.name == "live", (report.problem, outcomes(report))


def test_ipv6() -> None:
    """Host and Origin have the brackets."""
    with Parrot(answer("403 Forbidden"), host="::1") as parrot:
        way = Way.to(f"{parrot.url}/chat/", "")
        assert ProbeClient(way).get("/healthz").status == 403
        assert upgrade(f"{parrot.url}/chat/")[0] == "filtered"
    host = f"[::1]:{parrot.port}"
    assert way.origin == f"http://{host}"
    get, asked = (head.decode() for head in parrot.heads)
    assert get.startswith("GET /chat/healthz ") and f"\r\nHost: {host}\r\n" in get
    assert asked.startswith("GET /chat/ws ") and f"\r\nHost: {host}\r\nOrigin: http://{host}\r\n" in asked


def test_nobody_there() -> None:
    """No such name, and no such port."""
    for url in ("http://nobody.invalid", "https://nobody.invalid", f"http://127.0.0.1:{free_port()}"):
        assert examine(url).verdict.name == "unreachable"
        assert upgrade(url)[0] == "unreachable"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("HTTPS://Chat.Example.Org:443/chat/", "https://chat.example.org"),
        ("http://chat.example.org:8080", "http://chat.example.org:8080"),
        ("https://ada:secret@chat.example.org/", "https://chat.example.org"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_addresses(url: str, origin: str) -> None:
    """As a browser writes them in Origin."""
    assert Way.to(url, "").origin == origin


@pytest.mark.parametrize(
    "url",
    [
        "chat.example.org",
        "localhost:8000",
        "ftp://chat.example.org",
        "http://",
        "http://h:99999",
        "http://h:x",
        "http://a..b",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(Unreachable, match="is not an address such as"):
        Way.to(url, "")


@pytest.mark.parametrize("proxy", ["socks5://proxy.example.org:1080", "http://ada:secret@", "proxy.example.org:port"])
def test_proxies_that_are_none(proxy: str) -> None:
    """Said without repeating what may be a password."""
    with pytest.raises(Unreachable, match=r"proxy\.example\.org:3128") as refused:
        Way.to("https://chat.example.org", proxy)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("session", ["nothing", "=value", "name=", "name=line\nbreak", "name=é"])
def test_sessions_that_are_none(session: str) -> None:
    with pytest.raises(Unreachable, match="name=value"):
        ProbeClient(Way.to("http://chat.example.org", "")).use(session)


def test_a_foreign_sign_in_page_gets_no_password() -> None:
    """A portal's page stands where the form should: nothing is posted."""
    with Parrot(answer("200 OK")) as parrot:
        way = Way.to(parrot.url, "")
        with pytest.raises(Exception, match="is not the sign-in page"):
            ProbeClient(way).sign_in(EMAIL, PASSWORD)
    assert [head.split()[0] for head in parrot.heads] == [b"GET"]


def test_only_the_doctor_loads_its_libraries() -> None:
    """The command line, and with it the server, goes without them until they are used."""
    libraries = ("chatapp.diagnostics.doctor", "httpx", "websockets")
    code = f"import sys, chatapp.cli; print([m for m in {libraries} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "[]"
    code = "import sys, chatapp.diagnostics.doctor; print([m for m in ('flask', 'gevent') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "[]"
