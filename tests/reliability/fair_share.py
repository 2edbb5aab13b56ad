"""Compare the single calls of one principal, alone and alongside 400 concurrent calls of another.

    python -m tests.reliability.fair_share [--calls 100] [--callers 400] [--runs 3]

The server has no score cache, so that every call needs a forward pass. The crowd is a process of
its own. Each run measures the single calls alone and right afterwards in company, since other
programs change the speed of the machine; the ratio of the p99 is the median of the runs. The last
line of stdout is one JSON object with `targets`, which is also written to
bench/results/fair_share.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from bench.latency import texts
from bench.report import Target, environment, finish
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.serving.auth.tokens import new_token
from tools.processes import serving

PAUSE_S, RETRY_S, TIMEOUT_S, START_S = 0.05, 0.1, 10.0, 4.0


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


async def crowd(address: str, token: str, callers: int, stop: Event) -> None:
    """Keep `callers` calls in flight until `stop`; print the codes and the rate."""
    codes: Counter[str] = Counter()
    instructions = texts(1000, 4)
    begun = time.perf_counter()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)

        async def caller() -> None:
            while not stop.is_set():
                code = await call(stub, instructions[sum(codes.values()) % 1000], token)
                codes[code] += 1
                if code != "OK":
                    await asyncio.sleep(RETRY_S)

        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        await asyncio.to_thread(stop.wait)
        rate = codes["OK"] / (time.perf_counter() - begun)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(f"crowd: {dict(codes)}, {rate:.1f} answered per second", flush=True)


def crowd_process(address: str, token: str, callers: int, stop: Event) -> None:
    """Run crowd() in a process of its own."""
    asyncio.run(crowd(address, token, callers, stop))


def run(address: str, tokens: tuple[str, str], calls: int, callers: int) -> tuple[float, int]:
    """Measure once; return (p99 in company / p99 alone, calls that failed)."""
    heavy, light = tokens
    alone, failed_alone = asyncio.run(single_calls(address, light, calls))
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    load = context.Process(target=crowd_process, args=(address, heavy, callers, stop))
    load.start()
    try:
        time.sleep(START_S)
        alongside, failed = asyncio.run(single_calls(address, light, calls))
    finally:
        stop.set()
        load.join()
    for name, values in (("alone", alone), ("alongside the crowd", alongside)):
        print(name, "p50 / p99 in ms:", np.percentile(values, [50, 99]).round(1).tolist())
    return float(np.percentile(alongside, 99) / np.percentile(alone, 99)), failed + failed_alone


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=100, help="single calls (default 100)")
    parser.add_argument("--callers", type=int, default=400, help="concurrent calls (default 400)")
    parser.add_argument("--runs", type=int, default=3, help="runs (default 3)")
    options = parser.parse_args()
    made = [new_token("route", name) for name in ("heavy", "light")]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        tokens.write_text(json.dumps({"tokens": [vars(token) for _, token in made]}))
        flags = ("--auth-tokens-file", str(tokens), "--score-cache-mb", "0")
        with serving(Path(folder) / "candidates.sqlite", *flags) as server:
            texts_of = (made[0][0], made[1][0])
            asyncio.run(single_calls(server.address, texts_of[1], 20))  # warm up
            runs = [
                run(server.address, texts_of, options.calls, options.callers)
                for _ in range(options.runs)
            ]
    targets = [
        Target("single calls that failed", sum(failed for _, failed in runs), "<= 0"),
        Target("p99 alongside the crowd / p99 alone", median(ratio for ratio, _ in runs), "<= 3"),
    ]
    ratios = [round(ratio, 2) for ratio, _ in runs]
    return finish("fair_share", environment(calls=options.calls, ratios=ratios), targets)


if __name__ == "__main__":
    sys.exit(main())
