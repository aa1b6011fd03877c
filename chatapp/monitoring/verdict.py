"""The sentence on top of `/monitor`: the share of connected people, the culprit, the cause and the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from flask_babel import gettext as _
from flask_babel import ngettext

from chatapp.monitoring.causes import Cause, cause_of, remedy
from chatapp.monitoring.present import Present, polling
from chatapp.monitoring.timeline import Page

Level = Literal["ok", "degraded", "down", "unknown"]

DEGRADED_SHARE = 0.25  # of the people poll, or are not connected
DOWN_SHARE = 0.5  # are not connected
LEAST_DOWN = 3  # people: one laptop that sleeps is no outage
MILD = ("disk", "provider", "slow-disk")  # troubles of the server that do not explain why people are not live
NAMED_SHARE = 0.7  # of the affected have the culprit in common
SHAKY_DROPS, SHAKY_MS = 3, 600_000  # so many drops in this time are no accident
CERTAIN = {"socket-closed": ("idle-cut",), "socket-silent": ("idle-cut",)}  # a reason, and what explains it better
FRESH_MS = 120_000  # in which a young server is not judged


@dataclass(frozen=True)
class Verdict:
    """`tone`: a state, for the colour. `since`: ms, 0 for no time. `culprit`: field and value, for the events."""

    level: Level
    cause: str
    title: str
    detail: str
    to_do: str = ""
    tone: str = "connected"
    since: int = 0
    culprit: tuple[str, str] | None = None

    @property
    def lead(self) -> str:
        """The title's first sentence."""
        return self.title.split(". ")[0].rstrip(".") + "."

    @property
    def rest(self) -> str:
        """The title's other sentences."""
        return self.title.partition(". ")[2]


@dataclass(frozen=True)
class Affected:
    """People in trouble: the page of each, their most frequent reason, and their common property."""

    pages: Mapping[str, Page]
    reason: str
    culprit: tuple[str, str] | None

    @property
    def since(self) -> int:
        """When it began for the first of them, ms."""
        return min(page.since for page in self.pages.values())


def verdict_of(present: Present) -> Verdict:
    """Return the verdict: on a grave trouble of the server, else on people's connections, else on a lesser trouble."""
    trouble = present.server.trouble
    if trouble and trouble not in MILD:
        return _of_server(present, trouble)
    verdict = _of_everybody(present)
    if not trouble:
        return verdict
    own = _of_server(present, trouble)
    if verdict.level in ("ok", "unknown"):
        return own
    return replace(verdict, detail=f"{verdict.detail} {own.title}")


def _of_everybody(present: Present) -> Verdict:
    everybody = present.undrilled
    drilled = len(present.by_person) - len(everybody)
    lost = {one: page for one, page in everybody.items() if page.state in ("reconnecting", "error")}
    polls = polling(everybody)
    if not present.is_current and present.at - present.server.up_since > FRESH_MS:
        title, detail = _("No figures since a few minutes."), _("Nobody rolls up the events: see the server's log.")
        return Verdict("unknown", "no-data", title, detail, tone="disconnected")
    if not everybody:
        return Verdict("ok", "none", _("Nobody is here."), _drilled_words(drilled) or _("Nothing to do."))
    if len(lost) >= max(LEAST_DOWN, DOWN_SHARE * len(everybody)):
        return _of_people(affected(lost, everybody), everybody, _lost_words, "down", "error")
    shaky = {one: page for one, page in everybody.items() if _is_shaky(page, present.at)}
    if len(polls.keys() | lost.keys() | shaky.keys()) >= DEGRADED_SHARE * len(everybody):
        which, words, tone = (lost, _lost_words, "reconnecting") if lost else (shaky, _shaky_words, "reconnecting")
        if len(polls) > len(lost):
            which, words, tone = polls, _polling_words, "polling"
        return _of_people(affected(which, everybody), everybody, words, "degraded", tone)
    return _all_well(everybody, polls, drilled)


def _all_well(everybody: Mapping[str, Page], polls: Mapping[str, Page], drilled: int) -> Verdict:
    live = sum(page.state == "connected" for page in everybody.values())
    if live == len(everybody):
        title = ngettext("%(num)d person here, and live. Nothing to do.", "All %(num)d live. Nothing to do.", live)
    else:
        title = _("%(live)d of %(all)d live. Nothing to do.", live=live, all=len(everybody))
    some = affected(polls, everybody) if polls else None
    detail = _group_words(some, everybody) if some else _("Everybody can write and read; nothing is lost.")
    return Verdict("ok", "none", title, _drilled_words(drilled) or detail)


def affected(some: Mapping[str, Page], everybody: Mapping[str, Page]) -> Affected:
    """Return these people with their most frequent reason and their culprit."""
    reason = Counter(_reason_of(page) for page in some.values()).most_common(1)[0][0]
    return Affected(some, reason, _culprit(some, everybody))


def _is_shaky(page: Page, now: int) -> bool:
    return sum(at > now - SHAKY_MS for at in page.drops) >= SHAKY_DROPS


def _reason_of(page: Page) -> str:
    """Return the page's reason; of a page that is live again, that of its drops."""
    reason = page.reason or ("socket-closed" if page.drops else "")
    return page.way if page.way and page.way in CERTAIN.get(reason, ()) else reason


def _culprit(some: Mapping[str, Page], everybody: Mapping[str, Page]) -> tuple[str, str] | None:
    """Return the network, or else the browser, of most of them, unless the others have it as often."""
    fields: tuple[tuple[str, Callable[[Page], str]], ...] = (
        ("network", lambda page: page.network),
        ("agent", lambda page: page.agent),
    )
    for name, of in fields:
        value, number = Counter(of(page) for page in some.values()).most_common(1)[0]
        others = [page for one, page in everybody.items() if one not in some]
        theirs = sum(of(page) == value for page in others) / len(others) if others else 0.0
        if value and number >= NAMED_SHARE * len(some) and theirs <= number / len(some) / 3:
            return name, value
    return None


def _of_people(
    found: Affected,
    everybody: Mapping[str, Page],
    words: Callable[[int, int], str],
    level: Level,
    tone: str,
) -> Verdict:
    cause = cause_of(found.reason)
    detail = f"{_group_words(found, everybody)} {_still_words(tone)}"
    return Verdict(
        level=level,
        cause=cause.code,
        title=words(len(found.pages), len(everybody)),
        detail=detail.strip(),
        to_do=_(cause.to_do),
        tone=tone,
        since=found.since,
        culprit=found.culprit,
    )


def _polling_words(some: int, people: int) -> str:
    return str(ngettext("%(num)d of %(all)d people polls.", "%(num)d of %(all)d people poll.", some, all=people))


def _shaky_words(some: int, people: int) -> str:
    one = "The connection of %(num)d of %(all)d people keeps breaking."
    return str(ngettext(one, "The connections of %(num)d of %(all)d people keep breaking.", some, all=people))


def _lost_words(some: int, people: int) -> str:
    one, more = "%(num)d of %(all)d people is not connected.", "%(num)d of %(all)d people are not connected."
    return str(ngettext(one, more, some, all=people))


def _still_words(tone: str) -> str:
    if tone == "polling":
        return str(_("Everybody can write and read; nothing is lost."))
    return str(_("What they write waits on their devices; nothing is lost."))


def _group_words(found: Affected, everybody: Mapping[str, Page]) -> str:
    cause = cause_of(found.reason)
    there = _(cause.there)
    sure = "" if cause.is_sure else _(" (not known for sure)")
    ways = [page.way for page in found.pages.values() if page.way and page.way != found.reason]
    if ways:
        there = _("%(there)s, and %(more)s", there=there, more=_(cause_of(max(set(ways), key=ways.count)).there))
    if found.culprit is None:
        return str(_("Seen from there: %(there)s%(sure)s.", there=there, sure=sure))
    name, value = found.culprit
    shown = value[:4] if name == "network" else value
    where = _("network %(name)s", name=shown) if name == "network" else _("the browser %(name)s", name=shown)
    if len(found.pages) == len(everybody):
        return str(_("Everybody here is in %(where)s, where %(there)s%(sure)s.", where=where, there=there, sure=sure))
    if len(found.pages) == 1:
        return str(_("In %(where)s %(there)s%(sure)s.", where=where, there=there, sure=sure))
    number = sum((page.network if name == "network" else page.agent) == value for page in found.pages.values())
    most = _("All") if number == len(found.pages) else f"{number}"
    return str(_("%(most)s are in %(where)s, where %(there)s%(sure)s.", most=most, where=where, there=there, sure=sure))


def _drilled_words(drilled: int) -> str:
    if not drilled:
        return ""
    return str(ngettext("A drill is running for %(num)d person.", "A drill is running for %(num)d people.", drilled))


def _of_server(present: Present, trouble: str) -> Verdict:
    server = present.server
    words: dict[str, tuple[Level, str, str]] = {
        "disk-full": (
            "down",
            _("The disk is full: nothing can be stored."),
            _("Pages keep what people write, and send it when there is room."),
        ),
        "server-storage": (
            "down",
            _("The server cannot write to its database."),
            _("Pages keep what people write, and send it later."),
        ),
        "disk": (
            "degraded",
            _("The disk is nearly full: %(share)d %% free.", share=100 * server.free_share),
            _("Everybody can write and read until it is."),
        ),
        "provider": (
            "degraded",
            _("The assistant does not answer: its provider fails."),
            _("People can write and read; their questions are kept, and can be asked again."),
        ),
        "slow-disk": (
            "degraded",
            _("The database is slow: storing a message takes up to %(ms)d ms.", ms=server.commit_p95_ms or 0),
            _("Nothing is lost; everybody waits."),
        ),
        "no-worker": (
            "unknown",
            _("No worker has said anything for 20 s."),
            _("This page is answered by one that has only just started, or cannot store its figures."),
        ),
    }
    level, title, detail = words[trouble]
    tone = {"down": "error", "degraded": "reconnecting"}.get(level, "disconnected")
    return Verdict(level, trouble, str(title), str(detail), str(_(remedy(trouble))), tone=tone)


def cause_words(cause: Cause) -> str:
    """Return the words of a cause."""
    return str(_(cause.there))
