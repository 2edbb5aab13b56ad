"""Load on a server: closed loop, and open loop with Poisson arrivals.

In the open loop a call's time begins when it should have been sent, so that a stalled server is not
spared the calls that waited behind the stall (coordinated omission: Tene, 2015).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.route_command import PHASES

TIMEOUT_S = 60


@dataclass
class Seen:
    """Milliseconds of each answered call and of its phases; errors by code."""

    calls: list[float] = field(default_factory=list)
    phases: list[list[float]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    def summary(self) -> dict[str, object]:
        """Percentiles, throughput, median phases and errors."""
        parts = {"p50": 50, "p95": 95, "p99": 99, "p99.9": 99.9}
        known = self.calls or [float("nan")]
        medians = np.median(np.array(self.phases or [[float("nan")] * len(PHASES)]), axis=0)
        return {
            "calls": len(self.calls),
            "errors": dict(self.errors),
            "per_second": len(self.calls) / self.elapsed_s,
            **{f"{name}_ms": float(np.percentile(known, q)) for name, q in parts.items()},
            "phases_ms": dict(zip(PHASES, medians.tolist(), strict=True)),
        }


async def closed_loop(address: str, texts: Sequence[str], concurrency: int) -> Seen:
    """Every text once, `concurrency` connections that each wait for their answer."""
    seen, waiting = Seen(), list(texts)

    async def connection() -> None:
        async with _channel(address) as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)
            while waiting:
                await _call(stub, waiting.pop(), time.perf_counter(), seen)

    begun = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(concurrency)))
    seen.elapsed_s = time.perf_counter() - begun
    return seen


async def open_loop(address: str, texts: Sequence[str], rate: float, seed: int = 0) -> Seen:
    """Every text once, at exponentially distributed intervals with mean 1 / rate seconds."""
    seen = Seen()
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(texts)))
    async with _channel(address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        begun = time.perf_counter()

        async def one(text: str, after: float) -> None:
            await asyncio.sleep(max(0.0, begun + after - time.perf_counter()))
            await _call(stub, text, begun + after, seen)

        await asyncio.gather(*(one(t, float(d)) for t, d in zip(texts, due, strict=True)))
    seen.elapsed_s = time.perf_counter() - begun
    return seen


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


async def _call(
    stub: router_service_pb2_grpc.RouterServiceStub, text: str, sent: float, seen: Seen
) -> None:
    try:
        answer = await stub.Route(pb.RouteRequest(text=text), timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        seen.errors[error.code().name] += 1
        return
    seen.calls.append(1000 * (time.perf_counter() - sent))
    seen.phases.append([getattr(answer.timing, p).ToNanoseconds() / 1e6 for p in PHASES])
