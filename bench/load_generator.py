"""Put load on a server: closed loop, and open loop with Poisson arrivals.

The functions closed_loop and open_loop send every text once and read the phases from the responses.
The methods of Generator are for long runs: they last a given time, send serialized requests and
count codes alone, because the generator shares the cores with the server.

In an open loop the latency of a call begins when it should have been sent, so that calls which wait
behind a stall of the server count (coordinated omission: Tene, 2015).
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from engine.client.results import PHASES
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc

TIMEOUT_S = 60


@dataclass
class RouteTimings:
    """Milliseconds of each successful call and of its phases, and the errors by code."""

    calls: list[float] = field(default_factory=list)
    phases: list[list[float]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    def summary(self) -> dict[str, object]:
        """Return percentiles, throughput, median phases and errors."""
        parts = {"p50": 50, "p95": 95, "p99": 99, "p99.9": 99.9}
        latencies = self.calls or [float("nan")]
        medians = np.median(np.array(self.phases or [[float("nan")] * len(PHASES)]), axis=0)
        return {
            "calls": len(self.calls),
            "errors": dict(self.errors),
            "per_second": len(self.calls) / self.elapsed_s,
            **{f"{name}_ms": float(np.percentile(latencies, q)) for name, q in parts.items()},
            "phases_ms": dict(zip(PHASES, medians.tolist(), strict=True)),
        }


async def closed_loop(address: str, texts: Sequence[str], concurrency: int) -> RouteTimings:
    """Send every text once, over `concurrency` connections that each wait for the response."""
    timings, waiting = RouteTimings(), list(texts)

    async def connection() -> None:
        async with _channel(address) as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)
            while waiting:
                await _call(stub, waiting.pop(), time.perf_counter(), timings)

    started = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(concurrency)))
    timings.elapsed_s = time.perf_counter() - started
    return timings


async def open_loop(address: str, texts: Sequence[str], rate: float, seed: int = 0) -> RouteTimings:
    """Send every text once, at exponentially distributed intervals with mean 1 / rate seconds."""
    timings = RouteTimings()
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(texts)))
    async with _channel(address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        started = time.perf_counter()

        async def one(text: str, after: float) -> None:
            await asyncio.sleep(max(0.0, started + after - time.perf_counter()))
            await _call(stub, text, started + after, timings)

        await asyncio.gather(*(one(t, float(d)) for t, d in zip(texts, due, strict=True)))
    timings.elapsed_s = time.perf_counter() - started
    return timings


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


async def _call(
    stub: router_service_pb2_grpc.RouterServiceStub, text: str, sent: float, timings: RouteTimings
) -> None:
    try:
        answer = await stub.Route(pb.RouteRequest(text=text), timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        timings.errors[error.code().name] += 1
        return
    timings.calls.append(1000 * (time.perf_counter() - sent))
    timings.phases.append([getattr(answer.timing, p).ToNanoseconds() / 1e6 for p in PHASES])


ROUTE = "/modelsat.v1.RouterService/Route"


@dataclass
class LoadResult:
    """One entry for each call.

    due, ended: seconds since the load began. code: the gRPC status. seconds: duration of the load.
    generator_cores: average number of cores that the load generator used.
    """

    due: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    seconds: float = 0.0
    generator_cores: float = 0.0

    def codes(self) -> dict[str, int]:
        """Return code -> number of calls."""
        return dict(Counter(self.code))

    def answered_ms(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the latency of each successful call in milliseconds."""
        good = np.array([c == "OK" for c in self.code], dtype=bool)
        return 1000 * (np.array(self.ended) - np.array(self.due))[good]

    def per_second(self, after_s: float = 0.0) -> float:
        """Return successful calls per second from `after_s` until the end of the load.

        Calls that end after the load do not count: the server was not under full load then.
        """
        calls = zip(self.code, self.ended, strict=True)
        succeeded = sum(c == "OK" and after_s <= e <= self.seconds for c, e in calls)
        return succeeded / (self.seconds - after_s)

    def extend(self, other: LoadResult) -> None:
        """Append the calls of `other`, as if its load had followed this one."""
        self.due += [self.seconds + d for d in other.due]
        self.ended += [self.seconds + e for e in other.ended]
        self.code += other.code
        whole = self.seconds + other.seconds
        cpu = self.generator_cores * self.seconds + other.generator_cores * other.seconds
        self.seconds, self.generator_cores = whole, cpu / whole

    def summary(self) -> dict[str, Any]:
        """Return counts, rate and percentiles."""
        times = self.answered_ms()
        percentiles = {
            f"p{q}_ms": float(np.percentile(times, q)) for q in (50, 95, 99) if len(times)
        }
        return {
            "calls": len(self.code),
            "codes": self.codes(),
            "per_second": self.per_second(),
            **percentiles,
            "generator_cores": self.generator_cores,
        }


def bodies(texts: Sequence[str]) -> Iterator[bytes]:
    """Return an endless iterator of serialized RouteRequests."""
    return itertools.cycle([pb.RouteRequest(text=text).SerializeToString() for text in texts])


class Generator:
    """Async context manager with one channel to `target`. Responses are not parsed."""

    def __init__(
        self, target: str, texts: Sequence[str], timeout_s: float, options: Any = ()
    ) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._route = self._channel.unary_unary(ROUTE)
        self._bodies, self._timeout_s = bodies(texts), timeout_s
        self._calls, self._started = LoadResult(), 0.0

    async def __aenter__(self) -> Generator:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def closed_loop(self, concurrency: int, seconds: float) -> LoadResult:
        """Let `concurrency` callers call and wait for the response, for `seconds`."""

        async def caller() -> None:
            while (now := time.perf_counter()) < self._started + seconds:
                await self._send(now)

        return await self._measured(seconds, [caller() for _ in range(concurrency)])

    async def open_loop(
        self, rate: float, seconds: float, *, seed: int = 0, even: bool = False
    ) -> LoadResult:
        """Send `rate` calls per second for `seconds`, without waiting for responses.

        even: at equal intervals, rather than as Poisson arrivals.
        """
        gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 20)
        due = np.cumsum(np.full(len(gaps), 1 / rate) if even else gaps)

        async def source() -> None:
            async with asyncio.TaskGroup() as group:
                for after in due[due < seconds].tolist():
                    left = self._started + after - time.perf_counter()
                    if left > 0:
                        await asyncio.sleep(left)
                    group.create_task(self._send(self._started + after))

        return await self._measured(seconds, [source()])

    async def _measured(self, seconds: float, parts: list[Any]) -> LoadResult:
        self._calls, self._started, used = LoadResult(), time.perf_counter(), _cpu_s()
        await asyncio.gather(*parts)
        self._calls.seconds = seconds
        self._calls.generator_cores = (_cpu_s() - used) / (time.perf_counter() - self._started)
        return self._calls

    async def _send(self, due: float) -> None:
        calls, code = self._calls, "OK"
        # The deadline counts from `due`, even if an open loop sends the call late.
        left = due + self._timeout_s - time.perf_counter()
        try:
            await self._route(next(self._bodies), timeout=max(left, 0.001))
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        calls.due.append(due - self._started)
        calls.ended.append(time.perf_counter() - self._started)
        calls.code.append(code)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
