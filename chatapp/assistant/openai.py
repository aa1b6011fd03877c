"""Answers from any server that speaks OpenAI's chat completions: hosted, company-wide or on the same machine.

Plain HTTP and ~25 lines of event stream instead of the vendor's package: quick to import, nothing to unlearn under
gevent. Every failure ends as a sentence that says which layer failed and what to do. The key is in no message, no log.
"""

import email.utils
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import certifi
import httpx

from chatapp.assistant.provider import ProviderError
from chatapp.config import Settings
from chatapp.store import Turn

CONNECT_S = 10.0
LONGEST_WAIT_S = 10.0
"""A server that asks for a pause gets it and one more try, if the pause is no longer than this."""
MOST_CHARACTERS = 24_000
"""As much of a conversation goes along, newest first: some 6,000 tokens."""
LONGEST_EVENT = 1 << 20  # bytes: an event stream has short events; what goes on and on is something else
LONGEST_ERROR, LONGEST_WORDS = 4096, 200  # bytes read of an error, characters shown of it

CUT_SHORT = {
    "length": "The answer reached the limit of length of the model or its server. Ask it to go on.",
    "content_filter": "The model server's content filter ended the answer.",
}
BY_STATUS = {
    400: "The model server did not accept the request (400){words}. "
    "A conversation that is too long for the model is one reason: try a new one.",
    401: "The model server did not accept the chat server's key (401). "
    "Whoever runs this chat checks CHATAPP_OPENAI_API_KEY.",
    403: "The model server does not allow this to the chat server's key (403). "
    "Whoever runs this chat checks CHATAPP_OPENAI_API_KEY and what it may use.",
    404: "The model server knows no model {model}, or has nothing at this address (404){words}. "
    "Whoever runs this chat checks CHATAPP_OPENAI_MODEL, and CHATAPP_OPENAI_BASE_URL, which mostly ends in /v1.",
    407: "The proxy between the chat server and the model server wants a sign-in (407). "
    "Whoever runs this chat checks HTTPS_PROXY and NO_PROXY.",
    413: "The conversation is too long for the model server (413). Start a new one.",
    429: "The model server takes no more requests at the moment (429){words}. {again}",
    503: "The model server is not ready (503){words}; it may be loading its model. {again}",
}
REDIRECT = (
    "The model server answered with a redirect ({status}) that the chat server does not follow. "
    "Whoever runs this chat writes the final address into CHATAPP_OPENAI_BASE_URL."
)
REFUSAL = "The model server refused the request ({status}){words}. The chat server's log has more."
BROKEN = "The model server failed ({status}){words}. Ask again in a moment."
FOREIGN = (
    "What answered the chat server is not the model server's stream but {kind} ({status}): a proxy's page, or a wrong "
    "address. Whoever runs this chat checks CHATAPP_OPENAI_BASE_URL, HTTPS_PROXY and NO_PROXY."
)
GARBLED = "The chat server does not understand what the model server sends; it may not be OpenAI-compatible."
FAILED = "The model server failed in the middle of the answer{words}."
BROKE_OFF = "The model server broke off in the middle of the answer. Ask again."
BROKE_OFF_EARLY = "The model server closed the connection without an answer. Ask again in a moment."
SILENT = "The model server has sent nothing to the chat server for {seconds:g} s. Ask again, or try later."
UNREACHABLE = (
    "The chat server cannot reach the model server: {why}. "
    "Whoever runs this chat checks that it runs, and CHATAPP_OPENAI_BASE_URL."
)
UNTRUSTED = (
    "The chat server could not make a secure connection to the model server (TLS: {why}). "
    "Whoever runs this chat checks the address; a company's own authority goes into SSL_CERT_FILE."
)
PROXY = (
    "The proxy between the chat server and the model server does not let the request through ({why}). "
    "Whoever runs this chat checks HTTPS_PROXY and NO_PROXY."
)
UNUSABLE = (
    "The chat server's own proxy, certificate or address settings cannot be used to reach the model server; "
    "its log says why."
)

Kind = TypeVar("Kind", bound=BaseException)

log = logging.getLogger(__name__)


class OpenAI:
    """Asks one model of one server. Each answer has a connection of its own, closed the moment it is not wanted."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"{settings.openai_base_url}/chat/completions"
        self._key = settings.openai_api_key
        self._model = settings.openai_model
        self._prompt = settings.openai_system_prompt
        self._silence = settings.openai_timeout
        self._making = threading.Lock()

    def answer(self, history: Sequence[Turn]) -> Iterator[str]:
        """The model's words as they come. What is not understood or not told in words is left out."""
        request = {"model": self._model, "messages": messages(self._prompt, history), "stream": True}
        begun = False
        try:
            for piece in self._stream(request):
                begun = True
                yield piece
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # An address may hold a proxy's password: of one that cannot be read, nothing is repeated.
            detail = "InvalidURL" if isinstance(error, httpx.InvalidURL) else self._hidden(repr(error))
            raise _failure(self._sentence(error, begun), detail) from None

    def _stream(self, request: dict[str, Any]) -> Iterator[str]:
        wait = None
        for last in (False, True):
            with self._client.stream("POST", self._url, json=request, headers=self._headers()) as response:
                wait = None if last else _short_wait(response)
                if wait is None:
                    self._check(response)
                    yield from deltas(events(response.iter_bytes()), self._hidden)
                    return
            time.sleep(wait)

    @property
    def _client(self) -> httpx.Client:
        """The one client, made by whoever asks first: after the fork, where gevent's sockets are in place."""
        try:
            with self._making:
                return self._made
        except (ImportError, ValueError, OSError) as error:  # SOCKS without its package, a proxy that is no address, …
            raise _failure(UNUSABLE, self._hidden(repr(error))) from None

    @cached_property
    def _made(self) -> httpx.Client:
        timeout = httpx.Timeout(self._silence, connect=CONNECT_S, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.Client(verify=trust(os.environ), timeout=timeout, limits=limits)

    def _headers(self) -> dict[str, str]:
        wanted = {"Accept": "text/event-stream"}
        return wanted | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _check(self, response: httpx.Response) -> None:
        """Raise ProviderError unless this is an event stream."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() or "something unnamed"
        if response.status_code == 200 and kind == "text/event-stream":
            return
        body = _beginning(response)
        words = _words(body, self._hidden)
        raise _failure(self._refusal(response, kind, words), f"{kind}: {self._hidden(body)[:LONGEST_WORDS]!r}")

    def _refusal(self, response: httpx.Response, kind: str, words: str) -> str:
        """The sentence for an answer that is no stream."""
        status = response.status_code
        if status == 407:
            return BY_STATUS[407]
        if "html" in kind or status < 300:
            return FOREIGN.format(kind=kind, status=status)
        if status < 400:
            return REDIRECT.format(status=status)
        sentence = BY_STATUS.get(status, BROKEN if status >= 500 else REFUSAL)
        return sentence.format(status=status, words=words, model=self._model, again=_again(response))

    def _sentence(self, error: Exception, begun: bool) -> str:
        """What became of the connection, in words."""
        match error:
            case httpx.ProxyError():
                return PROXY.format(why=self._hidden(str(error))[:LONGEST_WORDS])
            case httpx.ConnectTimeout():
                return UNREACHABLE.format(why=f"no connection within {CONNECT_S:g} s")
            case httpx.ConnectError():
                return _unconnected(error)
            case httpx.TimeoutException():
                return SILENT.format(seconds=self._silence)
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                return UNUSABLE
            case httpx.DecodingError():
                return GARBLED
        return BROKE_OFF if begun else BROKE_OFF_EARLY

    def _hidden(self, text: str) -> str:
        """Some servers repeat the key in what they say."""
        return text.replace(self._key, "(key)") if self._key else text


def trust(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Whom to believe: SSL_CERT_FILE and SSL_CERT_DIR, else REQUESTS_CA_BUNDLE, else the system's and certifi's."""
    # OpenSSL reads the first two by itself; what was named is meant instead of the rest.
    if environ.get("SSL_CERT_FILE") or environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()
    if bundle := environ.get("REQUESTS_CA_BUNDLE"):
        folder = os.path.isdir(bundle)
        return ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def messages(prompt: str, history: Sequence[Turn]) -> list[dict[str, str]]:
    """The conversation as the model reads it: the newest turns that fit, roles taking turns, a question last."""
    turns = [turn for turn in history if turn.body.strip()]
    while turns and turns[-1].author == "assistant":
        turns.pop()  # asked to answer again: the answer that broke off stands last
    kept = _newest(turns)
    while kept and kept[0]["role"] == "assistant":
        kept.pop(0)
    if not kept:
        raise ProviderError("There is no question to answer.")
    return ([{"role": "system", "content": prompt}] if prompt else []) + kept


def _newest(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Whole turns from the end, within the size; several in a row by one author become one, as many models want it."""
    kept: list[dict[str, str]] = []
    room = MOST_CHARACTERS
    for turn in reversed(turns):
        if kept and len(turn.body) > room:
            break
        body = turn.body.strip()[:room]
        room -= len(body)
        if kept and kept[0]["role"] == turn.author:
            kept[0]["content"] = f"{body}\n\n{kept[0]['content']}"
        else:
            kept.insert(0, {"role": turn.author, "content": body})
    return kept


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event. Lines end at LF or CR LF, and nowhere else: JSON may hold U+2028."""
    rest, data = b"", list[bytes]()
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data).decode("utf-8", "replace")
                data = []
        if len(rest) + sum(map(len, data)) > LONGEST_EVENT:
            raise _failure(GARBLED, "an event without an end")
    # Some servers forget the empty line behind their last event.
    data += [rest.strip()[5:].strip()] if rest.startswith(b"data:") else []
    if data:
        yield b"\n".join(data).decode("utf-8", "replace")


def deltas(stream: Iterable[str], hide: Callable[[str], str] = str) -> Iterator[str]:
    """The text in the events, up to the word that the answer is whole. Reasoning and tools are passed over."""
    for data in stream:
        if data.strip() == "[DONE]":
            return
        event = _parsed(data)
        if event.get("error"):
            raise _failure(FAILED.format(words=_words(data, hide)), "an error within the stream")
        text, finish = _choice(event)
        if text:
            yield text
        if finish in CUT_SHORT:
            raise _failure(CUT_SHORT[finish], finish)
        if finish:
            return
    raise _failure(BROKE_OFF, "the stream ended without [DONE] and without finish_reason")


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise _failure(GARBLED, f"not a JSON object in an event of {len(data)} characters")
    return event


def _choice(event: dict[str, Any]) -> tuple[str, str]:
    """(text, why it ended) of the first choice, each empty where there is none."""
    match event:
        case {"choices": [{**choice}, *_]}:
            delta, finish = choice.get("delta"), choice.get("finish_reason")
            text = delta.get("content") if isinstance(delta, dict) else None
            return (text if isinstance(text, str) else ""), (finish if isinstance(finish, str) else "")
    return "", ""


def _failure(sentence: str, detail: str) -> ProviderError:
    """The sentence for the person; the log says more."""
    log.warning("%s [%s]", sentence, detail)
    return ProviderError(sentence)


def _unconnected(error: httpx.ConnectError) -> str:
    """Why there is no connection: nobody there, or somebody who is not trusted."""
    cause = _cause(error, OSError)
    if isinstance(cause, ssl.SSLError):
        return UNTRUSTED.format(why=getattr(cause, "verify_message", "") or cause.reason or "no handshake")
    return UNREACHABLE.format(why=(cause and cause.strerror) or "no way leads there")


def _beginning(response: httpx.Response) -> str:
    """The first characters of an error."""
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) >= LONGEST_ERROR:
            break
    return body[:LONGEST_ERROR].decode("utf-8", "replace")


def _words(body: str, hide: Callable[[str], str]) -> str:
    """What a server says in an error, in OpenAI's form or that of others: one line, not long, to end a clause with."""
    try:
        told = json.loads(body)
    except ValueError:
        return ""
    for name in ("error", "message", "detail"):
        told = told.get(name, told) if isinstance(told, dict) else told
    words = hide(" ".join(told.split())) if isinstance(told, str) else ""
    if len(words) > LONGEST_WORDS:
        words = words[: LONGEST_WORDS - 1] + "…"
    return f": “{words}”" if words else ""


def _pause(response: httpx.Response) -> float | None:
    """The wait that the server asks for in seconds, if it does."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _short_wait(response: httpx.Response) -> float | None:
    """How long to wait before trying again, where that is worth it."""
    pause = _pause(response) if response.status_code in (429, 503) else None
    return pause if pause is not None and pause <= LONGEST_WAIT_S else None


def _again(response: httpx.Response) -> str:
    pause = _pause(response)
    if pause is None:
        return "Ask again in a moment."
    return f"Ask again in {pause:.0f} s." if pause < 120 else f"Ask again in {pause / 60:.0f} minutes."


def _cause(error: BaseException, kind: type[Kind]) -> Kind | None:
    """The nearest error of that kind behind an error. The client hides some causes, so the context counts too."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause
