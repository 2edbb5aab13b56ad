"""Build the components of a server: bundle, stores, inference, and the services on top."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import grpc
import numpy as np

import cpp_ext
from engine import __version__
from engine.api.candidate import Candidate
from engine.api.errors import BundleError, InvalidInputError, Violation
from engine.api.limits import MAX_MESSAGE_BYTES, MIB, ROUTER_MESSAGE_BYTES
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import Manifest, read_manifest
from engine.bundle.prompt import MAX_INSTRUCTION_TOKENS, Tokenizer, render
from engine.bundle.training_set import load_training_set
from engine.bundle.word_tokenizer import open_tokenizer
from engine.inference.backend import Backend, ScoringHead
from engine.inference.batcher import GPU_ROWS, Batcher, BatchLimits
from engine.inference.cache import ScoreCache
from engine.inference.devices import open_backend, runs_on_gpu
from engine.inference.fused import FusedBackend
from engine.pb import (
    access_log_pb2_grpc,
    adaptation_service_pb2,
    adaptation_service_pb2_grpc,
    candidate_service_pb2,
    candidate_service_pb2_grpc,
    external_processor_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from engine.registry.candidate_files.notes import notes
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_encoder
from engine.registry.opening import open_registry
from engine.registry.registry import Registry
from engine.routing.exploration import Exploration
from engine.routing.health import CandidateHealth
from engine.routing.router import FallbackMode, Router, RouterConfig
from engine.routing.sessions import SessionStore
from engine.serving.auth.decision_ids import DecisionIds
from engine.serving.auth.outcome_gate import OutcomeGate
from engine.serving.extproc.access_log import NAME as ACCESS_LOG
from engine.serving.extproc.access_log import AccessLog
from engine.serving.extproc.gateway import Gateway, options_from
from engine.serving.extproc.service import NAME as EXTPROC
from engine.serving.extproc.service import ExternalProcessor
from engine.serving.memory import OutcomeMemory, build_memory
from engine.serving.rpc.adaptation_service import AdaptationService
from engine.serving.rpc.candidate_service import CandidateService
from engine.serving.rpc.listener import Service
from engine.serving.rpc.router_service import RouterService
from engine.serving.session_sync import SessionSync, session_secret
from engine.serving.settings import EXTPROC_MAX_BODY_BYTES, Settings
from engine.serving.telemetry import Telemetry, sources
from engine.serving.telemetry.change_log import ChangeLog
from engine.serving.telemetry.metrics import Sources

ROUTER = router_service_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
ADAPTATION = adaptation_service_pb2.DESCRIPTOR.services_by_name["AdaptationService"].full_name
CANDIDATES = candidate_service_pb2.DESCRIPTOR.services_by_name["CandidateService"].full_name
WARM_UP = "Hi"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Components:
    """Everything that a server runs on, loaded but not yet serving."""

    settings: Settings
    manifest: Manifest
    backend: Backend
    head: ScoringHead
    kernel: str
    tokenizer: Tokenizer
    registry: Registry
    batcher: Batcher
    router: Router
    memory: OutcomeMemory
    decision_ids: DecisionIds
    changes: ChangeLog | None
    telemetry: Telemetry
    sources: Sources
    sessions: SessionSync

    async def close_changes(self) -> None:
        """Finish the audit of changes, if there is one."""
        if self.changes is not None:
            await asyncio.to_thread(self.changes.close)


def build(settings: Settings, telemetry: Telemetry) -> Components:
    """Load and check everything; raises BundleError, StoreError or InvalidInputError."""
    manifest = read_manifest(settings.bundle, "bundle")
    arrays = load_arrays(settings.bundle)
    candidates = first_candidates(settings)
    encoder = load_encoder(settings.bundle, arrays)
    backend = open_backend(settings.bundle, manifest, settings.device, settings.inference_threads)
    tokenizer = open_tokenizer(settings.bundle)
    registry = open_registry(
        settings.candidates_db,
        encoder,
        manifest.encoder_id,
        manifest.width,
        candidates,
        reencode_candidates=settings.reencode_candidates,
        history_limit=settings.revision_history_limit,
        last_table=settings.last_table_file if settings.last_table_file.name else None,
    )
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    batcher = Batcher(backend, head, _batch_limits(settings, backend), telemetry.forwarded)
    cache = ScoreCache(settings.score_cache_mb << 20)
    space = arrays.instruction_space
    memory = build_memory(settings, manifest, space, registry, batcher, tokenizer)
    changes = ChangeLog(settings.changes_log) if settings.changes_log.name else None
    decision_ids = DecisionIds(registry.decision_key)
    secret = session_secret(registry.decision_key)
    sessions = SessionStore(settings.max_sessions, settings.session_ttl_s, secret=secret)
    router = Router(
        registry,
        batcher,
        tokenizer,
        load_training_set(settings.bundle),
        cache,
        sessions,
        RouterConfig(
            cast(FallbackMode, settings.fallback),
            settings.default_candidate,
            settings.switching_margin,
            settings.confidence,
            Exploration(settings.exploration_share, settings.exploration_max_loss),
            settings.willingness_to_pay_usd,
            settings.escalate_after_failures,
        ),
        on_decision=telemetry.decided,
        new_id=decision_ids.new,
        adaptation=memory.refresher.current,
        recent=memory.recent,
        answer_lengths=memory.refresher.answer_lengths,
        health=CandidateHealth(settings.set_aside_failures, settings.set_aside_s),
    )
    kernel = cpp_ext.implementation()
    if not kernel.startswith("c++"):
        log.warning("scoring runs without the compiled kernel: %s", kernel)
    inference = (backend, head, kernel, tokenizer, registry, batcher)
    build_info = {"version": __version__, "backend": backend.describe(), "kernel": kernel}
    scraped = sources(
        registry.table,
        batcher,
        settings.max_queue_size,
        cache,
        build_info,
        lambda: registry.store_state.connected,
        lambda: registry.from_file,
        memory.refresher,
        router.health,
    )
    return Components(
        settings,
        manifest,
        *inference,
        router,
        memory,
        decision_ids,
        changes,
        telemetry,
        scraped,
        SessionSync(sessions, settings.outcomes_db),
    )


def first_candidates(settings: Settings) -> Sequence[Candidate]:
    """Return the candidates of a new store; raises InvalidInputError that names the flag."""
    if settings.catalog == "none":
        return ()
    if settings.catalog == "default":
        return read_catalog(settings.bundle / "zoo.json")
    try:
        candidates = read_catalog(Path(settings.catalog))
        for note in (note for candidate in candidates for note in notes(candidate)):
            log.warning("%s", note)
        return candidates
    except InvalidInputError as error:
        expected = "expected default, none, or a file of candidates."
        found = Violation("--catalog", f"is {settings.catalog!r}; {expected}")
        raise InvalidInputError(found, *error.violations) from error


def _batch_limits(settings: Settings, backend: Backend) -> BatchLimits:
    size = settings.max_queue_size
    share = max(1, round(settings.max_queue_share * size))
    padded = not isinstance(backend, FusedBackend)
    limits = BatchLimits(max_queue_size=size, max_per_principal=share, padded=padded)
    return replace(limits, max_rows=GPU_ROWS) if runs_on_gpu(backend) else limits


def warm_up(components: Components) -> None:
    """Run one forward pass of a short prompt, so that the first request is not slower than others.

    Raises:
        BundleError: the backbone fails.
    """
    prompt = render(WARM_UP, components.tokenizer)
    embeddings = components.registry.table().embeddings
    if not len(embeddings):
        embeddings = np.zeros((1, *embeddings.shape[1:]), dtype=np.float32)
    rows = np.arange(len(embeddings))
    try:
        components.backend.probabilities([prompt.tokens], embeddings, rows, components.head)
    except Exception as error:
        raise BundleError(
            f"the backbone of {components.settings.bundle} fails on a short prompt"
            f" ({type(error).__name__}); try another --device, or `make clean export`."
        ) from error


def services_by_address(components: Components) -> list[tuple[str, Sequence[Service]]]:
    """Return (setting of the address, services there), that of RouterService first."""
    settings = components.settings
    router_service = RouterService(
        components.router,
        lambda: server_info(components),
        settings.max_text_bytes,
        OutcomeGate(
            components.memory.store,
            components.decision_ids,
            components.registry.table,
            components.memory.recent,
            components.memory.scorer if components.memory.enabled else None,
            components.router.health,
        ),
    )
    candidate_service = CandidateService(
        components.registry, components.changes, components.router.health.set_aside
    )
    adaptation_service = AdaptationService(
        components.memory.refresher,
        components.memory.recent,
        components.changes,
        components.registry.table,
    )

    def add_router(server: grpc.aio.Server) -> None:
        router_service_pb2_grpc.add_RouterServiceServicer_to_server(router_service, server)

    def add_candidates(server: grpc.aio.Server) -> None:
        candidate_service_pb2_grpc.add_CandidateServiceServicer_to_server(candidate_service, server)

    def add_adaptation(server: grpc.aio.Server) -> None:
        adaptation_service_pb2_grpc.add_AdaptationServiceServicer_to_server(
            adaptation_service, server
        )

    router, candidates = Service(ROUTER, add_router), Service(CANDIDATES, add_candidates)
    adaptation = Service(ADAPTATION, add_adaptation)
    extproc = [("extproc_address", _extproc(components))] if settings.extproc_address else []
    if not settings.admin_address:
        return [("address", [router, candidates, adaptation]), *extproc]
    return [("address", [router]), ("admin_address", [candidates, adaptation]), *extproc]


def max_message_bytes(settings: Settings, services: Sequence[Service]) -> int:
    """Return the limit on one message of an address: that of its service with the largest."""
    sizes = {
        CANDIDATES: MAX_MESSAGE_BYTES,
        ADAPTATION: ROUTER_MESSAGE_BYTES,
        EXTPROC: EXTPROC_MAX_BODY_BYTES + MIB,
        ACCESS_LOG: MIB,
        ROUTER: max(ROUTER_MESSAGE_BYTES, settings.max_text_bytes + MIB),
    }
    return min(MAX_MESSAGE_BYTES, max(sizes[service.name] for service in services))


def _extproc(components: Components) -> list[Service]:
    options = options_from(components.settings)
    processor = ExternalProcessor(Gateway(components.router, options), components.telemetry)
    health, table = components.router.health, components.registry.table
    attempts = AccessLog(health, lambda: table().rows, options.model_header, options.models)
    add_processor = external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server
    add_log = access_log_pb2_grpc.add_AccessLogServiceServicer_to_server
    return [
        Service(EXTPROC, partial(add_processor, processor)),
        Service(ACCESS_LOG, partial(add_log, attempts)),
    ]


def server_info(components: Components) -> router_service_pb2.GetServerInfoResponse:
    """Describe the server, its bundle and its table."""
    manifest, table = components.manifest, components.registry.table()
    learned = components.memory.refresher.status()
    return router_service_pb2.GetServerInfoResponse(
        version=__version__,
        backend=components.backend.describe(),
        scoring_kernel=components.kernel,
        prompt_layout=manifest.layout,
        aptitude_representation=manifest.representation,
        num_layers=manifest.depth,
        prompt_version=manifest.prompt_version,
        encoder_id=manifest.encoder_id,
        revision=table.revision,
        revision_token=table.id.token,
        store_connected=components.registry.store_state.connected,
        table_from_file=components.registry.from_file,
        candidates=len(table.candidates),
        max_instruction_tokens=MAX_INSTRUCTION_TOKENS,
        max_text_bytes=components.settings.max_text_bytes,
        adaptation_id=learned.id if learned is not None and learned.decides else "",
        remembered_instructions=0 if learned is None else learned.figures.instructions,
    )
