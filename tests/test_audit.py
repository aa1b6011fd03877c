"""The audit: every act has a row, no attack many, nothing changes one; filter, pages, export."""

import csv
import io
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from lab.http import JSON, Client
from lab.people import add_people, database, unconfirm, value
from lab.processes import wait_for
from lab.server import EMAIL, PASSWORD, Server, run_chatapp

from chatapp.accounts.failures import Failures
from chatapp.parts import Parts
from chatapp.store import Actor, AuditFilter

NEW = "an entirely different one"


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with an operator."""
    with Server(tmp_path_factory.mktemp("audit"), assistant="off") as server:
        yield server


@pytest.fixture
def op(shared: Server) -> Client:
    """The operator, who has just entered the password."""
    return Client(shared.url).sign_in()


def rows(server: Server, person: str = "") -> list[tuple[str, str | None, str | None, str, str]]:
    """Action, actor, target, address and detail of each event, the oldest first; of the newest server or a person."""
    query = """SELECT audit.action, actor.email, target.email, audit.address, audit.detail FROM audit
        LEFT JOIN people actor ON actor.id = actor_id LEFT JOIN people target ON target.id = audit.person_id
        WHERE ? IN ('', target.uuid, actor.uuid) ORDER BY audit.id"""
    with database(server) as connection:
        return list(connection.execute(query, (person,)))


def shown(client: Client, path: str = "/audit") -> list[str]:
    """The events of a page as text."""
    lists = client.get(path).page.all("ul", css_class="events")
    return [re.sub(r"\s+", " ", row.text).strip() for row in lists[0].all("li")]


def fail(server: Server, email: str, number: int = 1) -> None:
    """Try to sign in with a wrong password."""
    client = Client(server.url)
    client.learn(client.get("/sign-in").page)
    for _ in range(number):
        assert client.post("/sign-in", email=email, password="wrong").status == 422


def test_each_act_has_its_row(shared: Server, op: Client) -> None:
    (number,) = add_people(shared, "bo@example.org")
    person = Client(shared.url).sign_in("bo@example.org")
    person.post("/account/password", current="wrong", password=NEW)
    person.post("/sign-out")
    fail(shared, "bo@example.org")
    for act, fields in (
        ("role", {"role": "operator"}),
        ("role", {"role": "operator"}),
        ("role", {"role": "admin"}),
        ("reset", {}),
        ("disable", {}),
        ("enable", {}),
    ):
        assert op.post(f"/people/{number}/{act}", **fields).status == 303
    Client(shared.url).sign_in("bo@example.org")
    op.post(f"/people/{number}/sessions/end")
    Client(shared.url).sign_in("bo@example.org")
    wait_for(lambda: len(rows(shared, number)) == 12, 5, "all are recorded")
    bo, at = "bo@example.org", "127.0.0.1"
    assert rows(shared, number) == [
        ("sign-in", bo, bo, at, ""),
        ("password-failed", bo, bo, at, ""),
        ("sign-out", bo, bo, at, ""),
        ("sign-in-failed", None, bo, at, ""),
        ("role", EMAIL, bo, at, "operator"),
        ("role", EMAIL, bo, at, "admin"),
        ("reset-link", EMAIL, bo, at, ""),
        ("disabled", EMAIL, bo, at, ""),
        ("enabled", EMAIL, bo, at, ""),
        ("sign-in", bo, bo, at, ""),
        ("session-ended", EMAIL, bo, at, "1"),
        ("sign-in", bo, bo, at, ""),
    ]
    page = shown(op, f"/audit?person={bo}&action=role")
    assert len(page) == 2 and "role changed operator → Bo by Ada Admin 127.0.0.1" in page[1]


def test_invitations_deletions_and_commands_too(shared: Server, op: Client) -> None:
    path = op.post("/people/invite", JSON, email="eve@example.org").json["url"]
    eve = Client(shared.url)
    eve.learn(eve.get(path).page)
    assert eve.post(path, name="Eve", password=NEW).status == 303
    number = str(value(shared, "SELECT uuid FROM people WHERE email = 'eve@example.org'"))
    assert any("invited admin → eve@example.org" in row for row in shown(op))
    run_chatapp(shared, "admin", "disable", "--email", "eve@example.org")
    op.post(f"/people/{number}/delete", typed="eve@example.org")
    assert [row[0] for row in rows(shared, number)] == ["joined", "sign-in", "disabled", "deleted"]
    page = op.get(f"/audit?person={number}").text
    assert "deleted person" in page and "by a command" in page and "Eve" not in page and "eve@" not in page
    with database(shared) as connection:
        assert "eve@example.org" not in "\n".join(connection.iterdump())


def test_rows_are_only_added(shared: Server, op: Client) -> None:
    with database(shared) as connection:
        for statement in ("UPDATE audit SET address = ''", "DELETE FROM audit", "DELETE FROM audit WHERE id = 1"):
            with pytest.raises(sqlite3.IntegrityError, match="only added"):
                connection.execute(statement)
        before = connection.execute("SELECT count(*) FROM audit").fetchone()
    assert before > (0,)


def test_a_guess_without_end_is_no_row_without_end(shared: Server, op: Client) -> None:
    (number,) = add_people(shared, "victim@example.org")
    fail(shared, "victim@example.org", 8)
    wait_for(lambda: len(rows(shared, number)) >= 5, 5, "the first are recorded")
    fail(shared, "nobody@example.org", 7)
    time.sleep(0.3)
    assert [row[0] for row in rows(shared, number)] == ["sign-in-failed"] * 5
    with database(shared) as connection:
        unknown = "SELECT count(*) FROM audit WHERE action = 'sign-in-failed' AND person_id IS NULL"
        assert connection.execute(unknown).fetchone() == (5,)
        assert "nobody@example.org" not in "\n".join(connection.iterdump()), (
            "people mistake the field for the password's"
        )


def test_a_later_row_has_the_number_since_the_last(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, now = Failures(parts.store.audit), [0.0]
    for quota in (failures._of_person, failures._of_all):
        monkeypatch.setattr(quota, "_clock", lambda: now[0])
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
    for _ in range(1000):
        failures.note("sign-in-failed", Actor(None, "192.0.2.1"), ada)
    now[0] = 601.0
    failures.note("sign-in-failed", Actor(None, "192.0.2.1"), ada)
    events, _more = parts.store.audit.page(AuditFilter(action="sign-in-failed"))
    assert [event.detail for event in events] == ["996", "", "", "", "", ""]


def test_an_attack_on_every_account_is_bounded_too(parts: Parts) -> None:
    failures = Failures(parts.store.audit)
    for number in range(150):
        person = parts.store.people.add_admin("Ada", f"{number}@example.org", "x").id
        failures.note("sign-in-failed", Actor(None, "192.0.2.1"), person)
    assert len(parts.store.audit.page(AuditFilter(action="sign-in-failed"), most=500)[0]) == 100


def test_the_first_run_is_the_first_row(parts: Parts) -> None:
    ada = parts.store.people.add_first_admin("Ada", "ada@example.org", "x", "192.0.2.1")
    (event,), _more = parts.store.audit.page(AuditFilter())
    assert (event.action, event.actor, event.person, event.address) == ("first-run", ada.uuid, ada.uuid, "192.0.2.1")


def test_drills_have_rows(parts: Parts) -> None:
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x")
    parts.store.drills.start("refuse", 60, 0.0, ada.id)
    parts.store.drills.end()
    parts.store.drills.start("close", 1, 0.0, slot="now")
    events, _more = parts.store.audit.page(AuditFilter())
    found = [(event.action, event.person_name, event.address, event.detail) for event in events[:3]]
    assert found == [
        ("drill-started", None, "schedule", "close 1 s"),
        ("drill-ended", None, "shell", ""),
        ("drill-started", "Ada", "shell", "refuse 60 s"),
    ]


def test_a_row_is_written_with_its_act_or_not_at_all(parts: Parts) -> None:
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x")
    actor = Actor(ada.id, "")
    with pytest.raises(Exception, match="last operator"):
        parts.administration.disable(actor, ada.uuid)
    assert [event.action for event in parts.store.audit.page(AuditFilter())[0]] == ["created"]


@pytest.fixture(scope="module")
def many(shared: Server) -> int:
    """Ten thousand events of one person, one a minute, the newest a year ago."""
    (number,) = add_people(shared, "busy@example.org")
    with database(shared) as connection:
        (person,) = connection.execute("SELECT id FROM people WHERE uuid = ?", (number,)).fetchone()
        start = round(datetime(2025, 1, 1, tzinfo=UTC).timestamp() * 1000)
        events = [
            (str(uuid.uuid4()), start + n * 60_000, "sign-in", person, person, "192.0.2.1") for n in range(10_000)
        ]
        names = "uuid, at, action, actor_id, person_id, address"
        connection.executemany(f"INSERT INTO audit ({names}) VALUES (?, ?, ?, ?, ?, ?)", events)
    return 10_000


def test_ten_thousand_events_are_paged_quickly(shared: Server, op: Client, many: int) -> None:
    path, seen, slowest = "/audit?person=busy%40example.org", 0, 0.0
    for _ in range(5):
        started = time.monotonic()
        page = op.get(path).text
        slowest = max(slowest, time.monotonic() - started)
        seen += page.count("<time")
        path = re.findall(r'href="(/audit\?[^"]*after=[^"]+)"', page)[0].replace("&amp;", "&")
    assert seen == 250 and slowest < 2.0
    assert "Nothing." in op.get("/audit?after=x").text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("person=nobody@x", "person"),
        (f"person={uuid.UUID(int=1)}", "person"),
        ("since=yesterday", "since"),
        ("action=x", ""),
    ],
)
def test_a_filter_that_is_none_says_so(op: Client, query: str, field: str) -> None:
    answer = op.get(f"/audit?{query}")
    assert answer.status == 422
    assert not field or answer.page.one("input", name=field).get("aria-invalid") == "true"
    assert op.get("/audit?since=0001-01-01&until=9999-12-31").status == 200


def test_a_filter_by_time(op: Client, many: int) -> None:
    assert len(shown(op, "/audit?person=busy@example.org&since=2025-01-02&until=2025-01-02")) == 50
    assert "Nothing" in shown(op, "/audit?person=busy@example.org&until=2024-12-31")[0]
    today, tomorrow = (f"{datetime.now(UTC) + timedelta(days=n):%Y-%m-%d}" for n in (0, 1))
    assert "busy" not in " ".join(shown(op, f"/audit?since={today}")).lower()
    assert "Nothing" in shown(op, f"/audit?since={tomorrow}")[0]


def test_an_export_is_whole_and_no_formula(shared: Server, op: Client, many: int) -> None:
    evil = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)"]
    numbers = add_people(shared, *(f"evil{n}@example.org" for n in range(4)))
    with database(shared) as connection:
        for name, number in zip(evil, numbers, strict=True):
            connection.execute("UPDATE people SET name = ? WHERE uuid = ?", (name, number))
    for number in numbers:
        op.post(f"/people/{number}/disable")
    answer = op.post("/audit/export")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/csv")
    assert "attachment" in answer.headers["Content-Disposition"]
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert sum(row["by_email"] == "busy@example.org" for row in table) == many
    assert {row["to"] for row in table if row["to"][1:] in evil} == {f"'{name}" for name in evil}
    assert not re.search(r'(^|,)"?[=+@-]', answer.text, re.M)
    assert rows(shared)[-1][0] == "exported"
    only = op.post("/audit/export", person="busy@example.org", since="2025-01-02", until="2025-01-02")
    assert len(only.text.splitlines()) == 1 + 1440
    assert op.post("/audit/export", since="x").status == 422


def test_an_export_needs_the_own_password_of_late(shared: Server, op: Client) -> None:
    unconfirm(shared)
    answer = op.post("/audit/export", action="role")
    assert (answer.status, answer.headers["Location"]) == (303, "/account/confirm?next=/audit?action%3Drole")
    assert "/audit/export" not in op.get("/audit").text
    assert op.post("/account/confirm", next="/audit?action=role", password=PASSWORD).status == 303
    assert op.post("/audit/export", action="role").status == 200
    assert op.post("/audit/export", csrf_token="x").status == 400


def test_names_are_text_in_the_audit(shared: Server, op: Client) -> None:
    (number,) = add_people(shared, "script@example.org")
    with database(shared) as connection:
        connection.execute("UPDATE people SET name = '<script>alert(1)</script>' WHERE uuid = ?", (number,))
    op.post(f"/people/{number}/disable")
    page = op.get("/audit").text
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_parallel_acts_lose_no_row(shared: Server) -> None:
    before = len(rows(shared))
    clients = [Client(shared.url) for _ in range(6)]
    threads = [threading.Thread(target=client.sign_in) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [row[0] for row in rows(shared)[before:]] == ["sign-in"] * 6
