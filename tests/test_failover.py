"""The rig of `make failover` can fail: it finds the gap of a client without fallback, and what a lossy one loses."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from failover import trial as trials
from failover.bars import verdicts
from failover.cells import CELLS, Cell
from failover.drained import Drained
from failover.faults import FAULTS
from failover.measure import Result, attribute, measure
from failover.report import write
from failover.stage import Servers
from failover.trial import Run, Trial, batches
from lab.faultproxy import Seen
from lab.wire import Head

OUTAGE_S = 5.0


@pytest.mark.timeout(180)
def test_the_rig_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outage of WebSocket for a sound client, one without fallback, and one that loses, doubles, swaps."""
    monkeypatch.setattr(trials, "GRACE_S", 4.5)
    monkeypatch.setitem(trials.SETTLE_S, "chat", 2.0)
    cell = Cell("check", "websocket_outage", lasts=OUTAGE_S, window=OUTAGE_S + 4.5, every=0.5, spread=1)
    systems = ("ours", "ours-ws-only", "ours-lossy")
    servers = Servers(tmp_path, None, people=2 * len(systems))
    try:
        run = Run(cell, systems, servers, 0, "check")
        results = measure(cell, run.go(2), run.stage.proxy.requests, run.bytes_before)
    finally:
        servers.stop()
    sound, alone, lossy = ([one for one in results if one.system == system] for system in systems)
    assert [one.problem for one in results] == [""] * len(results)
    assert sum(one.lost + one.doubled + one.reordered for one in sound + alone) == 0
    assert all(one.messages > 15 for one in results)
    assert median(one.gap for one in sound) < 0.6 * OUTAGE_S
    assert all((one.gap or 0) > 0.8 * OUTAGE_S for one in alone)
    assert all(one.lost and one.doubled and one.reordered for one in lossy), lossy
    assert all(one.noticed is not None and one.noticed < OUTAGE_S / 2 for one in sound)
    assert all(one.requests > 2 for one in sound)


def median(values: Sequence[float | None] | object) -> float:
    """Of those that there are."""
    return statistics.median(value for value in values if value is not None)  # type: ignore[attr-defined]


def trial(*states: tuple[float, str, str], system: str = "ours") -> Trial:
    """A trial with T0 at 100 s, healed at 110, over at 150; its client went through these states."""
    found = Trial(system, "c", "p0@example.org", "x", t0=100.0, healed=110.0, end=150.0)
    found.events = [{"at": at, "event": "state", "state": state, "transport": on} for at, state, on in states]
    return found


def result(given: Trial) -> Result:
    """Measured, without requests."""
    return measure(Cell("x", "nothing"), [given], [], {})[0]


def test_noticed_and_back() -> None:
    """From T0 to the first word of the client; back from the end of the fault on."""
    up = (90.0, "up", "websocket")
    went = result(trial(up, (101.5, "down", ""), (102.0, "up", "polling"), (114.0, "up", "websocket")))
    assert (went.noticed, went.back) == (1.5, 4.0)
    stayed = result(trial(up))
    assert (stayed.noticed, stayed.back) == (None, 0.0)
    never = result(trial(up, (101.5, "down", "")))
    assert (never.noticed, never.back) == (1.5, None)
    blind = result(trial(up, (139.0, "down", ""), (141.0, "up", "websocket")))
    assert (blind.noticed, blind.back) == (39.0, 31.0)
    early = result(trial(up, (101.0, "down", ""), (104.0, "up", "websocket")))
    assert early.back == 0.0


def test_lost_doubled_reordered_and_the_gap() -> None:
    """In both directions, by ids; a message that was said before the fault counts from it."""
    given = trial((90.0, "up", "websocket"))
    given.posted = {"d-0": 95.0, "d-1": 99.0, "d-2": 101.0, "d-3": 102.0}
    order = [("d-0", 95.1), ("d-2", 104.0), ("d-1", 104.5), ("d-2", 105.0)]
    given.events += [{"at": at, "event": "got", "id": body} for body, at in order]
    given.events += [{"at": 101.0, "event": "sent", "id": f"u-{number}"} for number in range(3)]
    given.sent = {f"u-{number}": 101.0 for number in range(3)}
    given.received = ["u-1", "u-0", "u-0"]
    found = result(given)
    assert (found.lost, found.doubled, found.reordered, found.messages) == (2, 2, 2, 7)
    assert found.gap == 150 - 102


def seen(at: float, first: str, body: str = "", cookie: str = "", renewed: str = "") -> Seen:
    """A request and its answer, as the proxy keeps them."""
    head = Head.of(f"{first} HTTP/1.1\r\nCookie: {cookie}\r\n\r\n".encode())
    answer = Head.of(f"HTTP/1.1 200 OK\r\nSet-Cookie: {renewed}\r\n\r\n".encode())
    return Seen(at, 1, head, body.encode(), 200, answer)


def test_whose_request_it_was() -> None:
    """The peer's by the query; ours by the sign-in, and then by cookies that change on the way."""
    ours, peer = trial(), Trial("sio", "p")
    asked = [
        seen(1, "POST /sign-in", "email=p0%40example.org", renewed="chatapp_1=a; Path=/"),
        seen(2, "GET /", cookie="chatapp_1=a", renewed="chatapp_1=b; Path=/"),
        seen(101, "GET /changes?c=1", cookie="chatapp_1=b"),
        seen(102, "POST /connection/events", cookie="chatapp_1=b"),
        seen(103, "GET /socket.io/sio/?client=p&transport=polling"),
        seen(104, "GET /changes?c=1", cookie="chatapp_1=of-somebody-else"),
    ]
    attribute([ours, peer], asked)
    assert [one.at for one in ours.requests] == [101]
    assert [one.at for one in peer.requests] == [103]


def test_bars_are_met_or_not() -> None:
    """A median over the bar, a maximum over twice the bar, one that never came, a message lost: not met."""

    def verdict(*gaps: float | None) -> str:
        cells = {"reset": {"ours": [Result("ours", gap=gap) for gap in gaps]}}
        return next(one.verdict for one in verdicts(cells, None) if one.what.startswith("socket closed"))

    assert verdict(0.1, 0.2, 0.5) == "met"
    assert verdict(0.1, 0.4, 0.5) == verdict(0.1, 0.1, 0.7) == verdict(0.1, 0.1, None) == "NOT MET"
    assert verdict() == "not measured"
    few = {"random": {"ours": [Result("ours", messages=9, lost=1)]}}
    assert [one.verdict for one in verdicts(few, None) if "random" in one.what] == ["NOT MET"]
    herd = verdicts({}, Drained(200, 200, 200, all_back=4.0, peak=31, advised=10.0))
    assert [one.verdict for one in herd[-2:]] == ["met", "NOT MET"]


def test_the_page(tmp_path: Path) -> None:
    """Systems side by side; what did not happen in every trial says so."""
    sides = {"ours": [Result("ours", 1.0, 2.0, back=3.0)], "sio": [Result("sio", 39.0), Result("sio", lost=4)]}
    page = write(tmp_path, {"peer": "socket.io"}, {"reset": sides}, {}, None)
    assert "| reset | 1.00 (1.00) | 39.00 (39.00) 1/2 |" in page
    assert "| reset | 0/0/0 of 0; 0 | 4/0/0 of 0; 0 |" in page
    assert page == (tmp_path / "failover.md").read_text()
    assert (tmp_path / "failover.json").exists()


def test_every_cell_has_its_fault_and_all_trials_are_done() -> None:
    """Names are unique, faults are there, batches add up."""
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert {cell.fault for cell in CELLS} <= set(FAULTS)
    assert sum(cell.browser for cell in CELLS) == 8
    assert [batches(Cell("x", "nothing", most=10), n, 20) for n in (3, 10, 25)] == [[3], [10], [10, 10, 5]]
