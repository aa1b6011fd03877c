"""The quality of a connection, on real sockets; its rules are in test_shipped.py."""

from collections.abc import Callable

from headless.client import Client
from lab.server import Server


def test_a_client_knows_its_quality_after_a_few_echoes(
    start_server: Callable[..., Server], start_client: Callable[..., Client]
) -> None:
    """Unknown at first; excellent on this machine."""
    client = start_client(start_server(assistant="off").url)
    client.reach("connected")
    assert (client.record["quality"], client.record["qualityLevel"]) == (None, "unknown")
    client.wait(lambda: client.record["qualityLevel"] != "unknown", 20, "it is known")
    assert client.record["qualityLevel"] in ("excellent", "good")
    score = client.record["quality"]
    assert score is not None and score >= 70
