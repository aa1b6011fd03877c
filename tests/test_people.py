"""People for operators: invisible to others, never without an operator, links that work once, deletion that deletes."""

import itertools
import re
import threading
import uuid
from collections.abc import Iterator
from html import unescape
from urllib.parse import urlsplit

import pytest
from lab.http import JSON, Answer, Client
from lab.peer import WebSocketPeer
from lab.people import add_people, database, unconfirm, value
from lab.processes import wait_for
from lab.server import EMAIL, PASSWORD, Server, run_chatapp

from chatapp.parts import Parts
from chatapp.store import Actor

NOBODY = "00000000-0000-4000-8000-000000000000"
NEW = "an entirely different one"
WITHIN_S = 1.0  # from an end of access to the end of its connections
emails = (f"person{number}@example.org" for number in itertools.count())


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with an operator, at an address that it knows."""
    with Server(tmp_path_factory.mktemp("people"), assistant="off", public_url="http://chat.example.org") as server:
        yield server


class Operator(Client):
    """A client that makes links."""

    def made(self, path: str, **fields: str) -> str:
        """Post a form that makes a link; the path of the link, which the next page shows."""
        answer = self.post(path, **fields)
        assert answer.status == 303, answer.text
        shown = self.get(answer.headers["Location"]).page.one("input", id="made-link").get("value")
        assert shown not in self.get(answer.headers["Location"]).text, "it is shown once"
        return shown


def visitor(server: Server) -> Operator:
    """A browser without a session."""
    return Operator(server.url)


@pytest.fixture
def op(shared: Server) -> Operator:
    """The operator, who has just entered the password."""
    client = Operator(shared.url)
    client.sign_in()
    return client


@pytest.fixture
def bo(shared: Server) -> tuple[str, Operator]:
    """Another person: UUID, and a session."""
    email = next(emails)
    (number,) = add_people(shared, email)
    client = Operator(shared.url)
    client.sign_in(email)
    return number, client


def said(answer: Answer) -> str:
    """The text of the page's alert."""
    return " ".join(
        unescape(re.sub("<[^>]+>", " ", "".join(re.findall(r'role="alert">(.*?)</p>', answer.text)))).split()
    )


# For operators only


def neutral(answer: Answer) -> str:
    """The page without what differs from answer to answer."""
    return re.sub(r'value="[^"]+"|content="[^"]+"', "", answer.text)


PAGES = [
    "/metrics",
    "//metrics",
    "/monitor/errors",
    "/people",
    "/people/",
    "//people",
    "/people//invite",
    "/%70eople",
    "/people/{}",
    "/people/x",
    "/audit",
    "/audit/export",
    "/people/invite",
]
ACTS = [
    "/people/invite",
    "/people/{}/role",
    "/people/{}/delete",
    "/people/{}/reset",
    "/people/{}/sessions/end",
    "/audit",
]


def test_for_all_others_there_are_no_such_pages(shared: Server, op: Operator, bo: tuple[str, Operator]) -> None:
    number, person = bo
    for client in (person, visitor(shared)):
        nothing = client.request("GET", "/nothing-of-this-name")
        refused = client.post("/nothing-of-this-name", email="x@y")
        assert (nothing.status, refused.status) == (404, 404)
        for path in PAGES:
            answer = client.request("GET", path.format(number))
            assert (answer.status, neutral(answer)) == (404, neutral(nothing)), path
        for path in ACTS:
            for fields in ({}, {"csrf_token": "wrong"}):
                answer = client.post(path.format(number), email="new@example.org", role="operator", **fields)
                assert (answer.status, neutral(answer)) == (404, neutral(refused)), path
            assert client.post(path.format(number), JSON).status == 404
    link = 'href="/people"'
    assert link not in person.get("/").text and link in op.get("/").text


def test_an_operator_sees_everybody_and_finds_by_part_of_the_name(shared: Server, op: Operator) -> None:
    number, _ = add_people(shared, "grace.hopper@example.org", "someone.else@example.org")
    page = op.get("/people?q=HOPPER")
    assert f"/people/{number}" in page.text and "someone.else" not in page.text
    assert "Nobody is called so" in op.get("/people?q=%25").text
    assert "ada@example.org" in op.get("/people").text


def test_three_hundred_people_are_paged(shared: Server, op: Operator) -> None:
    add_people(shared, *(f"many{number}@example.org" for number in range(300)))
    seen: list[str] = []
    path = "/people?q=many"
    while path:
        page = op.get(path).text
        seen += re.findall(r'href="/people/([0-9a-f-]{36})"', page)
        found = re.search(r'href="(/people\?[^"]*after=[^"]+)"', page)
        path = unescape(found[1]) if found else ""
    assert len(seen) == len(set(seen)) == 300


@pytest.mark.parametrize(
    "act", ["role", "disable", "enable", "reset", "delete", "sessions/end", f"sessions/{NOBODY}/end"]
)
def test_nobody_and_forms_without_a_token(op: Operator, bo: tuple[str, Operator], act: str) -> None:
    assert op.post(f"/people/{NOBODY}/{act}", role="operator").status == 404
    assert op.post(f"/people/{bo[0]}/{act}", csrf_token="x", role="operator").status == 400
    assert op.request("GET", f"/people/{bo[0]}/{act}").status == 405


def test_a_name_is_text(shared: Server, op: Operator) -> None:
    email = next(emails)
    (number,) = add_people(shared, email)
    with database(shared) as connection:
        name = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
        connection.execute("UPDATE people SET name = ? WHERE uuid = ?", (name, number))
    for path in (f"/people?q={email}", f"/people/{number}"):
        page = op.get(path).text
        assert "<script>alert" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page


# Roles and the last operator


def test_a_role_counts_from_the_next_request(shared: Server, op: Operator, bo: tuple[str, Operator]) -> None:
    number, person = bo
    assert person.get("/people").status == 404
    assert op.post(f"/people/{number}/role", role="operator").headers["Location"] == f"/people/{number}?done=changed"
    assert person.get("/people").status == 200
    assert op.post(f"/people/{number}/role", role="admin").status == 303
    assert person.get("/people").status == 404
    assert op.post(f"/people/{number}/role", role="king").status == 422


@pytest.mark.parametrize("act", ["role", "disable", "delete"])
def test_the_last_operator_stays(shared: Server, op: Operator, act: str) -> None:
    (me,) = re.findall(r'href="/people/([0-9a-f-]{36})"', op.get(f"/people?q={EMAIL}").text)
    answer = op.post(f"/people/{me}/{act}", role="admin", typed=EMAIL)
    assert answer.status == 409 and said(answer) == "This is the last operator. Make somebody else an operator first."
    assert op.post(f"/people/{me}/{act}", JSON, role="admin", typed=EMAIL).json["error"]["code"] == "last"
    assert op.get("/people").status == 200
    assert op.poll({"list": 0}).status == 200


def test_a_disabled_operator_is_none_to_rely_on(shared: Server, op: Operator) -> None:
    email = next(emails)
    (number,) = add_people(shared, email, operator=True)
    op.post(f"/people/{number}/disable")
    (me,) = re.findall(r'href="/people/([0-9a-f-]{36})"', op.get(f"/people?q={EMAIL}").text)
    assert op.post(f"/people/{me}/role", role="admin").status == 409
    op.post(f"/people/{number}/role", role="admin")


def test_of_two_operators_who_demote_each_other_one_remains(shared: Server, op: Operator) -> None:
    (me,) = re.findall(r'href="/people/([0-9a-f-]{36})"', op.get(f"/people?q={EMAIL}").text)
    for _ in range(3):
        email = next(emails)
        (other,) = add_people(shared, email, operator=True)
        twin = Operator(shared.url)
        twin.sign_in(email)
        mine, its = op.clone(), twin.clone()
        acts = [(mine, f"/people/{other}/role"), (its, f"/people/{me}/role")]
        threads = [
            threading.Thread(target=client.post, args=(path,), kwargs={"role": "admin"}) for client, path in acts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert value(shared, "SELECT count(*) FROM people WHERE is_operator AND disabled_at IS NULL") == 1
        if op.get("/people").status == 404:
            assert twin.post(f"/people/{me}/role", role="operator").status == 303
            assert op.post(f"/people/{other}/role", role="admin").status == 303


# Access


def test_disabling_ends_the_connections_at_once_and_enabling_lets_in_again(
    shared: Server, op: Operator, bo: tuple[str, Operator]
) -> None:
    number, person = bo
    email = str(value(shared, "SELECT email FROM people WHERE uuid = ?", number))
    with WebSocketPeer(person) as peer:
        peer.echo()
        assert op.post(f"/people/{number}/disable").status == 303
        assert peer.wait_closed(WITHIN_S)[0] == 4401
    assert person.poll({"list": 0}).status == 401
    stranger = visitor(shared)
    stranger.learn(stranger.get("/sign-in").page)
    assert stranger.post("/sign-in", email=email, password=PASSWORD).status == 422
    assert "Disabled" in op.get(f"/people/{number}").text
    assert op.post(f"/people/{number}/enable").status == 303
    assert stranger.post("/sign-in", email=email, password=PASSWORD).status == 303


def test_an_operator_ends_sessions_of_a_person_and_only_theirs(
    shared: Server, op: Operator, bo: tuple[str, Operator]
) -> None:
    number, person = bo
    own = value(shared, "SELECT s.uuid FROM sessions s JOIN people p ON p.id = s.person_id WHERE p.email = ?", EMAIL)
    assert op.post(f"/people/{number}/sessions/{own}/end").status == 404, "of another person"
    (theirs,) = re.findall(r"/sessions/([0-9a-f-]{36})/end", op.get(f"/people/{number}").text)
    assert op.post(f"/people/{number}/sessions/{theirs}/end").status == 303
    assert person.poll({"list": 0}).status == 401
    again = signed_in_at(shared, number)
    assert op.post(f"/people/{number}/sessions/end", JSON).status == 204
    assert again.poll({"list": 0}).status == 401


def signed_in_at(server: Server, number: str) -> Operator:
    """Another session of a person."""
    client = Operator(server.url)
    client.sign_in(str(value(server, "SELECT email FROM people WHERE uuid = ?", number)))
    return client


def test_who_ends_the_own_access_is_led_to_a_page_that_exists(shared: Server) -> None:
    for act in ("sessions/end", "disable", "role"):
        email = next(emails)
        (number,) = add_people(shared, email, operator=True)
        client = Operator(shared.url)
        client.sign_in(email)
        assert client.post(f"/people/{number}/{act}", role="admin").headers["Location"] == "/", act
        assert client.get("/").status == 200


# Confirmation by the own password


@pytest.mark.parametrize("act", ["role", "reset", "delete", "invite"])
def test_what_matters_needs_the_own_password_of_late(
    shared: Server, op: Operator, bo: tuple[str, Operator], act: str
) -> None:
    number, _ = bo
    email = str(value(shared, "SELECT email FROM people WHERE uuid = ?", number))
    path = "/people/invite" if act == "invite" else f"/people/{number}/{act}"
    fields = {"role": "operator", "typed": email, "email": next(emails)}
    unconfirm(shared)
    page = op.get("/people" if act == "invite" else f"/people/{number}")
    assert page.page.one("form", action="/account/confirm").one("input", name="password")
    assert f'action="{path}"' not in page.text
    answer = op.post(path, **fields)
    assert (answer.status, urlsplit(answer.headers["Location"]).path) == (303, "/account/confirm")
    assert op.post(path, JSON, **fields).json["error"]["code"] == "confirm"
    assert value(shared, "SELECT is_operator FROM people WHERE uuid = ?", number) == 0
    assert value(shared, "SELECT name FROM people WHERE uuid = ?", number)
    form = op.get(answer.headers["Location"]).page
    target = form.one("input", name="next").get("value")
    wrong = op.post("/account/confirm", next=target, password="wrong")
    assert wrong.status == 422 and wrong.page.one("input", name="next").get("value") == target
    assert op.post(path, **fields).headers["Location"].startswith("/account/confirm")
    right = op.post("/account/confirm", next=target, password=PASSWORD)
    assert (right.status, right.headers["Location"]) == (303, target)
    assert op.post(path, **fields).status == 303 and op.get(target)


def test_confirming_leads_nowhere_else(op: Operator) -> None:
    answer = op.post("/account/confirm", next="//evil.example/", password=PASSWORD)
    assert (answer.status, answer.headers["Location"]) == (303, "/")


# Invitations


def test_an_invitation_is_opened_by_get_and_spent_by_post(shared: Server, op: Operator) -> None:
    email = next(emails)
    link = op.made("/people/invite", email=f" {email.upper()} ", role="operator")
    assert link.startswith("http://chat.example.org/link/")
    path, before = urlsplit(link).path, value(shared, "SELECT count(*) FROM people")
    scanner = visitor(shared)
    for _ in range(2):
        assert scanner.request("GET", path).status == 200
        assert scanner.request("HEAD", path).status == 200
    assert value(shared, "SELECT count(*) FROM people") == before, "a mail scanner changes nothing"
    new = visitor(shared)
    page = new.learn(new.get(path).page)
    assert email in page.text
    bad = new.post(path, name=" ", password="short")
    assert bad.status == 422 and bad.page.one("input", name="name").get("aria-invalid") == "true"
    for refused in ("password123", email, "N.e.w-P.e.r.s.o.n"):
        answer = new.post(path, name="New Person", password=refused)
        assert answer.status == 422 and answer.page.one("input", name="password").get("aria-invalid") == "true"
    assert new.post(path, name="New", password="short").page.one("input", name="password").get("aria-invalid") == "true"
    answer = new.post(path, name="New Person", password=NEW, email="other@example.org", role="x")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert new.get("/").page.one("form", id="composer") and new.get("/people").status == 200
    assert value(shared, "SELECT name FROM people WHERE email = ?", email) == "New Person"
    late = visitor(shared)
    assert late.request("GET", path).status == 404
    late.learn(late.get("/sign-in").page)
    assert late.post(path, name="Thief", password=NEW).status == 404
    assert signed(shared, email, NEW)
    number = value(shared, "SELECT uuid FROM people WHERE email = ?", email)
    assert op.post(f"/people/{number}/role", role="admin").status == 303


def signed(server: Server, email: str, password: str) -> bool:
    """Whether this password is right."""
    client = visitor(server)
    client.learn(client.get("/sign-in").page)
    return client.post("/sign-in", email=email, password=password).status == 303


def test_of_two_tabs_one_spends_it(shared: Server, op: Operator) -> None:
    email = next(emails)
    path = urlsplit(op.made("/people/invite", email=email)).path
    tabs = [visitor(shared) for _ in range(4)]
    for tab in tabs:
        tab.learn(tab.get(path).page)
    answers: list[Answer] = []
    threads = [
        threading.Thread(
            target=lambda tab=tab, n=n: answers.append(tab.post(path, name=f"N{n}", password=f"{NEW} {n}"))
        )
        for n, tab in enumerate(tabs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    statuses = sorted(answer.status for answer in answers)
    assert statuses.count(303) == 1 and set(statuses) <= {303, 404, 409}, statuses
    assert value(shared, "SELECT count(*) FROM people WHERE email = ?", email) == 1


def test_an_invitation_never_changes_an_account(shared: Server, op: Operator) -> None:
    answer = op.post("/people/invite", email=EMAIL.upper())
    assert answer.status == 422 and "has an account already" in answer.text
    email = next(emails)
    path = urlsplit(op.made("/people/invite", email=email)).path
    (number,) = add_people(shared, email)
    new = visitor(shared)
    new.learn(new.get(path).page)
    assert new.post(path, name="Thief", password=NEW).status == 409
    assert value(shared, "SELECT name FROM people WHERE uuid = ?", number) != "Thief"
    assert signed(shared, email, PASSWORD) and not signed(shared, email, NEW)


def test_links_end_by_time_by_withdrawal_and_by_another_one(shared: Server, op: Operator) -> None:
    email = next(emails)
    first, second = (urlsplit(op.made("/people/invite", email=email)).path for _ in range(2))
    stranger = visitor(shared)
    assert [stranger.request("GET", path).status for path in (first, second)] == [404, 200]
    (open_one,) = re.findall(rf"/invitations/([0-9a-f-]+)/withdraw(?=[^/]*?{email})", op.get("/people").text, re.S)
    assert op.post(f"/people/invitations/{open_one}/withdraw").status == 303
    assert op.post(f"/people/invitations/{open_one}/withdraw").status == 404
    third = urlsplit(op.made("/people/invite", email=email)).path
    with database(shared) as connection:
        left = connection.execute("SELECT max(expires_at - created_at) FROM links").fetchone()[0]
        connection.execute("UPDATE links SET expires_at = 1")
    assert left == 7 * 86_400_000
    answers = [stranger.request("GET", path) for path in (second, third, "/link/never-there")]
    assert {answer.status for answer in answers} == {404}
    assert len({neutral(answer) for answer in answers}) == 1, "nobody learns which it was"


def test_guessing_links_is_bounded_and_locks_nobody_out(start_server) -> None:
    server = start_server(assistant="off")
    op = Client(server.url).sign_in()
    url = op.post("/people/invite", JSON, email="new@example.org").json["url"]
    stranger = Client(server.url)
    answers = [stranger.request("GET", f"/link/{number:043}") for number in range(13)]
    assert [answer.status for answer in answers] == [404] * 10 + [429] * 3
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert url.startswith("/link/"), "without PUBLIC_URL only the path"
    assert stranger.request("GET", url).status == 200, "a link that is right works, also from that address"
    token = url.removeprefix("/link/")
    assert len(token) >= 43
    assert token not in (server.data / "chat.db").read_bytes().decode("latin-1")
    assert token not in (server.data / "chat.db-wal").read_bytes().decode("latin-1"), "only its hash is stored"
    wait_for(lambda: '"GET /link/…"' in server.log_text(), 5, "the log names the path")
    assert token not in server.log_text() and f"{0:043}" not in server.log_text()
    shown = op.get(op.post("/people/invite", email="two@example.org").headers["Location"]).text
    assert "CHATAPP_PUBLIC_URL" in shown
    evil = op.post("/people/invite", JSON | {"Host": "evil.example"}, email="three@example.org")
    assert evil.json["url"].startswith("/link/"), "never from what a request says"


def test_in_a_session_a_link_waits(shared: Server, op: Operator, bo: tuple[str, Operator]) -> None:
    path = urlsplit(op.made("/people/invite", email=next(emails))).path
    assert op.request("GET", path).status == 409
    assert op.post(path, name="Me", password=NEW).status == 409
    assert visitor(shared).request("GET", path).status == 200


def test_the_command_invites_too(shared: Server) -> None:
    email = next(emails)
    made = run_chatapp(shared, "admin", "invite", "--email", email, "--json")
    assert made.returncode == 0, made.stderr
    found = re.search(r'"url": "http://chat.example.org(/link/[\w-]+)"', made.stdout)
    assert found and visitor(shared).request("GET", found[1]).status == 200


# Another password by a link


def test_a_reset_link_sets_another_password_and_ends_the_sessions(
    shared: Server, op: Operator, bo: tuple[str, Operator]
) -> None:
    number, person = bo
    email = str(value(shared, "SELECT email FROM people WHERE uuid = ?", number))
    path = urlsplit(op.made(f"/people/{number}/reset")).path
    assert person.poll({"list": 0}).status == 200, "nothing has changed yet"
    new = visitor(shared)
    new.learn(new.get(path).page)
    assert new.post(path, password="qwertyuiop").status == 422
    assert new.post(path, password=email).status == 422
    with WebSocketPeer(person) as peer:
        peer.echo()
        assert new.post(path, password=NEW).status == 303
        assert peer.wait_closed(WITHIN_S)[0] == 4401
    assert new.get("/").page.one("form", id="composer")
    assert signed(shared, email, NEW) and not signed(shared, email, PASSWORD)
    assert visitor(shared).request("GET", path).status == 404


def test_a_reset_link_ends_with_the_password_and_with_the_access(
    shared: Server, op: Operator, bo: tuple[str, Operator]
) -> None:
    number, person = bo
    paths = [urlsplit(op.made(f"/people/{number}/reset")).path]
    person.learn(person.get("/account").page)
    assert person.post("/account/password", current=PASSWORD, password=NEW).status == 303
    paths.append(urlsplit(op.made(f"/people/{number}/reset")).path)
    op.post(f"/people/{number}/disable")
    op.post(f"/people/{number}/enable")
    assert [visitor(shared).request("GET", path).status for path in paths] == [404, 404]
    op.post(f"/people/{number}/disable")
    refused = op.post(f"/people/{number}/reset")
    assert refused.status == 422 and "disabled" in said(refused)


@pytest.mark.parametrize("act", ["role", "disable", "delete"])
def test_links_end_with_the_access_of_who_made_them(shared: Server, op: Operator, act: str) -> None:
    """Else a former operator comes back by an invitation to an own address, or takes over another account."""
    email = next(emails)
    number, victim = add_people(shared, email, operator=True)[0], add_people(shared, next(emails))[0]
    former = Operator(shared.url)
    former.sign_in(email)
    made = [former.made("/people/invite", email=next(emails), role="operator"), former.made(f"/people/{victim}/reset")]
    theirs = op.made("/people/invite", email=next(emails))
    assert op.post(f"/people/{number}/{act}", role="admin", typed=email).status == 303
    opens = [visitor(shared).request("GET", urlsplit(link).path).status == 200 for link in (*made, theirs)]
    assert opens == [False, False, True]  # which no is it: 404, or 429 where others here tried wrong links


# Deletion


def test_a_deleted_person_leaves_a_nameless_row_and_no_word(shared: Server, op: Operator) -> None:
    email, secret = next(emails), f"secret {uuid.uuid4()}"
    (number,) = add_people(shared, email)
    person = signed_in_at(shared, number)
    conversation = person.post("/c", JSON, id=str(uuid.uuid4()), body=secret).json["conversation"]
    op.made(f"/people/{number}/reset")
    with database(shared) as connection, connection:
        remembered = "INSERT INTO network_memory SELECT id, 'abcdef987654', 1, 0, 1, 0 FROM people WHERE uuid = ?"
        connection.execute(remembered, (number,))
    assert op.post(f"/people/{number}/delete", typed="x@y").status == 409, "the address must be typed"
    with WebSocketPeer(person) as peer:
        peer.echo()
        answer = op.post(f"/people/{number}/delete", typed=email)
        assert answer.headers["Location"] == "/people?done=deleted"
        assert peer.wait_closed(WITHIN_S)[0] == 4401
    wait_for(lambda: value(shared, "SELECT erased_at FROM people WHERE uuid = ?", number), 20, "the rest is removed")
    with database(shared) as connection:
        row = connection.execute("SELECT name, email, password_hash, is_operator FROM people WHERE uuid = ?", (number,))
        assert row.fetchone() == ("", None, None, 0)
        dump = "\n".join(connection.iterdump())
    assert email not in dump and secret not in dump and secret[:30] not in dump and "abcdef987654" not in dump
    deleted = value(shared, "SELECT deleted_at FROM conversations WHERE uuid = ?", conversation)
    assert deleted is not None
    assert op.get(f"/people/{number}").status == 404 and number not in op.get("/people").text
    assert not signed(shared, email, PASSWORD)
    assert op.made("/people/invite", email=email), "the address is free again"


def test_an_answer_that_is_being_written_is_removed_too(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes after the deletion; and what a crash left is removed by the next run."""
    monkeypatch.setattr("chatapp.store.erasure.MOST_WAITS", 0)
    store, operator = parts.store, parts.store.people.add_admin("Ada", "ada@example.org", "x")
    bo, conversation = store.people.add_admin("Bo", "bo@example.org", "x"), str(uuid.uuid4())
    parts.chat.post(bo.id, conversation, str(uuid.uuid4()), "question", create=True)
    run = store.runs.claim_run("lease")
    assert run is not None
    store.runs.write_answer(run, "half", [(0, "<p>half</p>")])
    parts.administration.delete(Actor(operator.id, ""), bo.uuid, "bo@example.org")
    with store.database.read() as connection:
        execute = connection.exec_driver_sql
        assert execute("SELECT erased_at FROM people WHERE id = ?", (bo.id,)).scalar() is None
        assert execute("SELECT stop_asked FROM runs").scalar() == 1
    store.runs.end_run(run, "stopped", "half and more", [(0, "<p>half and more</p>")], None)
    store.erasure.run()
    with store.database.read() as connection:
        execute = connection.exec_driver_sql
        assert execute("SELECT group_concat(body, '') FROM messages").scalar() == ""
        assert execute("SELECT count(*) FROM blocks").scalar() == 0
        assert execute("SELECT title FROM conversations").scalar() == ""
        assert execute("SELECT erased_at FROM people WHERE id = ?", (bo.id,)).scalar()


def test_hundreds_of_messages_are_deleted_in_slices_while_others_write(shared: Server, op: Operator) -> None:
    email = next(emails)
    (number,) = add_people(shared, email)
    person = signed_in_at(shared, number)
    conversation = person.post("/c", JSON, id=str(uuid.uuid4()), body="first").json["conversation"]
    with database(shared) as connection:
        place, feed, author = connection.execute(
            "SELECT id, feed_id, created_by FROM conversations WHERE uuid = ?", (conversation,)
        ).fetchone()
        names = (
            "uuid, conversation_id, author_id, client_id, position, revision, state, state_revision, body, created_at"
        )
        rows = [
            (str(uuid.uuid4()), place, author, str(uuid.uuid4()), n, n, "sent", n, "secret", 1) for n in range(10, 510)
        ]
        connection.executemany(f"INSERT INTO messages ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.execute("UPDATE feeds SET revision = 3000 WHERE id = ?", (feed,))
    assert op.post(f"/people/{number}/delete", typed=email).status == 303
    mine = op.post("/c", JSON, id=str(uuid.uuid4()), body="meanwhile")
    assert mine.status == 201
    wait_for(lambda: value(shared, "SELECT erased_at FROM people WHERE uuid = ?", number), 30, "the rest is removed")
    assert value(shared, "SELECT count(*) FROM messages WHERE body = 'secret'") == 0
