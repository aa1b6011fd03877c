"""Addresses, schemes and cookies that do not fit: it is said what came, what was expected and who can mend it."""

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.server import EMAIL, PASSWORD, Server
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from chatapp.diagnostics.doctor import Doctor, Report, Way

OPENED = "https://chat.example.org:8443"  # what people type; the proxy before the server ends TLS


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared servers outlive each test; they end with the module."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that believes a proxy on this machine."""
    directory = tmp_path_factory.mktemp("addresses")
    with Server(directory, assistant="off", trusted_proxies="127.0.0.1") as running:
        yield running


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose PUBLIC_URL says https."""
    with Server(tmp_path_factory.mktemp("https"), assistant="off", public_url=OPENED) as running:
        yield running


def upgrade(server: Server, cookie: str, origin: str, headers: dict[str, str]) -> tuple[int, str]:
    """The status of an upgrade, and what a refusal says."""
    more = {"Cookie": cookie, **headers}
    try:
        with connect(f"ws://127.0.0.1:{server.port}/ws", additional_headers=more, origin=origin):  # type: ignore[arg-type]
            return 101, ""
    except InvalidStatus as refused:
        return refused.response.status_code, bytes(refused.response.body or b"").decode()


@pytest.mark.parametrize("scheme", ["https", "wss", "WSS", "wss,https"])
def test_traefiks_wss_counts_as_https(server: Server, scheme: str) -> None:
    """A declared proxy may call the scheme of an upgrade wss."""
    web = Client(server.url).sign_in()
    headers = {"X-Forwarded-Proto": scheme, "X-Forwarded-Host": "chat.example.org:8443"}
    assert upgrade(server, web.cookie_header, OPENED, headers)[0] == 101


def test_a_host_without_its_port_is_named(server: Server) -> None:
    """Both the answer and the log say what came, what was expected, by which header, and what mends it."""
    web = Client(server.url).sign_in()
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example.org"}
    status, words = upgrade(server, web.cookie_header, OPENED, headers)
    assert status == 403
    for part in (f"'{OPENED}', expected 'https://chat.example.org'", "X-Forwarded-Host", "CHATAPP_PUBLIC_URL"):
        assert part in words and part in server.log_text()


def test_an_undeclared_proxys_scheme_is_named(https: Server) -> None:
    """Its word is not taken; the log says which setting would take it."""
    web = Client(https.url)
    web.get("/sign-in")
    form = {
        "email": EMAIL,
        "password": PASSWORD,
        "csrf_token": web.get("/sign-in").page.all("input", name="csrf_token")[0].get("value"),
    }
    headers = {"Origin": OPENED, "Content-Type": "application/x-www-form-urlencoded"}
    assert web.request("POST", "/sign-in", urlencode(form), headers).status == 303
    headers = {"X-Forwarded-Proto": "wss"}
    status, words = upgrade(https, web.cookie_header, "https://other.example", headers)
    assert status == 403 and "127.0.0.1 sends X-Forwarded-Proto 'wss', but is not in CHATAPP_TRUSTED_PROXIES" in words


def examine(url: str) -> Report:
    """A short examination."""
    return Doctor(Way.to(url, "")).examine(EMAIL, PASSWORD, idle_s=0.2, hold_s=0.2)


def test_the_doctor_says_what_was_expected(server: Server) -> None:
    """A proxy that drops the port from Host; a sign-in page of a company's on another host."""
    with FaultProxy(server.port) as proxy:
        proxy.host = "127.0.0.1"
        found = {one.probe: one for one in examine(proxy.url).found}
        expected = f"(the address is {proxy.url}, the server was asked at http://127.0.0.1)"
        assert found["upgrade"].outcome == "origin" and expected in found["upgrade"].words
        proxy.heal()
        proxy.http_error, proxy.http_error_on = (302, {"Location": "https://sso.example/login?a=b"}), "/connection"
        report = examine(proxy.url)
        assert report.verdict.name == "portal"
        assert "(to https://sso.example/login)" in {one.probe: one for one in report.found}["mark"].words


# Forms without a token that fits


def sign_in(server: Server, cookie: str, token: str = "x", origin: str = "") -> tuple[int, str]:
    """The answer to the sign-in form, sent by a browser with these cookies."""
    web = Client(server.url)
    headers = {"Cookie": cookie, "Origin": origin or server.url, "Content-Type": "application/x-www-form-urlencoded"}
    form = urlencode({"email": EMAIL, "password": PASSWORD, "csrf_token": token})
    answer = web.request("POST", "/sign-in", form, {name: value for name, value in headers.items() if value})
    return answer.status, " ".join(answer.text.split())


def test_blocked_cookies_are_called_so(server: Server) -> None:
    """None came back: the browser, an extension or something on the way, and not an old page."""
    status, page = sign_in(server, "")
    assert status == 400 and "Allow cookies for this site" in page and "Reload" not in page


def test_a_secure_cookie_over_http_is_called_so(https: Server) -> None:
    """The page was opened over http, the cookie is for https: the address is given."""
    status, page = sign_in(https, "")
    assert status == 400 and OPENED in page and "over http" in page and "Reload" not in page


def test_a_second_sign_in_tab_is_called_so(server: Server) -> None:
    """Signed in from the first one: there is nothing to reload."""
    web = Client(server.url).sign_in()
    status, page = sign_in(server, web.cookie_header)
    assert status == 400 and "You are signed in already" in page and "Ada Admin" in page and "Reload" not in page


def test_another_address_is_called_so(https: Server) -> None:
    """A form from an address that the settings do not name."""
    web = Client(https.url)
    token = web.get("/sign-in").page.all("input", name="csrf_token")[0].get("value")
    status, page = sign_in(https, web.cookie_header, token, "https://intranet.example")
    assert (
        status == 403
        and "opened at https://intranet.example" in page
        and OPENED in page
        and "CHATAPP_PUBLIC_URL" in page
    )
