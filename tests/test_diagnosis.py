"""What the monitor says is wrong, from nothing but ordinary use: faults on the way, of the server, none."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from headless.client import Client as Headless
from lab.elements import Element
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.people import add_people
from lab.server import Server, run_chatapp

StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
StartClient = Callable[..., Headless]
WITHIN_S = 60
PEOPLE = ("grace@example.org", "bo@example.org")


def rewriting(body: bytes) -> bytes:
    """A middlebox that adds to each page and fragment."""
    return body.replace(b"</article>", b"<i></i></article>").replace(b"<p>", b'<p class="x">')


def refuse(proxy: FaultProxy) -> None:
    proxy.upgrade = "refuse"


def hang(proxy: FaultProxy) -> None:
    proxy.upgrade = "hang"


def strip(proxy: FaultProxy) -> None:
    proxy.upgrade = "strip"


def mute(proxy: FaultProxy) -> None:
    proxy.upgrade = "mute"


def cut(proxy: FaultProxy) -> None:
    proxy.upgrade = "cut"


def short_lives(proxy: FaultProxy) -> None:
    proxy.longest_life = 3.0


def other_host(proxy: FaultProxy) -> None:
    proxy.host = "inside.example.org"


def refuse_and_cut(proxy: FaultProxy) -> None:
    proxy.upgrade, proxy.longest_life = "refuse", 6.0


ON_THE_WAY: dict[str, tuple[Callable[[FaultProxy], None], set[str]]] = {
    "refused": (refuse, {"upgrade-refused"}),
    "never answered": (hang, {"upgrade-hung"}),
    "stripped": (strip, {"upgrade-refused"}),
    "opened, then mute": (mute, {"mute", "upgrade-hung"}),  # a page cannot tell them apart; Run test can
    "opened, then cut": (cut, {"socket-closed", "idle-cut", "unstable"}),
    "cut after some seconds": (short_lives, {"socket-closed", "idle-cut", "unstable"}),
    "another host": (other_host, {"origin"}),
    "refused, and polls are cut": (refuse_and_cut, {"upgrade-refused"}),
}
SHORT = ("never answered", "opened, then cut", "another host", "refused, and polls are cut")
FAULTS = list(ON_THE_WAY) if os.environ.get("DIAGNOSIS") else SHORT  # `make diagnosis`


class Office:
    """A server, people behind a proxy and one who is not, all in ordinary use; and the operator's view."""

    def __init__(self, server: Server, proxy: FaultProxy, start_client: StartClient) -> None:
        self.server, self.operator = server, Client(server.url).sign_in()
        add_people(server, *PEOPLE)
        self.people = [start_client(proxy.url, email=email, reports=True) for email in PEOPLE]
        self.outside = start_client(server.url, reports=True)
        self.rooms: dict[Headless, str] = {}

    def go_on(self) -> None:
        """Everybody writes something."""
        for one in (*self.people, self.outside):
            if one not in self.rooms and one.record["status"] in ("connected", "polling"):
                with suppress(ConnectionError):  # the fault is the server's
                    self.rooms[one] = one.create()
            if one in self.rooms:
                one.send(self.rooms[one], "something")

    @property
    def verdict(self) -> Element:
        return self.operator.get("/monitor").page.one(id="verdict")

    def said(self, *causes: str, words: Sequence[str] = ()) -> Element:
        """The verdict with one of these causes, in ordinary use, within a minute."""
        end, next_at, verdict = time.monotonic() + WITHIN_S, 0.0, self.verdict
        while verdict.get("data-cause") not in causes or not all(some in verdict.text for some in words):
            assert time.monotonic() < end, f"{verdict.get('data-cause')}: {verdict.text}"
            if time.monotonic() > next_at:
                self.go_on()
                next_at = time.monotonic() + 10
            time.sleep(1)
            verdict = self.verdict
        return verdict


@pytest.fixture
def office(start_server: StartServer, start_proxy: StartProxy, start_client: StartClient) -> Callable[..., Office]:
    def start(spoil: Callable[[FaultProxy], None] | None = None, **settings: Any) -> Office:
        server = start_server(**({"assistant": "off"} | settings))
        proxy = start_proxy(server)
        if spoil:
            spoil(proxy)
        return Office(server, proxy, start_client)

    return start


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_the_way_is_named(office: Callable[..., Office], fault: str) -> None:
    spoil, causes = ON_THE_WAY[fault]
    words = ["2 of 3 people", *(["requests that wait are cut"] if "polls" in fault else [])]
    verdict = office(spoil).said(*causes, words=words)
    assert verdict.get("data-level") == "degraded"


def test_a_locked_database_is_the_servers(office: Callable[..., Office]) -> None:
    place = office()
    with locked(place.server):
        place.said("server-storage")
    place.said("none")


@contextmanager
def locked(server: Server) -> Iterator[None]:
    """Another program holds the database's lock."""
    database = sqlite3.connect(server.data / "chat.db", timeout=20, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


def test_a_drill_is_nobodys_fault(office: Callable[..., Office]) -> None:
    place = office()
    place.said("none")
    started = run_chatapp(place.server, "drill", "start", "refuse", "--seconds", "30", "--no-wait")
    assert started.returncode == 0
    for _ in range(10):
        place.go_on()
        time.sleep(1)
        assert place.verdict.get("data-cause") == "none", place.verdict.text
    assert "drill" in place.verdict.text


def test_nothing_wrong_and_polling_by_setting_are_in_order(office: Callable[..., Office]) -> None:
    place = office(transports="polling")
    for _ in range(8):
        place.go_on()
        time.sleep(1)
        assert (place.verdict.get("data-level"), place.verdict.get("data-cause")) == ("ok", "none"), place.verdict.text
