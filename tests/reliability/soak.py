"""Hold a server under load for long, with and without a change of candidates every second.

    python -m tests.reliability.soak [--minutes 30] [--load 0.7]

Measures the capacity, then sends Poisson arrivals at a share of it. Phases without changes
alternate with phases with changes, which last four times as long, so that a drift of the machine
affects both; --minutes is the total time with changes. The last line of stdout is one JSON object
with `targets`, which is also written to bench/results/soak.json.
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
from bench.load_generator import Generator, LoadResult
from bench.report import Target, environment, finish
from engine.api.candidate import TaskResult
from engine.api.proto import candidate_to
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import candidate_service_pb2_grpc
from engine.registry.catalog import read_catalog
from tests.reliability.overload import CALLERS, table
from tools.processes import BUNDLE, Server, serving

CYCLE_MINUTES, SETTLED_MINUTES = 8.0, 2.0
WITHOUT, WITH = "without changes", "with changes"
TIMEOUT_S, CAPACITY_S = 30.0, 20.0
CHANGE_INTERVAL_S = 1.0
Memory = list[tuple[float, float]]  # minutes with changes so far, MB


class CandidateChanges:
    """Context manager that changes a candidate every second.

    succeeded: number of changes that were acknowledged. failed: number by status code.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._task: asyncio.Task[None] | None = None
        self.succeeded = 0
        self.failed: dict[str, int] = {}

    async def __aenter__(self) -> CandidateChanges:
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
                await asyncio.sleep(CHANGE_INTERVAL_S)
                accuracy = 0.1 + 0.8 * (self.succeeded % 10) / 10
                aptitude = tuple(TaskResult(r.task, accuracy) for r in candidate.aptitude)
                changed = candidate_to(replace(candidate, aptitude=aptitude))
                changed.etag = ""
                try:
                    await stub.UpdateCandidate(
                        cpb.UpdateCandidateRequest(candidate=changed), timeout=TIMEOUT_S
                    )
                    self.succeeded += 1
                except grpc.aio.AioRpcError as error:
                    name = error.code().name
                    self.failed[name] = self.failed.get(name, 0) + 1


def cycle_count(minutes: float) -> int:
    """Return how often both phases alternate: every 8 minutes, and at least twice."""
    return max(2, round(minutes / CYCLE_MINUTES))


async def run(
    server: Server, minutes: float, load: float
) -> tuple[dict[str, LoadResult], Memory, CandidateChanges]:
    """Return the load of each phase, the server's memory after each step, and the changes."""
    phases, memory = {WITHOUT: LoadResult(), WITH: LoadResult()}, Memory()
    count, changes = cycle_count(minutes), CandidateChanges(server.address)
    cycle_s = 60 * minutes / count
    step_s = min(cycle_s, 15.0)  # memory is read after each step
    async with Generator(server.address, texts(1000, 4), TIMEOUT_S) as generator:
        await generator.closed_loop(CALLERS, 5.0)
        phases["capacity"] = await generator.closed_loop(CALLERS, CAPACITY_S)
        rate = load * phases["capacity"].per_second()
        await generator.open_loop(rate, 10.0)
        elapsed = 0.0
        for number in range(count):
            calm = await generator.open_loop(rate, cycle_s / 4, seed=1000 + number)
            phases[WITHOUT].extend(calm)
            async with changes:
                for step in range(round(cycle_s / step_s)):
                    part = await generator.open_loop(rate, step_s, seed=100 * number + step)
                    phases[WITH].extend(part)
                    elapsed += step_s / 60
                    memory.append((elapsed, server.resident_mb()))
    return phases, memory, changes


def growth(memory: Memory) -> float:
    """Return the relative growth of memory once the server has settled.

    It compares the median of the last tenth of the time with that of the tenth after the first
    SETTLED_MINUTES (or after the first quarter, if that is shorter).
    """
    minutes = memory[-1][0]
    first = min(SETTLED_MINUTES, minutes / 4)
    width = max(minutes / 10, memory[0][0])
    early = [mb for at, mb in memory if first <= at <= first + width]
    late = [mb for at, mb in memory if at >= minutes - width]
    return float(np.median(late) / np.median(early) - 1)


def p99_by_interval(calls: LoadResult, interval_s: float = 15.0) -> list[float]:
    """Return the p99 latency in ms of the calls that were due in each interval."""
    due, ms = np.array(calls.due), 1000 * (np.array(calls.ended) - np.array(calls.due))
    interval = (due // interval_s).astype(int)
    return [round(float(np.percentile(ms[interval == i], 99)), 1) for i in np.unique(interval)]


def targets_of(
    phases: dict[str, LoadResult], memory: Memory, changes: CandidateChanges
) -> list[Target]:
    """Compare the results with the targets."""
    calm, changed = phases[WITHOUT], phases[WITH]
    errors = sum(code != "OK" for calls in (calm, changed) for code in calls.code)
    p99 = [float(np.percentile(calls.answered_ms(), 99)) for calls in (changed, calm)]
    return [
        Target("failed calls", errors, "<= 0"),
        Target("failed changes", sum(changes.failed.values()), "<= 0"),
        Target("growth of the server's memory", growth(memory), "<= 0.02"),
        Target("p99 with changes / p99 without", p99[0] / p99[1], "<= 1.1"),
    ]


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="total time with changes (default 30)"
    )
    parser.add_argument(
        "--load", type=float, default=0.7, help="share of the capacity (default 0.7)"
    )
    options = parser.parse_args()
    settings = {"minutes": options.minutes, "load": options.load}
    described = environment(**settings, cycles=cycle_count(options.minutes))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "candidates.sqlite", "--score-cache-mb", "0") as server,
    ):
        phases, memory, changes = asyncio.run(run(server, options.minutes, options.load))
    print(table(phases))
    print(f"{changes.succeeded} changes; memory {memory[0][1]:.1f} to {memory[-1][1]:.1f} MB")
    result: dict[str, Any] = {
        "environment": described,
        # A stall of the machine raises one or two of these, the cost of changes all of them.
        "p99_ms_by_15_s": {name: p99_by_interval(calls) for name, calls in phases.items()},
        "phases": {name: calls.summary() for name, calls in phases.items()},
        "changes": {"succeeded": changes.succeeded, "failed": changes.failed},
        "memory_mb": memory,
    }
    return finish("soak", result, targets_of(phases, memory, changes))


if __name__ == "__main__":
    sys.exit(main())
