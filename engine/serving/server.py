"""Puts a bundle, a store and the two services behind one port."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from tokenizers import Tokenizer

import cpp_ext
from engine.contract.arrays import load_arrays
from engine.contract.bundle import Manifest, read_manifest
from engine.contract.errors import BundleError
from engine.contract.prompt import MAX_INSTRUCTION_TOKENS
from engine.contract.training_set import load_training_set
from engine.pb import (
    candidate_service_pb2,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from engine.registry.onnx_encoder import load_encoder
from engine.registry.registry import Registry, open_registry
from engine.registry.zoo import read_zoo
from engine.router import Router
from engine.scoring.backend import Backend, Readout
from engine.scoring.batcher import Batcher, Limits
from engine.scoring.cache import ScoreCache
from engine.scoring.devices import open_backend
from engine.serving.candidate_service import CandidateService
from engine.serving.router_service import RouterService
from engine.serving.settings import MAX_MESSAGE_BYTES, Settings
from engine.serving.status import StatusInterceptor
from engine.version import VERSION

SERVICES = (
    router_service_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name,
    candidate_service_pb2.DESCRIPTOR.services_by_name["CandidateService"].full_name,
)
HEALTH_NAMES = ("", "readiness", "liveness", *SERVICES)
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A server that answers. port: the one it listens on."""

    port: int
    registry: Registry
    batcher: Batcher
    _server: grpc.aio.Server
    _health: health.aio.HealthServicer

    async def stop(self, grace_s: float) -> None:
        """Turn NOT_SERVING, let requests in flight end, close the store."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        await self.batcher.stop()
        await self.registry.close()


async def start_server(settings: Settings) -> Running:
    """Check and load everything, then listen. Raises BundleError, StoreError, InvalidInputError."""
    manifest = read_manifest(settings.bundle, "bundle")
    arrays = load_arrays(settings.bundle)
    encoder = load_encoder(settings.bundle, manifest, arrays)
    backend = open_backend(settings.bundle, manifest, settings.device, settings.threads)
    tokenizer = Tokenizer.from_file(str(settings.bundle / "tokenizer.json"))
    registry = open_registry(
        Path(settings.store),
        encoder,
        manifest.encoder_id,
        manifest.width,
        read_zoo(settings.bundle / "zoo.json"),
        reembed=settings.reembed,
    )
    readout = Readout(arrays.readout, manifest.norm_eps, manifest.calibration)
    batcher = Batcher(backend, readout, Limits(waiting=settings.max_waiting))
    cache = ScoreCache(settings.cache_mb << 20)
    router = Router(registry, batcher, tokenizer, load_training_set(settings.bundle), cache)
    kernel = cpp_ext.implementation()
    if not kernel.startswith("c++"):
        log.warning("scoring runs in %s", kernel)

    def info() -> router_service_pb2.GetServerInfoResponse:
        return _info(manifest, backend, kernel, registry, settings)

    server = grpc.aio.server(
        interceptors=[StatusInterceptor()],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a twin
        ],
    )
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(
        RouterService(router, info, settings.max_text_bytes), server
    )
    candidate_service_pb2_grpc.add_CandidateServiceServicer_to_server(
        CandidateService(registry), server
    )
    return await _listen(server, settings.address, registry, batcher)


async def _listen(
    server: grpc.aio.Server, address: str, registry: Registry, batcher: Batcher
) -> Running:
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    _add_reflection(server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        await registry.close()
        raise BundleError(
            f"cannot listen on {address}: it is taken or not an address of this machine; give"
            " --address another HOST:PORT."
        ) from error
    batcher.start()
    await server.start()
    for name in HEALTH_NAMES:
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    return Running(port, registry, batcher, server, healthy)


def _add_reflection(server: grpc.aio.Server) -> None:
    """v1alpha from grpcio-reflection, and v1: the same messages under another service name."""
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    method = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(REFLECTION_V1, method),))


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; prints one line that begins with `ready` once it answers."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    running = await start_server(settings)
    table = running.registry.table()
    host = settings.address.rpartition(":")[0]
    print(
        f"ready on {host}:{running.port}: {len(table.candidates)} candidates, revision"
        f" {table.revision}, bundle {settings.bundle}",
        flush=True,
    )
    await stopping.wait()
    log.info("stopping")
    await running.stop(settings.grace_s)


def _info(
    manifest: Manifest, backend: Backend, kernel: str, registry: Registry, settings: Settings
) -> router_service_pb2.GetServerInfoResponse:
    table = registry.table()
    return router_service_pb2.GetServerInfoResponse(
        version=VERSION,
        backend=backend.describe(),
        kernel=kernel,
        layout=manifest.layout,
        representation=manifest.representation,
        depth=manifest.depth,
        prompt_version=manifest.prompt_version,
        encoder_id=manifest.encoder_id,
        revision=table.revision,
        candidates=len(table.candidates),
        max_instruction_tokens=MAX_INSTRUCTION_TOKENS,
        max_text_bytes=settings.max_text_bytes,
    )
