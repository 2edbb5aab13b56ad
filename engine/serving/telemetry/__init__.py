"""Telemetry of the server: metrics, traces, log lines and audit log.

Router, batcher and interceptors report to it. Nothing that it does may fail or delay a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.rpc import code_pb2

from engine import __version__
from engine.adaptation.source import AdaptationSource
from engine.api.errors import ModelsatError
from engine.api.policy import Policy
from engine.api.request_context import TRACE, trace_of
from engine.inference.batcher import Batcher
from engine.inference.cache import ScoreCache
from engine.registry.stores.base import RevisionId
from engine.registry.table import Table
from engine.routing.decision import Decision
from engine.routing.health import CandidateHealth
from engine.serving.console.feed import Feed
from engine.serving.console.http_server import HttpServer
from engine.serving.rpc.status import code_of
from engine.serving.settings import Settings
from engine.serving.telemetry.adaptation_samples import adaptation_samples
from engine.serving.telemetry.audit import AuditLog
from engine.serving.telemetry.metrics import Metrics, Sources, hash_48, metrics_server

if TYPE_CHECKING:
    from engine.serving.telemetry.tracing import Rpc, Tracing

# Counted but not traced: probes come every few seconds, and traced() covers ext_proc.
UNTRACED = ("grpc.health.", "grpc.reflection.", "envoy.service.")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """An RPC in progress. method: package.Service/Method. started: of time.perf_counter()."""

    method: str
    started: float
    rpc: Rpc | None


class Telemetry:
    """One per server; each part is None if the settings leave it off. feed: for the console."""

    def __init__(
        self,
        metrics: Metrics | None = None,
        metrics_http: HttpServer | None = None,
        tracing: Tracing | None = None,
        audit: AuditLog | None = None,
        feed: Feed | None = None,
    ) -> None:
        self.metrics = metrics
        self.feed = feed
        self._metrics_http = metrics_http
        self._tracing = tracing
        self._audit = audit

    def start(self, sources: Sources) -> None:
        """Serve /metrics. sources: read at every scrape."""
        if self.metrics is None:
            return
        sampled = dict(sources.sampled)
        if self._audit is not None:
            records = self._audit.records
            sampled["modelsat_audit_records_total"] = lambda: {
                (result,): count for result, count in records.items()
            }
        self.metrics.watch(Sources(sources.candidates, sampled))
        if self._metrics_http is not None:
            self._metrics_http.start()
            log.info("metrics on port %d, /metrics", self._metrics_http.port)

    def begin(self, method: str, headers: Mapping[str, str]) -> Call:
        """Start to measure an RPC in this task. headers: its metadata."""
        rpc = None
        if self._tracing is not None and not method.startswith(UNTRACED):
            rpc = self._tracing.begin(method, headers)
        traceparent = headers.get("traceparent")
        TRACE.set(rpc.trace_id if rpc else trace_of(traceparent) if traceparent else "")
        return Call(method, time.perf_counter(), rpc)

    @contextmanager
    def traced(self, name: str, headers: Mapping[str, str]) -> Iterator[None]:
        """Trace the work for one HTTP request, in this task. headers: of the request or its RPC."""
        rpc = self._tracing.begin(name, headers) if self._tracing is not None else None
        traceparent = headers.get("traceparent")
        TRACE.set(rpc.trace_id if rpc else trace_of(traceparent) if traceparent else "")
        number = code_pb2.CANCELLED
        try:
            yield
            number = code_pb2.OK
        except Exception as error:
            number = code_of(error)
            raise
        finally:
            if self._tracing is not None and rpc is not None:
                self._tracing.end(rpc, code_pb2.Code.Name(number), number)

    def extproc_answered(self, code: str) -> None:
        """See Metrics.extproc_answered."""
        if self.metrics is not None:
            self.metrics.extproc_answered(code)

    def answered(self, call: Call, code: str, number: int) -> None:
        """Report the end of an RPC. code, number: of its gRPC status."""
        if self.metrics is not None:
            self.metrics.answered(call.method, code, time.perf_counter() - call.started)
        if self._tracing is not None and call.rpc is not None:
            self._tracing.end(call.rpc, code, number)

    def forwarded(self, requests: int, rows: int) -> None:
        """Report a forward pass."""
        if self.metrics is not None:
            self.metrics.forwarded(requests, rows)

    def decided(self, decision: Decision, policy: Policy, text: str, dry_run: bool) -> None:
        """Report a decision of this task; its ranking holds every eligible candidate.

        A dry run is traced and logged, but not counted, audited or shown in the console.
        """
        try:
            if self._tracing is not None:
                self._tracing.decided(decision)
            if self.metrics is not None and not dry_run:
                self.metrics.decided(decision)
            if self._audit is not None and not dry_run:
                self._audit.offer(decision, policy, TRACE.get(), text)
            if self.feed is not None and not dry_run:
                self.feed.add(decision, text)
        except Exception as error:  # the caller gets the decision anyway
            log.error("telemetry of a decision failed: %s", type(error).__name__, exc_info=True)
        if log.isEnabledFor(logging.DEBUG):
            _log_decision(decision, dry_run)

    def reopen(self) -> None:
        """Reopen the audit log, on SIGHUP."""
        if self._audit is not None:
            self._audit.reopen()

    async def stop(self) -> None:
        """Send and write what is queued, for a few seconds at most, and close the port."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        for part in (self._audit, self._tracing, self._metrics_http):
            if part is not None:
                part.stop()


def open_telemetry(settings: Settings) -> Telemetry:
    """Open everything that the settings turn on.

    Raises:
        ModelsatError: a port is taken, a file is not writable or a package is missing.
    """
    tracing = _open_tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    metrics = served = audit = feed = None
    if settings.metrics_address:
        metrics = Metrics()
        served = metrics_server(settings.metrics_address, metrics.registry)
    if settings.console_address:
        feed = Feed(with_text=settings.audit_include_text)
    if settings.audit_log.name:
        audit = AuditLog(
            settings.audit_log, settings.audit_sample_rate, with_text=settings.audit_include_text
        )
    return Telemetry(metrics, served, tracing, audit, feed)


def sources(
    table: Callable[[], Table],
    batcher: Batcher,
    queue_limit: int,
    cache: ScoreCache,
    build_info: Mapping[str, str],
    store_up: Callable[[], bool] = lambda: True,
    from_file: Callable[[], bool] = lambda: False,
    adaptation: AdaptationSource | None = None,
    health: CandidateHealth | None = None,
) -> Sources:
    """Return what a scrape reads.

    Args:
        table: returns the current table.
        batcher: its queue is sampled.
        queue_limit: of the batcher.
        cache: its hits, misses and size are sampled.
        build_info: version, backend and kernel, in this order.
        store_up: whether the candidate store can be reached. Called from another thread at every
            scrape, so it must not wait.
        from_file: whether the table is that of an earlier run. Called like store_up.
        adaptation: what was learned from outcomes; None if the server does not learn.
        health: of the candidates, by what is reported.
    """
    health = CandidateHealth() if health is None else health
    info = {tuple(build_info.values()): 1.0}
    return Sources(
        lambda: table().rows,
        {
            "modelsat_build_info": lambda: info,
            "modelsat_queue_size": lambda: {(): batcher.queue_size},
            "modelsat_queue_capacity": lambda: {(): queue_limit},
            "modelsat_candidates_revision": lambda: {(): table().revision},
            "modelsat_candidates_revision_hash": lambda: {(): revision_hash(table().id)},
            "modelsat_candidates": lambda: {(): len(table().candidates)},
            "modelsat_candidates_from_file": lambda: {(): from_file()},
            "modelsat_store_up": lambda: {(): store_up()},
            "modelsat_score_cache_hits_total": lambda: {(): cache.hits},
            "modelsat_score_cache_misses_total": lambda: {(): cache.misses},
            "modelsat_score_cache_bytes": lambda: {(): cache.size},
            "modelsat_candidate_set_aside": health.samples,
            "modelsat_candidate_failures_total": lambda: {
                (candidate,): count
                for candidate, count in health.failures.copy().items()
                if candidate in table().rows
            },
            **adaptation_samples(adaptation),
        },
    )


def revision_hash(revision: RevisionId) -> int:
    """Return 48 bits that stand for the identity of a revision."""
    return hash_48(revision.token)


def _open_tracing(address: str) -> Tracing:
    try:
        from engine.serving.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ModelsatError(
            f"--otlp-endpoint needs a package that is not installed ({error.name}); run"
            " `pip install 'modelsat[otel]'`, or leave it out."
        ) from error
    return Tracing(address, __version__)


def _log_decision(decision: Decision, dry_run: bool) -> None:
    log.debug(
        "decided",
        extra={
            "selected": decision.selected.name,
            "kind": decision.kind,
            "revision": decision.revision,
            "adaptation": decision.adaptation_id,
            "unadapted": decision.unadapted,
            "input_tokens": decision.prompt.input_tokens,
            "dry_run": dry_run,
            "total_ms": round(1000 * decision.timing["total"], 3),
        },
    )
