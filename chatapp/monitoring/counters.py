"""The counts since the first start, as Prometheus wants them: from roll-ups, never falling, with few labels.

Hours are summed once and kept as a base; the minutes since, and the seconds after them, are added at each look.
"""

from __future__ import annotations

import json

from chatapp.concurrency import SingleThread
from chatapp.monitoring.figures import Figures, add_up
from chatapp.monitoring.present import Present
from chatapp.monitoring.rollups import ABSORBED_MS
from chatapp.store import STORAGE_ERRORS
from chatapp.store.measures import HOUR_MS, Measures
from chatapp.store.totals import most

SETTLED_MS = 2 * ABSORBED_MS  # an hour that ended before that is summed for good
AT_ONCE = 200  # roll-ups: some 2 ms of the event loop; they are summed in a thread
_thread = SingleThread()


def counters(measures: Measures, present: Present) -> Figures:
    """Return the figures since the first start, none less than at any earlier call of any worker."""
    totals = measures.totals
    kept = totals.told()
    through, base = kept.through, Figures.load(kept.base)
    settled = present.begin - SETTLED_MS
    settled -= settled % HOUR_MS
    if settled > through:
        through, base = settled, _plus(base, measures, "h", through, settled)
    now = add_up([_plus(base, measures, "m", through, present.begin), present.figures])
    now.people = {}
    try:
        return Figures.load(totals.tell(through, base.dump(), now.dump()))
    except STORAGE_ERRORS:  # a full disk: what was told last can still be read
        return Figures.load(most(kept.told, now.dump()))


def _plus(base: Figures, measures: Measures, span: str, start: int, end: int) -> Figures:
    """Return the base with the roll-ups from `start` to before `end`."""
    for rows in measures.scan(span, start, end, AT_ONCE):
        base = _thread.run(_with_texts, base, [text for _, text in rows])
    return base


def _with_texts(base: Figures, texts: list[str]) -> Figures:
    whole = add_up([base, *(Figures.load(json.loads(text)) for text in texts)])
    whole.people = {}
    return whole
