"""Rules and permissions of conversations, for every transport.

ChatError            every expected refusal: a code for programs, a sentence for people
├─ BadMessage        empty, too-long, bad-id
├─ Conflict          the same client id with another text, an id that is taken
├─ Forbidden         only the owner may; nobody has this address; too many people
└─ Gone              no such conversation for this person: deleted, foreign or never there
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

from chatapp.store import Actor, ChangedMessage, Changes, ConversationRef, Entry, EntryPlace, Member, Posted, Store
from chatapp.store.attachments import File, reference
from chatapp.store.audit import record
from chatapp.store.database import Write, WriteJob
from chatapp.store.members import ADDRESSED
from chatapp.visible import is_blank

LONGEST_MESSAGE = 20_000  # characters: some ten pages
FILE_ENDINGS = (".txt", ".md", ".csv", ".json", ".log", ".yaml", ".yml", ".tf")
LONGEST_FILE = 200_000  # bytes
MOST_ATTACHED = 20 << 20  # bytes of all files of a person
LONGEST_INSTRUCTIONS = 4_000  # characters, beside the operator's
LONGEST_TITLE = 80  # characters: one line of the list
MOST_MEMBERS = 50  # of a conversation: each change is written into the list of each
LIVE = ("queued", "running")
BROKEN = ("stopped", "interrupted", "failed")  # states of an answer that has no end
ANSWERS = ("always", "addressed")
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


class Forbidden(ChatError):
    """This person may not do it, or not with this person."""


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

    def older_entries(self, person: int, before: EntryPlace) -> tuple[Entry, ...]:
        """Return the page of the list after `before`."""
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
            return _unchanged(known, body)

        return append

    def rename(self, person: int, conversation: str, title: str) -> None:
        """Set the title of the conversation. Raises BadMessage, Gone."""
        title = " ".join(title.split())[:LONGEST_TITLE]
        if is_blank(title):
            raise BadMessage("empty", "A title needs at least one character that can be seen.")
        with self._store.database.write() as tx:
            self._conversations.set_title(tx, self._find(tx, person, conversation), title)

    def delete(self, actor: Actor, conversation: str) -> None:
        """Delete the conversation for everybody, and stop its answers. Raises Gone, Forbidden."""
        with self._store.database.write() as tx:
            place = self._find_owned(tx, actor.person, conversation)
            if len(self._store.members.list_in(tx, place.conversation)) > 1:
                record(tx, "conversation-deleted", actor, detail=place.uuid)
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

    def again(self, person: int, conversation: str, goes_on: bool = False) -> None:
        """Queue another answer, unless one is live; `goes_on`: the rest of one without an end. Raises Gone."""
        with self._store.database.write() as tx:
            place = self._find(tx, person, conversation)
            last = self._conversations.last_message(tx, place)
            if self._assistant_answers and last is not None and last[1] not in LIVE:
                self._store.runs.queue(tx, place, goes_on and last[1] in BROKEN)

    def last_own(self, place: ConversationRef) -> tuple[int, str]:
        """Return position and text of the person's last message. Raises Forbidden (somebody else wrote after it)."""
        with self._store.database.read() as connection:
            return _editable(self._conversations.last_own(connection, place))

    def edit_last(self, person: int, conversation: str, client_id: str, body: str, position: int) -> Posted:
        """Send the person's last message again with another text; the old one and its answers are folded, and kept.

        Idempotent by the client id. `position`: of the message that was edited. Raises Gone, BadMessage, Conflict
        (another one is the last by now), Forbidden (somebody else wrote after it)."""
        client_id, body = checked_id(client_id), checked_body(body)
        with self._store.database.write() as tx:
            found = self._conversations.posted(tx, person, conversation, client_id)
            if found is None:
                raise Gone
            place, known = found
            if known is not None:
                return _unchanged(known, body)
            last, before = _editable(self._conversations.last_own(tx.connection, place))
            if last != position:
                raise Conflict("not-last", "There is a newer message of yours by now. Reload, and edit that one.")
            if place.title == title_of(before):
                self._conversations.set_title(tx, place, title_of(body))
            self._store.runs.stop_all(tx, place)
            posted = self._append(tx, place, client_id, body)
            self._conversations.fold(tx, place, position, posted.position, posted.id)
            return posted

    def attach(self, person: int, conversation: str, client_id: str, body: str, name: str, data: bytes) -> Posted:
        """Send a message with a text file; the conversation is created if it is not there. Idempotent by the client id.

        Raises Gone, BadMessage (no text, too long, another kind of file), Forbidden (no room left)."""
        uuid, client_id, file = checked_id(conversation), checked_id(client_id), checked_file(name, data)
        attachment = str(uuid4())
        text = checked_body(f"{body.strip()}\n\n{reference(file.name, len(data), attachment)}".strip())
        with self._store.database.write() as tx:
            found = self._conversations.posted(tx, person, uuid, client_id)
            place, known = found or (self._create(tx, person, uuid), None)
            if known is not None:
                return known
            if self._store.attachments.used(tx, person) + len(data) > MOST_ATTACHED:
                raise Forbidden(
                    "no-room", f"Your files have {MOST_ATTACHED >> 20} MB already. Delete messages with files."
                )
            posted = self._append(tx, place, client_id, text)
            self._store.attachments.add(tx, person, posted.id, attachment, file)
            return posted

    # People

    def members(self, place: ConversationRef) -> tuple[Member, ...]:
        """Return the people of a conversation, the owner first."""
        return self._store.members.list(place.conversation)

    def share(self, actor: Actor, conversation: str, email: str) -> None:
        """Add the person with this address, who then reads all of it. Adding a member again changes nothing. Raises
        Gone, Forbidden."""
        with self._store.database.write() as tx:
            place = self._find_owned(tx, actor.person, conversation)
            person = self._store.directory.find_in_by_email(tx, email.strip())
            if person is None or person.disabled_at is not None:
                raise Forbidden("nobody", "Nobody here has this address.")
            members = self._store.members.list_in(tx, place.conversation)
            if person.id in [member.id for member in members]:
                return
            if len(members) >= MOST_MEMBERS:
                raise Forbidden("full", f"A conversation has at most {MOST_MEMBERS} people.")
            self._store.members.add(tx, place, person.id)
            record(tx, "shared", actor, person.id, detail=place.uuid)

    def remove(self, actor: Actor, conversation: str, member: str) -> None:
        """End the membership of another person. Raises Gone, Forbidden."""
        with self._store.database.write() as tx:
            place = self._find_owned(tx, actor.person, conversation)
            for each in self._store.members.list_in(tx, place.conversation):
                if each.uuid == member and each.id != actor.person:
                    self._store.members.remove(tx, place, each.id)
                    record(tx, "removed", actor, each.id, detail=place.uuid)

    def leave(self, actor: Actor, conversation: str) -> None:
        """End the own membership; of an owner's conversation the member who joined first becomes the owner. Raises
        Gone, Forbidden (nobody else is there)."""
        with self._store.database.write() as tx:
            place = self._find(tx, actor.person, conversation)
            others = [each for each in self._store.members.list_in(tx, place.conversation) if each.id != place.person]
            if not others:
                raise Forbidden("alone", "Nobody else is in this conversation. Delete it instead.")
            if place.role == "owner":
                self._store.members.hand_over(tx, place, actor)
            self._store.members.remove(tx, place, place.person)
            record(tx, "left", actor, place.person, detail=place.uuid)

    def set_answers(self, actor: Actor, conversation: str, answers: str) -> None:
        """Say when the assistant answers: `always`, or `addressed`: where @assistant is in the message. Raises Gone,
        Forbidden, BadMessage."""
        if answers not in ANSWERS:
            raise BadMessage("bad-answers", "Choose when the assistant answers: always, addressed.")
        with self._store.database.write() as tx:
            place = self._find_owned(tx, actor.person, conversation)
            self._store.members.set_answers(tx, place, answers)
            record(tx, "answers", actor, detail=f"{answers} {place.uuid}")

    def wishes(self, place: ConversationRef) -> tuple[str, str]:
        """Return the conversation's model ("": the operator's) and its instructions."""
        return self._store.members.wishes(place.conversation)

    def set_wishes(self, actor: Actor, conversation: str, model: str, instructions: str, models: Sequence[str]) -> None:
        """Set the model, one of `models` or "" for the operator's, and the instructions. Raises Gone, Forbidden,
        BadMessage."""
        instructions = instructions.replace("\r", "").replace("\0", "").strip()
        if model and model not in models:
            raise BadMessage("bad-model", "There is no such model any more. Choose another one.")
        if len(instructions) > LONGEST_INSTRUCTIONS:
            raise BadMessage("too-long", f"Instructions have at most {LONGEST_INSTRUCTIONS:,} characters.")
        with self._store.database.write() as tx:
            place = self._find_owned(tx, actor.person, conversation)
            self._store.members.set_wishes(tx, place, model, instructions)
            record(tx, "wishes", actor, detail=place.uuid)

    def _create(self, tx: Write, person: int, uuid: str) -> ConversationRef:
        place = self._conversations.find(tx, person, uuid)
        if place is not None:
            return place
        if self._conversations.is_taken(tx, uuid):
            raise Gone
        return self._conversations.add(tx, person, uuid)

    def _find(self, tx: Write, person: int | None, uuid: str) -> ConversationRef:
        place = self._conversations.find(tx, person or 0, uuid)
        if place is None:
            raise Gone
        return place

    def _find_owned(self, tx: Write, person: int | None, uuid: str) -> ConversationRef:
        place = self._find(tx, person, uuid)
        if place.role != "owner":
            raise Forbidden("not-owner", "Only the owner of this conversation can do that.")
        return place

    def _append(self, tx: Write, place: ConversationRef, client_id: str, body: str) -> Posted:
        posted = self._conversations.post(tx, place, client_id, body)
        if not place.title:
            self._conversations.set_title(tx, place, title_of(body))
        if self._assistant_answers and (place.answers == "always" or ADDRESSED.search(body)):
            self._store.runs.queue(tx, place)
        return posted


def checked_file(name: str, data: bytes) -> File:
    """Return a file to be kept. Raises BadMessage."""
    name = " ".join(re.sub(r"[\[\],/\\\x00-\x1f]", " ", name.rpartition("/")[2].rpartition("\\")[2]).split())[-100:]
    if not name.lower().endswith(FILE_ENDINGS):
        raise BadMessage("bad-file", f"Only text files can be attached: {', '.join(FILE_ENDINGS)}.")
    if len(data) > LONGEST_FILE:
        raise BadMessage("too-long", f"A file has at most {LONGEST_FILE // 1000} kB. Attach a part of it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadMessage("bad-file", "This file is no UTF-8 text. Save it as UTF-8, then attach it.") from None
    if "\0" in text or is_blank(text):
        raise BadMessage("bad-file", "This file has no text in it.")
    return File(name, text)


def _editable(found: tuple[int, str] | None) -> tuple[int, str]:
    if found is None:
        raise Forbidden("not-last", "Only your last message can be edited, while nobody else has written after it.")
    return found


def _unchanged(known: Posted, body: str) -> Posted:
    if known.body != body:
        raise Conflict("conflict", "This message was already sent with another text.")
    return known


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
