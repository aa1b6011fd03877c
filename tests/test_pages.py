"""The page of a conversation: the newest messages, older ones by page, and where its cursors stand."""

import re
import uuid
from collections.abc import Iterator

import pytest
from lab.http import Client
from lab.server import Server

COUNT = 95


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("pages"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def talk(shared: Server) -> tuple[Client, str]:
    """Who is signed in, and a conversation of many messages."""
    client, conversation = Client(shared.url).sign_in(), str(uuid.uuid4())
    for number in range(COUNT):
        client.create(f"number {number}", conversation)
    return client, conversation


def numbers(client: Client, path: str) -> tuple[list[int], int, str]:
    """What a page shows: the messages' numbers, its cursor, and where older ones are."""
    page = client.get(path).page
    messages = page.one("div", id="messages")
    shown = [int(re.findall(r"number (\d+)", article.text)[0]) for article in messages.all("article")]
    cursor = messages.number("data-cursor")
    links = [link.get("href") for link in page.one("div", id="older").all("a")]
    return shown, cursor, links[0] if links else ""


def test_older_pages_follow_each_other_to_the_first_message(talk: tuple[Client, str]) -> None:
    client, conversation = talk
    shown, cursor, older = numbers(client, f"/c/{conversation}")
    assert shown == list(range(55, 95))
    head = cursor
    seen = []
    while older:
        shown, cursor, older = numbers(client, older)
        seen.append(shown)
        assert cursor == 0, "no live message may follow right after an old one"
    assert seen == [list(range(15, 55)), list(range(15))]
    news = client.poll({conversation: 0}).page
    assert int(news.one("chat-feed").get("to")) == head
    assert "number 94" in news.all("article")[-1].text


@pytest.mark.parametrize("before", ["99999999999999999999", str(1 << 62), "0", "-3", "x", "", "9" * 5000])
@pytest.mark.parametrize("path", ["/c/{}?before={}", "/c/{}/messages?before={}"])
def test_a_position_that_is_none_is_refused(talk: tuple[Client, str], path: str, before: str) -> None:
    client, conversation = talk
    answer = client.get(path.format(conversation, before))
    assert answer.status == (414 if len(before) > 4000 and answer.status == 414 else 400)


def test_the_largest_position_is_one(talk: tuple[Client, str]) -> None:
    client, conversation = talk
    assert numbers(client, f"/c/{conversation}?before={(1 << 62) - 1}")[0] == list(range(55, 95))
