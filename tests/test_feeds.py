"""What the shipped core does with what comes of a feed: connection/feeds.js as it is sent, in QuickJS."""

from typing import Any

import pytest
from headless.core import CONFIG, Page, Script


def article(key: str, position: int, revision: int, client_id: str = "", author: str = "me") -> dict[str, Any]:
    """A message as the server renders it, as far as the rules look at it; `author`: "" for the assistant."""
    names = {"data-id": key, "data-client-id": client_id or f"client-{key}", "data-position": str(position)}
    names |= {"data-revision": str(revision)} | ({"data-author-id": author} if author else {})
    return {"name": "article", "attributes": names}


def waiting(run: str, revision: int, state: str = "queued") -> dict[str, Any]:
    """An answer that has not begun."""
    names = {"data-id": run, "data-client-id": run, "data-revision": str(revision), "data-state": state}
    return {"name": "article", "attributes": names}


def feed(*children: dict[str, Any], **attributes: str) -> dict[str, Any]:
    """What a chat-feed holds."""
    return {"name": "chat-feed", "attributes": attributes, "children": children}


@pytest.fixture(scope="module")
def rules() -> Script:
    return Script("tests/js/feeds.js")


def test_a_reset_is_all_that_is_shown_however_low_its_positions(rules: Script) -> None:
    """An older copy of the database was put back: its newest stand before the oldest that are shown."""
    was = [article(f"new{n}", 900 + n, 900 + n) for n in range(3)]
    now = [article(f"old{n}", 30 + n, 30 + n) for n in range(3)]
    [found] = rules.call("shown", was, [], True, [feed(*now, reset="")])
    assert found["orders"] == [["remove", f"new{n}"] for n in range(3)] + [["insert", f"old{n}"] for n in range(3)]
    assert found["fits"] and found["isCut"]


def test_a_change_above_what_is_loaded_comes_with_its_page(rules: Script) -> None:
    was = [article("shown", 50, 50)]
    for has_older, orders in ((True, []), (False, [["insert", "above"]])):
        [found] = rules.call("shown", was, [], has_older, [feed(article("above", 10, 60))])
        assert found["orders"] == orders


def test_a_message_that_waits_here_becomes_the_servers_wherever_it_stands(rules: Script) -> None:
    """Its article may come before its acknowledgement, above what is loaded."""
    was = [article("shown", 50, 50)]
    [found] = rules.call("shown", was, ["sent"], True, [feed(article("mine", 10, 60, "sent"))])
    assert found["orders"] == [["replace", "mine", "sent"]]


def test_nobody_else_takes_the_place_of_a_message_by_its_client_id(rules: Script) -> None:
    """Client ids are chosen by their authors, and everybody sees everybody's."""
    was = [article("mine", 50, 50, "chosen")]
    stolen = [article("theirs", 51, 51, "chosen", "them"), article("again", 52, 52, "unsent", "them")]
    found = rules.call("shown", was, ["unsent"], False, [feed(*stolen), feed(article("sent", 53, 53, "unsent"))])
    assert found[0]["orders"] == [["insert", "theirs"], ["insert", "again"]]
    assert found[1]["orders"] == [["replace", "sent", "unsent"]]


def test_an_answer_takes_the_place_of_the_one_that_waited(rules: Script) -> None:
    steps = [feed(waiting("run", 5)), feed(waiting("run", 6)), feed(article("answer", 7, 7, "run", ""))]
    late = [feed(waiting("run", 6, "stopped")), feed(waiting("other", 9)), feed(waiting("other", 10, "stopped"))]
    found = [step["orders"] for step in rules.call("shown", [], [], False, [*steps, *late])]
    assert found[:3] == [[["insert", "run"]], [["replace", "run", "run"]], [["replace", "answer", "run"]]]
    assert found[3:] == [[], [["insert", "other"]], [["remove", "other"]]]


def test_what_something_on_the_way_put_in_is_not_shown(rules: Script) -> None:
    foreign = [{"name": "div", "text": "Buy now"}, {"name": "script"}, {"name": "article"}, {"name": "li"}]
    [found] = rules.call("shown", [], [], False, [feed(*foreign, article("ours", 1, 1))])
    assert found["orders"] == [["insert", "ours"]] and found["fits"]


def started(notes: dict[str, Any], transports: list[str]) -> Page:
    """A page that follows the list, at 0 ms."""
    config = CONFIG | {"transports": transports, "remembered": {"worked": 0, "failed": 2, "at": 0, "killGap": 0}}
    page = Page(config, {"epoch": "e", "mark": "", "person": "p"}, 1, 0, notes=notes)
    page.happen(0, "follow", "list")
    page.happen(0, "start")
    return page


@pytest.mark.parametrize("networks", [5, "x", {"here": None}, [1], None])
def test_a_page_starts_whatever_was_kept_of_networks(networks: object) -> None:
    """What others wrote into the browser's storage under this name."""
    page = started({"networks": networks}, ["websocket"])
    opened = [order for order in page.take() if order[0] == "open"]
    assert len(opened) == 1
    hello = '<chat-hello person="p" epoch="e" connection="c"></chat-hello>'
    for text in (hello, '<chat-feed feed="list" from="0" to="1"></chat-feed>', '<chat-echo n="1"></chat-echo>'):
        page.happen(10, "frame", opened[0][1], text)
    assert page.seen()["record"]["status"] == "connected"


def asked(page: Page) -> list[tuple[int, dict[str, str]]]:
    """The requests that it wants now: number, fields."""
    return [(order[1], dict(order[4])) for order in page.take() if order[0] == "ask"]


def test_a_redirect_beside_a_held_poll_is_noticed_at_once() -> None:
    """A portal takes over the network: the held poll hangs, and the heartbeat beside it is sent elsewhere."""
    page = started({}, ["polling"])
    now = 0.0
    while not (polls := asked(page)):
        now = page.due or now
        page.happen(now, "tick")
    nothing = {"status": 204, "text": "", "headers": {}}
    page.happen(now, "answered", polls[0][0], nothing)
    held: list[tuple[int, dict[str, str]]] = []
    beats: list[tuple[int, dict[str, str]]] = []
    while not beats and now < 20_000:
        now = page.due or now
        page.happen(now, "tick")
        for number, fields in asked(page):
            (held if fields.get("wait") != "0" else beats).append((number, fields))
    assert len(held) == 1 and len(beats) == 1
    page.happen(now, "answered", beats[0][0], {"status": 0, "text": "", "headers": {}, "isRedirect": True})
    while page.due is not None and page.due <= now:
        page.happen(now, "tick")
    assert page.seen()["record"]["pollReason"] == "redirected"
