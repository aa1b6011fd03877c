"""`chatapp doctor` over every proxy set-up: the right verdict, what helps, and the exit code that says it."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
from lab.faultproxy import FaultProxy
from lab.haproxy import HAProxy
from lab.http import Client
from lab.nginx import Nginx
from lab.processes import free_port
from lab.server import EMAIL, PASSWORD, Server, run_chatapp
from lab.squid import Squid

from chatapp.diagnostics.doctor import Doctor, Report, Way

WAIT_S = 6.0  # of the held poll and of the silence: longer than the 3 and 4 s after which the lab's proxies cut
AT_ONCE = 3  # examinations; the server lets one person make a few at a time

Case = tuple[str, str, str, list[str]]  # kind, verdict, outcome of `upgrade`, fixes
StartServer = Callable[..., Server]

NGINX: list[Case] = [
    ("good", "live", "ok", []),
    ("strip", "polling", "stripped", ["upgrade", "buffering"]),
    ("headers", "polling", "stripped", ["upgrade", "buffering"]),
    ("buffering", "live-remarks", "ok", ["buffering"]),
    ("short", "unsteady", "ok", ["timeout"]),
]
HAPROXY: list[Case] = [
    ("good", "live", "ok", []),
    ("strip", "polling", "stripped", ["upgrade"]),
    ("deny", "polling", "filtered", ["allow"]),
    ("tunnel", "unsteady", "ok", ["timeout"]),
    ("server", "live-remarks", "ok", ["timeout"]),
]
SQUID: list[Case] = [
    ("good", "live", "ok", []),
    ("plain", "polling", "stripped", ["upgrade"]),
    ("short", "unsteady", "ok", ["timeout"]),
]
FORWARD: list[Case] = [("forward", "live", "ok", []), ("forward-no-connect", "polling", "filtered", ["allow"])]
UPGRADES: list[Case] = [
    ("hang", "polling", "hung", ["inspection"]),
    ("mute", "polling", "mute", ["inspection"]),
    ("refuse", "polling", "filtered", ["allow"]),
    ("strip", "polling", "stripped", ["upgrade"]),
    ("cut", "unsteady", "ok", ["inspection"]),
]
PAGES: list[tuple[int, dict[str, str], str, int]] = [
    (200, {}, "portal", 2),
    (302, {"Location": "http://portal.example/"}, "portal", 2),
    (407, {"Proxy-Authenticate": "Basic"}, "proxy-auth", 2),
    (403, {}, "filtered", 2),
    (502, {}, "gateway", 2),
    (429, {"Retry-After": "7"}, "paused", 1),
]


def examine(url: str, proxy: str = "") -> Report:
    """One examination as the seeded admin, with short waits."""
    return Doctor(Way.to(url, proxy)).examine(EMAIL, PASSWORD, idle_s=WAIT_S, hold_s=WAIT_S)


def outcomes(report: Report) -> dict[str, str]:
    """Probe → outcome."""
    return {found.probe: found.outcome for found in report.found}


def check_all(cases: list[Case], one: Callable[[str], Report]) -> dict[str, Report]:
    """Examines every case and compares; a few at once, for they mostly wait."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        reports = dict(zip([case[0] for case in cases], pool.map(one, [case[0] for case in cases]), strict=True))
    found = [(kind, r.verdict.name, outcomes(r)["upgrade"], list(r.verdict.fixes)) for kind, r in reports.items()]
    assert found == cases, {kind: outcomes(report) for kind, report in reports.items()}
    return reports


def behind(make: Callable[[str, int], AbstractContextManager[Any]], server: Server) -> Callable[[str], Report]:
    """Examines by way of a real proxy of the kind."""

    def one(kind: str) -> Report:
        with make(kind, server.port) as proxy:
            return examine(proxy.url)

    return one


def test_nginx(server: Server) -> None:
    """Five configurations; nginx names itself, so only its own settings are given."""
    reports = check_all(NGINX, behind(Nginx, server))
    assert {report.proxy for report in reports.values()} == {"nginx"}
    settings = reports["strip"].as_dict()["settings"]
    assert list(settings) == ["nginx"]
    assert "proxy_set_header Upgrade $http_upgrade;" in settings["nginx"]
    assert outcomes(reports["headers"])["mark"] == "bare"


@pytest.mark.slow
def test_haproxy(server: Server) -> None:
    """Five configurations; HAProxy does not name itself, so the settings of all are given."""
    reports = check_all(HAPROXY, behind(HAProxy, server))
    assert outcomes(reports["tunnel"])["idle"] == "cut"
    assert outcomes(reports["server"])["hold"] == "cut"
    assert "timeout tunnel  1h" in reports["tunnel"].as_dict()["settings"]["haproxy"]


@pytest.mark.slow
def test_squid_as_reverse_proxy(server: Server) -> None:
    """As documented, by its defaults, and with a short timeout."""
    reports = check_all(SQUID, behind(Squid, server))
    assert {report.proxy for report in reports.values()} == {"squid"}
    assert reports["plain"].as_dict()["settings"] == {"squid": "http_upgrade_request_protocols websocket allow all"}


def test_squid_as_forward_proxy(server: Server) -> None:
    """Requests name the whole address, the WebSocket goes through CONNECT; where that is denied, polling is left."""

    def one(kind: str) -> Report:
        with Squid(kind, server.port) as proxy:
            return examine(server.url, proxy.address)

    check_all(FORWARD, one)


@pytest.mark.slow
def test_upgrades_that_fail(server: Server) -> None:
    """Hung, mute after the 101, refused, stripped, cut after 300 ms."""

    def one(mode: str) -> Report:
        with FaultProxy(server.port) as proxy:
            proxy.upgrade = mode
            return examine(proxy.url)

    check_all(UPGRADES, one)


def test_foreign_answers_and_exit_codes(server: Server, start_proxy: Callable[[Server], FaultProxy]) -> None:
    """A captive portal, a redirect, a proxy's sign-in, a filter, a gateway's error, a pause: by the command itself."""
    proxy = start_proxy(server)
    proxy.http_error_on = "/"
    for status, headers, verdict, code in PAGES:
        proxy.http_error = (status, headers)
        run = run_chatapp(server, "doctor", proxy.url, "--email", EMAIL, "--password", PASSWORD, "--json")
        assert (json.loads(run.stdout)["verdict"], run.returncode) == (verdict, code), run.stdout
    assert examine(server.url.replace("http:", "https:")).verdict.name == "tls"
    run = run_chatapp(server, "doctor", f"http://127.0.0.1:{free_port()}", "--json")
    assert (json.loads(run.stdout)["verdict"], run.returncode) == ("unreachable", 2)


def test_a_server_that_never_answers(server: Server, start_proxy: Callable[[Server], FaultProxy]) -> None:
    """Requests that hang: silent, and bounded."""
    proxy = start_proxy(server)
    proxy.hang_paths = ("/",)
    report = examine(proxy.url)
    assert (report.verdict.name, report.verdict.worth) == ("silent", "unreachable")


def test_the_command(start_server: StartServer) -> None:
    """Lines for people as each probe ends, the verdict last, exit code 0; by a session's cookie too; under a prefix."""
    server = start_server(url_prefix="/chat", poll_longest_hold=2)
    url = f"{server.url}/chat"
    short = ("--idle", "2", "--hold", "2")
    run = run_chatapp(server, "doctor", url, "--email", EMAIL, "--password", PASSWORD, *short)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines[:9]] == ["ok"] * 9
    assert lines[-1].startswith("Everything works")
    run = run_chatapp(server, "doctor", url, *short)
    assert run.returncode == 1 and "needs a sign-in" in run.stdout
    run = run_chatapp(server, "doctor", url, "--email", EMAIL, "--password", "wrong wrong wrong", *short)
    assert run.returncode == 1 and "was answered 422" in run.stdout
    assert run_chatapp(server, "doctor", "chat.example.org").returncode == 2


def test_by_cookie_and_polling_only_mode(start_server: StartServer) -> None:
    """The cookie of a browser serves as a sign-in; WebSocket switched off by the server is no fault."""
    server = start_server(transports="polling", poll_longest_hold=2)
    client = Client(server.url).sign_in()
    run = run_chatapp(server, "doctor", server.url, "--session", client.cookie_header, "--json")
    report = json.loads(run.stdout)
    assert (report["verdict"], report["worth"], run.returncode) == ("chosen-polling", "good", 0)
    assert {probe["probe"]: probe["outcome"] for probe in report["probes"]}["upgrade"] == "off"


def test_probes_are_for_people_who_are_signed_in_and_bounded(server: Server, client: Client) -> None:
    """Without a session 401 with our mark; a hold no longer than the setting allows; four long answers at a time."""
    for path in ("mark", "hold", "stream", "large"):
        answer = Client(server.url).request("GET", f"/connection/test/{path}")
        assert answer.status == 401 and answer.text.startswith("<chat-test"), path
    with ThreadPoolExecutor(6) as pool:
        holds = pool.map(lambda _: client.request("GET", "/connection/test/hold?seconds=2"), range(6))
        found = sorted(answer.status for answer in holds)
    assert found == [200, 200, 200, 200, 429, 429]
    assert client.request("GET", "/connection/test/hold?seconds=-5").status == 200
    assert client.request("GET", "/connection/test/hold?seconds=nan").status == 200
