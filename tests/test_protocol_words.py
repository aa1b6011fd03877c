"""What docs/protocol.md says in words, asked of the real server."""

import uuid
from collections.abc import Iterator

import pytest
from lab.http import Client
from lab.server import Server

FORM = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("words"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


def test_refusals_have_the_codes_of_the_table(shared: Server, me: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    stranger = Client(shared.url).post("/c", {"Accept": "application/json"}, body="x")
    assert (stranger.status, stranger.json["error"]["code"]) == (400, "csrf")
    large = me.request("POST", f"/c/{conversation}/messages", "x" * 600_000, FORM)
    assert (large.status, large.json["error"]["code"]) == (413, "http-413")
    assert me.request("GET", f"/changes?{'x' * 9000}").status == 414


def test_half_a_pair_in_a_form_stays_its_escape(me: Client) -> None:
    conversation = me.create("hello").json["conversation"]
    form = f"csrf_token={me.token}&client_id={uuid.uuid4()}&body=a%ED%A0%80b"
    assert me.request("POST", f"/c/{conversation}/messages", form, FORM).status == 201
    assert me.history(conversation)[-1].one(css_class="body").text == "a%ED%A0%80b"


def test_children_stand_by_revision_also_those_older_than_the_page(me: Client) -> None:
    conversation = me.create("number 0").json["conversation"]
    for number in range(1, 45):
        me.post_message(conversation, f"number {number}")
    page = me.poll({conversation: 0}).page
    shown = [article.number("data-position") for article in page.all("article")]
    assert shown == sorted(shown) and len(shown) == 40
    cursor = page.one("chat-feed").number("to")
    first = me.history(conversation)[0]
    me.post_message(conversation, "the last")
    assert me.post(f"/c/{conversation}/messages/{first.get('data-id')}/delete", FORM).status == 204
    late = me.poll({conversation: cursor}).page.all("article")
    revisions = [article.number("data-revision") for article in late]
    assert revisions == sorted(revisions) and late[-1].has("data-deleted")
    assert late[-1].number("data-position") < min(shown), "to be dropped: its page brings it"


def test_a_conversation_that_is_not_acknowledged_is_gone_until_it_is(me: Client) -> None:
    conversation = str(uuid.uuid4())
    assert me.poll({conversation: 0}).page.all("chat-gone")
    me.create("now", conversation)
    assert not me.poll({conversation: 0}).page.all("chat-gone")
