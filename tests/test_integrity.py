"""Checks in what is sent, the armour, and no-transform on everything (docs/protocol.md)."""

import base64
import html
import re
import uuid
from collections.abc import Iterator
from threading import Thread
from zlib import crc32

import pytest
from lab.http import Answer, Client
from lab.processes import wait_for
from lab.server import Server

BODY = "Write to ada@example.org;  she's in <room> 5 & up\n\n  🐋 afterwards"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("integrity"), assistant_pace=250) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def answered(me: Client) -> tuple[str, list[str]]:
    """A conversation with an answer, and the polls that brought it while it was written."""
    conversation, cursor, polls = str(me.create(BODY).json["conversation"]), 1, list[str]()

    def ends() -> bool:
        nonlocal cursor
        answer = me.poll({conversation: cursor}, wait=5)
        if answer.status == 200:
            cursor = answer.page.one("chat-feed").number("to")
            polls.append(answer.text)
        return 'state="completed"' in answer.text

    wait_for(ends, 20, "the answer ends", every=0)
    return conversation, polls


def check(text: str) -> str:
    """As docs/protocol.md says it."""
    return f"{crc32(text.encode()):08x}"


def words(source: str) -> str:
    """The words of a piece of HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", source))


def links(source: str) -> str:
    """Where its links lead."""
    return "".join(html.unescape(target) for target in re.findall(r'<a [^>]*href="([^"]*)"', source))


def opened(answer: Answer) -> str:
    """An armoured answer as it would have been."""
    letters = re.fullmatch("<chat-armour>([A-Za-z0-9+/=]*)</chat-armour>", answer.text)
    assert letters and answer.status == 200 and answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return base64.b64decode(letters[1]).decode()


def poll_path(me: Client, conversation: str, cursor: int, wait: float = 0) -> str:
    return f"/changes?epoch={me.epoch}&c={conversation}:{cursor}&wait={wait:g}"


PATHS = ["/", "/sign-in", "/connection", "/knowledge", "/nowhere", "/healthz", "/readyz", "/offline", "/worker.js"]
PATHS += ["/static/x/js/app.js", "/changes", "/changes?c=list:0", "/connection/test/mark?nonce=1&origin=x"]


@pytest.mark.parametrize("path", PATHS)
def test_nobody_may_transform_anything(shared: Server, me: Client, path: str) -> None:
    for client in (Client(shared.url), me):
        answer = client.request("GET", path)
        assert "no-transform" in answer.headers["Cache-Control"].split(", "), answer.status


def test_nor_what_is_answered_before_flask_or_kept(me: Client, answered: tuple[str, list[str]]) -> None:
    conversation, _ = answered
    page = me.open(conversation)
    newest = page.one("div", id="messages").number("data-cursor")
    statuses = {}
    for path in (
        poll_path(me, conversation, 0),
        poll_path(me, conversation, newest),
        poll_path(me, conversation, newest, wait=0.2),
        f"/c/{conversation}/messages?before=99999",
    ):
        answer = me.request("GET", path)
        statuses[path] = answer.status
        assert answer.headers["Cache-Control"] == "no-store, no-transform", path
    assert sorted(statuses.values()) == [200, 200, 204, 204]
    head = me.get(f"/c/{conversation}").text
    static = re.search(r'(/static/[0-9a-f]+/[^"]+\.css)"', head)
    assert static
    kept = me.get(static[1]).headers["Cache-Control"]
    assert kept == "public, max-age=31536000, immutable, no-transform"


def test_whole_messages_and_entries_carry_their_check(me: Client, answered: tuple[str, list[str]]) -> None:
    conversation, _ = answered
    for text in (me.poll({conversation: 0, "list": 0}).text, me.get(f"/c/{conversation}").text):
        user = re.search(r'data-author="user"[^>]* data-check="([^"]*)"', text)
        assert user and user[1] == check(BODY)
        answer = re.search(
            r'data-author="assistant"[^>]* data-check="([^"]*)">.*?<div class="body">(.*?)</article>', text, re.S
        )
        assert answer
        blocks = answer[2].partition("</div>\n<footer")[0].replace('data-source="', 'x="')
        assert answer[1] == check(words(blocks) + links(blocks)) and "citation" in blocks
        entry = re.search(rf'<li [^>]*data-id="{conversation}"[^>]* data-check="([^"]*)"><a [^>]*>([^<]*)</a>', text)
        assert entry and entry[1] == check(html.unescape(entry[2]))


def test_the_check_of_a_running_answer_holds_the_source_that_patches_append_to(me: Client) -> None:
    conversation = str(me.create(BODY).json["conversation"])
    pattern = (
        r'data-state="running" data-check="([^"]*)">.*?<div class="body">(.*data-source="([^"]*)".*?)</div>\n<footer'
    )
    running = wait_for(lambda: re.search(pattern, me.poll({conversation: 0}).text, re.S), 10, "it is being written")
    expected, body, source = running.groups()
    blocks = body.replace(f'data-source="{source}"', "")
    assert expected == check(words(blocks) + links(blocks) + html.unescape(source))


def test_patches_carry_their_check(answered: tuple[str, list[str]]) -> None:
    appended = 0
    for text in answered[1]:
        for attributes, inner in re.findall(r"<chat-patch([^>]*)>(.*?)</chat-patch>", text, re.S):
            texts = ""
            for offset, tail in re.findall(r'<chat-block index="\d+" offset="(\d+)">([^<]*)</chat-block>', inner):
                appended += offset != "0"
                texts += html.unescape(tail)
            assert not texts or f'check="{check(texts)}"' in attributes
    assert appended > 3


def test_the_armour_holds_what_would_have_come_without(me: Client, answered: tuple[str, list[str]]) -> None:
    conversation, _ = answered
    for path in (poll_path(me, conversation, 0), f"/c/{conversation}/messages?before=99999"):
        assert opened(me.request("GET", f"{path}&armour=1")) == me.request("GET", path).text
    page = opened(me.request("GET", f"/c/{conversation}?armour=1"))
    assert page.startswith("<!doctype html>") and "data-epoch" in page
    assert me.request("GET", poll_path(me, str(uuid.uuid4()), 0) + "&armour=1").status == 200
    assert me.request("GET", "/changes?armour=1").status == 400


def test_a_held_poll_is_answered_in_armour(me: Client) -> None:
    conversation = str(me.create().json["conversation"])
    other = me.clone()
    path = poll_path(me, conversation, 1, wait=5)
    found: list[Answer] = []
    waiting = [
        Thread(target=lambda p=p: found.append(other.clone().request("GET", p))) for p in (path, f"{path}&armour=1")
    ]
    for thread in waiting:
        thread.start()
    me.post_message(conversation, BODY)
    for thread in waiting:
        thread.join()
    plain, armoured = sorted(found, key=lambda answer: answer.text.startswith("<chat-armour"))
    assert 'data-author="user"' in plain.text
    assert opened(armoured).startswith("<chat-answer><chat-feed")
