"""Send malformed and hostile requests to every method of the public API, over a real socket.

    python -m tests.reliability.fuzz.grpc [--requests 100000] [--seed 1]

Malformed connections come in between. It fails if the server ends, does not answer within 10 s, or
answers INTERNAL, UNKNOWN, UNAVAILABLE or UNIMPLEMENTED, and if memory grows after the first fifth.
The request that caused a failure is printed as base64, with the seed and number that make it again.
The last line of stdout is one JSON object with `targets`, which is also written to
bench/results/fuzz.json.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from tqdm import tqdm

from bench.report import Target, environment, finish
from engine.pb import adaptation_service_pb2, candidate_service_pb2, router_service_pb2
from engine.registry.catalog import read_catalog
from modelsat import Client
from tests.reliability.fuzz import messages
from tools.processes import BUNDLE, Server, serving

CONCURRENCY, HANG_S, SLICE = 16, 10.0, 5000
STREAM_S = 0.5  # time-out of a stream: watching never ends
WEIGHTS = {"Route": 30, "BatchReplaceCandidates": 1}  # of other methods: USUAL
USUAL = 4
MAX_PRINTED = 20


def methods() -> list[MethodDescriptor]:
    """Return all methods of the server's own services."""
    modules = (router_service_pb2, candidate_service_pb2, adaptation_service_pb2)
    files = [module.DESCRIPTOR for module in modules]
    return [m for f in files for s in f.services_by_name.values() for m in s.methods]


@dataclass
class FuzzResult:
    """codes: (method, code) -> count. failures: what was wrong, and how to repeat it."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)


class Fuzzer:
    """Sends numbered requests to one server."""

    def __init__(self, address: str, seed: int, result: FuzzResult) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._address, self._seed, self._result = address, seed, result
        self._methods = methods()
        self._weights = [WEIGHTS.get(method.name, USUAL) for method in self._methods]

    async def run(self, numbers: range, progress: Any) -> None:
        """Send the requests of these numbers, CONCURRENCY at a time."""
        left = iter(numbers)

        async def worker() -> None:
            for number in left:
                await self._one(number)
                progress.update()

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _one(self, number: int) -> None:
        random = Random(f"{self._seed}/{number}")
        if random.random() < 0.002:
            await self._bad_connection(number)
        (method,) = random.choices(self._methods, self._weights)
        raw = messages.make(method, self._seed, number)
        impatient = random.random() < 0.03
        timeout_s = random.choice((0.001, 0.01, 0.03)) if impatient else HANG_S
        streams = method.server_streaming and not impatient
        code, details = await self._call(method, raw, STREAM_S if streams else timeout_s)
        self._result.codes[method.name, code] += 1
        late = code == "DEADLINE_EXCEEDED" and not impatient and not streams
        if late or code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "UNIMPLEMENTED"):
            request = messages.describe(method, self._seed, number, raw)
            self._result.failures.append(f"{code} ({details[:200]}): {request}")

    async def _call(
        self, method: MethodDescriptor, raw: bytes, timeout_s: float
    ) -> tuple[str, str]:
        path = messages.method_path(method)
        kinds = method.client_streaming, method.server_streaming
        try:
            if kinds == (False, False):
                await self._channel.unary_unary(path)(raw, timeout=timeout_s)
            elif kinds == (False, True):
                await _drain(self._channel.unary_stream(path)(raw, timeout=timeout_s))
            else:
                await _drain(self._channel.stream_stream(path)(_twice(raw), timeout=timeout_s))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return "CLIENT", "grpc.aio gave up the call while it was writing"
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            # grpc.aio's own error, if the answer comes while the client is still writing.
            local = details == "Internal error from Core"
            return "CLIENT" if local else error.code().name, details
        return "OK", ""

    async def _bad_connection(self, number: int) -> None:
        host, _, port = self._address.rpartition(":")
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(messages.bad_connection(self._seed, number))
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(reader.read(4096), 0.3)
            writer.close()
            await writer.wait_closed()


async def _twice(raw: bytes) -> AsyncIterator[bytes]:
    yield raw
    yield raw


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


def fuzz(server: Server, requests: int, seed: int) -> FuzzResult:
    """Send all requests in slices, with the catalog restored after each.

    Without that, most requests would meet an empty table or one of hundreds of candidates.
    """
    result, catalog, address = FuzzResult(), read_catalog(BUNDLE / "zoo.json"), server.address

    async def part(numbers: range, progress: Any) -> None:
        fuzzer = Fuzzer(address, seed, result)
        try:
            await fuzzer.run(numbers, progress)
        finally:
            await fuzzer.close()

    with tqdm(total=requests, desc="fuzz", unit="request", mininterval=5) as progress:
        for first in range(0, requests, SLICE):
            asyncio.run(part(range(first, min(first + SLICE, requests)), progress))
            if server.process.poll() is not None:
                result.failures.append(f"the server ended with {server.process.returncode}")
                break
            with Client(address, timeout_s=30) as client:
                client.replace_candidates(catalog)
            result.memory_mb.append(server.resident_mb())
    return result


def growth(memory_mb: list[float]) -> float:
    """Return the relative growth after the first fifth."""
    return memory_mb[-1] / memory_mb[len(memory_mb) // 5] - 1 if memory_mb else 0.0


def main() -> int:
    """Fuzz and print; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default 100,000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the requests (default 1)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "candidates.sqlite", "--score-cache-mb", "1") as server,
    ):
        started = time.monotonic()
        result = fuzz(server, options.requests, options.seed)
        seconds = time.monotonic() - started
    for failure in result.failures[:MAX_PRINTED]:
        print(failure)
    by_method: dict[str, dict[str, int]] = {}
    for (method, code), count in sorted(result.codes.items()):
        by_method.setdefault(method, {})[code] = count
    for method, codes in by_method.items():
        print(f"{method:24}{codes}")
    print(f"{options.requests} requests in {seconds:.0f} s")
    report = {
        "environment": environment(requests=options.requests, seed=options.seed),
        "seconds": seconds,
        "codes": by_method,
        "memory_mb": result.memory_mb,
    }
    targets = [
        Target("failures", len(result.failures), "<= 0"),
        Target("growth of memory after the first fifth", growth(result.memory_mb), "<= 0.1"),
    ]
    return finish("fuzz", report, targets)


if __name__ == "__main__":
    sys.exit(main())
