"""The monitor, for operators: is everybody connected, how well, why not. Server-rendered, over plain HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from flask import Blueprint, abort, render_template, request, url_for
from flask_babel import gettext as _

from chatapp.concurrency import SingleThread
from chatapp.diagnostics.mending import MENDED
from chatapp.monitoring import charts, figures
from chatapp.monitoring.causes import cause_of
from chatapp.monitoring.figures import Figures
from chatapp.monitoring.lanes import story_of
from chatapp.monitoring.present import Present, read_present
from chatapp.monitoring.timeline import LIVE, SHOWN, Page, drill_times
from chatapp.monitoring.verdict import Verdict, cause_words, verdict_of
from chatapp.parts import VERSION, current_parts
from chatapp.store import ConnectionEvent, now_ms
from chatapp.store.events import EventFilter
from chatapp.store.measures import HOUR_MS, MINUTE_MS
from chatapp.views import check_origin
from chatapp.views.account import utc

RANGES = {"15m": 15, "1h": 60, "6h": 360, "24h": 1440, "7d": 10_080, "30d": 43_200}  # minutes
MOST_COLUMNS = 120  # of a chart
BY_HOURS = 1441  # minutes: longer ranges are made of hours
USUAL_MS = 7 * 24 * HOUR_MS  # with what a figure is compared
FRESH_S = 2.0  # the present is read at most so often, however many look
MOST_ROWS = 12  # of a table
MOST_STEPS = 500  # of one page
MOST_MARKS = 20  # of one kind on the axis
EVENTS_SHOWN = 100  # of a page of the list
ANY_TIME = 1 << 53  # ms; also larger than any number of an event
LEAST_SAMPLES = 20  # a share of fewer is shown as a fraction

Metric = Callable[[Figures], float | None]

bp = Blueprint("monitor", __name__, url_prefix="/monitor")
bp.before_request(check_origin)
_cached: dict[int, tuple[float, Present]] = {}
_thread = SingleThread()


@bp.get("")
def index() -> Any:
    """Show the present, and a range of time."""
    name = request.args.get("range", "1h")
    minutes = RANGES.get(name, 60)
    present = _present()
    history = _history(present.at, minutes)
    rows, whole = history.rows, history.whole
    return render_template(
        "monitor/index.html",
        verdict=(verdict := verdict_of(present)),
        evidence_url=_evidence_url(verdict),
        present=present,
        server=present.server,
        version=VERSION,
        knows_addresses=current_parts().knows_addresses(request.remote_addr or ""),
        range=name if name in RANGES else "1h",
        ranges=RANGES,
        people=_people(present),
        tiles=_tiles(rows, whole, history.usual, present),
        strip=charts.strip(rows, present.at),
        labels=charts.labels(rows),
        marks=_marks(rows),
        networks=_groups(present, lambda page: page.network),
        browsers=_groups(present, lambda page: page.agent),
        worst=_worst(present),
        events=_events(),
        live_again=partial(_live_again, present),
        refusals=sorted(whole.refusals.items(), key=lambda item: -item[1])[:MOST_ROWS],
        drops=sorted(whole.drops.items(), key=lambda item: -item[1])[:MOST_ROWS],
        fallbacks=sorted(whole.fallbacks.items(), key=lambda item: -item[1])[:MOST_ROWS],
        whole=whole,
        success={name: figures.transport_success(whole, name) for name in whole.attempts},
        sent=figures.messages_sent(whole),
        polling_s=figures.mean_duration_s(whole, "polling"),
        trips={share: figures.round_trip_ms(whole, share) for share in (0.5, 0.95, 0.99)},
        cause_of=cause_of,
        cause_words=cause_words,
        answering=current_parts().store.runs.count_running(),
    )


def _present() -> Present:
    """Return the present, at most some seconds old."""
    parts, now = current_parts(), time.monotonic()
    kept = _cached.get(id(parts))
    if kept is None or now - kept[0] > FRESH_S:
        kept = _cached[id(parts)] = (now, read_present(parts.store, parts.settings.data_dir, now_ms()))
    return kept[1]


def _history(now: int, minutes: int) -> charts.History:
    """Return the figures of the last minutes before `now`; of long ranges by hours."""
    texts_between = current_parts().store.measures.texts_between
    texts = texts_between("m" if minutes < BY_HOURS else "h", now - minutes * MINUTE_MS, now)
    usual = texts_between("h", now - USUAL_MS, now - HOUR_MS)
    return _thread.run(charts.history, texts, usual, now, minutes, MOST_COLUMNS)


def _marks(rows: charts.Columns) -> list[charts.Mark]:
    """Return restarts, drills and incidents of the range."""
    store = current_parts().store
    starts = [one.at for one in store.events.since("server-start", rows.start, MOST_MARKS)]
    drills = [max(rows.start, one.start) for one in drill_times(store.drills, rows.start)]
    incidents = [one.opened for one in store.alerts.incidents()[0]]
    return charts.marks({"restart": starts, "drill": drills, "alert": incidents}, rows)


def _people(present: Present) -> dict[str, int]:
    """Return the number of people by state now."""
    counts = dict.fromkeys(("connected", "polling", "reconnecting", "error"), 0)
    for page in present.by_person.values():
        counts["reconnecting" if page.state == "connecting" else page.state] += 1
    return counts


def _tiles(rows: charts.Columns, whole: Figures, usual: Figures, present: Present) -> list[charts.Tile]:
    """Return the tiles: each figure of the range, its course, and its usual value."""
    sessions, expected = sum(whole.sessions), whole.received + whole.late + whole.missing
    few_sessions, few_received = _few(whole.sessions[0], sessions), _few(whole.received, expected) or _late(whole)
    stored, words = present.server.post_p95_ms, _("the server's part, 5 min")

    def tile(name: str, title: str, of: Metric, form: str, bad: str = "", note: str = "") -> charts.Tile:
        value, normal = of(whole), of(usual)
        course = [None if row is None else of(row) for row in rows.figures]
        note = note or _usual(normal, form)
        return charts.Tile(name, title, value, form, course, note, charts.is_out(value, normal, bad))

    def rate(name: str, title: str, of: Metric, counts: Mapping[str, int]) -> charts.Tile:
        found, short = tile(name, title, of, "", "high"), _of_short(whole, counts)
        return replace(found, is_short=True, note=short, tone="") if short else found

    return [
        tile("websocket-share", _("On WebSocket"), _percent(_websocket_share), "%", "low"),
        tile("session-success", _("Connected in 10 s"), _percent(figures.session_success), "%", "low", few_sessions),
        tile("round-trip-p95", _("Round trip, p95"), figures.round_trip_ms, "ms", "high"),
        charts.Tile("stored-p95", _("Send to stored, p95"), stored, "ms", [], words, ""),
        tile("delivery", _("Delivered"), _percent(figures.delivery), "%", "low", few_received),
        rate("drops-per-hour", _("Drops an hour"), figures.drops_per_hour, whole.drops),
        rate("fallbacks-per-hour", _("Fallbacks an hour"), figures.fallbacks_per_hour, whole.fallbacks),
        tile(
            "websocket-duration", _("A WebSocket lasts"), partial(figures.mean_duration_s, transport="websocket"), "s"
        ),
        tile("between-drops", _("Between drops"), figures.between_drops_s, "s"),
        tile("gap-p95", _("Gap of a change, p95"), figures.gap_ms, "ms", "high"),
    ]


def _percent(of: Metric) -> Metric:
    return lambda row: None if (found := of(row)) is None else 100 * found


def _usual(value: float | None, form: str) -> str:
    if value is None:
        return str(_("nothing to compare yet"))
    return str(_("usual %(value)s", value=charts.shown(value, form)))


def _websocket_share(row: Figures) -> float | None:
    share = figures.polling_share(row)
    return None if share is None else 1 - share


def _few(part: int, number: int) -> str:
    """Return a fraction instead of a comparison if the samples are too few for a share."""
    return str(_("%(part)d of %(all)d", part=part, all=number)) if 0 < number < LEAST_SAMPLES else ""


def _of_short(whole: Figures, counts: Mapping[str, int]) -> str:
    """Return the number and the connected time, if that is too short for a rate: a drop in 19 s is not 189 an hour."""
    hours, number = figures.live_hours(whole), sum(counts.values())
    return str(_("%(num)d in %(time)s", num=number, time=duration(round(3_600_000 * hours)))) if 0 < hours < 1 else ""


def _late(whole: Figures) -> str:
    late, number = whole.late + whole.missing, whole.received + whole.late + whole.missing
    return str(_("%(late)d of %(all)d late", late=late, all=number)) if number else ""


def _groups(present: Present, of: Callable[[Page], str]) -> list[dict[str, Any]]:
    """Return the affected people by network or browser, the worst first."""
    groups: dict[str, dict[str, Any]] = {}
    for page in present.by_person.values():
        group = groups.setdefault(of(page), {"name": of(page), "people": 0, "polling": 0, "lost": 0, "reasons": {}})
        group["people"] += 1
        group["polling"] += page.state == "polling"
        group["lost"] += page.state not in LIVE
        if page.state != "connected" and page.reason:
            figures.count(group["reasons"], page.reason)
    for group in groups.values():
        reasons = group.pop("reasons")
        group["reason"] = max(reasons, key=reasons.__getitem__) if reasons else ""
    return sorted(groups.values(), key=lambda one: (-one["polling"] - one["lost"], -one["people"]))[:MOST_ROWS]


def _worst(present: Present) -> list[tuple[str, str, Page]]:
    """Return name, id and state of the pages with the worst quality."""
    known = [
        (uuid, page) for uuid, page in present.by_person.items() if page.quality is not None or page.state not in LIVE
    ]
    known.sort(key=lambda item: (item[1].quality or 0, -SHOWN.index(item[1].state)))
    names = current_parts().store.directory.names([uuid for uuid, _page in known[: MOST_ROWS // 2]])
    pages = {id(page): name for name, page in present.pages.items()}
    return [(names.get(uuid, "?"), pages[id(page)], page) for uuid, page in known[: MOST_ROWS // 2]]


def _events() -> list[tuple[str, str, ConnectionEvent]]:
    """Return the newest changes: time, name and event."""
    store = current_parts().store
    found = store.events.newest(("state", "server-start", "server-stop", "suspect", "idle-kill"), MOST_ROWS * 2)
    mended = store.events.since(MENDED, now_ms() - HOUR_MS, most=MOST_ROWS // 4)  # above the many changes that follow
    found = [*mended, *(one for one in found if one.state_to != "connecting")][:MOST_ROWS]
    names = store.directory.names({one.person for one in found if one.person})
    return [(utc(one.at, "%H:%M:%S"), names.get(one.person, ""), one) for one in found]


@bp.get("/events")
def events() -> Any:
    """Show stored events by a filter: its fields, `since` (ms), `before` (an event's number)."""
    store, given = current_parts().store, request.args
    texts = {name: given.get(name, "").strip()[:60] for name in ("person", "network", "agent", "type", "reason")}
    wanted = EventFilter(**texts, since=min(given.get("since", 0, type=int), ANY_TIME))
    found = store.events.find(wanted, EVENTS_SHOWN + 1, min(given.get("before", 0, type=int), ANY_TIME))
    values: dict[str, Any] = {name: value for name, value in {**texts, "since": wanted.since}.items() if value}
    more = len(found) > EVENTS_SHOWN
    shown = [event for _number, event in found[:EVENTS_SHOWN]]
    return render_template(
        "monitor/events.html",
        events=shown,
        names=store.directory.names({one.person for one in shown if one.person}),
        values=values,
        next_url=url_for("monitor.events", **values, before=found[EVENTS_SHOWN - 1][0]) if more else None,
        cause_of=cause_of,
        cause_words=cause_words,
    )


def _evidence_url(verdict: Verdict) -> str:
    """Return the address of the events behind a sentence."""
    values: dict[str, Any] = {"since": verdict.since} if verdict.since else {}
    if verdict.culprit:
        values[verdict.culprit[0]] = verdict.culprit[1]
    return str(url_for("monitor.events", **values))


def _live_again(present: Present, event: ConnectionEvent) -> int:
    """Return the number of people in a mended network who are live now; some were a little before the test passed."""
    return sum(one.network == event.network and one.state == "connected" for one in present.by_person.values())


@bp.app_template_filter("duration")
def duration(ms: int) -> str:
    """Return a duration in its largest unit, such as "3 min"."""
    return f"{ms} ms" if ms < 2000 else charts.shown(ms / 1000, "s")


@bp.app_template_filter("clock")
def clock(at: int) -> str:
    """Return the time of day of a moment (ms), UTC."""
    return utc(at, "%H:%M")


@bp.get("/pages/<uuid:uuid>")
def page(uuid: UUID) -> Any:
    """Show the story of one page: its timeline, and its events with their changes."""
    store = current_parts().store
    story = story_of(store.events.of_page(str(uuid), MOST_STEPS), now_ms())
    if story is None:
        abort(404)
    known = _present().pages.get(str(uuid))
    who = next((one.event.person for one in story.steps if one.event.person), "")
    return render_template(
        "monitor/page.html",
        uuid=str(uuid),
        story=story,
        person=store.directory.find(who),
        known=known,
        agent=next((one.event.agent for one in reversed(story.steps) if one.event.agent), ""),
        network=next((one.event.network for one in reversed(story.steps) if one.event.network), ""),
        wrong=sum(bool(one.wrong) for one in story.steps),
        cause_of=cause_of,
        cause_words=cause_words,
    )
