"""What servers of OpenAI's chat completions send, read as they come: by what it is, not by what it is called.

Bytes in, the answer's text out; no socket, no clock. An event stream (also one typed as something else), a whole
completion as JSON, an error in either. What is no text of the answer (reasoning, tools, usage) is passed over.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from chatapp.assistant.provider import ProviderError

LONGEST_EVENT = 1 << 20  # bytes: an event stream has short events; what goes on and on is something else
LONGEST_COMPLETION = 3 << 20  # bytes of a completion that comes as a whole: to parse more would hold up everybody
LONGEST_WORDS = 200  # characters shown of what a server says in an error
BOM = b"\xef\xbb\xbf"
FIELD = re.compile(rb"(?:data|event|id|retry)?:|data$|event$|id$|retry$")
# Reasoning that models without a field of its own for it put before the answer.
THINKING = re.compile(r"\s*<(think|thinking|thought|reasoning)>", re.I)
LONGEST_MARK = 40  # characters that may be the beginning of such a mark, with white space before it
HIGH, LOW = range(0xD800, 0xDC00), range(0xDC00, 0xE000)  # halves of a character (RFC 2781)

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
    """One server-sent event: its name, empty where it has none, and its data."""

    name: str
    data: str


class Reader:
    """Reads one answer.

    `is_bounded`: whether the transport says where the answer ends (chunks, a length); else its end may be a break.
    `progress` is called whenever a piece of the answer or of the model's reasoning came, `finished` once the model has
    said why it ended: text may still follow, but need not.
    """

    def __init__(
        self,
        kind: str,
        status: int,
        is_bounded: bool,
        hide: Hide = str,
        progress: Callable[[], None] = lambda: None,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        self._kind, self._status = kind, status
        self._is_bounded = is_bounded
        self._hide = hide
        self._progress, self._finished = progress, finished
        self._finish = ""  # why the model ended
        self._refusal = ""
        self._has_text = False  # a piece of the answer came
        self._is_known = False  # something came that only this kind of server sends

    @property
    def is_finished(self) -> bool:
        """Whether the model has said that it is at its end."""
        return bool(self._finish)

    def read(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """The answer's text, in pieces. Raises ProviderError."""
        rest = iter(chunks)
        first = b""
        while not first and (chunk := next(rest, None)) is not None:
            first = chunk.removeprefix(BOM).lstrip()
        everything = chain([first], rest)
        if first[:1] == b"<":
            raise self._foreign(_text(first))
        pieces = self._completion(everything) if first[:1] in (b"{", b"[") else self._stream(everything)
        for piece in answer_text(pieces):
            self._has_text = True
            yield piece
        self.end()

    def end(self) -> None:
        """All has come that comes. Raises ProviderError unless that was an answer."""
        if self._refusal and not self._has_text:
            raise failure(REFUSED.format(words=quoted(self._refusal, self._hide)), "refusal")
        if self._finish in CUT_SHORT:
            raise failure(CUT_SHORT[self._finish], self._finish)

    def _completion(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """A whole one."""
        parts, size = list[bytes](), 0
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > LONGEST_COMPLETION:
                raise failure(GARBLED, "a completion without an end")
        body = b"".join(parts)
        event = _parsed(_text(body))
        if event is None:
            raise failure(GARBLED, f"not a JSON object in {len(body)} bytes")
        self._refuse_error(event)
        yield self._take(event)
        if not self._is_known:
            raise self._foreign(_text(body))

    def _stream(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """One that comes in events."""
        odd = ""  # an event that is no JSON: a heartbeat of some kind, unless nothing else comes
        for event in events(_remember(chunks, beginning := bytearray())):
            if event.data.strip() == "[DONE]":
                return
            if event.name == "error":
                raise self._failed(event.data)
            found = _parsed(event.data)
            if found is None:
                if event.data.lstrip()[:1] in ("{", "["):
                    raise failure(GARBLED, f"not a JSON object in an event of {len(event.data)} characters")
                odd = odd or event.data
                continue
            self._refuse_error(found)
            yield self._take(found)
        if self._finish or self._refusal or (self._has_text and self._is_bounded):
            return
        self._end_without_a_word(bytes(beginning), odd)

    def _end_without_a_word(self, beginning: bytes, odd: str) -> None:
        if self._has_text or self._is_known:
            sentence = BROKE_OFF if self._has_text else BROKE_OFF_EARLY
            raise failure(sentence, "the stream ended without [DONE] and without finish_reason")
        if odd:
            raise failure(GARBLED, f"not a JSON object in an event of {len(odd)} characters")
        line = beginning.splitlines()[0] if beginning else b""
        if line and not FIELD.match(line):
            raise self._foreign(_text(beginning))
        raise failure(BROKE_OFF_EARLY, "an empty answer")

    def _refuse_error(self, event: dict[str, Any]) -> None:
        if event.get("error") or event.get("object") == "error":
            raise self._failed(json.dumps(event))

    def _failed(self, data: str) -> ProviderError:
        sentence = FAILED if self._has_text else FAILED_EARLY
        return failure(sentence.format(words=words_of(data, self._hide)), "an error within the answer")

    def _foreign(self, body: str) -> ProviderError:
        detail = f"{self._kind}: {self._hide(body)[:LONGEST_WORDS]!r}"
        words = page_title(body, self._hide)
        return failure(FOREIGN.format(kind=self._kind, status=self._status, words=words), detail)

    def _take(self, event: dict[str, Any]) -> str:
        """The text of the first choice; notes what else it says."""
        choices = event.get("choices")
        if not isinstance(choices, list):
            return ""
        self._is_known = True
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        said = choice.get("delta") or choice.get("message") or {}
        said = said if isinstance(said, dict) else {}
        text = content_text(said.get("content"))
        self._refusal = (self._refusal + content_text(said.get("refusal")))[: 2 * LONGEST_WORDS]
        if text or any(said.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details", "refusal")):
            self._progress()
        if isinstance(finish := choice.get("finish_reason"), str) and finish:
            self._finish = finish
            self._finished()
        return text


def events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The server-sent events. Lines end at LF, CR LF or CR and nowhere else: JSON may hold U+2028.

    Comments and events without data are passed over. Raises ProviderError for one without an end.
    """
    name, data, size = "", list[bytes](), 0
    for line in _lines(chunks):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if any(data):
                yield Event(name, _text(b"\n".join(data)))
            name, data, size = "", [], 0
        elif field == b"data":
            data.append(value)
            size += len(line)
            if size > LONGEST_EVENT:
                raise failure(GARBLED, "an event without an end")
        elif field == b"event":
            name = _text(value).strip()
    if any(data):  # some servers forget the empty line behind their last event
        yield Event(name, _text(b"\n".join(data)))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    open_line, size, after_cr = list[bytes](), 0, False  # looked through once, however small its pieces are
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


def _remember(chunks: Iterable[bytes], beginning: bytearray) -> Iterator[bytes]:
    """The same chunks; their first bytes are kept, to say what it was that came."""
    for chunk in chunks:
        beginning += chunk[: LONGEST_WORDS - len(beginning)] if len(beginning) < LONGEST_WORDS else b""
        yield chunk


def answer_text(pieces: Iterable[str]) -> Iterator[str]:
    """The same text without the reasoning before it, and with characters whole that came in halves."""
    return _without_thinking(_whole_characters(pieces))


def _whole_characters(pieces: Iterable[str]) -> Iterator[str]:
    """Halves that JSON escaped one by one meet again; what stays a half is no character."""
    half = ""
    for piece in pieces:
        text, half = half + piece, ""
        if text and ord(text[-1]) in HIGH:
            text, half = text[:-1], text[-1]
        if text:
            yield _joined(text)
    if half:
        yield _joined(half)


def _joined(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _without_thinking(pieces: Iterable[str]) -> Iterator[str]:
    held, mark = "", ""  # what may be the beginning of a mark; the mark that ends the reasoning
    is_text = False
    for piece in pieces:
        if is_text:
            yield piece
            continue
        held += piece
        if not mark and (found := THINKING.match(held)):
            mark, held = f"</{found[1].lower()}>", held[found.end() :]
        if mark:
            at = held.lower().find(mark)
            if at < 0:
                held = held[-len(mark) :]
                continue
            held, mark = held[at + len(mark) :].lstrip(), ""
        elif len(held) < LONGEST_MARK and _may_begin_thinking(held):
            continue
        if held:
            is_text = True
            yield held
            held = ""
    if held and not mark:
        yield held


def _may_begin_thinking(text: str) -> bool:
    text = text.lstrip().lower()
    marks = ("<think>", "<thinking>", "<thought>", "<reasoning>")
    return not text or any(mark.startswith(text) for mark in marks)


def content_text(content: object) -> str:
    """The text of a content: a string, or a list of parts, of which some are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")]
    return "".join(text for part in parts if isinstance(text := part.get("text"), str))


def _parsed(data: str) -> dict[str, Any] | None:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def failure(sentence: str, detail: str) -> ProviderError:
    """The sentence for the person; the log says more."""
    log.warning("%s [%s]", sentence, detail)
    return ProviderError(sentence)


def words_of(body: str, hide: Hide) -> str:
    """What a server says in an error, in OpenAI's form or that of others: one line, not long, to end a clause with."""
    found: object = _parsed(body)
    if found is None:
        found = "" if body.lstrip()[:1] in ("{", "[", "<", "") else body
    for name in ("error", "message", "detail", "msg"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return quoted(found, hide) if isinstance(found, str) else ""


def page_title(body: str, hide: Hide) -> str:
    """What a page calls itself, to end a clause with."""
    found = re.search(r"<title[^>]*>([^<]+)", body, re.I)
    return quoted(found[1], hide) if found else ""


def quoted(text: str, hide: Hide) -> str:
    """Somebody else's words, in one line."""
    words = hide(" ".join(_joined(text).split()))
    if len(words) > LONGEST_WORDS:
        words = words[: LONGEST_WORDS - 1] + "…"
    return f": “{words}”" if words else ""
