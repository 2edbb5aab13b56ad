"""The Prometheus instruments behind metric_table.py, on a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.routing.decision import Decision
from engine.serving.console.http_server import PLAIN, Answer, HttpServer, Request, Response
from engine.serving.telemetry.drift import Drift

Samples = Mapping[tuple[str, ...], float]  # values of the labels -> value
Family = CounterMetricFamily | GaugeMetricFamily
PHASES = ("tokenize", "queue", "inference", "scoring", "selection", "total")
KINDS = ("ranked", "session_affinity", "defaulted", "fallback")
OTHER = "other"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
JOINED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
ROWS = (64, 128, 192, 256, 384, 512, 768, 1024, 2048)
# They double the series; process_start_time_seconds says when all counting began.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Sources:
    """What is read at a scrape. candidates: ids that are registered now. sampled: metric name ->
    its samples."""

    candidates: Callable[[], Collection[str]]
    sampled: Mapping[str, Callable[[], Samples]]


class Metrics(Collector):
    """decided() is for the event loop, the other methods for any thread.

    As a collector it is what is read at a scrape; the counters and histograms stand beside it.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sources = Sources(tuple, {})
        # First: it drops the series of candidates that are gone before the rest is read.
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("modelsat_requests_total")
        self._request_seconds = self._histogram("modelsat_rpc_duration_seconds", SECONDS)
        self._extproc_answers = self._counter("modelsat_extproc_responses_total")
        self._phase_seconds = self._histogram("modelsat_decision_phase_duration_seconds", SECONDS)
        self._phases = {phase: self._phase_seconds.labels(phase) for phase in PHASES}
        self._forward_requests = self._histogram("modelsat_batch_size", JOINED)
        self._forward_rows = self._histogram("modelsat_batch_rows", ROWS)
        decisions = self._counter("modelsat_decisions_total")
        self._decisions = {kind: decisions.labels(kind) for kind in KINDS}
        self._selections = self._counter("modelsat_selections_total")
        self._selected: set[str] = set()
        self._revision = 0
        self._chosen, self._all, self._unlikeness = Drift(), Drift(), Drift()

    def watch(self, sources: Sources) -> None:
        """From now on, read these at every scrape."""
        self._sources = sources

    def answered(self, method: str, code: str, seconds: float) -> None:
        """An RPC ended."""
        self._requests.labels(method, code).inc()
        self._request_seconds.labels(method).observe(seconds)

    def extproc_answered(self, code: str) -> None:
        """A gateway's HTTP request was answered. code: routed, passed, or of an error."""
        self._extproc_answers.labels(code).inc()

    def forwarded(self, requests: int, rows: int) -> None:
        """A forward pass ended."""
        self._forward_requests.observe(requests)
        self._forward_rows.observe(rows)

    def decided(self, decision: Decision) -> None:
        """A decision was made; its ranking holds every eligible candidate."""
        for phase, seconds in decision.timing.items():
            (self._phases.get(phase) or self._phase_seconds.labels(phase)).observe(seconds)
        self._decisions[decision.kind].inc()
        if decision.revision != self._revision:
            self._revision = decision.revision
            self._drop_removed()
        chosen = decision.selected.id
        label = chosen if chosen in self._sources.candidates() else OTHER
        self._selected.add(label)
        self._selections.labels(label).inc()
        if decision.kind != "fallback":  # there, they are mean accuracies
            self._add_drift(decision)

    def phase_buckets(self) -> dict[str, tuple[int, ...]]:
        """Phase -> how many took at most each of SECONDS, and how many in all."""
        found: dict[str, list[int]] = {}
        for family in self._phase_seconds.collect():
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    found.setdefault(sample.labels["phase"], []).append(int(sample.value))
        return {phase: tuple(counts) for phase, counts in found.items()}

    def collect(self) -> Iterable[Family]:
        """See prometheus_client.registry.Collector."""
        self._drop_removed()
        unlike = self._unlikeness
        drift: dict[str, Samples] = {
            "modelsat_probability_mean": _known(selected=self._chosen.mean, all=self._all.mean),
            "modelsat_probability_baseline": _known(
                selected=self._chosen.baseline, all=self._all.baseline
            ),
            "modelsat_unlikeness_mean": {} if unlike.mean is None else {(): unlike.mean},
            "modelsat_unlikeness_baseline": (
                {} if unlike.baseline is None else {(): unlike.baseline}
            ),
        }
        for name, samples in drift.items():
            yield _family(name, samples)
        for name, sample in self._sources.sampled.items():
            yield _family(name, sample())

    def _add_drift(self, decision: Decision) -> None:
        ranking, selected = decision.ranking, decision.selected
        for ranked in ranking:
            if ranked.candidate.id == selected.id:
                self._chosen.add(ranked.probability)
                break
        self._all.add(sum(map(attrgetter("probability"), ranking)) / len(ranking))
        if decision.prompt.ood_score is not None:
            self._unlikeness.add(decision.prompt.ood_score)

    def _drop_removed(self) -> None:
        now = self._sources.candidates()
        for label in [c for c in tuple(self._selected) if c != OTHER and c not in now]:
            self._selected.discard(label)
            self._selections.remove(label)

    def _counter(self, name: str) -> Counter:
        metric = BY_NAME[name]
        return Counter(name, metric.meaning, metric.labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        metric = BY_NAME[name]
        return Histogram(
            name, metric.meaning, metric.labels, registry=self.registry, buckets=buckets
        )


def _known(**values: float | None) -> Samples:
    return {(label,): value for label, value in values.items() if value is not None}


def _family(name: str, samples: Samples) -> Family:
    metric = BY_NAME[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: Family = kind(name, metric.meaning, labels=metric.labels)
    for labels, value in samples.items():
        family.add_metric(labels, value)
    return family


Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One exported metric. meaning: for people, with the unit."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric(
        "modelsat_build_info",
        "gauge",
        ("version", "backend", "kernel"),
        "always 1; what runs is in its labels",
    ),
    Metric(
        "modelsat_requests_total",
        "counter",
        ("method", "code"),
        "RPCs answered, by method and gRPC status code; methods that do not exist are `unknown`",
    ),
    Metric(
        "modelsat_rpc_duration_seconds",
        "histogram",
        ("method",),
        "from a request read to its status; of a stream, its whole life",
    ),
    Metric(
        "modelsat_extproc_responses_total",
        "counter",
        ("code",),
        "HTTP requests that Envoy asked about: routed, passed (nothing to choose), or the error's"
        " `code`; their RPCs end with OK",
    ),
    Metric(
        "modelsat_decision_phase_duration_seconds",
        "histogram",
        ("phase",),
        "of a decision: prepare, queue, forward, score, choose, total",
    ),
    Metric("modelsat_batch_size", "histogram", (), "requests joined into a forward pass"),
    Metric(
        "modelsat_batch_rows",
        "histogram",
        (),
        "rows of a forward pass: tokens and candidates, padding included",
    ),
    Metric("modelsat_queue_size", "gauge", (), "requests that wait for a forward pass"),
    Metric("modelsat_queue_capacity", "gauge", (), "requests that may wait (`--max-queue-size`)"),
    Metric(
        "modelsat_decisions_total",
        "counter",
        ("kind",),
        "decisions by how they came about: scored, session, abstained, fallback",
    ),
    Metric(
        "modelsat_selections_total",
        "counter",
        ("candidate",),
        "decisions by chosen candidate, of those registered now; `other` if it is gone",
    ),
    Metric("modelsat_candidates_revision", "gauge", (), "revision of the table that is served"),
    Metric("modelsat_candidates", "gauge", (), "candidates in it"),
    Metric(
        "modelsat_store_up",
        "gauge",
        (),
        "1 if the candidate store answers, 0 if PostgreSQL does not; an SQLite file is always 1",
    ),
    Metric("modelsat_score_cache_hits_total", "counter", (), "decisions with cached probabilities"),
    Metric(
        "modelsat_score_cache_misses_total", "counter", (), "decisions that needed a forward pass"
    ),
    Metric("modelsat_score_cache_bytes", "gauge", (), "held by known probabilities"),
    Metric(
        "modelsat_probability_mean",
        "gauge",
        ("of",),
        "of `selected` candidates and of `all` eligible ones, over about the last 1,000 decisions",
    ),
    Metric(
        "modelsat_probability_baseline",
        "gauge",
        ("of",),
        "the same over the first 1,000 since the start",
    ),
    Metric(
        "modelsat_unlikeness_mean",
        "gauge",
        (),
        "of instructions, over about the last 1,000 decisions",
    ),
    Metric(
        "modelsat_unlikeness_baseline", "gauge", (), "the same over the first 1,000 since the start"
    ),
    Metric(
        "modelsat_audit_records_total",
        "counter",
        ("result",),
        "of the audit file: written, dropped (the queue was full), failed (the disk was)",
    ),
    Metric("process_cpu_seconds_total", "counter", (), "user and system time of the process"),
    Metric("process_resident_memory_bytes", "gauge", (), "memory in RAM"),
    Metric("process_virtual_memory_bytes", "gauge", (), "address space"),
    Metric("process_start_time_seconds", "gauge", (), "when it started, Unix time"),
    Metric("process_open_fds", "gauge", (), "open files and sockets"),
    Metric("process_max_fds", "gauge", (), "how many it may open"),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def markdown() -> str:
    """The table, a row for each metric."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    rows += [f"| {m.name} | {m.kind} | {', '.join(m.labels)} | {m.meaning} |" for m in METRICS]
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown())


def exposition(address: str, registry: CollectorRegistry) -> HttpServer:
    """Raises ModelsatError where it cannot listen on `address` (HOST:PORT)."""
    return HttpServer(address, "--metrics-address", _answer(registry))


def _answer(registry: CollectorRegistry) -> Answer:
    def answer(request: Request) -> Response:
        if request.path != "/metrics":
            return Response(404, PLAIN, b"only /metrics is here\n")
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(200, content_type, encode(registry))

    return answer
