"""/metrics over HTTP."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from engine.serving.http_server import PLAIN, Answer, HttpServer, Request, Response


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
