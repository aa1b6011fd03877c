"""Answer again, go on, edit the last message: by the forms that pages use."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from lab.asking import Play, playing
from lab.elements import Element
from lab.http import Client
from lab.model import Handler
from lab.people import add_people
from lab.processes import wait_for
from lab.server import Server

JSON = {"Accept": "application/json"}

StartServer = Callable[..., Server]


@pytest.fixture
def play() -> Iterator[Play]:
    """Starts scripted model servers."""
    with playing() as start:
        yield start


def answered(client: Client, conversation: str, number: int, state: str = "completed") -> list[Element]:
    """The messages, once so many answers have this state."""

    def found() -> list[Element] | None:
        shown = client.history(conversation)
        return shown if sum(one.get("data-state") == state for one in shown) >= number else None

    shown = wait_for(found, 10, f"{number} answers are {state}")
    assert isinstance(shown, list)
    return shown


def edit(client: Client, conversation: str, body: str) -> int:
    """Sends the form with another text. The status."""
    path = f"/c/{conversation}/edit"
    position = client.get(path).page.one("input", name="position").get("value") or ""
    return client.post(path, JSON, client_id=str(uuid4()), body=body, position=position).status


def say(*pieces: str, finish: str = "stop") -> Callable[[Handler], None]:
    def script(handler: Handler) -> None:
        handler.begin()
        handler.say(*pieces, finish=finish, end="[DONE]")

    return script


def test_a_complete_answer_can_be_had_again(play: Play, start_server: StartServer) -> None:
    model = play(say("One."), say("Two."))
    me = Client(start_server(**model.settings).url).sign_in()
    conversation = me.create("Count!").json["conversation"]
    answered(me, conversation, 1)
    assert me.post(f"/c/{conversation}/again", JSON).status == 204
    shown = answered(me, conversation, 2)
    assert [one.one(css_class="body").text for one in shown] == ["Count!", "One.", "Two."]
    roles = [message["role"] for message in model.requests[1][2]["messages"]]
    assert roles == ["system", "user"], "the first answer is not shown to the model"


def test_an_interrupted_answer_goes_on(play: Play, start_server: StartServer) -> None:
    model = play(say("Half of", finish="length"), say(" it."))
    me = Client(start_server(**model.settings).url).sign_in()
    conversation = me.create("Count!").json["conversation"]
    shown = answered(me, conversation, 1, "failed")
    assert shown[1].one(data_action="again").text == "Answer again"
    assert me.post(f"/c/{conversation}/again", JSON, goes_on="1").status == 204
    answered(me, conversation, 1)
    said = [(message["role"], message["content"]) for message in model.requests[1][2]["messages"][1:]]
    assert said[:2] == [("user", "Count!"), ("assistant", "Half of")] and "where your answer stopped" in said[2][1]


def test_the_last_message_is_edited_and_the_old_tail_folded(play: Play, start_server: StartServer) -> None:
    model = play(say("About cats."), say("About dogs."), say("More."))
    server = start_server(**model.settings)
    me = Client(server.url).sign_in()
    conversation = me.create("Cats?").json["conversation"]
    answered(me, conversation, 1)
    page = me.learn(me.get(f"/c/{conversation}/edit").page)
    assert page.one(id="text").text == "Cats?"
    fields = {
        "client_id": str(uuid4()),
        "body": "Dogs?",
        "position": page.one("input", name="position").get("value") or "",
    }
    for _ in range(2):  # pressed twice
        assert me.post(f"/c/{conversation}/edit", **fields).status == 303
    shown = answered(me, conversation, 2)
    assert [(one.one(css_class="body").text, "data-folded" in one.attributes) for one in shown] == [
        ("Cats?", True),
        ("About cats.", True),
        ("Dogs?", False),
        ("About dogs.", False),
    ]
    assert not shown[1].all(data_action="again")
    assert [message["content"] for message in model.requests[1][2]["messages"][1:]] == ["Dogs?"]
    assert (
        me.post(f"/c/{conversation}/edit", JSON, client_id=fields["client_id"], body="Mice?", position="0").status
        == 409
    )
    assert me.post(f"/c/{conversation}/edit", client_id=str(uuid4()), body=" ").status == 422
    assert "Dogs?" in me.open(conversation).one(id="title").text, "the title follows its first message"
    stale = {"client_id": str(uuid4()), "body": "Mice?", "position": fields["position"]}
    assert me.post(f"/c/{conversation}/edit", JSON, **stale).status == 409, "another one is the last by now"


def test_what_others_have_read_and_answered_is_not_edited(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    add_people(server, "grace@example.org")
    me, grace = Client(server.url).sign_in(), Client(server.url).sign_in("grace@example.org")
    conversation = me.create("Lunch?").json["conversation"]
    assert me.post(f"/c/{conversation}/people", email="grace@example.org").status == 303
    assert grace.post_message(conversation, "At one.").status == 201
    assert me.get(f"/c/{conversation}/edit").status == 403
    assert me.post(f"/c/{conversation}/edit", JSON, client_id=str(uuid4()), body="Dinner?").status == 403
    assert edit(grace, conversation, "At two.") == 204
    assert [one.one(css_class="body").text for one in me.history(conversation)] == ["Lunch?", "At one.", "At two."]
    add_people(server, "mallory@example.org")
    mallory = Client(server.url).sign_in("mallory@example.org")
    assert mallory.get(f"/c/{conversation}/edit").status == 404


def test_a_reader_who_is_there_sees_the_fold(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    me = Client(server.url).sign_in()
    conversation = me.create("Cats?").json["conversation"]
    cursor = int(me.poll({conversation: 0}).page.all("chat-feed")[0].get("to") or 0)
    assert edit(me, conversation, "Dogs?") == 204
    changed = me.poll({conversation: cursor}).page.all("article")
    changed.sort(key=lambda one: int(one.get("data-position") or 0))
    assert [(one.one(css_class="body").text, "data-folded" in one.attributes) for one in changed] == [
        ("Cats?", True),
        ("Dogs?", False),
    ]


def test_the_built_in_assistant_goes_on_with_the_question(start_server: StartServer) -> None:
    me = Client(start_server(assistant_pace=60).url).sign_in()
    conversation = me.create("How do I configure nginx for WebSocket?").json["conversation"]
    wait_for(lambda: me.history(conversation)[-1].all(css_class="block"), 10, "it answers")
    assert me.post(f"/c/{conversation}/stop").status in (204, 303)
    answered(me, conversation, 1, "stopped")
    assert me.post(f"/c/{conversation}/again", JSON, goes_on="1").status == 204

    def second() -> bool:
        return (
            "nginx configuration for WebSocket" in me.history(conversation)[-1].text
            and len(me.history(conversation)) == 3
        )

    wait_for(second, 10, "the same passage")


def test_who_wants_another_answer_pays_for_it(play: Play, start_server: StartServer) -> None:
    model = play(say("One " * 40))
    server = start_server(**model.settings, openai_tokens_a_day="100000")
    add_people(server, "grace@example.org")
    me, grace = Client(server.url).sign_in(), Client(server.url).sign_in("grace@example.org")
    conversation = me.create("Count!").json["conversation"]
    answered(me, conversation, 1)
    assert me.post(f"/c/{conversation}/people", email="grace@example.org").status == 303
    assert grace.post(f"/c/{conversation}/again", JSON).status == 204
    answered(me, conversation, 2)
    with closing(sqlite3.connect(server.data / "chat.db", timeout=20)) as database:
        used = database.execute("SELECT person_id, used FROM leases WHERE kind = 'tokens'").fetchall()
    assert len(used) == 2 and min(amount for _person, amount in used) > 10
