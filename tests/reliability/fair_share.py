"""Compare the single calls of one principal, alone and alongside 400 concurrent calls of another.

    python -m tests.reliability.fair_share [--calls 100] [--callers 400]

The server has no score cache, so that every call needs a forward pass. The last line of stdout is
one JSON object with `targets`, which is also written to bench/results/fair_share.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np

from bench.latency import texts
from bench.report import Target, environment, finish
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.serving.auth.tokens import new_token
from tools.processes import serving

PAUSE_S, RETRY_S, TIMEOUT_S = 0.05, 0.1, 10.0


async def call(stub: router_service_pb2_grpc.RouterServiceStub, text: str, token: str) -> str:
    """Make one call; return the name of its code."""
    metadata = (("authorization", f"Bearer {token}"),)
    try:
        await stub.Route(pb.RouteRequest(text=text), timeout=TIMEOUT_S, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def single_calls(address: str, token: str, count: int) -> tuple[list[float], int]:
    """Make calls one after another; return (latencies of those answered in ms, failed)."""
    latencies, failed = list[float](), 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        for text in texts(count, 5):
            begun = time.perf_counter()
            if await call(stub, text, token) == "OK":
                latencies.append(1000 * (time.perf_counter() - begun))
            else:
                failed += 1
            await asyncio.sleep(PAUSE_S)
    return latencies, failed


async def crowd(address: str, token: str, callers: int) -> None:
    """Keep `callers` calls in flight until cancelled; print the codes."""
    codes: Counter[str] = Counter()
    instructions = texts(1000, 4)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)

        async def caller(number: int) -> None:
            while True:
                code = await call(stub, instructions[sum(codes.values()) % 1000], token)
                codes[code] += 1
                if code != "OK":
                    await asyncio.sleep(RETRY_S)

        try:
            await asyncio.gather(*(caller(number) for number in range(callers)))
        finally:
            print("crowd:", dict(codes))


async def run(address: str, tokens: tuple[str, str], calls: int, callers: int) -> list[Target]:
    """Measure; return the targets."""
    heavy, light = tokens
    await single_calls(address, light, 20)  # warm up
    alone, _ = await single_calls(address, light, calls)
    load = asyncio.create_task(crowd(address, heavy, callers))
    await asyncio.sleep(3)
    alongside, failed = await single_calls(address, light, calls)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    for name, values in (("alone", alone), ("alongside the crowd", alongside)):
        print(name, "p50 / p99 in ms:", np.percentile(values, [50, 99]).round(1).tolist())
    ratio = float(np.percentile(alongside, 99) / np.percentile(alone, 99)) if alongside else None
    return [
        Target("single calls that failed", failed, "<= 0"),
        Target("p99 alongside the crowd / p99 alone", ratio, "<= 3", "no call succeeded"),
    ]


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=100, help="single calls (default 100)")
    parser.add_argument("--callers", type=int, default=400, help="concurrent calls (default 400)")
    options = parser.parse_args()
    made = [new_token("route", name) for name in ("heavy", "light")]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        tokens.write_text(json.dumps({"tokens": [vars(token) for _, token in made]}))
        flags = ("--auth-tokens-file", str(tokens), "--score-cache-mb", "0")
        with serving(Path(folder) / "candidates.sqlite", *flags) as server:
            texts_of = (made[0][0], made[1][0])
            targets = asyncio.run(run(server.address, texts_of, options.calls, options.callers))
    return finish("fair_share", environment(calls=options.calls), targets)


if __name__ == "__main__":
    sys.exit(main())
