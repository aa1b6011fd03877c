"""Where one is: the way back to one's own conversation, one empty conversation at most, a list without an end."""

import re
import uuid
from collections.abc import Iterator

import pytest
from lab.filled import many_conversations
from lab.http import JSON, Client
from lab.server import Server

COUNT = 405


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("whereabouts"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def older_one(me: Client) -> str:
    """A conversation that is not the newest."""
    conversation = str(uuid.uuid4())
    me.create("An older one", conversation)
    me.create("The newest")
    return conversation


def way_back(client: Client, path: str, referer: str = "") -> str:
    """Where a page's way back to the chat leads."""
    page = client.get(path, {"Referer": referer} if referer else {}).page
    links: list[str] = [a.get("href") for a in page.all("a", css_class="button") if "Back to the chat" in a.text]
    return links[0]


@pytest.mark.parametrize("path", ["/knowledge/start", "/knowledge", "/connection"])
def test_the_way_back_leads_to_the_conversation_one_came_from(me: Client, older_one: str, path: str) -> None:
    here = f"/c/{older_one}"
    assert way_back(me, path, f"{me.url}{here}") == here
    assert way_back(me, path, f"{me.url}{here}?before=41") == here
    assert way_back(me, f"{path}?from={older_one}") == here
    assert way_back(me, path, f"{me.url}/knowledge/start?from={older_one}") == here
    assert way_back(me, path) == "/"


@pytest.mark.parametrize("strange", [str(uuid.UUID(int=7)), "x", "..", "%5B", "a'b"])
def test_a_way_back_to_what_is_not_ones_own_is_the_front_page(me: Client, strange: str) -> None:
    assert way_back(me, f"/knowledge?from={strange}") == "/"
    assert way_back(me, "/knowledge", f"{me.url}/c/{strange}") == "/"
    assert way_back(me, "/knowledge", "http://[nonsense") == "/"


def test_the_way_back_goes_on_from_document_to_document(me: Client, older_one: str) -> None:
    page = me.get("/knowledge/start", {"Referer": f"{me.url}/c/{older_one}"}).page
    (crumb,) = page.one("p", css_class="crumb").all("a")
    documents = me.get(crumb.get("href")).page.one("ul", css_class="documents").all("a")
    assert documents and all(way_back(me, a.get("href")) == f"/c/{older_one}" for a in documents[:2])


def test_five_clicks_on_new_conversation_make_one(me: Client) -> None:
    begun = {me.post("/c").headers["Location"] for _ in range(5)}
    assert len(begun) == 1
    (empty,) = begun
    me.post_message(empty.rsplit("/", 1)[1], "now it is not empty")
    assert me.post("/c").headers["Location"] != empty
    named = [str(uuid.uuid4()) for _ in range(2)]
    assert [me.post("/c", JSON, id=name).json["conversation"] for name in named] == named, "programs name their own"


@pytest.mark.parametrize(
    "text", ["\u200b", "\u2800", "\u3164 \u200d\ufeff", "\u202e\u2066", "\ufe0f", "\u00ad\n\t", ""]
)
def test_what_shows_nothing_is_refused_in_words(me: Client, older_one: str, text: str) -> None:
    for answer in (me.post_message(older_one, text), me.post(f"/c/{older_one}/title", JSON, title=text)):
        assert answer.status == 422
        assert answer.json["error"]["code"] == "empty"
        assert re.search(r"can be seen", answer.json["error"]["message"])


@pytest.mark.parametrize("text", ["a\u200b", "👩\u200d👧", "\u0301", "᠎x", "。", "❤\ufe0f"])
def test_what_shows_something_is_a_message(me: Client, older_one: str, text: str) -> None:
    assert me.post_message(older_one, text).status == 201


def test_a_title_is_the_first_line_that_shows_something(me: Client) -> None:
    conversation = str(uuid.uuid4())
    me.create("\u200b\n\u3164\nHello there", conversation)
    assert me.open(conversation).one("h1", id="title").text == "Hello there"


def test_every_conversation_can_be_reached_through_the_list(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Server(tmp_path_factory.mktemp("many"), assistant="off") as server:
        me = Client(server.url).sign_in()
        me.create("number 0", str(uuid.uuid4()))
        many_conversations(server, COUNT)
        me = Client(server.url).sign_in()
        page, seen = me.get("/").page, []
        for _ in range(4):
            seen += [li.text.strip() for li in page.one("ul", id="conversations").all("li")]
            links = page.one("p", id="older-conversations").all("a")
            if not links:
                break
            page = me.get(links[0].get("href")).page
        assert len(seen) == COUNT and len(set(seen)) == COUNT
        assert me.get("/conversations").status == me.get("/conversations?before=x.y").status == 400


def test_text_of_either_direction_finds_its_own(me: Client) -> None:
    conversation = str(uuid.uuid4())
    me.create("שלום, how are you?", conversation)
    page = me.open(conversation)
    ways = [page.one("article").one("div", css_class="body"), page.one("textarea"), page.one("h1", id="title")]
    ways += [page.one("ul", id="conversations").one("a"), page.one("input", id="rename-title")]
    assert [one.get("dir") for one in ways] == ["auto"] * 5
