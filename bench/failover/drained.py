"""Many clients after a drain: how soon all are back, and how many connect at once (the shipped core, headless)."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from failover.drivers import Driver, Happened
from lab.faultproxy import FaultProxy
from lab.server import EMAIL, Server

ADVISED_PER_S = 100
"""As RECONNECTS_PER_S in chatapp/transports/connections.py, by which a draining server advises its clients."""
BAND_S = 0.1
SIGN_IN_S = 1.5
SETTLE_S = 8.0
LOOK_S = 30.0


@dataclass(frozen=True)
class Drained:
    """What was seen. Seconds, from the first goodbye on."""

    clients: int
    connected: int
    back: int
    all_back: float | None
    peak: int  # connects in the busiest 100 ms
    advised: float  # per 100 ms


def drained(directory: Path, count: int) -> Drained:
    """Sign `count` clients in, HUP, and look on."""
    directory.mkdir(parents=True, exist_ok=True)
    with Server(directory, assistant="off") as server, FaultProxy(server.port, keep_frames=False) as proxy:
        driver = Driver([sys.executable, "-m", "failover.ours"], directory / "drivers.log")
        try:
            for number in range(count):
                names = {"system": "ours", "url": proxy.url, "email": EMAIL, "conversation": ""}
                driver.order("start", client=str(number), **names)
            driver.wait(lambda: len(_up(driver.events, 0)) == count, 30 + SIGN_IN_S * count)
            time.sleep(SETTLE_S)
            connected = len(_up(driver.events, 0))
            began = time.time()
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGHUP)
            driver.wait(lambda: len(_up(driver.events, began)) == connected, LOOK_S)
            time.sleep(2)
            return _result(count, connected, began, driver.events, proxy)
        finally:
            driver.kill()


def _up(events: Sequence[Happened], since: float) -> dict[str, float]:
    """The clients that came to a good state after `since`, and when."""
    found: dict[str, float] = {}
    for event in list(events):
        if event["event"] == "state" and event["state"] == "up" and event["at"] > since:
            found.setdefault(event["client"], event["at"])
    return found


def _result(count: int, connected: int, began: float, events: Sequence[Happened], proxy: FaultProxy) -> Drained:
    down = [e["at"] for e in events if e["event"] == "state" and e["state"] == "down" and e["at"] > began]
    up = _up(events, began)
    connects = sorted(seen.at for seen in proxy.upgrades(began))
    peak = max((sum(at <= one < at + BAND_S for one in connects) for at in connects), default=0)
    all_back = max(up.values()) - min(down) if down and len(up) == connected else None
    return Drained(count, connected, len(up), all_back, peak, ADVISED_PER_S * BAND_S)
