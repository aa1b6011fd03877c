"""The pace of polls on real sockets: pauses asked for, and holds that are cut; its rules are in test_shipped.py."""

import time
from collections.abc import Callable

import pytest
from headless.client import Client
from lab.faultproxy import FaultProxy
from lab.server import Server

StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
StartClient = Callable[..., Client]


@pytest.mark.parametrize("transports", [("websocket", "polling"), ("polling",)])
def test_a_pause_that_is_asked_for_is_kept(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient, transports: tuple[str, ...]
) -> None:
    """429 with Retry-After 7: nothing at all before 7 s, something within 9 s, and what was sent meanwhile arrives."""
    proxy = start_proxy(start_server(assistant="off"))
    proxy.upgrade = "refuse"
    client = start_client(proxy.url, *transports)
    client.reach("polling")
    conversation = client.create("hello")
    client.wait(lambda: held(proxy), 5, "a poll that nothing ends but the reset")
    proxy.http_error, proxy.http_error_on = (429, {"Retry-After": "7"}), "/"
    proxy.reset_all()
    client.wait(lambda: client.record["reason"] == "rate-limited", 5, "the pause is known")
    asked = [seen for seen in proxy.requests if seen.status == 429]
    waiting = client.send(conversation, "during the pause")
    time.sleep(5)
    assert client.record["nextRetryAt"], "shown as a countdown"
    proxy.http_error = None
    client.wait_sent(waiting, 10)
    first = asked[0].answered_at
    pause = [seen.at - first for seen in proxy.requests if seen.at > first and seen not in asked]
    print(f"after {pause[0]:.2f} s")
    assert len(asked) == 1, "one answer was enough"
    assert 7 <= pause[0] <= 9


def held(proxy: FaultProxy) -> bool:
    """The newest poll has waited half a second: what was new is answered, and a reset can hit no answer underway."""
    newest = proxy.seen("/changes")[-1:]
    return bool(newest) and not newest[0].ended_at and time.time() - newest[0].at > 0.5


def test_holds_that_a_proxy_cuts_become_shorter(
    start_server: StartServer, start_proxy: StartProxy, start_client: StartClient
) -> None:
    """Cut twice after 5.5 s: from then on polls are held for four fifths of that, and nothing is cut any more."""
    proxy = start_proxy(start_server(assistant="off", transports="polling"))
    client = start_client(proxy.url)
    client.reach("polling")
    for _ in range(2):
        held = client.wait(lambda: [s for s in proxy.seen("/changes") if "wait=25" in s.head.target], 5)
        time.sleep(max(0, held[-1].at + 5.5 - time.time()))
        proxy.requests.clear()
        proxy.reset_all()
        time.sleep(0.5)
    client.wait(lambda: [s for s in proxy.seen("/changes") if "wait=4" in s.head.target], 8, "a shorter hold")
    assert client.record["status"] == "polling"
