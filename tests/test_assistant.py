"""The knowledge folder and the built-in assistant that answers from it."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab.asking import answer_html

from chatapp.assistant import SHIPPED_KNOWLEDGE, knowledge, make_provider
from chatapp.assistant.builtin import BuiltIn, paced
from chatapp.assistant.knowledge import Knowledge, Passage
from chatapp.assistant.provider import SwitchedOff
from chatapp.store import Turn

# The knowledge folder


def quoted(known: Knowledge, question: str) -> list[Passage]:
    """The passages that answer a question."""
    found = known.find(question)
    return found.passages if found.is_sure else []


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
    found = quoted(shipped, question)[:2]  # "a copy of the data": before a migration, or of this product
    assert slug in [passage.slug for passage in found[: 1 + ("copy" in question)]]
    assert anchor in ("", found[0].anchor)


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
    assert quoted(shipped, question) == []


@pytest.mark.parametrize(
    "question", ['"', "backup AND (", "NEAR(backup", "heading:backup*", "a\0b ^backup -restore", "'; DROP"]
)
def test_characters_of_the_search_syntax_are_harmless(shipped: Knowledge, question: str) -> None:
    quoted(shipped, question)


def test_every_citation_leads_to_an_anchor_of_its_document(shipped: Knowledge) -> None:
    for slug, _ in shipped.titles():
        document = shipped.document(slug)
        assert document is not None
        text = (SHIPPED_KNOWLEDGE / f"{slug}.md").read_text()
        for passage in knowledge.split_document(slug, text):
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
    monkeypatch.setattr(knowledge, "CHECK_FOLDERS_S", 0.0)
    known = Knowledge([SHIPPED_KNOWLEDGE, tmp_path / "knowledge"])
    assert quoted(known, "Where is the espresso machine?") == []
    (tmp_path / "knowledge").mkdir()
    file = tmp_path / "knowledge" / "Our Office.md"
    file.write_text("# Our office\n\n## Espresso machine\nOn the second floor.\n")
    assert quoted(known, "Where is the espresso machine?")[0].link == "../knowledge/our-office#espresso-machine"
    file.write_text("# Our office\n\n## Espresso machine\nIn the cellar, behind the boiler.\n")
    assert "cellar" in quoted(known, "Where is the espresso machine?")[0].text
    shown = known.document("our-office")
    assert shown is not None and "cellar" in shown.html and known.document("our-office") is shown, "rendered once"
    file.write_text("# Our office\n\n## Espresso machine\nIt was sold.\n")
    changed = known.document("our-office")
    assert changed is not None and "It was sold." in changed.html
    file.unlink()
    assert quoted(known, "Where is the espresso machine?") == [] and known.document("our-office") is None


def test_an_operators_file_replaces_a_shipped_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "privacy.md").write_text("# Our privacy\n\nAsk Ada.\n")
    document = Knowledge([SHIPPED_KNOWLEDGE, tmp_path]).document("privacy")
    assert document is not None and document.title == "Our privacy" and "Ask Ada." in document.html


def test_a_file_that_is_not_text_does_not_take_the_others_away(tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe\x00# \x80\x00")
    (tmp_path / "dir.md").mkdir()
    (tmp_path / "good.md").write_text("# Good\n\nThe gazebo is green.")
    assert quoted(Knowledge([tmp_path]), "gazebo")[0].slug == "good"


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
    assert "(../knowledge)" in answer and "(../knowledge/cost-review)" not in answer, "all titles are no answer"


def test_a_follow_up_is_read_with_the_question_before_it(shipped: Knowledge) -> None:
    answer = ask(shipped, "How do I configure WebSocket behind nginx?", "…", "And Apache?")
    assert "ProxyPass        /ws" in answer
    assert ask(shipped, "How do I restore a backup?", "…", "and quantum gravity?").startswith("I found nothing")
    assert "What to back up" in ask(shipped, "How do I configure nginx for WebSocket?", "…", "And how do I back up?")


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
    assert isinstance(make_provider(settings, Knowledge([])), BuiltIn)
    settings.assistant = "off"
    assert isinstance(make_provider(settings, Knowledge([])), SwitchedOff)


def test_a_file_that_is_not_utf_8_is_read_with_gaps_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "latin.md").write_bytes(
        "# Kaffeemaschine\n\nDie Bohnen stehen im Schrank.\nNachf\u00fcllen um neun.\n".encode("latin-1")
    )
    (tmp_path / "locked.md").mkdir()  # a folder of that name cannot be read either
    known = Knowledge([tmp_path])
    assert [slug for slug, _ in known.titles()] == ["latin"]
    assert "Nachf" in quoted(known, "Kaffeemaschine")[0].text
    assert "latin.md is not UTF-8 (line 4)" in caplog.text
    assert "locked.md cannot be read" in caplog.text
