"""Whether a server under load stays the same: with candidates swapped every second and without.

    python -m tests.reliability.soak [--minutes 30] [--load 0.7]

Measures the capacity, then sends Poisson arrivals at a share of it over gRPC. Times without and
with swaps alternate, a quarter as long without, so that a drift of the machine hits both; --minutes
is the whole time with swaps. The last line on stdout is one JSON object with `targets`; writes
bench/results/soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.latency import texts
from bench.load_generator import Calls, Generator
from bench.report import Target, conditions, finish
from engine.api.candidate import TaskResult
from engine.api.proto import candidate_to
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import candidate_service_pb2_grpc
from engine.registry.catalog import read_catalog
from tests.reliability.overload import CALLERS, table
from tools.processes import BUNDLE, Server, serving

TURN_MINUTES, SETTLED_MINUTES = 8.0, 2.0
TIMEOUT_S, CAPACITY_S = 30.0, 20.0
SWAP_EVERY_S = 1.0
Memory = list[tuple[float, float]]  # minutes with swaps so far, MB


class Swaps:
    """Changes a candidate every second while it is entered; made and failed count."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._task: asyncio.Task[None] | None = None
        self.made = 0
        self.failed: dict[str, int] = {}

    async def __aenter__(self) -> Swaps:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        candidate = read_catalog(BUNDLE / "zoo.json")[0]
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = candidate_service_pb2_grpc.CandidateServiceStub(channel)
            while True:
                await asyncio.sleep(SWAP_EVERY_S)
                level = 0.1 + 0.8 * (self.made % 10) / 10
                figures = tuple(TaskResult(r.task, level) for r in candidate.aptitude)
                changed = candidate_to(replace(candidate, aptitude=figures))
                changed.etag = ""
                try:
                    await stub.UpdateCandidate(
                        cpb.UpdateCandidateRequest(candidate=changed), timeout=TIMEOUT_S
                    )
                    self.made += 1
                except grpc.aio.AioRpcError as error:
                    name = error.code().name
                    self.failed[name] = self.failed.get(name, 0) + 1


def turns(minutes: float) -> int:
    """How often both kinds of time take turns: twice at least."""
    return max(2, round(minutes / TURN_MINUTES))


async def run(
    server: Server, minutes: float, load: float
) -> tuple[dict[str, Calls], Memory, Swaps]:
    """What was seen in each kind of time, the server's memory, and the swaps."""
    seen, memory = {"without swaps": Calls(), "with swaps": Calls()}, Memory()
    count, swaps = turns(minutes), Swaps(server.address)
    turn_s = 60 * minutes / count
    step_s = min(turn_s, 15.0)  # memory is read after each step
    async with Generator(server.address, texts(1000, 4), TIMEOUT_S) as generator:
        await generator.hold(CALLERS, 5.0)
        seen["capacity"] = await generator.hold(CALLERS, CAPACITY_S)
        rate = load * seen["capacity"].per_second()
        await generator.pour(rate, 10.0)
        swapped = 0.0
        for number in range(count):
            calm = await generator.pour(rate, turn_s / 4, seed=1000 + number)
            seen["without swaps"].extend(calm)
            async with swaps:
                for step in range(round(turn_s / step_s)):
                    part = await generator.pour(rate, step_s, seed=100 * number + step)
                    seen["with swaps"].extend(part)
                    swapped += step_s / 60
                    memory.append((swapped, server.resident_mb()))
    return seen, memory, swaps


def growth(memory: Memory) -> float:
    """Share by which memory grew since the first SETTLED_MINUTES with swaps (a quarter of the time
    where that is less): the median of the last tenth beside that of the tenth from there on."""
    minutes = memory[-1][0]
    first = min(SETTLED_MINUTES, minutes / 4)
    width = max(minutes / 10, memory[0][0])
    early = [mb for at, mb in memory if first <= at <= first + width]
    late = [mb for at, mb in memory if at >= minutes - width]
    return float(np.median(late) / np.median(early) - 1)


def slices(calls: Calls, width_s: float = 15.0) -> list[float]:
    """p99 in ms of what was due in each `width_s`."""
    due, ms = np.array(calls.due), 1000 * (np.array(calls.ended) - np.array(calls.due))
    place = (due // width_s).astype(int)
    return [round(float(np.percentile(ms[place == i], 99)), 1) for i in np.unique(place)]


def judge(seen: dict[str, Calls], memory: Memory, swaps: Swaps) -> list[Target]:
    """The targets of the soak."""
    calm, swapped = seen["without swaps"], seen["with swaps"]
    errors = sum(code != "OK" for calls in (calm, swapped) for code in calls.code)
    p99 = [float(np.percentile(c.answered_ms(), 99)) for c in (swapped, calm)]
    return [
        Target("failed calls", errors, "<= 0"),
        Target("failed swaps", sum(swaps.failed.values()), "<= 0"),
        Target("growth of the server's memory", growth(memory), "<= 0.02"),
        Target("p99 with swaps beside without", p99[0] / p99[1], "<= 1.1"),
    ]


def main() -> int:
    """Measure, print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="with swaps")
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity")
    a = parser.parse_args()
    described = conditions(minutes=a.minutes, load=a.load, turns=turns(a.minutes))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "candidates.sqlite", "--score-cache-mb", "0") as server,
    ):
        seen, memory, swaps = asyncio.run(run(server, a.minutes, a.load))
    print(table(seen))
    print(f"{swaps.made} swaps; memory {memory[0][1]:.1f} MB to {memory[-1][1]:.1f} MB")
    result: dict[str, Any] = {
        "conditions": described,
        # Tells a stall of the machine, which is in one or two of them, from what swaps cost.
        "p99_ms_of_each_15_s": {name: slices(calls) for name, calls in seen.items()},
        "phases": {name: calls.summary() for name, calls in seen.items()},
        "swaps": {"made": swaps.made, "failed": swaps.failed},
        "memory_mb": memory,
    }
    return finish("soak", result, judge(seen, memory, swaps))


if __name__ == "__main__":
    sys.exit(main())
