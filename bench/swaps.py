"""Swap what a server learned under load, and look for errors and mixed answers.

    python -m bench.swaps [--instructions 10000] [--seconds 60]

Fills a store with comparisons and serves it. Connections call Route all the time, while a reset and
a rollback take turns, a second after each other. A rollback to the last fit reads the outcomes
again, and fits nothing. Every answer must be the one that its fit gave before the load. An error or
another answer makes the exit status 1. The last line of stdout is one JSON object.
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

from bench.latency import texts
from bench.memory import BOUNDS, fill, learned
from bench.report import environment
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.serving.settings import Settings
from modelsat import Client
from tools.processes import BUNDLE, serving

CONNECTIONS, TEXTS, SENTENCES, TIMEOUT_S = 4, 12, 4, 30.0
TOLERANCE = 2e-3  # of probabilities: what is scored together may differ in rounding
Answers = dict[tuple[str, str], dict[str, float]]  # (text, fit) -> candidate -> probability


def probabilities(response: pb.RouteResponse) -> dict[str, float]:
    """Return candidate ID -> probability."""
    return {entry.candidate: entry.probability for entry in response.ranking}


async def call_until(end: float, address: str, expected: Answers, seen: Counter[str]) -> None:
    """Call Route on one connection; count what came: "reset", "learned", "mixed" or an error."""
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        route = router_service_pb2_grpc.RouterServiceStub(channel).Route
        while time.monotonic() < end:
            for text in texts(TEXTS, SENTENCES):
                try:
                    response = await route(pb.RouteRequest(text=text), timeout=TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    seen[f"error {error.code().name}"] += 1
                    continue
                right = expected.get((text, response.adaptation_id), {})
                found = probabilities(response)
                same = found.keys() == right.keys() and all(
                    abs(p - right[name]) < TOLERANCE for name, p in found.items()
                )
                kind = "learned" if response.adaptation_id else "reset"
                seen[kind if same else "mixed"] += 1


def swap_until(end: float, address: str, fit: str) -> int:
    """Forget and remember in turn, a second after each other; return how often."""
    swaps = 0
    with Client(address, TIMEOUT_S) as client:
        while time.monotonic() < end:
            if swaps % 2:
                client.rollback_adaptation(fit)
            else:
                client.reset_adaptation()
            swaps += 1
            time.sleep(1)
    return swaps


def references(address: str, fit: str) -> Answers:
    """Return what the server answers with the fit and without, while nothing else calls it."""
    found: Answers = {}
    with Client(address, TIMEOUT_S) as client, grpc.insecure_channel(address) as channel:
        route = router_service_pb2_grpc.RouterServiceStub(channel).Route
        for remembers in (False, True):
            if remembers:
                client.rollback_adaptation(fit)
            else:
                client.reset_adaptation()
            for text in texts(TEXTS, SENTENCES):
                response = route(pb.RouteRequest(text=text), timeout=TIMEOUT_S)
                found[text, response.adaptation_id] = probabilities(response)
    return found


async def loaded(address: str, fit: str, seconds: float) -> tuple[int, Counter[str]]:
    """Swap under load; return the number of swaps and what came back."""
    expected = await asyncio.to_thread(references, address, fit)
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    calls = (call_until(end, address, expected, seen) for _ in range(CONNECTIONS))
    swaps, *_ = await asyncio.gather(asyncio.to_thread(swap_until, end, address, fit), *calls)
    return swaps, seen


def main() -> int:
    """Measure and print; return 1 if an answer was an error or mixed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="bundle to serve")
    parser.add_argument("--instructions", type=int, default=10_000, help="remembered ones")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, outcomes = Path(folder) / "candidates.sqlite", Path(folder) / "outcomes.sqlite"
        settings = Settings(
            bundle=options.bundle, candidates_db=str(store), outcomes_db=str(outcomes), **BOUNDS
        )
        asyncio.run(fill(settings, options.instructions))
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in BOUNDS.items()]
        with serving(store, *flags, "--score-cache-mb", "0", bundle=options.bundle) as server:
            fit = learned(server, options.instructions).id
            swaps, seen = asyncio.run(loaded(server.address, fit, options.seconds))
    result = {"environment": environment(), "swaps": swaps, "answers": dict(seen)}
    print(json.dumps(result))
    return int(bool(set(seen) - {"learned", "reset"}) or not (seen["learned"] and seen["reset"]))


if __name__ == "__main__":
    sys.exit(main())
