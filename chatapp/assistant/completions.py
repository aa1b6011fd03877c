"""Parser of responses of OpenAI's chat completions, by content, not by declared type.

Bytes in, the answer's text out; no socket, no clock. An event stream (also one typed as something else), a whole
completion as JSON, an error in either. All but the answer's text (reasoning, tools, usage) is skipped.
"""

import codecs
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, NoReturn

from chatapp.assistant.provider import ProviderError

LONGEST_EVENT = 1 << 20  # bytes: events are short; anything longer is no event stream
LONGEST_COMPLETION = 3 << 20  # bytes of a whole completion: parsing more would block the event loop
LONGEST_WORDS = 200  # characters shown of a server's error message
BOM = b"\xef\xbb\xbf"
FIELD = re.compile(rb"(?:data|event|id|retry)?:|data$|event$|id$|retry$")
# Some models put their reasoning before the answer instead of into a field.
THINKING = re.compile(r"\s*<(think|thinking|thought|reasoning)>", re.I)
REASONING = ("reasoning_content", "reasoning", "reasoning_details")
LONGEST_TAG = 40  # characters that may be the beginning of such a tag, with white space before it

CUT_SHORT = {
    "length": "The answer reached the limit of length of the model or its server. Ask it to go on.",
    "content_filter": "The model server's content filter ended the answer.",
}
REFUSED = "The model refused to answer{words}."
FOREIGN = (
    "What answered the chat server is not the model server's stream but {kind} ({status}){words}: a proxy's page, or a "
    "wrong address. The operator of this chat checks CHATAPP_OPENAI_BASE_URL, HTTPS_PROXY and NO_PROXY."
)
GARBLED = "The chat server does not understand what the model server sends; it may not be OpenAI-compatible."
FAILED = "The model server failed in the middle of the answer{words}."
FAILED_EARLY = "The model server answered with an error{words}. Ask again in a moment."
BROKE_OFF = "The model server broke off in the middle of the answer. Ask again."
BROKE_OFF_EARLY = "The model server closed the connection without an answer. Ask again in a moment."

Hide = Callable[[str], str]

log = logging.getLogger("chatapp.assistant.openai")


class Event(NamedTuple):
    """One server-sent event: its name, "" by default, and its data."""

    name: str
    data: str


class Reader:
    """Parser of one answer.

    `is_bounded`: the transport delimits the answer (chunks, a length); otherwise its end may be a lost connection.
    `on_progress` is called for each piece of the answer or of the reasoning, `on_finish` at `finish_reason`: text may
    still follow, but need not.
    """

    def __init__(
        self,
        kind: str,
        status: int,
        is_bounded: bool,
        hide: Hide,
        on_progress: Callable[[], None],
        on_finish: Callable[[], None],
        on_thinking: Callable[[], None] = lambda: None,
    ) -> None:
        self._kind, self._status = kind, status
        self._is_bounded = is_bounded
        self._hide = hide
        self._on_progress, self._on_finish, self._on_thinking = on_progress, on_finish, on_thinking
        self.tokens: tuple[int | None, int | None] = (None, None)  # of prompt and answer, as the server counts them
        self._finish_reason = ""
        self._refusal = ""
        self._has_text = False
        self._is_completion = False  # seen: an object with choices

    def read(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """Yield the answer's text in pieces. Raises ProviderError."""
        rest = iter(chunks)
        first = b""
        while not first and (chunk := next(rest, None)) is not None:
            first = chunk.removeprefix(BOM).lstrip()
        everything = chain([first], rest)
        if first[:1] == b"<":
            raise self._foreign_error(_decode(first))
        pieces = self._completion(everything) if first[:1] in (b"{", b"[") else self._stream(everything)
        for piece in _without_thinking(filter(None, _whole_characters(pieces)), self._on_thinking):
            self._has_text = True
            yield piece
        if self._refusal and not self._has_text:
            raise failure(REFUSED.format(words=quote(self._refusal, self._hide)), "refusal")
        if self._finish_reason in CUT_SHORT:
            raise failure(CUT_SHORT[self._finish_reason], self._finish_reason)

    def _completion(self, chunks: Iterable[bytes]) -> Iterator[str]:
        parts, size = list[bytes](), 0
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > LONGEST_COMPLETION:
                raise failure(GARBLED, "a completion without an end")
        body = b"".join(parts)
        event = _parse_object(_decode(body))
        if event is None:
            raise failure(GARBLED, f"not a JSON object in {len(body)} bytes")
        self._raise_error_within(event)
        yield self._handle_object(event)
        if not self._is_completion:
            raise self._foreign_error(_decode(body))

    def _stream(self, chunks: Iterable[bytes]) -> Iterator[str]:
        non_json = ""  # data of an event: a heartbeat of some kind, unless nothing else comes
        for event in events(_keep_beginning(chunks, beginning := bytearray())):
            if event.data.strip() == "[DONE]":
                return
            if event.name == "error":
                raise self._error_within(event.data)
            found = _parse_object(event.data)
            if found is None:
                if event.data.lstrip()[:1] in ("{", "[") and not self._finish_reason:  # afterwards: half an event
                    raise failure(GARBLED, f"not a JSON object in an event of {len(event.data)} characters")
                non_json = non_json or event.data
                continue
            self._raise_error_within(found)
            yield self._handle_object(found)
        if self._finish_reason or self._refusal or (self._has_text and self._is_bounded):
            return
        self._raise_incomplete(bytes(beginning), non_json)

    def _raise_incomplete(self, beginning: bytes, non_json: str) -> NoReturn:
        if self._has_text or self._is_completion:
            sentence = BROKE_OFF if self._has_text else BROKE_OFF_EARLY
            raise failure(sentence, "the stream ended without [DONE] and without finish_reason")
        if non_json:
            raise failure(GARBLED, f"not a JSON object in an event of {len(non_json)} characters")
        line = beginning.splitlines()[0] if beginning else b""
        if line and not FIELD.match(line):
            raise self._foreign_error(_decode(beginning))
        raise failure(BROKE_OFF_EARLY, "an empty answer")

    def _raise_error_within(self, event: dict[str, Any]) -> None:
        if event.get("error") or event.get("object") == "error":
            raise self._error_within(json.dumps(event))

    def _error_within(self, data: str) -> ProviderError:
        sentence = FAILED if self._has_text else FAILED_EARLY
        return failure(sentence.format(words=quote_error(data, self._hide)), "an error within the answer")

    def _foreign_error(self, body: str) -> ProviderError:
        detail = f"{self._kind}: {self._hide(body)[:LONGEST_WORDS]!r}"
        words = quote_title(body, self._hide)
        return failure(FOREIGN.format(kind=self._kind, status=self._status, words=words), detail)

    def _handle_object(self, event: dict[str, Any]) -> str:
        """Return the text of the first choice; keep its refusal and finish_reason."""
        if isinstance(usage := event.get("usage"), dict):
            self.tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        choices = event.get("choices")
        if not isinstance(choices, list):
            return ""
        self._is_completion = True
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta") or choice.get("message") or {}
        delta = delta if isinstance(delta, dict) else {}
        text = content_text(delta.get("content"))
        self._refusal = (self._refusal + content_text(delta.get("refusal")))[: 2 * LONGEST_WORDS]
        has_thought = any(delta.get(name) for name in REASONING)
        if has_thought:
            self._on_thinking()
        if text or has_thought or delta.get("refusal"):
            self._on_progress()
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            self._finish_reason = reason
            self._on_finish()
        return text


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 1 << 40 and not isinstance(value, bool) else None


def events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Parse server-sent events. Lines end at LF, CR LF or CR only: JSON may contain U+2028.

    Comments and events without data are skipped. Raises ProviderError for one longer than LONGEST_EVENT.
    """
    name, data, size = "", list[bytes](), 0
    for line in _lines(chunks):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if any(data):
                yield Event(name, _decode(b"\n".join(data)))
            name, data, size = "", [], 0
        elif field == b"data":
            data.append(value)
            size += len(line)
            if size > LONGEST_EVENT:
                raise failure(GARBLED, "an event without an end")
        elif field == b"event":
            name = _decode(value).strip()
    if any(data):  # some servers omit the empty line after their last event
        yield Event(name, _decode(b"\n".join(data)))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    open_line, size, after_cr = list[bytes](), 0, False  # joined once: linear time
    for chunk in chunks:
        if after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            after_cr = False
        after_cr = after_cr or chunk.endswith(b"\r")
        first, *others = re.split(rb"\r\n|\n|\r", chunk)
        open_line.append(first)
        size += len(first)
        if others:
            yield b"".join(open_line)
            yield from others[:-1]
            open_line, size = [others[-1]], len(others[-1])
        if size > LONGEST_EVENT:
            raise failure(GARBLED, "a line without an end")
    if size:
        yield b"".join(open_line)


def _keep_beginning(chunks: Iterable[bytes], beginning: bytearray) -> Iterator[bytes]:
    """Yield the chunks and keep their first bytes for an error message."""
    for chunk in chunks:
        beginning += chunk[: LONGEST_WORDS - len(beginning)] if len(beginning) < LONGEST_WORDS else b""
        yield chunk


def _whole_characters(pieces: Iterable[str]) -> Iterator[str]:
    """Join surrogates that JSON escaped separately; a lone one becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-16-le")("replace")  # keeps the first half of a pair for the next piece
    for piece in pieces:
        yield decoder.decode(piece.encode("utf-16-le", "surrogatepass"))
    yield decoder.decode(b"", final=True)


def _join_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _without_thinking(pieces: Iterable[str], on_thinking: Callable[[], None]) -> Iterator[str]:
    """Drop the reasoning before the answer."""
    held, end_tag, rest = "", "", iter(pieces)  # held: possibly the beginning of a tag
    for piece in rest:
        held += piece
        if not end_tag and (found := THINKING.match(held)):
            end_tag, held = f"</{found[1].lower()}>", held[found.end() :]
            on_thinking()
        if end_tag:
            at = held.lower().find(end_tag)
            if at < 0:
                held = held[-len(end_tag) :]
                continue
            held, end_tag = held[at + len(end_tag) :].lstrip(), ""
        elif len(held) < LONGEST_TAG and _may_begin_thinking(held):
            continue
        if held:
            yield held
            held = ""
            yield from rest
    if held and not end_tag:
        yield held


def _may_begin_thinking(text: str) -> bool:
    text = text.lstrip().lower()
    tags = ("<think>", "<thinking>", "<thought>", "<reasoning>")
    return not text or any(tag.startswith(text) for tag in tags)


def content_text(content: object) -> str:
    """Return the text of a content: a string, or a list of parts of several types."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")]
    return "".join(text for part in parts if isinstance(text := part.get("text"), str))


def _parse_object(data: str) -> dict[str, Any] | None:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def failure(sentence: str, detail: str) -> ProviderError:
    """Make an error from a sentence for the person, and log it with the detail."""
    log.warning("%s [%s]", sentence, detail)
    return ProviderError(sentence)


def quote_error(body: str, hide: Hide) -> str:
    """Quote the message of an error in OpenAI's or a similar form, as the end of a clause."""
    found: object = _parse_object(body)
    if found is None:
        found = "" if body.lstrip()[:1] in ("{", "[", "<", "") else body
    for name in ("error", "message", "detail", "msg"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return quote(found, hide) if isinstance(found, str) else ""


def quote_title(body: str, hide: Hide) -> str:
    """Quote a page's title, as the end of a clause."""
    found = re.search(r"<title[^>]*>([^<]+)", body, re.I)
    return quote(found[1], hide) if found else ""


def quote(text: str, hide: Hide) -> str:
    """Quote foreign text in one line of at most LONGEST_WORDS characters; "" if empty."""
    words = hide(" ".join(_join_surrogates(text).split()))
    if len(words) > LONGEST_WORDS:
        words = words[: LONGEST_WORDS - 1] + "…"
    return f": “{words}”" if words else ""
