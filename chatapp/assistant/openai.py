"""Answers from any server with OpenAI's chat completions: hosted, company-wide or on the same machine.

Plain HTTP and a parser (`completions.py`) instead of the vendor's package: quick to import and safe under gevent.
Every failure becomes a sentence that names the failed layer and a remedy. The key is never shown or logged.
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
from chatapp.assistant.completions import LONGEST_WORDS, failure, quote_error, quote_title
from chatapp.assistant.provider import ProviderError
from chatapp.config import Settings
from chatapp.store import Turn

CONNECT_S = 10.0
SLICE_S, A_TURN_S = 0.004, 1e-6
PIECE_BYTES = 8192  # some milliseconds of small events
LONGEST_WAIT_S = 10.0
"""The longest Retry-After that is obeyed, with one more request."""
MOST_CHARACTERS = 24_000
"""Characters of a conversation sent, newest first: about 6,000 tokens."""
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

PlainSocket: Any = monkey.get_original("socket", "socket")  # gevent's would involve its event loop


class OpenAI:
    """The provider for one model of one server. Each answer has its own connection, closed with the iterator."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"{settings.openai_base_url}/chat/completions"
        self._key = settings.openai_api_key
        self._model = settings.openai_model
        self._prompt = settings.openai_system_prompt
        self._silence = settings.openai_timeout
        self._lock = threading.Lock()

    def answer(self, history: Sequence[Turn]) -> Iterator[str]:
        """Yield the model's text as it comes."""
        request = {"model": self._model, "messages": messages(self._prompt, history), "stream": True}
        begun = False
        try:
            for piece in self._stream(request):
                begun = True
                yield piece
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # An invalid URL may contain a proxy's password, so it is not logged.
            detail = "InvalidURL" if isinstance(error, httpx.InvalidURL) else self._hide(repr(error))
            raise failure(self._connection_sentence(error, begun), detail) from None

    def _stream(self, request: dict[str, Any]) -> Iterator[str]:
        wait = None
        for last in (False, True):
            with self._client.stream("POST", self._url, json=request, headers=self._headers()) as response:
                if 200 <= response.status_code < 300:
                    yield from self._read(response)
                    return
                body = _beginning(response)
                wait = None if last or _is_quota(body) else _retry_delay(response)
                if wait is None:
                    self._refuse(response, body)
            time.sleep(wait)

    def _read(self, response: httpx.Response) -> Iterator[str]:
        is_bounded = "Transfer-Encoding" in response.headers or "Content-Length" in response.headers
        with SilenceWatchdog(response, self._silence) as watchdog:
            kind, status = _content_type(response), response.status_code
            reader = completions.Reader(kind, status, is_bounded, self._hide, watchdog.renew, watchdog.shorten)
            try:
                yield from reader.read(watchdog.guard(_yielding(response.iter_bytes())))
            except SilenceTimeout:
                if not reader.is_finished:
                    raise failure(SILENT.format(seconds=self._silence), "kept alive without an answer") from None
                reader.end()

    @property
    def _client(self) -> httpx.Client:
        """The HTTP client, made at its first use, after the fork and gevent's monkey-patching."""
        try:
            with self._lock:
                return self._cached_client
        except (ImportError, ValueError, OSError) as error:  # SOCKS without its package, an invalid proxy URL, …
            raise failure(UNUSABLE, self._hide(repr(error))) from None

    @cached_property
    def _cached_client(self) -> httpx.Client:
        timeout = httpx.Timeout(self._silence, connect=CONNECT_S, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.Client(verify=trust(os.environ), timeout=timeout, limits=limits)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _refuse(self, response: httpx.Response, body: str) -> NoReturn:
        """Raise ProviderError for a response without an answer."""
        kind = _content_type(response)
        raise failure(self._refusal_sentence(response, kind, body), f"{kind}: {self._hide(body)[:LONGEST_WORDS]!r}")

    def _refusal_sentence(self, response: httpx.Response, kind: str, body: str) -> str:
        status, words = response.status_code, quote_error(body, self._hide)
        if status == 407:
            return BY_STATUS[407]
        if body.lstrip().startswith("<"):
            sentence = GATEWAY if status in (502, 503, 504) else completions.FOREIGN
            return sentence.format(kind=kind, status=status, words=quote_title(body, self._hide))
        if status < 400:
            return REDIRECT.format(status=status)
        sentence = QUOTA if _is_quota(body) else BY_STATUS.get(status, BROKEN if status >= 500 else REFUSAL)
        return sentence.format(status=status, words=words, model=self._model, again=_retry_sentence(response))

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


class SilenceTimeout(Exception):
    """A server kept the connection alive without sending an answer."""


class SilenceWatchdog:
    """A thread that cuts the connection of a server that sends only keep-alives, which reset httpx's timeout."""

    def __init__(self, response: httpx.Response, silence_s: float) -> None:
        self._has_expired = False
        self._socket = response.extensions["network_stream"].get_extra_info("socket")
        self._silence_s = silence_s
        self._until = time.monotonic() + silence_s
        self._changed = threading.Event()
        self._is_done = False

    def guard(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks. Raises SilenceTimeout if the watchdog ended them."""
        try:
            yield from chunks
        except httpx.TransportError:
            if not self._has_expired:
                raise
        if self._has_expired:
            raise SilenceTimeout

    def renew(self) -> None:
        """Restart the timeout, after a piece of the answer."""
        self._until = time.monotonic() + self._silence_s

    def shorten(self) -> None:
        """Shorten the timeout to GRACE_S, after the `finish_reason`."""
        self._until = time.monotonic() + min(GRACE_S, self._silence_s)
        self._silence_s = min(GRACE_S, self._silence_s)
        self._changed.set()

    def __enter__(self) -> SilenceWatchdog:
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


def _yielding(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes in pieces, with pauses for other greenlets, also from a server that never pauses."""
    until = time.monotonic() + SLICE_S
    for chunk in chunks:
        for at in range(0, len(chunk), PIECE_BYTES):
            yield chunk[at : at + PIECE_BYTES]
            if time.monotonic() > until:
                time.sleep(A_TURN_S)
                until = time.monotonic() + SLICE_S


def trust(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Load trusted CAs: SSL_CERT_FILE and SSL_CERT_DIR, else REQUESTS_CA_BUNDLE, else the system's and certifi's."""
    # OpenSSL reads the first two by itself.
    if environ.get("SSL_CERT_FILE") or environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()
    if bundle := environ.get("REQUESTS_CA_BUNDLE"):
        is_folder = os.path.isdir(bundle)
        return ssl.create_default_context(cafile=None if is_folder else bundle, capath=bundle if is_folder else None)
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def messages(prompt: str, history: Sequence[Turn]) -> list[dict[str, str]]:
    """Return the newest turns that fit, with alternating roles, a question last. Raises ProviderError for none."""
    turns = [turn for turn in history if turn.body.strip()]
    while turns and turns[-1].author == "assistant":
        turns.pop()  # a retry: the interrupted answer comes last
    kept = _newest(turns)
    while kept and kept[0]["role"] == "assistant":
        kept.pop(0)
    if not kept:
        raise ProviderError("There is no question to answer.")
    return ([{"role": "system", "content": prompt}] if prompt else []) + kept


def _newest(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return whole turns from the end, up to the limit; successive ones of an author are joined for many models."""
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
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) >= LONGEST_ERROR:
            break
    return body[:LONGEST_ERROR].decode("utf-8", "replace")


def _retry_after(response: httpx.Response) -> float | None:
    """Return the Retry-After in seconds, or None."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _retry_delay(response: httpx.Response) -> float | None:
    """Return the seconds until a retry, or None if none is worth the wait."""
    pause = _retry_after(response) if response.status_code in (429, 503) else None
    return pause if pause is not None and pause <= LONGEST_WAIT_S else None


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
