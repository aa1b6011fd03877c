"""A day of people in ordinary use: what the monitor shows of it is what an independent witness counts (lab/witness.py).

Every report goes through the real ingest; the day is then rolled up by a clock of its own, and a real server shows it.
"""

import json
import os
import sqlite3
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lab.day import MINUTE, Day
from lab.http import Client
from lab.peer import WebSocketPeer
from lab.people import add_people, signed_in
from lab.processes import wait_for
from lab.rolled import Shown, look, roll_up
from lab.server import Server, furnish
from lab.witness import Sums, sums_of

from chatapp.store import ConnectionEvent, now_ms
from chatapp.store.events import NAMES

StartServer = Callable[..., Server]
PEOPLE = int(os.environ.get("DAY", "20"))  # `make day`: 200
HOURS, STEP = (8, MINUTE) if PEOPLE > 50 else (3, 2 * MINUTE)
IS_REAL = bool(os.environ.get("DAY_REAL"))  # with all that test_sentences.py marks as broken
SEED = int(os.environ.get("DAY_SEED", "1"))
WRITERS = 8
MOST = 200  # events in one report
BIN = 2 ** (1 / 4)
LONGEST = 2 ** (63 / 4)  # of 64 bins: see test_a_gap_of_ten_minutes_is_not_shown_as_one

# What a person reads of each reason: seen once on the page, and found to say the same.
WORDS = {
    "upgrade-refused": "the upgrade to WebSocket is refused",
    "upgrade-hung": "the upgrade to WebSocket is never answered",
    "upgrade-failed": "WebSocket does not open",
    "socket-closed": "live connections are cut",
    "socket-silent": "live connections fall silent",
    "server-unreachable": "the server cannot be reached",
    "server-restart": "the server restarts",
    "offline": "devices are offline",
    "slow": "it takes longer than 10 s",
}


def worded(counts: Counter[str]) -> dict[str, int]:
    """The counts as the page says them: the reason is the last word of a key."""
    found: Counter[str] = Counter()
    for key, number in counts.items():
        transport, _, reason = key.rpartition(" ")
        found[f"{transport} | {WORDS[reason]}" if transport else WORDS[reason]] += number
    return dict(found)


def ingest(server: Server, day: Day, emails: list[str]) -> None:
    """Each person's pages report, in batches; some twice."""
    batches: dict[tuple[int, int], list[list[dict[str, Any]]]] = defaultdict(list)
    for report in day.reports:
        found = batches[report.person, report.skew]
        if not found or len(found[-1]) == MOST:
            found.append([])
        found[-1].append(report.item)

    def person(number: int) -> None:
        client = signed_in(server, emails[number])
        for (who, skew), lists in batches.items():
            for items in lists if who == number else []:
                for _ in range(1 + (len(items) % 5 == 0)):
                    told = str(round(time.time() * 1000) + skew)
                    answer = client.post("/connection/events", events=json.dumps(items), now=told)
                    assert answer.status == 204, answer.text[:300]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(person, range(len(emails))))
    names = ", ".join((*NAMES, "received_at"))
    rows = [[getattr(event, name) for name in NAMES] + [event.at] for event in day.server]
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as database, database:
        database.executemany(f"INSERT INTO connection_events ({names}) VALUES ({', '.join('?' * len(rows[0]))})", rows)


def stored(server: Server) -> dict[tuple[str, int], ConnectionEvent]:
    """Everything in the table, but for what the running server says of itself."""
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as database:
        rows = [ConnectionEvent(*row) for row in database.execute(f"SELECT {', '.join(NAMES)} FROM connection_events")]
    return {(row.client, row.number): row for row in rows}


def check_ingest(day: Day, rows: dict[tuple[str, int], ConnectionEvent]) -> None:
    """What is stored is what was said: once, of this person, by the server's clock."""
    assert len({(one.client, one.number) for one in day.reports}) == len(day.reports)
    networks = {rows[one.client, one.number].network for one in day.reports}
    assert len(networks) == 1 and networks != {""}, "all are at 127.0.0.1"
    for one in day.reports:
        row = rows[one.client, one.number]
        said = (row.type, row.transport, row.state_from, row.state_to, row.reason, json.loads(row.data))
        assert said == (one.type, one.transport, one.before, one.to, one.reason, one.data)
        assert (row.person, row.page, row.happened_at) == (day.uuids[one.person], one.client, one.at + one.skew)
        assert abs(row.at - one.at) <= 1000, "a difference of more than a second is taken off"


def close(shown: float | None, found: float | None, share: float = 0.005, least: float = 0.0) -> bool:
    """Whether two figures are the same but for so much."""
    if shown is None or found is None:
        return shown is found
    return abs(shown - found) <= max(share * abs(found), least)


def differences(shown: Shown, found: Sums) -> list[str]:
    """Where the page and the witness do not agree."""
    wrong = []

    def compare(name: str, is_same: bool, on_page: object, counted: object) -> None:
        if not is_same:
            wrong.append(f"{name}: the page shows {on_page}, the events say {counted}")

    page_s = found.pages / (3600 * found.hours)  # a second a page, as a share of the time
    for name, value in found.metrics().items():
        on_page = shown.metrics[name]
        if name in ("round-trip-p95", "gap-p95"):
            is_same = close(on_page, min(value, LONGEST) if value else value, BIN - 1)
        elif name in ("session-success", "delivery"):
            is_same = close(on_page, value, 1e-6)
        else:
            is_same = close(on_page, value, max(0.005, page_s))
        compare(name, is_same, on_page, value)
    tables = {
        "Attempts that failed": worded(found.attempts_failed),
        "Connections that were lost": worded(found.lost),
        "Changes to polling": worded(found.fallbacks),
    }
    for name, counts in tables.items():
        compare(name, shown.tables[name] == counts, shown.tables[name], counts)
    compare("planned, came back", (shown.planned, shown.came_back) == (found.planned, found.came_back),
            (shown.planned, shown.came_back), (found.planned, found.came_back))  # fmt: skip
    trips = shown.tables["Round trip of messages"]
    for share, label in ((0.5, "50 %"), (0.95, "95 %"), (0.99, "99 %")):
        compare(
            f"round trip {label}",
            close(trips[label], found.trip_ms(share), BIN - 1, 1),
            trips[label],
            found.trip_ms(share),
        )
    counts = {"sent more than once": found.repeated, "clients that report nothing": found.unwitnessed}
    for name, number in counts.items():
        compare(name, trips[name] == number, trips[name], number)
    return wrong + differences_now(shown, found)


def differences_now(shown: Shown, found: Sums) -> list[str]:
    """The same of the people who are here now."""
    people = found.people
    lost = people["reconnecting"] + people["error"]
    pairs = {
        "people": (shown.metrics["people"], sum(people.values())),
        "people-live": (shown.metrics["people-live"], people["connected"]),
        "people-polling": (shown.metrics["people-polling"], people["polling"]),
        "people-reconnecting": (shown.metrics["people-reconnecting"], people["reconnecting"]),
        "people-lost": (shown.metrics["people-lost"], people["error"]),
        "who is affected": (shown.affected, [people["polling"], sum(people.values()), lost]),
        "level": (shown.level, found.level),
    }
    return [
        f"{name}: the page shows {one}, the events say {other}" for name, (one, other) in pairs.items() if one != other
    ]


def report_now(server: Server) -> None:
    """What pages of four people say just now, over the real ingest: only these are followed by the real roll-up."""
    states = {"polls": "polling", "tries": "reconnecting", "failed": "error", "live": "connected"}
    emails = [f"{name}@example.org" for name in states]
    add_people(server, *emails)
    for name, state in states.items():
        client = signed_in(server, f"{name}@example.org")
        for skew in (0, 300_000):  # two pages of each, one of them with a wrong clock; and twice
            now = round(time.time() * 1000) + skew
            ready = {"type": "attempt", "transport": "websocket", "data": {"outcome": "ready", "ms": 100}}
            told = [{"type": "state", "from": "disconnected", "to": "connecting"}, ready]
            told += [{"type": "state", "from": "connecting", "to": state, "reason": "upgrade-refused"}]
            page = str(uuid.uuid4())
            events = [
                {"client": page, "number": number, "at": now - 50 + number} | one for number, one in enumerate(told)
            ]
            for _ in range(2):
                assert client.post("/connection/events", events=json.dumps(events), now=str(now)).status == 204


def page_times(server: Server, operator: Client) -> list[float]:
    """The seconds of thirty looks at the page while people write as fast as they are acknowledged, in order."""
    ended = threading.Event()

    def write() -> None:
        with WebSocketPeer(Client(server.url).sign_in()) as peer:
            conversation = peer.client.create().json["conversation"]
            peer.subscribe({conversation: 0})
            while not ended.is_set():
                peer.send(conversation, "Some words, again and again.")
                time.sleep(0.02)

    writers = [threading.Thread(target=write) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    taken = []
    for number in range(30):
        time.sleep(0.2)  # a look is kept for a moment
        began = time.perf_counter()
        assert operator.get(f"/monitor?range={('1h', '24h', '7d')[number % 3]}").status == 200
        taken.append(time.perf_counter() - began)
    ended.set()
    for writer in writers:
        writer.join(20)
    return sorted(taken)


@pytest.mark.timeout(1800)
def test_the_monitor_shows_what_the_events_of_a_day_say(start_server: StartServer, tmp_path: Path) -> None:
    began = time.monotonic()

    def said(of_what: object) -> None:
        print(f"{time.monotonic() - began:6.1f} s: {of_what}")

    server = start_server(assistant="off")
    emails = [f"person{number}@example.org" for number in range(PEOPLE)]
    day = Day(SEED, PEOPLE, HOURS, now_ms() // MINUTE * MINUTE - MINUTE, add_people(server, *emails), IS_REAL)
    said(f"{len(day.reports)} reports and {len(day.server)} events of the server")
    ingest(server, day, emails)
    rows = stored(server)
    server.stop()
    check_ingest(day, rows)
    said("they were taken as they are")
    arrivals = [(at, rows[one.client, one.number]) for at, one in day.arrivals()]
    arrivals += [(one.at, rows[one.client, one.number]) for one in day.server]
    shown_by = Server(tmp_path / "shown", assistant="off")
    shown_by.data.mkdir(parents=True)
    furnish(shown_by.data)
    roll_up(shown_by.data, shown_by.data, arrivals, day.start - 6 * MINUTE, now_ms(), STEP)
    said("rolled up")
    with shown_by as server:
        operator = Client(server.url).sign_in()
        by_minutes, by_hours = look(operator), look(operator, "7d")
        found = sums_of(server.data, now_ms())
        said(f"{found.pages} pages: {found}")
        assert not (wrong := differences(by_minutes, found)), "\n" + "\n".join(wrong)
        assert not (wrong := differences(by_hours, found)), "of hours\n" + "\n".join(wrong)
        report_now(server)
        before, known = found.people, {"polling": 1, "reconnecting": 1, "error": 1, "connected": 1}
        found = sums_of(server.data, now_ms())
        assert found.people == before + Counter(known)
        wait_for(lambda: not differences_now(look(operator), found), 20, "people who are here now")
        said("and the same of who is here now")
        took = page_times(server, operator)
    median, worst = (round(1000 * one) for one in (took[len(took) // 2], took[-1]))
    said(f"/monitor beside {WRITERS} who write: median {median} ms, worst {worst} ms")
    assert median < (300 if PEOPLE > 50 else 2000), "the bar is 150 ms on a quiet machine"
