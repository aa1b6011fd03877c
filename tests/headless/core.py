"""A page of the shipped core, driven from Python: what happened goes in with the time, what is to be done comes out."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import quickjs

from chatapp.connection_states import table_json
from chatapp.staticfiles import joined, minified
from headless.elements import parsed

ROOT = Path(__file__).resolve().parents[2]
CALL = "globalThis.call = (name, given) => JSON.stringify(driver[name](...JSON.parse(given)) ?? null)"
SILENT = "globalThis.console = { error() {}, warn() {} }"

Order = list[Any]  # its name, then what it needs: see tests/headless/page.js


def script(entry: str, changes: tuple[tuple[str, str, str], ...] = ()) -> str:
    """Everything that a module of this repository needs, minified as it is served; its exports are the constant
    `driver`. `changes`: of a module's text (its name, before, after), each of which must be possible."""

    def read(name: str) -> str:
        text = (ROOT / name).read_text()
        for _, before, after in (change for change in changes if change[0] == name):
            assert text.count(before) == 1, f"{name} has {before!r} {text.count(before)} times"
            text = text.replace(before, after)
        return text

    text = joined(entry, read)
    last = re.findall(r"^const (module_\d+) =", text, re.M)[-1]
    return minified(f"{text}\nglobalThis.driver = {last}\n")


class Script:
    """A module of this repository in a context of its own; its exports are called with plain data."""

    def __init__(self, entry: str, changes: tuple[tuple[str, str, str], ...] = ()) -> None:
        self._context = quickjs.Context()
        self._context.add_callable("parsed", parsed)
        self._context.eval(SILENT)
        self._context.eval(script(entry, changes))
        self._context.eval(CALL)
        self._call = self._context.get("call")

    def call(self, name: str, *given: Any) -> Any:
        """A function's outcome; what it left for later (promises) is done, too."""
        outcome = self._call(name, json.dumps(given))
        while self._context.execute_pending_job():
            pass
        return json.loads(outcome)


# What chat-config says where nothing is set, as far as the core needs it without a server.
CONFIG: dict[str, Any] = {
    "transports": ["websocket", "polling"],
    "reconnect_ms": 5000,
    "max_attempts": 10,
    "poll_ms": 3000,
    "poll_retries": 3,
    "poll_backoff": 1.5,
    "poll_hold_ms": 25_000,
    "ws_max_message": 512,
    "heartbeat_ms": 30_000,
    "predict": ["echo", "send", "buffered", "slow", "idle-kill", "network"],
    "network": "here",
    "changes_url": "/changes",
    "create_url": "/c",
    "messages_url": "/c/{id}/messages",
    "mark_url": "/mark",
}


@cache
def pages(changes: tuple[tuple[str, str, str], ...] = ()) -> Script:
    """The driver of headless pages: one context for all of a process."""
    return Script("tests/headless/page.js", changes)


@dataclass
class Message:
    """One message as a reader sees it: a person's has a `body`, an answer has `blocks` of HTML source."""

    id: str
    client_id: str
    position: int
    revision: int
    author: str
    state: str
    deleted: bool
    body: str
    blocks: dict[int, str]

    @classmethod
    def of(cls, row: dict[str, Any]) -> Message:
        """From a row of `Page.rows`."""
        return cls(**{**row, "blocks": {int(index): source for index, source in row["blocks"].items()}})

    @property
    def text(self) -> str:
        """What it says, without markup."""
        if self.author == "user":
            return self.body
        return "\n".join(html.unescape(re.sub(r"<[^>]*>", "", self.blocks[index])) for index in sorted(self.blocks))

    @property
    def is_live(self) -> bool:
        """Whether more is to come."""
        return self.state in ("queued", "running")


class Page:
    """One life of a page. `config` is what chat-config says; `page` epoch, mark and person of what it shows. Times are
    milliseconds: `now` of a clock that nobody sets, `wall` of the machine's."""

    def __init__(
        self,
        config: dict[str, Any],
        page: dict[str, str],
        seed: int,
        now: float,
        driver: Script | None = None,
        **more: Any,
    ) -> None:
        self._driver = driver or pages()
        self.orders: list[Order] = []
        self.due: float | None = None
        self._is_over = False
        given = {"config": config, "table": json.loads(table_json()), "seed": seed, "page": page, "notes": {}}
        given |= {"now": now, "wall": now} | more
        self._number = self._driver.call("open", given)

    def happen(self, now: float, what: str, *given: Any, wall: float | None = None) -> None:
        """Let something happen: start, follow, unfollow, send, hint, opened, frame, closed, answered, done, late,
        tick; `given` as headless/page.js takes it."""
        self._driver.call("happen", self._number, now, now if wall is None else wall, what, *given)
        taken = self._driver.call("taken", self._number)
        self.orders += taken["orders"]
        self.due = taken["due"]

    def take(self) -> list[Order]:
        """The orders to do, in order."""
        orders, self.orders = self.orders, []
        return orders

    def seen(self) -> dict[str, Any]:
        """record, cursors (feed → cursor), waiting (messages), acks and refusals (by client id), notes (for the next
        page)."""
        found: dict[str, Any] = self._driver.call("seen", self._number)
        return found

    def rows(self, feed: str) -> list[dict[str, Any]]:
        """What is shown of a feed: messages by position, entries of the list, answers to come at position 0."""
        found: list[dict[str, Any]] = self._driver.call("rows", self._number, feed)
        return sorted(found, key=lambda row: row.get("position", 0))

    def close(self) -> None:
        """Forget it."""
        if not self._is_over:
            self._is_over = True
            self._driver.call("close", self._number)
