"""What is remembered of networks: the vectors that JavaScript runs too, keys, and clients that come again."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab.faultproxy import FaultProxy
from lab.http import Client as HttpClient
from lab.server import Server
from test_client import client_of, states

from chatapp.connection.memory import Networks, network_key, note, trust

VECTORS = json.loads((Path(__file__).parent / "vectors" / "memory.json").read_text())


@pytest.mark.parametrize("scenario", VECTORS, ids=lambda scenario: scenario["name"])
def test_scenario(scenario: dict[str, Any]) -> None:
    """What is kept after each experience."""
    networks: Networks = {}
    for step in scenario["steps"]:
        note(networks, step["key"], step["now"], step["has_worked"], step["kill_gap"])
        assert networks[step["key"]] == pytest.approx(step["entry"]), step
        assert len(networks) == step["count"]
        assert trust(networks[step["key"]], step["now"]) == pytest.approx(step["trust"])


def test_keys_tell_networks_apart_and_name_none() -> None:
    """The same for a /24 or /48, another for another secret; nothing of the address in it."""
    key = network_key("secret", "192.0.2.7")
    assert key == network_key("secret", "192.0.2.200") == network_key("secret", "::ffff:192.0.2.9")
    assert key != network_key("secret", "192.0.3.7") and key != network_key("other", "192.0.2.7")
    assert (
        network_key("s", "2001:db8:1:2::3")
        == network_key("s", "2001:db8:1:ffff::9")
        != network_key("s", "2001:db8:2::")
    )
    assert len(key) == 12 and "192" not in key[:3]
    assert network_key("secret", "") == network_key("secret", "unix") == ""


def test_the_page_carries_the_key(start_server: Callable[..., Server]) -> None:
    """Rendered by the server, the same on each page, without the address."""
    server = start_server(assistant="off")
    client = HttpClient(server.url).sign_in()
    pages = [client.get("/").text for _ in range(2)]
    keys = {json.loads(_config(page))["network"] for page in pages}
    assert len(keys) == 1 and len(keys.pop()) == 12


def _config(page: str) -> str:
    import html
    import re

    found = re.search(r'name="chat-config" content="([^"]+)"', page)
    assert found
    return html.unescape(found[1])


def test_the_third_client_begins_by_polling_and_still_finds_websocket_again(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], FaultProxy]
) -> None:
    """Hung upgrades: the third one does not wait for them; once they work, it is back on WebSocket within seconds."""
    proxy = start_proxy(start_server(assistant="off"))
    proxy.upgrade = "hang"
    networks: Networks = {}
    usable = []
    for number in range(3):
        if number < 2:
            with client_of(proxy.url, networks=networks) as client:
                began = time.monotonic()
                states(client, "polling")
                usable.append(time.monotonic() - began)
                client.wait(lambda: client.record["wsReason"] == "upgrade-hung", 8, "the attempt is given up")
    with client_of(proxy.url, networks=networks) as client:
        first = proxy.requests[-1]
        states(client, "polling")
        assert not first.is_upgrade and client.record["wsReason"] is None, "polls first, nothing tried yet"
        proxy.upgrade = "pass"
        states(client, "connected", within=12)
    print(f"usable after {usable}")
