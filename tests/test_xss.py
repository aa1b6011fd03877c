"""200 vectors in every field and through the renderer, cut at every place: what is text stays text.

A page with a vector must have the structure of one with harmless words. The browser's word: browser/test_vectors.py.
"""

import json
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from lab.elements import parse
from lab.http import Client
from lab.people import add_people
from lab.server import Server

from chatapp.assistant import markdown
from chatapp.assistant.markdown import GrowingAnswer
from chatapp.parts import Parts
from chatapp.transports.rendering import SAMPLE

VECTORS = [json.loads(line) for line in (Path(__file__).parent / "vectors/xss.jsonl").read_text().splitlines()]
# What the renderer may make of an answer; all else could run, load or lead astray.
ELEMENTS = {*markdown.TAGS}
ATTRIBUTES = {"href", "class", "rel", "title", "start", "align", "type", "data-action", "id"}


class Structure(HTMLParser):
    """Counts elements with the names of their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()
        self.links: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[(tag, *sorted(name for name, _ in attrs))] += 1
        self.links += [value or "" for name, value in attrs if name == "href"]


def dangers(html: str) -> list[str]:
    """What in rendered HTML could run, load or lead astray."""
    structure = Structure(html)
    bad = [" ".join(key) for key in structure.found if key[0] not in ELEMENTS or set(key[1:]) - ATTRIBUTES]
    return bad + [link for link in structure.links if not markdown.allowed_link(link)]


def renderings(text: str, is_cut: bool = True) -> Iterator[str]:
    """What a reader of an answer could get to see: in one piece, letter by letter, and cut once, at every place."""
    places = range(1, len(text)) if is_cut else ()
    pieces = [[text], list(text), *([text[:at], text[at:]] for at in places)]
    for parts in pieces:
        answer = GrowingAnswer()
        for part in parts:
            answer.feed(part)
            yield from (html for _, html in answer.changed())
        answer.finish()
        yield from (html for _, html in answer.changed())


def test_there_are_two_hundred_of_them() -> None:
    assert len(set(VECTORS)) == 200


def test_an_answer_is_inert_wherever_it_is_cut() -> None:
    looked_at = 0
    for vector in VECTORS:
        seen = {*renderings(vector), *renderings(f"- a\n- {vector}\n\nx", is_cut=False)}
        looked_at += len(seen)
        for html in seen:
            assert dangers(html) == [], (vector, html)
    assert looked_at > 5_000


def is_bad(html: str) -> bool:
    """As `dangers`, by its own list of links: the product's may be what is planted."""
    structure = Structure(html)
    has_bad = any(key[0] not in ELEMENTS or set(key[1:]) - ATTRIBUTES for key in structure.found)
    return has_bad or any("script:" in link.lower() for link in structure.links)


@pytest.mark.parametrize("planted", ["sanitiser", "parser"])
def test_a_planted_unsafe_renderer_is_caught(monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    """Either wall alone still holds nearly all; with the sanitiser gone and HTML let through, they are found."""
    if planted == "sanitiser":
        monkeypatch.setattr(markdown, "_sanitise", lambda html: html)
        markdown._MARKDOWN.enable(["html_block", "html_inline"])
        monkeypatch.setitem(markdown._MARKDOWN.options, "html", True)
    else:
        monkeypatch.setattr(markdown, "allowed_link", lambda url: True)
        monkeypatch.setattr(markdown, "_sanitise", lambda html: html)
        monkeypatch.setitem(vars(markdown._MARKDOWN), "validateLink", lambda url: True)
    try:
        caught = [vector for vector in VECTORS if any(map(is_bad, renderings(vector, is_cut=False)))]
    finally:
        markdown._MARKDOWN.disable(["html_block", "html_inline"])
    assert len(caught) > (80 if planted == "sanitiser" else 5)


# Every field


def test_names_of_writers_are_text(parts: Parts) -> None:
    """In whatever form their message is drawn: by the format string, and by the template."""
    names = ["Ada", *VECTORS, "%s %(body)s", "{0}", "\ue000body\ue001"]
    for at, form in enumerate(({}, {"deleted": True}, {"edited": True})):
        seen = set()
        for number, name in enumerate(names, at * len(names)):
            ids: dict[str, Any] = {"id": number, "uuid": "u", "client_id": "c", "author_id": "p"}
            message = replace(SAMPLE, **ids, body="x", author_name=name, **form)
            html = parts.renderer.message(message)
            seen.add(frozenset(Structure(html).found.items()))
            assert parse(html).one("header").text.split() == " ".join(name.split()).split(), name
        assert len(seen) == 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("xss"), assistant="off", public_url="http://chat.example.org") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def structure(client: Client, path: str) -> Counter[tuple[str, ...]]:
    """That of a page that is there."""
    answer = client.request("GET", path)
    assert answer.status == 200, (path, answer.status)
    return Structure(answer.text).found


def test_messages_and_titles_are_text(shared: Server) -> None:
    """On the page, in the list, in what polls bring, and in what is loaded by scrolling up."""
    found = []
    for texts in ([f"harmless {number}" for number in range(len(VECTORS))], VECTORS):
        (number,) = add_people(shared, f"{uuid.uuid4()}@example.org")
        with closing(sqlite3.connect(shared.data / "chat.db", timeout=20)) as database:
            (email,) = database.execute("SELECT email FROM people WHERE uuid = ?", (number,)).fetchone()
        person = Client(shared.url).sign_in(email)
        conversation = person.create("begin").json["conversation"]
        posted = [person.post_message(conversation, text).status for text in texts]
        assert posted.count(201) >= len(texts) - 2, "an invisible one may be refused"
        for text in texts[: len(texts) : 5]:
            person.post(f"/c/{person.create(text).json['conversation']}/title", title=text)
        pages = [structure(person, path) for path in (f"/c/{conversation}", "/account", "/connection")]
        feed = person.poll({conversation: 0, "list": 0})
        older = person.request("GET", f"/c/{conversation}/messages?before=100")
        found.append((pages, Structure(feed.text).found, Structure(older.text).found, posted))
    (harmless, harmless_feed, harmless_older, taken), (pages, feed, older, also_taken) = found
    assert taken == also_taken, "each is taken"
    for one, other in zip(pages, harmless, strict=True):
        assert one == other
    assert feed == harmless_feed and older == harmless_older


def test_names_addresses_and_devices_are_text(shared: Server) -> None:
    """As operators see them: people, their pages, sessions and the audit, and what is searched for."""
    op = Client(shared.url).sign_in()
    number, other = add_people(shared, "harmless@example.org", "vector@example.org")
    expected = {}
    for vector in ["harmless", *VECTORS[::8]]:
        with closing(sqlite3.connect(shared.data / "chat.db", timeout=20)) as database:
            database.execute("UPDATE people SET name = ? WHERE uuid IN (?, ?)", (vector, number, other))
            database.execute("UPDATE sessions SET user_agent = ?, address = ?", (vector, vector[:45]))
            database.commit()
        for path in ("/people", f"/people/{number}", "/account", "/audit", "/people?q=example"):
            found = structure(op, path)
            assert found == expected.setdefault(path, found), (path, vector)
    with closing(sqlite3.connect(shared.data / "chat.db", timeout=20)) as database:
        database.execute("UPDATE people SET name = 'harmless'")
        database.commit()
    known = {*expected["/people"], *structure(op, "/people?q=nobody-is-called-so")}
    for vector in VECTORS[::4]:
        assert set(structure(op, f"/people?{urlencode({'q': vector})}")) <= known, vector
