"""OpenTelemetry spans, joined to the caller's trace and sent to a collector by OTLP over gRPC.

Each RPC has a span, with a child for each phase of its decision, made from times that are measured
anyway. An RPC of several decisions (BatchRoute, StreamRoute) has a child `decide` for each, with
the phases below it. What the caller samples is sampled; without a caller's trace, everything. Spans
never contain instructions.

Only this module imports opentelemetry, and it is only imported if --otlp-endpoint is set.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Thread

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.routing.decision import Decision

QUEUE_SIZE = 2048  # spans; the oldest are dropped if the collector is too slow
BATCH = 512
DELAY_MS = 1000
EXPORT_S = 5.0
STOP_S = 3.0
MULTI_DECISION = ("/BatchRoute", "/StreamRoute")
# In the order in which they happen; `choose` ends with the decision.
PHASES = ("tokenize", "queue", "inference", "scoring")


@dataclass(frozen=True)
class Rpc:
    """The span of a running RPC. several: whether it may make more than one decision."""

    span: Span
    context: Context
    several: bool

    @property
    def trace_id(self) -> str:
        """Trace ID, 32 hexadecimal digits."""
        return format_trace_id(self.span.get_span_context().trace_id)


_RUNNING: ContextVar[Rpc | None] = ContextVar("rpc", default=None)


class Tracing:
    """Send spans to the OTLP collector at `address` (HOST:PORT, without TLS)."""

    def __init__(self, address: str, version: str) -> None:
        attributes = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", "modelsat"),
            "service.version": version,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
        self._exporter = OTLPSpanExporter(f"http://{address}", insecure=True, timeout=EXPORT_S)
        self._provider = TracerProvider(
            ParentBased(ALWAYS_ON), Resource.create(attributes), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=QUEUE_SIZE,
                schedule_delay_millis=DELAY_MS,
                max_export_batch_size=BATCH,
            )
        )
        self._tracer: Tracer = self._provider.get_tracer("modelsat", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, headers: Mapping[str, str]) -> Rpc:
        """Start the span of an RPC; decisions of this task and of its children become child spans.

        Args:
            method: package.Service/Method.
            headers: may hold a W3C trace context.
        """
        service, _, name = method.rpartition("/")
        parent = self._propagator.extract(headers, Context())
        span = self._tracer.start_span(
            method,
            parent,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        rpc = Rpc(span, set_span_in_context(span, parent), method.endswith(MULTI_DECISION))
        _RUNNING.set(rpc)
        return rpc

    def end(self, rpc: Rpc, code: str, number: int) -> None:
        """End the span of an RPC. code, number: of its gRPC status."""
        rpc.span.set_attribute("rpc.grpc.status_code", number)
        if number:
            rpc.span.set_status(Status(StatusCode.ERROR, code))
        rpc.span.end()

    def decided(self, decision: Decision) -> None:
        """Add the spans of a decision that was just made, in the task of an RPC."""
        rpc = _RUNNING.get()
        if rpc is None or not rpc.span.is_recording():
            return
        end = time.time_ns()
        begin = end - _nanoseconds(decision, "total")
        span, context = rpc.span, rpc.context
        if rpc.several:
            span = self._tracer.start_span("decide", context, start_time=begin)
            context = set_span_in_context(span, context)
        span.set_attributes(
            {
                "modelsat.decision_id": decision.id,
                "modelsat.revision": decision.revision,
                "modelsat.revision_token": decision.revision_token,
                "modelsat.selected": decision.selected.name,
                "modelsat.kind": decision.kind,
                "modelsat.adaptation_id": decision.adaptation_id,
            }
        )
        at = begin
        for phase in PHASES:
            at = self._phase(phase, context, at, at + _nanoseconds(decision, phase))
        self._phase("selection", context, end - _nanoseconds(decision, "selection"), end)
        if rpc.several:
            span.end(end)

    def _phase(self, name: str, context: Context, begin: int, end: int) -> int:
        self._tracer.start_span(name, context, start_time=begin).end(end)
        return end

    def stop(self) -> None:
        """Send what is queued, within STOP_S seconds."""
        ending = Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(STOP_S)
        if (
            ending.is_alive()
        ):  # the collector does not answer; without its exporter the provider gives up
            self._exporter.shutdown()


def _nanoseconds(decision: Decision, phase: str) -> int:
    return round(decision.timing.get(phase, 0.0) * 1e9)
