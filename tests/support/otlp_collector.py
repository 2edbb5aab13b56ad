"""An OTLP collector that keeps the spans that it receives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """The collector's gRPC service. address: its HOST:PORT."""

    def __init__(self) -> None:
        self.address = ""
        self.received: list[pb.ExportTraceServiceRequest] = []

    def Export(  # noqa: N802 - named by the proto
        self, request: pb.ExportTraceServiceRequest, context: Any
    ) -> pb.ExportTraceServiceResponse:
        self.received.append(request)
        return pb.ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        """Return all spans received so far."""
        return [
            span
            for request in list(self.received)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def await_spans(self, wanted: Callable[[Span], bool], count: int) -> list[Span]:
        """Wait for at least `count` spans for which wanted() is true, and return them."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            matching = [span for span in self.spans() if wanted(span)]
            if len(matching) >= count:
                return matching
            time.sleep(0.05)
        raise AssertionError(f"expected {count} spans, received: {self.spans()}")


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def attributes(span: Span) -> dict[str, Any]:
    """Return the attributes of a span as plain values."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
