"""The life of a server: load, warm up, listen, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.api.errors import ModelsatError
from engine.api.limits import ROUTER_MESSAGE_BYTES
from engine.inference.batcher import Batcher
from engine.inference.fused import FusedBackend
from engine.registry.registry import Registry
from engine.registry.stores.base import StoreState
from engine.registry.stores.outcomes import OutcomeStore
from engine.serving.auth.file_watch import ReloadedFiles
from engine.serving.auth.interceptor import AccessInterceptor
from engine.serving.auth.tls import Certificates, TlsFiles
from engine.serving.auth.tokens import CHECK_INTERVAL_S, TokenFile
from engine.serving.components import (
    Components,
    build,
    max_message_bytes,
    services_by_address,
    warm_up,
)
from engine.serving.console.app import Console, open_console
from engine.serving.event_loop import OverloadSelector
from engine.serving.rpc.arrivals import Arrivals, arrival_samples
from engine.serving.rpc.connections import ConnectionWatch, connection_limit, raise_descriptor_limit
from engine.serving.rpc.drain import Drain
from engine.serving.rpc.fair_slots import FairSlots
from engine.serving.rpc.half_sent import HalfSentMessages, watch_half_sent
from engine.serving.rpc.interceptors import StatusInterceptor, TelemetryInterceptor
from engine.serving.rpc.listener import Listener, bind, insecure_listener_warnings
from engine.serving.settings import Settings
from engine.serving.shutdown import CLOSE_S, bounded
from engine.serving.signals import Stopping
from engine.serving.telemetry import open_telemetry
from engine.serving.telemetry.metrics import reload_samples

ROUTES_AT_ONCE = 64  # of principals with a name, enough to fill every forward pass
WAITING_RATIO = 4  # calls of Route that may wait for their turn, relative to --max-queue-size
STALL_LIMIT_S = 30.0  # a forward pass or a series of failures this long turns liveness off
PRUNE_S = 3600.0  # between deletions of old outcomes
MAX_NOTICE_S = 1.0  # for load balancers to see NOT_SERVING; at most a quarter of the grace period
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuthConfig:
    """TLS and token authentication. certificates: None means plain text. tokens: None means that
    every client has access."""

    certificates: Certificates | None
    tokens: TokenFile | None

    def files(self) -> Mapping[str, ReloadedFiles[Any]]:
        """Return name -> files that are reloaded while the server runs."""
        parts = {"tls": self.certificates, "tokens": self.tokens}
        return {name: part.files for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class RunningServer:
    """A server that answers. listeners: that of RouterService first."""

    listeners: tuple[Listener, ...]
    components: Components
    drain: Drain
    connections: ConnectionWatch
    watches: tuple[asyncio.Task[None], ...]
    console: Console | None

    async def stop(self, grace_s: float) -> None:
        """Stop without failing a request: report NOT_SERVING, serve on until load balancers have
        noticed, refuse new calls, let those in flight complete, and close the stores. Takes at most
        grace_s + CLOSE_S seconds: what hangs is left behind."""
        components, deadline = self.components, time.monotonic() + grace_s
        for watch in self.watches:
            watch.cancel()
        for listener in self.listeners:
            await listener.retire()
        components.registry.close_watches()
        await asyncio.sleep(min(MAX_NOTICE_S, grace_s / 4))
        if self.console is not None:
            await bounded("the console", self.console.stop(), time.monotonic() + CLOSE_S)
        await self.drain.close(max(0.0, deadline - time.monotonic()))
        left = max(0.0, deadline - time.monotonic())
        await asyncio.gather(*(listener.stop(left) for listener in self.listeners))
        self.connections.stop()
        deadline = max(deadline, time.monotonic() + CLOSE_S)
        registry_s = deadline - CLOSE_S / 2 - time.monotonic()
        await asyncio.gather(
            bounded("inference", components.batcher.stop(), deadline),
            bounded("the outcomes", components.memory.close(), deadline),
            bounded("the sessions", components.sessions.close(), deadline),
            bounded("the candidate store", components.registry.close(registry_s), deadline),
            bounded("the audit of changes", components.close_changes(), deadline),
            bounded("telemetry", components.telemetry.stop(), deadline),
        )


def read_auth(settings: Settings) -> AuthConfig:
    """Read the files of TLS and tokens; raises InvalidInputError."""
    files = TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return AuthConfig(
        Certificates(files) if settings.tls_certificate.name else None,
        TokenFile(settings.auth_tokens_file) if settings.auth_tokens_file.name else None,
    )


async def start_server(components: Components, auth: AuthConfig) -> RunningServer:
    """Warm up, then listen.

    Raises:
        ModelsatError: an address is taken or the backbone fails. The stores are closed then.
    """
    drain, connections, access = Drain(), ConnectionWatch(), _access(components, auth)
    half_sent = HalfSentMessages()
    try:
        await asyncio.to_thread(warm_up, components)
        listeners, arrivals = _bind(components, auth, access, drain, connections, half_sent)
        console = open_console(components, auth.tokens, auth.certificates)
    except ModelsatError:
        await components.memory.close()
        await components.registry.close()
        raise
    reloads = reload_samples(auth.files())
    refused = arrival_samples(arrivals, half_sent, connections)
    sampled = {**components.sources.sampled, **reloads, **refused}
    components.telemetry.start(replace(components.sources, sampled=sampled))
    components.batcher.start()
    filling = await components.memory.start()
    await components.sessions.start()
    connections.start()
    for listener in listeners:
        await listener.start(bool(components.registry.table().candidates))
    if console is not None:
        console.start()
    on_state = _store_health_hook(listeners)
    components.registry.on_store_state(on_state)
    on_state(components.registry.store_state)
    components.registry.follow()
    ports = [listener.port for listener in listeners]
    watches: tuple[asyncio.Task[None], ...] = (
        asyncio.create_task(watch_stalls(components.batcher, listeners), name="stalls"),
        asyncio.create_task(watch_files(auth, access), name="files"),
        asyncio.create_task(watch_table(components.registry, listeners), name="table"),
        asyncio.create_task(prune_outcomes(components.memory.store), name="prune"),
        asyncio.create_task(watch_half_sent(half_sent, ports), name="half-sent"),
        asyncio.create_task(components.sessions.run(), name="sessions"),
        *([] if filling is None else [filling]),
    )
    return RunningServer(listeners, components, drain, connections, watches, console)


async def watch_stalls(
    batcher: Batcher, listeners: Sequence[Listener], limit_s: float = STALL_LIMIT_S
) -> None:
    """Turn liveness off while inference hangs or fails.

    A forward pass that runs for limit_s seconds hangs: its thread cannot be stopped, only the
    process can. Two or more that failed over limit_s, none succeeding, may need a restart as well.
    Readiness stays on, so that requests still come and the first one that is scored turns liveness
    on again.
    """
    alive = True
    while True:
        await asyncio.sleep(min(1.0, limit_s / 4))
        problem = _liveness_problem(batcher, limit_s)
        if (not problem) == alive:
            continue
        alive = not alive
        if alive:
            log.info("inference recovered")
        else:
            log.error("%s; restart the server", problem)
        await asyncio.gather(*(listener.live(alive) for listener in listeners))


def _liveness_problem(batcher: Batcher, limit_s: float) -> str:
    """Say what only a restart may fix, "" if nothing has lasted for limit_s seconds."""
    if (stalled_s := batcher.stalled_s) >= limit_s:
        return f"the forward pass has run for {stalled_s:.0f} s"
    if (failing_s := batcher.failing_s) >= limit_s:
        return f"every forward pass has failed for {failing_s:.0f} s"
    return ""


def _store_health_hook(listeners: Sequence[Listener]) -> Callable[[StoreState], None]:
    """Return a hook that reports the store's state under the health name `store`."""
    running: set[asyncio.Task[None]] = set()

    def on_state(state: StoreState) -> None:
        for listener in listeners:
            task = asyncio.create_task(listener.store(state.connected))
            running.add(task)
            task.add_done_callback(running.discard)

    return on_state


async def watch_table(registry: Registry, listeners: Sequence[Listener]) -> None:
    """Turn readiness off while no candidate is registered, because nothing can be routed."""
    ready = None
    async for table in registry.watch():
        if ready is (has_candidates := bool(table.candidates)):
            continue
        ready = has_candidates
        if not ready:
            log.warning("no candidate is registered; `modelsat candidates create FILE` adds some")
        for listener in listeners:
            await listener.ready(ready)


async def watch_files(auth: AuthConfig, access: AccessInterceptor) -> None:
    """Reload tokens and certificates that changed, and end the streams of revoked tokens.

    Calls reload them too; this is for a server without calls, for its metrics and for its streams.
    """
    while auth.files():
        await asyncio.sleep(CHECK_INTERVAL_S)
        for name, files in auth.files().items():
            try:
                await asyncio.to_thread(files.refresh)
            except Exception:  # streams of revoked tokens must end, whatever fails
                log.exception("could not reload %s", name)
        access.end_revoked()


async def prune_outcomes(outcomes: OutcomeStore, interval_s: float = PRUNE_S) -> None:
    """Delete outcomes that became too old although none are recorded."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await outcomes.prune()
        except ModelsatError as error:
            log.warning("old outcomes were not deleted: %s", error)


def _access(components: Components, auth: AuthConfig) -> AccessInterceptor:
    has_client_ca = bool(components.settings.tls_client_ca.name)
    return AccessInterceptor(auth.tokens, client_certificates=has_client_ca)


def _bind(
    components: Components,
    auth: AuthConfig,
    access: AccessInterceptor,
    drain: Drain,
    connections: ConnectionWatch,
    half_sent: HalfSentMessages,
) -> tuple[tuple[Listener, ...], tuple[Arrivals, ...]]:
    """Listen on every address; return the listeners and, in the same order, their arrivals."""
    settings, certificates = components.settings, auth.certificates
    interceptors = [  # outermost first, after an Arrivals for each address
        TelemetryInterceptor(components.telemetry),
        access,
        drain,
        StatusInterceptor(),
    ]
    addresses = services_by_address(components)
    limit = connection_limit(settings.max_connections, raise_descriptor_limit(), len(addresses))
    longest_string = max(ROUTER_MESSAGE_BYTES, settings.max_text_bytes)
    routes = None
    if settings.fallback != "overload":  # which answers at once instead
        at_once = min(ROUTES_AT_ONCE, settings.max_queue_size)
        waiting = WAITING_RATIO * settings.max_queue_size
        routes = FairSlots(at_once, waiting, "calls of Route", first_at_once=True)
    listeners, all_arrivals = [], []
    for name, services in addresses:
        credentials = None if certificates is None else certificates.credentials()
        largest = max_message_bytes(settings, services)
        arrivals = Arrivals(
            connections, half_sent, largest, access.note_caller, routes, longest_string
        )
        chain = [arrivals, *interceptors]
        listener = bind(settings, name, services, chain, credentials, limit, largest)
        connections.add_port(listener.port, limit)
        listeners.append(listener)
        all_arrivals.append(arrivals)
    return tuple(listeners), tuple(all_arrivals)


async def serve(settings: Settings, selector: OverloadSelector) -> None:
    """Serve until SIGINT or SIGTERM. Prints a line that begins with `ready` once it answers.

    selector: of the running event loop.
    """
    auth = read_auth(settings)
    for warning in insecure_listener_warnings(settings):
        log.warning("%s", warning)
    telemetry = open_telemetry(settings)
    try:
        components = build(settings, telemetry)
        stopping = Stopping(settings.shutdown_grace_period_s, telemetry.reopen)
        running = await start_server(components, auth)
        selector.overload_signal = components.batcher.overload_signal
        if isinstance(components.backend, FusedBackend):
            components.batcher.is_quiet = selector.is_quiet
    except BaseException:
        await telemetry.stop()
        raise
    gc.freeze()  # the collector need not scan objects that live as long as the server
    print(_ready_line(running, settings), flush=True)
    await stopping.begun.wait()
    grace_s = settings.shutdown_grace_period_s
    log.info("stopping within %d s; a second signal stops at once", grace_s)
    await running.stop(grace_s)
    stopping.last_resort.cancel()


def _ready_line(running: RunningServer, settings: Settings) -> str:
    table = running.components.registry.table()
    main, *others = [listener.address for listener in running.listeners]
    extproc = f", ext_proc on {others.pop()}" if settings.extproc_address else ""
    admin = f", admin on {others[0]}" if others else ""
    return (
        f"ready on {main}: {len(table.candidates)} candidates, revision {table.revision}, bundle"
        f" {settings.bundle}{admin}{extproc}"
    )
