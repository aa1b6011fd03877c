"""Questions without a sure answer, and documents that did not help: counted without a name, and not for ever."""

import logging
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from lab.asking import Play, settings_for, without_proxies
from lab.http import JSON, Client
from lab.model import Handler
from lab.people import add_people, database, unconfirm
from lab.processes import wait_for
from lab.server import Server

from chatapp.assistant import SHIPPED_KNOWLEDGE, make_provider
from chatapp.assistant.builtin import BuiltIn
from chatapp.assistant.knowledge import Found, Knowledge
from chatapp.assistant.unanswered import LONGEST_QUESTION, Unanswered, stored_form
from chatapp.parts import Parts
from chatapp.store import CountedQuestion, Kept, StorageUnavailable, Turn, now_ms
from chatapp.store.questions import MOST_QUESTIONS
from chatapp.store.retention import DAY_MS, Retention

FLUSHED_S = 15.0  # workers say something every five seconds
Row = tuple[str, str, str, int]


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the built-in assistant."""
    with Server(tmp_path_factory.mktemp("unanswered"), assistant_pace=100000) as server:
        yield server


@pytest.fixture
def op(shared: Server) -> Client:
    """The operator, who has just entered the password."""
    return Client(shared.url).sign_in()


@pytest.fixture(scope="module")
def shipped() -> Knowledge:
    """The documents that ship with the product."""
    return Knowledge([SHIPPED_KNOWLEDGE])


def rows(server: Server) -> list[Row]:
    """The counted questions, as a shell sees them."""
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as connection:
        return connection.execute("SELECT kind, slug, text, number FROM questions ORDER BY id").fetchall()


def counted(parts: Parts) -> list[Row]:
    """The same, of an app without a server."""
    questions = [*parts.store.questions.newest(is_no_help=False, most=None, by_number=True)]
    return [(one.kind, one.slug, one.text, one.number) for one in questions]


# What is stored


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("My mail is ada@example.org, why?", "My mail is … why?"),
        ("my password is wrong", "my password is wrong"),
        ("password: hunter fails", "password: … fails"),
        ("das Passwort ist hunter2!", "das Passwort ist …"),
        ("token=abc", "token=…"),
        ("is the api key rotated", "is the api key rotated"),
        ("call +49 170 1234567 now", "call … now"),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN DE…"),
        ("card 4111-1111-1111-1111 refused", "card … refused"),
        ("ticket 123456 and 1234567", "ticket 123456 and …"),
        ("why ghp_16C7e42F292c6912E7710c838347Ae178B4a fails", "why … fails"),
        ("use AKIAIOSFODNN7EXAMPLE or AbC4efGhi0", "use … or …"),
        ("see https://host.example/reset/abc?x=1", "see …"),
        ("x" * 41 + " fails", "… fails"),
        ("error 1006 on port 443,\n\nwhy   now", "error 1006 on port 443, why now"),
        ("Donaudampfschifffahrtsgesellschaft", "Donaudampfschifffahrtsgesellschaft"),
    ],
)
def test_secrets_addresses_and_long_numbers_are_left_out(text: str, stored: str) -> None:
    assert stored_form(text) == stored


def test_a_secret_at_the_cut_is_left_out_whole() -> None:
    text = "a " * (LONGEST_QUESTION // 2 - 3) + "ada.lovelace.the.first@example.org"
    assert "ada" not in stored_form(text) and len(stored_form(text)) <= LONGEST_QUESTION


@pytest.mark.parametrize("text", ["a-" * 5000, "1 " * 5000, "key " * 3000, "password is " * 2000, "x" * 20_000])
def test_no_text_takes_long(text: str) -> None:
    assert len(stored_form(text)) <= LONGEST_QUESTION


# What is counted


def test_only_what_is_not_sure_is_counted(parts: Parts) -> None:
    provider = BuiltIn(parts.knowledge, 0, note=parts.unanswered.note)
    asked = [
        "How do I restore a backup?",
        "Hello!",
        "thanks",
        "what can you do?",
        "and then?",
        "Zzyzx xylophone quux?",
        "ZZYZX  xylophone quux?",
        "how do I cook a backup soup for twelve hungry guests",
    ]
    for question in asked:
        provider.compose([Turn("user", question)])
    assert counted(parts) == [], "not while somebody waits for the answer"
    parts.unanswered.flush()
    assert counted(parts) == [
        ("not-found", "", "zzyzx xylophone quux?", 2),
        ("not-sure", "", "how do i cook a backup soup for twelve hungry guests", 1),
    ]
    provider.compose([Turn("user", "zzyzx xylophone QUUX?")])
    parts.unanswered.flush()
    assert counted(parts)[0][3] == 3


def test_with_a_model_too(play: Play, monkeypatch: pytest.MonkeyPatch, shipped: Knowledge) -> None:
    without_proxies(monkeypatch)

    def whole(handler: Handler) -> None:
        handler.begin()
        handler.say("Hello there.", finish="stop", end="[DONE]")

    noted: list[tuple[str, bool]] = []
    provider = make_provider(
        settings_for(play(*[whole] * 3)), shipped, note=lambda question, found: noted.append((question, found.is_sure))
    )
    for question in ("Hello!", "Zzyzx quux?", "How do I restore a backup?"):
        assert "".join(provider.answer([Turn("user", question)])).startswith("Hello there.")
    assert noted == [("Zzyzx quux?", False), ("How do I restore a backup?", True)]


def test_five_hundred_are_kept_and_for_ninety_days(parts: Parts) -> None:
    table, now = parts.store.questions, now_ms()
    table.add(CountedQuestion("not-found", "", f"question {number}", 1, now - 1000 + number) for number in range(520))
    assert table.count(is_no_help=False) == MOST_QUESTIONS
    assert {row[2] for row in counted(parts)} == {f"question {number}" for number in range(20, 520)}
    table.add([CountedQuestion("not-found", "", "old", 7, now - 91 * DAY_MS)])
    assert table.count(is_no_help=False) == MOST_QUESTIONS, "the oldest go first"
    table.forget(table.newest(is_no_help=False, most=1)[0].id)
    table.add([CountedQuestion("not-found", "", "old", 7, now - 91 * DAY_MS)])
    store = parts.store
    for kept, left in ((Kept(), MOST_QUESTIONS - 1), (Kept(questions=0), 0)):
        Retention(store.events, store.measures, store.alerts, table, kept, store.erasure).purge()
        remaining = [row for row in counted(parts) if row[2] == "old"]
        assert not remaining and table.count(is_no_help=False) <= left


def test_a_failure_is_logged_once_and_hurts_nobody(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise StorageUnavailable("full", "no room")

    with monkeypatch.context() as patched:
        patched.setattr(parts.store.questions, "add", fails)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                parts.unanswered.note("zzyzx quux", Found())
                parts.unanswered.flush()
    assert caplog.text.count("cannot be counted") == 1
    parts.unanswered.note("zzyzx quux", Found())
    parts.unanswered.flush()
    assert counted(parts) == [("not-found", "", "zzyzx quux", 1)]


def test_nothing_is_queued_where_nothing_is_kept(parts: Parts) -> None:
    silent = Unanswered(parts.store.questions, parts.knowledge, is_kept=False)
    silent.note("zzyzx quux", Found())
    silent.note_no_help("start", "words")
    assert not silent._queue


# The page


def test_from_the_question_to_the_page_and_out_of_it(shared: Server, op: Client) -> None:
    secret = "Zzyzx for xyqq@qqqz.zz?"
    add_people(shared, "bo@example.org")
    bo = Client(shared.url).sign_in("bo@example.org")
    bo.post("/c", JSON, id=str(uuid.uuid4()), body=secret)
    wait_for(lambda: rows(shared), FLUSHED_S, "the question is counted")
    assert rows(shared) == [("not-found", "", "zzyzx for …", 1)]
    with closing(sqlite3.connect(shared.data / "metrics.db")) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(questions)")]
    assert names == ["id", "slug", "text", "kind", "number", "last_at"], "nobody is named"
    assert "zzyzx" not in bo.get("/knowledge").text
    page = op.get("/knowledge").page
    (link,) = [one for one in page.all("a") if one.text.strip() == "zzyzx for …"]
    tried = op.get(link.get("href").partition("#")[0]).page
    assert tried.one("input", id="q").get("value") == "zzyzx for …"
    (form,) = [one for one in page.all("form") if "/forget" in one.get("action")]
    unconfirm(shared)
    assert "/account/confirm" in op.post(form.get("action")).headers["Location"]
    assert len(rows(shared)) == 1
    again = Client(shared.url).sign_in()
    assert again.post(form.get("action")).status == 303
    assert rows(shared) == [] and again.post(form.get("action"), JSON).status == 404
    with database(shared) as connection:
        found = connection.execute("SELECT detail FROM audit WHERE action = 'question-forgotten'").fetchall()
    assert found == [("not-found",)]


def test_a_document_that_did_not_help(shared: Server, op: Client) -> None:
    page = op.get("/knowledge/start").page
    (form,) = [one for one in page.all("form") if one.get("action") == "/knowledge/start"]
    assert form.one("input", name="words").get("maxlength") == "300"
    answer = op.post("/knowledge/start", words="  Nothing about <b>SSO</b>; mail ada@example.org ")
    assert answer.headers["Location"] == "/knowledge/start?noted=#did_not_help"
    assert "Thank you" in op.get("/knowledge/start?noted=").text
    for words in ("", ""):
        op.post("/knowledge/start", JSON, words=words)
    assert op.post("/knowledge/start", JSON, words="x" * 301).status == 422
    assert op.post("/knowledge/nowhere", JSON).status == 404
    assert op.post("/knowledge/start", JSON, csrf_token="wrong").status == 400
    assert Client(shared.url).post("/knowledge/start", JSON).status in (400, 401)
    wait_for(lambda: sum(row[3] for row in rows(shared)) == 3, FLUSHED_S, "all are counted")
    assert rows(shared)[-2:] == [
        ("no-help", "start", "Nothing about <b>SSO</b>; mail …", 1),
        ("no-help", "start", "", 2),
    ]
    text = op.get("/knowledge").text
    assert "Nothing about &lt;b&gt;SSO" in text and "said 2 times" in text


def test_zero_days_record_nothing_and_say_so(start_server) -> None:
    server = start_server(questions_kept=0)
    op = Client(server.url).sign_in()
    assert "CHATAPP_QUESTIONS_KEPT is 0" in op.get("/knowledge").text
    assert "Did not help" not in op.get("/knowledge/start").text
    assert op.post("/knowledge/start", JSON).status == 404
