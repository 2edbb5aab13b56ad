"""Prometheus metrics: what is counted, and the HTTP server of /metrics.

METRICS describes every metric once, for the exporter and for the documentation. The server is the
console's: prometheus_client's own bounds neither connections nor the time a request may take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.routing.decision import Decision
from engine.serving.auth.file_watch import ReloadedFiles
from engine.serving.console.http_server import PLAIN, HttpServer, Request, Response

Samples = Mapping[tuple[str, ...], float]  # values of the labels -> value
Family = CounterMetricFamily | GaugeMetricFamily
MetricType = Literal["counter", "gauge", "histogram"]
PHASES = ("tokenize", "queue", "inference", "scoring", "selection", "total")
KINDS = ("ranked", "session_affinity", "defaulted", "fallback", "explored")
OTHER = "other"  # label of candidates that are no longer registered
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
ROWS = (64, 128, 192, 256, 384, 512, 768, 1024, 2048)
SHARES = tuple(i / 20 for i in range(1, 21))
# They double the series; process_start_time_seconds says when all counting began.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Metric:
    """One exported metric. meaning: its help text, with the unit."""

    name: str
    kind: MetricType
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric(
        "modelsat_build_info",
        "gauge",
        ("version", "backend", "kernel"),
        "always 1; the labels say what runs",
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
        "time from a request to its status; of a stream, its whole life",
    ),
    Metric(
        "modelsat_extproc_responses_total",
        "counter",
        ("code",),
        "HTTP requests from Envoy: routed, passed (nothing to route), or the `code` of the error;"
        " their RPCs end with OK",
    ),
    Metric(
        "modelsat_decision_phase_duration_seconds",
        "histogram",
        ("phase",),
        "time of each phase of a decision: tokenize, queue, inference, scoring, selection, total",
    ),
    Metric("modelsat_batch_size", "histogram", (), "requests per forward pass"),
    Metric(
        "modelsat_batch_rows",
        "histogram",
        (),
        "rows per forward pass: tokens and candidates, padding included",
    ),
    Metric("modelsat_queue_size", "gauge", (), "requests waiting for a forward pass"),
    Metric("modelsat_queue_capacity", "gauge", (), "requests that may wait (`--max-queue-size`)"),
    Metric(
        "modelsat_decisions_total",
        "counter",
        ("kind",),
        "decisions by kind: ranked, session_affinity, defaulted, fallback, explored",
    ),
    Metric(
        "modelsat_selections_total",
        "counter",
        ("candidate",),
        "decisions by selected candidate; `other` for those no longer registered",
    ),
    Metric(
        "modelsat_candidate_set_aside",
        "gauge",
        ("candidate",),
        "1 while a candidate is set aside for some caller, because calls of it failed in a row",
    ),
    Metric(
        "modelsat_candidate_failures_total",
        "counter",
        ("candidate",),
        "calls that failed, by what callers and the gateway reported",
    ),
    Metric(
        "modelsat_adapted_decisions_total",
        "counter",
        ("selection",),
        "decisions by probabilities that the adaptation corrected: another candidate was selected"
        " than without it (`changed`), or not (`same`)",
    ),
    Metric(
        "modelsat_adaptation_active",
        "gauge",
        (),
        "1 if the adaptation corrects probabilities, 0 if not",
    ),
    Metric(
        "modelsat_adaptation_frozen",
        "gauge",
        (),
        "1 if outcomes that are recorded from now on are ignored, 0 if not",
    ),
    Metric(
        "modelsat_adaptation_hash",
        "gauge",
        (),
        "48 bits of a hash of the adaptation's ID; servers with the same outcomes export the same"
        " number, 0 for none",
    ),
    Metric(
        "modelsat_adaptation_instructions",
        "gauge",
        (),
        "instructions with outcomes that the adaptation was fitted to",
    ),
    Metric(
        "modelsat_adaptation_outcomes",
        "gauge",
        ("provenance",),
        "outcomes that the adaptation was fitted to: `comparison`, `explored` or `chosen`",
    ),
    Metric(
        "modelsat_adaptation_unused_outcomes",
        "gauge",
        ("reason",),
        "recorded outcomes that the adaptation does not use",
    ),
    Metric(
        "modelsat_adaptation_log_loss",
        "gauge",
        ("probabilities",),
        "mean log loss of outcomes that were left out of the fit, by the weights alone (`before`)"
        " and corrected (`after`)",
    ),
    Metric(
        "modelsat_adaptation_newest_outcome_timestamp_seconds",
        "gauge",
        (),
        "Unix time at which the newest outcome of the adaptation was recorded, in seconds",
    ),
    Metric("modelsat_adaptation_fit_seconds", "gauge", (), "time that the fit took"),
    Metric("modelsat_candidates_revision", "gauge", (), "revision of the candidate table"),
    Metric(
        "modelsat_candidates_revision_hash",
        "gauge",
        (),
        "48 bits of a hash of the `revision_token`; servers with the same candidates of one store"
        " export the same number, whatever was restored",
    ),
    Metric("modelsat_candidates", "gauge", (), "registered candidates"),
    Metric(
        "modelsat_candidates_from_file",
        "gauge",
        (),
        "1 while the candidates are those of `--last-table-file`: the store has not answered"
        " since the start; 0 otherwise",
    ),
    Metric(
        "modelsat_store_up",
        "gauge",
        (),
        "1 if the candidate store can be reached, 0 if not; always 1 for SQLite",
    ),
    Metric("modelsat_score_cache_hits_total", "counter", (), "decisions with cached probabilities"),
    Metric(
        "modelsat_score_cache_misses_total", "counter", (), "decisions that needed a forward pass"
    ),
    Metric("modelsat_score_cache_bytes", "gauge", (), "memory of cached probabilities"),
    Metric(
        "modelsat_probability",
        "histogram",
        ("population",),
        "success probability of the `selected` candidate, and mean of all `eligible` ones, of each"
        " scored decision",
    ),
    Metric(
        "modelsat_ood_score",
        "histogram",
        (),
        "out-of-distribution score of prompts; near 1, probabilities are extrapolation",
    ),
    Metric(
        "modelsat_audit_records_total",
        "counter",
        ("result",),
        "audit records: written, dropped (queue full), failed (disk error)",
    ),
    Metric(
        "modelsat_reload_success_timestamp_seconds",
        "gauge",
        ("files",),
        "Unix time of the last load of `tls` or `tokens` that succeeded, in seconds",
    ),
    Metric(
        "modelsat_reload_failures_total",
        "counter",
        ("files",),
        "attempts to load `tls` or `tokens` that failed; the previous ones stay in use",
    ),
    Metric(
        "modelsat_arrivals_refused_total",
        "counter",
        ("place",),
        "calls refused before their method began, by the `place` that was full: `receiving`,"
        " `probes`, `parsing`, `reads`, `streams`, `routes`, `memory`; `slow_message` was late,"
        " `half_sent` are streams that were ended",
    ),
    Metric(
        "modelsat_connections_closed_total",
        "counter",
        (),
        "idle connections closed to stay below `--max-connections`",
    ),
    Metric("process_cpu_seconds_total", "counter", (), "user and system time of the process"),
    Metric("process_resident_memory_bytes", "gauge", (), "memory in RAM"),
    Metric("process_virtual_memory_bytes", "gauge", (), "address space"),
    Metric("process_start_time_seconds", "gauge", (), "start time, Unix time in seconds"),
    Metric("process_open_fds", "gauge", (), "open files and sockets"),
    Metric("process_max_fds", "gauge", (), "limit on open files and sockets"),
)
BY_NAME = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True)
class Sources:
    """Values that are read at every scrape.

    candidates: returns the IDs that are registered now. sampled: metric name -> function that
    returns its samples.
    """

    candidates: Callable[[], Collection[str]]
    sampled: Mapping[str, Callable[[], Samples]]


class Metrics(Collector):
    """All counters and histograms, on a registry of their own.

    decided() is for the event loop, the other methods are for any thread. As a collector, it
    exports what Sources return.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sources = Sources(tuple, {})
        # First: it drops the series of removed candidates before the others are read.
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("modelsat_requests_total")
        self._rpc_seconds = self._histogram("modelsat_rpc_duration_seconds", SECONDS)
        self._extproc_responses = self._counter("modelsat_extproc_responses_total")
        self._phase_seconds = self._histogram("modelsat_decision_phase_duration_seconds", SECONDS)
        self._phases = {phase: self._phase_seconds.labels(phase) for phase in PHASES}
        self._batch_size = self._histogram("modelsat_batch_size", BATCH_SIZES)
        self._batch_rows = self._histogram("modelsat_batch_rows", ROWS)
        decisions = self._counter("modelsat_decisions_total")
        self._decisions = {kind: decisions.labels(kind) for kind in KINDS}
        adapted = self._counter("modelsat_adapted_decisions_total")
        self._adapted = {changed: adapted.labels(changed) for changed in ("changed", "same")}
        self._selections = self._counter("modelsat_selections_total")
        self._selected: set[str] = set()
        self._revision = ""
        probability = self._histogram("modelsat_probability", SHARES)
        self._selected_probability = probability.labels("selected")
        self._eligible_probability = probability.labels("eligible")
        self._ood_score = self._histogram("modelsat_ood_score", SHARES)

    def watch(self, sources: Sources) -> None:
        """Read `sources` at every scrape from now on."""
        self._sources = sources

    def answered(self, method: str, code: str, seconds: float) -> None:
        """Count an RPC that ended. code: name of its gRPC status."""
        self._requests.labels(method, code).inc()
        self._rpc_seconds.labels(method).observe(seconds)

    def extproc_answered(self, code: str) -> None:
        """Count an HTTP request that was answered. code: routed, passed, or an error's."""
        self._extproc_responses.labels(code).inc()

    def forwarded(self, requests: int, rows: int) -> None:
        """Count a forward pass."""
        self._batch_size.observe(requests)
        self._batch_rows.observe(rows)

    def decided(self, decision: Decision) -> None:
        """Count a decision; its ranking holds every eligible candidate."""
        for phase, seconds in decision.timing.items():
            (self._phases.get(phase) or self._phase_seconds.labels(phase)).observe(seconds)
        self._decisions[decision.kind].inc()
        if decision.revision_token != self._revision:
            self._revision = decision.revision_token
            self._drop_removed()
        selected = decision.selected.id
        label = selected if selected in self._sources.candidates() else OTHER
        self._selected.add(label)
        self._selections.labels(label).inc()
        if decision.adaptation_id and decision.kind != "explored":
            self._adapted["same" if selected == decision.unadapted else "changed"].inc()
        if decision.prompt.ood_score is not None:
            self._ood_score.observe(decision.prompt.ood_score)
        if decision.kind != "fallback":  # its probabilities are mean accuracies
            self._selected_probability.observe(decision.ranking[0].probability)
            total = sum(ranked.probability for ranked in decision.ranking)
            self._eligible_probability.observe(total / len(decision.ranking))

    def collect(self) -> Iterable[Family]:
        """See prometheus_client.registry.Collector."""
        self._drop_removed()
        for name, sample in self._sources.sampled.items():
            metric = BY_NAME[name]
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family: Family = kind(name, metric.meaning, labels=metric.labels)
            for labels, value in sample().items():
                family.add_metric(labels, value)
            yield family

    def _drop_removed(self) -> None:
        registered = self._sources.candidates()
        for label in [c for c in tuple(self._selected) if c != OTHER and c not in registered]:
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


def hash_48(text: str) -> int:
    """Return 48 bits of a hash of `text`; a float64 holds them exactly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def reload_samples(
    files: Mapping[str, ReloadedFiles[Any]],
) -> dict[str, Callable[[], Samples]]:
    """Return metric -> samples of files that are reloaded. files: label -> files."""
    return {
        "modelsat_reload_success_timestamp_seconds": lambda: {
            (name,): each.last_success for name, each in files.items()
        },
        "modelsat_reload_failures_total": lambda: {
            (name,): each.failures for name, each in files.items()
        },
    }


def metrics_server(address: str, registry: CollectorRegistry) -> HttpServer:
    """Bind the server of /metrics; raises ModelsatError if `address` (HOST:PORT) is not free."""

    def answer(request: Request) -> Response:
        if request.path != "/metrics":
            return Response(404, PLAIN, b"Not found; metrics are at /metrics\n")
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(200, content_type, encode(registry))

    return HttpServer(address, "--metrics-address", answer)
