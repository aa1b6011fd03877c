"""Ten deliberate bugs, each in a copy of the module that would have it: five of the server's, five of the shipped
core's. The real modules stay as they are."""

import importlib.util
import re
import sys
from types import ModuleType

from simulation.schedule import Plant
from simulation.server import Traits


def copy_with(bug: str, module: str, changes: dict[str, str]) -> ModuleType:
    """A copy of a module under another name, with some of its text changed. Each change must be possible."""
    name = f"planted.{bug}.{module}"
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    for before, after in changes.items():
        assert source.count(before) == 1, f"{module} has {before!r} {source.count(before)} times"
        source = source.replace(before, after)
    copy = ModuleType(name)
    sys.modules[name] = copy  # dataclasses look their module up
    exec(compile(source, f"<{name}>", "exec"), copy.__dict__)
    return copy


def acknowledges_before_the_commit() -> Plant:
    """The server gathers commits for 400 ms, and says yes at once."""
    return Plant("acknowledged before the commit", traits=Traits(commit_lag_ms=400))


def counts_one_too_far() -> Plant:
    """`changes` begins one revision after the one it should begin with."""
    change = {'Message.revision > bindparam("cursor"))': 'Message.revision > bindparam("cursor") + 1)'}
    copy = copy_with("cursor", "chatapp.store.conversations", change)
    return Plant("cursor off by one", traits=Traits(conversations=copy.Conversations))


def forgets_what_was_begun_before_a_cut() -> Plant:
    """A part of the changes ends within an answer, and only later parts bring the answer: as a patch."""
    change = {"found + going_on": "found"}
    copy = copy_with("cut", "chatapp.store.conversations", change)
    return Plant("answer lost at a cut", traits=Traits(conversations=copy.Conversations))


def forgets_what_was_known_before_a_cut() -> Plant:
    """The same for answers that the reader has a part of: what came of them within the part is missing."""
    change = {"if answer.revision > end)": "if answer.revision > end and answer.position > cursor)"}
    copy = copy_with("torn", "chatapp.store.conversations", change)
    return Plant("answer torn at a cut", traits=Traits(conversations=copy.Conversations))


def knows_no_repetition() -> Plant:
    """The store takes a repeated message for a new one, and no constraint says otherwise."""
    change = {"if row.position is None:": "if True:"}
    copy = copy_with("dedup", "chatapp.store.conversations", change)
    unique = re.compile(r",\s*CONSTRAINT messages_client UNIQUE \([^)]*\)")

    def schema(statements: str) -> str:
        changed, count = unique.subn("", statements)
        assert count == 1
        return changed

    return Plant("no dedup", traits=Traits(conversations=copy.Conversations, schema=schema))


FEEDS = "static/js/connection/feeds.js"
OUTBOX = "static/js/connection/outbox.js"


def applies_what_is_late() -> Plant:
    """The client applies every frame, however old."""
    planted = (
        (FEEDS, "if (cursor === undefined || to <= cursor)", "if (cursor === undefined)"),
        (FEEDS, 'number(element, "from") > cursor', "false"),
        (FEEDS, "if (known && known.revision >= item.revision) return undefined", ""),
        (FEEDS, "if (!item || item.revision >= revision)", "if (!item)"),
    )
    return Plant("late frame applied", changes=planted)


def appends_anywhere() -> Plant:
    """A patch is applied to a block that is shorter than it takes for granted."""
    return Plant("patch out of place", changes=((FEEDS, "if (offset > old.length) return null", ""),))


def forgets_what_is_in_flight() -> Plant:
    """What went by a socket that is given up is not sent again."""
    before = "this.#websocket.close()\n      this.#repost()"
    change = ("static/js/connection/connection.js", before, "this.#websocket.close()")
    return Plant("flight forgotten", changes=(change,))


def renames_at_each_try() -> Plant:
    """A message that is repeated goes by another name each time: the server cannot know it."""
    name = "client_id: `${entry.id.slice(0, -2)}${Math.floor(90 * this.#world.random()) + 10}`,"
    return Plant("another name", changes=(("static/js/connection/posts.js", "client_id: entry.id,", name),))


def drops_the_outbox() -> Plant:
    """A page that is reloaded does not look for what was not sent yet."""
    change = (OUTBOX, 'this.#takeUp(await this.#storage.rows("outbox"))', "this.#takeUp([])")
    return Plant("outbox dropped at reload", changes=(change,))


BUGS = {
    "acknowledge before commit": acknowledges_before_the_commit,
    "cursor off by one": counts_one_too_far,
    "answer lost at a cut": forgets_what_was_begun_before_a_cut,
    "answer torn at a cut": forgets_what_was_known_before_a_cut,
    "no dedup": knows_no_repetition,
    "late frame applied": applies_what_is_late,
    "patch out of place": appends_anywhere,
    "flight forgotten": forgets_what_is_in_flight,
    "another name": renames_at_each_try,
    "outbox dropped at reload": drops_the_outbox,
}
