"""Serve CandidateService alone, with a real registry, encoder and store but no backbone.

    python -m tests.support.admin_only_server STORE

It is ready a second sooner than `modelsat serve`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import grpc

from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.pb import candidate_service_pb2_grpc
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_encoder
from engine.registry.opening import open_registry
from engine.serving.rpc.candidate_service import CandidateService
from engine.serving.rpc.interceptors import StatusInterceptor
from tools.processes import BUNDLE, ROOT, Server, start


async def serve(store: str) -> None:
    """Print the ready line of `modelsat serve`, and serve until killed."""
    manifest = read_manifest(BUNDLE, "bundle")
    encoder = load_encoder(BUNDLE, load_arrays(BUNDLE))
    catalog = read_catalog(BUNDLE / "zoo.json")
    registry = open_registry(store, encoder, manifest.encoder_id, manifest.width, catalog)
    registry.follow()
    server = grpc.aio.server(interceptors=[StatusInterceptor()])
    service = CandidateService(registry)
    candidate_service_pb2_grpc.add_CandidateServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready on 127.0.0.1:{port}: without backbone", flush=True)
    await server.wait_for_termination()


def launch_admin_only(store: str, folder: Path) -> Server:
    """Start this server with its log in `folder`."""
    log = folder / f"admin-only-{time.monotonic_ns()}.log"
    return Server(
        start([sys.executable, "-m", "tests.support.admin_only_server", store], log, cwd=ROOT), log
    )


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
