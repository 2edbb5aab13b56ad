"""The life of a server: load, warm up, listen, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from engine.api.errors import ModelsatError
from engine.inference.batcher import Batcher
from engine.registry.stores.base import StoreState
from engine.serving.auth.interceptor import AccessInterceptor
from engine.serving.auth.tls import Certificates, TlsFiles
from engine.serving.auth.tokens import TokenFile
from engine.serving.components import Parts, load, services_by_address, warm_up
from engine.serving.console.app import Console, open_console
from engine.serving.event_loop import BurstSelector
from engine.serving.rpc.drain import Drain
from engine.serving.rpc.interceptors import StatusInterceptor, TelemetryInterceptor
from engine.serving.rpc.listener import Listener, bind, exposure
from engine.serving.settings import Settings
from engine.serving.telemetry import open_telemetry

STALLED_S = 30.0  # of a forward pass or of failed ones, from which on liveness asks for a restart
MAX_NOTICE_S = 1.0  # in which load balancers see NOT_SERVING; at most a quarter of the grace
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guard:
    """Who gets in. certificates: None means plain text; tokens: None means anyone may call."""

    certificates: Certificates | None
    tokens: TokenFile | None


@dataclass(frozen=True)
class Running:
    """A server that answers. listeners: that of RouterService first."""

    listeners: tuple[Listener, ...]
    parts: Parts
    drain: Drain
    stalls: asyncio.Task[None]
    console: Console | None

    async def stop(self, shutdown_grace_period_s: float) -> None:
        """Turn NOT_SERVING, serve on until that was noticed, refuse new calls, let those in flight
        end, close the stores; all within shutdown_grace_period_s and the length of one forward
        pass."""
        deadline = time.monotonic() + shutdown_grace_period_s
        self.stalls.cancel()
        for listener in self.listeners:
            await listener.retire()
        self.parts.registry.end_watches()
        await asyncio.sleep(min(MAX_NOTICE_S, shutdown_grace_period_s / 4))
        if self.console is not None:
            await self.console.stop()
        await self.drain.close(max(0.0, deadline - time.monotonic()))
        left = max(0.0, deadline - time.monotonic())
        await asyncio.gather(*(listener.stop(left) for listener in self.listeners))
        await self.parts.batcher.stop()
        await self.parts.outcomes.close()
        await self.parts.registry.close()
        await self.parts.telemetry.stop()


def read_guard(settings: Settings) -> Guard:
    """Read the files of TLS and tokens. Raises InvalidInputError."""
    files = TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return Guard(
        Certificates(files) if settings.tls_certificate.name else None,
        TokenFile(settings.auth_tokens_file) if settings.auth_tokens_file.name else None,
    )


async def start_server(parts: Parts, guard: Guard) -> Running:
    """Warm up, then listen. Raises ModelsatError; the stores are closed then."""
    drain = Drain()
    try:
        await asyncio.to_thread(warm_up, parts)
        listeners = _bind(parts, guard, drain)
        console = open_console(parts, guard.tokens, guard.certificates)
    except ModelsatError:
        await parts.outcomes.close()
        await parts.registry.close()
        raise
    parts.telemetry.start(parts.sources)
    parts.batcher.start()
    for listener in listeners:
        await listener.start()
    if console is not None:
        console.start()
    parts.registry.on_store_state(_telling(listeners))
    parts.registry.follow()
    stalls = asyncio.create_task(watch_stalls(parts.batcher, listeners), name="stalls")
    return Running(listeners, parts, drain, stalls, console)


async def watch_stalls(
    batcher: Batcher, listeners: Sequence[Listener], limit_s: float = STALLED_S
) -> None:
    """Turn liveness NOT_SERVING while a forward pass runs longer than it ever should (a thread that
    hangs cannot be stopped, only the process can), or where two or more failed over as long and
    none succeeded. Readiness stays, so requests still come, and the first that is scored ends it.
    """
    alive = True
    while True:
        await asyncio.sleep(min(1.0, limit_s / 4))
        trouble = _trouble(batcher, limit_s)
        if (not trouble) != alive:
            alive = not alive
            if alive:
                log.info("the forward pass goes on")
            else:
                log.error("%s; restart the server", trouble)
            await asyncio.gather(*(listener.live(alive) for listener in listeners))


def _trouble(batcher: Batcher, limit_s: float) -> str:
    """What only a restart may end; empty where nothing has lasted for limit_s."""
    if (stalled_s := batcher.stalled_s) >= limit_s:
        return f"the forward pass has run for {stalled_s:.0f} s"
    if (failing_s := batcher.failing_s) >= limit_s:
        return f"every forward pass has failed for {failing_s:.0f} s"
    return ""


def _telling(listeners: Sequence[Listener]) -> Callable[[StoreState], None]:
    """A hook that keeps the health name `store` true to the store."""
    running: set[asyncio.Task[None]] = set()

    def told(state: StoreState) -> None:
        for listener in listeners:
            task = asyncio.create_task(listener.store(state.connected))
            running.add(task)
            task.add_done_callback(running.discard)

    return told


def _bind(parts: Parts, guard: Guard, drain: Drain) -> tuple[Listener, ...]:
    settings, certificates = parts.settings, guard.certificates
    return tuple(
        bind(
            settings,
            name,
            services,
            _interceptors(parts, guard, drain),
            None if certificates is None else certificates.credentials(),
        )
        for name, services in services_by_address(parts)
    )


def _interceptors(parts: Parts, guard: Guard, drain: Drain) -> list[grpc.aio.ServerInterceptor]:
    """Outermost first."""
    access = [] if guard.tokens is None else [AccessInterceptor(guard.tokens)]
    return [TelemetryInterceptor(parts.telemetry), *access, drain, StatusInterceptor()]


async def serve(settings: Settings, bursts: BurstSelector) -> None:
    """Serve until SIGINT or SIGTERM; prints one line that begins with `ready` once it answers.
    bursts: the running loop's selector."""
    guard = read_guard(settings)
    for warning in exposure(settings):
        log.warning("%s", warning)
    telemetry = open_telemetry(settings)
    try:
        parts = load(settings, telemetry)
        stopping = _stop_at_signal()
        running = await start_server(parts, guard)
        bursts.crowded = parts.batcher.overload_signal
    except BaseException:
        await telemetry.stop()
        raise
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, telemetry.reopen)
    gc.freeze()  # what lives as long as the server is not walked through while it answers
    print(_ready(running, settings), flush=True)
    await stopping.wait()
    log.info(
        "stopping, within %d s; a second signal ends at once", settings.shutdown_grace_period_s
    )
    await running.stop(settings.shutdown_grace_period_s)


def _stop_at_signal() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; the second one kills. Before this is called, one does."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stopping.is_set():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return stopping


def _ready(running: Running, settings: Settings) -> str:
    table = running.parts.registry.table()
    main, *others = [listener.address for listener in running.listeners]
    extproc = f", ext_proc on {others.pop()}" if settings.extproc_address else ""
    admin = f", admin on {others[0]}" if others else ""
    return (
        f"ready on {main}: {len(table.candidates)} candidates, revision {table.revision}, bundle"
        f" {settings.bundle}{admin}{extproc}"
    )
