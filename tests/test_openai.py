"""The OpenAI-compatible assistant: a real model behind the real product, and a scripted server for what goes wrong."""

import http.client
import json
import logging
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from lab.asking import Play, Told, ask, without_proxies
from lab.http import Client
from lab.model import KEY, Handler, Model, Script, Scripted
from lab.peer import PEERS, Peer, Shown
from lab.processes import free_port, wait_for
from lab.server import Server

from chatapp.assistant import ProviderError, completions, openai
from chatapp.config import SYSTEM_PROMPT, ConfigError, describe, load
from chatapp.store import Turn

QUESTION = "What is the capital of France?"
LONGER = "What is the capital of France? Describe it in six sentences."  # it must come in pieces
WHOLE = ("Hel", "lo ", "there.")

StartServer = Callable[..., Server]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy or authority of this machine stands between a test and its server."""
    without_proxies(monkeypatch)


def whole(handler: Handler) -> None:
    """A good answer."""
    handler.begin()
    handler.event({"choices": [{"delta": {"role": "assistant", "content": None}}]})
    handler.say(*WHOLE, finish="stop", end="[DONE]")


# What is asked


def test_the_request_carries_model_key_prompt_and_conversation(play: Play) -> None:
    server = play(whole)
    history = [Turn("user", "One?"), Turn("assistant", "1"), Turn("user", "Two?"), Turn("user", "And three?")]
    assert ask(server, *history) == Told("Hello there.", "", pytest.approx(0, abs=5))  # type: ignore[arg-type]
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}" and headers["Accept"] == "text/event-stream"
    assert (body["model"], body["stream"]) == ("m-1", True)
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("system", SYSTEM_PROMPT),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?\n\nAnd three?"),
    ]


def test_a_local_server_needs_no_key_and_no_prompt(play: Play) -> None:
    server = play(whole)
    assert ask(server, openai_api_key="", openai_system_prompt="off").text == "Hello there."
    _, headers, body = server.requests[0]
    assert "Authorization" not in headers
    assert [m["role"] for m in body["messages"]] == ["user"]


# What is understood


def test_reasoning_tools_comments_and_usage_are_passed_over(play: Play) -> None:
    def script(handler: Handler) -> None:
        handler.begin(kind="text/event-stream; charset=utf-8")
        handler.wfile.write(b": PROCESSING\r\n\r\nevent: message\r\nid: 7\r\nretry: 10\r\n\r\n")
        handler.event({"choices": [{"delta": {"reasoning_content": "hm", "content": None}, "finish_reason": ""}]})
        handler.event({"choices": [{"delta": {"reasoning": "hm", "tool_calls": [{}], "content": ""}}]})
        handler.event({"choices": [], "usage": {"total_tokens": 3}})
        handler.event({"choices": [{"delta": {"content": ["odd"]}}, {"delta": {"content": "another choice"}}]})
        handler.say("one\u2028two\n\nthree ", "ü")
        handler.wfile.write(b'data:{"choices":\r\ndata: [{"delta":{"content":"!"}}]}\r\n\r\ndata: [DONE]')

    assert ask(play(script)) == Told("one\u2028two\n\nthree ü!", "", pytest.approx(0, abs=5))  # type: ignore[arg-type]


def test_events_may_be_cut_anywhere() -> None:
    stream = 'data: {"a": "ü\u2028"}\r\n\r\n: x\n\ndata: b\ndata: c\n\n\n\ndata: [DONE]\n\n'.encode()
    for size in (1, 2, 3, 7, 1000):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [event.data for event in completions.events(pieces)] == ['{"a": "ü\u2028"}', "b\nc", "[DONE]"]
    with pytest.raises(ProviderError):
        list(completions.events(b"data: " + b"x" * 65_536 for _ in range(40)))


def test_an_answer_ends_with_its_last_word_though_the_server_keeps_the_line(play: Play) -> None:
    def script(handler: Handler) -> None:
        handler.begin()
        handler.say(*WHOLE, finish="stop")
        handler.wait_until_left()

    server = play(script)
    told = ask(server)
    assert (told.text, told.failure) == ("Hello there.", "") and told.seconds < 3
    assert server.gone.wait(1)


def test_slow_pieces_are_no_silence(play: Play) -> None:
    def script(handler: Handler) -> None:
        handler.begin()
        for number in range(12):
            handler.say(f"{number} ")
            time.sleep(0.2)
        handler.say(end="[DONE]")

    told = ask(play(script), openai_timeout="1")
    assert told.text.split() == [str(number) for number in range(12)] and not told.failure
    assert told.seconds > 2


# What goes wrong


def error(status: int, body: object, **headers: str) -> Script:
    """A script: an error as OpenAI words it."""

    def script(handler: Handler) -> None:
        handler.begin(status, "application/json", **headers)
        handler.wfile.write(json.dumps(body).encode())

    return script


def page(status: int) -> Script:
    """A script: a proxy's page."""

    def script(handler: Handler) -> None:
        handler.begin(status, "text/html")
        handler.wfile.write(b"<!doctype html><title>Blocked</title>")

    return script


def broken(*pieces: str, end: str = "", reset: bool = False) -> Script:
    """A script: an answer that breaks off."""

    def script(handler: Handler) -> None:
        handler.begin()
        handler.say(*pieces, end=end)
        if reset:
            time.sleep(0.2)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.rfile.close()
            handler.connection.close()

    return script


def chunked_and_cut(handler: Handler) -> None:
    """A script: the end of a chunked answer never comes."""
    handler.protocol_version = "HTTP/1.1"
    handler.begin(Transfer_Encoding="chunked")
    event = b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n'
    handler.wfile.write(b"%x\r\n%s\r\n50\r\ndata: {" % (len(event), event))


WRONG = {
    "key": (error(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), ["401", "OPENAI_API_KEY"]),
    "forbidden": (error(403, {"error": "no"}), ["403", "may use"]),
    "model": (error(404, {"error": {"message": "no such model"}}), ["404", "m-1", "“no such model”", "/v1"]),
    "rate": (error(429, {"error": {"message": f"slow down {KEY}"}}, Retry_After="37"), ["429", "37 s", "(key)"]),
    "rate, long": (error(429, {}, Retry_After="600"), ["429", "10 minutes"]),
    "rate, without a word": (error(429, []), ["429", "in a moment"]),
    "too long": (
        error(400, {"error": {"message": "exceeds the context " * 40}}),
        ["window", "new conversation", "less"],
    ),
    "long words": (error(400, {"error": {"message": "I do not like it " * 40}}), ["400", "like", "…”", "new one"]),
    "fault": (error(500, {"detail": "boom"}), ["500", "“boom”", "moment"]),
    "loading": (error(503, {"error": {"message": "Loading model"}}), ["503", "Loading model", "moment"]),
    "teapot": (error(418, {}), ["418", "log"]),
    "redirect": (error(308, {}, Location="https://x.example/"), ["308", "OPENAI_BASE_URL"]),
    "page": (page(200), ["text/html", "proxy", "NO_PROXY"]),
    "page of a gateway": (page(502), ["text/html", "502"]),
    "sign-in of a proxy": (page(407), ["407", "HTTPS_PROXY"]),
    "no completion": (error(200, {"models": []}), ["application/json"]),
    "nonsense": (broken(end="nonsense"), ["does not understand"]),
    "nothing": (broken(), ["without an answer", "broke off"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_becomes_a_sentence_that_says_what_to_do(
    play: Play, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    script, words = WRONG[case]
    told = ask(play(script))
    assert told.text == "" and told.failure.endswith(".")
    if case == "nothing":
        assert any(word in told.failure for word in words)
    else:
        assert [word for word in words if word not in told.failure] == [], told.failure
    assert len(told.failure) < 500
    assert KEY not in told.failure and KEY not in caplog.text
    assert [record.levelno for record in caplog.records if record.name == openai.__name__] == [logging.WARNING]


BREAKS = {
    "closed": broken("Hel"),
    "reset": broken("Hel", reset=True),
    "cut in a chunk": chunked_and_cut,
    "told": broken("Hel", end=json.dumps({"error": {"message": f"out of memory {KEY}"}})),
    "nonsense": broken("Hel", end="{"),
    "limit": lambda handler: (handler.begin(), handler.say("Hel", finish="length"))[0],
    "filter": lambda handler: (handler.begin(), handler.say("Hel", finish="content_filter"))[0],
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_came_before_the_break_is_kept(play: Play, case: str, caplog: pytest.LogCaptureFixture) -> None:
    told = ask(play(BREAKS[case]))
    assert told.text == "Hel"
    words = {"told": "out of memory (key)", "nonsense": "understand", "limit": "limit of length", "filter": "filter"}
    assert words.get(case, "broke off") in told.failure
    assert KEY not in told.failure + caplog.text


def test_a_short_wait_is_taken_and_the_request_made_again(play: Play) -> None:
    refusal = error(429, {"error": {"message": "slow down"}}, Retry_After="1")
    server = play(refusal, whole)
    told = ask(server)
    assert (told.text, told.failure, len(server.requests)) == ("Hello there.", "", 2) and told.seconds >= 1
    server = play(refusal)
    told = ask(server)
    assert "429" in told.failure and len(server.requests) == 3


@pytest.mark.parametrize("pieces", [(), ("Hel",)])
def test_silence_ends_it(play: Play, pieces: tuple[str, ...]) -> None:
    def script(handler: Handler) -> None:
        if pieces:
            handler.begin()
            handler.say(*pieces)
        handler.wait_until_left()

    server = play(script)
    told = ask(server, openai_timeout="0.5")
    assert told.text == "".join(pieces) and "nothing to the chat server for 0.5 s" in told.failure
    assert 0.5 <= told.seconds < 3 and server.gone.wait(1)


def test_nobody_there(play: Play) -> None:
    told = ask(play(whole), openai_base_url=f"http://127.0.0.1:{free_port()}/v1")
    assert "cannot reach the model server: Connection refused" in told.failure
    told = ask(play(whole), openai_base_url="http://model.invalid/v1")
    assert "cannot reach the model server" in told.failure and "OPENAI_BASE_URL" in told.failure


# Proxies and authorities


def test_a_proxy_is_taken_from_the_environment(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = play(whole)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    assert ask(proxy, openai_base_url="http://model.invalid/v1/").text == "Hello there."
    assert proxy.requests[0][0] == "http://model.invalid/v1/chat/completions"
    monkeypatch.setenv("NO_PROXY", "model.invalid")
    assert "cannot reach" in ask(proxy, openai_base_url="http://model.invalid/v1").failure
    assert len(proxy.requests) == 1


def test_a_proxy_that_says_no_is_named(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = play(whole)
    monkeypatch.setenv("HTTPS_PROXY", f"http://ada:{quote(KEY, safe='')}@127.0.0.1:{proxy.server_port}")
    told = ask(proxy, openai_base_url="https://model.invalid/v1")
    assert "The proxy between" in told.failure and "501" in told.failure and KEY not in told.failure


def test_settings_that_no_client_can_use_are_told(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/company.pem")
    assert ask(play(whole)).failure == openai.UNUSABLE
    assert "FileNotFoundError" in caplog.text


def test_a_companys_authority_is_believed_once_it_is_named(
    play: Play, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = play(whole, certificate=certificate)
    told = ask(server)
    assert "TLS" in told.failure and "SSL_CERT_FILE" in told.failure and "self-signed" in told.failure
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(certificate))
            assert ask(server).text == "Hello there.", name
    assert "TLS" in ask(play(whole), openai_base_url=replace_scheme(play(whole))).failure


def replace_scheme(server: Scripted) -> str:
    """The address of a plain server, as if it spoke TLS."""
    return server.settings["openai_base_url"].replace("http:", "https:")


# The settings


def test_server_and_model_are_needed_where_this_assistant_is_chosen() -> None:
    given = {"CHATAPP_ASSISTANT": "openai", "CHATAPP_OPENAI_BASE_URL": "http://x/v1/", "CHATAPP_OPENAI_MODEL": "m"}
    settings = load(given)
    assert (settings.openai_base_url, settings.openai_model, settings.openai_api_key) == ("http://x/v1", "m", "")
    assert (settings.openai_timeout, settings.openai_system_prompt) == (60, SYSTEM_PROMPT)
    for name in ("CHATAPP_OPENAI_BASE_URL", "CHATAPP_OPENAI_MODEL"):
        with pytest.raises(ConfigError, match=f"openai needs {name}"):
            load({key: value for key, value in given.items() if key != name})
    assert load({"CHATAPP_OPENAI_MODEL": "m"}).assistant == "builtin"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_BASE_URL", "model.example/v1"),
        ("OPENAI_BASE_URL", "http://ada:hush@x/v1"),
        ("OPENAI_BASE_URL", "http://x/v1?key=hush"),
        ("OPENAI_API_KEY", "hush hush"),
        ("OPENAI_API_KEY", "hush\nhush"),
        ("OPENAI_API_KEY", "hüsh-hush"),
        ("OPENAI_TIMEOUT", "0"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"CHATAPP_{name}") as caught:
        load({f"CHATAPP_{name}": value})
    assert "hush" not in str(caught.value)


def test_the_key_is_shown_as_set_only() -> None:
    environ = {"CHATAPP_OPENAI_API_KEY": f" {KEY}\n"}
    settings = load(environ)
    rows = {row.name: row for row in describe(settings, environ)}
    assert settings.openai_api_key == KEY
    assert rows["CHATAPP_OPENAI_API_KEY"].value == "(set)" and KEY not in repr(rows)
    assert replace(settings, assistant="off").assistant == "off"


def test_its_client_is_imported_only_where_it_is_chosen() -> None:
    code = "import sys, chatapp.factory; print('httpx' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


# The product, and a real model


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    """A real model in a real server, ready."""
    running = Model(tmp_path / "model.log")
    yield running
    running.kill9()


@pytest.fixture
def endless_model(tmp_path: Path) -> Iterator[Model]:
    """The same, but it finds no end."""
    running = Model(tmp_path / "model.log", endless=True)
    yield running
    running.kill9()


@pytest.fixture(params=PEERS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport in turn."""
    return str(request.param)


def asked(transport: str, server: Server, question: str) -> tuple[Client, Peer, str]:
    """A person, her connection, and the conversation in which she has asked."""
    client = Client(server.url).sign_in()
    peer = PEERS[transport](client)
    conversation = client.create(question).json["conversation"]
    peer.subscribe({conversation: 0})
    return client, peer, conversation


def answer_of(peer: Peer, conversation: str) -> Shown | None:
    """The assistant's message as it is shown."""
    return next((message for message in peer.shown(conversation) if message.author == "assistant"), None)


def running_with_text(peer: Peer, conversation: str) -> str:
    """What is shown in mid answer."""

    def begun() -> bool:
        answer = answer_of(peer, conversation)
        return answer is not None and answer.state == "running" and len(answer.text) > 20

    peer.wait_until(begun, 30, "the answer has begun")
    answer = answer_of(peer, conversation)
    assert answer is not None
    return answer.text.strip()


def failure_shown(client: Client, conversation: str) -> str:
    """What stands under the newest message."""
    return client.history(conversation)[-1].one("footer").text


def with_model(model: Model) -> dict[str, str]:
    """The settings that name it."""
    return {"assistant": "openai", "openai_base_url": model.base_url, "openai_model": model.name}


def test_a_real_model_answers_through_the_product(transport: str, start_server: StartServer, model: Model) -> None:
    server = start_server(**with_model(model))
    _, peer, conversation = asked(transport, server, LONGER)
    with peer:
        answer = peer.wait_for_answer(conversation, 60)
        assert (answer.state, "Paris" in answer.text) == ("completed", True), (answer, server.log_text())
        patches = [e for _, element in peer.arrived for e in element.walk() if e.tag == "chat-patch"]
        assert patches, "it began before it was whole; how it streams, a longer one shows below"


def busy(model: Model) -> bool:
    """Whether the model's server still works on an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", model.port, timeout=3)
    try:
        connection.request("GET", "/slots")
        return any(slot["is_processing"] for slot in json.loads(connection.getresponse().read()))
    finally:
        connection.close()


def test_stop_reaches_the_real_model(transport: str, start_server: StartServer, endless_model: Model) -> None:
    client, peer, conversation = asked(transport, start_server(**with_model(endless_model)), QUESTION)
    with peer:
        text = running_with_text(peer, conversation)
        assert busy(endless_model)
        client.post(f"/c/{conversation}/stop", {"Accept": "application/json"})
        wait_for(lambda: not busy(endless_model), 60, "the model stops")  # how soon, test_stop_closes_... says
        answer = peer.wait_for_answer(conversation, 30)
        assert answer.state == "stopped" and answer.text.strip().startswith(text[:20])


def test_a_model_that_is_killed_in_mid_answer_leaves_its_words_and_a_sentence(
    transport: str, start_server: StartServer, endless_model: Model
) -> None:
    server = start_server(**with_model(endless_model))
    client, peer, conversation = asked(transport, server, QUESTION)
    with peer:
        text = running_with_text(peer, conversation)
        endless_model.kill9()
        answer = peer.wait_for_answer(conversation, 30)
        assert answer.state == "failed" and answer.text.strip().startswith(text[:20])
        assert completions.BROKE_OFF in failure_shown(client, conversation)
        client.post(f"/c/{conversation}/again", {"Accept": "application/json"})
        assert peer.wait_for_answer(conversation, 30, after=answer.position).state == "failed"
        assert "cannot reach the model server" in failure_shown(client, conversation)


def test_stop_closes_the_request_at_once(start_server: StartServer, play: Play) -> None:
    def script(handler: Handler) -> None:
        handler.begin()
        handler.say("Something that is long enough to be seen. ")
        handler.wait_until_left()

    upstream = play(script)
    client, peer, conversation = asked("websocket", start_server(**upstream.settings), "Go on")
    with peer:
        running_with_text(peer, conversation)
        started = time.monotonic()
        client.post(f"/c/{conversation}/stop", {"Accept": "application/json"})
        assert upstream.gone.wait(5)
        assert time.monotonic() - started < 1.0
        assert peer.wait_for_answer(conversation, 5).state == "stopped"


def test_under_gevent_tls_works_and_the_key_stays_where_it_is(
    start_server: StartServer, play: Play, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = error(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    upstream = play(whole, refusal, certificate=certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = start_server(**upstream.settings)
    client, peer, conversation = asked("websocket", server, "Hello?")
    with peer:
        answer = peer.wait_for_answer(conversation, 10)
        assert (answer.state, answer.text) == ("completed", "Hello there.")
        client.post_message(conversation, "And again?")
        assert peer.wait_for_answer(conversation, 10, after=answer.position).state == "failed"
        assert "did not accept the chat server's key (401)" in failure_shown(client, conversation)
    assert "(401)" in server.log_text() and KEY not in server.log_text()
    assert [str(path) for path in server.data.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
