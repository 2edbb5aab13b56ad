"""The Prometheus instruments behind metric_table.py, on a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.router import Decision
from engine.serving.drift import Drift
from engine.serving.metric_table import BY_NAME

Samples = Mapping[tuple[str, ...], float]  # values of the labels -> value
Family = CounterMetricFamily | GaugeMetricFamily
PHASES = ("prepare", "queue", "forward", "score", "choose", "total")
KINDS = ("scored", "session", "abstained", "fallback")
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
        self._request_seconds = self._histogram("modelsat_request_seconds", SECONDS)
        self._extproc_answers = self._counter("modelsat_extproc_answers_total")
        self._phase_seconds = self._histogram("modelsat_phase_seconds", SECONDS)
        self._phases = {phase: self._phase_seconds.labels(phase) for phase in PHASES}
        self._forward_requests = self._histogram("modelsat_forward_requests", JOINED)
        self._forward_rows = self._histogram("modelsat_forward_rows", ROWS)
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

    def decided(self, decision: Decision, kind: str) -> None:
        """A decision was made; its ranking holds every eligible candidate. kind: one of KINDS."""
        for phase, seconds in decision.timing.items():
            (self._phases.get(phase) or self._phase_seconds.labels(phase)).observe(seconds)
        self._decisions[kind].inc()
        if decision.revision != self._revision:
            self._revision = decision.revision
            self._drop_removed()
        chosen = decision.selected.id
        label = chosen if chosen in self._sources.candidates() else OTHER
        self._selected.add(label)
        self._selections.labels(label).inc()
        if kind != "fallback":  # there, they are mean accuracies
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
        if decision.unlikeness is not None:
            self._unlikeness.add(decision.unlikeness)

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
