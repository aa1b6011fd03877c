"""How each fault is done. A function gets the stage of its cell; what it returns is done when the fault is over."""

import contextlib
import random
import signal
from collections.abc import Callable

from failover.stage import Stage

Undo = Callable[[], None]
ADVISED_S = 7
POLLING_S = 16.0
FLAP_S = 20.0
FORCED_S = (2.0, 5.0)
"""How long each of the random faults lasts, and the pauses between them."""


def nothing(stage: Stage, argument: str) -> Undo:
    """A real proxy does it, or nobody."""
    return lambda: None


def upgrade(stage: Stage, argument: str) -> Undo:
    """hang, refuse, strip, mute, cut."""
    stage.proxy.upgrade = argument
    return stage.proxy.heal


def reset_sockets(stage: Stage, argument: str) -> Undo:
    """RST on every WebSocket."""
    stage.proxy.reset_sockets()
    return lambda: None


def cut_in_frame(stage: Stage, argument: str) -> Undo:
    """Half of the next frame, and the end."""
    stage.proxy.cut_in_frame()
    return lambda: None


def blackhole_sockets(stage: Stage, argument: str) -> Undo:
    """Every WebSocket goes silent; new connections pass."""
    stage.proxy.blackhole_sockets(argument)
    return lambda: None


def blackhole_connections(stage: Stage, argument: str) -> Undo:
    """Every connection goes silent and new ones pass; a browser is told that the network changed."""
    stage.proxy.blackhole_connections(argument)
    stage.tell_browsers("network")
    return lambda: None


def blackhole_all(stage: Stage, argument: str) -> Undo:
    """Old and new connections go silent."""
    stage.proxy.blackhole_all = argument
    return stage.proxy.heal


def lose_acks(stage: Stage, argument: str) -> Undo:
    """The server has the message, its answer is lost, the connection is reset."""
    stage.proxy.lose_acks()
    stage.proxy.lose_replies = stage.clients
    return stage.proxy.heal


def websocket_outage(stage: Stage, argument: str) -> Undo:
    """WebSockets are reset and refused; HTTP passes."""
    stage.proxy.upgrade = "refuse"
    stage.proxy.reset_sockets()
    return stage.proxy.heal


def polls_blocked(stage: Stage, argument: str) -> Undo:
    """WebSocket is good, polls hang."""
    stage.proxy.hang_polls = True
    return stage.proxy.heal


def poll_blackhole(stage: Stage, argument: str) -> Undo:
    """On a network without WebSocket every living connection goes silent after a while; new ones pass."""
    stage.proxy.upgrade = "refuse"
    stage.later(POLLING_S, lambda: stage.strike(stage.proxy.blackhole_connections))
    return stage.proxy.heal


def longest_life(stage: Stage, argument: str) -> Undo:
    """Every connection is cut after so many seconds, idle or not."""
    stage.proxy.longest_life = float(argument)
    return stage.proxy.heal


def buffering(stage: Stage, argument: str) -> Undo:
    """Upgrades pass; what the server says is held until so many bytes are there."""
    stage.proxy.buffer_bytes = int(argument)
    return stage.proxy.heal


def caching(stage: Stage, argument: str) -> Undo:
    """No WebSocket, and a cache that keeps polls against their headers."""
    stage.proxy.upgrade, stage.proxy.cache_polls = "strip", True
    return stage.proxy.heal


def http_error(stage: Stage, argument: str) -> Undo:
    """Connections are reset, and everything gets this answer: portal, redirect, proxy sign-in, advice to wait."""
    advice = {"Retry-After": str(ADVISED_S)} if argument in ("429", "503") else {}
    elsewhere = {"Location": "/from-the-fault-proxy"} if argument == "302" else {}
    stage.proxy.http_error, stage.proxy.http_error_on = (int(argument), advice | elsewhere), "/"
    stage.proxy.reset_all()
    return stage.proxy.heal


def flapping(stage: Stage, argument: str) -> Undo:
    """20 s of silence, 20 s of network, and so on."""

    def flap(silent: bool) -> None:
        stage.proxy.blackhole_all = silent
        stage.later(FLAP_S, lambda: flap(not silent))

    flap(True)
    return stage.proxy.heal


def kill(stage: Stage, argument: str) -> Undo:
    """kill -9 for the servers; they start again at once."""
    stage.beside(lambda: (stage.servers.kill(), stage.servers.start()))
    return lambda: None


def restart(stage: Stage, argument: str) -> Undo:
    """TERM and a new start."""
    stage.beside(stage.servers.restart)
    return lambda: None


def drain(stage: Stage, argument: str) -> Undo:
    """The server closes its connections and goes on: HUP for ours; the peer closes every connection."""
    stage.beside(stage.servers.drain)
    return lambda: None


def offline(stage: Stage, argument: str) -> Undo:
    """The network is gone: connections reset, new ones refused; a browser knows it."""
    stage.proxy.network_down()
    stage.tell_browsers("offline")

    def online() -> None:
        stage.proxy.heal()
        stage.tell_browsers("online")

    return online


def sleep(stage: Stage, argument: str) -> Undo:
    """The clients' machine sleeps (SIGSTOP); `dead`: its connections did not survive that. T0 is the waking."""
    for driver in stage.drivers:
        driver.signal(signal.SIGSTOP)
    if argument == "dead":
        stage.proxy.blackhole_connections()

    def wake() -> None:
        for driver in stage.drivers:
            driver.signal(signal.SIGCONT)
        stage.strike(lambda: None)

    return wake


def frozen(stage: Stage, argument: str) -> Undo:
    """A tab is frozen, its connections die meanwhile, and it is woken. T0 is the waking."""
    stage.tell_browsers("freeze")
    stage.proxy.blackhole_connections()

    def wake() -> None:
        stage.tell_browsers("wake")
        stage.strike(lambda: None)

    return wake


def random_faults(stage: Stage, argument: str) -> Undo:
    """One fault after another, by a seed."""
    chance, proxy = random.Random(stage.seed), stage.proxy

    def answer_503() -> None:
        proxy.http_error, proxy.http_error_on = (503, {}), "/"

    def network_down() -> None:
        with contextlib.suppress(OSError):
            proxy.network_down()

    def silent(direction: str) -> Callable[[], None]:
        return lambda: setattr(proxy, "blackhole_all", direction)

    def upgrades(mode: str) -> Callable[[], None]:
        return lambda: (setattr(proxy, "upgrade", mode), proxy.reset_sockets())[0]

    def lose_replies() -> None:
        upgrades("refuse")()
        proxy.lose_replies = stage.clients

    faults: list[Callable[[], object]] = [
        proxy.reset_sockets,
        proxy.blackhole_sockets,
        lambda: proxy.blackhole_sockets("up"),
        lambda: proxy.blackhole_sockets("down"),
        proxy.cut_in_frame,
        proxy.lose_acks,
        proxy.blackhole_connections,
        *(upgrades(mode) for mode in ("refuse", "hang", "mute", "cut")),
        *(silent(direction) for direction in ("both", "up", "down")),
        network_down,
        answer_503,
        lose_replies,
    ]

    def strike() -> None:
        chance.choice(faults)()
        stage.later(chance.uniform(*FORCED_S), heal)

    def heal() -> None:
        proxy.heal()
        stage.later(chance.uniform(*FORCED_S), strike)

    strike()
    return proxy.heal


FAULTS: dict[str, Callable[[Stage, str], Undo]] = {
    function.__name__: function
    for function in (
        nothing,
        upgrade,
        reset_sockets,
        cut_in_frame,
        blackhole_sockets,
        blackhole_connections,
        blackhole_all,
        lose_acks,
        websocket_outage,
        polls_blocked,
        poll_blackhole,
        longest_life,
        buffering,
        caching,
        http_error,
        flapping,
        kill,
        restart,
        drain,
        offline,
        sleep,
        frozen,
        random_faults,
    )
}
