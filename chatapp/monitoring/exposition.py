"""The metrics for Prometheus: names, units and labels, and the text. docs/monitoring.md has the list.

This module loads prometheus_client, so it is imported at the first scrape, not at the start. The metrics of all workers
are made from their rows in the database, by a collector of our own, so whichever worker is asked tells the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from chatapp import histograms
from chatapp.histograms import Histogram
from chatapp.monitoring.figures import Figures
from chatapp.monitoring.present import Present
from chatapp.monitoring.timeline import LIVE, SHOWN

# Upper ends of buckets, s.
LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
CONNECT = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 15.0)
COMMIT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TRANSPORTS = ("websocket", "polling")
SIDES = ("server", "browser")


@dataclass(frozen=True)
class Sources:
    """All that the metrics are made from. Without `present`, the metrics database does not answer."""

    version: str
    trouble: str  # "": the server is ready
    present: Present | None = None
    figures: Figures = field(default_factory=Figures)  # since the first start
    totals: Mapping[str, Any] = field(default_factory=dict)  # of all workers since then
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of the workers that live


class Collector:
    """All metrics, for one scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called by prometheus_client."""
        sources = self._sources
        yield _gauge("build_info", "The version of the server.", {(sources.version,): 1}, "version")
        yield _gauge("ready", "1 if the server can serve.", {(): 0 if sources.trouble else 1})
        yield _gauge("metrics_complete", "0 if only these three could be read.", {(): sources.present is not None})
        if sources.present is not None:
            yield from _of_the_present(sources.present)
            yield from _of_connections(sources.figures)
            yield from _of_messages(sources.figures)
            yield from _of_workers(sources)


def _of_the_present(present: Present) -> Iterator[Metric]:
    people = dict.fromkeys(SHOWN, 0)
    for page in present.by_person.values():
        people[page.state] += 1
    pages = dict.fromkeys(TRANSPORTS, 0)
    for page in present.pages.values():
        if page.state in LIVE:
            pages[LIVE[page.state]] += 1
    yield _gauge("people_live", "People with a live page, by its best state.", _keyed(people), "state")
    yield _gauge("sessions_live", "Pages that are connected.", _keyed(pages), "transport")
    open_now = {"websocket": present.server.sockets, "polling": present.server.polls}
    yield _gauge("connections_open", "WebSockets, and polls that are held.", _keyed(open_now), "transport")
    yield _gauge("disk_free_bytes", "Room on the disk of the data.", {(): present.server.free_bytes})
    yield _gauge("rollups_current", "1 if the figures are kept up to date.", {(): present.is_current})


def _of_connections(figures: Figures) -> Iterator[Metric]:
    outcomes = ("success", "failure", "cancel")
    attempts = {
        (transport, outcome): number
        for transport in TRANSPORTS
        for outcome, number in zip(outcomes, figures.attempts[transport], strict=True)
    }
    words = "Attempts to connect; success: ready within 10 s."
    yield _counter("connect_attempts", words, attempts, "transport", "outcome")
    failures = {tuple(key.split(" ", 1)): number for key, number in figures.refusals.items()}
    yield _counter("connect_failures", "Attempts that failed, by reason.", failures, "transport", "reason")
    yield _histograms("connect_duration_seconds", "From an attempt to ready.", figures.connect, CONNECT)
    sessions = dict(zip((("success",), ("failure",)), figures.sessions, strict=True))
    yield _counter("session_connect", "Pages that connected within 10 s, or did not.", sessions, "outcome")
    probes = dict(zip((("success",), ("failure",)), figures.probes, strict=True))
    yield _counter("websocket_probes", "Attempts of WebSocket while polling.", probes, "outcome")
    seconds = {(name,): figures.state_ms.get(state, 0) / 1000 for state, name in LIVE.items()}
    yield _counter("connected_seconds", "Connected time of all pages.", seconds, "transport")
    ended = {(name,): figures.ended[name][0] for name in TRANSPORTS}
    yield _counter("connections_ended", "Connections that ended.", ended, "transport")
    lasted = {(name,): figures.ended[name][1] / 1000 for name in TRANSPORTS}
    yield _counter("connections_ended_seconds", "How long these had lasted, in all.", lasted, "transport")
    yield _counter("disconnects", "Connections that were lost.", _keyed(figures.drops), "reason")
    yield _counter("fallbacks", "Unplanned changes to polling.", _keyed(figures.fallbacks), "reason")
    yield _counter("planned_polling", "Polling by memory, setting or drill.", {(): figures.planned})
    yield _counter("recoveries", "Changes from polling back to WebSocket.", {(): figures.recoveries})
    yield _histogram("fallback_dwell_seconds", "Polling until a recovery.", figures.dwell, (1, 5, 15, 30, 60))
    yield _histogram("gap_seconds", "Without a transport, between two.", figures.gaps, LATENCY)
    yield _counter("unwitnessed_connections", "Clients that report nothing.", {(): figures.unwitnessed})


def _of_messages(figures: Figures) -> Iterator[Metric]:
    words = "From sending a message to its acknowledgement."
    yield _histograms("message_roundtrip_seconds", words, figures.sent, LATENCY)
    yield _counter("messages_repeated", "Messages that were sent more than once.", {(): figures.repeated})
    outcomes = {("delivered",): figures.received, ("late",): figures.late, ("lost",): figures.missing}
    yield _counter("deliveries", "Messages for a page; late: after 30 s.", outcomes, "outcome")


def _of_workers(sources: Sources) -> Iterator[Metric]:
    measured, counts = sources.totals.get("histograms", {}), sources.totals.get("counts", {})
    words = "From a message's last byte to its acknowledgement."
    yield _histogram("message_server_seconds", words, measured.get("post", {}), LATENCY)
    yield _histogram("commit_seconds", "Commits of the database.", measured.get("commit", {}), COMMIT)
    errors = {(side,): counts.get(f"errors {side}", 0) for side in SIDES}
    yield _counter("errors", "Errors of the server's code, and of browsers.", errors, "where")
    yield _counter("workers_cpu_seconds", "Time that workers computed.", {(): sources.totals.get("cpu_s", 0)})
    rows = sorted(sources.rows.values(), key=lambda row: (row.get("started_at", 0), row.get("pid", 0)))
    memory = {(str(number),): row.get("rss_kib", 0) * 1024 for number, row in enumerate(rows)}
    starts = {(str(number),): row.get("started_at", 0) / 1000 for number, row in enumerate(rows)}
    yield _gauge("workers", "Workers that live.", {(): len(rows)})
    yield _gauge("worker_resident_memory_bytes", "Memory, by worker; the oldest is 0.", memory, "worker")
    yield _gauge("worker_start_time_seconds", "Start of each worker, since 1970.", starts, "worker")


Values = Mapping[Any, float]  # by the values of the labels, a tuple


def _keyed(counts: Mapping[str, int]) -> Values:
    return {(key,): number for key, number in counts.items()}


def _gauge(name: str, words: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"chat_{name}", words, labels=labels), values)


def _counter(name: str, words: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"chat_{name}", words, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for key in sorted(values):
        family.add_metric(key, float(values[key]))
    return family


def _histogram(name: str, words: str, histogram: Histogram, ends: Iterable[float]) -> Metric:
    family = HistogramMetricFamily(f"chat_{name}", words, labels=())
    family.add_metric((), buckets(histogram, ends), total_s(histogram))
    return family


def _histograms(name: str, words: str, by_transport: Mapping[str, Histogram], ends: Iterable[float]) -> Metric:
    family = HistogramMetricFamily(f"chat_{name}", words, labels=("transport",))
    for transport in TRANSPORTS:
        histogram = by_transport.get(transport, {})
        family.add_metric((transport,), buckets(histogram, ends), total_s(histogram))
    return family


def buckets(histogram: Mapping[str, int], ends: Iterable[float]) -> list[tuple[str, float]]:
    """Return the values up to each end (s). A bin belongs to the bucket of its middle, so an end is within 9.1 %."""
    found = [
        (str(float(end)), sum(number for key, number in histogram.items() if _middle_s(key) <= end)) for end in ends
    ]
    return [*found, ("+Inf", histograms.total(histogram))]


def total_s(histogram: Mapping[str, int]) -> float:
    """Return the sum of the values (s), each taken as the middle of its bin."""
    return round(sum(number * _middle_s(key) for key, number in histogram.items()), 3)


def _middle_s(key: str) -> float:
    return histograms.middle_ms(int(key)) / 1000


def answer(sources: Sources, accept: str) -> tuple[bytes, str]:
    """Return the text, in the form that a scraper accepts, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(sources))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
