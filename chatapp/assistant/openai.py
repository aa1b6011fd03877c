"""Answers from any server with OpenAI's chat completions: hosted, company-wide or on the same machine.

Plain HTTP and a parser (`completions.py`) instead of the vendor's package: quick to import and safe under gevent.
Every failure becomes a sentence that names the failed layer and a remedy. The key is never shown or logged.
"""

from __future__ import annotations

import json
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property
from math import ceil
from typing import Any, Self, TypeVar

import httpx
from gevent import monkey
from werkzeug.http import parse_date

from chatapp.assistant import completions
from chatapp.assistant.budget import Budget
from chatapp.assistant.builtin import answer_of, is_small_talk
from chatapp.assistant.completions import LONGEST_WORDS, failure, quote_error, quote_title
from chatapp.assistant.context import MOST_PASSAGES, cited, context_of, passages_for
from chatapp.assistant.knowledge import MOST_FOUND, Found, Knowledge
from chatapp.assistant.provider import (
    NO_WISHES,
    Phase,
    ProviderError,
    Tell,
    Usage,
    Wishes,
    no_record,
    with_pauses,
)
from chatapp.assistant.questions import Note, find, ignore, questions
from chatapp.assistant.window import TOO_LONG as TOO_LONG_WORDS
from chatapp.assistant.window import Window
from chatapp.certificates import trust
from chatapp.config import Settings
from chatapp.store import Turn

CONNECT_S = 10.0
PIECE_BYTES = 8192  # some milliseconds of small events
LONGEST_WAIT_S = 10.0
"""The longest Retry-After that is obeyed."""
RETRIES = 2
"""Further requests, before the first word of an answer."""
PAUSE_S = 0.5, 1.5
"""About how long before each of them, unless the server says."""
MODELS_S, MOST_MODELS, LONGEST_NAME = 60.0, 200, 120
LONGEST_LIST = 1 << 20  # bytes of what a server says of itself
PROPS_S = 3.0
"""How long a server may take to say what window it has."""
AGAIN = (408, 429, 500, 502, 503, 504)  # statuses that may pass
ERROR_S = 5.0
LONGEST_ERROR = 4096  # bytes read of an error
GRACE_S = 1.0  # for further text after the `finish_reason`

QUOTA = (
    "The chat server's account at the model server has used up what it may use ({status}){words}. "
    "The operator of this chat checks the account's plan and billing."
)
# Error codes for QUOTA: waiting does not help.
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}
BY_STATUS = {
    400: "The model server did not accept the request (400){words}. "
    "A conversation that is too long for the model is one reason: try a new one.",
    401: "The model server did not accept the chat server's key (401). "
    "The operator of this chat checks CHATAPP_OPENAI_API_KEY.",
    403: "The model server does not allow this to the chat server's key (403). "
    "The operator of this chat checks CHATAPP_OPENAI_API_KEY and what it may use.",
    404: "The model server knows no model {model}, or has nothing at this address (404){words}. "
    "The operator of this chat checks CHATAPP_OPENAI_MODEL, and CHATAPP_OPENAI_BASE_URL, which mostly ends in /v1.",
    407: "The proxy between the chat server and the model server wants a sign-in (407). "
    "The operator of this chat checks HTTPS_PROXY and NO_PROXY.",
    413: "The conversation is too long for the model server (413). Start a new one.",
    402: QUOTA,
    429: "The model server takes no more requests at the moment (429){words}. {again}",
    503: "The model server is not ready (503){words}; it may be loading its model. {again}",
}
REDIRECT = (
    "The model server answered with a redirect ({status}) that the chat server does not follow. "
    "The operator of this chat writes the final address into CHATAPP_OPENAI_BASE_URL."
)
REFUSAL = "The model server refused the request ({status}){words}. The chat server's log has more."
BROKEN = "The model server failed ({status}){words}. Ask again in a moment."
GATEWAY = (
    "A gateway before the model server answered in its place ({status}, {kind}){words}: the model server may be "
    "starting again. Ask again in a moment; if it stays, the operator of this chat checks that server and "
    "CHATAPP_OPENAI_BASE_URL."
)
SILENT = "The model server has sent nothing to the chat server for {seconds:g} s. Ask again, or try later."
TOO_LONG = (
    "The conversation, or its newest message, is too long for the model's context window. Start a new conversation, or "
    "send less at once."
)
LEFT_OUT = "\n\n*The beginning of this conversation is longer than the model's window; it was not considered.*"
OWN = "The person asks for what this server's own records say. Here it is, to be told in your words:\n\n"
SPENT = "You have used up what a person may ask the model in a day. There is some again in {minutes} min."
CUT = "\n\n*The newest message is longer than the model's window; its end was not considered.*"
INSTEAD = "The model does not answer, so this is what the knowledge folder says."
UNREACHABLE = (
    "The chat server cannot reach the model server: {why}. "
    "The operator of this chat checks that it runs, and CHATAPP_OPENAI_BASE_URL."
)
UNTRUSTED = (
    "The chat server could not make a secure connection to the model server (TLS: {why}). "
    "The operator of this chat checks the address; a company's own authority goes into SSL_CERT_FILE."
)
PROXY = (
    "The proxy between the chat server and the model server does not let the request through ({why}). "
    "The operator of this chat checks HTTPS_PROXY and NO_PROXY."
)
UNUSABLE = (
    "The chat server's own proxy, certificate or address settings cannot be used to reach the model server; "
    "its log says why."
)

Kind = TypeVar("Kind", bound=BaseException)


class _TooLong(Exception):
    """The server refused a request because of its length."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


PlainSocket: Any = monkey.get_original("socket", "socket")  # gevent's would involve its event loop


class OpenAI:
    """The provider for one model of one server. Each answer has its own connection, closed with the iterator."""

    def __init__(
        self,
        settings: Settings,
        knowledge: Knowledge,
        budget: Budget,
        tell: Tell = no_record,
        note: Note = ignore,
    ) -> None:
        self._knowledge = knowledge
        self._tell = tell
        self._budget = budget
        self._may_choose = settings.openai_models
        self._models: tuple[float, list[str]] = (float("-inf"), [])  # when they were asked for (monotonic), and names
        self._note = note
        self._window_set, self._most_tokens = settings.openai_context_window, settings.openai_max_tokens
        self._windows: dict[str, Window] = {}  # by model
        self._options: dict[str, Any] = {"stream_options": {"include_usage": True}}
        if settings.openai_temperature is not None:
            self._options["temperature"] = settings.openai_temperature
        if settings.openai_max_tokens:
            self._options["max_tokens"] = settings.openai_max_tokens
        self._base = settings.openai_base_url
        self._url = f"{settings.openai_base_url}/chat/completions"
        self._key = settings.openai_api_key
        self._headers = {"Accept": "text/event-stream"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._model = settings.openai_model
        self._prompt = settings.openai_system_prompt
        self._silence = settings.openai_timeout

    def answer(self, history: Sequence[Turn], wishes: Wishes = NO_WISHES) -> Generator[str, None, None]:
        """Yield the model's text as it comes. An error before its first word carries quotes of the knowledge folder."""
        found = find(self._knowledge, history, MOST_PASSAGES)
        own = self._tell(history, wishes.person)
        question, _previous = questions(history)
        if not is_small_talk(question) and not own:
            self._note(question, found)
        if wait := self._budget.wait_s(wishes.person):
            words = SPENT.format(minutes=ceil(wait / 60))
            raise ProviderError(words, quoted_instead(found, own, words) or words, is_fault=False)
        begun = False
        try:
            for piece in self._pieces(history, found, own, wishes):
                begun = True
                yield piece
        except ProviderError as error:
            raise error if begun else ProviderError(str(error), quoted_instead(found, own)) from None

    def models(self) -> list[str]:
        """Return the models that people may choose from, the operator's first. Asks the server once a minute."""
        asked_at, names = self._models
        if time.monotonic() - asked_at > MODELS_S:
            names = list(self._may_choose) or self._models_of_server()
            self._models = time.monotonic(), names
        return list(dict.fromkeys([self._model, *names]))

    def _models_of_server(self) -> list[str]:
        found = self._get(f"{self._base}/models")
        rows = found.get("data") if isinstance(found, dict) else None
        names = (
            [one["id"] for one in rows if isinstance(one, dict) and isinstance(one.get("id"), str)]
            if isinstance(rows, list)
            else []
        )
        return sorted(name for name in names if 0 < len(name) <= LONGEST_NAME and name.isprintable())[:MOST_MODELS]

    def _window_of_props(self) -> int:
        """Return the window that llama.cpp's server tells; 0 for another server."""
        found = self._get(str(httpx.URL(self._base).copy_with(path="/props")))
        settings = found.get("default_generation_settings") if isinstance(found, dict) else None
        tokens = settings.get("n_ctx") if isinstance(settings, dict) else None
        return tokens if isinstance(tokens, int) and 0 < tokens < 1 << 40 else 0

    def _get(self, url: str) -> object:
        """Return what the server says there as JSON, None for anything else, too much or too late."""
        headers, until, body = {**self._headers, "Accept-Encoding": "identity"}, time.monotonic() + PROPS_S, b""
        try:
            with self._client.stream("GET", url, headers=headers, timeout=PROPS_S) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > LONGEST_LIST or time.monotonic() > until:
                        return None
            return json.loads(body) if response.status_code == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, ProviderError, ValueError, RecursionError):
            return None

    def _pieces(self, history: Sequence[Turn], found: Found, own: str, wishes: Wishes) -> Iterator[str]:
        call = _Call(self._chosen(wishes.model), wishes.note)
        window = self._windows.setdefault(call.model, Window(self._window_set, self._most_tokens))
        for is_last in (False, True):
            room = window.passage_bytes()
            passages = passages_for(found, room)
            parts = (self._prompt, wishes.instructions, own and OWN + own, context_of(passages, room))
            sent = window.fit("\n\n".join(filter(None, parts)), history)
            asked_tokens = window.estimate(sent.messages)
            self._budget.spend(wishes.person, asked_tokens)
            try:
                yield from cited(self._answer(sent.messages, call), passages)
            except _TooLong as error:
                if is_last:
                    raise failure(TOO_LONG, error.words[:LONGEST_WORDS]) from None
                size = sum(len(message["content"].encode()) for message in sent.messages)
                if not window.learn(error.words, size, self._window_of_props()):
                    window = window.shrink(size)
                continue
            finally:  # also of an answer that is stopped: its words were made
                self._settle(call, asked_tokens, wishes)
            if sent.left_out or sent.is_cut:
                yield CUT if sent.is_cut else LEFT_OUT
            return

    def _chosen(self, model: str) -> str:
        """Return the model to ask: the conversation's, unless the operator took it back."""
        is_known = not self._may_choose or model in self._may_choose
        return model if model and is_known else self._model

    def _settle(self, call: _Call, asked_tokens: int, wishes: Wishes) -> None:
        """Tell the figures of an answer with words, and take its tokens; one without words costs nothing."""
        usage = call.usage()
        counted = (usage.prompt_tokens or 0) + (usage.answer_tokens or 0) or asked_tokens + call.words
        if call.words:
            wishes.note(usage)
        self._budget.spend(wishes.person, (counted if call.words else 0) - asked_tokens)

    def _answer(self, messages: list[dict[str, str]], call: _Call) -> Iterator[str]:
        request = {"model": call.model, "messages": messages, "stream": True, **self._options}
        begun = False
        try:
            for piece in self._stream(request, call):
                call.note_word()
                begun = True
                yield piece
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # An invalid URL may contain a proxy's password, so it is not logged.
            detail = "InvalidURL" if isinstance(error, httpx.InvalidURL) else self._hide(repr(error))
            raise failure(self._connection_sentence(error, begun), detail) from None

    def _stream(self, request: dict[str, Any], call: _Call) -> Iterator[str]:
        left = RETRIES
        while True:
            try:
                with self._client.stream("POST", self._url, **call.begin(request, self._headers)) as response:
                    if 200 <= response.status_code < 300:
                        yield from self._read(response, call)
                        return
                    body = _beginning(response)
            except httpx.ConnectError as error:
                if not left or _cause(error, ssl.SSLError):
                    raise
                call.pause(_pause(left))
                left -= 1
                continue
            status = response.status_code
            if status in (400, 422) and "stream_options" in body and request.pop("stream_options", None):
                self._options.pop("stream_options", None)  # an older server
                continue
            if status in (400, 413, 422, 500) and TOO_LONG_WORDS.search(body):
                raise _TooLong(self._hide(body))
            wait = _retry_delay(response, left) if left and not _is_quota(body) else None
            if wait is None:
                kind = _content_type(response)
                detail = f"{kind}: {self._hide(body)[:LONGEST_WORDS]!r}"
                raise failure(self._refusal_sentence(response, kind, body, call.model), detail)
            call.pause(wait)
            left -= 1

    def _read(self, response: httpx.Response, call: _Call) -> Iterator[str]:
        is_bounded = "Transfer-Encoding" in response.headers or "Content-Length" in response.headers
        with SilenceWatchdog(response, self._silence) as watchdog:
            kind, status = _content_type(response), response.status_code
            hooks = watchdog.renew, watchdog.shorten, call.note_thinking
            reader = call.reader = completions.Reader(kind, status, is_bounded, self._hide, *hooks)
            chunks = response.iter_bytes()
            pieces = (chunk[at : at + PIECE_BYTES] for chunk in chunks for at in range(0, len(chunk), PIECE_BYTES))
            yield from reader.read(watchdog.guard(with_pauses(pieces)))

    @cached_property
    def _client(self) -> httpx.Client:
        """The HTTP client, made at its first use, after the fork and gevent's monkey-patching."""
        timeout = httpx.Timeout(self._silence, connect=CONNECT_S, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        try:
            return httpx.Client(verify=trust(os.environ), timeout=timeout, limits=limits)
        except (ImportError, ValueError, OSError) as error:  # SOCKS without its package, an invalid proxy URL, …
            raise failure(UNUSABLE, self._hide(repr(error))) from None

    def _refusal_sentence(self, response: httpx.Response, kind: str, body: str, model: str) -> str:
        status, words = response.status_code, quote_error(body, self._hide)
        if status == 407:
            return BY_STATUS[407]
        if body.lstrip().startswith("<"):
            sentence = GATEWAY if status in (502, 503, 504) else completions.FOREIGN
            return sentence.format(kind=kind, status=status, words=quote_title(body, self._hide))
        if status < 400:
            return REDIRECT.format(status=status)
        sentence = QUOTA if _is_quota(body) else BY_STATUS.get(status, BROKEN if status >= 500 else REFUSAL)
        return sentence.format(status=status, words=words, model=model, again=_retry_sentence(response))

    def _connection_sentence(self, error: Exception, begun: bool) -> str:
        """Describe a connection error for people."""
        match error:
            case httpx.ProxyError():
                return PROXY.format(why=self._hide(str(error))[:LONGEST_WORDS])
            case httpx.ConnectTimeout():
                return UNREACHABLE.format(why=f"no connection within {CONNECT_S:g} s")
            case httpx.ConnectError():
                return _connect_sentence(error)
            case httpx.TimeoutException():
                return SILENT.format(seconds=self._silence)
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                return UNUSABLE
            case httpx.DecodingError():
                return completions.GARBLED
        return completions.BROKE_OFF if begun else completions.BROKE_OFF_EARLY

    def _hide(self, text: str) -> str:
        """Remove the key, which some servers repeat in their messages."""
        return text.replace(self._key, "(key)") if self._key else text


class _Call:
    """The requests for one answer: phases, times, tokens."""

    def __init__(self, model: str, note: Callable[[Phase | Usage], None]) -> None:
        self.model = model
        self.reader: completions.Reader | None = None
        self._note = note
        self._begun_at = self._connected_at = time.monotonic()
        self._first_at: float | None = None
        self.words = 0  # pieces of the answer: about as many tokens
        self._is_thinking = False

    def begin(self, request: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        """Note that a request begins. Return the arguments of its call."""
        self._note(Phase("asking"))
        self._begun_at = self._connected_at = time.monotonic()
        return {"json": request, "headers": headers, "extensions": {"trace": self._trace}}

    def pause(self, seconds: float) -> None:
        """Wait before the next request, and count down."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._note(Phase("paused", ceil(left)))
            time.sleep(min(left, 1.0))

    def note_thinking(self) -> None:
        """Note that the model reasons."""
        if not self._is_thinking:
            self._is_thinking = True
            self._note(Phase("thinking"))

    def note_word(self) -> None:
        """Note a piece of the answer."""
        self.words += 1
        if self._first_at is None:
            self._first_at = time.monotonic()

    def usage(self) -> Usage:
        """Return the figures of the answer."""
        tokens = self.reader.tokens if self.reader else (None, None)
        first = None if self._first_at is None else self._ms(self._first_at)
        return Usage(self.model, *tokens, self._ms(self._connected_at), first, self._ms(time.monotonic()))

    def _ms(self, at: float) -> int:
        return round(1000 * (at - self._begun_at))

    def _trace(self, event: str, _info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._connected_at = time.monotonic()


class SilenceWatchdog:
    """A thread that cuts the connection of a server that sends only keep-alives, which reset httpx's timeout."""

    def __init__(self, response: httpx.Response, silence_s: float) -> None:
        self._has_expired = self._is_shortened = False
        self._socket = response.extensions["network_stream"].get_extra_info("socket")
        self._silence_s = silence_s
        self._until = time.monotonic() + silence_s
        self._changed = threading.Event()
        self._is_done = False

    def guard(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks, to the end of the answer. Raises ProviderError if it was not finished."""
        try:
            yield from chunks
        except httpx.TransportError:
            if not self._has_expired:
                raise
        if self._has_expired and not self._is_shortened:
            raise failure(SILENT.format(seconds=self._silence_s), "kept alive without an answer")

    def renew(self) -> None:
        """Restart the timeout, after a piece of the answer."""
        self._until = time.monotonic() + self._silence_s

    def shorten(self) -> None:
        """Shorten the timeout to GRACE_S, after the `finish_reason`."""
        self._is_shortened, self._silence_s = True, min(GRACE_S, self._silence_s)
        self.renew()
        self._changed.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="chatapp-silence", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done = True
        self._changed.set()

    def _watch(self) -> None:
        while not self._is_done:
            left = self._until - time.monotonic()
            if left <= 0:
                self._has_expired = True
                _shut(self._socket.fileno())
                return
            self._changed.wait(left)
            self._changed.clear()


def _shut(fd: int) -> None:
    """Shut a connection down by its file descriptor, beneath TLS and gevent, so that its reader gets an end of file."""
    plain = PlainSocket(fileno=fd)
    try:
        plain.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # already closed by the server
    finally:
        plain.detach()


def quoted_instead(found: Found, own: str = "", words: str = INSTEAD) -> str:
    """Return the text for a question that the model does not answer: the person's connection, quotes, or the nearest
    passages; "" for none."""
    quotes = answer_of(Found(found.hits[:MOST_FOUND])) if found.hits and (found.is_sure or not own) else ""
    return "\n\n".join(filter(None, (words, own, quotes))) if own or quotes else ""


def _connect_sentence(error: httpx.ConnectError) -> str:
    """Describe a failed connection: unreachable or untrusted."""
    cause = _cause(error, OSError)
    if isinstance(cause, ssl.SSLError):
        return UNTRUSTED.format(why=getattr(cause, "verify_message", "") or cause.reason or "no handshake")
    return UNREACHABLE.format(why=(cause and cause.strerror) or "no way leads there")


def _content_type(response: httpx.Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower() or "something unnamed"


def _is_quota(body: str) -> bool:
    """Return True if the account is exhausted, not merely rate-limited."""
    return any(f'"{code}"' in body for code in QUOTA_CODES)


def _beginning(response: httpx.Response) -> str:
    """Return the first LONGEST_ERROR bytes of a body as text."""
    body, until = b"", time.monotonic() + ERROR_S
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) >= LONGEST_ERROR or time.monotonic() > until:
            break
    return body[:LONGEST_ERROR].decode("utf-8", "replace")


def _retry_after(response: httpx.Response) -> float | None:
    """Return the Retry-After in seconds, or None."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    date = parse_date(text)
    return max(0.0, date.timestamp() - time.time()) if date else None


def _retry_delay(response: httpx.Response, left: int) -> float | None:
    """Return the seconds until a retry, or None if none is worth the wait."""
    if response.status_code not in AGAIN:
        return None
    pause = _retry_after(response)
    if pause is None:
        return _pause(left)
    return pause if pause <= LONGEST_WAIT_S else None


def _pause(left: int) -> float:
    """Return the seconds before a retry, by the number of those left; some more or less, lest all come at once."""
    return PAUSE_S[RETRIES - left] * random.uniform(0.5, 1.5)


def _retry_sentence(response: httpx.Response) -> str:
    pause = _retry_after(response)
    if pause is None:
        return "Ask again in a moment."
    return f"Ask again in {pause:.0f} s." if pause < 120 else f"Ask again in {pause / 60:.0f} minutes."


def _cause(error: BaseException, kind: type[Kind]) -> Kind | None:
    """Return the nearest cause of that kind. httpx hides some causes, so the context counts too."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause
