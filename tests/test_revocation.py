"""Every end of access × every way in × two workers: within a second nothing comes and nothing goes any more."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from lab.http import JSON, Answer, Client
from lab.peer import WebSocketPeer
from lab.people import add_people, signed_in, value
from lab.processes import wait_for
from lab.server import Server, run_chatapp
from websockets.exceptions import InvalidStatus

WITHIN_S = 3.0  # a second, and what a busy machine adds
LAST_S = 5.0  # for what runs in another process: the command's end and the watcher's look are not the server's second
SOCKETS, HELD = 4, 4  # so that both workers have some
EMAILS = (f"person{number}@example.org" for number in itertools.count())


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers, and an assistant that writes for a while."""
    settings = {"workers": 2, "assistant_pace": 60, "public_url": "http://chat.example.org"}
    with Server(tmp_path_factory.mktemp("revocation"), **settings) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture(scope="module")
def op(shared: Server) -> Client:
    return Client(shared.url).sign_in()


Act = Callable[[Server, Client, Client, str, str], float]


def sign_out(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    assert person.post("/sign-out").status == 303
    return WITHIN_S


def password(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    other = signed_in(server, email)
    assert other.post("/account/password", current="correct horse battery staple", password="another one").status == 303
    return WITHIN_S


def reset_by_link(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    url = op.post(f"/people/{uuid}/reset", JSON).json["url"]
    stranger, path = Client(server.url), urlsplit(url).path
    stranger.learn(stranger.get(path).page)
    assert stranger.post(path, password="an entirely different one").status == 303
    return WITHIN_S


def reset_by_command(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    done = run_chatapp(server, "admin", "reset-password", "--email", email, "--password", "an entirely different one")
    assert done.returncode == 0, done.stderr
    return LAST_S


def disabled(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    assert op.post(f"/people/{uuid}/disable").status == 303
    return WITHIN_S


def ended_by_operator(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    assert op.post(f"/people/{uuid}/sessions/end").status == 303
    return WITHIN_S


def ended_by_themselves(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    assert signed_in(server, email).post("/account/sessions/end").status == 303
    return WITHIN_S


def deleted(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    assert op.post(f"/people/{uuid}/delete", typed=email).status == 303
    return WITHIN_S


def role(server: Server, op: Client, person: Client, uuid: str, email: str) -> float:
    """No end of access to the chat: what it ends is tested in test_people.py."""
    assert op.post(f"/people/{uuid}/role", role="operator").status == 303
    return 0.0


ACTS: list[Act] = [
    sign_out,
    password,
    reset_by_link,
    reset_by_command,
    disabled,
    ended_by_operator,
    ended_by_themselves,
    deleted,
    role,
]


class Held:
    """A poll that waits in a thread; when it was answered, and with what."""

    def __init__(self, client: Client, conversation: str, cursor: int) -> None:
        self.answer: Answer | None = None
        self.at = 0.0
        self._ask = lambda: client.clone().poll({"list": cursor}, wait=20)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.answer = self._ask()
        self.at = time.monotonic()


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_an_end_of_access_reaches_everything(shared: Server, op: Client, act: Act) -> None:
    email = next(EMAILS)
    (uuid,) = add_people(shared, email)
    person = signed_in(shared, email)
    conversation = person.create("Is polling worse?").json["conversation"]
    peers = [WebSocketPeer(person) for _ in range(SOCKETS)]
    for peer in peers:
        peer.subscribe({conversation: 0})
        peer.echo()
    cursor = person.poll({"list": 0}).page.one("chat-feed").number("to")
    held = [Held(person, conversation, cursor) for _ in range(HELD)]
    wait_for(lambda: person.poll({conversation: 0}).status == 200, 5, "the answer is being written")
    began = time.monotonic()
    within_s = act(shared, op, person, uuid, email)
    done = time.monotonic()
    if not within_s:
        for peer in peers:
            peer.echo()
            peer.close()
        assert person.post_message(conversation, "still here").status == 201
        for one in held:
            one.thread.join(25)
        return
    for peer in peers:
        assert peer.wait_closed(10)[0] == 4401
        assert time.monotonic() - done < within_s
        assert all(at < done + within_s for at, _ in peer.arrived)
    for one in held:
        one.thread.join(10)
        assert one.answer is not None and one.answer.status in (200, 204, 401)
        assert one.at - began < done - began + within_s
    time.sleep(max(0.0, done + within_s - time.monotonic()))
    for _ in range(6):  # at either worker
        again = person.clone()
        assert again.poll({conversation: 0}).status == 401
        assert again.post_message(conversation, "too late").status in (400, 401)
        assert again.request("GET", f"/c/{conversation}").status == 302
    with pytest.raises(InvalidStatus, match="401"):
        WebSocketPeer(person).echo()
    query = "SELECT count(*) FROM messages WHERE body = 'too late'"
    assert value(shared, query) == 0
