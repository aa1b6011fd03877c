"""The quality of a connection: the vectors that JavaScript runs too, and a client that is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab.server import Server
from test_client import client_of, states

from chatapp.connection.quality import Quality

VECTORS = json.loads((Path(__file__).parent / "vectors" / "quality.json").read_text())


@pytest.mark.parametrize("scenario", VECTORS, ids=lambda scenario: scenario["name"])
def test_scenario(scenario: dict[str, Any]) -> None:
    """Each verdict."""
    quality = Quality()
    for step in scenario["steps"]:
        found = getattr(quality, step["do"])(*step["arguments"])
        assert (found and vars(found)) == step["result"], step


def test_a_client_knows_its_quality_after_a_few_echoes(start_server: Callable[..., Server]) -> None:
    """Unknown at first; excellent on this machine."""
    with client_of(start_server(assistant="off").url) as client:
        states(client, "connected")
        assert (client.record["quality"], client.record["qualityLevel"]) == (None, "unknown")
        client.wait(lambda: client.record["qualityLevel"] != "unknown", 20, "it is known")
        assert client.record["qualityLevel"] in ("excellent", "good")
        score = client.record["quality"]
        assert score is not None and score >= 70
