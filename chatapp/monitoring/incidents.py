"""An incident in words: when, how many, in which network, why, and the setting that helps.

Stored are codes and numbers of the worst moment; the sentences are made when somebody reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from flask_babel import gettext as _

from chatapp.monitoring.alerts import in_order
from chatapp.monitoring.causes import CAUSES, N_, trouble_or_cause
from chatapp.monitoring.figures import Figures
from chatapp.monitoring.present import Present, polling
from chatapp.monitoring.rules import RULES, UNREADY, Reading
from chatapp.monitoring.timeline import NO_DROPS, Page
from chatapp.monitoring.verdict import affected, verdict_of
from chatapp.store.alerts import Incident

# While it lasts, and afterwards.
WORDS = {
    "unready": (N_("the server is not ready"), N_("the server was not ready")),
    "disk-or-log": (N_("the server needs a look"), N_("the server needed a look")),
    "mass-drop": (
        N_("%(num)d of %(all)d people lost the connection at once"),
        N_("%(num)d of %(all)d people were not connected"),
    ),
    "polling-share": (N_("%(num)d of %(all)d people poll"), N_("%(num)d of %(all)d people polled")),
    "success": (
        N_("%(num)d of %(all)d pages do not connect within 10 s"),
        N_("%(num)d of %(all)d pages did not connect within 10 s"),
    ),
    "delivery": (
        N_("%(num)d of %(all)d messages come later than 30 s, or not at all"),
        N_("%(num)d of %(all)d messages came later than 30 s, or not at all"),
    ),
    "round-trip": (
        N_("one message of 20 takes %(seconds)s s or more"),
        N_("one message of 20 took %(seconds)s s or more"),
    ),
    "drops": (
        N_("connections are lost, each %(times)s times an hour"),
        N_("connections were lost, each %(times)s times an hour"),
    ),
}


@dataclass(frozen=True)
class Moment:
    """The worst moment of an alert. `culprit`: network or agent, and which; "" for none."""

    value: float
    samples: int
    cause: str = ""
    culprit: tuple[str, str] = ("", "")

    def dump(self) -> dict[str, Any]:
        """Return the values, for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Moment:
        """Return the moment of `dump`."""
        kind, which = values["culprit"]
        return cls(values["value"], values["samples"], values["cause"], (kind, which))


# The cause


def moment_of(rule: str, reading: Reading, present: Present | None, whole: Figures) -> Moment:
    """Return this moment of an alert: its reading, and the cause as far as anybody knows. Needs an app's context."""
    cause, culprit = _cause(rule, present, whole)
    return Moment(reading.value, reading.samples, cause, culprit)


def _cause(rule: str, present: Present | None, whole: Figures) -> tuple[str, tuple[str, str]]:
    if present is None:
        return "server-storage", ("", "")
    trouble = present.server.trouble
    if rule == "disk-or-log":
        return ("disk" if trouble in ("disk", "disk-full") else "log"), ("", "")
    if trouble in UNREADY or (trouble == "slow-disk" and rule in ("round-trip", "delivery")):
        return trouble, ("", "")
    everybody = present.undrilled
    some = polling(everybody) if rule == "polling-share" else lost(everybody)
    if some and rule in ("polling-share", "mass-drop", "drops"):
        found = affected(some, everybody)
        return found.reason, found.culprit or ("", "")
    counts = {"success": whole.refusals, "drops": whole.drops}.get(rule)
    if counts:
        reason = max(counts, key=counts.__getitem__).split()[-1]
        return (reason if reason in CAUSES else ""), ("", "")
    verdict = verdict_of(present)
    if verdict.level == "ok" or verdict.cause not in CAUSES:
        return "", ("", "")
    return verdict.cause, verdict.culprit or ("", "")


def lost(everybody: Mapping[str, Page]) -> dict[str, Page]:
    """Return the people without a connection, by no fault of their device."""
    states = ("reconnecting", "error")
    return {one: page for one, page in everybody.items() if page.state in states and page.reason not in NO_DROPS}


# The words


def titles() -> dict[str, str]:
    """Return the rules in words."""
    return {
        "unready": _("The server is not ready"),
        "disk-or-log": _("Disk or figures"),
        "mass-drop": _("Many dropped at once"),
        "polling-share": _("Many poll"),
        "success": _("Pages do not connect"),
        "delivery": _("Messages come late"),
        "round-trip": _("Sending is slow"),
        "drops": _("Connections are lost"),
    }


def sentence(incident: Incident) -> str:
    """Return the incident as a person would tell it."""
    rules = in_order(incident.worst)
    if not rules:
        return ""
    first = rules[0]
    moment = Moment.load(incident.worst[first])
    told = f"{_when(incident)}, {_what(first, moment, incident.closed is not None)}"
    why = _why(first, moment)
    told += f": {why}." if why else "."
    also = [titles()[rule] for rule in rules[1:]]
    return f"{told} {_('Also:')} {'; '.join(also)}." if also else told


def to_do(incident: Incident) -> str:
    """Return the remedy for the gravest alert with a known cause; "" if nobody knows."""
    for rule in in_order(incident.worst):
        cause = Moment.load(incident.worst[rule]).cause
        if cause:
            return str(_(trouble_or_cause(cause).to_do))
    return ""


def figure_words(rule: str, value: float | None, samples: int) -> str:
    """Return an alert's number with its unit; "" where it has none."""
    if value is None or rule in ("unready", "disk-or-log"):
        return ""
    if rule == "round-trip":
        return str(_("%(seconds)s s, %(num)d messages", seconds=f"{value / 1000:.1f}", num=samples))
    if rule == "drops":
        return str(_("%(times)s an hour, %(num)d hours", times=f"{value:.1f}", num=samples))
    return str(_("%(share)s %% of %(num)d", share=f"{100 * value:.1f}".removesuffix(".0"), num=samples))


def _when(incident: Incident) -> str:
    opened = _clock(incident.opened)
    if incident.closed is None:
        return str(_("Since %(time)s UTC", time=opened))
    is_same_day = _clock(incident.opened, "%Y%m%d") == _clock(incident.closed, "%Y%m%d")
    closed = _clock(incident.closed, "%H:%M" if is_same_day else "%b %d %H:%M")
    return str(_("From %(opened)s to %(closed)s UTC", opened=opened if is_same_day else _day(incident), closed=closed))


def _day(incident: Incident) -> str:
    return _clock(incident.opened, "%b %d %H:%M")


def _clock(at: int, form: str = "%H:%M") -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime(form)


def _what(rule: str, moment: Moment, is_over: bool) -> str:
    """Return the end of a sentence that begins with a time."""
    share, number = moment.value, moment.samples
    bad = round((1 - share) * number) if RULES[rule].bad == "<" else round(share * number)
    figures = {"num": bad, "all": number, "seconds": f"{share / 1000:.1f}", "times": f"{share:.1f}"}
    return str(_(WORDS[rule][is_over], **figures))


def _why(rule: str, moment: Moment) -> str:
    if not moment.cause:
        return ""
    cause = trouble_or_cause(moment.cause)
    there = str(_(cause.there) if cause.is_sure else _("%(there)s (not known for sure)", there=_(cause.there)))
    kind, which = moment.culprit
    if kind == "network":
        return str(_("in network %(name)s %(there)s", name=which[:4], there=there))
    return str(_("in %(name)s %(there)s", name=which, there=there) if kind == "agent" else there)
