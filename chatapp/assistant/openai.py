"""Answers from any server that speaks OpenAI's chat completions: hosted, company-wide or on the same machine.

Plain HTTP and an own reader (`completions.py`) instead of the vendor's package: quick to import, nothing to unlearn
under gevent. Every failure ends as a sentence that says which layer failed and what to do. The key is in no message,
no log.
"""

from __future__ import annotations

import email.utils
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import certifi
import httpx
from gevent import monkey

from chatapp.assistant import completions
from chatapp.assistant.completions import LONGEST_WORDS, failure, page_title, words_of
from chatapp.assistant.provider import ProviderError
from chatapp.config import Settings
from chatapp.store import Turn

CONNECT_S = 10.0
SLICE_S, A_TURN_S = 0.004, 1e-6
A_PIECE = 8192  # bytes, some milliseconds of small events
LONGEST_WAIT_S = 10.0
"""A server that asks for a pause gets it and one more try, if the pause is no longer than this."""
MOST_CHARACTERS = 24_000
"""As much of a conversation goes along, newest first: some 6,000 tokens."""
LONGEST_ERROR = 4096  # bytes read of an error
GRACE_S = 1.0  # how long text may still come once the model has said that it is at its end

QUOTA = (
    "The chat server's account at the model server has used up what it may use ({status}){words}. "
    "The operator of this chat checks the account's plan and billing."
)
# How servers name that: waiting does not help.
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

PlainSocket: Any = monkey.get_original("socket", "socket")  # gevent's would wait for its own loop


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
            raise failure(self._sentence(error, begun), detail) from None

    def _stream(self, request: dict[str, Any]) -> Iterator[str]:
        wait = None
        for last in (False, True):
            with self._client.stream("POST", self._url, json=request, headers=self._headers()) as response:
                if 200 <= response.status_code < 300:
                    yield from self._read(response)
                    return
                body = _beginning(response)
                wait = None if last or _is_quota(body) else _short_wait(response)
                if wait is None:
                    self._refuse(response, body)
            time.sleep(wait)

    def _read(self, response: httpx.Response) -> Iterator[str]:
        """The answer, whatever form it has."""
        is_bounded = "Transfer-Encoding" in response.headers or "Content-Length" in response.headers
        with Patience(response, self._silence) as patience:
            reader = completions.Reader(
                _kind(response), response.status_code, is_bounded, self._hidden, patience.renew, patience.shorten
            )
            try:
                yield from reader.read(patience.watched(_by_turns(response.iter_bytes())))
            except Impatient:
                if not reader.is_finished:
                    raise failure(SILENT.format(seconds=self._silence), "kept alive without an answer") from None
                reader.end()  # nothing more came after its last word

    @property
    def _client(self) -> httpx.Client:
        """The one client, made by whoever asks first: after the fork, where gevent's sockets are in place."""
        try:
            with self._making:
                return self._made
        except (ImportError, ValueError, OSError) as error:  # SOCKS without its package, a proxy that is no address, …
            raise failure(UNUSABLE, self._hidden(repr(error))) from None

    @cached_property
    def _made(self) -> httpx.Client:
        timeout = httpx.Timeout(self._silence, connect=CONNECT_S, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.Client(verify=trust(os.environ), timeout=timeout, limits=limits)

    def _headers(self) -> dict[str, str]:
        wanted = {"Accept": "text/event-stream"}
        return wanted | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _refuse(self, response: httpx.Response, body: str) -> NoReturn:
        """Raise ProviderError for an answer that is none."""
        kind = _kind(response)
        raise failure(self._refusal(response, kind, body), f"{kind}: {self._hidden(body)[:LONGEST_WORDS]!r}")

    def _refusal(self, response: httpx.Response, kind: str, body: str) -> str:
        """The sentence for it."""
        status, words = response.status_code, words_of(body, self._hidden)
        if status == 407:
            return BY_STATUS[407]
        if body.lstrip().startswith("<"):
            sentence = GATEWAY if status in (502, 503, 504) else completions.FOREIGN
            return sentence.format(kind=kind, status=status, words=page_title(body, self._hidden))
        if status < 400:
            return REDIRECT.format(status=status)
        sentence = QUOTA if _is_quota(body) else BY_STATUS.get(status, BROKEN if status >= 500 else REFUSAL)
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
                return completions.GARBLED
        return completions.BROKE_OFF if begun else completions.BROKE_OFF_EARLY

    def _hidden(self, text: str) -> str:
        """Some servers repeat the key in what they say."""
        return text.replace(self._key, "(key)") if self._key else text


class Impatient(Exception):
    """A server kept the line alive and sent nothing of an answer."""


class Patience:
    """Cuts the line of such a server: what only keeps it alive resets the client's own time-out."""

    def __init__(self, response: httpx.Response, silence_s: float) -> None:
        self._is_over = False
        self._socket = response.extensions["network_stream"].get_extra_info("socket")
        self._silence_s = silence_s
        self._until = time.monotonic() + silence_s
        self._changed = threading.Event()
        self._is_done = False

    def watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks. Raises Impatient where they end because of this."""
        try:
            yield from chunks
        except httpx.TransportError:
            if not self._is_over:
                raise
        if self._is_over:
            raise Impatient

    def renew(self) -> None:
        """Something of the answer came."""
        self._until = time.monotonic() + self._silence_s

    def shorten(self) -> None:
        """It is whole, as far as the model is concerned."""
        self._until = time.monotonic() + min(GRACE_S, self._silence_s)
        self._silence_s = min(GRACE_S, self._silence_s)
        self._changed.set()

    def __enter__(self) -> Patience:
        threading.Thread(target=self._watch, name="chatapp-patience", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done = True
        self._changed.set()

    def _watch(self) -> None:
        while not self._is_done:
            left = self._until - time.monotonic()
            if left <= 0:
                self._is_over = True
                _shut(self._socket.fileno())
                return
            self._changed.wait(left)
            self._changed.clear()


def _shut(fd: int) -> None:
    """End a connection by its number, under whatever is wrapped around it: whoever reads finds its end."""
    plain = PlainSocket(fileno=fd)
    try:
        plain.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster
    finally:
        plain.detach()


def _by_turns(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes. Whoever always has more to say must not be all that this process does."""
    until = time.monotonic() + SLICE_S
    for chunk in chunks:
        for at in range(0, len(chunk), A_PIECE):
            yield chunk[at : at + A_PIECE]
            if time.monotonic() > until:
                time.sleep(A_TURN_S)
                until = time.monotonic() + SLICE_S


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


def _unconnected(error: httpx.ConnectError) -> str:
    """Why there is no connection: nobody there, or somebody who is not trusted."""
    cause = _cause(error, OSError)
    if isinstance(cause, ssl.SSLError):
        return UNTRUSTED.format(why=getattr(cause, "verify_message", "") or cause.reason or "no handshake")
    return UNREACHABLE.format(why=(cause and cause.strerror) or "no way leads there")


def _kind(response: httpx.Response) -> str:
    """What the answer is called."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower() or "something unnamed"


def _is_quota(body: str) -> bool:
    """Whether an error says that the account is used up, and not that it is too fast."""
    return any(f'"{code}"' in body for code in QUOTA_CODES)


def _beginning(response: httpx.Response) -> str:
    """The first characters of an error."""
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) >= LONGEST_ERROR:
            break
    return body[:LONGEST_ERROR].decode("utf-8", "replace")


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
