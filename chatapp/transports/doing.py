"""What a client's frames on a WebSocket make happen, and what is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chatapp.chat import Chat, ChatError
from chatapp.store import Posted, StorageUnavailable
from chatapp.store.database import WriteJob
from chatapp.store.histories import Histories
from chatapp.store.unavailable import RETRY_S
from chatapp.transports import protocol
from chatapp.transports.subscriptions import MOST_FEEDS, Subscriber, TooManyFeeds

if TYPE_CHECKING:
    from chatapp.parts import Parts


def post(chat: Chat, subscriber: Subscriber, frame: protocol.Send, done: Callable[[WriteJob[Posted]], None]) -> None:
    """Have a message posted, without waiting: `done` gets the outcome. It gets it at once where that is clear."""
    try:
        chat.post_soon(subscriber.person, frame.conversation, frame.client_id, frame.body, done)
    except ChatError as error:
        done(WriteJob.failed(error))


def outcome(frame: protocol.Send, job: WriteJob[Posted]) -> str | None:
    """The answer to a message; None where the server made a mistake."""
    if isinstance(job.error, ChatError):
        return protocol.refused(frame.client_id, job.error.code, job.error.message)
    if isinstance(job.error, StorageUnavailable):
        words = "The server cannot store messages just now; send it again in a moment."
        return protocol.refused(frame.client_id, "storage", words, RETRY_S)
    return None if job.error else protocol.ack(job.outcome())


def follow(parts: Parts, subscriber: Subscriber, frame: protocol.Subscribe | protocol.Unsubscribe) -> None:
    """Begin or end to follow feeds; the news, or the reason why there are none, are written later."""
    match frame:
        case protocol.Unsubscribe(names):
            for name in names:
                subscriber.unsubscribe(name)
        case protocol.Subscribe(epoch, feeds, mark):
            reload = stale(parts.store.histories, epoch, parts.epoch, mark)
            for name, cursor in feeds.items():
                if reload is None:
                    _subscribe(subscriber, name, cursor)
                else:
                    subscriber.reply(reload(name))


def stale(histories: Histories | None, epoch: str, own: str, mark: str) -> Callable[[str], str] | None:
    """What to say of a feed whose cursor is of another database, or of a future that this one lost; None: nothing."""
    if epoch != own:
        return lambda name: protocol.reload(name, "epoch", own, (histories.mark(0) if histories else "") or None)
    if histories is not None and not histories.holds(mark):
        return lambda name: protocol.reload(name, "history", None, histories.mark(0))
    return None


def _subscribe(subscriber: Subscriber, name: str, cursor: int) -> None:
    try:
        subscriber.subscribe(name, cursor)
    except ChatError:
        subscriber.reply(protocol.gone(name))
    except TooManyFeeds:
        words = f"One connection follows at most {MOST_FEEDS} feeds; unsubscribe from one first."
        subscriber.reply(protocol.error("too-many-feeds", words))
