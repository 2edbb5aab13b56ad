"""What ext_proc adds to Route: both on one server, in turn, with the same texts.

    python -m bench.extproc [--rounds 300]

A round asks Route, then ext_proc in BUFFERED (two messages, two answers, as Envoy sends them), in
changing order. Once with every text new, so that it is scored, and once with known ones, where
nothing but the way there and back is left. The last line on stdout is one JSON object.
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
    """Ask as Envoy does in BUFFERED."""
    stub = external_processor_pb2_grpc.ExternalProcessorStub(channel)

    async def ask(text: str) -> None:
        messages = [{"role": "user", "content": text}]
        body = json.dumps({"model": "auto", "messages": messages}).encode()
        headers = pb.ProcessingRequest()
        headers.protocol_config.request_body_mode = 2
        told = {**HEADERS, "content-length": str(len(body))}
        for key, value in told.items():
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
    """Ask Route for the one thing that ext_proc tells, the first of the ranking."""
    stub = router_service_pb2_grpc.RouterServiceStub(channel)
    policy = router_service_pb2.Policy(ranking_size=1)

    async def ask(text: str) -> None:
        await stub.Route(router_service_pb2.RouteRequest(text=text, policy=policy))

    return ask


async def side_by_side(ways: dict[str, Ask], rounds: int, *, known: bool) -> dict[str, float]:
    """Median milliseconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(WARM + rounds):
        order = list(ways.items())[:: 1 if i % 2 else -1]
        for name, ask in order:
            # Each way has texts of its own, or the second would find the first one's scores.
            text = TEXT.format("nine" if known else f"{name} {i}")
            begun = time.perf_counter()
            await ask(text)
            if i >= WARM:
                times[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(found) for name, found in times.items()}


async def measure(address: str, processor: str, rounds: int) -> dict[str, dict[str, float]]:
    """Texts "new" and "known" -> way -> median milliseconds."""
    async with (
        grpc.aio.insecure_channel(address) as plain,
        grpc.aio.insecure_channel(processor) as envoy,
    ):
        ways = {"route": route(plain), "extproc": extproc(envoy)}
        return {
            "new": await side_by_side(ways, rounds, known=False),
            "known": await side_by_side(ways, rounds, known=True),
        }


def main() -> int:
    """Run it; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.sqlite"
        with serving(store, "--extproc-address", "127.0.0.1:0") as server:
            found = asyncio.run(measure(server.address, server.extproc_address, rounds))
    targets = [
        Target(f"ms that ext_proc adds at p50, {texts} texts", t["extproc"] - t["route"], "<= 2")
        for texts, t in found.items()
    ]
    return finish("extproc", {**environment(rounds=rounds), "p50_ms": found}, targets)


if __name__ == "__main__":
    sys.exit(main())
