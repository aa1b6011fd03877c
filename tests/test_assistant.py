"""The assistant: growing Markdown, the knowledge folder, the built-in provider, and durable runs."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from flask import Flask
from sqlalchemy import select, update

from chatapp.assistant import SHIPPED_KNOWLEDGE, Provider, ProviderError, builtin, make_provider, runner
from chatapp.assistant.blocks import GrowingAnswer, answer_html, headings, render
from chatapp.assistant.builtin import BuiltIn, Knowledge, paced
from chatapp.assistant.runner import Runner
from chatapp.bus import Bus
from chatapp.store import ClaimedRun, Place, Store, Turn, migrate
from chatapp.store.tables import runs

DOCUMENTS = [
    "# Title\n\nA paragraph with **bold**, *slanted* and `code`,\nover two lines.\n\n"
    "- one\n- two\n\n  more of two\n- three\n\nEnd.",
    "Before\n```nginx\nserver { # not a heading\n\n}\n```\nAfter\n\n    indented <b>code</b>\n\n~~~\nnever closed",
    "| a | b |\n|---|--:|\n| 1 | **2** |\n\nText\n| c | d |\n|---|---|\n| 3 | 4 |\n\n"
    "> quote\nlazy\n\n---\n\nSetext\n===\n\n1. x\n2. y",
    "See [1](../knowledge/start#first-run) and [out](https://example.org/?a=1&b=2) and <mailto:a@b.c>.\r\n\r\n![pic](https://x.org/y.png)",
    "a\n-\nb\n#\nc\n#d\n2024\n*\n\n* * *\n\n- a\n* b\n+ c\n\n\n\n`open and **open",
]
HOSTILE = [
    "<script>alert(1)</script>\n\nText <img src=x onerror=alert(1)> more",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>) [d](//evil.example) [e](/c/1)",
    "![x](javascript:alert(1)) ![y](https://evil.example/pixel.png) [![z](https://e.example/z.png)](https://e.example)",
    '[f](../knowledge/../c/x) [g](../knowledge/a"onclick=b) <javascript:alert(1)> [h](vbscript:x) [i](\\javascript:x)',
    '```"><script>alert(1)</script>\n</code></pre><script>alert(2)</script>\n```\n\n<a href="x" onclick="y">z</a>',
    "[j]: javascript:alert(1)\n\n[j] [k][j] <iframe src=//evil></iframe> <style>*{}</style> "
    "&lt;script&gt; &#60;script&#62;",
]


def grow(document: str, size: int = 1) -> Iterator[list[tuple[int, str]]]:
    """Feed a document in pieces and give what changed after each."""
    answer = GrowingAnswer()
    for at in range(0, len(document), size):
        answer.feed(document[at : at + size])
        yield answer.changed()
    answer.finish()
    yield answer.changed()


def shown_at_last(steps: Iterator[list[tuple[int, str]]]) -> list[str]:
    """The blocks that a reader sees after the last step."""
    shown = {index: html for step in steps for index, html in step}
    return [shown[index] for index in sorted(shown) if shown[index]]


class Inert(HTMLParser):
    """Fails on anything in HTML that could run, load or lead astray."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "img", "iframe", "style", "svg", "form", "object", "embed", "link", "meta"}
        for name, value in attrs:
            assert not name.startswith("on") and name not in {"src", "style", "srcdoc", "action"}
            if name == "href":
                assert value is not None and value.startswith(("http://", "https://", "mailto:", "../knowledge/"))
                assert "/../" not in value[3:]


# Growing Markdown


@pytest.mark.parametrize("document", [*DOCUMENTS, *HOSTILE])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_text_that_grows_piece_by_piece_ends_like_text_given_at_once(document: str, size: int) -> None:
    assert shown_at_last(grow(document, size)) == answer_html(document)


def test_random_markdown_grows_to_the_same_blocks() -> None:
    chance = random.Random(7)
    words = "a,foo ,\n,\n\n,- ,* ,#,> ,```,`,**,|,| a | b |\n,|---|---|\n,1. ,2. ,  ,    ,===,---,[x](http://a.b),[,](,<b>,~~~\n"
    parts = [*words.split(","), "_", "\\", "&amp;", "![i](http://a.b)"]
    for _ in range(300):
        document = "".join(chance.choice(parts) for _ in range(chance.randrange(3, 16)))
        assert shown_at_last(grow(document)) == [html for html in answer_html(document) if html], repr(document)


@pytest.mark.parametrize("document", [path.read_text() for path in sorted(SHIPPED_KNOWLEDGE.glob("*.md"))])
def test_a_shipped_document_grows_to_the_same_blocks(document: str) -> None:
    assert shown_at_last(grow(document, 97)) == answer_html(document)


@pytest.mark.parametrize("document", HOSTILE)
def test_hostile_text_is_inert_wherever_it_is_cut(document: str) -> None:
    for step in grow(document):
        for _, html in step:
            Inert().feed(html)
    Inert().feed(render(document))


def test_raw_html_is_shown_as_text() -> None:
    assert answer_html("<img src=x onerror=alert(1)>") == ["<p>&lt;img src=x onerror=alert(1)&gt;</p>"]


def test_a_finished_block_is_not_sent_again() -> None:
    document = "First paragraph.\n\n- a list\n- of two\n\n```\ncode\n```\n\nLast paragraph, " + "word " * 50
    highest, sent = -1, []
    for step in grow(document):
        for index, _ in step:
            assert index >= highest, "a block came after its successor had begun"
            highest = max(highest, index)
            sent.append(index)
    assert highest == 3
    answer = GrowingAnswer()
    answer.feed("One\n\nTwo\n\nThree")
    answer.changed()
    answer.feed(" more")
    assert [index for index, _ in answer.changed()] == [2]
    assert answer.changed() == []


def test_a_long_open_block_is_parsed_seldom_and_yet_shown_whole_at_the_end() -> None:
    document = "- an item of a list that does not end\n" * 400
    steps = list(grow(document, 20))
    assert len([step for step in steps if step]) < len(steps) / 2
    assert shown_at_last(iter(steps)) == answer_html(document)


def test_the_body_is_what_was_fed() -> None:
    answer = GrowingAnswer()
    for piece in ("a ", "", "b\r\n", "c"):
        answer.feed(piece)
    assert answer.body == "a b\nc"


@pytest.mark.parametrize(
    ("half", "hidden"),
    [
        ("See [the page](https://exa", "["),
        ("Now **bo", "**"),
        ("Use `co", "`"),
        ("Text\n-", "h2"),
        ("Text\n\n| a | b |\n|--", "|"),
        ("Text\n\n##", "#"),
    ],
)
def test_half_typed_marks_do_not_flash_up(half: str, hidden: str) -> None:
    answer = GrowingAnswer()
    answer.feed(half)
    assert all(hidden not in html for _, html in answer.changed())
    answer.finish()
    answer.changed()
    assert answer.body == half


def test_an_unclosed_fence_is_code_already() -> None:
    answer = GrowingAnswer()
    answer.feed("```nginx\nserver {")
    (_, html) = answer.changed()[0]
    assert html.startswith('<figure class="code"><figcaption><span>nginx</span>')
    assert '<button type="button" data-action="copy-code">Copy</button>' in html
    assert "<pre><code>server {" in html


def test_links_are_citations_or_marked_as_external() -> None:
    (html,) = answer_html("[1](../knowledge/start#first-run) [2](https://example.org) ![p](https://x.org/p.png)")
    assert '<a class="citation" href="../knowledge/start#first-run">1</a>' in html
    assert '<a href="https://example.org" rel="noopener noreferrer nofollow">2</a>' in html
    assert '<a href="https://x.org/p.png" rel="noopener noreferrer nofollow">p</a>' in html


def test_tables_are_aligned_without_style_attributes() -> None:
    (html,) = answer_html("| a | b |\n|---|--:|\n| 1 | 2 |")
    assert '<td align="right">2</td>' in html


def test_headings_of_a_document_have_unique_anchors_that_the_index_knows() -> None:
    text = "# Über **uns**\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n"
    assert [mark.anchor for mark in headings(text)] == ["ber-uns", "same", "same-2"]
    assert all(f'id="{mark.anchor}"' in render(text) for mark in headings(text))


# The knowledge folder


@pytest.fixture(scope="module")
def shipped() -> Knowledge:
    """The documents that ship with the product."""
    return Knowledge([SHIPPED_KNOWLEDGE])


@pytest.mark.parametrize(
    ("question", "slug", "anchor"),
    [
        ("How do I back up the database before a migration?", "migration-backup", ""),
        ("Can I save a copy of the data?", "backup-this-product", ""),
        ("Why am I polling?", "why-polling", "why-am-i-polling"),
        ("How do I configure nginx for websocket?", "websocket-behind-a-proxy", "nginx-configuration-for-websocket"),
        ("what does RECONNECTING mean", "connection-states", "what-does-reconnecting-mean"),
        ("How can I reduce our cloud bill?", "cost-review", ""),
        ("How big should the VM be?", "sizing", ""),
        ("How should I give a freelancer access?", "iam-for-contractors", "how-to-give-a-contractor-access"),
        ("An access key was leaked, what now?", "incident-response", ""),
        ("upgrade postgres to a new major version", "database-upgrade", ""),
        ("How to deploy without downtime?", "zero-downtime-deployment", "how-to-deploy-without-downtime"),
        ("How do I run it in polling only mode?", "settings", "polling-only-mode"),
        ("Change DNS without downtime", "dns-cut-over", "how-to-change-dns-without-downtime"),
        ("which close code means that the server restarted?", "connection-troubleshooting", "websocket-close-codes"),
        ("where is my data stored", "privacy", "where-is-my-data-stored"),
    ],
)
def test_a_question_finds_the_passage_that_answers_it(
    shipped: Knowledge, question: str, slug: str, anchor: str
) -> None:
    best = shipped.search(question)[0]
    assert best.slug == slug
    assert anchor in ("", best.anchor)


@pytest.mark.parametrize(
    "question",
    [
        "quantum gravity",
        "What is the capital of France?",
        "How do I bake a chocolate cake?",
        "who won the world cup in 1998",
        "best time to water tomato plants in a small garden",
        "How do I train a neural network?",
        "What is the meaning of life?",
        "what is it",
        "???",
    ],
)
def test_an_unrelated_question_finds_nothing(shipped: Knowledge, question: str) -> None:
    assert shipped.search(question) == []


@pytest.mark.parametrize(
    "question", ['"', "backup AND (", "NEAR(backup", "heading:backup*", "a\0b ^backup -restore", "'; DROP"]
)
def test_characters_of_the_search_syntax_are_harmless(shipped: Knowledge, question: str) -> None:
    shipped.search(question)


def test_every_citation_leads_to_an_anchor_of_its_document(shipped: Knowledge) -> None:
    for slug, _ in shipped.titles():
        document = shipped.document(slug)
        assert document is not None
        text = (SHIPPED_KNOWLEDGE / f"{slug}.md").read_text()
        for passage in builtin.split_document(slug, text):
            assert not passage.anchor or f'id="{passage.anchor}"' in document.html


def test_links_between_shipped_documents_lead_somewhere(shipped: Knowledge) -> None:
    known = {slug for slug, _ in shipped.titles()}
    for path in SHIPPED_KNOWLEDGE.glob("*.md"):
        for link in path.read_text().split("](../knowledge/")[1:]:
            assert link.split(")")[0].split("#")[0] in known


def test_a_document_that_does_not_exist_is_none(shipped: Knowledge) -> None:
    assert shipped.document("../../etc/passwd") is None


def test_an_operators_file_is_found_after_it_was_added_changed_and_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "CHECK_FOLDERS_S", 0.0)
    knowledge = Knowledge([SHIPPED_KNOWLEDGE, tmp_path / "knowledge"])
    assert knowledge.search("Where is the espresso machine?") == []
    (tmp_path / "knowledge").mkdir()
    file = tmp_path / "knowledge" / "Our Office.md"
    file.write_text("# Our office\n\n## Espresso machine\nOn the second floor.\n")
    assert knowledge.search("Where is the espresso machine?")[0].link == "../knowledge/our-office#espresso-machine"
    file.write_text("# Our office\n\n## Espresso machine\nIn the cellar, behind the boiler.\n")
    assert "cellar" in knowledge.search("Where is the espresso machine?")[0].text
    file.unlink()
    assert knowledge.search("Where is the espresso machine?") == []


def test_an_operators_file_replaces_a_shipped_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "privacy.md").write_text("# Our privacy\n\nAsk Ada.\n")
    document = Knowledge([SHIPPED_KNOWLEDGE, tmp_path]).document("privacy")
    assert document is not None and document.title == "Our privacy" and "Ask Ada." in document.html


def test_a_file_that_is_not_text_does_not_take_the_others_away(tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe\x00# \x80\x00")
    (tmp_path / "dir.md").mkdir()
    (tmp_path / "good.md").write_text("# Good\n\nThe gazebo is green.")
    assert Knowledge([tmp_path]).search("gazebo")[0].slug == "good"


# The built-in provider


def ask(shipped: Knowledge, *bodies: str) -> str:
    """The built-in answer; the bodies are turns of user and assistant by turns."""
    authors = ("user", "assistant")
    history = [Turn("user" if authors[at % 2] == "user" else "assistant", body) for at, body in enumerate(bodies)]
    return "".join(BuiltIn(shipped, 0).answer(history))


def test_an_answer_quotes_the_passage_and_cites_it(shipped: Knowledge) -> None:
    answer = ask(shipped, "How do I configure nginx for websocket?")
    assert "proxy_set_header Upgrade $http_upgrade;" in answer
    assert "[1](../knowledge/websocket-behind-a-proxy#nginx-configuration-for-websocket)" in answer
    assert "Sources: [1](" in answer
    assert any('class="citation"' in html for html in answer_html(answer))


def test_an_answer_says_honestly_that_it_found_nothing(shipped: Knowledge) -> None:
    answer = ask(shipped, "quantum gravity")
    assert answer.startswith("I found nothing about that in the knowledge folder.")
    assert "(../knowledge/cost-review)" in answer


def test_a_follow_up_is_read_with_the_question_before_it(shipped: Knowledge) -> None:
    answer = ask(shipped, "How do I configure WebSocket behind nginx?", "…", "And Apache?")
    assert "ProxyPass        /ws" in answer
    assert ask(shipped, "How do I restore a backup?", "…", "and quantum gravity?").startswith("I found nothing")


def test_asking_again_after_an_answer_that_broke_off_answers_the_same_question(shipped: Knowledge) -> None:
    whole = ask(shipped, "How do I restore a backup?")
    assert ask(shipped, "How do I restore a backup?", "Half an ans") == whole


@pytest.mark.parametrize(
    ("said", "begins"),
    [("Hello!", "Hello!"), ("thanks a lot", "You are welcome"), ("What can you do?", "I answer"), ("help", "I answer")],
)
def test_small_talk_gets_a_short_sensible_answer(shipped: Knowledge, said: str, begins: str) -> None:
    assert ask(shipped, said).startswith(begins)


def test_thanks_with_a_question_in_it_is_a_question(shipped: Knowledge) -> None:
    assert "Sources:" in ask(shipped, "ok, how do I restore a backup")


def test_the_pace_is_kept_in_pieces_of_whole_words() -> None:
    text = "word " * 60
    started = time.monotonic()
    pieces = list(paced(text, 1000))
    took = time.monotonic() - started
    assert "".join(pieces) == text
    assert 0.2 <= took <= 0.9
    assert 8 <= len(pieces) <= 20
    assert all(piece.endswith(" ") for piece in pieces)
    assert list(paced(text, 0)) == [text]


def test_the_settings_decide_who_answers(tmp_path: Path) -> None:
    settings: Any = SimpleNamespace(assistant="builtin", assistant_pace=400.0, data_dir=tmp_path)
    assert isinstance(make_provider(settings), BuiltIn)
    settings.assistant = "off"
    assert make_provider(settings) is None


# Durable runs, on the real store


class Script:
    """A provider that does what a test says."""

    def __init__(self, play: Callable[[Sequence[Turn]], Iterator[str]]) -> None:
        self.answer = play


class House:
    """A store on disk, a bus, and one conversation in which questions can be queued."""

    def __init__(self, folder: Path) -> None:
        self.bus = Bus()
        migrate.migrate(folder)
        self.store = Store(Flask(__name__), folder, self.bus)
        self.person = self.store.people.add_first_admin("Ada", "ada@example.org", "x").id
        self.runners: list[Runner] = []

    def ask(self, question: str) -> Place:
        """Post a question in a new conversation and queue its answer."""
        conversations = self.store.conversations
        with self.store.database.write() as tx:
            place = conversations.add(tx, self.person, f"c-{question}")
            conversations.insert_message(tx, place, self.person, f"m-{question}", question, "sent")
            self.store.runs.queue(tx, place)
        return place

    def start(self, provider: Provider) -> Runner:
        """A runner of this house."""
        self.runners.append(Runner(self.store.runs, self.bus, provider))
        self.runners[-1].start()
        return self.runners[-1]

    def answer(self, place: Place) -> Any:
        """The assistant's message, or None."""
        return next((m for m in self.store.conversations.changes(place, 0).items if m.author == "assistant"), None)

    def wait(self, place: Place, state: str, seconds: float = 5.0) -> Any:
        """The assistant's message once it is in that state."""
        with gevent.Timeout(seconds, AssertionError(f"not {state}: {self.answer(place)}")):
            while (answer := self.answer(place)) is None or answer.state != state:
                gevent.sleep(0.02)
        return answer


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A fresh house; its runners are drained at the end."""
    house = House(tmp_path)
    yield house
    for each in house.runners:
        each.drain()
    for engine in (house.store.database.engine, house.store.events.database.engine):
        engine.dispose()


def slowly(history: Sequence[Turn]) -> Iterator[str]:
    """Words without an end."""
    for number in range(1000):
        yield f"word{number} "
        gevent.sleep(0.02)


def test_a_queued_question_is_answered(house: House) -> None:
    house.start(Script(lambda history: iter(["You asked: ", history[-1].body])))
    answer = house.wait(house.ask("why"), "completed")
    assert answer.body == "You asked: why"
    assert [block.html for block in answer.blocks] == ["<p>You asked: why</p>"]


def test_what_was_queued_before_the_start_is_answered(house: House) -> None:
    place = house.ask("early")
    house.start(Script(lambda history: iter(["late"])))
    house.wait(place, "completed")


def test_an_answer_is_written_by_the_clock_and_not_by_the_token(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    write = house.store.runs.write_answer

    def counted(run: ClaimedRun, lease: str, body: str, changed: Sequence[tuple[int, str]]) -> Any:
        writes.append(body)
        return write(run, lease, body, changed)

    monkeypatch.setattr(house.store.runs, "write_answer", counted)

    def play(history: Sequence[Turn]) -> Iterator[str]:
        for _ in range(250):
            yield "x "
            gevent.sleep(0.003)

    house.start(Script(play))
    answer = house.wait(house.ask("q"), "completed")
    assert answer.body == "x " * 250
    assert 2 <= len(writes) <= 12


def test_stop_ends_within_a_flush_closes_the_provider_and_keeps_what_was_written(house: House) -> None:
    closed: list[float] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        try:
            yield "so far"
            gevent.sleep(30)  # silent: the stop must be noticed all the same
        finally:
            closed.append(time.monotonic())

    house.start(Script(play))
    place = house.ask("q")
    gevent.sleep(0.4)
    asked = time.monotonic()
    with house.store.database.write() as tx:
        house.store.runs.stop(tx, place)
    answer = house.wait(place, "stopped")
    assert answer.body == "so far"
    assert closed and closed[0] - asked < 0.4


def test_a_providers_refusal_is_told_in_its_own_words(house: House) -> None:
    def play(history: Sequence[Turn]) -> Iterator[str]:
        yield "begun "
        raise ProviderError("The model is asleep.")

    house.start(Script(play))
    answer = house.wait(house.ask("q"), "failed")
    assert (answer.error, answer.body) == ("The model is asleep.", "begun ")


def test_a_providers_mistake_is_logged_and_told_without_its_details(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def play(history: Sequence[Turn]) -> Iterator[str]:
        raise ZeroDivisionError("secret detail")

    house.start(Script(play))
    answer = house.wait(house.ask("q"), "failed")
    assert answer.error == runner.FAILED
    assert "secret detail" in caplog.text


def test_an_empty_answer_counts_as_failed(house: House) -> None:
    house.start(Script(lambda history: iter([" \n"])))
    assert house.wait(house.ask("q"), "failed").error == runner.EMPTY


def test_draining_interrupts_at_once_and_keeps_what_was_written(house: House) -> None:
    runner_ = house.start(Script(slowly))
    places = [house.ask(f"q{number}") for number in range(3)]
    gevent.sleep(0.4)
    started = time.monotonic()
    runner_.drain()
    assert time.monotonic() - started < 0.5
    for place in places:
        answer = house.answer(place)
        assert answer.state == "interrupted" and answer.body.startswith("word0 word1 ")
        assert "word1" in answer.blocks[0].html
    waiting = house.ask("later")
    gevent.sleep(0.1)
    assert house.answer(waiting) is None, "a drained runner takes nothing more"


def test_sixteen_are_answered_at_once_and_the_others_afterwards(house: House) -> None:
    most: list[int] = []

    def play(history: Sequence[Turn]) -> Iterator[str]:
        most.append(runner_.running())
        gevent.sleep(0.2)
        yield "done"

    runner_ = house.start(Script(play))
    places = [house.ask(f"q{number}") for number in range(20)]
    for place in places:
        house.wait(place, "completed")
    assert max(most) == runner.MOST_AT_ONCE


def test_a_silent_provider_does_not_stop_the_heartbeat(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "HEARTBEAT_S", 0.2)

    def play(history: Sequence[Turn]) -> Iterator[str]:
        gevent.sleep(1.0)
        yield "at last"

    house.start(Script(play))
    place = house.ask("q")
    gevent.sleep(0.7)
    assert house.store.runs.reap_runs(0.5) == 0
    house.wait(place, "completed")


def test_a_run_whose_writer_was_killed_is_interrupted_at_the_next_start(house: House) -> None:
    place = house.ask("q")
    run = house.store.runs.claim_run("a process that was killed")
    assert run is not None
    house.store.runs.write_answer(run, "a process that was killed", "half", [(0, "<p>half</p>")])
    with house.store.database.write() as tx:
        tx.connection.execute(update(runs).values(heartbeat_at=runs.c.heartbeat_at - 6000))
    house.start(Script(slowly))
    assert house.wait(place, "interrupted").body == "half"


def test_a_writer_that_lost_its_lease_writes_nothing_more(house: House) -> None:
    house.start(Script(slowly))
    place = house.ask("q")
    gevent.sleep(0.4)
    assert house.store.runs.reap_runs(-60) == 1
    kept = house.answer(place).body
    gevent.sleep(0.5)
    answer = house.answer(place)
    assert (answer.state, answer.body) == ("interrupted", kept)
    assert house.runners[0].running() == 0


def test_the_runner_outlives_a_store_that_fails_for_a_while(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, failures = house.store.runs.claim_run, [OSError("disk full"), OSError("disk full")]

    def sometimes(lease: str) -> ClaimedRun | None:
        if failures:
            raise failures.pop()
        return claim(lease)

    monkeypatch.setattr(house.store.runs, "claim_run", sometimes)
    monkeypatch.setattr(runner, "CLAIM_EVERY_S", 0.1)
    house.start(Script(lambda history: iter(["fine"])))
    house.wait(house.ask("q"), "completed")


def test_the_built_in_assistant_answers_through_the_runner(house: House, shipped: Knowledge) -> None:
    house.start(BuiltIn(shipped, 0))
    answer = house.wait(house.ask("How do I restore a backup?"), "completed")
    assert [block.html for block in answer.blocks] == answer_html(answer.body)
    assert any('class="citation"' in block.html for block in answer.blocks)
    with house.store.database.read() as connection:
        assert connection.execute(select(runs.c.state)).scalars().all() == ["completed"]
