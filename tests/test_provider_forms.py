"""A provider as they come: what is an answer is taken for one, whatever it is called; an error is said in its words."""

import json
import threading
import time
from collections.abc import Callable

import pytest
from lab.asking import Play, ask, without_proxies
from lab.http import Client
from lab.model import Handler, Script
from lab.peer import WebSocketPeer
from lab.server import Server

from chatapp.assistant import completions, openai
from chatapp.config import ConfigError, load

STREAM = "text/event-stream"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine stands between a test and its server."""
    without_proxies(monkeypatch)


def piece(content: object, **others: object) -> dict[str, object]:
    """An event with a piece of the answer."""
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None, **others}]}


def lines(*events: object, end: str = "\n") -> str:
    """Events as they are written, each a line of data and an empty one; a string stands for itself."""
    written = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    return "".join(f"{event}{end}{end}" for event in written)


def sends(body: str | bytes, status: int = 200, kind: str | None = STREAM, size: int = 0, **headers: str) -> Script:
    """A script: these bytes, in chunks of HTTP (one, or of `size` bytes), and their end."""
    data = body.encode() if isinstance(body, str) else body

    def script(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(status)
        for name, value in {"Transfer-Encoding": "chunked", "Connection": "close", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        if kind is not None:
            handler.send_header("Content-Type", kind)
        handler.end_headers()
        for at in range(0, len(data), size or len(data) or 1):
            chunk = data[at : at + (size or len(data))]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return script


HELLO = (piece("Hello "), piece("there."))
DONE = "data: [DONE]"
STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
WHOLE = {"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "Hello there."}}]}
FORMS: dict[str, Script] = {
    "typed as text": sends(lines(*HELLO, DONE), kind="text/plain"),
    "typed as bytes": sends(lines(*HELLO, DONE), kind="application/octet-stream"),
    "typed as JSON": sends(lines(*HELLO, DONE), kind="application/json"),
    "without a type": sends(lines(*HELLO, DONE), kind=None),
    "status 201": sends(lines(*HELLO, DONE), status=201),
    "a whole completion": sends(json.dumps(WHOLE), kind="application/json"),
    "a whole completion, typed as a stream": sends(json.dumps(WHOLE, indent=2)),
    "a mark of the byte order": sends(b"\xef\xbb\xbf" + lines(*HELLO, DONE).encode()),
    "empty lines first": sends("\n\n" + lines(*HELLO, DONE)),
    "empty data": sends(lines("data:", HELLO[0], "data: ", "data", HELLO[1], DONE)),
    "comments": sends(lines(": OPENROUTER PROCESSING", HELLO[0], ":", HELLO[1], DONE)),
    "events that keep alive": sends(lines("event: keepalive\ndata: {}", *HELLO, "event: ping\ndata: ping", DONE)),
    "heartbeats that are no JSON": sends(lines("data: heartbeat", HELLO[0], "data: ping 12:04", HELLO[1], DONE)),
    "CR LF": sends(lines(*HELLO, DONE, end="\r\n")),
    "CR": sends(lines(*HELLO, DONE, end="\r")),
    "CR LF, byte by byte": sends(lines(*HELLO, DONE, end="\r\n"), size=1),
    "CR, byte by byte": sends(lines(*HELLO, DONE, end="\r"), size=1),
    "text after an early reason": sends(lines(piece("Hello ", finish_reason="stop"), HELLO[1], DONE)),
    "a list of parts": sends(lines(piece([{"type": "text", "text": "Hello "}]), piece([{"text": "there."}]), DONE)),
    "parts that are no text": sends(lines(piece([{"type": "image_url"}]), *HELLO, DONE)),
    "a clean end without a word": sends(lines(*HELLO)),
    "the last line without an end": sends(lines(*HELLO, STOP).rstrip()),
    "a message in the stream": sends(lines({"choices": [{"message": {"content": "Hello there."}}]}, DONE)),
    "choices that are none": sends(lines({"choices": None}, {"choices": []}, {"choices": [None]}, *HELLO, DONE)),
    "reasoning in a field": sends(lines({"choices": [{"delta": {"reasoning_content": "Hm."}}]}, *HELLO, DONE)),
    "reasoning in marks": sends(lines(piece("\n<thi"), piece("nk>Hm, <b>"), piece("</th"), piece("ink>\n\n"), *HELLO)),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_taken_for_one_whatever_it_is_called(play: Play, form: str) -> None:
    told = ask(play(FORMS[form]))
    assert (told.text, told.failure) == ("Hello there.", "")


def test_what_only_looks_like_reasoning_is_text(play: Play) -> None:
    for text in ("<thin ice>", "a <think> b", "<"):
        assert ask(play(sends(lines(*(piece(letter) for letter in text), DONE)))).text == text


def test_halves_of_a_character_meet_again(play: Play) -> None:
    events = [piece("A "), piece("\ud83d"), piece("\ude00"), piece(" and \ud83d"), piece(" half.")]
    told = ask(play(sends(lines(*events, DONE))))
    assert (told.text, told.failure) == ("A 😀 and \ufffd half.", "")


ERRORS: dict[str, tuple[Script, list[str]]] = {
    "in a body": (sends('{"error": {"message": "Out of cards"}}', kind="application/json"), ["“Out of cards”"]),
    "as an object": (sends('{"object": "error", "message": "No such adapter"}'), ["“No such adapter”"]),
    "as an event": (sends(lines('event: error\ndata: {"message": "overloaded"}')), ["“overloaded”"]),
    "as an event in plain words": (sends(lines("event: error\ndata: Queue is full")), ["“Queue is full”"]),
    "in the stream": (sends(lines({"error": {"message": "CUDA"}}, DONE)), ["“CUDA”"]),
    "a refusal": (
        sends(
            lines({"choices": [{"delta": {"refusal": "I can't "}}]}, {"choices": [{"delta": {"refusal": "do that."}}]})
        ),
        ["refused to answer", "“I can't do that.”"],
    ),
    "a refusal, whole": (sends(json.dumps({"choices": [{"message": {"refusal": "No."}}]})), ["refused", "“No.”"]),
    "quota": (
        sends('{"error": {"message": "You exceeded", "code": "insufficient_quota"}}', 429, Retry_After="1"),
        ["used up", "429", "“You exceeded”", "billing"],
    ),
    "payment": (sends('{"error": {"message": "Top up"}}', 402), ["used up", "402", "“Top up”"]),
    "rate": (sends('{"error": {"message": "Slow down", "code": "rate_limit"}}', 429), ["no more requests", "429"]),
    "a gateway's page": (
        sends("<html><head><title>502 Bad Gateway</title>", 502, "text/html"),
        ["gateway", "502", "“502 Bad Gateway”", "moment"],
    ),
    "a page, typed as a stream": (sends("<!doctype html><title>Sign in</title>"), ["“Sign in”", "NO_PROXY"]),
    "a line of text": (sends("Not found", kind="text/plain"), ["text/plain", "OPENAI_BASE_URL"]),
    "deep brackets": (sends("[" * 200_000, kind="application/json"), ["does not understand"]),
    "nothing": (sends(""), ["without an answer"]),
    "heartbeats alone": (sends(lines("data: ping", "data: ping")), ["does not understand"]),
    "reasoning alone": (sends(lines({"choices": [{"delta": {"reasoning": "Hm."}}]})), ["without an answer"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_said_in_its_own_words(play: Play, case: str, caplog: pytest.LogCaptureFixture) -> None:
    script, words = ERRORS[case]
    server = play(script)
    told = ask(server)
    assert told.text == "" and told.failure.endswith(".")
    assert [word for word in words if word not in told.failure] == [], told.failure
    mends = case in ("rate", "a gateway's page")
    assert len(server.requests) == (3 if mends else 1), "only what may mend by waiting is asked again"
    assert len(caplog.records) == 1, caplog.text


@pytest.mark.parametrize("beat", [": keep-alive\n\n", "data: ping\n\n", "data:\n\n", "event: ping\ndata: {}\n\n"])
def test_what_keeps_the_line_alive_is_no_progress(play: Play, beat: str, caplog: pytest.LogCaptureFixture) -> None:
    def script(handler: Handler) -> None:
        handler.begin()
        handler.say("Hel")
        while not handler.server.gone.is_set():
            handler.wfile.write(beat.encode())
            time.sleep(0.05)

    server = play(script)
    told = ask(server, openai_timeout="0.6")
    assert told.text == "Hel" and "nothing to the chat server for 0.6 s" in told.failure
    assert told.seconds < 5 and server.gone.wait(5)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
def test_thinking_is_progress(play: Play, field: str) -> None:
    def script(handler: Handler) -> None:
        handler.begin()
        for _ in range(15):
            handler.event({"choices": [{"delta": {field: "x"}}]})
            time.sleep(0.1)
        handler.say("Done.", end="[DONE]")

    told = ask(play(script), openai_timeout="0.8")
    assert told.failure == "" and told.text.endswith("Done.") and told.seconds > 1.4


def test_an_event_of_endless_lines_is_no_answer() -> None:
    """And takes no time that grows with its square."""
    started = time.monotonic()
    with pytest.raises(completions.ProviderError):
        list(completions.events([b"data:\n" * 400_000]))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:8080/v1/chat/completions", "up to, without, /chat/completions"),
        ("http://127.0.0.1:8080/v1/completions/", "up to, without"),
        ("http://127.0.0.1:8080/my models/v1", "a space"),
        ("http://127.0.0.1:8080/v1\n/x", "must be|a space"),
    ],
)
def test_a_base_url_that_cannot_be_right_is_told_at_the_start(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load({"CHATAPP_ASSISTANT": "openai", "CHATAPP_OPENAI_MODEL": "m", "CHATAPP_OPENAI_BASE_URL": url})
    assert "CHATAPP_OPENAI_BASE_URL" in str(caught.value)
    given = {"CHATAPP_OPENAI_BASE_URL": " http://127.0.0.1:8080/v1 "}
    assert load(given).openai_base_url == "http://127.0.0.1:8080/v1", "spaces around it are nobody's fault"


@pytest.fixture
def answered(start_server: Callable[..., Server], play: Play) -> Callable[[Script], tuple[str, str]]:
    """Asks through the whole product; the answer's state and text."""

    def through(script: Script) -> tuple[str, str]:
        client = Client(start_server(**play(script).settings).url).sign_in()
        conversation = client.create("Hello?").json["conversation"]
        with WebSocketPeer(client) as peer:
            peer.subscribe({conversation: 0})
            answer = peer.wait_for_answer(conversation)
            return answer.state, answer.text.strip()

    return through


def test_under_gevent_halves_parts_and_a_kept_line_end_well(
    answered: Callable[[Script], tuple[str, str]],
) -> None:
    def script(handler: Handler) -> None:
        handler.begin(kind="application/octet-stream")
        pieces = (piece([{"type": "text", "text": "It is \ud83d"}]), piece("\ude00 fine.", finish_reason="stop"))
        handler.wfile.write(lines(*pieces).encode())
        while not handler.server.gone.is_set():  # keeps the line after its last word
            handler.wfile.write(b": x\n\n")
            time.sleep(0.1)

    assert answered(script) == ("completed", "It is 😀 fine.")


def test_the_modules_share_one_log() -> None:
    assert completions.log.name == openai.__name__


def test_a_giant_line_in_small_pieces_takes_no_time_that_grows_with_its_square() -> None:
    started = time.process_time()
    with pytest.raises(completions.ProviderError):
        list(completions.events(b"data: " + b"x" * 58 for _ in range(20_000)))
    assert time.process_time() - started < 2


def test_a_provider_that_never_pauses_is_not_all_that_the_server_does(
    start_server: Callable[..., Server], play: Play
) -> None:
    """Hundreds of thousands of events without a word of the answer, as fast as the line takes them."""
    ended = threading.Event()
    flood = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n' * 2000

    def script(handler: Handler) -> None:
        handler.begin()
        until = time.monotonic() + 20
        while not ended.is_set() and time.monotonic() < until:
            handler.wfile.write(flood)
        handler.say("Done.", end="[DONE]")

    server = start_server(**play(script).settings)
    client = Client(server.url).sign_in()
    client.create("Think hard")
    slowest = 0.0
    for _ in range(10):
        started = time.monotonic()
        assert client.get("/healthz").status == 200
        slowest = max(slowest, time.monotonic() - started)
    ended.set()
    assert slowest < 1.0, "others are served meanwhile"
