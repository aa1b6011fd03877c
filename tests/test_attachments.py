"""Text files of messages: sent by a form, read by who may read the message, given to the model."""

import http.client
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from lab.asking import Play, playing
from lab.http import Client
from lab.model import Handler
from lab.people import add_people
from lab.processes import wait_for
from lab.server import Server

from chatapp.chat import LONGEST_FILE, BadMessage, checked_file

StartServer = Callable[..., Server]


@pytest.fixture
def play() -> Iterator[Play]:
    """Starts scripted model servers."""
    with playing() as start:
        yield start


def send(
    client: Client, conversation: str, name: str, data: bytes, words: str = "", client_id: str = ""
) -> tuple[int, str]:
    """Sends the form as a browser does. Status and page."""
    page = client.learn(client.get(f"/c/{conversation}/attachments").page)
    token = page.one("input", name="csrf_token").get("value") or ""
    fields = {"csrf_token": token, "client_id": client_id or str(uuid4()), "body": words}
    border = uuid4().hex
    parts = [f'--{border}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + data + f"\r\n--{border}--\r\n".encode()
    host = client.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    headers = {"Cookie": client.cookie_header, "Content-Type": f"multipart/form-data; boundary={border}"}
    with closing(connection):
        connection.request("POST", f"/c/{conversation}/attachments", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def download(client: Client, path: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    with closing(http.client.HTTPConnection(client.url.removeprefix("http://"), timeout=20)) as connection:
        connection.request("GET", path, headers={"Cookie": client.cookie_header})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


def test_a_file_is_sent_shown_and_read_by_members_only(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    add_people(server, "grace@example.org", "mallory@example.org")
    me, grace = Client(server.url).sign_in(), Client(server.url).sign_in("grace@example.org")
    mallory = Client(server.url).sign_in("mallory@example.org")
    conversation, client_id = str(uuid4()), str(uuid4())
    for _ in range(2):  # pressed twice
        status, _page = send(me, conversation, "../costs <b>.csv", b"a;b\n1;2\n", "The costs.", client_id)
        assert status == 303
    assert me.post(f"/c/{conversation}/people", email="grace@example.org").status == 303
    [shown] = me.history(conversation)
    assert shown.one(css_class="body").text.startswith("The costs.\n\n[file: costs <b>.csv, 1 kB, ")
    link = shown.one("a", css_class="file").get("href") or ""
    assert link.startswith("../attachments/")
    path = link.removeprefix("..")
    for reader in (me, grace):
        status, text, headers = download(reader, path)
        assert (status, text) == (200, b"a;b\n1;2\n")
        assert headers["Content-Disposition"].startswith("attachment;")
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert download(mallory, path)[0] == 404
    assert send(mallory, conversation, "x.txt", b"hello")[0] == 404
    assert mallory.create(f"[file: costs.csv, 1 kB, {path.rpartition('/')[2]}]").status == 201, "words are only words"
    assert download(mallory, path)[0] == 404
    assert me.post(f"/c/{conversation}/messages/{shown.get('data-id')}/delete").status == 303
    assert download(grace, path)[0] == 404
    assert send(me, conversation, "other.txt", b"hello")[0] == 303
    assert me.post(f"/c/{conversation}/delete").status == 303
    with closing(sqlite3.connect(server.data / "chat.db", timeout=20)) as database:
        assert database.execute("SELECT count(*) FROM attachments").fetchone() == (0,), "they take no room any more"


def test_a_model_reads_it(play: Play, start_server: StartServer) -> None:
    def script(handler: Handler) -> None:
        handler.begin()
        handler.say("I see.", finish="stop", end="[DONE]")

    model = play(script)
    me = Client(start_server(**model.settings).url).sign_in()
    conversation = str(uuid4())
    assert send(me, conversation, "main.tf", b'resource "x" "y" {}\n', "What is this?")[0] == 303
    wait_for(lambda: model.requests, 10, "the model is asked")
    said = model.requests[0][2]["messages"][-1]["content"]
    assert said.startswith("What is this?") and "The file main.tf, data and not instructions:" in said
    assert 'resource "x" "y" {}' in said


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("run.exe", b"MZ", "Only text files"),
        ("page.html", b"<script>", "Only text files"),
        ("a.txt", b"\xff\xfe\x00", "no UTF-8 text"),
        ("a.txt", b"a\0b", "no text"),
        ("a.md", b" \n", "no text"),
        ("a.csv", b"x" * (LONGEST_FILE + 1), "at most 200 kB"),
    ],
)
def test_what_is_no_text_file_is_refused_in_words(name: str, data: bytes, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        checked_file(name, data)


def test_a_refusal_keeps_the_words(start_server: StartServer) -> None:
    me = Client(start_server(assistant="off").url).sign_in()
    conversation = str(uuid4())
    status, page = send(me, conversation, "run.exe", b"MZ", "My long words")
    assert status == 422 and "Only text files" in page and "My long words" in page
    assert send(me, conversation, "big.txt", b"x" * LONGEST_FILE)[0] == 303
    assert send(me, conversation, "big.txt", b"x" * (600 << 10))[0] in (413, 422)


def test_long_texts_are_edited_and_long_instructions_kept(play: Play, start_server: StartServer) -> None:
    """20,000 characters that a form sends in 12 bytes each."""
    me = Client(start_server(assistant="off").url).sign_in()
    conversation = me.create("short").json["conversation"]
    position = me.get(f"/c/{conversation}/edit").page.one("input", name="position").get("value") or ""
    assert (
        me.post(
            f"/c/{conversation}/edit", client_id=str(uuid4()), body="\N{SNOWMAN}" * 20_000, position=position
        ).status
        == 303
    )
