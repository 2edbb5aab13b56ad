"""Measure what ext_proc adds to the latency of Route, on one server and in turn.

    python -m bench.extproc [--rounds 300]

A round calls Route and ext_proc in BUFFERED mode (two messages, two responses, as Envoy does), in
alternating order; once with texts that are new and have to be scored, and once with a cached text,
which leaves the transport alone. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from bench.report import Target, environment, finish
from engine.pb import external_processor_pb2 as pb
from engine.pb import external_processor_pb2_grpc, router_service_pb2, router_service_pb2_grpc
from tools.processes import serving

TEXT = "A train leaves at {} o'clock at 80 km/h; another follows an hour later at 100 km/h. When?"
HEADERS = {
    ":method": "POST",
    ":path": "/v1/chat/completions",
    ":authority": "llm.example.com",
    ":scheme": "http",
    "content-type": "application/json",
    "user-agent": "OpenAI/Python 1.50.0",
    "x-request-id": "d9b6a1f0-8f0e-4d2b-a1b0-0c8b7f1f9a3e",
    "accept": "application/json",
}
WARM = 20
Ask = Callable[[str], Awaitable[None]]


def extproc(channel: grpc.aio.Channel) -> Ask:
    """Return a function that calls ext_proc as Envoy does in BUFFERED mode."""
    stub = external_processor_pb2_grpc.ExternalProcessorStub(channel)

    async def ask(text: str) -> None:
        messages = [{"role": "user", "content": text}]
        body = json.dumps({"model": "auto", "messages": messages}).encode()
        headers = pb.ProcessingRequest()
        headers.protocol_config.request_body_mode = 2
        for key, value in {**HEADERS, "content-length": str(len(body))}.items():
            headers.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        whole = pb.ProcessingRequest(request_body={"body": body, "end_of_stream": True})
        call = stub.Process()
        await call.write(headers)
        await call.read()
        await call.write(whole)
        answer = await call.read()
        if not answer.request_body.response.body_mutation.body:
            raise RuntimeError(f"ext_proc answered {answer}")
        await call.done_writing()

    return ask


def route(channel: grpc.aio.Channel) -> Ask:
    """Return a function that asks Route for the first candidate alone, as ext_proc does."""
    stub = router_service_pb2_grpc.RouterServiceStub(channel)
    policy = router_service_pb2.Policy(ranking_size=1)

    async def ask(text: str) -> None:
        await stub.Route(router_service_pb2.RouteRequest(text=text, policy=policy))

    return ask


async def side_by_side(callers: dict[str, Ask], rounds: int, *, cached: bool) -> dict[str, float]:
    """Return the median milliseconds of each function."""
    times: dict[str, list[float]] = {name: [] for name in callers}
    for i in range(WARM + rounds):
        order = list(callers.items())[:: 1 if i % 2 else -1]
        for name, ask in order:
            # Different texts for each, or the second call would find the scores cached.
            text = TEXT.format("nine" if cached else f"{name} {i}")
            started = time.perf_counter()
            await ask(text)
            if i >= WARM:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(ms) for name, ms in times.items()}


async def measure(address: str, processor: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return "new" or "cached" texts -> route or extproc -> median milliseconds."""
    async with (
        grpc.aio.insecure_channel(address) as plain,
        grpc.aio.insecure_channel(processor) as envoy,
    ):
        callers = {"route": route(plain), "extproc": extproc(envoy)}
        return {
            "new": await side_by_side(callers, rounds, cached=False),
            "cached": await side_by_side(callers, rounds, cached=True),
        }


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="how many (default 300)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.sqlite"
        with serving(store, "--extproc-address", "127.0.0.1:0") as server:
            p50_ms = asyncio.run(measure(server.address, server.extproc_address, rounds))
    targets = [
        Target(f"ms that ext_proc adds at p50, {texts} texts", t["extproc"] - t["route"], "<= 2")
        for texts, t in p50_ms.items()
    ]
    return finish("extproc", {**environment(rounds=rounds), "p50_ms": p50_ms}, targets)


if __name__ == "__main__":
    sys.exit(main())
