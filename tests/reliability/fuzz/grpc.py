"""Every method of the public API with requests that nobody should send, over a real socket.

    python -m tests.reliability.fuzz.grpc [--requests 100000] [--seed 1]

Bad connections come in between. Fails on an end of the server, no answer within 10 s, INTERNAL or
UNKNOWN, and memory that grows after the first fifth; what caused it is printed as base64, with the
seed and number that make it again. A method that answers UNIMPLEMENTED to an empty request is not
there yet: it is met rarely and may say so. The last line on stdout is one JSON object with
`targets`; writes bench/results/fuzz.json.
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

from bench.report import Target, conditions, finish
from engine.pb import candidate_service_pb2, router_service_pb2
from engine.registry.catalog import read_catalog
from modelsat import Client
from tests.reliability.fuzz import messages as messages
from tools.processes import BUNDLE, Server, serving

CONCURRENCY, HANG_S, SLICE = 16, 10.0, 5000
STREAM_S = 0.5  # a watch has no end
WEIGHTS = {"Route": 30, "BatchReplaceCandidates": 1}
USUAL = 4
SHOWN = 20


def methods() -> list[MethodDescriptor]:
    """All of both services."""
    files = (router_service_pb2.DESCRIPTOR, candidate_service_pb2.DESCRIPTOR)
    return [m for f in files for s in f.services_by_name.values() for m in s.methods]


@dataclass
class Found:
    """codes: method and code -> count. failures: how to repeat each, with what was wrong."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)


class Fuzzer:
    """Sends numbered requests to one server."""

    def __init__(self, address: str, seed: int, found: Found) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._address, self._seed, self._found = address, seed, found
        self._methods, self._weights = methods(), list[int]()

    async def look(self) -> None:
        """See which methods are there."""
        for method in self._methods:
            codes = {(await self._call(method, b"", STREAM_S))[0] for _ in range(3)}
            missing = "UNIMPLEMENTED" in codes
            if missing:
                self._found.missing.add(method.name)
            self._weights.append(1 if missing else WEIGHTS.get(method.name, USUAL))

    async def run(self, numbers: range, progress: Any) -> None:
        """All of these requests, CONCURRENCY at a time."""
        left = iter(numbers)

        async def one_after_the_other() -> None:
            for number in left:
                await self._one(number)
                progress.update()

        await asyncio.gather(*(one_after_the_other() for _ in range(CONCURRENCY)))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _one(self, number: int) -> None:
        random = Random(f"{self._seed}/{number}")
        if random.random() < 0.002:
            await self._bad_connection(number)
        (method,) = random.choices(self._methods, self._weights)
        raw = messages.make(method, self._seed, number)
        hurried = random.random() < 0.03
        timeout_s = random.choice((0.001, 0.01, 0.03)) if hurried else HANG_S
        streams = method.server_streaming and not hurried
        code, details = await self._call(method, raw, STREAM_S if streams else timeout_s)
        self._found.codes[method.name, code] += 1
        late = code == "DEADLINE_EXCEEDED" and not hurried and not streams
        missing = method.name in self._found.missing
        bad = code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "UNIMPLEMENTED") and not missing
        if late or bad:
            how = messages.describe(method, self._seed, number, raw)
            self._found.failures.append(f"{code} ({details[:200]}): {how}")

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
            return "CLIENT", "grpc.aio gave the call up while it was writing"
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            # grpc.aio's own, where the answer came while the client was still writing.
            ours = details == "Internal error from Core"
            return "CLIENT" if ours else error.code().name, details
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


def fuzz(server: Server, requests: int, seed: int) -> Found:
    """Send all of them in slices; after each the zoo is put back, so that neither a table of
    hundreds nor an empty one is what most requests meet."""
    found, catalog, address = Found(), read_catalog(BUNDLE / "zoo.json"), server.address

    async def part(numbers: range, progress: Any) -> None:
        fuzzer = Fuzzer(address, seed, found)
        try:
            await fuzzer.look()
            await fuzzer.run(numbers, progress)
        finally:
            await fuzzer.close()

    with tqdm(total=requests, desc="fuzz", unit="request", mininterval=5) as progress:
        for first in range(0, requests, SLICE):
            asyncio.run(part(range(first, min(first + SLICE, requests)), progress))
            if server.process.poll() is not None:
                found.failures.append(f"the server ended with {server.process.returncode}")
                break
            with Client(address, timeout_s=30) as client:
                client.replace_candidates(catalog)
            found.memory_mb.append(server.resident_mb())
    return found


def growth(memory_mb: list[float]) -> float:
    """Share by which it grew after the first fifth."""
    return memory_mb[-1] / memory_mb[len(memory_mb) // 5] - 1 if memory_mb else 0.0


def main() -> int:
    """Fuzz, print; 1 where something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "candidates.sqlite", "--score-cache-mb", "1") as server,
    ):
        begun = time.monotonic()
        found = fuzz(server, a.requests, a.seed)
        took = time.monotonic() - begun
    for failure in found.failures[:SHOWN]:
        print(failure)
    by_method: dict[str, dict[str, int]] = {}
    for (method, code), count in sorted(found.codes.items()):
        by_method.setdefault(method, {})[code] = count
    for method, codes in by_method.items():
        print(f"{method:24}{codes}")
    print(f"{a.requests} requests in {took:.0f} s; not there yet: {sorted(found.missing)}")
    result = {
        "conditions": conditions(requests=a.requests, seed=a.seed),
        "seconds": took,
        "codes": by_method,
        "memory_mb": found.memory_mb,
    }
    targets = [
        Target("failures in all", len(found.failures), "<= 0"),
        Target("growth of memory after the first fifth", growth(found.memory_mb), "<= 0.1"),
    ]
    return finish("fuzz", result, targets)


if __name__ == "__main__":
    sys.exit(main())
