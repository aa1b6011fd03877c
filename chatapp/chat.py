"""Rules and permissions of conversations, for every transport.

ChatError            every expected refusal: a code for programs, a sentence for people
├─ BadMessage        empty, too-long, bad-id
├─ Conflict          the same client id with another text, an id that is taken
└─ Gone              no such conversation for this person: deleted, foreign or never there
"""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import UUID, uuid4

from chatapp.store import ChangedMessage, Changes, ConversationRef, Entry, EntryPlace, Posted, Store
from chatapp.store.database import Write, WriteJob
from chatapp.visible import is_blank

LONGEST_MESSAGE = 20_000  # characters: some ten pages
LONGEST_TITLE = 80  # characters: one line of the list
LIVE = ("queued", "running")
CANONICAL = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # nearly every id: faster than UUID()


class ChatError(Exception):
    """An expected refusal."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadMessage(ChatError):
    """The message can never be accepted as it is."""


class Conflict(ChatError):
    """The request contradicts stored data."""


class Gone(ChatError):
    """Deleted, foreign or never there: indistinguishable, so that nobody can probe for ids."""

    def __init__(self) -> None:
        super().__init__("gone", "This conversation does not exist, or it was deleted.")


class Chat:
    """Operations on conversations. Each takes the acting person's id, and checks their membership."""

    def __init__(self, store: Store, assistant_answers: bool) -> None:
        self._store = store
        self._conversations = store.conversations
        self._assistant_answers = assistant_answers

    # Reading

    def place(self, person: int, conversation: str) -> ConversationRef:
        """Return the conversation as this person sees it. Raises Gone."""
        place = self._conversations.place(person, conversation)
        if place is None:
            raise Gone
        return place

    def changes(self, place: ConversationRef, cursor: int) -> Changes[ChangedMessage]:
        """Return the changes of a conversation after a cursor."""
        return self._conversations.changes(place, cursor)

    def older(self, place: ConversationRef, before: int) -> Changes[ChangedMessage]:
        """Return the page of messages before a position."""
        return self._conversations.older(place, before)

    def entries(self, person: int, cursor: int) -> Changes[Entry]:
        """Return the changes of the person's list of conversations after a cursor."""
        return self._conversations.entries(person, cursor)

    def older_entries(self, person: int, before: EntryPlace) -> tuple[tuple[Entry, ...], bool]:
        """Return the next page of the list after `before`, and True if there are more."""
        return self._conversations.older_entries(person, before)

    # Changing

    def create(self, person: int, conversation: str) -> ConversationRef:
        """Create a conversation with the client's id, or return it if it is theirs already. Raises BadMessage, Gone."""
        uuid = checked_id(conversation)
        with self._store.database.write() as tx:
            return self._create(tx, person, uuid)

    def get_or_create_empty(self, person: int) -> ConversationRef:
        """Return the person's empty conversation, or create one."""
        with self._store.database.write() as tx:
            return self._conversations.empty(tx, person) or self._create(tx, person, str(uuid4()))

    def post(self, person: int, conversation: str, client_id: str, body: str, create: bool = False) -> Posted:
        """Append a message. Idempotent: the same client id again returns the stored message.

        Raises BadMessage, Conflict (the id is known with another text) and Gone.
        """
        return self._store.database.group_commit(self._post_job(person, conversation, client_id, body, create))

    def post_soon(
        self, person: int, conversation: str, client_id: str, body: str, done: Callable[[WriteJob[Posted]], None]
    ) -> None:
        """Post without waiting for the commit: `done` gets the finished job. Raises BadMessage."""
        self._store.database.enqueue(self._post_job(person, conversation, client_id, body), done)

    def _post_job(
        self, person: int, conversation: str, client_id: str, body: str, create: bool = False
    ) -> Callable[[Write], Posted]:
        uuid, client_id, body = checked_id(conversation), checked_id(client_id), checked_body(body)

        def append(tx: Write) -> Posted:
            found = self._conversations.posted(tx, person, uuid, client_id)
            if found is None and not create:
                raise Gone
            place, known = found or (self._create(tx, person, uuid), None)
            if known is None:
                return self._append(tx, place, client_id, body)
            if known.body != body:
                raise Conflict("conflict", "This message was already sent with another text.")
            return known

        return append

    def rename(self, person: int, conversation: str, title: str) -> None:
        """Set the title of the conversation. Raises BadMessage, Gone."""
        title = " ".join(title.split())[:LONGEST_TITLE]
        if is_blank(title):
            raise BadMessage("empty", "A title needs at least one character that can be seen.")
        with self._store.database.write() as tx:
            self._conversations.set_title(tx, self._find(tx, person, conversation), title)

    def delete(self, person: int, conversation: str) -> None:
        """Delete the conversation and stop its answers. Raises Gone."""
        with self._store.database.write() as tx:
            place = self._find(tx, person, conversation)
            self._store.runs.stop_all(tx, place)
            self._conversations.delete(tx, place)

    def delete_message(self, person: int, conversation: str, message: str) -> None:
        """Turn the person's own message into a tombstone. Raises Gone."""
        with self._store.database.write() as tx:
            place = self._find(tx, person, conversation)
            if not self._conversations.delete_message(tx, place, message):
                raise Gone

    def stop(self, person: int, conversation: str, answer: str = "") -> None:
        """Stop an answer: `answer` (its client id), else the running one, else the queued one. Its text stays. Raises
        BadMessage, Gone."""
        answer = checked_id(answer) if answer else ""
        with self._store.database.write() as tx:
            self._store.runs.stop(tx, self._find(tx, person, conversation), answer)

    def again(self, person: int, conversation: str) -> None:
        """Queue another answer, unless one is live or the last one is complete. Raises Gone."""
        with self._store.database.write() as tx:
            place = self._find(tx, person, conversation)
            last = self._conversations.last_message(tx, place)
            if self._assistant_answers and last is not None and last[1] not in (*LIVE, "completed"):
                self._store.runs.queue(tx, place)

    def _create(self, tx: Write, person: int, uuid: str) -> ConversationRef:
        place = self._conversations.find(tx, person, uuid)
        if place is not None:
            return place
        if self._conversations.is_taken(tx, uuid):
            raise Gone
        return self._conversations.add(tx, person, uuid)

    def _find(self, tx: Write, person: int, uuid: str) -> ConversationRef:
        place = self._conversations.find(tx, person, uuid)
        if place is None:
            raise Gone
        return place

    def _append(self, tx: Write, place: ConversationRef, client_id: str, body: str) -> Posted:
        posted = self._conversations.post(tx, place, client_id, body)
        if not place.title:
            self._conversations.set_title(tx, place, title_of(body))
        if self._assistant_answers:
            self._store.runs.queue(tx, place)
        return posted


def checked_id(text: str) -> str:
    """Return a UUID in its canonical form. Raises BadMessage."""
    if isinstance(text, str) and CANONICAL.fullmatch(text):
        return text
    try:
        return str(UUID(text))
    except (ValueError, AttributeError, TypeError):
        raise BadMessage("bad-id", "An id must be a UUID.") from None


def checked_body(text: object) -> str:
    """Return a message's text with normalised line ends. Raises BadMessage."""
    if not isinstance(text, str):
        raise BadMessage("bad-body", "A message must be text.")
    body = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").strip()
    if is_blank(body):
        raise BadMessage("empty", "Write something first: nothing of the message can be seen.")
    if len(body) > LONGEST_MESSAGE:
        raise BadMessage("too-long", f"The message is longer than {LONGEST_MESSAGE:,} characters. Send it in parts.")
    try:
        body.encode()
    except UnicodeEncodeError:
        raise BadMessage("bad-body", "The message holds half a character (a lone surrogate).") from None
    return body


def title_of(body: str) -> str:
    """Return the title for a first message: its first visible line, cut at a word."""
    first = next(line for line in body.splitlines() if not is_blank(line))
    line = re.sub(r"\s+", " ", first).strip()
    if len(line) <= LONGEST_TITLE:
        return line
    return line[: LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;:.") + "…"
